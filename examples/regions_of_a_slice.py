"""The linear regions of a network in the plane through three images.

``python regions_of_a_slice.py [DATA]`` writes ``regions.png``, and ``regions.html`` to explore.
"""

import sys

import matplotlib.pyplot as plt

import refmmr as rm

data = rm.datasets.load(sys.argv[1] if len(sys.argv) > 1 else "digits")
classes = int(data.y_train.max()) + 1
net = rm.Network.mlp([data.X_train.shape[1], 64, 64, classes], rng=0)
net, _ = rm.fit(net, data.X_train, data.y_train, epochs=10)

# The first test images of three classes span a plane; inputs are flat.
images = [data.X_test[data.y_test == label][0] for label in (0, 1, 2)]
cx = rm.enumerate_regions(net, rm.Slice(*images))
print(f"{len(cx)} linear regions, complete: {cx.complete}")

ax = rm.plot.regions(cx)
rm.plot.bent_lines(cx, ax=ax)
plt.savefig("regions.png", dpi=200)
cx.explore().save("regions.html")
