"""Draw the figures of the pages on the method, once for light and once for dark pages.

``python docs/_figures/method.py`` writes ``docs/_static/method-*-light.svg`` and ``-dark.svg``.
Figures are at most 6.6 inches wide: on a phone of 390 pixels their letters are half as large.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

import refmmr as rm
from refmmr.reference import hyperplanes

OUT = Path(__file__).parents[1] / "_static"
THEMES = {
    "light": {
        "ink": "#14181f",
        "faint": "#8b97a8",
        "blue": "#0072b2",
        "orange": "#c24a00",
    },
    "dark": {
        "ink": "#f2f4f7",
        "faint": "#6c7a8e",
        "blue": "#56b4e9",
        "orange": "#f5a31a",
    },
}
TRIANGLE = np.array([[-1.3, -1.0], [1.5, -1.2], [1.9, 0.9], [0.2, 1.7], [-1.6, 0.8]])
"""A linear region, counter-clockwise."""


def main() -> None:
    """Draw all figures in both themes."""
    figures = {
        "regions": regions,
        "distances": distances,
        "certificates": certificates,
        "mmr": mmr,
        "numerics": numerics,
    }
    mpl.rcParams.update({"svg.hashsalt": "refmmr", "font.size": 12})
    for theme, colours in THEMES.items():
        ink = colours["ink"]
        mpl.rcParams.update(
            {f"{name}.color": ink for name in ("text", "xtick", "ytick")}
            | {"axes.labelcolor": ink, "axes.edgecolor": ink, "axes.facecolor": "none"}
        )
        for name, draw in figures.items():
            figure = draw(colours)
            path = OUT / f"method-{name}-{theme}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})
            plt.close(figure)


def bare(ax: Axes) -> None:
    """Equal axes without ticks."""
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def regions(colours: dict[str, str]) -> plt.Figure:
    """Hyperplanes of two layers, and the region of one point."""
    rng = np.random.default_rng(33)
    layers = [
        rm.Linear(rng.normal(size=(n, m)), rng.normal(size=n) / 2) for m, n in ((2, 6), (6, 5))
    ]
    net = rm.Network([*layers, rm.Linear(rng.normal(size=(2, 5)), [0.0, 0.0])], 2)
    cx = rm.enumerate_regions(net, rm.Box([-1.6, -1], [1.6, 1]), progress=False)
    inner = [i for i, v in enumerate(cx.vertices) if (np.abs(v) < [1.59, 0.99]).all()]
    largest = max(inner, key=lambda i: cx.areas[i])
    figure, ax = plt.subplots(figsize=(6, 4.4), layout="constrained")
    segments, units = cx.bent_lines()
    for layer, colour, width in ((0, "blue", 2.2), (1, "orange", 1.6)):
        own = (units >= 6) == bool(layer)
        lines = LineCollection(list(segments[own]), colors=colours[colour], linewidths=width)
        ax.add_collection(lines)
        ax.plot([], [], color=colours[colour], lw=width, label=f"layer {layer + 1}")
    pattern = "".join(map(str, cx.patterns[largest].astype(int)))
    label = f"Q(x): {pattern[:6]} {pattern[6:]}"
    ax.fill(*cx.vertices[largest].T, color=colours["blue"], alpha=0.3, lw=0, label=label)
    x = cx.vertices[largest].mean(axis=0)
    ax.plot(*x, "o", color=colours["ink"])
    ax.annotate("x", x, (6, 5), textcoords="offset points", fontsize=14, style="italic")
    bare(ax)
    ax.set(xlim=(-1.6, 1.6), ylim=(-1, 1))
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    return figure


def distances(colours: dict[str, str]) -> plt.Figure:
    """The balls of three norms that touch a hyperplane."""
    w, v = np.array([1.0, 2.0]), -2.0
    angle = np.linspace(0, 2 * np.pi, 401)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    figure, axes = plt.subplots(1, 3, figsize=(6.6, 3), layout="constrained")
    names = {1: "$l_1$: |v| / max|w|", 2: "$l_2$: |v| / length of w"}
    names[np.inf] = "$l_\\infty$: |v| / sum|w|"
    for ax, (p, name) in zip(axes, names.items(), strict=True):
        distance = abs(v) / hyperplanes.dual_norm(w, p)
        ball = distance * circle / hyperplanes.norm(circle, p)[:, None]
        step = hyperplanes.shortest_step(w, np.float64(v), p)
        ax.fill(*ball.T, color=colours["blue"], alpha=0.3)
        ax.plot([-1.6, 1.6], [1.8, 0.2], color=colours["ink"], lw=2)
        arrow = {"arrowstyle": "->", "color": colours["orange"], "lw": 2, "shrinkA": 0}
        ax.annotate("", step, (0, 0), arrowprops=arrow)
        ax.plot(0, 0, "o", color=colours["ink"])
        ax.text(0.1, -0.25, "x", style="italic", fontsize=14)
        ax.set_title(f"{name}\n= {distance:.3f}", fontsize=12)
        bare(ax)
        ax.set(xlim=(-1.5, 1.5), ylim=(-1.15, 1.85))
    return figure


def certificates(colours: dict[str, str]) -> plt.Figure:
    """The two cases of the theorems."""
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.2), layout="constrained")
    x = np.array([0.15, 0.0])
    normals = np.roll(TRIANGLE, -1, axis=0) - TRIANGLE
    normals = np.column_stack([-normals[:, 1], normals[:, 0]])
    values = ((x - TRIANGLE) * normals).sum(axis=1)
    boundary = (values / np.linalg.norm(normals, axis=1)).min()
    w = np.array([0.6, 0.8])
    for ax, decision, title in (
        (axes[0], 0.62, "exact: $d_D \\leq d_B$"),
        (axes[1], 1.55, "a lower bound: $d_B < d_D$"),
    ):
        ax.fill(*TRIANGLE.T, color=colours["faint"], alpha=0.2)
        ax.plot(*np.vstack([TRIANGLE, TRIANGLE[:1]]).T, color=colours["blue"], lw=2)
        middle, along = x + decision * w, np.array([-w[1], w[0]])
        s = np.linspace(-2.6, 2.6, 2001)
        line = middle + s[:, None] * along
        cross = np.stack([((line - q) @ n) for q, n in zip(TRIANGLE, normals, strict=True)])
        inside = (cross >= 0).all(axis=0)
        ax.plot(*line.T, "--", color=colours["faint"], lw=2)
        ax.plot(*line[inside].T, color=colours["ink"], lw=3)
        radius = min(boundary, decision)
        ax.add_patch(plt.Circle(x, radius, color=colours["orange"], alpha=0.35))
        ax.add_patch(plt.Circle(x, radius, fill=False, color=colours["orange"], lw=2))
        ax.plot(*x, "o", color=colours["ink"])
        ax.annotate("x", x, (-14, -4), textcoords="offset points", fontsize=14, style="italic")
        ax.set_title(title, fontsize=13)
        bare(ax)
        ax.set(xlim=(-1.8, 2.6), ylim=(-1.4, 2.0))
    return figure


def mmr(colours: dict[str, str]) -> plt.Figure:
    """The hinge, and what its gradient does."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 3.4), layout="constrained")
    d = np.array([0.12, 0.3, 0.42, 0.55, 0.85, 1.1])
    hinge = np.maximum(0, 1 - d / 0.6)
    left.plot([0, 0.6, 1.3], [1, 0, 0], color=colours["blue"], lw=2)
    left.plot(d[:3], hinge[:3], "o", color=colours["orange"], ms=9, label="the $k_B$ nearest")
    left.plot(
        d[3:],
        hinge[3:],
        "o",
        mfc="none",
        mec=colours["faint"],
        ms=9,
        label="the others",
    )
    left.set(
        xlabel="distance of the hyperplane",
        ylabel="hinge",
        xlim=(0, 1.3),
        ylim=(-0.05, 1.1),
    )
    left.set_xticks([0, 0.6], ["0", "γ"])
    left.set_yticks([0, 1])
    left.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    right.add_patch(plt.Circle((0, 0), 0.6, fill=False, ls=":", color=colours["ink"]))
    for i, (distance, degrees) in enumerate(zip(d, (20, 145, 265, 75, 205, 330), strict=True)):
        w = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        ends = distance * w + np.outer([-1.6, 1.6], [-w[1], w[0]])
        near = i < 3
        right.plot(*ends.T, color=colours["orange" if near else "faint"], lw=2 if near else 1.2)
        if near:
            arrow = {
                "arrowstyle": "->",
                "color": colours["orange"],
                "lw": 2,
                "shrinkA": 0,
            }
            right.annotate("", (distance + 0.3) * w, distance * w, arrowprops=arrow)
    right.plot(0, 0, "o", color=colours["ink"])
    right.text(-0.12, -0.02, "x", style="italic", fontsize=14, ha="right")
    right.text(0.36, -0.56, "γ", fontsize=13)
    bare(right)
    right.set(xlim=(-1.25, 1.25), ylim=(-1, 1))
    return figure


def numerics(colours: dict[str, str]) -> plt.Figure:
    """The computed distance, its error bound, and the certified radius."""
    figure, ax = plt.subplots(figsize=(6.6, 1.8), layout="constrained")
    ax.annotate(
        "",
        (1, 0),
        (0, 0),
        arrowprops={"arrowstyle": "->", "color": colours["ink"], "lw": 1.5},
    )
    ax.plot(
        [0.4, 0.8],
        [0, 0],
        color=colours["blue"],
        lw=12,
        alpha=0.4,
        solid_capstyle="butt",
    )
    places = (
        (0.4, "certified radius", "orange", 16),
        (0.6, "computed distance", "ink", 16),
    )
    for place, text, colour, up in (*places, (0.72, "true distance", "blue", -28)):
        ax.plot([place, place], [-0.1, 0.1], color=colours[colour], lw=3)
        ax.annotate(
            text, (place, 0), (0, up), textcoords="offset points", ha="center",
            color=colours[colour],
        )  # fmt: skip
    ax.annotate("bound on the rounding error", (0.47, 0), (0, -28), textcoords="offset points",
                ha="center")  # fmt: skip
    ax.set(xlim=(0.2, 1.02), ylim=(-0.5, 0.5))
    ax.axis("off")
    return figure


if __name__ == "__main__":
    main()
