"""Distances to hyperplanes within a box: the twin of `reference.hyperplanes.shortest_step_in_box`.

Only the distance is wanted, so nothing is sorted.  In l_2 and l_inf the gain of a water level is
concave and piecewise linear: Newton's method from level 0 meets, in a few rounds, the very piece
that the reference finds by its sort.  In l_1 a weighted quickselect finds the speed at which the
need is met.
"""

from __future__ import annotations

import numpy as np

from refmmr.backends._numba.jit import jit


def distances(
    rows: np.ndarray, x: np.ndarray, values: np.ndarray, lo: np.ndarray, hi: np.ndarray, p: float
) -> np.ndarray:
    """Distances of points to hyperplanes within a box.

    Parameters
    ----------
    rows : ndarray, shape (q, u, m)
        Gradients of the hyperplanes of q points.
    x, lo, hi : ndarray, shape (q, m)
        The points, and the box around each.
    values : ndarray, shape (q, u)
        The hyperplanes' functions at the points.
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (q, u)
        With the sign of the value; infinite where the box misses the hyperplane.
    """
    found = np.empty(values.shape, rows.dtype)
    speed, reach, stop = (np.empty(rows.shape[-1], rows.dtype) for _ in range(3))
    _distances(rows, x, values, lo, hi, p, speed, reach, stop, found)
    return found


@jit
def _distances(rows, x, values, lo, hi, p, speed, reach, stop, found):
    for q in range(rows.shape[0]):
        for u in range(rows.shape[1]):
            value = values[q, u]
            exponent = _reaches(rows[q, u], x[q], value, lo[q], hi[q], speed, reach)
            need = np.abs(value) * rows.dtype.type(2.0) ** -exponent
            if exponent == _NO_WALL:
                size = rows.dtype.type(np.inf)
            elif p == 1:
                size = _knapsack(speed, reach, need)
            else:
                size = _water_level(speed, reach, need, p, stop)
            found[q, u] = -size if value < 0 else size


_NO_WALL = -(2**30)


@jit
def _reaches(w, x, value, lo, hi, speed, reach):
    """Sizes of the weights, scaled by a power of two, and how far each coordinate can go."""
    largest = w.dtype.type(0)
    for j in range(len(w)):
        largest = max(largest, abs(w[j]))
    if largest == 0:
        return _NO_WALL
    exponent = np.int64(np.floor(np.log2(largest))) + 1
    scale = w.dtype.type(2.0) ** -exponent
    for j in range(len(w)):
        up = (w[j] < 0) == (value >= 0)
        room = hi[j] - x[j] if up else x[j] - lo[j]
        speed[j] = abs(w[j]) * scale
        reach[j] = room if w[j] != 0 else 0
    return exponent


@jit
def _water_level(speed, reach, need, p, stop):
    """The norm of the moves ``min(reach, level)``, or ``min(reach, level * speed)`` in l_2."""
    squared = p == 2
    for j in range(len(speed)):
        stop[j] = (reach[j] / speed[j] if squared else reach[j]) if speed[j] > 0 else 0
    level = speed.dtype.type(0)
    while True:
        filled, rate, nearest = speed.dtype.type(0), speed.dtype.type(0), np.inf
        for j in range(len(speed)):
            if stop[j] > level:
                rate += speed[j] * speed[j] if squared else speed[j]
                nearest = min(nearest, stop[j])
            else:
                filled += speed[j] * reach[j]
        if filled >= need:
            break
        if rate == 0:
            return speed.dtype.type(np.inf)
        level = max(level, (need - filled) / rate)
        if level <= nearest:
            break
    total = speed.dtype.type(0)
    for j in range(len(speed)):
        if squared:
            move = min(reach[j], level * speed[j])
            total += move * move
        elif speed[j] > 0:
            total = max(total, min(reach[j], level))
    return np.sqrt(total) if squared else total


@jit
def _knapsack(speed, reach, need):
    """Length of the moves when the fastest coordinates go first, until the need is met."""
    if need == 0:
        return speed.dtype.type(0)
    candidates = np.empty(len(speed), np.int64)
    count = 0
    for j in range(len(speed)):
        if speed[j] > 0:
            candidates[count] = j
            count += 1
    filled, length = speed.dtype.type(0), speed.dtype.type(0)
    while count > 0:
        pivot = speed[candidates[count // 2]]
        gain, way, equal, equal_way = filled, length, filled, length
        for c in range(count):
            j = candidates[c]
            if speed[j] > pivot:
                gain += speed[j] * reach[j]
                way += reach[j]
            if speed[j] >= pivot:
                equal += speed[j] * reach[j]
                equal_way += reach[j]
        faster = gain >= need
        if not faster and equal >= need:
            return way + (need - gain) / pivot
        kept = 0
        for c in range(count):
            j = candidates[c]
            if speed[j] > pivot if faster else speed[j] < pivot:
                candidates[kept] = j
                kept += 1
        count = kept
        if not faster:
            filled, length = equal, equal_way
    return speed.dtype.type(np.inf)
