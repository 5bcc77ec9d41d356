"""The decision boundary of a network with three inputs, polygon by polygon."""

import matplotlib.pyplot as plt
import numpy as np
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

import refmmr as rm

rng = np.random.default_rng(0)
X = rng.uniform(-1, 1, size=(1500, 3))
y = (np.linalg.norm(X, axis=1) < 0.8).astype(int)  # inside a sphere
net = rm.Network.mlp([3, 12, 2], rng=2)
net, _ = rm.fit(net, X, y, epochs=80, lr=0.02, progress=False)

cx = rm.enumerate_regions(net, rm.Box([-1] * 3, [1] * 3), progress=False)
boundary = cx.decision_boundary()


def ring(vertices):
    """The vertices of a flat polygon in order around its middle."""
    offsets = vertices - vertices.mean(axis=0)
    plane = np.linalg.svd(offsets)[2][:2]
    return vertices[np.argsort(np.arctan2(*(plane @ offsets.T)))]


polygons = [ring(piece) for piece in boundary.pieces]
middles = np.array([polygon.mean(axis=0) for polygon in polygons])
figure = plt.figure(figsize=(6.4, 5.6), layout="constrained")
ax = figure.add_subplot(projection="3d")
faces = plt.cm.viridis((middles[:, 2] + 1) / 2)
ax.add_collection3d(Poly3DCollection(polygons, fc=faces, ec="k", lw=0.6))
ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
ax.set(xlabel="$x_1$", ylabel="$x_2$", zlabel="$x_3$")
ax.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], zticks=[-1, 0, 1])
ax.set_title(f"{len(polygons)} polygons, {len(cx)} regions in the cube")
ax.set_box_aspect((1, 1, 1))
