"""Distance of a point to a hyperplane in l_p, in the whole space and within a box.

A hyperplane is ``{ z : value + <w, z - x> = 0 }``, where `value` is an affine function at x and w
its gradient.  A step delta changes the function by ``<w, delta>``, and by Hoelder's inequality a
step of length ``||delta||_p = r`` changes it by at most ``r ||w||_q``, with ``1/p + 1/q = 1``.  So
the distance is ``|value| / ||w||_q``.

Within a box, coordinate j can move by at most ``reach_j`` in the direction that brings the function
towards 0.  The shortest step (`shortest_step_in_box`) is then a one-dimensional problem: every
coordinate moves until a common level, or until it meets the box.  The change of the function is
increasing and piecewise linear in the level, so the level where it equals `value` is found exactly,
by one sort.
"""

from __future__ import annotations

import numpy as np


def dual_norm(w: np.ndarray, p: float, axis: int = -1) -> np.ndarray:
    """``||w||_q`` along an axis, with ``1/p + 1/q = 1``: q = inf, 2, 1 for p = 1, 2, inf."""
    if p == 1:
        return np.abs(w).max(axis=axis)
    if p == 2:
        return _length(w, axis)
    return np.abs(w).sum(axis=axis)


def dual_norm_gradient(w: np.ndarray, p: float, axis: int) -> np.ndarray:
    """Gradient of ``||w||_q`` along an axis: 0 at w = 0; for q = inf the first largest entry's."""
    if p == 2:
        return divide(w, np.expand_dims(dual_norm(w, p, axis), axis))
    if p == np.inf:
        return np.sign(w)
    largest = np.expand_dims(np.abs(w).argmax(axis=axis), axis)
    gradient = np.zeros_like(w)
    np.put_along_axis(gradient, largest, np.sign(np.take_along_axis(w, largest, axis)), axis)
    return gradient


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a / b``, and 0 where b = 0: a hyperplane that does not exist has no gradient."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), 0)


def norm(w: np.ndarray, p: float, axis: int = -1) -> np.ndarray:
    """``||w||_p`` along an axis."""
    return dual_norm(w, {1: np.inf, 2: 2, np.inf: 1}[p], axis)


def _length(w, axis):
    """``||w||_2``; where squares underflow or overflow, w is scaled by a power of two first."""
    with np.errstate(over="ignore"):
        length = np.sqrt((w * w).sum(axis=axis, keepdims=True))
    number = np.finfo(length.dtype)
    # Above this the squares that underflow are far below the last digit of the sum.
    extreme = ~((length >= np.sqrt(number.tiny) / number.eps) & (length < np.inf))
    if extreme.any():
        rows = np.moveaxis(w, axis, -1)[extreme.squeeze(axis)]
        _, exponent = np.frexp(np.abs(rows).max(axis=-1))
        scaled = np.ldexp(rows, -exponent[..., None])
        length[extreme] = np.ldexp(np.sqrt((scaled * scaled).sum(axis=-1)), exponent)
    return length.squeeze(axis)[()]


def hyperplane_distance(value: np.ndarray, w_norm: np.ndarray) -> np.ndarray:
    """``value / ||w||_q``, with the sign of `value`; infinite where w = 0 (no hyperplane).

    Parameters
    ----------
    value : ndarray
        The affine function at the point.
    w_norm : ndarray
        Dual norm of its gradient; broadcasts against `value`.
    """
    exists = w_norm > 0
    infinite = np.where(value < 0, -np.inf, np.inf).astype(value.dtype)
    return np.where(exists, value / np.where(exists, w_norm, 1), infinite)


def shortest_step(w: np.ndarray, value: np.ndarray, p: float) -> np.ndarray:
    """The shortest step delta onto the hyperplane, ``value + <w, delta> = 0``.

    Hoelder's inequality holds with equality for it.

    Parameters
    ----------
    w : ndarray, shape (..., d)
        Gradients of the hyperplanes, not zero.
    value : ndarray, shape (...)
        The affine functions at the point.
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (..., d)
        l_2: along w.  l_inf: all coordinates move equally far.  l_1: only the coordinate of largest
        ``|w_j|`` moves, the first of equals.
    """
    if p == 2:
        length = dual_norm(w, 2)[..., None]
        return -(w / length) * (value[..., None] / length)
    if p == np.inf:
        return -np.sign(w) * (value / np.abs(w).sum(axis=-1))[..., None]
    steepest = np.abs(w).argmax(axis=-1)[..., None]
    delta = np.zeros_like(w)
    np.put_along_axis(
        delta, steepest, -value[..., None] / np.take_along_axis(w, steepest, -1), axis=-1
    )
    return delta


def shortest_step_in_box(
    x: np.ndarray, w: np.ndarray, value: np.ndarray, lo: np.ndarray, hi: np.ndarray, p: float
) -> tuple[np.ndarray, np.ndarray]:
    """The shortest step onto the hyperplane that stays in the box ``lo <= x + delta <= hi``.

    Minimise ``||delta||_p`` subject to ``value + <w, delta> = 0`` and the box.  Coordinate j moves
    against the sign of ``value * w_j``, by ``0 <= m_j <= reach_j``, and the moves must add up to
    ``sum_j |w_j| m_j = |value|``.

    Parameters
    ----------
    x, w : ndarray, shape (..., d)
        Points in the box, and gradients of the hyperplanes.
    value : ndarray, shape (...)
        The affine functions at x.
    lo, hi : ndarray, broadcast against x
        The box; infinite where there is no limit.
    p : {1, 2, inf}

    Returns
    -------
    distance : ndarray, shape (...)
        ``||delta||_p``, with the sign of `value`; infinite where the hyperplane does not meet the
        box (and where w = 0).
    delta : ndarray, shape (..., d)
        The step; zero where the distance is infinite.
    """
    x, w, lo, hi = np.broadcast_arrays(x, w, lo, hi)
    direction = -np.sign(w) * np.where(value < 0, -1, 1).astype(w.dtype)[..., None]
    reach = np.where(direction > 0, hi - x, np.where(direction < 0, x - lo, 0))
    need = np.abs(value)[..., None]
    # Scale the largest weight to about 1, by a power of two: that is exact.
    _, exponent = np.frexp(np.abs(w).max(axis=-1, keepdims=True))
    weight, need = np.ldexp(np.abs(w), -exponent), np.ldexp(need, -exponent)
    if p == 1:
        move, reached = _knapsack(weight, reach, need)
    else:
        move, reached = _water_filling(weight, reach, need, p)
    reached &= (w != 0).any(axis=-1)
    move = np.where(reached[..., None], np.minimum(move, reach), 0)
    distance = np.where(reached, norm(move, p), np.inf)
    return np.where(value < 0, -distance, distance), direction * move


def _water_filling(weight, reach, need, p):
    """Water-filling: ``m_j = min(reach_j, level)`` (l_inf), ``min(reach_j, level * |w_j|)`` (l_2).

    The sum ``sum_j |w_j| m_j`` is increasing and piecewise linear in the level.  Sort the
    coordinates by the level at which they meet the box (`stop`).  Until the i-th does, those before
    it contribute a constant (`filled`) and the others grow at a common `rate`.
    """
    growth = weight if p == 2 else (weight > 0).astype(weight.dtype)
    moving = weight > 0
    stop = np.where(moving, reach / np.where(moving, growth, 1), 0)
    order = np.argsort(stop, axis=-1)
    stop = np.take_along_axis(stop, order, -1)
    gain = np.take_along_axis(weight * reach, order, -1)
    rate = np.take_along_axis(weight * growth, order, -1)
    rate = np.flip(np.cumsum(np.flip(rate, -1), axis=-1), -1)
    filled = _before(np.cumsum(gain, axis=-1))
    enough = filled + rate * stop >= need
    piece = enough.argmax(axis=-1)[..., None]
    rate, filled = np.take_along_axis(rate, piece, -1), np.take_along_axis(filled, piece, -1)
    level = (need - filled) / np.where(rate > 0, rate, 1)
    # The formula holds between two stops; rounding must not take the level beyond either.
    first, last = (np.take_along_axis(end, piece, -1) for end in (_before(stop), stop))
    return np.minimum(reach, np.clip(level, first, last) * growth), enough.any(axis=-1)


def _knapsack(weight, reach, need):
    """l_1: the fractional knapsack; the coordinates of largest ``|w_j|`` move first."""
    order = np.argsort(-weight, axis=-1, kind="stable")
    gain = np.take_along_axis(weight * reach, order, -1)
    filled = np.cumsum(gain, axis=-1)
    missing = np.maximum(need - _before(filled), 0)
    sorted_weight = np.take_along_axis(weight, order, -1)
    size = missing / np.where(sorted_weight > 0, sorted_weight, 1)
    size = np.minimum(np.where(sorted_weight > 0, size, 0), np.take_along_axis(reach, order, -1))
    move = np.empty_like(size)
    np.put_along_axis(move, order, size, axis=-1)
    return move, (filled >= need).any(axis=-1)


def _before(sums):
    """Cumulative sums of the terms before each: shifted by one, starting at 0."""
    return np.concatenate([np.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)
