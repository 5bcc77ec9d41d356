"""Vertices of a complex, compiled: a layer's values at each, and one number for each name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

# Without fastmath no product and sum are fused: each rounds as in NumPy.
_jit = njit(cache=True, nogil=True, error_model="numpy")


class Names(NamedTuple):
    """The vertices that a layer's cuts have made so far, to be found by name in a hash table."""

    slots: np.ndarray  # (a power of 2,) int: a vertex's place in the arrays below, or -1
    cuts: np.ndarray  # (M, 3) int: ends of the edge that was cut, and the unit
    points: np.ndarray  # (M, n)
    doubtful: np.ndarray  # (M,) bool


def no_names(n: int) -> Names:
    """An empty table for vertices in n dimensions."""
    return Names(
        np.full(64, -1), np.empty((16, 3), np.int64), np.empty((16, n)), np.empty(16, bool)
    )


class Around(NamedTuple):
    """Which entries of the cells' vertices are which vertex.

    The first of them is the cell whose map the vertex is evaluated by, its owner.
    """

    starts: np.ndarray  # (V + 1,) int
    entries: np.ndarray  # (C,) int: rising for each vertex
    cells: np.ndarray  # (C,) int: the cell of each entry of the cells' vertices


@_jit
def around(n_points, starts, vertices):
    """Sort the entries of the cells' vertices by vertex."""
    first, entries = np.zeros(n_points + 1, np.int64), np.empty(len(vertices), np.int64)
    cells = np.empty(len(vertices), np.int64)
    for vertex in vertices:
        first[vertex + 1] += 1
    for vertex in range(n_points):
        first[vertex + 1] += first[vertex]
    place = first[:-1].copy()
    for cell in range(len(starts) - 1):
        for e in range(starts[cell], starts[cell + 1]):
            entries[place[vertices[e]]] = e
            place[vertices[e]] += 1
            cells[e] = cell
    return first, entries, cells


@_jit
def find_signs(first, maps, points, starts, vertices, near, errors, signs, doubtful):
    """Signs of a layer's units at the vertices that some cells own.

    Parameters
    ----------
    first : int
        The first of the cells.
    maps : ndarray, shape (cells, n + 1, N_k)
        Theirs.
    points : ndarray, shape (V, n)
    starts, vertices : ndarray of int
        Of all cells.
    near : Around
    errors : ndarray, shape (N_k,)
        Values within them have no sign.
    signs : ndarray of uint64, shape (V, 2, ceil(N_k / 64))
        Is filled in: bit j says that unit j is positive, and negative.
    doubtful : ndarray of bool, shape (V,)
        Is filled in: a value is within its error.
    """
    n, n_units = points.shape[1], maps.shape[2]
    value = np.empty(n_units)
    for cell in range(first, first + len(maps)):
        for e in range(starts[cell], starts[cell + 1]):
            vertex = vertices[e]
            if near.entries[near.starts[vertex]] != e:
                continue
            value[:] = 0
            for axis in range(n):
                z = points[vertex, axis]
                for j in range(n_units):
                    value[j] += z * maps[cell - first, axis, j]
            for j in range(n_units):
                value[j] += maps[cell - first, n, j]
            doubtful[vertex] = _decide(value, errors, signs[vertex])


@_jit
def _decide(value, errors, signs):
    """Set the bits of signs; whether any value is within its error."""
    doubtful = False
    for word in range(signs.shape[1]):
        first = 64 * word
        up = down = np.uint64(0)
        for j in range(first, min(first + 64, len(value))):
            bit = np.uint64(1) << np.uint64(j - first)
            if abs(value[j]) > errors[j]:
                up |= bit if value[j] > 0 else np.uint64(0)
                down |= bit if value[j] < 0 else np.uint64(0)
            else:
                doubtful |= errors[j] > 0
        signs[0, word], signs[1, word] = up, down
    return doubtful


@_jit
def find_crossing(starts, vertices, signs):
    """Which units change sign on which cell.

    Returns
    -------
    open_starts : ndarray of int, shape (R + 1,)
    units : ndarray of int
        Those that change sign, of one cell after the other.
    value_starts : ndarray of int, shape (R + 1,)
        Where the values of the cell's open units at its vertices have their place.
    active : ndarray of uint64, shape (R, words)
        Bit j says that unit j is positive somewhere on the cell.
    """
    n_cells, words = len(starts) - 1, signs.shape[2]
    open_starts, value_starts = np.zeros(n_cells + 1, np.int64), np.zeros(n_cells + 1, np.int64)
    active, units = np.zeros((n_cells, words), np.uint64), np.empty(4 * n_cells + 64, np.int64)
    count = 0
    for cell in range(n_cells):
        for word in range(words):
            above = below = np.uint64(0)
            for e in range(starts[cell], starts[cell + 1]):
                above |= signs[vertices[e], 0, word]
                below |= signs[vertices[e], 1, word]
            active[cell, word] = above
            both, unit = above & below, 64 * word
            if both and count + 64 > len(units):
                longer = np.empty(2 * len(units) + 64, np.int64)
                longer[:count] = units[:count]
                units = longer
            while both:
                if both & np.uint64(1):
                    units[count] = unit
                    count += 1
                both >>= np.uint64(1)
                unit += 1
        open_starts[cell + 1] = count
        size = (count - open_starts[cell]) * (starts[cell + 1] - starts[cell])
        value_starts[cell + 1] = value_starts[cell] + size
    return open_starts, units[:count], value_starts, active


@_jit
def find_values(
    first, maps, points, starts, vertices, near, errors, open_starts, units, value_starts, values
):
    """Values of open units at the vertices that some cells own.

    For every cell around a vertex, by the same sums as in `find_signs`; see there and
    `find_crossing` for the parameters.  `values` is filled in: of one cell after the other, of one
    vertex after the other, decided.
    """
    n = points.shape[1]
    for owner in range(first, first + len(maps)):
        for e in range(starts[owner], starts[owner + 1]):
            vertex = vertices[e]
            if near.entries[near.starts[vertex]] != e:
                continue
            for k in range(near.starts[vertex], near.starts[vertex + 1]):
                entry = near.entries[k]
                cell = near.cells[entry]
                begin, n_open = open_starts[cell], open_starts[cell + 1] - open_starts[cell]
                place = value_starts[cell] + (entry - starts[cell]) * n_open
                for i in range(n_open):
                    j, value = units[begin + i], 0.0
                    for axis in range(n):
                        value += points[vertex, axis] * maps[owner - first, axis, j]
                    value += maps[owner - first, n, j]
                    values[place + i] = value if abs(value) > errors[j] else 0.0


@_jit
def merge(names, count, cuts, points, doubtful, vertices, first):
    """Give each cut of an edge the number of its vertex, and each vertex of pieces its number.

    Parameters
    ----------
    names : Names
        Is added to.
    count : int
        How many vertices it has.
    cuts, points, doubtful : ndarray, shapes (I, 3), (I, n), (I,)
        A run's cuts, as in `cells.Made`.
    vertices : ndarray of int, shape (C,)
        Vertices of the run's pieces; numbers take the place of -1 - i.
    first : int
        The number of the layer's first new vertex.

    Returns
    -------
    names : Names
    count : int
    """
    numbers = np.empty(len(cuts), np.int64)
    names = _room(names, count, count + len(cuts))
    slots, known, places, doubts = names
    for i in range(len(cuts)):
        a, b, unit = cuts[i, 0], cuts[i, 1], cuts[i, 2]
        a = numbers[-1 - a] if a < 0 else a
        b = numbers[-1 - b] if b < 0 else b
        slot = _slot(slots, known, a, b, unit)
        place = slots[slot]
        if place < 0:
            slots[slot] = place = count
            known[count, 0], known[count, 1], known[count, 2] = a, b, unit
            for axis in range(points.shape[1]):
                places[count, axis] = points[i, axis]
            doubts[count] = False
            count += 1
        doubts[place] |= doubtful[i]
        numbers[i] = first + place
    for c in range(len(vertices)):
        if vertices[c] < 0:
            vertices[c] = numbers[-1 - vertices[c]]
    return names, count


@_jit
def _slot(slots, cuts, a, b, unit):
    """The slot of a name: where it is, or where it can be put."""
    mask = np.uint64(len(slots) - 1)
    bits = _mixed(np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b))
    slot = np.int64(_mixed(bits + np.uint64(unit)) & mask)
    while slots[slot] >= 0:
        place = slots[slot]
        if cuts[place, 0] == a and cuts[place, 1] == b and cuts[place, 2] == unit:
            break
        slot = (slot + 1) & np.int64(mask)
    return slot


@_jit
def _mixed(bits):
    """A number that depends on all bits of another in all of its own (the end of MurmurHash3)."""
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))


@_jit
def _room(names, count, most):
    """The table of `count` vertices, or a larger one: room for `most`, half of the slots free."""
    slots, cuts, points, doubtful = names
    if most > len(cuts):
        size = max(most, 2 * len(cuts))
        cuts = np.empty((size, 3), np.int64)
        points = np.empty((size, points.shape[1]), np.float64)
        doubtful = np.empty(size, np.bool_)
        cuts[:count], points[:count] = names.cuts[:count], names.points[:count]
        doubtful[:count] = names.doubtful[:count]
    if 2 * most > len(slots):
        size = len(slots)
        while size < 2 * most:
            size *= 2
        slots = np.full(size, -1)
        for place in range(count):
            slots[_slot(slots, cuts, cuts[place, 0], cuts[place, 1], cuts[place, 2])] = place
    return Names(slots, cuts, points, doubtful)


@_jit
def append_bits(patterns, n_bits, parents, active, n_units):
    """Patterns of the parents, ``(P, bytes)``, each with a layer's bits behind it.

    Bits go from the lowest of each byte up.

    Parameters
    ----------
    patterns : ndarray of uint8, shape (P, ceil(n_bits / 8))
    n_bits : int
    parents : ndarray of int, shape (R,)
    active : ndarray of uint64, shape (R, words)
    n_units : int

    Returns
    -------
    ndarray of uint8, shape (R, ceil((n_bits + n_units) / 8))
    """
    old, width = patterns.shape[1], (n_bits + n_units + 7) // 8
    made = np.zeros((len(parents), width), np.uint8)
    first, shift = n_bits // 8, np.uint64(n_bits % 8)
    for i in range(len(parents)):
        row = made[i]
        row[:old] = patterns[parents[i]]
        for byte in range((n_units + 7) // 8):
            word = active[i, byte // 8] >> np.uint64(8 * (byte % 8))
            bits = (word & np.uint64(255)) << shift
            row[first + byte] |= np.uint8(bits & np.uint64(255))
            if first + byte + 1 < width:
                row[first + byte + 1] |= np.uint8(bits >> np.uint64(8))
    return made
