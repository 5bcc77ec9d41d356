"""Figures of certificates: lower and upper bounds of a point by method, and robustness curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from refmmr.certify import Certificates, RobustnessCurve

__all__ = ["ladder", "robustness_curve"]

# From the palette of Okabe and Ito (2008) for colour-blind readers; the shapes differ, too.
PROVED, FOUND, KNOWN, GAP = "#0072B2", "#D55E00", "#009E73", "#E6E6E6"
NAMES = {
    "region": "linear region",
    "ibp": "intervals (IBP)",
    "fast-lin": "Fast-Lin",
    "kw": "Wong–Kolter",
    "crown": "CROWN",
    "lp": "linear program",
    "search": "region search",
    "mip": "mixed-integer program",
}


def norm_name(p: float) -> str:
    """The name of a norm on axes, as a formula of Matplotlib."""
    return "$l_\\infty$" if p == np.inf else f"$l_{p}$"


def ladder(
    certificates: Mapping[str, Certificates],
    point: int = 0,
    *,
    attack: float | None = None,
    adversarial: ArrayLike | None = None,
    x: ArrayLike | None = None,
    shape: tuple[int, int] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the lower and upper bounds that each method gives for one point.

    A bar ends at the certified radius of a method, a diamond marks the distance of its adversarial
    example.  Where the two meet the minimal perturbation is known.

    Parameters
    ----------
    certificates : mapping of str to Certificates
        By method, from the top of the figure to its bottom; all of the same points and norm.
    point : int
        Number of the point.
    attack : float, optional
        Distance of an adversarial example from an attack.
    adversarial : array_like, optional
        This example.
    x : array_like, optional
        The point itself, if it is an image of one channel: it is drawn beside the nearest
        adversarial example and their difference.
    shape : (height, width), optional
        Of the image, if x is a flat vector.
    ax : matplotlib Axes, optional
        Axes for the bounds; the images are left out then.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there are no certificates, or certificates of different norms.

    Examples
    --------
    .. plot::
       :alt: One bar for each of five methods, from the region to the search; each reaches as far as
          the method proves, and a diamond marks the adversarial example where they meet.

       >>> import refmmr as rm
       >>> data = rm.datasets.load("digits")
       >>> net = rm.Network.mlp([64, 16, 10], rng=0)
       >>> options = {"batch_size": 32, "epochs": 8, "progress": False}
       >>> net, _ = rm.fit(net, data.X_train, data.y_train, **options)
       >>> x, y = data.X_test[:1], data.y_test[:1]
       >>> found = {
       ...     method: rm.certify(net, x, y, p=2, method=method, progress=False)
       ...     for method in ("region", "ibp", "fast-lin", "crown", "search")
       ... }
       >>> figure = rm.plot.ladder(found, x=x[0], shape=(8, 8))
    """
    norms = {c.p for c in certificates.values()}
    if len(norms) != 1:
        raise ValueError(f"certificates: expected some, of one norm, got norms {sorted(norms)}")
    rows = {name: (c.lower[point], c.upper[point]) for name, c in certificates.items()}
    best = min(certificates.values(), key=lambda c: c.upper[point])
    nearest, Z = best.upper[point], best.adversarial[point]
    if attack is not None and adversarial is not None and attack < nearest:
        nearest, Z = attack, np.asarray(adversarial, dtype=float)
    if ax is None:
        height = 1.5 + 0.36 * (len(rows) + (attack is not None))
        if x is not None and np.isfinite(nearest):
            image = np.asarray(x, dtype=float)
            side = _sides(image, shape)
            images = [image.reshape(side), Z.reshape(side)]
            figure = plt.figure(figsize=(10.5, max(height, 3.4)), layout="constrained")
            grid = figure.add_gridspec(2, 3, width_ratios=(5.2, 1.2, 1.2))
            ax = figure.add_subplot(grid[:, 0])
            _draw_images(figure, grid, images, nearest)
        else:
            figure, ax = plt.subplots(figsize=(7.5, height), layout="constrained")
    parent = ax.get_figure(root=True)
    assert parent is not None
    _draw_ladder(ax, rows, attack)
    ax.set_xlabel(f"{norm_name(norms.pop())} distance from the point, in units of the input")
    return parent


def _draw_ladder(ax: Axes, rows: Mapping[str, tuple[float, float]], attack: float | None) -> None:
    lowers, uppers = map(list, zip(*rows.values(), strict=True))
    if attack is not None:
        uppers.append(attack)
    widest = 1.3 * max((v for v in (*uppers, *lowers) if np.isfinite(v)), default=1) or 1
    highest_lower = max(lowers)
    lowest_upper = min((upper for upper in uppers if np.isfinite(upper)), default=np.inf)
    labels = [NAMES.get(name, name) for name in rows]
    for y, (lower, upper) in enumerate(rows.values()):
        _draw_row(ax, y, lower, upper, widest)
    if attack is not None:
        _draw_diamond(ax, attack, len(rows))
        _write_beside(ax, f"at most {_number(attack)}", attack, len(rows))
        labels.append("attack")
    if highest_lower < lowest_upper < np.inf:
        ax.axvspan(highest_lower, lowest_upper, color=GAP, lw=0, zorder=0)
    # Entries of the legend, for the elements that occur.
    ax.barh(0, 0, color=PROVED, label="proved")
    if any(map(_is_exact, rows.values())):
        ax.barh(0, 0, color=KNOWN, label="proved, exact")
    if np.isfinite(lowest_upper):
        ax.plot([], [], "D", color=FOUND, markeredgecolor="white", label="adversarial example")
        if not _is_exact((highest_lower, lowest_upper)):
            ax.axvspan(0, 0, color=GAP, label="unknown")
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlim(0, widest)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=9,
        handlelength=1.2,
    )  # fmt: skip


def _draw_row(ax: Axes, y: int, lower: float, upper: float, widest: float) -> None:
    """The bar of a lower bound, the diamond of an upper bound, and both as text."""
    exact = _is_exact((lower, upper))
    ax.barh(y, min(lower, widest), height=0.62, color=KNOWN if exact else PROVED, zorder=2)
    text, end = _number(lower), lower
    if np.isfinite(upper):
        ax.plot([lower, upper], [y, y], color="0.75", lw=1.5, zorder=1)
        _draw_diamond(ax, upper, y)
        text += ", exact" if exact else f" to {_number(upper)}"
        end = upper
    _write_beside(ax, text, min(end, widest), y)


def _draw_diamond(ax: Axes, x: float, y: int) -> None:
    ax.plot(x, y, "D", color=FOUND, markeredgecolor="white", markersize=8, zorder=3)


def _write_beside(ax: Axes, text: str, x: float, y: int) -> None:
    ax.annotate(
        text, (x, y), (9, 0), textcoords="offset points", va="center", fontsize=9,
        annotation_clip=False,
    )  # fmt: skip


def _is_exact(bounds: tuple[float, float]) -> bool:
    """Whether lower and upper bound agree to six digits."""
    return bounds[1] <= bounds[0] * (1 + 1e-6)


def _number(value: float) -> str:
    return "any distance" if value == np.inf else f"{value:.4g}"


def _sides(x: np.ndarray, shape: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of an image, from its shape or as a square."""
    if shape is not None:
        return shape
    sides = [size for size in x.shape if size > 1]
    if len(sides) == 2:
        return sides[0], sides[1]
    root = round(np.sqrt(x.size))
    if root * root != x.size:
        raise ValueError(f"shape: expected (height, width) for x of shape {x.shape}, got None")
    return root, root


def _draw_images(figure: Figure, grid: Any, images: list[np.ndarray], distance: float) -> None:
    images = [*images, images[1] - images[0]]
    change = float(np.abs(images[2]).max()) or 1.0
    titles = ("point", f"adversarial\nat {_number(distance)}", "difference")
    places = (grid[0, 1], grid[0, 2], grid[1, 1:])
    for image, title, place in zip(images, titles, places, strict=True):
        ax = figure.add_subplot(place)
        ax.set_title(title, fontsize=9)
        picture = draw_image(ax, image, change if title == "difference" else None)
        if title == "difference":
            figure.colorbar(picture, ax=ax, shrink=0.85)


def draw_image(ax: Axes, image: np.ndarray, change: float | None = None) -> AxesImage:
    """Draw an image in [0, 1], or a difference in [-change, change], without ticks."""
    colors, low, high = ("gray", 0.0, 1.0) if change is None else ("PuOr_r", -change, change)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax.imshow(image, interpolation="nearest", cmap=colors, vmin=low, vmax=high)


def robustness_curve(curve: RobustnessCurve, ax: Axes | None = None) -> Axes:
    """Draw bounds on the robust accuracy over the radius.

    Parameters
    ----------
    curve : RobustnessCurve
        From `refmmr.robustness_curve`.
    ax : matplotlib Axes, optional
        Axes to draw on; a new figure if not given.

    Returns
    -------
    Axes

    Examples
    --------
    .. plot::
       :alt: Robust accuracy over the radius: a falling band between a lower and an upper bound.

       >>> import refmmr as rm
       >>> data = rm.datasets.load("digits")
       >>> net = rm.Network.mlp([64, 32, 10], rng=0)
       >>> options = {"batch_size": 32, "epochs": 8, "progress": False}
       >>> net, _ = rm.fit(net, data.X_train, data.y_train, **options)
       >>> curve = rm.robustness_curve(
       ...     net, data.X_test[:60], data.y_test[:60], p=2,
       ...     radii=[0.05, 0.1, 0.2, 0.3, 0.4, 0.6],
       ...     methods=("attack", "crown"), progress=False
       ... )
       >>> ax = rm.plot.robustness_curve(curve)
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    clean = 1 - curve.test_error
    eps = np.array([0, *curve.radii])
    low = 100 * np.array([clean, *curve.certified_accuracy])
    high = 100 * np.array([clean, *curve.attacked_accuracy])
    ax.fill_between(eps, low, high, color=GAP, label="unknown", lw=0)
    ax.plot(eps, high, "D--", color=FOUND, label="not attacked (at most)", ms=5.5)
    ax.plot(eps, low, "o-", color=PROVED, label="certified (at least)", ms=5.5)
    ax.set_xlim(0, eps.max() * 1.03)
    ax.set_ylim(0, 102)
    ax.set_xlabel(f"radius eps ({norm_name(curve.p)} distance in input space)")
    ax.set_ylabel("robust accuracy, % of points")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax
