"""How many test images are certified within a radius, for four ways of training."""

import matplotlib.pyplot as plt
import numpy as np

import refmmr as rm

data = rm.datasets.load("digits")
X, y = data.X_test[:80], data.y_test[:80]
schemes = {
    "plain": {},
    "at": {"eps": 0.3, "pgd_steps": 7},
    "mmr": {"lam": 1.0, "gamma": 0.5},
    "mmr+at": {"lam": 0.5, "gamma": 0.4, "eps": 0.3, "pgd_steps": 7},
}
figure, axes = plt.subplots(1, 2, figsize=(7, 3.8), sharey=True, layout="constrained")
for scheme, options in schemes.items():
    net, _ = rm.fit(
        rm.Network.mlp([64, 24, 10], rng=0), data.X_train, data.y_train, scheme, p=2,
        epochs=10, batch_size=64, lr=8e-3, progress=False, **options,
    )  # fmt: skip
    _, distance = rm.minimal_attack(net, X, y, p=2, restarts=4)
    for ax, method in zip(axes, ("region", "crown"), strict=True):
        found = rm.certify(net, X, y, p=2, method=method, progress=False)
        for radius, style, label in ((found.lower, "-", scheme), (distance, ":", None)):
            # Of n sorted radii the j-th, counted from 0, is reached by n - j images.
            share = 100 * (1 - np.arange(len(X)) / len(X))
            color = f"C{list(schemes).index(scheme)}"
            ax.step(np.sort(radius), share, style, color=color, lw=2, label=label)
for ax, by in zip(axes, ("one linear region", "CROWN"), strict=True):
    ax.set(
        title=f"proved by {by}", xlabel="radius in l$_2$", xlim=(0, 1.2), ylim=(0, 101)
    )
    ax.grid(alpha=0.3)
axes[0].set_ylabel("test images, %")
axes[0].plot([], [], "k:", label="not broken by an attack")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
