"""Certified radii by interval bounds, Fast-Lin (KW) and CROWN.

At a given radius these methods bound all margins from below on the whole ball
(`refmmr.reference.backward_bound`); if the bounds are positive, every point of the ball has the
class of its center.  A bracketing root finder searches for the largest such radius.  The result is
the end of the bracket at which the bounds *were* positive, so the precision of the search never
makes a certificate wrong.
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

PRECISION = 1e-6
"""Relative width of the last bracket: the radius is at most this far below the largest one that the
method proves, less than the digits that a table shows."""

DOUBLINGS = 64
"""Doublings of the first guess, at most, where no box bounds the radius."""


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
        find = partial(_worst_margins, net, X[right], y[right], p, box, method)
        if deadline < np.inf:
            find = _until(deadline, find)
        if goal is not None:
            lower[right] = np.where(find(goal[right], np.arange(len(right))) > 0, goal[right], 0)
        else:
            farthest = farthest_distance(X[right], p, box)
            guess = np.minimum(_guess(net, X[right], y[right], margins[right], p), farthest)
            lower[right] = _largest(find, margins[right], guess, farthest)
    found = np.where((upper == 0)[:, None], flat, np.nan)
    return Bounds(lower, upper, found.reshape(X.shape))


ibp_bounds = partial(relaxed_bounds, method="ibp")
fast_lin_bounds = partial(relaxed_bounds, method="fast-lin")
crown_bounds = partial(relaxed_bounds, method="crown")


def _worst_margins(net, X, y, p, box, method, eps, samples):
    """The smallest margin bound of some samples at radii eps; -inf where floats overflow."""
    return _kernels.margin_bounds(net, X[samples], y[samples], p, eps, box, method).min(axis=1)


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


def _largest(find, margins, guess, farthest):
    """The certified end of a bracket around the radius where the margin bound is 0."""
    from scipy.optimize import elementwise

    samples = np.arange(len(margins))
    safe, safe_value = np.zeros(len(margins)), margins.copy()
    bad, bad_value = guess.copy(), np.full(len(margins), np.nan)
    growing = samples
    for _ in range(DOUBLINGS):
        value = find(bad[growing], growing)
        bad_value[growing] = value
        growing = growing[value > 0]
        safe[growing], safe_value[growing] = bad[growing], bad_value[growing]
        growing = growing[safe[growing] < farthest[growing]]
        if not len(growing):
            break
        bad[growing] = np.minimum(2 * bad[growing], farthest[growing])
    lower = np.where((safe_value > 0) & (safe >= farthest), np.inf, safe)
    open_ = samples[bad_value <= 0]
    if len(open_):

        def steer(eps, i):
            """Finite values other than 0: the root finder stops at others, and only signs count."""
            value = find(eps, i)
            value = np.where(value == 0, -np.finfo(np.float64).tiny, value)
            return np.clip(value, -1e3 * margins[i], 1e3 * margins[i])

        result = elementwise.find_root(
            steer, (safe[open_], bad[open_]), args=(open_,),
            tolerances={"xatol": 0, "xrtol": PRECISION, "fatol": 0, "frtol": 0},
        )  # fmt: skip
        ends, values = np.array(result.bracket), np.array(result.f_bracket)
        lower[open_] = np.where(values > 0, ends, 0).max(axis=0)
    return lower


def _guess(net, X, y, margins, p):
    """Distance to the nearest decision boundary of the network's affine map at x."""
    cache = net.forward(X)
    nearest = np.full(len(X), np.inf)
    flat = cache.outputs[-1].reshape(len(X), -1)
    rows = np.arange(len(X))
    for s in range(net.n_classes):
        direction = np.zeros_like(flat)
        direction[rows, y] += 1
        direction[:, s] -= 1
        deltas = net.backward(cache, net.at_logits(direction))
        slope = dual_norm(net.input_gradient(deltas).reshape(len(X), -1), p)
        gap = flat[rows, y] - flat[:, s]
        with np.errstate(over="ignore"):
            distance = np.where(slope > 0, gap / np.where(slope > 0, slope, 1), np.inf)
        distance[s == y] = np.inf
        nearest = np.minimum(nearest, distance)
    return np.where(np.isfinite(nearest) & (nearest > 0), nearest, 1)


def farthest_distance(X: np.ndarray, p: float, box: Box | None) -> np.ndarray:
    """Distance of each point to the farthest point of the box, rounded up; infinite without one.

    X has shape (n, *input_shape), the result (n,).
    """
    if box is None:
        return np.full(len(X), np.inf)
    lo, hi = box
    return norm(np.maximum(hi - X, X - lo).reshape(len(X), -1), p) * (1 + 1e-12)
