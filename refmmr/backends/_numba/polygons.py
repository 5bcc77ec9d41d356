"""Polygons cut by a layer's units, compiled: the twin of `refmmr.reference.cells.Polygon.split`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import strict_jit
from refmmr.backends._numba.pieces import (
    FACETS,
    FIRST,
    HIGH,
    LAST,
    LOW,
    PIECES,
    ROWS,
    SOURCE,
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


class Ring(NamedTuple):
    """Vertices of polygons in counter-clockwise order."""

    rows: np.ndarray  # (entries,) int: a row of the table each
    labels: np.ndarray  # (entries,) int: of the edge to the next vertex


class Work(NamedTuple):
    """Memory for the pieces of one cell."""

    tasks: np.ndarray  # (depth, 6) int: the stack of waiting pieces
    ring: Ring  # the stack of their vertices
    crossing: np.ndarray  # (entries,) int: the stack of their crossing units, as in `settle`
    walk: Ring  # the piece that is cut, with its new vertices
    table: Table
    active: np.ndarray  # (words,) uint64: the active units of the piece that was settled last


class Room(NamedTuple):
    """Lengths of the arrays of `Work` and `Pieces`."""

    ring: int
    crossing: int
    walk: int
    rows: int
    pieces: tuple[int, int, int, int]


@strict_jit
def split_polygons(start, stop, cells, layer, first_unit, max_pieces, source=SOURCE):
    """Cut the polygons ``start, ..., stop - 1``.

    Parameters
    ----------
    start, stop : int
    cells : Cells
    layer : Layer
    first_unit : int
        The label of the hyperplane of the layer's first unit.
    max_pieces : int
        Stop when there are more pieces.
    source : int
        See `pieces`.

    Returns
    -------
    Pieces
    """
    n_units, unit_words = len(layer.errors), layer.active.shape[1]
    pieces, used = empty_pieces(2, unit_words, 0), np.zeros(5, np.int64)
    work = Work(
        np.empty((n_units + 2, 6), np.int64),
        Ring(np.empty(64, np.int64), np.empty(64, np.int64)),
        np.empty(2 * n_units + 1, np.int64),
        Ring(np.empty(16, np.int64), np.empty(16, np.int64)),
        empty_table(2, n_units),
        np.empty(unit_words, np.uint64),
    )
    room = _room(work, pieces)
    for cell in range(start, stop):
        begin, m = cells.starts[cell], cells.starts[cell + 1] - cells.starts[cell]
        units = layer.units[layer.unit_starts[cell] : layer.unit_starts[cell + 1]]
        set_task(work.tasks, 0, 0, m, 0, len(units), m, 1)
        if not _fits(room, work.tasks, 1, used):
            work, pieces = _grown(work, pieces, used, 1)
            room = _room(work, pieces)
        load(work.table, cells, layer, cell)
        (rows, labels), crossing, hyperplanes = work.ring, work.crossing, cells.hyperplanes
        for i in range(m):
            rows[i], labels[i] = i, hyperplanes[begin + i]
        for j in range(len(units)):
            crossing[j] = j
        work.active[:] = layer.active[cell]
        waiting = 1
        while True:
            waiting = _cut_waiting(
                cell, layer.errors, units, work, pieces, room, used, waiting, first_unit, max_pieces
            )
            if waiting == 0 or used[PIECES] > max_pieces:
                break
            work, pieces = _grown(work, pieces, used, waiting)
            room = _room(work, pieces)
        if used[PIECES] > max_pieces:
            break
    return trimmed(pieces, used)


@inner
def _room(work, pieces):
    """The lengths of all arrays."""
    ring, walk, table = work.ring, work.walk, work.table
    return Room(
        len(ring.rows), len(work.crossing), len(walk.rows), len(table.numbers), lengths(pieces)
    )


@inner
def _fits(room, tasks, waiting, used):
    """Whether there is room to cut the next piece of m vertices: at most m edges are cut."""
    depth = waiting - 1
    m = tasks[depth, LAST] - tasks[depth, FIRST]
    return (
        tasks[depth, FIRST] + 4 * m <= room.ring
        and 2 * tasks[depth, HIGH] - tasks[depth, LOW] <= room.crossing
        and 2 * m <= room.walk
        and tasks[depth, ROWS] + m <= room.rows
        and fits(room.pieces, used, m, m, m)
    )


@inner
def _grown(work, pieces, used, waiting):
    """The same memory with room for what `_fits` asks for."""
    task = work.tasks[waiting - 1]
    m = task[LAST] - task[FIRST]
    larger = Work(
        work.tasks,
        Ring(
            longer(work.ring.rows, task[FIRST] + 4 * m),
            longer(work.ring.labels, task[FIRST] + 4 * m),
        ),
        longer(work.crossing, 2 * task[HIGH] - task[LOW]),
        Ring(longer(work.walk.rows, 2 * m), longer(work.walk.labels, 2 * m)),
        longer_table(work.table, task[ROWS] + m),
        work.active,
    )
    return larger, grown(pieces, used, m, m, m)


@inner
def _cut_waiting(cell, errors, units, work, pieces, room, used, waiting, first_unit, max_pieces):
    """Cut the waiting pieces of a cell until there are none, or there is no room for the next.

    Returns how many are waiting.  No array is replaced in this loop, which makes it several times
    as fast.
    """
    tasks, ring, stack, walk, table, active = work
    rows, labels, numbers, values = ring.rows, ring.labels, table.numbers, table.values
    vertices, hyperplanes = pieces.vertices, pieces.hyperplanes
    while waiting > 0 and used[PIECES] <= max_pieces and _fits(room, tasks, waiting, used):
        depth = waiting - 1
        first, last, low = tasks[depth, FIRST], tasks[depth, LAST], tasks[depth, LOW]
        high = settle(values, rows[first:last], units, stack, low, tasks[depth, HIGH], active)
        tasks[depth, HIGH] = high
        if low == high:
            for i in range(last - first):
                vertices[used[VERTICES] + i] = numbers[rows[first + i]]
                hyperplanes[used[FACETS] + i] = labels[first + i]
            close_piece(pieces, used, cell, active, last - first, last - first)
            waiting = depth
            continue
        crossing, row = stack[low:high], tasks[depth, ROWS]
        m = _copy_and_cut(
            ring, first, last, walk, table, errors, units, crossing, row, pieces, used
        )
        unit, label = crossing[0], first_unit + units[crossing[0]]
        middle = _append_part(values, walk, m, unit, -1, label, ring, first)
        end = _append_part(values, walk, m, unit, 1, label, ring, middle)
        push_parts(tasks, stack, depth, first, middle, end, row + m - (last - first), 1)
        waiting = depth + 2
    return waiting


@inner
def _copy_and_cut(ring, first, last, walk, table, errors, units, crossing, row, pieces, used):
    """Copy a piece from the ring to the walk, with a new vertex on every edge that is cut.

    The new vertices are written to the table from `row` on.  Returns the number of vertices.
    """
    rows, labels, walk_rows, walk_labels = ring.rows, ring.labels, walk.rows, walk.labels
    values, m, unit = table.values, 0, crossing[0]
    for i in range(first, last):
        here, there = rows[i], rows[i + 1 if i + 1 < last else first]
        walk_rows[m], walk_labels[m] = here, labels[i]
        m += 1
        f, g = values[here, unit], values[there, unit]
        if f > 0 > g or f < 0 < g:
            # From the positive end, so that both cells at the edge compute the same vertex.
            a, b = (here, there) if f > 0 else (there, here)
            cut_edge(table, errors, units, crossing, a, b, row, pieces, used)
            walk_rows[m], walk_labels[m] = row, labels[i]
            m, row = m + 1, row + 1
    return m


@inner
def _append_part(values, walk, m, unit, sign, label, ring, end):
    """Append the vertices of the walk where a unit has a sign, or is 0, to ``ring[:end]``.

    The edge that closes the part has the label of the unit's hyperplane.  Returns the new end.
    """
    rows, labels, walk_rows, walk_labels = ring.rows, ring.labels, walk.rows, walk.labels
    for i in range(m):
        if values[walk_rows[i], unit] * sign >= 0:
            after = walk_rows[i + 1 if i + 1 < m else 0]
            closes = values[after, unit] * sign < 0
            rows[end], labels[end] = walk_rows[i], label if closes else walk_labels[i]
            end += 1
    return end
