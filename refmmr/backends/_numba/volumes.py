"""Volumes of cells, compiled: the twin of `refmmr.reference.volumes.volumes`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import strict_jit
from refmmr.reference import volumes as reference
from refmmr.reference.enumeration import Regions

LEAST = 64
"""Fewest cells per thread, so that the work outweighs handing it to a thread."""

WORD = 64
"""Most facets of a polytope: the bits of a word."""


class Faces(NamedTuple):
    """A chain of faces, each a facet of the one before: at level l of n - l dimensions."""

    members: np.ndarray  # (n + 1, m) int: vertices of the face
    sizes: np.ndarray  # (n + 1,) int: how many
    apexes: np.ndarray  # (n + 1,) int: the first vertex, that of the simplex
    common: np.ndarray  # (n + 1,) uint64: the facets of the polytope that the face lies on
    closures: np.ndarray  # (n + 1, WORD) uint64: see `_closures`
    facets: np.ndarray  # (n + 1,) int: the facet of the polytope to descend to next
    matrix: np.ndarray  # (n, n): memory for a determinant


@implements("numba", reference.volumes)
def volumes(cells: Regions) -> np.ndarray:
    """As the reference, which runs for fractions, and where a cell has more than `WORD` facets."""
    n = cells.points.shape[1]
    if cells.points.dtype != np.float64 or cells.touches.shape[1] > 1:
        return reference.volumes(cells)
    found = np.empty(len(cells.patterns))

    def work(start: int, stop: int) -> None:
        if n == 2:
            _areas(start, stop, cells.points, cells.vertex_starts, cells.vertices, found)
        else:
            _volumes(
                start, stop, cells.points, cells.vertex_starts, cells.vertices,
                cells.touches[:, 0], found,
            )  # fmt: skip

    threads.spread(work, len(found), least=LEAST)
    return found


@strict_jit
def _areas(start, stop, points, starts, vertices, found):
    """Areas of polygons ``start, ..., stop - 1``, as sums of triangles at the first vertex.

    Parameters
    ----------
    start, stop : int
    points : ndarray, shape (V, 2)
    starts, vertices : ndarray of int, shapes (R + 1,), (C,)
    found : ndarray, shape (R,)
        Is filled in.
    """
    for cell in range(start, stop):
        here = vertices[starts[cell] : starts[cell + 1]]
        total, (x, y) = 0.0, points[here[0]]
        for i in range(1, len(here) - 1):
            a, b = points[here[i]], points[here[i + 1]]
            total += (a[0] - x) * (b[1] - y) - (a[1] - y) * (b[0] - x)
        found[cell] = total / 2


@strict_jit
def _volumes(start, stop, points, starts, vertices, touches, found):
    """Volumes of polytopes ``start, ..., stop - 1``, as sums of simplices.

    Parameters
    ----------
    start, stop : int
    points : ndarray, shape (V, n)
    starts, vertices : ndarray of int, shapes (R + 1,), (C,)
    touches : ndarray of uint64, shape (C,)
        Bit j says that the vertex lies on facet j of its cell.
    found : ndarray, shape (R,)
        Is filled in.
    """
    n, factorial = points.shape[1], 1.0
    for i in range(2, n + 1):
        factorial *= i
    faces = _empty_faces(n, 64)
    for cell in range(start, stop):
        here = vertices[starts[cell] : starts[cell + 1]]
        if len(here) > faces.members.shape[1]:
            faces = _empty_faces(n, 2 * len(here))
        touched = touches[starts[cell] : starts[cell + 1]]
        found[cell] = _sum_of_determinants(points, here, touched, faces) / factorial


@strict_jit
def _empty_faces(n, m):
    """Memory for the faces of polytopes of n dimensions and up to m vertices."""
    return Faces(
        np.empty((n + 1, m), np.int64),
        np.empty(n + 1, np.int64),
        np.empty(n + 1, np.int64),
        np.empty(n + 1, np.uint64),
        np.empty((n + 1, WORD), np.uint64),
        np.empty(n + 1, np.int64),
        np.empty((n, n)),
    )


@strict_jit
def _sum_of_determinants(points, here, touches, faces):
    """Sum of the absolute determinants of the simplices of a polytope.

    As `refmmr.reference.volumes.simplices`, with a stack instead of recursion, since Numba cannot
    cache a function that calls itself.

    Parameters
    ----------
    points : ndarray, shape (V, n)
    here : ndarray of int, shape (m,)
        The vertices of the polytope.
    touches : ndarray of uint64, shape (m,)
    faces : Faces
    """
    n, total, level = points.shape[1], 0.0, 0
    members, sizes, apexes = faces.members, faces.sizes, faces.apexes
    common, closures = faces.common, faces.closures
    for i in range(len(here)):
        members[0, i] = i
    sizes[0], apexes[0], faces.facets[0] = len(here), 0, 0
    common[0] = _closures(touches, members[0], sizes[0], closures[0])
    while level >= 0:
        if level == n:
            total += _determinant(points, here, apexes, faces.matrix)
            level -= 1
            continue
        facet = faces.facets[level]
        if facet == WORD:
            level -= 1
            continue
        faces.facets[level] += 1
        bit = np.uint64(1) << np.uint64(facet)
        if closures[level, facet] == 0 or common[level] & bit or touches[apexes[level]] & bit:
            continue
        if not _is_largest(closures[level], common[level], facet):
            continue
        count = 0
        for k in range(sizes[level]):
            if touches[members[level, k]] & bit:
                members[level + 1, count] = members[level, k]
                count += 1
        level += 1
        sizes[level], apexes[level], faces.facets[level] = count, members[level, 0], 0
        common[level] = _closures(touches, members[level], count, closures[level])
    return total


@strict_jit
def _closures(touches, members, size, closures):
    """The facets that all vertices of a face touch, and the same for its facets.

    Parameters
    ----------
    touches : ndarray of uint64, shape (m,)
    members : ndarray of int
        The vertices of the face are the first `size` of them.
    size : int
    closures : ndarray of uint64, shape (WORD,)
        Is filled in: for each facet of the polytope, the facets that all vertices of the face on it
        touch; 0 if there are none.

    Returns
    -------
    uint64
    """
    common = ~np.uint64(0)
    closures[:] = np.uint64(0)
    for k in range(size):
        mine = touches[members[k]]
        common &= mine
        rest, facet = mine, 0
        while rest:
            if rest & np.uint64(1):
                closures[facet] = closures[facet] & mine if closures[facet] else mine
            rest >>= np.uint64(1)
            facet += 1
    return common


@strict_jit
def _is_largest(closures, common, facet):
    """Whether the intersection of a face with a facet is not contained in another one.

    Of facets with the same intersection the first is taken; see `_closures` for the arguments.
    """
    rest = closures[facet] & ~common & ~(np.uint64(1) << np.uint64(facet))
    other = 0
    while rest:
        if rest & np.uint64(1):
            same = (closures[other] >> np.uint64(facet)) & np.uint64(1)
            if not same or other < facet:
                return False
        rest >>= np.uint64(1)
        other += 1
    return True


@strict_jit
def _determinant(points, here, apexes, matrix):
    """Absolute determinant of a simplex: Gaussian elimination with partial pivoting.

    Row i of the `matrix`, (n, n), is ``points[apexes[i + 1]] - points[apexes[0]]``.
    """
    n = len(matrix)
    for i in range(n):
        for j in range(n):
            matrix[i, j] = points[here[apexes[i + 1]], j] - points[here[apexes[0]], j]
    product = 1.0
    for k in range(n):
        pivot = k
        for i in range(k + 1, n):
            if abs(matrix[i, k]) > abs(matrix[pivot, k]):
                pivot = i
        if matrix[pivot, k] == 0:
            return 0.0
        if pivot != k:
            for j in range(k, n):
                matrix[k, j], matrix[pivot, j] = matrix[pivot, j], matrix[k, j]
        product *= abs(matrix[k, k])
        for i in range(k + 1, n):
            factor = matrix[i, k] / matrix[k, k]
            for j in range(k + 1, n):
                matrix[i, j] -= factor * matrix[k, j]
    return product
