"""How large cells are: areas of polygons, volumes of polytopes, of floats or of fractions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import factorial
from typing import Any

import numpy as np

from refmmr.reference.enumeration import Regions, touching


def area(vertices: np.ndarray) -> np.ndarray:
    """Areas of polygons, (..., m, 2) to (...): half the sum of the cross products of edges."""
    x, y = np.moveaxis(vertices - vertices[..., :1, :], -1, 0)
    return (x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)).sum(axis=-1) / 2


def volumes(regions: Regions) -> np.ndarray:
    """Volume of each region, (R,): the length of an interval, the area of a polygon."""
    n, found = regions.points.shape[1], []
    for i, (start, stop) in enumerate(pairwise(regions.vertex_starts.tolist())):
        points = regions.points[regions.vertices[start:stop]]
        found.append(area(points) if n == 2 else volume(points, touching(regions, i)))
    return np.array(found)


def volume(points: np.ndarray, touches: np.ndarray) -> np.ndarray:
    """Volume of a polytope of n dimensions: that of the simplices which `simplices` cuts it into.

    Parameters
    ----------
    points : ndarray, shape (m, n)
        Its vertices.
    touches : ndarray of bool, shape (m, F)
        Which vertex lies on which facet.
    """
    n = points.shape[1]
    edges = [points[list(rest)] - points[first] for first, *rest in simplices(touches)]
    return sum(abs(determinant(matrix)) for matrix in edges) / factorial(n)


def simplices(touches: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Cut a polytope into simplices, given which vertex touches which facet (Cohen and Hickey).

    Take a vertex; every simplex of a facet that does not touch it makes a simplex with it; and
    the simplices of a facet are found in the same way.
    """
    yield from _simplices(touches, np.arange(len(touches)))


def _simplices(touches, face):
    """Simplices of the face with these vertices, as tuples of vertices."""
    if len(face) == 1:
        yield (int(face[0]),)
        return
    for facet in _facets_of(touches, face):
        if face[0] not in facet:
            for simplex in _simplices(touches, facet):
                yield (int(face[0]), *simplex)


def _facets_of(touches, face):
    """The largest of the faces in which other facets of the polytope meet this face."""
    meetings = {tuple(face[on].tolist()) for on in touches[face].T if on.any() and not on.all()}
    sets = [set(meeting) for meeting in meetings]
    return [np.array(sorted(one)) for one in sets if not any(one < other for other in sets)]


def determinant(matrix: np.ndarray) -> Any:
    """Determinant of a small matrix (n, n), of floats or fractions: by its first row."""
    if len(matrix) == 0:
        return 1
    minors = (np.delete(matrix[1:], j, axis=1) for j in range(len(matrix)))
    return sum(
        (-1) ** j * entry * determinant(minor)
        for j, (entry, minor) in enumerate(zip(matrix[0], minors, strict=True))
    )
