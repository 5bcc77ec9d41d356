"""Certified radii by interval bounds, Fast-Lin (KW) and CROWN.

At a given radius these methods bound all margins from below on the whole ball
(`refmmr.reference.backward_bound`); if the bounds are positive, every point of the ball has the
class of its center.  The largest such radius is searched for by `refmmr.reference.radius`.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from refmmr import _examples, _kernels
from refmmr._examples import Box
from refmmr.certify.bounds import Bounds
from refmmr.reference import loss
from refmmr.reference.hyperplanes import dual_norm, norm
from refmmr.reference.network import Network
from refmmr.reference.radius import largest_radii


def relaxed_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    goal: np.ndarray | None = None,
    *,
    method: str,
    deadline: float = np.inf,
) -> Bounds:
    """Certified radius of each sample.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray of float64, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, 2, inf}
    box : (lo, hi) or None
        Arrays of the shape of an input, with X inside.
    goal : ndarray, shape (n,), optional
        Radii to decide about.  Without it the largest certified radius is computed.
    method : {"ibp", "fast-lin", "crown"}
    deadline : float
        Time of `time.monotonic` at which to stop; the radii proved by then are returned.

    Returns
    -------
    Bounds
        ``lower`` is infinite where the whole box has one class; with a goal it is the goal or 0.
        Adversarial examples are known for misclassified samples only: the samples themselves.
    """
    # Overflow ends in a margin bound of -inf: in a radius of 0, never in a wrong one.
    with np.errstate(over="ignore", invalid="ignore"):
        return _relaxed_bounds(net, X, y, p, box, goal, method, deadline)


def _relaxed_bounds(net, X, y, p, box, goal, method, deadline):
    margins, wrong = loss.margins(net.logits(X), y), _examples.misclassified(net, X, y)
    right = np.flatnonzero((margins > 0) & ~wrong)
    lower = np.zeros(len(X))
    upper = np.where(wrong, 0, np.inf)
    flat = X.reshape(len(X), -1)
    if len(right):
        bounds = _kernels.margin_function(net, X[right], y[right], p, box, method)
        find = _until(deadline, lambda eps, samples: bounds(eps, samples).min(axis=1))
        if goal is not None:
            lower[right] = np.where(find(goal[right], np.arange(len(right))) > 0, goal[right], 0)
        else:
            farthest = farthest_distance(X[right], p, box)
            tangent = _tangent_root(net, X[right], y[right], p)
            lower[right] = largest_radii(find, margins[right], tangent, farthest)
    found = np.where((upper == 0)[:, None], flat, np.nan)
    return Bounds(lower, upper, found.reshape(X.shape))


ibp_bounds = partial(relaxed_bounds, method="ibp")
fast_lin_bounds = partial(relaxed_bounds, method="fast-lin")
crown_bounds = partial(relaxed_bounds, method="crown")


def _until(deadline, find):
    """The function `find`, but -inf, which proves nothing, where its result would come too late.

    An evaluation is expected to take as long as the longest so far.
    """
    longest = 0.0

    def find_in_time(eps, samples):
        nonlocal longest
        begin = time.monotonic()
        if begin + longest > deadline:
            return np.full(len(samples), -np.inf)
        value = find(eps, samples)
        longest = max(longest, time.monotonic() - begin)
        return value

    return find_in_time


def _tangent_root(net, X, y, p):
    """Distance to the decision boundary with the second class of the network's affine map at x.

    There the tangent of the margin bound, as a function of the radius, is 0; infinite if it is
    constant.
    """
    cache = net.forward(X)
    logits = cache.outputs[-1].reshape(len(X), -1).copy()
    rows = np.arange(len(X))
    own = logits[rows, y]
    logits[rows, y] = -np.inf
    second = logits.argmax(axis=1)
    unit = np.eye(net.n_classes)
    deltas = net.backward(cache, net.at_logits(unit[y] - unit[second]))
    slope = dual_norm(net.input_gradient(deltas).reshape(len(X), -1), p)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        root = (own - logits[rows, second]) / slope
    return np.where(root > 0, root, np.inf)


def farthest_distance(X: np.ndarray, p: float, box: Box | None) -> np.ndarray:
    """Distance of each point to the farthest point of the box, rounded up; infinite without one.

    X has shape (n, *input_shape), the result (n,).
    """
    if box is None:
        return np.full(len(X), np.inf)
    lo, hi = box
    return norm(np.maximum(hi - X, X - lo).reshape(len(X), -1), p) * (1 + 1e-12)
