"""The edges of a polytope that a unit cuts: the twin of `reference.cells.Polytope._edges`.

Which facets a vertex touches are the bits of a word.  Two vertices are joined by an edge if they
touch n - 1 common facets at least, and no third vertex touches all of these.  Where each vertex
touches just n facets (the polytope is simple), the first condition is enough.

These functions are compiled into `polytopes`; see `pieces` for `SOURCE`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from refmmr.backends._numba import pieces
from refmmr.backends._numba.pieces import inner

SOURCE = zlib.crc32(Path(__file__).read_bytes(), pieces.SOURCE)
"""Changes with this file and with `pieces`."""

PAIRS = 16
"""In a simple piece, try this many pairs of a positive and a negative vertex for each dimension one
by one.  If there are more, a hash table of edges is faster."""


@inner
def find_edges(touches, signs, m, n, simple, n_positive, n_negative, edges, slots):
    """List the edges from a positive to a negative vertex.

    Parameters
    ----------
    touches : ndarray of uint64, shape (m or more,)
        Bit j says that the vertex lies on facet j.
    signs : ndarray of int, shape (m or more,)
        Signs of the unit that cuts at the vertices.
    m, n : int
        Number of vertices, and of dimensions.
    simple : int
        Whether each vertex touches just n facets.
    n_positive, n_negative : int
        Number of vertices of each sign.
    edges : ndarray of int, shape (most_edges or more, 2)
        Is filled in: positive and negative end, in lexicographic order.
    slots : ndarray of uint64, shape (most_slots or more, 2)
        Memory.

    Returns
    -------
    int
        The number of edges.
    """
    if simple and n_positive * n_negative > PAIRS * n:
        return _hashed_edges(touches, signs, m, n * n_negative, edges, slots)
    return _tried_edges(touches, signs, m, n, simple, edges)


@inner
def most_edges(m, n, simple):
    """Most edges that a cut of m vertices in n dimensions can meet, or pairs that are tried."""
    return n * max(m, PAIRS) if simple else m * m // 4


@inner
def most_slots(m, n):
    """Most slots that the hash table of the edges of m vertices in n dimensions can need."""
    return _power_of_two(2 * n * m)


@inner
def _power_of_two(n):
    """The smallest power of 2 that is not less than n, nor than 64."""
    size = 64
    while size < n:
        size *= 2
    return size


@inner
def _tried_edges(touches, signs, m, n, simple, edges):
    """List the edges from a positive to a negative vertex, trying all pairs; how many."""
    count = 0
    for i in range(m):
        if signs[i] <= 0:
            continue
        for j in range(m):
            if signs[j] >= 0:
                continue
            common = rest = touches[i] & touches[j]
            for _ in range(n - 2):
                rest &= rest - np.uint64(1)
            # n - 1 bits are set if one is left; on a line any two vertices are an edge.
            if (rest != 0 or n == 1) and (simple or _only_two_touch(touches, m, common)):
                edges[count, 0], edges[count, 1] = i, j
                count += 1
    return count


@inner
def _only_two_touch(touches, m, common):
    """Whether just two vertices touch all of the common facets."""
    found = 0
    for k in range(m):
        found += common & ~touches[k] == 0
    return found == 2


@inner
def _hashed_edges(touches, signs, m, n_keys, edges, slots):
    """The edges of `_tried_edges`, in the same order, in a simple piece.

    There an edge is determined by the n - 1 facets that both ends touch: all facets of a vertex but
    one.  For each negative vertex these sets are entered, as keys, into a hash table with linear
    probing; for each positive vertex they are looked up.
    """
    used, count = _power_of_two(2 * n_keys), 0
    mask = np.uint64(used - 1)
    for slot in range(used):
        slots[slot, 0] = np.uint64(0)
    for j in range(m):
        if signs[j] < 0:
            rest = touches[j]
            while rest:
                key = touches[j] & ~(rest & (~rest + np.uint64(1)))
                slot = _slot(slots, mask, key)
                slots[slot, 0], slots[slot, 1] = key, np.uint64(j)
                rest &= rest - np.uint64(1)
    for i in range(m):
        if signs[i] > 0:
            first, rest = count, touches[i]
            while rest:
                key = touches[i] & ~(rest & (~rest + np.uint64(1)))
                slot = _slot(slots, mask, key)
                rest &= rest - np.uint64(1)
                if slots[slot, 0] == key:
                    # Insertion keeps the negative ends sorted.
                    place, j = count, int(slots[slot, 1])
                    while place > first and edges[place - 1, 1] > j:
                        edges[place, 1] = edges[place - 1, 1]
                        place -= 1
                    edges[count, 0], edges[place, 1] = i, j
                    count += 1
    return count


@inner
def _slot(slots, mask, key):
    """The slot of a key: where it is, or where it can be put."""
    bits = key * np.uint64(0x9E3779B97F4A7C15)
    slot = (bits ^ (bits >> np.uint64(32))) & mask
    while slots[slot, 0] != np.uint64(0) and slots[slot, 0] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot
