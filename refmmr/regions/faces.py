"""Faces of all dimensions: vertices, edges, ..., facets, regions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from refmmr.regions.complex import RegionComplex

__all__ = ["face_counts"]


def face_counts(cx: RegionComplex) -> np.ndarray:
    """Number of faces of each dimension, (n + 1,): vertices first, regions last."""
    n = cx.dimension
    ends = [len(cx.points), len(cx)]
    if n == 1:
        return np.array(ends)
    if n == 2:
        return np.array([ends[0], len(cx.facets.hyperplanes), ends[1]])
    faces: list[set[tuple[int, ...]]] = [set() for _ in range(n + 1)]
    for i, vertices in enumerate(cx.vertex_numbers):
        for dimension, on in faces_of(cx.raw.cell(i).touches):
            # A thin region that rounding errors spoiled may have faces of too many dimensions.
            faces[min(dimension, n)].add(tuple(sorted(vertices[list(on)].tolist())))
    return np.array([len(same) for same in faces])


def faces_of(touches: np.ndarray) -> list[tuple[int, frozenset[int]]]:
    """All faces of a polytope, itself included: (dimension, vertices) of each.

    The faces are the intersections of facets, so intersecting each face with each facet finds them
    all.  The dimension of a face is one more than the largest dimension of a smaller face on it.

    Parameters
    ----------
    touches : ndarray of bool, shape (m, F)
        Which vertex lies on which facet.
    """
    facets = [frozenset(np.flatnonzero(on).tolist()) for on in touches.T]
    found = {frozenset(range(len(touches)))}
    pending = list(found)
    while pending:
        face = pending.pop()
        new = {face & facet for facet in facets} - found - {frozenset()}
        found |= new
        pending += new
    dimension: dict[frozenset[int], int] = {}
    for face in sorted(found, key=len):
        smaller = (dimension[other] for other in dimension if other < face)
        dimension[face] = 1 + max(smaller, default=-1)
    return [(dimension[face], face) for face in found]
