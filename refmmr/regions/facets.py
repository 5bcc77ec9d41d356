"""The facets of all regions in one table, each with the two regions that it separates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.reference.enumeration import WORD, Regions
from refmmr.regions.ragged import Ragged

__all__ = ["Facets", "facet_table"]


class Facets(NamedTuple):
    """All facets of a complex, each once.

    Attributes
    ----------
    hyperplanes : ndarray of int, shape (F,)
        The hyperplane that a facet lies on.  A number j >= 0 stands for the hyperplane of hidden
        unit j of all N (usually the first of several units that share it), a negative one
        for a face of the domain: ``-1 - 2 axis`` for the lower face, ``z[axis] = lo[axis]``, and
        ``-2 - 2 axis`` for the upper one, ``z[axis] = hi[axis]``.
    cells : ndarray of int, shape (F, 2)
        Numbers of the regions on both sides, the smaller first; -1 outside the domain.
    vertices : Ragged of int
        Numbers of the facet's vertices, rows of `points`; in the plane from start to end, with the
        first region on the left.
    """

    hyperplanes: np.ndarray
    cells: np.ndarray
    vertices: Ragged


def facet_table(regions: Regions) -> tuple[Facets, int]:
    """Match the facets of all regions by their vertices.

    Returns
    -------
    facets : Facets
    unmatched : int
        Number of facets inside the domain that are not matched with exactly one other facet; 0
        unless the enumeration was stopped or rounding errors spoiled it.
    """
    vertices = _vertices_of_facets(regions)
    owner = np.repeat(np.arange(len(regions.patterns)), np.diff(regions.facet_starts))
    order, group = _equal_sets(vertices)
    # Equal facets follow each other in `order`; the first stands for all.
    first = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(np.append(first, len(order)))
    one, other = order[first], order[np.minimum(first + 1, len(order) - 1)]
    cells = np.stack([owner[one], np.where(sizes > 1, owner[other], -1)], axis=1)
    hyperplanes = regions.hyperplanes[one]
    unmatched = int((sizes > 2).sum() + ((sizes == 1) & (hyperplanes >= 0)).sum())
    by_first = np.argsort(one, kind="stable")
    chosen = one[by_first]
    return Facets(hyperplanes[by_first], cells[by_first], _select(vertices, chosen)), unmatched


def _vertices_of_facets(regions: Regions) -> Ragged:
    """Numbers of the vertices of each facet of each region."""
    if regions.points.shape[1] == 2:
        # Facet i of a polygon is its edge from vertex i to vertex i + 1.
        after = np.arange(1, len(regions.vertices) + 1)
        after[regions.vertex_starts[1:] - 1] = regions.vertex_starts[:-1]
        ends = np.stack([regions.vertices, regions.vertices[after]], axis=1)
        return Ragged(np.arange(0, 2 * len(ends) + 1, 2), ends.ravel())
    owner = np.repeat(np.arange(len(regions.patterns)), np.diff(regions.vertex_starts))
    facets, vertices = [], []
    for bit in range(int(np.diff(regions.facet_starts).max())):
        word = regions.touches[:, bit // WORD] >> np.uint64(bit % WORD)
        on = np.flatnonzero(word & np.uint64(1))
        facets.append(regions.facet_starts[owner[on]] + bit)
        vertices.append(regions.vertices[on])
    facet, vertex = np.concatenate(facets), np.concatenate(vertices)
    order = np.argsort(facet, kind="stable")
    counts = np.bincount(facet, minlength=len(regions.hyperplanes))
    return Ragged(np.append(0, np.cumsum(counts)), vertex[order])


def _equal_sets(vertices: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """An order in which facets with the same vertices follow each other, and the group of each.

    Every vertex gets two random numbers of 64 bits, and facets are compared by their sums over the
    vertices, modulo 2^64: those of two different facets agree with a probability of about 1e-38.
    """
    rng = np.random.default_rng(0)
    n = int(vertices.flat.max(initial=0)) + 1
    keys = [vertices.sizes.astype(np.uint64)]
    for _ in range(2):
        bits = rng.integers(0, 2**64, n, dtype=np.uint64)
        keys.append(vertices.sums(bits[vertices.flat]))
    order = np.lexsort(keys)
    changes = np.zeros(len(order), dtype=bool)
    for key in keys:
        changes[1:] |= key[order][1:] != key[order][:-1]
    return order, np.cumsum(changes)


def _select(rows: Ragged, which: np.ndarray) -> Ragged:
    """The rows with these numbers."""
    sizes = rows.sizes[which]
    starts = np.append(0, np.cumsum(sizes))
    places = np.arange(starts[-1]) + np.repeat(rows.starts[which] - starts[:-1], sizes)
    return Ragged(starts, rows.flat[places])
