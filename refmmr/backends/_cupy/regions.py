"""Twin of `refmmr.reference.regions`: all polygons of a layer are cut at once, unit by unit.

The device cuts; what the network says at the corners, and how wrong floats may be there, comes from
the host, from the reference itself.  The arithmetic of a cut is the reference's, so are the cells
and their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cupy
import numpy as np

from refmmr._backend import implements
from refmmr.backends._cupy.arrays import to_device, to_host
from refmmr.backends._cupy.kernels import launch
from refmmr.backends._cupy.network import host_network
from refmmr.reference import regions as reference
from refmmr.reference.network import Network
from refmmr.reference.regions import DOMAIN, Cell, Embedding

CHUNK = 1024
"""Corners that the network is asked for at a time, as many as in the reference."""


class Polygons(NamedTuple):
    """Many polygons, their corners one polygon after the other."""

    starts: cupy.ndarray  # (m + 1,), corners starts[i] to starts[i + 1] are polygon i's
    corners: cupy.ndarray  # (c, 2)
    walls: cupy.ndarray  # (c,)
    cell: cupy.ndarray  # (m,), the cell, before this layer, that each polygon is a part of


@implements("cupy", reference.enumerate_plane)
def enumerate_plane(
    net: Network,
    corners: np.ndarray,
    embed: Embedding,
    on_layer: Callable[[int, int], object] = lambda layer, cells: None,
) -> list[Cell]:
    """See `refmmr.reference.regions.enumerate_plane`, which also takes what is not float64."""
    net = host_network(net)
    arrays = [corners, embed(corners[:1]), *(array for pair in net.parameters for array in pair)]
    if any(array.dtype != np.float64 for array in arrays):
        return reference.enumerate_plane(net, corners, embed, on_layer)
    cells = Polygons(
        starts=cupy.asarray([0, len(corners)], dtype=np.int64),
        corners=to_device(np.ascontiguousarray(corners, dtype=np.float64)),
        walls=cupy.full(len(corners), DOMAIN, np.int64),
        cell=cupy.zeros(1, np.int64),
    )
    patterns = np.zeros((1, 0), dtype=bool)
    first_unit = 0
    for k, shape in enumerate(net.unit_shapes):
        values, errors = (to_device(array) for array in _corner_values(net, cells, embed, k))
        cells, active = _split_cells(cells, values, errors, first_unit)
        patterns = np.concatenate([patterns[to_host(cells.cell)], to_host(active)], axis=1)
        first_unit += math.prod(shape)
        on_layer(k + 1, len(patterns))
    return _as_cells(cells, patterns)


def _corner_values(net, cells, embed, layer):
    """Pre-activations at all corners, (c, N_k), their signs decided, and errors, (m, N_k).

    A corner that several cells share is asked for once, in the order of the reference, so that all
    of them, and the reference, hear the same.
    """
    corners, starts = to_host(cells.corners), to_host(cells.starts)
    # Complex numbers are pairs that NumPy can tell apart at once.
    _, first, places = np.unique(
        corners.view(np.complex128)[:, 0], return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    distinct = corners[first[order]]
    parts = [
        reference._values_and_errors(net, embed(distinct[start : start + CHUNK]), layer)
        for start in range(0, len(distinct), CHUNK)
    ]
    places = np.argsort(order)[places.reshape(-1)]
    values, errors = (np.concatenate(arrays)[places] for arrays in zip(*parts, strict=True))
    # The errors' bounds are convex, so largest at a corner.
    errors = np.maximum.reduceat(errors, starts[:-1], axis=0)
    return reference.decided(values, np.repeat(errors, np.diff(starts), axis=0)), errors


def _split_cells(cells, values, errors, first_unit):
    """Cut all cells along the zero lines of a layer's units: polygons, and their patterns."""
    n, units = len(cells.starts) - 1, values.shape[1]
    crossing = cupy.empty((n, units), bool)
    launch("crosses", values.dtype, crossing.size, cells.starts, values, crossing, units)
    pieces = cells._replace(cell=cupy.arange(n))
    for unit in np.flatnonzero(to_host(crossing.any(axis=0))).tolist():
        pieces, values = _split(pieces, values, errors, crossing, unit, first_unit + unit)
    active = cupy.empty((len(pieces.starts) - 1, units), bool)
    launch("signs", values.dtype, active.size, pieces.starts, values, active, units)
    return pieces, active


def _split(pieces, values, errors, crossing, unit, wall):
    """Cut all polygons along the zero line of one unit; the positive part comes first."""
    starts, corners, walls, cell = pieces
    n, units = len(cell), values.shape[1]
    real = values.dtype
    sizes = cupy.empty(2 * n, np.int64)
    launch("count_corners", real, n, starts, cell, crossing, values, sizes, units, unit)
    ends = cupy.cumsum(sizes)
    total = int(ends[-1])
    first, second, new_walls, new_cell = (cupy.empty(total, np.int64) for _ in range(4))
    way = cupy.empty(total, real)
    launch(
        "cut", real, n, starts, ends - sizes, sizes, cell, corners, walls, values, first, second,
        way, new_walls, new_cell, units, unit, wall,
    )  # fmt: skip
    new_corners, new_values = cupy.empty((total, 2), real), cupy.empty((total, units), real)
    launch(
        "interpolate", real, total * (units + 2), first, second, way, new_cell, corners, values,
        errors, new_corners, new_values, units, unit,
    )  # fmt: skip
    there = sizes > 0
    new_starts = cupy.concatenate([starts[:1], ends[there]])
    parts = Polygons(new_starts, new_corners, new_walls, cupy.repeat(cell, 2)[there])
    return parts, new_values


def _as_cells(cells, patterns):
    """One `Cell` per polygon, on the host."""
    ends = to_host(cells.starts)[1:-1]
    corners, walls = np.split(to_host(cells.corners), ends), np.split(to_host(cells.walls), ends)
    return [Cell(*parts) for parts in zip(corners, walls, patterns, strict=True)]
