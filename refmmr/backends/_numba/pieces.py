"""What cutting polygons and cutting polytopes have in common: records, and vertices on edges.

The twin of `refmmr.reference.enumeration.split_cell` and of the vertex table that it uses.  Cells
are cut depth first.  The vertices of a cell and of its pieces are rows of a table with the values
of the units that change sign on the cell; a cut adds rows, and no value of an old vertex is
copied.  Arrays that grow have a length in `used`, and are replaced by longer ones between two cuts.

A record of arrays costs time when one is taken out of it, since that counts references: functions
do so once, before their loops, and what is checked before each cut is a tuple of lengths.

The functions here are compiled into those of `polygons` and `polytopes`, which are cached.  Numba
does not see that a file which they call has changed, so they take `SOURCE` as a default argument: a
default value is a part of the argument's type, and a new type is compiled afresh.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

SOURCE = zlib.crc32(Path(__file__).read_bytes())
"""Changes with this file."""

# As `strict_jit`, but compiled into its callers alone, and not cached.
inner = njit(nogil=True, error_model="numpy")

PIECES, VERTICES, FACETS, CUTS, NEW = range(5)
"""Entries of `used`: used lengths of the arrays of `Pieces`, and new vertices of the next cut.
The first four are entries of `lengths` too."""

FIRST, LAST, LOW, HIGH, ROWS, SIMPLE = range(6)
"""Columns of a stack of waiting pieces: the runs of its vertices and of its crossing units in their
stacks, how many rows of the table are in use, and whether each vertex is on just n facets."""


class Cells(NamedTuple):
    """R convex cells, concatenated, as in `refmmr.reference.enumeration.Regions`."""

    starts: np.ndarray  # (R + 1,) int
    vertices: np.ndarray  # (C,) int
    touches: np.ndarray  # (C, words) uint64; no words in the plane
    facet_starts: np.ndarray  # (R + 1,) int
    hyperplanes: np.ndarray  # (F,) int


class Layer(NamedTuple):
    """A layer's units on R cells.  A unit crosses a cell if it changes sign on it."""

    points: np.ndarray  # (V, n), the cells' vertices
    errors: np.ndarray  # (N_k,), of the values
    unit_starts: np.ndarray  # (R + 1,) int
    units: np.ndarray  # int: the crossing units of each cell
    value_starts: np.ndarray  # (R + 1,) int
    values: np.ndarray  # of each cell: (its vertices, its crossing units)
    active: np.ndarray  # (R, words) uint64: bit j says that unit j is positive on the cell


class Pieces(NamedTuple):
    """What a run of cells is cut into.

    Vertices are numbers, those of the layer before or, for a new one, -1 - i with i the cut of an
    edge that made it.  Several cuts may make the same vertex.
    """

    vertices: np.ndarray  # (C,) int
    hyperplanes: np.ndarray  # (F,) int
    touches: np.ndarray  # (C, words) uint64; no words in the plane
    sizes: np.ndarray  # (R, 2) int: vertices and facets of each piece
    parents: np.ndarray  # (R,) int: the cell of each piece
    active: np.ndarray  # (R, words) uint64: bit j says that unit j is active
    cuts: np.ndarray  # (I, 3) int: ends of the edge, where the unit is positive and negative; unit
    points: np.ndarray  # (I, n): where the unit is 0
    uncertain: np.ndarray  # (I,) bool: another unit is 0 there within its rounding error


class Table(NamedTuple):
    """Vertices of the pieces of one cell, a row each."""

    numbers: np.ndarray  # (rows,) int: as in `Pieces.vertices`
    points: np.ndarray  # (rows, n)
    values: np.ndarray  # (rows, N_k): column j is the j-th crossing unit of the cell


@inner
def empty_table(n, n_units):
    """A table for vertices in n dimensions, with no row in use."""
    return Table(np.empty(16, np.int64), np.empty((16, n)), np.empty((16, n_units)))


@inner
def empty_pieces(n, unit_words, touch_words):
    """No pieces in n dimensions."""
    return Pieces(
        np.empty(64, np.int64),
        np.empty(64, np.int64),
        np.empty((64, touch_words), np.uint64),
        np.empty((16, 2), np.int64),
        np.empty(16, np.int64),
        np.empty((16, unit_words), np.uint64),
        np.empty((16, 3), np.int64),
        np.empty((16, n), np.float64),
        np.empty(16, np.bool_),
    )


@inner
def lengths(pieces):
    """Lengths of the arrays: for pieces, vertices, facets and cuts."""
    return len(pieces.sizes), len(pieces.vertices), len(pieces.hyperplanes), len(pieces.cuts)


@inner
def fits(lengths, used, n_vertices, n_facets, n_cuts):
    """Whether there is room for one more piece, and for some cuts."""
    return (
        used[PIECES] < lengths[PIECES]
        and used[VERTICES] + n_vertices <= lengths[VERTICES]
        and used[FACETS] + n_facets <= lengths[FACETS]
        and used[CUTS] + n_cuts <= lengths[CUTS]
    )


@inner
def grown(pieces, used, n_vertices, n_facets, n_cuts):
    """The same pieces with room for what `fits` asks for."""
    n_pieces, n_cuts = used[PIECES] + 1, used[CUTS] + n_cuts
    n_vertices, n_facets = used[VERTICES] + n_vertices, used[FACETS] + n_facets
    return Pieces(
        longer(pieces.vertices, n_vertices),
        longer(pieces.hyperplanes, n_facets),
        longer(pieces.touches, n_vertices),
        longer(pieces.sizes, n_pieces),
        longer(pieces.parents, n_pieces),
        longer(pieces.active, n_pieces),
        longer(pieces.cuts, n_cuts),
        longer(pieces.points, n_cuts),
        longer(pieces.uncertain, n_cuts),
    )


@inner
def trimmed(pieces, used):
    """The same pieces without the room that is left."""
    return Pieces(
        pieces.vertices[: used[VERTICES]],
        pieces.hyperplanes[: used[FACETS]],
        pieces.touches[: used[VERTICES]],
        pieces.sizes[: used[PIECES]],
        pieces.parents[: used[PIECES]],
        pieces.active[: used[PIECES]],
        pieces.cuts[: used[CUTS]],
        pieces.points[: used[CUTS]],
        pieces.uncertain[: used[CUTS]],
    )


@inner
def longer(array, n):
    """The array, or a longer copy if it has less than n rows."""
    if n <= len(array):
        return array
    copy = np.empty((max(n, 2 * len(array)), *array.shape[1:]), array.dtype)
    copy[: len(array)] = array
    return copy


@inner
def longer_table(table, n):
    """The table with n rows at least."""
    return Table(longer(table.numbers, n), longer(table.points, n), longer(table.values, n))


@inner
def load(table, cells, layer, cell):
    """Write the vertices of a cell, and the values of its crossing units, to the first rows."""
    numbers, points, values = table
    vertices, all_points, all_values = cells.vertices, layer.points, layer.values
    begin, place = cells.starts[cell], layer.value_starts[cell]
    n_units = layer.unit_starts[cell + 1] - layer.unit_starts[cell]
    for i in range(cells.starts[cell + 1] - begin):
        vertex = vertices[begin + i]
        numbers[i] = vertex
        for axis in range(points.shape[1]):
            points[i, axis] = all_points[vertex, axis]
        for j in range(n_units):
            values[i, j] = all_values[place + i * n_units + j]


@inner
def set_task(tasks, depth, first, last, low, high, rows, simple):
    """Write a row of the stack of waiting pieces."""
    tasks[depth, FIRST], tasks[depth, LAST] = first, last
    tasks[depth, LOW], tasks[depth, HIGH] = low, high
    tasks[depth, ROWS], tasks[depth, SIMPLE] = rows, simple


@inner
def push_parts(tasks, crossing, depth, first, middle, last, rows, simple):
    """Replace a waiting piece by its parts; the positive one is on top, so it is cut first.

    The negative part has the vertices ``first, ..., middle - 1`` of the stack of vertices, the
    positive one ``middle, ..., last - 1``.
    """
    low, high = tasks[depth, LOW], tasks[depth, HIGH]
    for k in range(low, high):
        crossing[k + high - low] = crossing[k]
    set_task(tasks, depth, first, middle, low, high, rows, simple)
    set_task(tasks, depth + 1, middle, last, high, 2 * high - low, rows, simple)


@inner
def settle(values, rows, units, crossing, low, high, active):
    """Find the units that cross a piece, and which of the others are active.

    Parameters
    ----------
    values : ndarray, shape (rows of the table, N_k)
    rows : ndarray of int, shape (m,)
        The vertices of the piece.
    units : ndarray of int
        The crossing units of the cell.
    crossing : ndarray of int
        In ``crossing[low:high]`` are positions in `units`: those that cross the piece that this one
        is a part of.  They are replaced by those that cross this one.
    low, high : int
    active : ndarray of uint64, shape (words,)
        Is updated for these units.

    Returns
    -------
    int
        The new end of the run in `crossing`.
    """
    kept = low
    for k in range(low, high):
        j = crossing[k]
        positive = negative = False
        for i in range(len(rows)):
            value = values[rows[i], j]
            positive |= value > 0
            negative |= value < 0
        bit = np.uint64(1) << np.uint64(units[j] & 63)
        if positive:
            active[units[j] >> 6] |= bit
        else:
            active[units[j] >> 6] &= ~bit
        if positive and negative:
            crossing[kept] = j
            kept += 1
    return kept


@inner
def cut_edge(table, errors, units, crossing, a, b, row, pieces, used):
    """Write the vertex of an edge where a unit is 0 to the table, and the cut to the pieces.

    The twin of `refmmr.reference.vertices.VertexTable.cut_edge`.

    Parameters
    ----------
    table : Table
    errors : ndarray, shape (N_k,)
    units, crossing : ndarray of int
        As in `settle`, the run of the piece alone; its first unit is the one that cuts.
    a, b : int
        Rows of the ends of the edge: the unit is positive at a and negative at b.
    row : int
        The row of the new vertex.
    pieces, used : Pieces, ndarray of int
    """
    (numbers, points, values), unit = table, crossing[0]
    cuts, cut_points = pieces.cuts, pieces.points
    t = values[a, unit] / (values[a, unit] - values[b, unit])
    shift = errors[units[unit]] / abs(values[a, unit] - values[b, unit])
    cut, uncertain = used[CUTS], False
    for axis in range(points.shape[1]):
        points[row, axis] = points[a, axis] + t * (points[b, axis] - points[a, axis])
        cut_points[cut, axis] = points[row, axis]
    for k in range(len(crossing)):
        j = crossing[k]
        step, error = values[b, j] - values[a, j], errors[units[j]]
        value = values[a, j] + t * step
        values[row, j] = value if abs(value) > error else 0.0
        certain = abs(value) > error + shift * abs(step)
        uncertain |= not certain and j != unit and error > 0
    values[row, unit] = 0
    pieces.uncertain[cut] = uncertain
    cuts[cut, 0], cuts[cut, 1], cuts[cut, 2] = numbers[a], numbers[b], units[unit]
    numbers[row] = -1 - cut
    used[CUTS] += 1


@inner
def close_piece(pieces, used, cell, active, n_vertices, n_facets):
    """Count a piece whose vertices and facets have been written."""
    piece, sizes, words = used[PIECES], pieces.sizes, pieces.active
    sizes[piece, 0], sizes[piece, 1] = n_vertices, n_facets
    pieces.parents[piece] = cell
    for word in range(len(active)):
        words[piece, word] = active[word]
    used[PIECES] += 1
    used[VERTICES] += n_vertices
    used[FACETS] += n_facets
