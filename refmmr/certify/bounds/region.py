"""What the linear region of a point proves (Croce, Andriushchenko, Hein 2019).

No point nearer than ``min(d_B, d_D)`` changes the class: inside the region the network is affine,
so only the decision boundaries of that affine map count; and nobody leaves the region before d_B.
If ``d_D <= d_B`` the projection onto the nearest decision boundary lies in the region, so it *is*
the minimal adversarial example, and d_D the exact minimal perturbation.  The same with distances in
the box.

The lower bound holds in real arithmetic for the network whose weights are these floats: every
distance is computed for the worst hyperplane within the rounding error (`refmmr.reference.rounding`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.certify.bounds import Bounds
from refmmr.reference import pgd, rounding
from refmmr.reference.affine import chunks
from refmmr.reference.distances import Hyperplanes, hyperplanes_around
from refmmr.reference.hyperplanes import dual_norm, norm, shortest_step, shortest_step_in_box
from refmmr.reference.network import Network, flat

HAIRS = (1e-12, 1e-9, 3e-7)
"""How far beyond the hyperplane to look for the adversarial example, relative to the distance."""

surely_misclassified = pgd.surely_misclassified

PAIRS = 2**22
"""Hyperplanes times dimensions that are handled at once."""


class Errors(NamedTuple):
    """Bounds on the rounding error of a `Hyperplanes`: values in units of f, gradients in any l_q."""

    f: np.ndarray  # (n, N)
    V: np.ndarray  # (n, N)
    margin: np.ndarray  # (n, K)
    R: np.ndarray  # (n, K)


def region_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None,
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
    # Overflow ends in a NaN, which no comparison accepts: a bound of 0, never a wrong one.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        hyperplanes = hyperplanes_around(net, X, y)
        errors = hyperplane_errors(net, X, y, hyperplanes)
        upper, adversarial = nearest_projection(net, X, y, hyperplanes, p, box)
        if box is None:
            boundary, decision = _free_lower(hyperplanes, errors, p, y)
            lower = np.minimum(boundary.min(axis=1, initial=np.inf), decision.min(axis=1))
        else:
            lower = _box_lower(X, y, hyperplanes, errors, p, box)
        certain = ((np.abs(hyperplanes.f) > errors.f) | (errors.f == 0)).all(axis=1)
        lower = np.where(certain & (lower > 0) & (upper > 0), lower, 0)
    return Bounds(lower, upper, adversarial)


def hyperplane_errors(
    net: Network, X: np.ndarray, y: np.ndarray, hyperplanes: Hyperplanes
) -> Errors:
    """Rounding errors of everything in `hyperplanes`."""
    masks = hyperplanes.cache.masks
    f_errors = rounding.value_errors(net, X, masks)
    V_errors = rounding.gradient_errors(net, masks)
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
    """Lower bounds on d_B and d_D: smaller value, larger gradient."""
    slack = 1 - rounding.rounding_factor(4 * hyperplanes.R.shape[1] + 32)
    boundary = _quotient(
        np.abs(hyperplanes.f) - errors.f, hyperplanes.boundary_norms(p) / slack + errors.V
    )
    boundary[errors.V == 0] = np.inf  # constant on the region: no hyperplane
    decision = _quotient(
        hyperplanes.margin - errors.margin, dual_norm(hyperplanes.R, p, 1) / slack + errors.R
    )
    decision[np.arange(len(y)), y] = np.inf
    return boundary * slack, decision * slack


def _quotient(value, slope):
    """Value / slope, 0 where that is undefined.

    Without a slope there is no hyperplane, but a tie (value 0) is nowhere safe.
    """
    away = np.maximum(value, 0)
    quotient = away / np.where(slope == 0, 1, slope)
    quotient = np.where(slope == 0, np.where(away > 0, np.inf, 0), quotient)
    return np.where(np.isnan(quotient), 0, quotient)


def _box_lower(X, y, hyperplanes, errors, p, box):
    """The minimum of the distances in the box, evaluating only the hyperplanes that can attain it.

    A free distance is a lower bound of the distance in the box.  So the decision boundaries and the
    nearest region boundary give a radius, and only hyperplanes that are nearer than it in the free sense
    need a second look.
    """
    lo, hi = (side.reshape(-1) for side in box)
    x = X.reshape(len(X), -1)
    free, _ = _free_lower(hyperplanes, errors, p, y)
    lower = np.full(len(X), np.inf)

    i, s = np.nonzero(np.arange(hyperplanes.margin.shape[1]) != y[:, None])
    found = hyperplane_in_box(
        x[i],
        hyperplanes.R[i, :, s],
        hyperplanes.margin[i, s],
        errors.margin[i, s],
        errors.R[i, s],
        lo,
        hi,
        p,
    )
    np.minimum.at(lower, i, found)

    def look_at_boundaries(samples, units):
        size = max(1, PAIRS // x.shape[1])
        for start in range(0, len(samples), size):
            i, j = samples[start : start + size], units[start : start + size]
            w = np.sign(hyperplanes.f[i, j])[:, None] * hyperplanes.boundary_rows(i, j)
            found = hyperplane_in_box(
                x[i], w, np.abs(hyperplanes.f[i, j]), errors.f[i, j], errors.V[i, j], lo, hi, p
            )
            np.minimum.at(lower, i, found)

    if free.shape[1]:
        exists = np.flatnonzero(np.isfinite(free.min(axis=1)))
        look_at_boundaries(exists, free.argmin(axis=1)[exists])
        look_at_boundaries(*np.nonzero(free < lower[:, None]))
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
    """Lower bounds on distances in the box, for the worst hyperplanes within the rounding errors.

    Over a step of length r the hyperplane's function is known up to ``value_error + w_error * r``.  So it
    is still above 0 wherever the computed one has lost less than the rest; and r is at most the
    computed distance (or the bound is that already) and at most the size of the box.

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
    return np.where(rest > 0, distance * slack, 0)


def nearest_projection(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    hyperplanes: Hyperplanes,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Project onto each decision boundary, step a hair across, keep the nearest adversarial one.

    Every example is checked by a forward pass, with a margin below its rounding error.  So it is
    genuine also where the projection has left the region (it is then merely not known to be the
    nearest).

    Returns
    -------
    upper : ndarray, shape (n,)
        l_p distance of the example, infinite where there is none.
    adversarial : ndarray, shape (n, *input_shape)
        NaN where there is none.
    """
    n, d, classes = hyperplanes.R.shape
    w = hyperplanes.R.swapaxes(1, 2)
    wrong = hyperplanes.cache.outputs[-1].reshape(n, -1).argmax(axis=1) != y
    upper = np.where(wrong, 0, np.inf)
    adversarial = np.where(wrong[:, None], X.reshape(n, -1), np.nan)
    label = np.repeat(y, classes)
    for hair in HAIRS:
        Z = X.reshape(n, 1, d) + _moves(X, w, hyperplanes.margin * (1 + hair), p, box)
        if box is not None:
            Z = np.clip(Z, *(side.reshape(-1) for side in box))
        length = norm(Z - X.reshape(n, 1, d), p) * (1 + rounding.rounding_factor(4 * d))
        crossed = surely_misclassified(net, Z.reshape(-1, *net.input_shape), label)
        length = np.where(crossed.reshape(n, -1), length, np.inf)
        nearest = length.argmin(axis=1)
        rows = np.arange(n)
        better = length[rows, nearest] < upper
        upper[better] = length[rows, nearest][better]
        adversarial[better] = Z[rows, nearest][better]
    return upper, adversarial.reshape(X.shape)


def within(X: np.ndarray, Z: np.ndarray, p: float, eps: float) -> np.ndarray:
    """Points Z that are at most eps from X in real arithmetic, shape (n,) bool."""
    delta = (Z - X).reshape(len(X), -1)
    return norm(delta, p) * (1 + rounding.rounding_factor(4 * delta.shape[1] + 8)) <= eps


def _moves(X, w, value, p, box):
    """The shortest steps onto hyperplanes, zero where there is no such step."""
    if box is not None:
        lo, hi = (side.reshape(-1) for side in box)
        return shortest_step_in_box(X.reshape(len(X), 1, -1), w, value, lo, hi, p)[1]
    hyperplane = (w != 0).any(axis=2)
    return np.where(
        hyperplane[:, :, None], shortest_step(np.where(hyperplane[:, :, None], w, 1), value, p), 0
    )
