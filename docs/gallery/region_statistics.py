"""Regions during a training: how many there are, and how large those of the data."""

import matplotlib.pyplot as plt
import numpy as np

import refmmr as rm

data = rm.datasets.load("moons")
box = rm.Box([0, 0], [1, 1])
figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
for scheme, options in {"plain": {}, "mmr": {"lam": 0.5, "gamma": 0.1}}.items():
    rows = []

    def measure(net, record, rows=rows):
        """A row every fifth epoch."""
        if record["epoch"] % 5 == 0:
            cx = rm.enumerate_regions(net, box, progress=False)
            own = cx.areas[cx.region_of(data.X_test[:200])]
            d = rm.distances(net, data.X_test[:200], data.y_test[:200], p=2)
            nearest = d.boundary.min(axis=1)
            rows.append([record["epoch"], len(cx), own.mean(), nearest.mean()])

    rm.fit(
        rm.Network.mlp([2, 24, 24, 2], rng=1), data.X_train, data.y_train, scheme, p=2,
        epochs=100, lr=0.01, progress=False, callback=measure, **options,
    )  # fmt: skip
    epochs, *columns = np.transpose(rows)
    for ax, values in zip(axes, columns, strict=True):
        ax.plot(epochs, values, lw=2, label=scheme)
titles = (
    "regions of the square",
    "mean area of a point's region",
    "mean d$_B$ of a point",
)
for ax, title in zip(axes, titles, strict=True):
    ax.set(title=title, xlabel="epoch", ylim=(0, None))
    ax.grid(alpha=0.3)
axes[0].legend(frameon=False)
