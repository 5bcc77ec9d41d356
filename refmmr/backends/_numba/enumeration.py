"""All linear regions, compiled: the twin of `refmmr.reference.enumeration.enumerate_regions`.

The cells, their order and the numbers of the vertices are the reference's, unless a value is within
rounding of its error bound.  What makes it fast:

- The cells of a layer are flat arrays, not an object each, and a run of them is cut by one compiled
  loop (`polygons`, `polytopes`), in several threads.
- Which units are positive, and negative, at a vertex is one bit each: which units cross a cell is
  found for 64 units at a time, and only their values are kept (`vertices`).
- The affine map of a piece is updated from that of the piece before (`maps`).

After the threads have cut a block of cells, one thread numbers the new vertices.
"""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import strict_jit
from refmmr.backends._numba.maps import Maps
from refmmr.backends._numba.pieces import Cells, Layer, Pieces
from refmmr.backends._numba.polygons import split_polygons
from refmmr.backends._numba.polytopes import MAX_FACETS, split_polytopes
from refmmr.backends._numba.vertices import (
    find_crossing,
    find_incidence,
    find_signs,
    find_values,
    merge,
    no_vertices,
)
from refmmr.reference import enumeration
from refmmr.reference.cells import box_cell
from refmmr.reference.network import Network

LEAST = 256
"""Fewest cells for a thread of its own: starting a thread costs about as much as cutting these."""

BLOCK = 8192
"""Cells that are cut between two calls of `proceed`: some ten milliseconds of work."""

UNLIMITED = 2**62
"""No limit on the number of pieces."""


@implements("numba", enumeration.enumerate_regions)
def enumerate_regions(
    net: Network,
    domain: enumeration.Domain,
    proceed: enumeration.Proceed = lambda layer, split, cells, pieces: True,
    max_pieces: int | None = None,
) -> enumeration.Regions:
    """As the reference, which runs for other numbers than float64 and cells of over 64 facets."""
    arrays = [*domain, *(array for pair in net.parameters for array in pair)]
    if all(array.dtype == np.float64 for array in arrays) and 2 * len(domain.lo) <= MAX_FACETS:
        limit = UNLIMITED if max_pieces is None else max_pieces
        with threads.one_blas_thread():
            found = _enumerate(net, domain, proceed, limit)
        if found is not None:
            return found
    return enumeration.enumerate_regions(net, domain, proceed, max_pieces)


def _enumerate(net, domain, proceed, max_pieces):
    """The regions, or None where a cell has more than `MAX_FACETS` facets."""
    cell, points = box_cell(domain.lo, domain.hi)
    cells = Cells(
        np.array([0, len(cell.vertices)]),
        cell.vertices,
        enumeration.pack(cell.touches, words=0 if len(domain.lo) == 2 else 1),
        np.array([0, len(cell.hyperplanes)]),
        cell.hyperplanes,
    )
    uncertain = np.zeros(len(points), bool)
    patterns, complete = np.zeros((1, 0), np.uint8), True
    maps = Maps.first(net, enumeration.first_map(net, domain))
    errors = enumeration.value_errors(net, domain)
    for k, units in enumerate(net.unit_slices):
        layer, uncertain_here = _evaluate(cells, points, maps, errors[k])
        pieces = _cut(cells, layer, units.start, proceed, k + 1, max_pieces)
        if pieces is None:
            return None
        cells, parents, active, new_points, new_uncertain, done = pieces
        complete = complete and done
        points = np.concatenate([points, new_points])
        uncertain = np.concatenate([uncertain | uncertain_here, new_uncertain])
        n_units = units.stop - units.start
        patterns = append_bits(patterns, units.start, parents, active, n_units)
        maps = Maps(net, k + 1, maps, parents, active)
    return enumeration.Regions(
        points, uncertain, cells.starts, cells.vertices, cells.touches, cells.facet_starts,
        cells.hyperplanes, patterns, maps.all(), complete,
    )  # fmt: skip


def _evaluate(cells, points, maps, errors):
    """A layer's units on all cells, and the vertices where the sign of some unit is uncertain."""
    incidence = find_incidence(points, cells.starts, cells.vertices)
    signs = np.zeros((len(points), 2, -(-len(errors) // 64)), np.uint64)
    uncertain = np.zeros(len(points), bool)
    maps.for_each(
        lambda first, block: find_signs(first, block, incidence, errors, signs, uncertain)
    )
    crossing = find_crossing(incidence, signs)
    values = np.empty(crossing.value_starts[-1])
    maps.for_each(
        lambda first, block: find_values(first, block, incidence, errors, crossing, values)
    )
    layer = Layer(
        points, errors, crossing.starts, crossing.units, crossing.value_starts, values,
        crossing.active,
    )  # fmt: skip
    return layer, uncertain


def _cut(cells, layer, first_unit, proceed, k, max_pieces):
    """Cut all cells by the units of hidden layer k.

    Returns
    -------
    tuple or None
        The pieces as `Cells`, their parents and active units, points of the new vertices, where
        they are uncertain, and whether no cell is left out.  None where a piece has too many
        facets.
    """
    table, count = no_vertices(layer.points.shape[1]), 0
    runs: list[Pieces] = []
    n_cells, n_pieces = len(cells.starts) - 1, 0
    for begin in range(0, n_cells, BLOCK):
        end = min(begin + BLOCK, n_cells)
        block = _cut_block(cells, layer, first_unit, begin, end, max_pieces - n_pieces)
        if None in block:
            return None
        for run in block:
            table, count = merge(
                table, count, run.cuts, run.points, run.uncertain, run.vertices, len(layer.points)
            )
            runs.append(run)
            n_pieces += len(run.parents)
        goes_on = proceed(k, end, n_cells, n_pieces)
        if n_pieces > max_pieces or not goes_on:
            break
    joined = (np.concatenate(parts) for parts in zip(*(run[:6] for run in runs), strict=True))
    vertices, hyperplanes, touches, sizes, parents, active = joined
    starts, facet_starts = (np.append(0, np.cumsum(column)) for column in sizes.T)
    pieces = Cells(starts, vertices, touches, facet_starts, hyperplanes)
    points, uncertain = table.points[:count].copy(), table.uncertain[:count].copy()
    return pieces, parents, active, points, uncertain, end == n_cells and n_pieces <= max_pieces


def _cut_block(cells, layer, first_unit, begin, end, max_pieces):
    """Cut the cells ``begin, ..., end - 1`` in several threads: the pieces of each run, in order.

    None stands for a run with a piece of more than `MAX_FACETS` facets.
    """
    found: list[tuple[int, Pieces | None]] = []

    def work(start: int, stop: int) -> None:
        arguments = begin + start, begin + stop, cells, layer, first_unit, max_pieces
        if layer.points.shape[1] == 2:
            found.append((start, split_polygons(*arguments)))
        else:
            fits, pieces = split_polytopes(*arguments)
            found.append((start, pieces if fits else None))

    threads.spread(work, end - begin, least=LEAST)
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


@strict_jit
def append_bits(patterns, n_bits, parents, active, n_units):
    """Packed patterns of some cells, each with the bits of another layer appended.

    Parameters
    ----------
    patterns : ndarray of uint8, shape (P, ceil(n_bits / 8))
        Of the cells that were cut, bits from the lowest of each byte up.
    n_bits : int
    parents : ndarray of int, shape (R,)
        The cell that each piece is a part of.
    active : ndarray of uint64, shape (R, words)
        Bit j says that unit j of the layer is active on the piece.
    n_units : int

    Returns
    -------
    ndarray of uint8, shape (R, ceil((n_bits + n_units) / 8))
    """
    old, width = patterns.shape[1], (n_bits + n_units + 7) // 8
    appended = np.zeros((len(parents), width), np.uint8)
    first, shift = n_bits // 8, np.uint64(n_bits % 8)
    for i in range(len(parents)):
        row = appended[i]
        row[:old] = patterns[parents[i]]
        for byte in range((n_units + 7) // 8):
            word = active[i, byte // 8] >> np.uint64(8 * (byte % 8))
            bits = (word & np.uint64(255)) << shift
            row[first + byte] |= np.uint8(bits & np.uint64(255))
            if first + byte + 1 < width:
                row[first + byte + 1] |= np.uint8(bits >> np.uint64(8))
    return appended
