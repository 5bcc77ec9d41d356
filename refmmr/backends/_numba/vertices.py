"""The vertices of a subdivision, compiled: the twin of `refmmr.reference.vertices.VertexTable`.

As in the reference a vertex is evaluated once, by the map of the first cell that has it.  First
come the signs of all units, two bits for each unit and vertex; 64 units at a time they tell which
units change sign on a cell.  Then the values of these units alone are kept, for each cell.  New
vertices get their numbers from a hash table of edges and units (`merge`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import strict_jit


class Incidence(NamedTuple):
    """Which vertices each of R cells has, and which cells have each of V vertices.

    An entry is a position in `vertices`.  The first entry of a vertex is in the cell by whose map
    the vertex is evaluated.
    """

    points: np.ndarray  # (V, n)
    starts: np.ndarray  # (R + 1,) int
    vertices: np.ndarray  # (C,) int: of each cell
    entry_starts: np.ndarray  # (V + 1,) int
    entries: np.ndarray  # (C,) int: of each vertex, rising
    cells: np.ndarray  # (C,) int: the cell of each entry


class Crossing(NamedTuple):
    """The units that change sign on each of R cells, and which others are positive."""

    starts: np.ndarray  # (R + 1,) int
    units: np.ndarray  # int: of each cell, rising
    value_starts: np.ndarray  # (R + 1,) int: where its values begin: (vertices, crossing units)
    active: np.ndarray  # (R, words) uint64: bit j says that unit j is positive somewhere


class NewVertices(NamedTuple):
    """The vertices that a layer's cuts have made, in a hash table of what they were made by."""

    slots: np.ndarray  # (a power of 2,) int: a position in the arrays below, or -1
    cuts: np.ndarray  # (M, 3) int: ends of the edge that was cut, and the unit
    points: np.ndarray  # (M, n)
    uncertain: np.ndarray  # (M,) bool


def no_vertices(n: int) -> NewVertices:
    """An empty table of vertices in n dimensions."""
    return NewVertices(
        np.full(64, -1), np.empty((16, 3), np.int64), np.empty((16, n)), np.empty(16, bool)
    )


@strict_jit
def find_incidence(points, starts, vertices):
    """Sort the entries of the cells' vertices by vertex.

    Parameters
    ----------
    points : ndarray, shape (V, n)
    starts, vertices : ndarray of int, shapes (R + 1,), (C,)

    Returns
    -------
    Incidence
    """
    entry_starts, cells = np.zeros(len(points) + 1, np.int64), np.empty(len(vertices), np.int64)
    entries = np.empty(len(vertices), np.int64)
    for vertex in vertices:
        entry_starts[vertex + 1] += 1
    for vertex in range(len(points)):
        entry_starts[vertex + 1] += entry_starts[vertex]
    place = entry_starts[:-1].copy()
    for cell in range(len(starts) - 1):
        for entry in range(starts[cell], starts[cell + 1]):
            vertex = vertices[entry]
            entries[place[vertex]] = entry
            place[vertex] += 1
            cells[entry] = cell
    return Incidence(points, starts, vertices, entry_starts, entries, cells)


@strict_jit
def find_signs(first, maps, incidence, errors, signs, uncertain):
    """Signs of a layer's units at the vertices that are evaluated by the maps of some cells.

    Parameters
    ----------
    first : int
        The number of the first of these cells.
    maps : ndarray, shape (cells, n + 1, N_k)
        Their affine maps.
    incidence : Incidence
        Of all cells.
    errors : ndarray, shape (N_k,)
        Bounds on the rounding errors of the values; those within them have no sign.
    signs : ndarray of uint64, shape (V, 2, ceil(N_k / 64))
        Is filled in: bit j of the first row says that unit j is positive, of the second that it is
        negative.
    uncertain : ndarray of bool, shape (V,)
        Is filled in: the value of some unit is within its error.
    """
    n, n_units = incidence.points.shape[1], maps.shape[2]
    points, vertices = incidence.points, incidence.vertices
    values = np.empty(n_units)
    for cell in range(first, first + len(maps)):
        for entry in range(incidence.starts[cell], incidence.starts[cell + 1]):
            vertex = vertices[entry]
            if incidence.entries[incidence.entry_starts[vertex]] != entry:
                continue
            values[:] = 0
            for axis in range(n):
                z = points[vertex, axis]
                for j in range(n_units):
                    values[j] += z * maps[cell - first, axis, j]
            for j in range(n_units):
                values[j] += maps[cell - first, n, j]
            uncertain[vertex] = _write_signs(values, errors, signs[vertex])


@strict_jit
def _write_signs(values, errors, signs):
    """Set the bits of ``signs (2, words)``; whether any value is within its error."""
    uncertain = False
    for word in range(signs.shape[1]):
        first = 64 * word
        positive = negative = np.uint64(0)
        for j in range(first, min(first + 64, len(values))):
            bit = np.uint64(1) << np.uint64(j - first)
            if abs(values[j]) > errors[j]:
                positive |= bit if values[j] > 0 else np.uint64(0)
                negative |= bit if values[j] < 0 else np.uint64(0)
            else:
                uncertain |= errors[j] > 0
        signs[0, word], signs[1, word] = positive, negative
    return uncertain


@strict_jit
def find_crossing(incidence, signs):
    """The units that change sign on each cell.

    Parameters
    ----------
    incidence : Incidence
    signs : ndarray of uint64, shape (V, 2, words)
        As in `find_signs`.

    Returns
    -------
    Crossing
    """
    starts, vertices = incidence.starts, incidence.vertices
    n_cells, words = len(starts) - 1, signs.shape[2]
    unit_starts, value_starts = np.zeros(n_cells + 1, np.int64), np.zeros(n_cells + 1, np.int64)
    active, units = np.zeros((n_cells, words), np.uint64), np.empty(4 * n_cells + 64, np.int64)
    count = 0
    for cell in range(n_cells):
        for word in range(words):
            positive = negative = np.uint64(0)
            for entry in range(starts[cell], starts[cell + 1]):
                positive |= signs[vertices[entry], 0, word]
                negative |= signs[vertices[entry], 1, word]
            active[cell, word] = positive
            both, unit = positive & negative, 64 * word
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
        unit_starts[cell + 1] = count
        size = (count - unit_starts[cell]) * (starts[cell + 1] - starts[cell])
        value_starts[cell + 1] = value_starts[cell] + size
    return Crossing(unit_starts, units[:count], value_starts, active)


@strict_jit
def find_values(first, maps, incidence, errors, crossing, values):
    """Values of the crossing units at the vertices that are evaluated by the maps of some cells.

    They are written for every cell that has the vertex, computed by the same sums as in
    `find_signs`, and 0 where they are within their error.

    Parameters
    ----------
    first, maps, incidence, errors
        As in `find_signs`.
    crossing : Crossing
    values : ndarray
        Is filled in: of each cell (its vertices, its crossing units), at ``value_starts``.
    """
    n, points, starts = incidence.points.shape[1], incidence.points, incidence.starts
    for owner in range(first, first + len(maps)):
        for e in range(starts[owner], starts[owner + 1]):
            vertex = incidence.vertices[e]
            if incidence.entries[incidence.entry_starts[vertex]] != e:
                continue
            for k in range(incidence.entry_starts[vertex], incidence.entry_starts[vertex + 1]):
                entry = incidence.entries[k]
                cell = incidence.cells[entry]
                begin, n_units = crossing.starts[cell], crossing.starts[cell + 1]
                n_units -= begin
                place = crossing.value_starts[cell] + (entry - starts[cell]) * n_units
                for i in range(n_units):
                    j, value = crossing.units[begin + i], 0.0
                    for axis in range(n):
                        value += points[vertex, axis] * maps[owner - first, axis, j]
                    value += maps[owner - first, n, j]
                    values[place + i] = value if abs(value) > errors[j] else 0.0


@strict_jit
def merge(table, count, cuts, points, uncertain, vertices, first):
    """Give each cut of an edge the number of its vertex, and write it to the vertices of pieces.

    Parameters
    ----------
    table : NewVertices
        New vertices are added to it.
    count : int
        How many vertices it has.
    cuts, points, uncertain : ndarray, shapes (I, 3), (I, n), (I,)
        The cuts of a run of cells, as in `pieces.Pieces`.
    vertices : ndarray of int, shape (C,)
        Vertices of the run's pieces; where they are -1 - i, the number of cut i is filled in.
    first : int
        The number of the layer's first new vertex.

    Returns
    -------
    table : NewVertices
    count : int
    """
    numbers = np.empty(len(cuts), np.int64)
    table = _with_room(table, count, count + len(cuts))
    for i in range(len(cuts)):
        a, b, unit = cuts[i, 0], cuts[i, 1], cuts[i, 2]
        a = numbers[-1 - a] if a < 0 else a
        b = numbers[-1 - b] if b < 0 else b
        slot = _slot(table.slots, table.cuts, a, b, unit)
        place = table.slots[slot]
        if place < 0:
            table.slots[slot] = place = count
            table.cuts[count, 0], table.cuts[count, 1], table.cuts[count, 2] = a, b, unit
            for axis in range(points.shape[1]):
                table.points[count, axis] = points[i, axis]
            table.uncertain[count] = False
            count += 1
        table.uncertain[place] |= uncertain[i]
        numbers[i] = first + place
    for c in range(len(vertices)):
        if vertices[c] < 0:
            vertices[c] = numbers[-1 - vertices[c]]
    return table, count


@strict_jit
def _slot(slots, cuts, a, b, unit):
    """The slot of a cut: where it is, or where it can be put (linear probing)."""
    mask = np.uint64(len(slots) - 1)
    bits = _mixed(np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b))
    slot = np.int64(_mixed(bits + np.uint64(unit)) & mask)
    while slots[slot] >= 0:
        place = slots[slot]
        if cuts[place, 0] == a and cuts[place, 1] == b and cuts[place, 2] == unit:
            break
        slot = (slot + 1) & np.int64(mask)
    return slot


@strict_jit
def _mixed(bits):
    """A hash of 64 bits: the finalizer of MurmurHash3 (Appleby 2011)."""
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))


@strict_jit
def _with_room(table, count, size):
    """The table of `count` vertices with room for `size`, and half of its slots free."""
    slots, cuts, points, uncertain = table
    if size > len(cuts):
        longer = max(size, 2 * len(cuts))
        cuts = np.empty((longer, 3), np.int64)
        points = np.empty((longer, points.shape[1]), np.float64)
        uncertain = np.empty(longer, np.bool_)
        cuts[:count], points[:count] = table.cuts[:count], table.points[:count]
        uncertain[:count] = table.uncertain[:count]
    if 2 * size > len(slots):
        n_slots = len(slots)
        while n_slots < 2 * size:
            n_slots *= 2
        slots = np.full(n_slots, -1)
        for place in range(count):
            slots[_slot(slots, cuts, cuts[place, 0], cuts[place, 1], cuts[place, 2])] = place
    return NewVertices(slots, cuts, points, uncertain)
