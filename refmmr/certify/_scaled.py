"""Bounds in a norm with a unit for each coordinate, by any method; see `refmmr._scaling`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refmmr import _examples, _scaling
from refmmr._boxes import Box
from refmmr.certify.bounds import Bounds
from refmmr.network import Network

Run = Callable[[Network, np.ndarray, np.ndarray, Box | None, np.ndarray | None], Bounds]
"""A method in the plain norm: network, points, classes, box and goal to bounds."""

FAR = 2.0**30
"""Radius, relative to the point, up to which a class that seems to fill the space is tested."""


def scaled_bounds(
    run: Run,
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    goal: np.ndarray | None,
    scale: np.ndarray,
) -> Bounds:
    """Bounds on ``min ||(z - x) / scale||_p`` of points that share a box (or the whole space).

    Parameters
    ----------
    run : callable
        A method in the plain norm.
    net : Network
    X : ndarray of float64, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, 2, inf}
    box : (lo, hi) or None
    goal : ndarray, shape (n,), optional
    scale : ndarray, shape (*input_shape)

    Returns
    -------
    Bounds
        They hold in real arithmetic, for the network that was given.
    """
    points = _scaling.scaled_points(X, p, box, scale)
    scaled = _scaling.scaled_network(net, scale)
    with np.errstate(over="ignore"):
        inner_goal = None if goal is None else np.nextafter(goal + points.delta, np.inf)
    wrong = _examples.misclassified(net, X, y)
    lower, upper = np.zeros(len(X)), np.where(wrong, 0, np.inf)
    adversarial = np.where(wrong.reshape(-1, *[1] * (X.ndim - 1)), X, np.nan)
    for label in np.unique(y[~wrong]).tolist():
        rows = np.flatnonzero((y == label) & ~wrong)
        u, own = points.u[rows], y[rows]
        aim = None if inner_goal is None else inner_goal[rows]
        reach = _reach(run, scaled, u, own, points.box, aim)
        eta = _scaling.logit_errors(scaled, _largest(u, points.box, reach))
        margin_error = 2 * (eta[label] + eta.max())
        if not np.isfinite(margin_error):
            continue  # numbers are too large for a proof
        found = run(_scaling.with_lower_class(scaled, label, margin_error), u, own, points.box, aim)
        lower[rows] = _rounded_down(np.minimum(found.lower, reach), points.delta[rows])
        if goal is not None and aim is not None:
            lower[rows] = np.where(found.lower >= aim, goal[rows], lower[rows])
        upper[rows], adversarial[rows] = _scaling.verified(
            net, X[rows], found.adversarial, own, p, box, scale
        )
    return Bounds(np.minimum(lower, upper), upper, adversarial)


def _reach(run, scaled, u, y, box, goal):
    """The radius within which bounds are needed: infinite in a box, which bounds u by itself."""
    if box is not None:
        return np.inf
    if goal is not None:
        return goal.max()
    first = run(scaled, u, y, None, None)
    radius = np.where(np.isfinite(first.upper), first.upper, first.lower)
    far = FAR * max(1.0, np.abs(u).max())
    return min(2 * radius.max(), far) if np.isfinite(radius).all() else far


def _largest(u, box, reach):
    """Bounds of ``|u|`` in the box, or within the reach of the points."""
    if box is not None:
        return np.maximum(np.abs(box[0]), np.abs(box[1]))
    return np.nextafter(np.abs(u).max(axis=0) + reach, np.inf)


def _rounded_down(radius, delta):
    """``radius - delta``, at least 0."""
    return np.where(np.isinf(radius), radius, np.maximum(np.nextafter(radius - delta, 0), 0))
