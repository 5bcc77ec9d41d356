"""Distances to hyperplanes in a box: twin of `refmmr.reference.hyperplanes.shortest_step_in_box`.

With ``weight_j = |w_j|`` and ``reach_j`` the room of coordinate j, the step has the sizes m that

    minimise ||m||_p  subject to  sum_j weight_j m_j = |value|,  0 <= m_j <= reach_j.

Only the norm is computed, not the step, and nothing is sorted.

- l_2 and l_inf, water-filling: ``m_j = min(reach_j, level * weight_j)``, ``min(reach_j, level)``.
  The sum is a concave, piecewise linear function of the level: Newton's method from level 0 ends,
  in a few iterations, on the piece that the reference finds by its sort.
- l_1, a fractional knapsack: the coordinates of the largest weights move.  A quickselect finds the
  last one of them.
"""

from __future__ import annotations

import numpy as np

from refmmr.backends._numba.jit import jit

NO_HYPERPLANE = -(2**30)
"""Exponent of w = 0, smaller than any of a number."""


def distances_in_box(
    rows: np.ndarray, x: np.ndarray, values: np.ndarray, lo: np.ndarray, hi: np.ndarray, p: float
) -> np.ndarray:
    """Distances of points to hyperplanes in a box.

    Parameters
    ----------
    rows : ndarray, shape (q, u, m)
        Gradients of u hyperplanes around each of q points.
    x, lo, hi : ndarray, shape (q, m)
        The points, and a box around each.
    values : ndarray, shape (q, u)
        The hyperplanes' affine functions at the points.
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (q, u)
        With the sign of the value; infinite where the box misses the hyperplane.
    """
    found = np.empty(values.shape, rows.dtype)
    _distances_in_box(rows, x, values, lo, hi, p, found)
    return found


@jit
def _distances_in_box(rows, x, values, lo, hi, p, found):
    """The loop of `distances_in_box`, with its shapes; found: (q, u), the result."""
    weight = np.empty(rows.shape[2], rows.dtype)
    reach, stop = np.empty_like(weight), np.empty_like(weight)
    for q in range(rows.shape[0]):
        for u in range(rows.shape[1]):
            value = values[q, u]
            exponent = _weight_and_reach(rows[q, u], x[q], value, lo[q], hi[q], weight, reach)
            need = np.abs(value) * rows.dtype.type(2.0) ** -exponent
            if exponent == NO_HYPERPLANE:
                size = rows.dtype.type(np.inf)
            elif p == 1:
                size = _knapsack(weight, reach, need)
            else:
                size = _water_filling(weight, reach, need, p, stop)
            found[q, u] = -size if value < 0 else size


@jit
def _weight_and_reach(w, x, value, lo, hi, weight, reach):
    """``|w_j|`` divided by a power of two, and how far each coordinate can move towards value 0.

    w, x, lo, hi: (m,).  weight, reach: (m,), the results.  Returns the exponent of the power, which
    makes the largest weight at most 1, so that no square overflows.
    """
    largest = w.dtype.type(0)
    for j in range(len(w)):
        largest = max(largest, abs(w[j]))
    if largest == 0:
        return NO_HYPERPLANE
    exponent = np.int64(np.floor(np.log2(largest))) + 1
    scale = w.dtype.type(2.0) ** -exponent
    for j in range(len(w)):
        up = (w[j] < 0) == (value >= 0)
        room = hi[j] - x[j] if up else x[j] - lo[j]
        weight[j] = abs(w[j]) * scale
        reach[j] = room if w[j] != 0 else 0
    return exponent


@jit
def _water_filling(weight, reach, need, p, stop):
    """The norm of the shortest step in l_2 and l_inf; twin of `hyperplanes._water_filling`.

    weight, reach: (m,).  stop: (m,), memory for the levels at which the coordinates stop.
    """
    squared = p == 2
    for j in range(len(weight)):
        stop[j] = (reach[j] / weight[j] if squared else reach[j]) if weight[j] > 0 else 0
    level = weight.dtype.type(0)
    while True:
        # A Newton step: from the gain of the coordinates that have stopped, and the rate of others.
        filled, rate, nearest = weight.dtype.type(0), weight.dtype.type(0), np.inf
        for j in range(len(weight)):
            if stop[j] > level:
                rate += weight[j] * weight[j] if squared else weight[j]
                nearest = min(nearest, stop[j])
            else:
                filled += weight[j] * reach[j]
        if filled >= need:
            break
        if rate == 0:
            return weight.dtype.type(np.inf)
        level = max(level, (need - filled) / rate)
        if level <= nearest:
            break
    total = weight.dtype.type(0)
    for j in range(len(weight)):
        if squared:
            move = min(reach[j], level * weight[j])
            total += move * move
        elif weight[j] > 0:
            total = max(total, min(reach[j], level))
    return np.sqrt(total) if squared else total


@jit
def _knapsack(weight, reach, need):
    """The norm of the shortest step in l_1; twin of `hyperplanes._knapsack`.

    weight, reach: (m,).  The coordinates of largest weight move first, until the need is met.  Each
    pivot splits the candidates for the last one that moves.
    """
    if need == 0:
        return weight.dtype.type(0)
    candidates = np.empty(len(weight), np.int64)
    count = 0
    for j in range(len(weight)):
        if weight[j] > 0:
            candidates[count] = j
            count += 1
    filled, length = weight.dtype.type(0), weight.dtype.type(0)
    while count > 0:
        # Gain and length if all coordinates above the pivot move; then if those equal to it do too.
        pivot = weight[candidates[count // 2]]
        gain, move, gain_equal, move_equal = filled, length, filled, length
        for c in range(count):
            j = candidates[c]
            if weight[j] > pivot:
                gain += weight[j] * reach[j]
                move += reach[j]
            if weight[j] >= pivot:
                gain_equal += weight[j] * reach[j]
                move_equal += reach[j]
        above = gain >= need
        if not above and gain_equal >= need:
            return move + (need - gain) / pivot
        kept = 0
        for c in range(count):
            j = candidates[c]
            if weight[j] > pivot if above else weight[j] < pivot:
                candidates[kept] = j
                kept += 1
        count = kept
        if not above:
            filled, length = gain_equal, move_equal
    return weight.dtype.type(np.inf)
