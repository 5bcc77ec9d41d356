"""Figures of the paper's table: robustness curves, radii, regions, first-layer filters.

All are drawn from the cards, points and networks that are stored.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from _table1_cells import Row, title
from _table1_files import POINTS, ROOT, read_points
from _table1_summary import certified_radii
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from PIL import Image

import refmmr as rm
from refmmr import _files
from refmmr.display.colors import CLASS_COLORS

GRID = 240
"""Points along an edge of the plane whose class is drawn."""
ZOOM = 0.08
"""Half the edge of the square around the first image, as a share of the plane's longer edge: a
network of the paper has some hundreds to some thousands of regions in it."""
FILTERS = 16
SHADES = 256
"""Colours of a file: as many as a palette has."""
IMAGES = ROOT / "docs" / "images"
COLORS = {
    "plain": "#555555",
    "at": "#D55E00",
    "kw": "#CC79A7",
    "mmr": "#0072B2",
    "mmr+at": "#009E73",
}


SHOWN = {
    "curves": "Certified accuracy (solid) and accuracy under attack (dashed) over the radius",
    "radii": "Histograms of the certified radii of the first test images",
    "regions": "The plane of three test images: classes, and all linear regions around the first",
    "filters": "Weights of the first layer, of the units with the largest weights",
}
"""What the figures show, for those who do not see them."""


def draw(blocks: dict[str, list[Row]]) -> None:
    """Draw the figures of the blocks."""
    mpl.use("Agg")
    drawn_by = {
        "curves": draw_curves, "radii": draw_radii, "regions": draw_regions, "filters": draw_filters
    }  # fmt: skip
    for block, rows in blocks.items():
        for name, shown in shown_by(block, rows).items():
            save(drawn_by[name](shown), IMAGES / file_of(block, name))


def texts(block: str, rows: list[Row]) -> dict[str, str]:
    """The files of a block's figures, and what they show in words."""
    return {
        file_of(block, name): f"{SHOWN[name]}: {', '.join(r.scheme for r in shown)}; {title(block)}"
        for name, shown in shown_by(block, rows).items()
    }


def shown_by(block: str, rows: list[Row]) -> dict[str, list[Row]]:
    """The rows that each figure of a block shows; a figure without any is not drawn."""
    here = [row for row in rows if row.card]
    measured = [row for row in here if row.found and row.found["radii"]]
    found = {
        "curves": measured, "radii": measured, "regions": here,
        "filters": here if "-fc1-" in block else [],
    }  # fmt: skip
    return {name: shown for name, shown in found.items() if shown}


def file_of(block: str, name: str) -> str:
    """The file of a figure, in the folder of the documentation's images."""
    return f"table1-{block}-{name}.png"


def save(figure: plt.Figure, path: Path) -> None:
    """Save and close a figure, in few colours: lines in many shades hardly compress."""
    buffer = io.BytesIO()
    # Without the version of Matplotlib in it, the same figures give the same file.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    with Image.open(buffer) as picture:
        few = picture.convert("RGB").quantize(
            SHADES, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
    _files.write_atomically(path, lambda file: few.save(file, "png", optimize=True))


def draw_radii(rows: list[Row]) -> plt.Figure:
    """Histograms of the certified radii of all points that have been measured."""
    certificates = {}
    for row in rows:
        assert row.card is not None
        _, points = read_points(POINTS / f"{row.card.name}.csv.gz")
        measured = [point for point in points.values() if "region" in point]
        lower = certified_radii(measured, row.card.preset)
        upper = np.array([point["attack"] for point in measured])
        nowhere = np.full((len(lower), 1), np.nan)
        p = np.inf if row.norm == "linf" else 2
        certificates[row.scheme] = rm.Certificates(
            lower, upper, lower == upper, nowhere, p, "region, crown, bab"
        )
    figure = rm.plot.radii(certificates, eps=rm.presets[rows[0].name].eps)
    figure.set_size_inches(5.6, 0.9 + 1.5 * len(rows))
    for ax, row in zip(figure.axes, rows, strict=True):
        for bar in ax.patches:
            bar.set_facecolor(COLORS[row.name.split("-")[3]])
    return figure


def draw_curves(rows: list[Row]) -> plt.Figure:
    """Certified accuracy, and accuracy under attack, of the schemes of a block."""
    figure, ax = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
    for row in rows:
        assert row.found is not None
        curve, color = row.found["radii"]["curve"], COLORS[row.name.split("-")[3]]
        clean = 100 * (1 - row.found["test_error"])
        radii = [0, *curve["radii"]]
        certified = [clean, *(100 * share for share in curve["certified_accuracy"])]
        attacked = [clean, *(100 * share for share in curve["attacked_accuracy"])]
        ax.plot(radii, certified, color=color, lw=1.8, marker="o", ms=3.5, label=row.scheme)
        ax.plot(radii, attacked, color=color, lw=1.3, ls="--")
        ax.fill_between(radii, certified, attacked, color=color, alpha=0.1)
    eps = rm.presets[rows[0].name].eps
    assert eps is not None
    ax.axvline(eps, color="black", lw=0.8, ls=":")
    ax.annotate("eps", (eps, 100), (3, -10), textcoords="offset points", fontsize=10)
    ax.set_title(title(rows[0].name.rpartition("-")[0]))
    ax.set(xlabel="radius", ylabel="test points, %", xlim=(0, None), ylim=(0, 100))
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(
        frameon=False, title="solid: certified, dashed: not attacked", ncols=len(rows),
        loc="outside lower center", columnspacing=1, handlelength=1.4,
    )  # fmt: skip
    return figure


def draw_regions(rows: list[Row]) -> plt.Figure:
    """For each scheme the classes in the plane of three images, and the regions around one."""
    nets = [rm.zoo.load(row.card.name).astype(np.float64) for row in rows if row.card]
    images = three_images(rows, nets)
    plane = rm.Slice(*images)
    (u0, v0), (u1, v1) = plane.rectangle
    half = ZOOM * max(u1 - u0, v1 - v0)
    near = rm.Slice(*images, extent=(-half, half, -half, half))
    grid = np.stack(np.meshgrid(np.linspace(u0, u1, GRID), np.linspace(v0, v1, GRID)), axis=-1)
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(6.4, 0.4 + 3 * len(rows)), squeeze=False, layout="constrained"
    )
    for row, net, (left, right) in zip(rows, nets, axes, strict=True):
        classes = net.predict(plane.embed(grid.reshape(-1, 2))).reshape(GRID, GRID)
        draw_classes(left, classes, (u0, u1, v0, v1))
        for point, label in zip(plane.points, net.predict(images), strict=True):
            left.plot(*point, "o", color="white", markeredgecolor="black", ms=6)
            left.annotate(f"{label}", point, (0, 20), textcoords="offset points", ha="center")
        left.add_patch(plt.Rectangle((-half, -half), 2 * half, 2 * half, fill=False, lw=1.5))
        left.set_title(row.scheme, loc="left", fontweight="bold")
        cx = rm.enumerate_regions(net, near, progress=False)
        rm.plot.regions(cx, ax=right)
        right.plot(0, 0, "o", color="white", markeredgecolor="black", ms=6)
        n = f"{len(cx):,} regions" if len(cx) > 1 else "one region"
        right.set_title(f"{n} in the square", loc="left")
        for ax in (left, right):
            ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    return figure


def three_images(rows: list[Row], nets: list[rm.Network]) -> np.ndarray:
    """The first test images of three classes that all networks of a block get right."""
    preset = rm.presets[rows[0].name]
    data = rm.datasets.load(preset.data, images=preset.network == "cnn", dtype=np.float64)
    X, y = data.X_test[:100], data.y_test[:100]
    right = np.flatnonzero(np.all([net.predict(X) == y for net in nets], axis=0))
    _, first = np.unique(y[right], return_index=True)
    return np.asarray(X[right[np.sort(first)[:3]]])


def draw_classes(ax: plt.Axes, classes: np.ndarray, extent: tuple) -> None:
    """The class of each point of a plane as a colour."""
    ax.imshow(
        classes, origin="lower", extent=extent, alpha=0.45, interpolation="nearest",
        cmap=ListedColormap(CLASS_COLORS), vmin=0, vmax=len(CLASS_COLORS) - 1,
    )  # fmt: skip


def draw_filters(rows: list[Row]) -> plt.Figure:
    """First-layer weights of FC1 as images, of the units with the largest weights in and out."""
    columns = FILTERS // 2
    figure = plt.figure(figsize=(6.4, 0.2 + 2 * len(rows)), layout="constrained")
    for row, part in zip(rows, figure.subfigures(len(rows), 1, squeeze=False)[:, 0], strict=True):
        assert row.card is not None
        (W, _), (V, _) = rm.zoo.load(row.card.name).parameters
        weight = np.linalg.norm(W, axis=1) * np.linalg.norm(V, axis=0)
        part.suptitle(row.scheme, x=0.01, ha="left", fontweight="bold")
        axes = part.subplots(2, columns).ravel()
        for ax, unit in zip(axes, np.argsort(-weight), strict=False):
            image = W[unit].reshape(-1, *_size(W.shape[1])).mean(axis=0)
            largest = np.abs(image).max()
            ax.imshow(image, cmap="RdBu", vmin=-largest, vmax=largest)
            ax.set_axis_off()
    return figure


def _size(inputs: int) -> tuple[int, int]:
    """Edges of an image of one channel, or of three."""
    edge = round(np.sqrt(inputs if inputs == 784 else inputs / 3))
    return edge, edge
