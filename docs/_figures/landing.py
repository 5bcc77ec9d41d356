"""Draw the picture of the landing page, once for light and once for dark pages.

``python docs/_figures/landing.py`` trains the demo's network twice and writes
``docs/_static/landing-light.svg`` and ``docs/_static/landing-dark.svg``.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

import refmmr as rm
from refmmr import demo
from refmmr.display.colors import CLASS_COLORS

OUT = Path(__file__).parents[1] / "_static"
THEMES = {
    "light": {"ink": "#14181f", "faint": "#5b6b80", "fill": 0.28},
    "dark": {"ink": "#f2f4f7", "faint": "#a9b8cc", "fill": 0.38},
}
DIGITS = (3, 5, 8)
PROVED = "#d55e00"
NAMES = {"plain": "Plain training", "mmr": "Training with MMR"}


def main() -> None:
    """Train, certify, draw."""
    data = rm.datasets.load("digits")
    nets = {name: train(name, data) for name in NAMES}
    right = np.all([net.predict(data.X_test) == data.y_test for net in nets.values()], axis=0)
    chosen = [np.flatnonzero(right & (data.y_test == digit))[0] for digit in DIGITS]
    X, y = data.X_test[chosen], data.y_test[chosen]
    points = rm.Slice(*X).points
    low, high = points.min(axis=0), points.max(axis=0)
    spare = 0.55 * (high - low).max()
    plane = rm.Slice(*X, (low[0] - spare, high[0] + spare, low[1] - spare, high[1] + spare))
    found = {}
    for name, net in nets.items():
        radii = rm.certify(net, X, y, p=2, box=None).lower
        found[name] = rm.enumerate_regions(net, plane, progress=False), radii
    for theme, colours in THEMES.items():
        draw(found, plane, X, colours, OUT / f"landing-{theme}.svg")


def train(scheme: str, data: rm.datasets.Dataset) -> rm.Network:
    """The demo's network."""
    settings = {**demo.TRAINING, **demo.REGULARIZER.get(scheme, {})}
    net = rm.Network.mlp(demo.SIZES, rng=demo.SEED)
    return rm.fit(net, data.X_train, data.y_train, scheme, progress=False, **settings)[0]


def draw(found, plane, X, colours, path: Path) -> None:
    """Two maps side by side."""
    mpl.rcParams.update({"svg.hashsalt": "refmmr", "font.size": 12, "text.color": colours["ink"]})
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 4.1), layout="constrained")
    for ax, (name, (cx, radii)) in zip(axes, found.items(), strict=True):
        pieces = cx.class_polygons()
        faces = [CLASS_COLORS[winner % len(CLASS_COLORS)] for winner, _ in pieces]
        vertices = [polygon for _, polygon in pieces]
        ax.add_collection(
            PolyCollection(
                vertices, facecolors=faces, alpha=colours["fill"], linewidths=0, rasterized=True
            )
        )
        ax.add_collection(
            LineCollection(list(cx.bent_lines()[0]), colors=colours["faint"], linewidths=0.6)
        )
        boundary = list(cx.decision_boundary().segments)
        ax.add_collection(
            LineCollection(boundary, colors=colours["ink"], linewidths=2.5, capstyle="round")
        )
        for x, z, radius, side in zip(X, plane.points, radii, (-1, -1, 1), strict=True):
            ax.add_patch(plt.Circle(z, radius, facecolor=PROVED, alpha=0.45, zorder=3))
            ax.add_patch(plt.Circle(z, radius, fill=False, edgecolor=PROVED, lw=2, zorder=4))
            ax.plot(*z, "o", color=PROVED, ms=3, zorder=5)
            image = OffsetImage(x.reshape(8, 8), zoom=2.8, cmap="gray_r", interpolation="nearest")
            frame = {"edgecolor": colours["ink"], "facecolor": "white", "lw": 1}
            place = (0, side * (24 if side > 0 else 44))
            ax.add_artist(
                AnnotationBbox(
                    image, z, place, boxcoords="offset points", pad=0.1, bboxprops=frame, zorder=6
                )
            )
        lo, hi = plane.rectangle
        ax.set(xlim=(lo[0], hi[0]), ylim=(lo[1], hi[1]), aspect="equal", xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_color(colours["faint"])
        ax.set_facecolor("none")
        ax.set_title(
            f"{NAMES[name]}\n{len(cx)} linear regions\n"
            f"proved radius {min(radii):.2g} to {max(radii):.2g}",
            color=colours["ink"],
            fontsize=12,
        )
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
