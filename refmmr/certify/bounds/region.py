"""What the linear region of a point proves (Croce, Andriushchenko, Hein 2019).

Inside the linear region of x the network is affine, and no point nearer than ``d_B`` lies outside
of it.  So no point nearer than ``min(d_B, d_D)`` has another class.  If ``d_D <= d_B``, the
projection of x onto the nearest decision boundary lies in the region: it is the minimal
adversarial example, and d_D the minimal perturbation.  The same holds for distances within the box.

The lower bound holds in real arithmetic for the network whose weights are these floats: every
distance is computed for the worst hyperplane within the rounding errors
(`refmmr.reference.rounding`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr import _examples
from refmmr._examples import Box
from refmmr.certify.bounds import Bounds
from refmmr.reference import rounding
from refmmr.reference.affine import chunks
from refmmr.reference.distances import Hyperplanes, hyperplanes_around
from refmmr.reference.hyperplanes import dual_norm, norm, shortest_step_in_box
from refmmr.reference.network import Network, flat

BATCH = 2**22
"""Hyperplanes times dimensions of a batch: its arrays of float64 take 32 MB each."""


class Errors(NamedTuple):
    """Bounds on the rounding errors of `Hyperplanes`: of values, and of gradients in every l_q."""

    f: np.ndarray  # (n, N)
    V: np.ndarray  # (n, N)
    margin: np.ndarray  # (n, K)
    R: np.ndarray  # (n, K)


def region_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
) -> Bounds:
    """Certified lower bound, and upper bound by projection, for each sample.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray of float64, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, 2, inf}
    box : (lo, hi) or None
        Arrays of the shape of an input, with X inside.

    Returns
    -------
    Bounds
        Misclassified samples have lower = upper = 0 and are their own adversarial example.
    """
    parts = [_region_bounds(net, X[rows], y[rows], p, box) for rows in chunks(net, len(X))]
    return Bounds(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _region_bounds(net, X, y, p, box):
    # Overflow gives NaN, which fails every comparison: the bound is 0 there.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        hyperplanes = hyperplanes_around(net, X, y)
        errors = hyperplane_errors(net, X, y, hyperplanes)
        upper, adversarial = nearest_projection(net, X, y, hyperplanes, p, box)
        if box is None:
            boundary, decision = _free_lower(hyperplanes, errors, p, y)
            lower = np.minimum(boundary.min(axis=1, initial=np.inf), decision.min(axis=1))
        else:
            lower = _box_lower(X, y, hyperplanes, errors, p, box)
        # A unit that is constant on the region may be active or not: its error counts behind it.
        certain = (np.abs(hyperplanes.f) > errors.f) | (errors.f == 0) | (errors.V == 0)
        certain = certain.all(axis=1)
        lower = np.where(certain & (lower > 0) & (upper > 0), lower, 0)
    return Bounds(lower, upper, adversarial)


def hyperplane_errors(
    net: Network, X: np.ndarray, y: np.ndarray, hyperplanes: Hyperplanes
) -> Errors:
    """Rounding errors of everything in `hyperplanes`.

    A unit that no path of active units leads to from an input is constant on the region, as where
    two windows of a max-pool see the same background.  Its sign may be lost in rounding errors, but
    V does not depend on it, and a wrong sign changes its activation by no more than the error of
    its pre-activation.  So the magnitudes of all such units are summed.
    """
    masks = hyperplanes.cache.masks
    V_errors = rounding.gradient_errors(net, masks)
    counted = [mask | (error == 0) for mask, error in zip(masks, V_errors, strict=False)]
    f_errors = rounding.value_errors(net, X, counted)
    n, rows = len(X), np.arange(len(X))
    logits, columns = (
        np.broadcast_to(error.reshape(len(error), -1), (n, net.n_classes))
        for error in (f_errors[-1], V_errors[-1])
    )
    none = np.zeros((n, 0))
    return Errors(
        f=flat([*f_errors[:-1], none]),
        V=flat([*V_errors[:-1], none]),
        # The subtraction itself rounds too: at most as much again.
        margin=2 * (logits + logits[rows, y][:, None]),
        R=2 * (columns + columns[rows, y][:, None]),
    )


def _free_lower(hyperplanes, errors, p, y):
    """Lower bounds on d_B (n, N) and d_D (n, K) in the whole space.

    Errors are subtracted from values and added to norms of gradients.
    """
    slack = 1 - rounding.rounding_factor(4 * hyperplanes.R.shape[1] + 32)
    boundary = _quotient(
        np.abs(hyperplanes.f) - errors.f, hyperplanes.boundary_norms(p) / slack + errors.V
    )
    boundary[errors.V == 0] = np.inf  # constant on the region: no hyperplane
    decision = _quotient(
        hyperplanes.margin - errors.margin, dual_norm(hyperplanes.R, p, 1) / slack + errors.R
    )
    decision[np.arange(len(y)), y] = np.inf
    return _rounded_down(boundary * slack), _rounded_down(decision * slack)


def _rounded_down(distance):
    """0 for distances below the normal numbers, which have too few digits for a factor of slack."""
    return np.where(distance < rounding.SMALLEST_NORMAL, 0, distance)


def _quotient(value, slope):
    """``max(value, 0) / slope``, and 0 where that is undefined.

    Without a slope there is no hyperplane: infinite, but 0 where the value is 0 everywhere.
    """
    value = np.maximum(value, 0)
    quotient = value / np.where(slope == 0, 1, slope)
    quotient = np.where(slope == 0, np.where(value > 0, np.inf, 0), quotient)
    return np.where(np.isnan(quotient), 0, quotient)


def _box_lower(X, y, hyperplanes, errors, p, box):
    """The minimum of the distances within the box, over the hyperplanes that can attain it.

    A distance in the whole space is a lower bound on the distance within the box.  So the decision
    boundaries and the hyperplane that is nearest in the whole space give a radius, and others can
    only be nearer within the box if they are nearer than this radius in the whole space.
    """
    lo, hi = (end.reshape(-1) for end in box)
    x = X.reshape(len(X), -1)
    free, _ = _free_lower(hyperplanes, errors, p, y)
    lower = np.full(len(X), np.inf)

    i, s = np.nonzero(np.arange(hyperplanes.margin.shape[1]) != y[:, None])
    decision = hyperplane_in_box(
        x[i],
        hyperplanes.R[i, :, s],
        hyperplanes.margin[i, s],
        errors.margin[i, s],
        errors.R[i, s],
        lo,
        hi,
        p,
    )
    np.minimum.at(lower, i, decision)

    def include(samples, units):
        size = max(1, BATCH // x.shape[1])
        for start in range(0, len(samples), size):
            i, j = samples[start : start + size], units[start : start + size]
            w = np.sign(hyperplanes.f[i, j])[:, None] * hyperplanes.boundary_rows(i, j)
            boundary = hyperplane_in_box(
                x[i], w, np.abs(hyperplanes.f[i, j]), errors.f[i, j], errors.V[i, j], lo, hi, p
            )
            np.minimum.at(lower, i, boundary)

    if free.shape[1]:
        some = np.flatnonzero(np.isfinite(free.min(axis=1)))
        include(some, free.argmin(axis=1)[some])
        include(*np.nonzero(free < lower[:, None]))
    return lower


def hyperplane_in_box(
    x: np.ndarray,
    w: np.ndarray,
    value: np.ndarray,
    value_error: np.ndarray,
    w_error: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    p: float,
) -> np.ndarray:
    """Lower bounds on distances within the box, for the worst hyperplanes up to rounding errors.

    Over a step of length r the affine function is known up to ``value_error + w_error r``.  So it
    is positive while the computed function loses less than ``value - value_error - w_error r``.
    For r take the computed distance (beyond it the bound cannot reach) or the size of the box.

    Parameters
    ----------
    x, w : ndarray, shape (m, d)
    value, value_error, w_error : ndarray, shape (m,)
        A value that is not positive gives 0.
    lo, hi : ndarray, shape (d,)
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (m,)
    """
    slack = 1 - rounding.rounding_factor(16 * len(lo) + 64)
    distance, _ = shortest_step_in_box(x, w, np.maximum(value, 0), lo, hi, p)
    longest = np.minimum(distance, norm(hi - lo, p)) / slack
    rest = (value - value_error - w_error * longest) * slack
    distance, _ = shortest_step_in_box(x, w, np.maximum(rest, 0), lo, hi, p)
    return np.where(rest > 0, _rounded_down(distance * slack), 0)


def nearest_projection(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    hyperplanes: Hyperplanes,
    p: float,
    box: Box | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Project onto each decision boundary of the region, and keep the nearest verified example.

    An example is verified wherever it lies (`refmmr._examples`): also outside of the region, where
    it is merely not known to be the nearest.

    Returns
    -------
    upper : ndarray, shape (n,)
        l_p distance of the example, infinite where there is none.
    adversarial : ndarray, shape (n, *input_shape)
        NaN where there is none.
    """
    n, d, classes = hyperplanes.R.shape
    rows = np.arange(n)
    wrong = _examples.misclassified(net, X, y)
    upper = np.where(wrong, 0, np.inf)
    adversarial = np.where(wrong[:, None], X.reshape(n, -1), np.nan)
    w, x = hyperplanes.R.swapaxes(1, 2), X.reshape(n, 1, d)
    every, labels = np.repeat(X, classes, axis=0), np.repeat(y, classes)
    for overshoot in _examples.OVERSHOOTS:
        step = _examples.projection_steps(x, w, hyperplanes.margin * (1 + overshoot), p, box)
        Z = _examples.clip((x + step).reshape(every.shape), box)
        below = np.repeat(upper, classes)
        distances = _examples.verified_distances(net, every, Z, labels, p, box, below)
        distances = distances.reshape(n, classes)
        nearest = distances.argmin(axis=1)
        better = distances[rows, nearest] < upper
        upper[better] = distances[rows, nearest][better]
        adversarial[better] = Z.reshape(n, classes, d)[rows, nearest][better]
    return upper, adversarial.reshape(X.shape)
