"""Affine maps of the next layer on all cells, compiled: each made out of that of the cell before.

Pieces of one cell follow each other in the order of a depth-first search, so few units switch from
one to the next.  Where unit j does, the map of the next layer changes by column j of W times row j
of the map of this layer, a product of rank one, instead of a product of matrices.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refmmr.reference import regions
from refmmr.reference.layers import Linear
from refmmr.reference.network import Network

# Without fastmath no product and sum are fused: each rounds as in NumPy.
_jit = njit(cache=True, nogil=True, error_model="numpy")

CHUNK = 256
"""Cells whose masked maps are in memory together."""


def next_maps(
    net: Network, layer: int, maps: np.ndarray, parents: np.ndarray, active: np.ndarray
) -> np.ndarray:
    """As `refmmr.reference.regions.next_maps`, of pieces.

    Parameters
    ----------
    net : Network
    layer : int
    maps : ndarray, shape (P, n + 1, N_k)
        Of the cells that were cut: ``V_k``, one row a direction, then ``a_k``.
    parents : ndarray of int, shape (R,)
        The cell that each piece is of; not falling.
    active : ndarray of uint64, shape (R, words)
        Bit j says that unit j is active on the piece.

    Returns
    -------
    ndarray, shape (R, n + 1, N_{k+1})
    """
    n_rows, n_units = maps.shape[1:]
    between = net.layers[net.affine[layer] + 1 : net.affine[layer + 1] + 1]
    dense = between[0] if len(between) == 1 else None
    fresh = np.arange(len(parents))
    if isinstance(dense, Linear):
        # A map may be updated so often before the bounds on rounding errors are void.
        fresh = _fresh(parents, active, regions.UPDATES // 2)
    made = np.empty((len(parents), n_rows, _size(net, layer + 1)))
    for start in range(0, len(fresh), CHUNK):
        some = fresh[start : start + CHUNK]
        masked = np.empty((len(some), n_rows, n_units))
        _mask(maps, parents[some], active[some], masked)
        made[some] = regions.next_maps(net, layer, masked)
    if isinstance(dense, Linear):
        columns = np.ascontiguousarray(dense.W.T)
        _update(maps, parents, active, columns, fresh, made)
    return made


def _size(net, layer):
    shapes = (*net.unit_shapes, net.shapes[-1])
    return int(np.prod(shapes[layer]))


@_jit
def _fresh(parents, active, most):
    """Pieces whose map is made from nothing: the first of a cell, and then after `most` updates."""
    found = np.empty(len(parents), np.int64)
    count = updates = 0
    for i in range(len(parents)):
        if i > 0 and parents[i] == parents[i - 1]:
            for word in range(active.shape[1]):
                changed = active[i, word] ^ active[i - 1, word]
                while changed:
                    changed &= changed - np.uint64(1)
                    updates += 1
            if updates <= most:
                continue
        found[count] = i
        count, updates = count + 1, 0
    return found[:count]


@_jit
def _mask(maps, parents, active, masked):
    """Maps of cells, with 0 for the units that are not active."""
    n_units = maps.shape[2]
    mask = np.empty(n_units)
    for i in range(len(parents)):
        for word in range(active.shape[1]):
            bits = active[i, word]
            for j in range(64 * word, min(64 * word + 64, n_units)):
                mask[j] = np.float64((bits >> np.uint64(j & 63)) & np.uint64(1))
        for row in range(maps.shape[1]):
            source, target = maps[parents[i], row], masked[i, row]
            for j in range(n_units):
                target[j] = source[j] * mask[j]


@_jit
def _update(maps, parents, active, columns, fresh, made):
    """Fill in the maps of all pieces that are not fresh, from that of the piece before."""
    place = 0
    for i in range(len(parents)):
        if place < len(fresh) and fresh[place] == i:
            place += 1
            continue
        made[i] = made[i - 1]
        for word in range(active.shape[1]):
            changed, j = active[i, word] ^ active[i - 1, word], 64 * word
            while changed:
                if changed & np.uint64(1):
                    on = (active[i, word] >> np.uint64(j & 63)) & np.uint64(1)
                    for row in range(maps.shape[1]):
                        factor = maps[parents[i], row, j]
                        _add(made[i, row], columns[j], factor if on else -factor)
                changed >>= np.uint64(1)
                j += 1


@_jit
def _add(total, column, factor):
    for j in range(len(total)):
        total[j] += factor * column[j]
