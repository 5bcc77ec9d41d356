"""The smallest change of one image that changes its class, and a proof that none is smaller.

``python minimal_perturbation.py [DATA] [INDEX]`` writes ``minimal.png``.
"""

import sys

import matplotlib.pyplot as plt

import refmmr as rm

data = rm.datasets.load(sys.argv[1] if len(sys.argv) > 1 else "digits")
index = int(sys.argv[2]) if len(sys.argv) > 2 else 0
classes = int(data.y_train.max()) + 1
net = rm.Network.mlp([data.X_train.shape[1], 64, classes], rng=0)
net, _ = rm.fit(net, data.X_train, data.y_train, "mmr", p=2, lam=4.0, gamma=0.6, epochs=20)

x, y = data.X_test[index : index + 1], data.y_test[index : index + 1]
found = rm.certify(net, x, y, p=2, method="search", max_seconds=60)
print(f"between {found.lower[0]:.6f} and {found.upper[0]:.6f} in l_2; exact: {found.exact[0]}")

z = found.adversarial[0]
side = round(len(z) ** 0.5)  # of a grey image
figure, axes = plt.subplots(1, 2, layout="constrained")
for ax, image, of in zip(axes, (x[0], z), (y[0], net.predict(z[None])[0]), strict=True):
    ax.imshow(image.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
    ax.set(title=f"class {of}", xticks=[], yticks=[])
figure.savefig("minimal.png", dpi=200)
