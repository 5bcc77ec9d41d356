"""Polygons of the plane, cut along the zero lines of a layer's units, compiled.

A cell is cut depth first.  Its pieces name their corners by rows of a table; a cut adds the new
corners to it and copies no value of an old one.  Only the units that still change sign on a piece
are followed into it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

# Without fastmath no product and sum are fused: each rounds as in NumPy.
_jit = njit(cache=True, nogil=True, error_model="numpy")


class Layer(NamedTuple):
    """A layer's units on all R cells."""

    points: np.ndarray  # (V, n), the cells' corners
    errors: np.ndarray  # (N_k,)
    open_starts: np.ndarray  # (R + 1,) int
    units: np.ndarray  # (open units,) int: those that change sign, of one cell after the other
    value_starts: np.ndarray  # (R + 1,) int
    values: np.ndarray  # (values,): of open units at corners, of one cell after the other
    active: np.ndarray  # (R, words) uint64: bit j says that unit j is positive on the cell


class Made(NamedTuple):
    """What a run of cells was cut into.

    A new corner is -1 - i, where i counts the cuts of edges; the same corner may come out of
    several.
    """

    corners: np.ndarray  # (C,) int
    walls: np.ndarray  # (F,) int
    touches: np.ndarray  # (C, words) uint64; no words for polygons
    sizes: np.ndarray  # (R, 2) int: corners and facets of each piece
    parents: np.ndarray  # (R,) int
    active: np.ndarray  # (R, words) uint64: bit j says that unit j is active
    cuts: np.ndarray  # (I, 3) int: ends of the edge, where the unit is positive and negative; unit
    points: np.ndarray  # (I, n): where the cut is
    doubtful: np.ndarray  # (I,) bool: another unit is 0 there within its rounding error


class Table(NamedTuple):
    """Corners of the pieces of one cell, a row each."""

    numbers: np.ndarray  # (rows,) int: as in `Made.corners`
    points: np.ndarray  # (rows, n)
    values: np.ndarray  # (rows, open units)


@_jit
def split_polygons(start, stop, starts, corners, walls, layer, first_unit):
    """Cut the polygons ``start, ..., stop - 1``.

    Parameters
    ----------
    start, stop : int
    starts, corners, walls : ndarray of int, shapes (R + 1,), (C,), (C,)
        Of all polygons.
    layer : Layer
    first_unit : int
        The number, as a wall, of the layer's first unit.

    Returns
    -------
    tuple, the fields of `Made`
    """
    words = layer.active.shape[1]
    n_units = len(layer.errors)
    made = Made(
        np.empty(64, np.int64),
        np.empty(64, np.int64),
        np.empty((0, 0), np.uint64),
        np.empty((16, 2), np.int64),
        np.empty(16, np.int64),
        np.empty((16, words), np.uint64),
        np.empty((16, 3), np.int64),
        np.empty((16, 2), np.float64),
        np.empty(16, np.bool_),
    )
    table = Table(np.empty(16, np.int64), np.empty((16, 2)), np.empty((16, n_units)))
    # Stacks: (row, wall) of the pieces that wait, and the units that are open on them.
    ring, opened = np.empty((64, 2), np.int64), np.empty(2 * n_units + 1, np.int64)
    walk = np.empty((16, 2), np.int64)
    # Of each piece: its runs of `ring` and `opened`, and the rows of the table that are in use.
    tasks = np.empty((n_units + 2, 5), np.int64)
    active, units = np.empty(words, np.uint64), np.empty(n_units, np.int64)
    n_cells = n_corners = n_cuts = 0
    for cell in range(start, stop):
        begin, m = starts[cell], starts[cell + 1] - starts[cell]
        n_open = _open_units(layer, cell, active, units)
        if m > len(ring):
            ring = _room(ring, m)
        if m > len(table.numbers):
            table = _room_for_rows(table, m)
        for i in range(m):
            ring[i, 0], ring[i, 1] = i, walls[begin + i]
        _load(table, layer, corners, begin, m, cell, n_open)
        for j in range(n_open):
            opened[j] = j
        _push(tasks, 0, 0, m, 0, n_open, m)
        waiting = 1
        while waiting > 0:
            waiting -= 1
            first, last = tasks[waiting, 0], tasks[waiting, 1]
            low, high, used = tasks[waiting, 2], tasks[waiting, 3], tasks[waiting, 4]
            n = last - first
            high = _settle(table.values, ring, first, last, units, active, opened, low, high)
            if low == high:
                if n_cells >= len(made.sizes) or n_corners + n > len(made.corners):
                    made = _room_for_cells(made, n_cells + 1, n_corners + n)
                for i in range(n):
                    made.corners[n_corners + i] = table.numbers[ring[first + i, 0]]
                    made.walls[n_corners + i] = ring[first + i, 1]
                made.sizes[n_cells, 0], made.sizes[n_cells, 1] = n, n
                made.parents[n_cells] = cell
                for word in range(words):
                    made.active[n_cells, word] = active[word]
                n_cells, n_corners = n_cells + 1, n_corners + n
                continue
            # At most all edges are crossed, then there are as many new corners as old ones.
            if used + n > len(table.numbers):
                table = _room_for_rows(table, used + n)
            if 2 * n > len(walk):
                walk = _room(walk, 2 * n)
            if n_cuts + n > len(made.cuts):
                made = _room_for_cuts(made, n_cuts + n)
            n, used, n_cuts = _with_crossings(
                table, ring, first, last, units, opened, low, high, layer.errors, used, walk,
                made, n_cuts,
            )  # fmt: skip
            # Both sides take the place of the piece; the positive one comes first, so on top.
            unit, wall = opened[low], first_unit + units[opened[low]]
            if first + 2 * n > len(ring):
                ring = _room(ring, first + 2 * n)
            middle = _side(table.values, walk, n, unit, -1, wall, ring, first)
            last = _side(table.values, walk, n, unit, 1, wall, ring, middle)
            top = 2 * high - low
            if top > len(opened):
                opened = _room(opened, top)
            for k in range(low, high):
                opened[k + high - low] = opened[k]
            _push(tasks, waiting, first, middle, low, high, used)
            _push(tasks, waiting + 1, middle, last, high, top, used)
            waiting += 2
    return (
        made.corners[:n_corners],
        made.walls[:n_corners],
        np.empty((n_corners, 0), np.uint64),
        made.sizes[:n_cells],
        made.parents[:n_cells],
        made.active[:n_cells],
        made.cuts[:n_cuts],
        made.points[:n_cuts],
        made.doubtful[:n_cuts],
    )


@_jit
def _open_units(layer, cell, active, units):
    """Copy which units change sign on a cell, and which are active; how many are open."""
    first, n_open = layer.open_starts[cell], layer.open_starts[cell + 1] - layer.open_starts[cell]
    for i in range(n_open):
        units[i] = layer.units[first + i]
    for word in range(len(active)):
        active[word] = layer.active[cell, word]
    return n_open


@_jit
def _push(tasks, place, first, last, low, high, used):
    tasks[place, 0], tasks[place, 1] = first, last
    tasks[place, 2], tasks[place, 3], tasks[place, 4] = low, high, used


@_jit
def _load(table, layer, corners, begin, m, cell, n_open):
    """Write a cell's corners into the table, with the values of its open units."""
    points, values, place = table.points, table.values, layer.value_starts[cell]
    for i in range(m):
        corner = corners[begin + i]
        table.numbers[i] = corner
        for axis in range(points.shape[1]):
            points[i, axis] = layer.points[corner, axis]
        for j in range(n_open):
            values[i, j] = layer.values[place + i * n_open + j]


@_jit
def _settle(values, ring, first, last, units, active, opened, begin, end):
    """Drop the units that have one sign on a piece from ``opened[begin:end]``; the new end."""
    kept = begin
    for k in range(begin, end):
        j = opened[k]
        above = below = False
        for i in range(first, last):
            value = values[ring[i, 0], j]
            above |= value > 0
            below |= value < 0
        bit = np.uint64(1) << np.uint64(units[j] & 63)
        if above:
            active[units[j] >> 6] |= bit
        else:
            active[units[j] >> 6] &= ~bit
        if above and below:
            opened[kept] = j
            kept += 1
    return kept


@_jit
def _with_crossings(
    table, ring, first, last, units, opened, low, high, errors, used, walk, made, n_cuts
):
    """Write a piece's (row, wall) to `walk`, with a new corner wherever an edge is crossed.

    Returns the length of the walk, how many rows of the table are used now, and how many cuts.
    """
    values, n, unit = table.values, 0, opened[low]
    for i in range(first, last):
        here, there = ring[i, 0], ring[i + 1 if i + 1 < last else first, 0]
        walk[n, 0], walk[n, 1] = here, ring[i, 1]
        n += 1
        f, after = values[here, unit], values[there, unit]
        if f > 0 > after or f < 0 < after:
            # From the positive end, so that both cells at this edge find the same point.
            a, b = (here, there) if f > 0 else (there, here)
            made.doubtful[n_cuts] = _interpolate(
                table, units, opened, low, high, errors, a, b, used
            )
            _record(made, n_cuts, table, a, b, units[unit], used)
            walk[n, 0], walk[n, 1] = used, ring[i, 1]
            n, used, n_cuts = n + 1, used + 1, n_cuts + 1
    return n, used, n_cuts


@_jit
def _record(made, n_cuts, table, a, b, unit, row):
    """Write down that a unit has cut the edge between rows a and b in the corner of a row."""
    cuts, numbers = made.cuts, table.numbers
    cuts[n_cuts, 0], cuts[n_cuts, 1], cuts[n_cuts, 2] = numbers[a], numbers[b], unit
    for axis in range(table.points.shape[1]):
        made.points[n_cuts, axis] = table.points[row, axis]
    numbers[row] = -1 - n_cuts


@_jit
def _interpolate(table, units, opened, low, high, errors, a, b, new):
    """Make the corner between rows a and b where the first open unit is 0, in row `new`.

    Returns whether another one is 0 there within its rounding error.
    """
    points, values = table.points, table.values
    unit, doubtful = opened[low], False
    t = values[a, unit] / (values[a, unit] - values[b, unit])
    for axis in range(points.shape[1]):
        points[new, axis] = points[a, axis] + t * (points[b, axis] - points[a, axis])
    for k in range(low, high):
        j = opened[k]
        value = values[a, j] + t * (values[b, j] - values[a, j])
        decided = abs(value) > errors[units[j]]
        values[new, j] = value if decided else 0.0
        doubtful |= not decided and j != unit and errors[units[j]] > 0
    values[new, unit] = 0
    return doubtful


@_jit
def _side(values, walk, n, unit, sign, wall, ring, end):
    """Append to ``ring[:end]`` the walk ``walk[:n]`` on one side of a unit's line; the new end."""
    for i in range(n):
        if values[walk[i, 0], unit] * sign >= 0:
            after = walk[i + 1 if i + 1 < n else 0, 0]
            # The edge that closes the piece lies on the line.
            leaves = values[after, unit] * sign < 0
            ring[end, 0], ring[end, 1] = walk[i, 0], wall if leaves else walk[i, 1]
            end += 1
    return end


@_jit
def _room(array, n):
    """The array, or a longer copy where it has less than n rows."""
    if n <= len(array):
        return array
    longer = np.empty((max(n, 2 * len(array)), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


@_jit
def _room_for_rows(table, n):
    return Table(_room(table.numbers, n), _room(table.points, n), _room(table.values, n))


@_jit
def _room_for_cells(made, n_cells, n_corners):
    return Made(
        _room(made.corners, n_corners),
        _room(made.walls, n_corners),
        made.touches,
        _room(made.sizes, n_cells),
        _room(made.parents, n_cells),
        _room(made.active, n_cells),
        made.cuts,
        made.points,
        made.doubtful,
    )


@_jit
def _room_for_cuts(made, n_cuts):
    return Made(
        made.corners,
        made.walls,
        made.touches,
        made.sizes,
        made.parents,
        made.active,
        _room(made.cuts, n_cuts),
        _room(made.points, n_cuts),
        _room(made.doubtful, n_cuts),
    )
