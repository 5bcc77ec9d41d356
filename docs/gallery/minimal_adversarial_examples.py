"""The nearest image of another class, proved to be the nearest, of two networks."""

import matplotlib.pyplot as plt

import refmmr as rm

data = rm.datasets.load("digits")
X, y = data.X_test[:5], data.y_test[:5]
figure, axes = plt.subplots(3, 5, figsize=(6, 4.2), layout="constrained")
rows = {"image": (X, [f"{label}" for label in y])}
for scheme, options in {"plain": {}, "mmr": {"lam": 1.0, "gamma": 0.5}}.items():
    net, _ = rm.fit(
        rm.Network.mlp([64, 24, 10], rng=0), data.X_train, data.y_train, scheme, p=2,
        epochs=12, batch_size=64, lr=8e-3, progress=False, **options,
    )  # fmt: skip
    found = rm.certify(net, X, y, p=2, method="search", progress=False)
    assert found.exact.all()
    pairs = zip(net.predict(found.adversarial), found.upper, strict=True)
    rows[scheme] = (found.adversarial, [f"{c} at {radius:.2f}" for c, radius in pairs])
for row, (name, (images, titles)) in zip(axes, rows.items(), strict=True):
    row[0].set_ylabel(name)
    for ax, image, title in zip(row, images, titles, strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=title)
