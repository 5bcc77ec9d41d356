"""Cells cut along the zero sets of a layer's units, compiled: polygons, then polytopes.

A cell is cut depth first.  Its pieces name their vertices by rows of a table; a cut adds the new
vertices to it and copies no value of an old one.  Only the units that still change sign on a piece
are followed into it.

A polygon is its vertices in order.  In other dimensions a vertex carries, in bits, which facets of
its piece it touches: two vertices are joined by an edge if they alone touch all of their common
facets.  Where every vertex touches just n facets (the piece is simple) it is enough that n - 1 are
common.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

# Without fastmath no product and sum are fused: each rounds as in NumPy.
_jit = njit(cache=True, nogil=True, error_model="numpy")


class Layer(NamedTuple):
    """A layer's units on all R cells."""

    points: np.ndarray  # (V, n), the cells' vertices
    errors: np.ndarray  # (N_k,)
    open_starts: np.ndarray  # (R + 1,) int
    units: np.ndarray  # (open units,) int: those that change sign, of one cell after the other
    value_starts: np.ndarray  # (R + 1,) int
    values: np.ndarray  # (values,): of open units at vertices, of one cell after the other
    active: np.ndarray  # (R, words) uint64: bit j says that unit j is positive on the cell


class Made(NamedTuple):
    """What a run of cells was cut into.

    A new vertex is -1 - i, where i counts the cuts of edges; the same vertex may come out of
    several.
    """

    vertices: np.ndarray  # (C,) int
    hyperplanes: np.ndarray  # (F,) int
    touches: np.ndarray  # (C, words) uint64; no words for polygons
    sizes: np.ndarray  # (R, 2) int: vertices and facets of each piece
    parents: np.ndarray  # (R,) int
    active: np.ndarray  # (R, words) uint64: bit j says that unit j is active
    cuts: np.ndarray  # (I, 3) int: ends of the edge, where the unit is positive and negative; unit
    points: np.ndarray  # (I, n): where the cut is
    doubtful: np.ndarray  # (I,) bool: another unit is 0 there within its rounding error


class Table(NamedTuple):
    """Vertices of the pieces of one cell, a row each."""

    numbers: np.ndarray  # (rows,) int: as in `Made.vertices`
    points: np.ndarray  # (rows, n)
    values: np.ndarray  # (rows, open units)


# ---- Polygons.


@_jit
def split_polygons(start, stop, starts, vertices, hyperplanes, layer, first_unit, most):
    """Cut the polygons ``start, ..., stop - 1``.

    Parameters
    ----------
    start, stop : int
    starts, vertices, hyperplanes : ndarray of int, shapes (R + 1,), (C,), (C,)
        Of all polygons.
    layer : Layer
    first_unit : int
        The number, as a hyperplane, of the layer's first unit.
    most : int
        Stop when there are more pieces.

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
    # Stacks: (row, hyperplane) of the pieces that wait, and the units that are open on them.
    ring, opened = np.empty((64, 2), np.int64), np.empty(2 * n_units + 1, np.int64)
    walk = np.empty((16, 2), np.int64)
    # Of each piece: its runs of `ring` and `opened`, and the rows of the table that are in use.
    tasks = np.empty((n_units + 2, 5), np.int64)
    active, units = np.empty(words, np.uint64), np.empty(n_units, np.int64)
    # Pieces that wait; cells, vertices and cuts that were made.
    state = np.zeros(4, np.int64)
    for cell in range(start, stop):
        if state[1] > most:
            break
        begin, m = starts[cell], starts[cell + 1] - starts[cell]
        n_open = _open_units(layer, cell, active, units)
        ring, table = _room(ring, m), _room_for_rows(table, m)
        for i in range(m):
            ring[i, 0], ring[i, 1] = i, hyperplanes[begin + i]
        _load(table, layer, vertices, begin, m, cell, n_open)
        for j in range(n_open):
            opened[j] = j
        _push(tasks, 0, 0, m, 0, n_open, m)
        state[0] = 1
        while not _cut_polygons(
            cell, table, ring, opened, walk, tasks, active, units, layer.errors, first_unit, most,
            made, state,
        ):  # fmt: skip
            waiting, n_cells, n_vertices, n_cuts = state
            first, last, low, high, used = tasks[waiting - 1]
            n = last - first
            ring, walk = _room(ring, first + 4 * n), _room(walk, 2 * n)
            table, opened = _room_for_rows(table, used + n), _room(opened, 2 * high - low)
            made = _room_for_cells(made, n_cells + 1, n_vertices + n)
            made = _room_for_cuts(made, n_cuts + n)
    _, n_cells, n_vertices, n_cuts = state
    return (
        made.vertices[:n_vertices],
        made.hyperplanes[:n_vertices],
        np.empty((n_vertices, 0), np.uint64),
        made.sizes[:n_cells],
        made.parents[:n_cells],
        made.active[:n_cells],
        made.cuts[:n_cuts],
        made.points[:n_cuts],
        made.doubtful[:n_cuts],
    )


@_jit
def _cut_polygons(
    cell, table, ring, opened, walk, tasks, active, units, errors, first_unit, most, made, state
):
    """Cut the pieces of a cell that wait, until there are none, or there is no room for the next.

    Returns whether all is done.  No array is replaced here: the loop is several times as quick.
    """
    values, numbers = table.values, table.numbers
    waiting, n_cells, n_vertices, n_cuts = state[0], state[1], state[2], state[3]
    done = True
    while waiting > 0 and n_cells <= most:
        first, last = tasks[waiting - 1, 0], tasks[waiting - 1, 1]
        low, high, used = tasks[waiting - 1, 2], tasks[waiting - 1, 3], tasks[waiting - 1, 4]
        n = last - first
        # At most all edges are crossed, then there are as many new vertices as old ones.
        if (
            first + 4 * n > len(ring)
            or 2 * n > len(walk)
            or used + n > len(numbers)
            or 2 * high - low > len(opened)
            or n_cells >= len(made.sizes)
            or n_vertices + n > len(made.vertices)
            or n_cuts + n > len(made.cuts)
        ):
            done = False
            break
        waiting -= 1
        high = _settle(values, ring[:, 0], first, last, units, active, opened, low, high)
        if low == high:
            for i in range(n):
                made.vertices[n_vertices + i] = numbers[ring[first + i, 0]]
                made.hyperplanes[n_vertices + i] = ring[first + i, 1]
            made.sizes[n_cells, 0], made.sizes[n_cells, 1] = n, n
            made.parents[n_cells] = cell
            for word in range(len(active)):
                made.active[n_cells, word] = active[word]
            n_cells, n_vertices = n_cells + 1, n_vertices + n
            continue
        n, used, n_cuts = _with_crossings(
            table, ring, first, last, units, opened, low, high, errors, used, walk, made, n_cuts
        )
        # Both sides take the place of the piece; the positive one comes first, so on top.
        unit, hyperplane = opened[low], first_unit + units[opened[low]]
        middle = _side(values, walk, n, unit, -1, hyperplane, ring, first)
        last = _side(values, walk, n, unit, 1, hyperplane, ring, middle)
        top = 2 * high - low
        for k in range(low, high):
            opened[k + high - low] = opened[k]
        _push(tasks, waiting, first, middle, low, high, used)
        _push(tasks, waiting + 1, middle, last, high, top, used)
        waiting += 2
    state[0], state[1], state[2], state[3] = waiting, n_cells, n_vertices, n_cuts
    return done


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
def _load(table, layer, vertices, begin, m, cell, n_open):
    """Write a cell's vertices into the table, with the values of its open units."""
    points, values, place = table.points, table.values, layer.value_starts[cell]
    for i in range(m):
        vertex = vertices[begin + i]
        table.numbers[i] = vertex
        for axis in range(points.shape[1]):
            points[i, axis] = layer.points[vertex, axis]
        for j in range(n_open):
            values[i, j] = layer.values[place + i * n_open + j]


@_jit
def _settle(values, rows, first, last, units, active, opened, begin, end):
    """Drop the units that have one sign on a piece from ``opened[begin:end]``; the new end."""
    kept = begin
    for k in range(begin, end):
        j = opened[k]
        above = below = False
        for i in range(first, last):
            value = values[rows[i], j]
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
    """Write a piece's (row, hyperplane) to `walk`, with a new vertex wherever an edge is crossed.

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
    """Write down that a unit has cut the edge between rows a and b in the vertex of a row."""
    cuts, numbers = made.cuts, table.numbers
    cuts[n_cuts, 0], cuts[n_cuts, 1], cuts[n_cuts, 2] = numbers[a], numbers[b], unit
    for axis in range(table.points.shape[1]):
        made.points[n_cuts, axis] = table.points[row, axis]
    numbers[row] = -1 - n_cuts


@_jit
def _interpolate(table, units, opened, low, high, errors, a, b, new):
    """Make the vertex between rows a and b where the first open unit is 0, in row `new`.

    Returns whether another one is 0 there within its rounding error, and that of the place.
    """
    points, values = table.points, table.values
    unit, doubtful = opened[low], False
    t = values[a, unit] / (values[a, unit] - values[b, unit])
    slip = errors[units[unit]] / abs(values[a, unit] - values[b, unit])
    for axis in range(points.shape[1]):
        points[new, axis] = points[a, axis] + t * (points[b, axis] - points[a, axis])
    for k in range(low, high):
        j = opened[k]
        step, error = values[b, j] - values[a, j], errors[units[j]]
        value = values[a, j] + t * step
        values[new, j] = value if abs(value) > error else 0.0
        decided = abs(value) > error + slip * abs(step)
        doubtful |= not decided and j != unit and error > 0
    values[new, unit] = 0
    return doubtful


@_jit
def _side(values, walk, n, unit, sign, hyperplane, ring, end):
    """Append to ``ring[:end]`` the walk ``walk[:n]`` on one side of a unit's line; the new end."""
    for i in range(n):
        if values[walk[i, 0], unit] * sign >= 0:
            after = walk[i + 1 if i + 1 < n else 0, 0]
            # The edge that closes the piece lies on the line.
            leaves = values[after, unit] * sign < 0
            ring[end, 0], ring[end, 1] = walk[i, 0], hyperplane if leaves else walk[i, 1]
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
def _room_for_cells(made, n_cells, n_vertices):
    return Made(
        _room(made.vertices, n_vertices),
        _room(made.hyperplanes, n_vertices),
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
        made.vertices,
        made.hyperplanes,
        made.touches,
        made.sizes,
        made.parents,
        made.active,
        _room(made.cuts, n_cuts),
        _room(made.points, n_cuts),
        _room(made.doubtful, n_cuts),
    )


# ---- Polytopes.

FACETS = 64
"""The most facets that a piece can have here: bits of a word."""

PAIRS = 16
"""More pairs of vertices, for each dimension, are not tried one by one."""


DONE, NO_ROOM, NO_BITS = 0, 1, 2
"""How the cutting of a cell ends."""


class Pieces(NamedTuple):
    """Pieces that wait: their vertices, each with the facets that it touches, and their hyperplanes."""

    rows: np.ndarray  # (entries,) int: a row of the table each
    touches: np.ndarray  # (entries,) uint64
    hyperplanes: np.ndarray  # (pieces, FACETS) int: of the facet of each bit
    live: np.ndarray  # (pieces,) uint64: the bits that are facets of the piece


@_jit
def split_polytopes(
    start, stop, starts, vertices, touches, facet_starts, hyperplanes, layer, first_unit, most
):
    """Cut the polytopes ``start, ..., stop - 1``.

    Parameters
    ----------
    start, stop : int
    starts, vertices : ndarray of int, shapes (R + 1,), (C,)
    touches : ndarray of uint64, shape (C, 1)
    facet_starts, hyperplanes : ndarray of int, shapes (R + 1,), (F,)
        Of all polytopes.
    layer : Layer
    first_unit : int
        The number, as a hyperplane, of the layer's first unit.
    most : int
        Stop when there are more pieces.

    Returns
    -------
    fits : bool
        False if a piece has more facets than there are bits; then the rest is void.
    *made
        The fields of `Made`.
    """
    n, n_units, unit_words = layer.points.shape[1], len(layer.errors), layer.active.shape[1]
    made = Made(
        np.empty(64, np.int64),
        np.empty(64, np.int64),
        np.empty((64, 1), np.uint64),
        np.empty((16, 2), np.int64),
        np.empty(16, np.int64),
        np.empty((16, unit_words), np.uint64),
        np.empty((16, 3), np.int64),
        np.empty((16, n), np.float64),
        np.empty(16, np.bool_),
    )
    table = Table(np.empty(16, np.int64), np.empty((16, n)), np.empty((16, n_units)))
    stack, piece = _no_pieces(n_units + 2), _no_pieces(1)
    opened, units = np.empty(2 * n_units + 1, np.int64), np.empty(n_units, np.int64)
    # Of each piece: its runs of the stack and `opened`, rows of the table in use, simple or not.
    tasks = np.empty((n_units + 2, 6), np.int64)
    signs, edges = np.empty(64, np.int64), np.empty((64, 2), np.int64)
    slots = np.empty((64, 2), np.uint64)
    active = np.empty(unit_words, np.uint64)
    # Pieces that wait; cells, vertices, hyperplanes and cuts that were made; edges that need room.
    state = np.zeros(6, np.int64)
    fits = True
    for cell in range(start, stop):
        if state[1] > most or not fits:
            break
        begin, m = starts[cell], starts[cell + 1] - starts[cell]
        n_open = _open_units(layer, cell, active, units)
        table, stack = _room_for_rows(table, m), _room_for_entries(stack, m)
        _load(table, layer, vertices, begin, m, cell, n_open)
        simple = 1
        for i in range(m):
            stack.rows[i], stack.touches[i] = i, touches[begin + i, 0]
            simple &= _count(stack.touches[i]) == n
        stack.live[0] = np.uint64(0)
        for f in range(facet_starts[cell + 1] - facet_starts[cell]):
            stack.hyperplanes[0, f] = hyperplanes[facet_starts[cell] + f]
            stack.live[0] |= np.uint64(1) << np.uint64(f)
        for j in range(n_open):
            opened[j] = j
        _push(tasks, 0, 0, m, 0, n_open, m)
        tasks[0, 5] = simple
        state[0] = 1
        while True:
            outcome = _cut_polytopes(
                cell, table, stack, piece, opened, signs, edges, slots, tasks, active, units,
                layer.errors, first_unit, most, made, state,
            )  # fmt: skip
            if outcome != NO_ROOM:
                fits = outcome == DONE
                break
            waiting, n_cells, n_vertices, n_hyperplanes, n_cuts, need = state
            first, last, low, high, used, simple = tasks[waiting - 1]
            size = last - first
            signs, opened = _room(signs, size), _room(opened, 2 * high - low)
            edges, slots = _room(edges, need), _room(slots, _power_of_two(4 * n * size))
            piece = _room_for_entries(piece, size + need)
            stack = _room_for_entries(stack, first + 2 * (size + need))
            table = _room_for_rows(table, used + need)
            made = _room_for_made(made, n_cells + 1, n_vertices + size, n_hyperplanes + FACETS)
            made = _room_for_cuts(made, n_cuts + need)
    _, n_cells, n_vertices, n_hyperplanes, n_cuts, _ = state
    return (
        fits,
        made.vertices[:n_vertices],
        made.hyperplanes[:n_hyperplanes],
        made.touches[:n_vertices],
        made.sizes[:n_cells],
        made.parents[:n_cells],
        made.active[:n_cells],
        made.cuts[:n_cuts],
        made.points[:n_cuts],
        made.doubtful[:n_cuts],
    )


@_jit
def _cut_polytopes(
    cell, table, stack, piece, opened, signs, edges, slots, tasks, active, units, errors,
    first_unit, most, made, state,
):  # fmt: skip
    """As `_cut_polygons`; it also ends at a piece with more facets than there are bits."""
    values, n = table.values, table.points.shape[1]
    waiting, n_cells, n_vertices = state[0], state[1], state[2]
    n_hyperplanes, n_cuts, need = state[3], state[4], state[5]
    outcome = DONE
    while waiting > 0 and n_cells <= most:
        depth = waiting - 1
        first, last = tasks[depth, 0], tasks[depth, 1]
        low, high, used = tasks[depth, 2], tasks[depth, 3], tasks[depth, 4]
        simple, size = tasks[depth, 5], last - first
        if (
            size > len(signs)
            or size > len(piece.rows)
            or 2 * high - low > len(opened)
            or n_cells >= len(made.sizes)
            or n_vertices + size > len(made.vertices)
            or n_hyperplanes + FACETS > len(made.hyperplanes)
            or 4 * n * size > len(slots)
        ):
            outcome = NO_ROOM
            break
        high = _settle(values, stack.rows, first, last, units, active, opened, low, high)
        if low == high:
            n_facets = _finish(made, n_vertices, n_hyperplanes, table, stack, first, last, depth)
            made.sizes[n_cells, 0], made.sizes[n_cells, 1] = size, n_facets
            made.parents[n_cells] = cell
            for word in range(len(active)):
                made.active[n_cells, word] = active[word]
            n_cells, n_vertices = n_cells + 1, n_vertices + size
            n_hyperplanes, waiting = n_hyperplanes + n_facets, depth
            continue
        bit = _bits(stack.live[depth])
        if bit == FACETS:
            outcome = NO_BITS
            break
        _copy_piece(piece, stack, first, size, depth, bit)
        n_above, n_below = _signs(values, piece.rows, size, opened[low], signs)
        by_name = simple and n_above * n_below > PAIRS * n
        need = n * n_above if by_name else n_above * n_below
        if (
            need > len(edges)
            or used + need > len(table.numbers)
            or n_cuts + need > len(made.cuts)
            or size + need > len(piece.rows)
            or first + 2 * (size + need) > len(stack.rows)
        ):
            outcome = NO_ROOM
            break
        if by_name:
            n_edges = _edges_by_name(piece.touches, signs, size, n * n_below, edges, slots)
        else:
            n_edges = _edges(piece.touches, signs, size, n, simple, edges)
        for e in range(n_edges):
            i, j = edges[e, 0], edges[e, 1]
            a, b, row = piece.rows[i], piece.rows[j], used + e
            made.doubtful[n_cuts] = _interpolate(table, units, opened, low, high, errors, a, b, row)
            _record(made, n_cuts, table, a, b, units[opened[low]], row)
            n_cuts += 1
            piece.rows[size + e] = row
            piece.touches[size + e] = piece.touches[i] & piece.touches[j]
        # Both sides take the place of the piece; the positive one comes first, so on top.
        hyperplane = first_unit + units[opened[low]]
        middle = _part(piece, signs, size, n_edges, -1, bit, hyperplane, stack, first, depth)
        last = _part(piece, signs, size, n_edges, 1, bit, hyperplane, stack, middle, depth + 1)
        top = 2 * high - low
        for k in range(low, high):
            opened[k + high - low] = opened[k]
        used += n_edges
        _push(tasks, depth, first, middle, low, high, used)
        _push(tasks, depth + 1, middle, last, high, top, used)
        tasks[depth, 5] = tasks[depth + 1, 5] = simple & (n_above + n_below == size)
        waiting = depth + 2
    state[0], state[1], state[2] = waiting, n_cells, n_vertices
    state[3], state[4], state[5] = n_hyperplanes, n_cuts, need
    return outcome


@_jit
def _no_pieces(pieces):
    return Pieces(
        np.empty(64, np.int64),
        np.empty(64, np.uint64),
        np.empty((pieces, FACETS), np.int64),
        np.empty(pieces, np.uint64),
    )


@_jit
def _count(word):
    """How many bits are set."""
    count = 0
    while word:
        word &= word - np.uint64(1)
        count += 1
    return count


@_jit
def _bits(word):
    """How many bits there are up to the highest one that is set."""
    count = 0
    while word:
        word >>= np.uint64(1)
        count += 1
    return count


@_jit
def _copy_piece(piece, stack, first, size, depth, bits):
    """Take a piece off the stack."""
    for i in range(size):
        piece.rows[i], piece.touches[i] = stack.rows[first + i], stack.touches[first + i]
    for bit in range(bits):
        piece.hyperplanes[0, bit] = stack.hyperplanes[depth, bit]


@_jit
def _signs(values, rows, size, unit, signs):
    """Signs of a unit at the vertices of a piece; how many are positive and how many negative."""
    n_above = n_below = 0
    for i in range(size):
        value = values[rows[i], unit]
        signs[i] = (value > 0) - (value < 0)
        n_above += value > 0
        n_below += value < 0
    return n_above, n_below


@_jit
def _edges(touches, signs, size, n, simple, edges):
    """List the edges from a positive to a negative vertex; how many."""
    count = 0
    for i in range(size):
        if signs[i] <= 0:
            continue
        mine = touches[i]
        for j in range(size):
            if signs[j] >= 0:
                continue
            common = rest = mine & touches[j]
            for _ in range(n - 2):
                rest &= rest - np.uint64(1)
            # n - 1 bits are set if one is left; on a line any two vertices are an edge.
            if (rest != 0 or n == 1) and (simple or _is_edge(touches, size, common)):
                edges[count, 0], edges[count, 1] = i, j
                count += 1
    return count


@_jit
def _edges_by_name(touches, signs, size, n_names, edges, slots):
    """As `_edges`, in a simple piece: an edge is named by the facets that both ends touch.

    They are all facets of a vertex but one.  The names of edges at negative vertices go into a hash
    table (name, vertex) with linear probing, where the positive vertices look for theirs.
    """
    used = _power_of_two(2 * n_names)
    mask, count = np.uint64(used - 1), 0
    for slot in range(used):
        slots[slot, 0] = np.uint64(0)
    for j in range(size):
        if signs[j] < 0:
            rest = touches[j]
            while rest:
                name = touches[j] & ~(rest & (~rest + np.uint64(1)))
                slot = _slot(slots, mask, name)
                slots[slot, 0] = name
                slots[slot, 1] = np.uint64(j)
                rest &= rest - np.uint64(1)
    for i in range(size):
        if signs[i] > 0:
            first, rest = count, touches[i]
            while rest:
                name = touches[i] & ~(rest & (~rest + np.uint64(1)))
                slot = _slot(slots, mask, name)
                rest &= rest - np.uint64(1)
                if slots[slot, 0] == name:
                    place, j = count, int(slots[slot, 1])
                    while place > first and edges[place - 1, 1] > j:
                        edges[place, 1] = edges[place - 1, 1]
                        place -= 1
                    edges[count, 0], edges[place, 1] = i, j
                    count += 1
    return count


@_jit
def _slot(slots, mask, name):
    """The slot of a name: where it is, or where it can be put."""
    bits = name * np.uint64(0x9E3779B97F4A7C15)
    slot = (bits ^ (bits >> np.uint64(32))) & mask
    while slots[slot, 0] != np.uint64(0) and slots[slot, 0] != name:
        slot = (slot + np.uint64(1)) & mask
    return slot


@_jit
def _power_of_two(least):
    """The smallest power of 2 that is not less."""
    size = 64
    while size < least:
        size *= 2
    return size


@_jit
def _is_edge(touches, size, common):
    """Whether just two vertices touch all of the common facets."""
    found = 0
    for k in range(size):
        found += common & ~touches[k] == 0
    return found == 2


@_jit
def _part(piece, signs, size, n_edges, sign, bit, hyperplane, stack, end, depth):
    """Put one side of a piece on the stack, from entry `end` on; the new end.

    A facet stays if one of its vertices is really on that side; the cut is the facet `bit`.
    """
    cut = np.uint64(1) << np.uint64(bit)
    live = cut
    for i in range(size):
        if signs[i] == sign:
            live |= piece.touches[i]
    stack.live[depth] = live
    for other in range(bit):
        stack.hyperplanes[depth, other] = piece.hyperplanes[0, other]
    stack.hyperplanes[depth, bit] = hyperplane
    for i in range(size):
        if signs[i] != -sign:
            here = piece.touches[i] if signs[i] != 0 else piece.touches[i] | cut
            stack.rows[end], stack.touches[end] = piece.rows[i], here & live
            end += 1
    for i in range(size, size + n_edges):
        stack.rows[end], stack.touches[end] = piece.rows[i], (piece.touches[i] | cut) & live
        end += 1
    return end


@_jit
def _finish(made, n_vertices, n_hyperplanes, table, stack, first, last, depth):
    """Write a piece that nothing cuts any more; how many facets it has.

    The bits of facets that it has lost are closed up.  Cuts come in the order of their units, so
    hyperplanes rise from bit to bit.
    """
    live, facet = stack.live[depth], 0
    bits = _bits(live)
    holes, n_holes = np.empty(FACETS, np.uint64), 0
    for bit in range(bits):
        if (live >> np.uint64(bit)) & np.uint64(1):
            made.hyperplanes[n_hyperplanes + facet] = stack.hyperplanes[depth, bit]
            facet += 1
        else:
            holes[n_holes] = (np.uint64(1) << np.uint64(bit)) - np.uint64(1)
            n_holes += 1
    for i in range(last - first):
        made.vertices[n_vertices + i] = table.numbers[stack.rows[first + i]]
        touches = stack.touches[first + i]
        for k in range(n_holes - 1, -1, -1):
            touches = (touches & holes[k]) | ((touches >> np.uint64(1)) & ~holes[k])
        made.touches[n_vertices + i, 0] = touches
    return facet


@_jit
def _room_for_entries(pieces, n):
    return Pieces(_room(pieces.rows, n), _room(pieces.touches, n), pieces.hyperplanes, pieces.live)


@_jit
def _room_for_made(made, n_cells, n_vertices, n_hyperplanes):
    return Made(
        _room(made.vertices, n_vertices),
        _room(made.hyperplanes, n_hyperplanes),
        _room(made.touches, n_vertices),
        _room(made.sizes, n_cells),
        _room(made.parents, n_cells),
        _room(made.active, n_cells),
        made.cuts,
        made.points,
        made.doubtful,
    )
