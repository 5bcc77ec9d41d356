"""Polytopes cut by a layer's units, compiled: the twin of `refmmr.reference.cells.Polytope.split`.

Which facets of its piece a vertex touches is kept as the bits of a word.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.edges import SOURCE, find_edges, most_edges, most_slots
from refmmr.backends._numba.jit import strict_jit
from refmmr.backends._numba.pieces import (
    FACETS,
    FIRST,
    HIGH,
    LAST,
    LOW,
    NEW,
    PIECES,
    ROWS,
    SIMPLE,
    VERTICES,
    Table,
    close_piece,
    cut_edge,
    empty_pieces,
    empty_table,
    fits,
    grown,
    inner,
    lengths,
    load,
    longer,
    longer_table,
    push_parts,
    set_task,
    settle,
    trimmed,
)

MAX_FACETS = 64
"""Most facets of a piece: the bits of a word."""

TOO_MANY_FACETS = -1
"""Returned instead of the number of waiting pieces."""


class Run(NamedTuple):
    """Vertices of polytopes."""

    rows: np.ndarray  # (entries,) int: a row of the table each
    touches: np.ndarray  # (entries,) uint64: bit j says that the vertex lies on facet j


class Work(NamedTuple):
    """Memory for the pieces of one cell."""

    tasks: np.ndarray  # (depth, 6) int: the stack of waiting pieces
    stack: Run  # the stack of their vertices
    labels: np.ndarray  # (depth, MAX_FACETS) int: labels of their facets
    facets: np.ndarray  # (depth,) uint64: the bits that are facets of the piece
    crossing: np.ndarray  # (entries,) int: the stack of their crossing units, as in `settle`
    piece: Run  # the piece that is cut, with its new vertices
    signs: np.ndarray  # (m,) int: signs of the unit that cuts, at the old vertices
    edges: np.ndarray  # (e, 2) int: the edges that are cut, positive end first
    slots: np.ndarray  # (a power of 2, 2) uint64: the hash table of `find_edges`
    table: Table
    active: np.ndarray  # (words,) uint64: the active units of the piece that was settled last


class Room(NamedTuple):
    """Lengths of the arrays of `Work` and `Pieces`."""

    stack: int
    crossing: int
    piece: int
    signs: int
    edges: int
    slots: int
    rows: int
    pieces: tuple[int, int, int, int]


@strict_jit
def split_polytopes(start, stop, cells, layer, first_unit, max_pieces, source=SOURCE):
    """Cut the polytopes ``start, ..., stop - 1``.

    Parameters
    ----------
    start, stop : int
    cells : Cells
        With one word of facets for each vertex.
    layer : Layer
    first_unit : int
        The label of the hyperplane of the layer's first unit.
    max_pieces : int
        Stop when there are more pieces.
    source : int
        See `pieces`.

    Returns
    -------
    fits : bool
        False if a piece has more than `MAX_FACETS` facets; then the pieces are not complete.
    Pieces
    """
    n, n_units, unit_words = layer.points.shape[1], len(layer.errors), layer.active.shape[1]
    pieces, used = empty_pieces(n, unit_words, 1), np.zeros(5, np.int64)
    touches, hyperplanes = cells.touches, cells.hyperplanes
    work = Work(
        np.empty((n_units + 2, 6), np.int64),
        _empty_run(),
        np.empty((n_units + 2, MAX_FACETS), np.int64),
        np.empty(n_units + 2, np.uint64),
        np.empty(2 * n_units + 1, np.int64),
        _empty_run(),
        np.empty(64, np.int64),
        np.empty((64, 2), np.int64),
        np.empty((64, 2), np.uint64),
        empty_table(n, n_units),
        np.empty(unit_words, np.uint64),
    )
    room = _room(work, pieces)
    for cell in range(start, stop):
        begin, m = cells.starts[cell], cells.starts[cell + 1] - cells.starts[cell]
        units = layer.units[layer.unit_starts[cell] : layer.unit_starts[cell + 1]]
        simple = 1
        for i in range(m):
            simple &= _count(touches[begin + i, 0]) == n
        set_task(work.tasks, 0, 0, m, 0, len(units), m, simple)
        if not _fits(room, work.tasks, 1, n, used):
            work, pieces = _grown(work, pieces, used, 1)
            room = _room(work, pieces)
        load(work.table, cells, layer, cell)
        stack, crossing, labels = work.stack, work.crossing, work.labels
        rows, stack_touches = stack.rows, stack.touches
        for i in range(m):
            rows[i], stack_touches[i] = i, touches[begin + i, 0]
        facets, begin = np.uint64(0), cells.facet_starts[cell]
        for facet in range(cells.facet_starts[cell + 1] - begin):
            labels[0, facet] = hyperplanes[begin + facet]
            facets |= np.uint64(1) << np.uint64(facet)
        work.facets[0] = facets
        for j in range(len(units)):
            crossing[j] = j
        work.active[:] = layer.active[cell]
        waiting = 1
        while True:
            waiting = _cut_waiting(
                cell, layer.errors, units, work, pieces, room, used, waiting, first_unit, max_pieces
            )
            if waiting <= 0 or used[PIECES] > max_pieces:
                break
            work, pieces = _grown(work, pieces, used, waiting)
            room = _room(work, pieces)
        if waiting == TOO_MANY_FACETS:
            return False, trimmed(pieces, used)
        if used[PIECES] > max_pieces:
            break
    return True, trimmed(pieces, used)


@inner
def _empty_run():
    """Room for some vertices."""
    return Run(np.empty(64, np.int64), np.empty(64, np.uint64))


@inner
def _longer_run(run, n):
    """The run with n entries at least."""
    return Run(longer(run.rows, n), longer(run.touches, n))


@inner
def _room(work, pieces):
    """The lengths of all arrays."""
    stack, piece, table = work.stack, work.piece, work.table
    return Room(
        len(stack.rows),
        len(work.crossing),
        len(piece.rows),
        len(work.signs),
        len(work.edges),
        len(work.slots),
        len(table.numbers),
        lengths(pieces),
    )


@inner
def _fits(room, tasks, waiting, n, used):
    """Whether there is room to cut the next piece, with ``used[NEW]`` new vertices."""
    depth, new = waiting - 1, used[NEW]
    m = tasks[depth, LAST] - tasks[depth, FIRST]
    return (
        tasks[depth, FIRST] + 2 * (m + new) <= room.stack
        and 2 * tasks[depth, HIGH] - tasks[depth, LOW] <= room.crossing
        and m + new <= room.piece
        and m <= room.signs
        and most_edges(m, n, tasks[depth, SIMPLE]) <= room.edges
        and most_slots(m, n) <= room.slots
        and tasks[depth, ROWS] + new <= room.rows
        and fits(room.pieces, used, m, MAX_FACETS, new)
    )


@inner
def _grown(work, pieces, used, waiting):
    """The same memory with room for what `_fits` asks for."""
    task, n = work.tasks[waiting - 1], work.table.points.shape[1]
    m, new = task[LAST] - task[FIRST], used[NEW]
    larger = Work(
        work.tasks,
        _longer_run(work.stack, task[FIRST] + 2 * (m + new)),
        work.labels,
        work.facets,
        longer(work.crossing, 2 * task[HIGH] - task[LOW]),
        _longer_run(work.piece, m + new),
        longer(work.signs, m),
        longer(work.edges, most_edges(m, n, task[SIMPLE])),
        longer(work.slots, most_slots(m, n)),
        longer_table(work.table, task[ROWS] + new),
        work.active,
    )
    return larger, grown(pieces, used, m, MAX_FACETS, new)


@inner
def _cut_waiting(cell, errors, units, work, pieces, room, used, waiting, first_unit, max_pieces):
    """Cut the waiting pieces of a cell until there are none, or there is no room for the next.

    Returns how many are waiting, or `TOO_MANY_FACETS`.  No array is replaced in this loop, which
    makes it several times as fast.
    """
    tasks, stack, labels, facets, crossing_stack, piece, signs, edges, slots, table, active = work
    (stack_rows, stack_touches), (piece_rows, piece_touches) = stack, piece
    values, n = table.values, table.points.shape[1]
    while waiting > 0 and used[PIECES] <= max_pieces and _fits(room, tasks, waiting, n, used):
        depth = waiting - 1
        first, m = tasks[depth, FIRST], tasks[depth, LAST] - tasks[depth, FIRST]
        low, row, simple = tasks[depth, LOW], tasks[depth, ROWS], tasks[depth, SIMPLE]
        high = settle(
            values, stack_rows[first : first + m], units, crossing_stack, low, tasks[depth, HIGH],
            active,
        )  # fmt: skip
        tasks[depth, HIGH] = high
        if low == high:
            n_facets = _write_piece(
                pieces, used, table, stack, first, first + m, labels[depth], facets[depth]
            )
            close_piece(pieces, used, cell, active, m, n_facets)
            waiting = depth
            continue
        bit = _length(facets[depth])
        if bit == MAX_FACETS:
            return TOO_MANY_FACETS
        crossing = crossing_stack[low:high]
        for i in range(m):
            piece_rows[i], piece_touches[i] = stack_rows[first + i], stack_touches[first + i]
        n_positive, n_negative = _signs(values, piece_rows, m, crossing[0], signs)
        new = find_edges(
            piece_touches, signs, m, n, simple, n_positive, n_negative, edges, slots
        )  # fmt: skip
        used[NEW] = new
        if not _fits(room, tasks, waiting, n, used):
            break
        used[NEW] = 0
        for e in range(new):
            i, j = edges[e, 0], edges[e, 1]
            a, b = piece_rows[i], piece_rows[j]
            cut_edge(table, errors, units, crossing, a, b, row + e, pieces, used)
            piece_rows[m + e] = row + e
            piece_touches[m + e] = piece_touches[i] & piece_touches[j]
        for other in range(bit):
            labels[depth + 1, other] = labels[depth, other]
        labels[depth, bit] = labels[depth + 1, bit] = first_unit + units[crossing[0]]
        middle, facets[depth] = _append_part(piece, signs, m, new, -1, bit, stack, first)
        last, facets[depth + 1] = _append_part(piece, signs, m, new, 1, bit, stack, middle)
        # Where the unit is 0 at an old vertex, this touches one facet more.
        simple &= n_positive + n_negative == m
        push_parts(tasks, crossing_stack, depth, first, middle, last, row + new, simple)
        waiting = depth + 2
    return waiting


@inner
def _count(word):
    """How many bits are set."""
    count = 0
    while word:
        word &= word - np.uint64(1)
        count += 1
    return count


@inner
def _length(word):
    """How many bits there are up to the highest one that is set."""
    length = 0
    while word:
        word >>= np.uint64(1)
        length += 1
    return length


@inner
def _signs(values, rows, m, unit, signs):
    """Write the signs of a unit at m vertices; how many are positive and how many negative."""
    n_positive = n_negative = 0
    for i in range(m):
        value = values[rows[i], unit]
        signs[i] = (value > 0) - (value < 0)
        n_positive += value > 0
        n_negative += value < 0
    return n_positive, n_negative


@inner
def _append_part(piece, signs, m, new, sign, bit, stack, end):
    """Append the vertices of the piece where the unit has a sign, or is 0, to ``stack[:end]``.

    The cut is the facet `bit`; another facet remains if it has an old vertex of that sign.  Returns
    the new end, and the bits that are facets.
    """
    (rows, touches), (piece_rows, piece_touches) = stack, piece
    cut = np.uint64(1) << np.uint64(bit)
    facets = cut
    for i in range(m):
        if signs[i] == sign:
            facets |= piece_touches[i]
    for i in range(m):
        if signs[i] != -sign:
            here = piece_touches[i] if signs[i] != 0 else piece_touches[i] | cut
            rows[end], touches[end] = piece_rows[i], here & facets
            end += 1
    for i in range(m, m + new):
        rows[end], touches[end] = piece_rows[i], (piece_touches[i] | cut) & facets
        end += 1
    return end, facets


@inner
def _write_piece(pieces, used, table, stack, first, last, labels, facets):
    """Write a piece that no unit crosses; how many facets it has.

    Bits of facets that it has lost are removed.  Cuts come in the order of the units, so labels
    rise from bit to bit.

    Parameters
    ----------
    pieces, used, table, stack
    first, last : int
        The run of its vertices in the stack.
    labels : ndarray of int, shape (MAX_FACETS,)
    facets : uint64
        The bits that are facets.
    """
    (rows, stack_touches), numbers = stack, table.numbers
    vertices, touches, hyperplanes = pieces.vertices, pieces.touches, pieces.hyperplanes
    holes, n_holes, n_facets = np.empty(MAX_FACETS, np.uint64), 0, 0
    for bit in range(_length(facets)):
        if (facets >> np.uint64(bit)) & np.uint64(1):
            hyperplanes[used[FACETS] + n_facets] = labels[bit]
            n_facets += 1
        else:
            holes[n_holes] = (np.uint64(1) << np.uint64(bit)) - np.uint64(1)
            n_holes += 1
    for i in range(last - first):
        vertices[used[VERTICES] + i] = numbers[rows[first + i]]
        word = stack_touches[first + i]
        for k in range(n_holes - 1, -1, -1):
            word = (word & holes[k]) | ((word >> np.uint64(1)) & ~holes[k])
        touches[used[VERTICES] + i, 0] = word
    return n_facets
