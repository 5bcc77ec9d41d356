"""Linear regions of the same network, trained plainly and with MMR."""

import matplotlib.pyplot as plt
import numpy as np

import refmmr as rm

data = rm.datasets.load("moons")
box = rm.Box([-0.1, -0.1], [1.1, 1.1])
few = slice(0, 12)
figure, axes = plt.subplots(1, 2, figsize=(7, 4), layout="constrained")
for ax, scheme in zip(axes, ("plain", "mmr"), strict=True):
    options = {"lam": 0.5, "gamma": 0.1} if scheme == "mmr" else {}
    net, _ = rm.fit(
        rm.Network.mlp([2, 24, 24, 2], rng=1), data.X_train, data.y_train, scheme, p=2,
        epochs=100, lr=0.01, progress=False, **options,
    )  # fmt: skip
    cx = rm.enumerate_regions(net, box, progress=False)
    cx.plot(color="class", ax=ax)
    proved = rm.certify(net, data.X_test, data.y_test, p=2, box=None)
    for x, radius in zip(data.X_test[few], proved.lower[few], strict=True):
        ax.plot(*x, "k.", ms=4)
        ax.add_patch(plt.Circle(x, radius, fill=False, color="k", lw=1.2))
    error = np.mean(net.predict(data.X_test) != data.y_test)
    ax.set_title(f"{scheme}: {len(cx)} regions, {100 * error:.1f} % wrong")
