"""Figures: linear regions, bent hyperplanes, certified radii, adversarial examples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from refmmr import _files
from refmmr import _validate as check
from refmmr.display.bound_figures import draw_image, ladder, norm_name, robustness_curve
from refmmr.display.colors import CLASS_COLORS

if TYPE_CHECKING:
    from refmmr.certify import Certificates
    from refmmr.regions import RegionComplex

__all__ = [
    "adversarial_examples",
    "bent_lines",
    "ladder",
    "radii",
    "regions",
    "robustness_curve",
    "save",
]

BAR_COLORS = ("#555555", "#D55E00", "#0072B2", "#009E73")
"""Colours of the histograms; they repeat after four."""


def regions(
    cx: RegionComplex,
    color: str = "region",
    ax: Axes | None = None,
    *,
    boundary: bool = True,
    points: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
) -> Axes:
    """Draw the linear regions of a plane complex.

    Parameters
    ----------
    cx : RegionComplex
    color : {"region", "class", "none"}
        What the colour of a polygon shows: a random shade; the class of the largest logit;
        nothing.
    ax : matplotlib Axes, optional
        Axes to draw on; a new figure if not given.
    boundary : bool
        Draw the decision boundary as a thick line.
    points : array_like, shape (m, 2), optional
        Points to mark, in coordinates of the plane.
    labels : sequence of str, optional
        Their names.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        For another `color`.

    Examples
    --------
    .. plot::
       :alt: A square cut into polygons of many shades of one colour, with the decision boundary as
          a thick line.

       >>> import refmmr as rm
       >>> net = rm.Network.mlp([2, 16, 16, 3], rng=1)
       >>> net = net.with_parameters([(W, 0.3 + 0 * b) for W, b in net.parameters])
       >>> cx = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]), progress=False)
       >>> ax = rm.plot.regions(cx)
    """
    color = check.check_choice("color", color, ("region", "class", "none"))
    ax = _new_axes(cx, ax)
    edges = 0.6 if len(cx) < 1000 else 0.2
    if color == "class":
        pieces = cx.class_polygons()
        faces = [CLASS_COLORS[winner % len(CLASS_COLORS)] for winner, _ in pieces]
        shapes = PolyCollection([vertices for _, vertices in pieces], facecolors=faces, alpha=0.45)
        ax.add_collection(shapes)
        for winner in sorted({winner for winner, _ in pieces}):
            face = CLASS_COLORS[winner % len(CLASS_COLORS)]
            ax.plot([], [], "s", color=face, alpha=0.45, label=f"class {winner}")
    # Random shades of one colour map, so that most neighbours differ; the same in every run.
    shades = mpl.colormaps["cividis"](np.random.default_rng(0).uniform(0.15, 1, len(cx)))
    outlines = PolyCollection(
        cx.vertices,
        facecolors=shades if color == "region" else "none",
        edgecolors="0.25" if color == "region" else "0.45",
        linewidths=edges,
    )
    ax.add_collection(outlines)
    if boundary:
        _draw_boundary(cx, ax)
    _mark(ax, points, labels)
    return ax


def bent_lines(
    cx: RegionComplex,
    ax: Axes | None = None,
    *,
    boundary: bool = True,
    points: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
) -> Axes:
    """Draw the zero set of each hidden unit, a bent hyperplane, in its own colour.

    In a plane the zero set of a unit after the first layer is a line that bends where it crosses
    those of earlier layers (Hanin and Rolnick 2019).

    Parameters
    ----------
    cx : RegionComplex
    ax : matplotlib Axes, optional
        Axes to draw on; a new figure if not given.
    boundary : bool
        Draw the decision boundary as a thick black line.
    points : array_like, shape (m, 2), optional
        Points to mark, in coordinates of the plane.
    labels : sequence of str, optional
        Their names.

    Returns
    -------
    Axes

    References
    ----------
    Croce, Andriushchenko, Hein (2019): the regions in the plane of three MNIST points.

    Examples
    --------
    .. plot::
       :alt: The same square with lines only: where each hidden unit is 0, in its own colour.

       >>> import refmmr as rm
       >>> net = rm.Network.mlp([2, 16, 16, 3], rng=1)
       >>> net = net.with_parameters([(W, 0.3 + 0 * b) for W, b in net.parameters])
       >>> cx = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]), progress=False)
       >>> legend = rm.plot.bent_lines(cx).legend()
    """
    ax = _new_axes(cx, ax)
    segments, units = cx.bent_lines()
    # Multiples of the golden ratio, modulo 1, spread any number of units over the colour map.
    colors = mpl.colormaps["turbo"]((units * 0.618034) % 1)
    ax.add_collection(LineCollection(list(segments), colors=colors, linewidths=0.9))
    ax.plot([], [], color="0.5", lw=0.9, label="where a hidden unit changes sign")
    if boundary:
        _draw_boundary(cx, ax)
    _mark(ax, points, labels)
    return ax


def radii(certificates: Mapping[str, Certificates], eps: float | None = None) -> Figure:
    """Draw histograms of certified radii, one below the other, each with its own vertical scale.

    Parameters
    ----------
    certificates : mapping of str to Certificates
        By name of the training, all in the same norm.
    eps : float, optional
        A radius to mark by a vertical line, with the share of points certified beyond it.

    Returns
    -------
    Figure

    Examples
    --------
    .. plot::
       :alt: Two histograms of certified radii, one below the other: those of plain training lie
          near zero, those of MMR training reach far to the right.

       >>> import refmmr as rm
       >>> data = rm.datasets.load("digits")
       >>> X, y = data.X_test[:60], data.y_test[:60]
       >>> found = {}
       >>> for scheme, options in {"plain": {}, "mmr": {"lam": 1.0, "gamma": 0.5}}.items():
       ...     net, _ = rm.fit(
       ...         rm.Network.mlp([64, 24, 10], rng=0), data.X_train, data.y_train, scheme,
       ...         p=2, epochs=5, batch_size=64, lr=8e-3, progress=False, **options
       ...     )
       ...     found[scheme] = rm.certify(net, X, y, p=2, progress=False)
       >>> figure = rm.plot.radii(found, eps=0.2)
    """
    n = len(certificates)
    figure, axes = plt.subplots(
        n, 1, figsize=(7.5, 1.4 * n + 0.8), sharex=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    finite = {name: c.lower[np.isfinite(c.lower)] for name, c in certificates.items()}
    largest = max((float(lower.max(initial=0)) for lower in finite.values()), default=0)
    bins = np.linspace(0, largest * 1.02 or 1, 36).tolist()
    for ax, (name, c), color in zip(axes[:, 0], certificates.items(), BAR_COLORS * n, strict=False):
        shares = np.full(len(finite[name]), 100 / len(c))
        ax.hist(finite[name], bins=bins, weights=shares, color=color)
        text = f"{name}\nmean radius {c.lower.mean():.3f}"
        if eps is not None:
            ax.axvline(eps, color="black", lw=1, ls="--")
            text += f"\n{100 * (c.lower > eps).mean():.0f}% beyond eps"
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        ax.text(0.985, 0.92, text, transform=ax.transAxes, ha="right", va="top", bbox=paper)
        ax.spines[["top", "right"]].set_visible(False)
    if eps is not None:
        ax = axes[0, 0]
        above = {"ha": "center", "va": "bottom", "transform": ax.get_xaxis_transform()}
        ax.text(eps, 1, f"eps = {eps:g}", **above)
    norm = norm_name(next(iter(certificates.values())).p)
    figure.supylabel("test points, %")
    axes[-1, 0].set_xlabel(f"certified radius ({norm} distance in input space)")
    return figure


def adversarial_examples(
    X: ArrayLike,
    y: ArrayLike,
    certificates: Certificates,
    predictions: ArrayLike,
    shape: tuple[int, int],
) -> Figure:
    """Draw images, their minimal adversarial examples and the differences between them.

    Parameters
    ----------
    X : array_like, shape (n, height * width)
        A few images in [0, 1].
    y : array_like of int, shape (n,)
        Their classes.
    certificates : Certificates
        Certificates of the images, with adversarial examples.
    predictions : array_like of int, shape (n,)
        Classes of ``certificates.adversarial``.
    shape : (height, width)

    Returns
    -------
    Figure

    Examples
    --------
    .. plot::
       :alt: Four digits in the top row, their minimal adversarial examples below, and the
          differences in the last row.

       >>> import refmmr as rm
       >>> data = rm.datasets.load("digits")
       >>> net = rm.Network.mlp([64, 16, 10], rng=0)
       >>> options = {"batch_size": 32, "epochs": 8, "progress": False}
       >>> net, _ = rm.fit(net, data.X_train, data.y_train, **options)
       >>> X, y = data.X_test[:4], data.y_test[:4]
       >>> found = rm.certify(net, X, y, p=2, method="search", max_seconds=2, progress=False)
       >>> classes = net.predict(found.adversarial)
       >>> figure = rm.plot.adversarial_examples(X, y, found, classes, shape=(8, 8))
    """
    X, Z = np.asarray(X), certificates.adversarial
    n = len(X)
    change = float(np.abs(Z - X).max()) or 1.0
    figure, axes = plt.subplots(
        3, n, figsize=(1.25 * n + 1.2, 4.6), squeeze=False, layout="constrained"
    )
    for column in range(n):
        images = (X[column], Z[column], Z[column] - X[column])
        for row, image in enumerate(images):
            limit = change if row == 2 else None
            picture = draw_image(axes[row, column], image.reshape(shape), limit)
        distance = f"{certificates.upper[column]:.2f}"
        axes[0, column].set_title(f"class {np.asarray(y)[column]}", fontsize=10)
        axes[1, column].set_title(f"taken for {np.asarray(predictions)[column]}", fontsize=10)
        axes[2, column].set_xlabel(f"{norm_name(certificates.p)} {distance}", fontsize=9)
    names = ("image", "adversarial", "difference")
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name, fontsize=11)
    figure.colorbar(picture, ax=axes[2, :].tolist(), shrink=0.8, label="change of gray value")
    return figure


def save(figure: Figure | Axes, path: str | os.PathLike[str], dpi: float = 130) -> None:
    """Write a figure to a file, atomically, and close it.

    Parameters
    ----------
    figure : matplotlib Figure or Axes
        The figure, or any axes of it.
    path : path-like
        Ends in .png, .pdf or .svg.
    dpi : float
        Pixels per inch, of a PNG file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import refmmr as rm
    >>> net = rm.Network.mlp([2, 4, 2], rng=0)
    >>> cx = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]), progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rm.plot.save(rm.plot.regions(cx), Path(folder) / "regions.png")
    ...     (Path(folder) / "regions.png").exists()
    True
    """
    path = _files.as_path(path, *_files.PICTURES)
    if isinstance(figure, Axes):
        parent = figure.get_figure(root=True)
        assert parent is not None
        figure = parent
    kind = path.suffix[1:]
    _files.write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=dpi))
    plt.close(figure)


def _new_axes(cx: RegionComplex, ax: Axes | None) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=(5.5, 5.5), layout="constrained")
    (left, bottom), (right, top) = cx.domain.rectangle
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_aspect("equal")
    first, second = cx.domain.axis_labels
    ax.set_xlabel(first)
    ax.set_ylabel(second)
    return ax


def _draw_boundary(cx: RegionComplex, ax: Axes) -> None:
    segments = cx.decision_boundary().segments
    lines = LineCollection(
        list(segments), colors="black", linewidths=2.2, capstyle="round", label="decision boundary"
    )
    ax.add_collection(lines)


def _mark(ax: Axes, points: ArrayLike | None, labels: Sequence[str] | None) -> None:
    if points is None:
        return
    points = np.asarray(points)
    halo: Any = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.85, "lw": 0}
    if points.ndim != 2 or points.shape[1] != 2 or (labels and len(labels) != len(points)):
        raise ValueError(
            f"points: expected shape (m, 2) and as many labels, got {points.shape} and {labels!r}"
        )
    ax.plot(*points.T, "o", color="white", markeredgecolor="black", markersize=9, zorder=5)
    for point, label in zip(points, labels or [""] * len(points), strict=True):
        if label:
            ax.annotate(label, point, (9, 7), textcoords="offset points", bbox=halo, zorder=6)
