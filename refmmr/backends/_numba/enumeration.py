"""The regions of a domain, by the splitting of `refmmr.reference.enumeration`, compiled.

The cells, their order and the numbers of the vertices are the reference's, unless a value is within
rounding of its error bound.  What is saved:

- A layer's cells lie side by side in flat arrays, not in an object each.
- Which units are positive, and negative, at a vertex is a bit each: 64 units at a time tell which
  of them cross a cell.
- Affine maps are updated from cell to cell (`maps`).
- Several threads cut; then one gives numbers to the new vertices by their names (`vertices`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.cells import FACETS, Layer, Made, split_polygons, split_polytopes
from refmmr.backends._numba.maps import Maps
from refmmr.backends._numba.vertices import (
    Around,
    append_bits,
    around,
    find_crossing,
    find_signs,
    find_values,
    merge,
    no_names,
)
from refmmr.reference import enumeration
from refmmr.reference.cells import box_cell
from refmmr.reference.network import Network

LEAST = 256
"""Cells that are worth a thread."""

BLOCK = 8192
"""Cells that are cut before somebody may say stop."""


class Cells(NamedTuple):
    """R convex cells, those of one beside those of the next."""

    starts: np.ndarray  # (R + 1,) int
    vertices: np.ndarray  # (C,) int
    touches: np.ndarray  # (C, words) uint64; no words in the plane
    facet_starts: np.ndarray  # (R + 1,) int
    hyperplanes: np.ndarray  # (F,) int


@implements("numba", enumeration.enumerate_regions)
def enumerate_regions(
    net: Network,
    domain: enumeration.Domain,
    proceed: enumeration.Proceed = lambda layer, split, cells, pieces: True,
    max_pieces: int | None = None,
) -> enumeration.Regions:
    """As the reference; it also takes what is not float64, and cells of more than 64 facets."""
    arrays = [*domain, *(array for pair in net.parameters for array in pair)]
    if all(array.dtype == np.float64 for array in arrays) and 2 * len(domain.lo) <= FACETS:
        with threads.one_blas_thread():
            found = _enumerate(net, domain, proceed, 2**62 if max_pieces is None else max_pieces)
        if found is not None:
            return found
    return enumeration.enumerate_regions(net, domain, proceed, max_pieces)


def _enumerate(net, domain, proceed, most):
    """The regions, or None where a cell has too many facets."""
    cell, points = box_cell(domain.lo, domain.hi)
    touches = enumeration.pack(cell.touches, words=1)
    cells = Cells(
        np.array([0, len(cell.vertices)]),
        cell.vertices,
        touches[:, :0] if len(domain.lo) == 2 else touches,
        np.array([0, len(cell.hyperplanes)]),
        cell.hyperplanes,
    )
    uncertain = np.zeros(len(points), bool)
    patterns, n_bits = np.zeros((1, 0), np.uint8), 0
    maps = Maps.first(net, enumeration.first_map(net, domain))
    errors = enumeration.value_errors(net, domain)
    complete = True
    for k, shape in enumerate(net.unit_shapes):
        n_units = math.prod(shape)
        layer, doubtful = _evaluate(cells, points, maps, errors[k])
        pieces = _cut(cells, layer, n_bits, proceed, k + 1, most)
        if pieces is None:
            return None
        cells, parents, active, new, done = pieces
        complete = complete and done
        points = np.concatenate([points, new[0]])
        uncertain = np.concatenate([uncertain | doubtful, new[1]])
        patterns = append_bits(patterns, n_bits, parents, active, n_units)
        n_bits += n_units
        maps = Maps(net, k + 1, maps, parents, active)
    return enumeration.Regions(
        points, uncertain, cells.starts, cells.vertices, cells.touches, cells.facet_starts,
        cells.hyperplanes, patterns, maps.all(), complete,
    )  # fmt: skip


def _evaluate(cells, points, maps, errors):
    """A layer's units on all cells, and at which vertices a value is within its error.

    Each vertex is evaluated by the map of its owner, the first cell around it.  Signs of all units
    come first; they tell which units change sign on which cell, and only their values are kept.
    """
    starts, vertices = cells.starts, cells.vertices
    near = Around(*around(len(points), starts, vertices))
    signs = np.zeros((len(points), 2, -(-len(errors) // 64)), np.uint64)
    doubtful = np.zeros(len(points), bool)
    maps.for_each(
        lambda first, block: find_signs(
            first, block, points, starts, vertices, near, errors, signs, doubtful
        )
    )
    open_starts, units, value_starts, active = find_crossing(starts, vertices, signs)
    values = np.empty(value_starts[-1])
    maps.for_each(
        lambda first, block: find_values(
            first, block, points, starts, vertices, near, errors, open_starts, units,
            value_starts, values,
        )
    )  # fmt: skip
    return Layer(points, errors, open_starts, units, value_starts, values, active), doubtful


def _cut(cells, layer, first_unit, proceed, k, most):
    """Cut all cells by a layer's units.

    Returns
    -------
    tuple or None
        The pieces, their parents, active units, new vertices (points, doubtful), and whether
        nobody said stop.  None where a piece has too many facets.
    """
    names, count = no_names(layer.points.shape[1]), 0
    runs: list[Made] = []
    n_cells, n_pieces = len(cells.starts) - 1, 0
    for begin in range(0, n_cells, BLOCK):
        end = min(begin + BLOCK, n_cells)
        made = _spread(cells, layer, first_unit, begin, end, most - n_pieces)
        if None in made:
            return None
        for run in made:
            names, count = merge(
                names, count, run.cuts, run.points, run.doubtful, run.vertices, len(layer.points)
            )
            runs.append(run)
            n_pieces += len(run.parents)
        told = proceed(k, end, n_cells, n_pieces)
        if n_pieces > most or not told:
            break
    joined = (np.concatenate(parts) for parts in zip(*(run[:6] for run in runs), strict=True))
    vertices, hyperplanes, touches, sizes, parents, active = joined
    starts, facet_starts = (np.append(0, np.cumsum(column)) for column in sizes.T)
    pieces = Cells(starts, vertices, touches, facet_starts, hyperplanes)
    new = names.points[:count].copy(), names.doubtful[:count].copy()
    return pieces, parents, active, new, end == n_cells and n_pieces <= most


def _spread(cells, layer, first_unit, begin, end, most):
    """Cut the cells ``begin, ..., end - 1`` by several threads: what each has made, in order."""
    found: list[tuple[int, Made | None]] = []

    def work(start: int, stop: int) -> None:
        found.append((start, _split(cells, layer, first_unit, begin + start, begin + stop, most)))

    threads.spread(work, end - begin, least=LEAST)
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


def _split(cells, layer, first_unit, start, stop, most):
    """Cut some cells; None if one has more facets than the compiled code can tell apart."""
    if layer.points.shape[1] == 2:
        return Made(
            *split_polygons(
                start,
                stop,
                cells.starts,
                cells.vertices,
                cells.hyperplanes,
                layer,
                first_unit,
                most,
            )
        )
    fits, *run = split_polytopes(
        start, stop, cells.starts, cells.vertices, cells.touches, cells.facet_starts, cells.hyperplanes,
        layer, first_unit, most,
    )  # fmt: skip
    return Made(*run) if fits else None
