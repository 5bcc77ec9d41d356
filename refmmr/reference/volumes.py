"""Areas of polygons and volumes of polytopes, of floats or of fractions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import factorial
from typing import Any

import numpy as np

from refmmr.reference.enumeration import Regions


def area(vertices: np.ndarray) -> np.ndarray:
    """Areas of polygons, (..., m, 2) to (...): half the sum of ``x_i y_{i+1} - y_i x_{i+1}``."""
    x, y = np.moveaxis(vertices - vertices[..., :1, :], -1, 0)
    return (x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)).sum(axis=-1) / 2


def volumes(regions: Regions) -> np.ndarray:
    """Volume of each region, (R,): the length of an interval, the area of a polygon."""
    n, found = regions.points.shape[1], []
    for i, (start, stop) in enumerate(pairwise(regions.vertex_starts.tolist())):
        points = regions.points[regions.vertices[start:stop]]
        found.append(area(points) if n == 2 else volume(points, regions.cell(i).touches))
    return np.array(found)


def volume(points: np.ndarray, touches: np.ndarray) -> np.ndarray:
    """Volume of a polytope of n dimensions: the sum of those of its `simplices`.

    The simplex with vertices ``v_0, ..., v_n`` has the volume ``|det(v_1 - v_0, ...)| / n!``.

    Parameters
    ----------
    points : ndarray, shape (m, n)
        Its vertices.
    touches : ndarray of bool, shape (m, F)
        Which vertex lies on which facet.
    """
    n = points.shape[1]
    # Where rounding errors made a face of a thin cell flat, its simplices lack a vertex.
    whole = [simplex for simplex in simplices(touches) if len(simplex) == n + 1]
    edges = [points[list(rest)] - points[first] for first, *rest in whole]
    return sum(abs(determinant(matrix)) for matrix in edges) / factorial(n)


def simplices(touches: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Triangulate a polytope, given which vertex touches which facet (Cohen and Hickey 1979).

    Take one vertex.  Together with each simplex of each facet that does not contain it, it spans a
    simplex of the polytope; and the facets are triangulated in the same way.

    Yields
    ------
    tuple of int
        The n + 1 vertices of a simplex, rows of `touches`.
    """
    yield from _simplices(touches, np.arange(len(touches)))


def _simplices(touches, face):
    """Simplices of the face that has these vertices."""
    if len(face) == 1:
        yield (int(face[0]),)
        return
    for facet in _facets_of(touches, face):
        if face[0] not in facet:
            for simplex in _simplices(touches, facet):
                yield (int(face[0]), *simplex)


def _facets_of(touches, face):
    """Facets of a face: the largest of its intersections with facets of the polytope."""
    common = {tuple(face[on].tolist()) for on in touches[face].T if on.any() and not on.all()}
    sets = [set(vertices) for vertices in common]
    return [np.array(sorted(one)) for one in sets if not any(one < other for other in sets)]


def determinant(matrix: np.ndarray) -> Any:
    """Determinant of a small matrix (n, n), of floats or fractions: expansion by its first row."""
    if len(matrix) == 0:
        return 1
    minors = (np.delete(matrix[1:], j, axis=1) for j in range(len(matrix)))
    return sum(
        (-1) ** j * entry * determinant(minor)
        for j, (entry, minor) in enumerate(zip(matrix[0], minors, strict=True))
    )
