"""Bounds of linear functions on the part of a ball that a half-space cuts off.

Let ``<c, z> + e`` be a lower bound of f on a ball.  A point with ``f(z) <= 0`` also has
``<c, z> + e <= 0``.  So only that half-space of the ball can hold counterexamples, and the units
are bounded again on it: *clipping* (Kotha et al. 2023, Zhou et al. 2025).
"""

from __future__ import annotations

import numpy as np

from refmmr.reference.ball import Ball, largest_gain, minimizer
from refmmr.reference.hyperplanes import divide
from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor


def clip(
    ball: Ball, A: np.ndarray, constant: np.ndarray, c: np.ndarray, e: float, steps: int = 6
) -> np.ndarray:
    """Lower bounds of linear functions on the part of one ball where ``<c, z> + e <= 0``.

    For each ``beta >= 0``, a lower bound is

        min { <A + beta c, z> + constant + beta e }    over the ball and the box,

    a concave function of beta.  Its tangents at both ends of an interval meet at the next beta.

    Parameters
    ----------
    ball : Ball
        Around one point.
    A : ndarray, shape (m, d)
    constant : ndarray, shape (m,)
    c : ndarray, shape (d,)
    e : float
    steps : int
        Evaluations, at most; each gives a valid bound.

    Returns
    -------
    ndarray, shape (m,)
        In real arithmetic.
    """
    beta = np.zeros(len(A))
    best, slope = _lagrangian(ball, A, constant, c, e, beta)
    left, right = [beta, best.copy(), slope], [beta + np.inf, best.copy(), slope.copy()]
    size = divide(np.abs(A).sum(axis=1), np.abs(c).sum() * np.ones(len(A)))
    for _ in range(steps):
        (b0, v0, s0), (b1, v1, s1) = left, right
        bounded = np.isfinite(b1)
        with np.errstate(invalid="ignore", over="ignore"):
            meet = (v1 - s1 * b1 - v0 + s0 * b0) / np.where(s0 > s1, s0 - s1, 1)
        beta = np.where(bounded, meet, np.where(b0 > 0, 4 * b0, size))
        # The maximum of the others is known, at the left end.
        some = np.flatnonzero((s0 > 0) & np.isfinite(beta) & (beta > b0) & (beta < b1))
        beta = beta[some]
        value, slope = _lagrangian(ball, A[some], constant[some], c, e, beta)
        best[some] = np.maximum(best[some], value)
        for end, rows in ((left, slope > 0), (right, ~(slope > 0))):
            for whole, part in zip(end, (beta, value, slope), strict=True):
                whole[some[rows]] = part[rows]
    return best


def clip_nodes(
    ball: Ball,
    A: np.ndarray,
    constant: np.ndarray,
    c: np.ndarray,
    e: np.ndarray,
    wanted: np.ndarray,
    steps: int,
) -> np.ndarray:
    """`clip` in the half-space of each node: c (n, d), e (n,), wanted (n, m) -> (n, m).

    -inf, which says nothing, where a bound is not wanted.
    """
    values = np.full(wanted.shape, -np.inf)
    for value, some, row, offset in zip(values, wanted, c, e, strict=True):
        value[some] = clip(ball, A[some], constant[some], row, offset, steps)
    return values


def _lagrangian(ball, A, constant, c, e, beta):
    """The bound of `clip` for each beta, rounding errors subtracted, and its derivative."""
    h = A + beta[:, None] * c
    with np.errstate(invalid="ignore"):
        value = h @ ball.x[0] - largest_gain(ball, -h[None])[0] + constant + beta * e
    largest = np.maximum(np.abs(ball.lowest), np.abs(ball.highest))[0]
    terms = (np.abs(A) + beta[:, None] * np.abs(c)) @ largest + np.abs(constant) + beta * abs(e)
    allowance = SMALLEST_NORMAL * (1 + beta) * (1 + largest.sum())
    value = value - rounding_factor(8 * len(c) + 64) * (4 * terms + allowance)
    z = minimizer(ball, h[None])[0]
    return np.where(np.isfinite(value), value, -np.inf), z @ c + e
