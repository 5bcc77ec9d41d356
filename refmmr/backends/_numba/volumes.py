"""Volumes of polytopes, by the simplices of `refmmr.reference.volumes.simplices`, compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.reference import volumes as reference
from refmmr.reference.enumeration import Regions

# Without fastmath no product and sum are fused: each rounds as in NumPy.
_jit = njit(cache=True, nogil=True, error_model="numpy")

LEAST = 64
"""Cells that are worth a thread."""


@implements("numba", reference.volumes)
def volumes(cells: Regions) -> np.ndarray:
    """As the reference, which also takes fractions, and cells of more than 64 facets."""
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


@_jit
def _areas(start, stop, points, starts, vertices, found):
    """Areas of polygons: half the sum of the cross products of edges, from the first vertex on."""
    for cell in range(start, stop):
        here = vertices[starts[cell] : starts[cell + 1]]
        total, (x, y) = 0.0, points[here[0]]
        for i in range(1, len(here) - 1):
            a, b = points[here[i]], points[here[i + 1]]
            total += (a[0] - x) * (b[1] - y) - (a[1] - y) * (b[0] - x)
        found[cell] = total / 2


@_jit
def _volumes(start, stop, points, starts, vertices, touches, found):
    n = points.shape[1]
    sizes, apexes = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    closures, matrix = np.empty((n + 1, 64), np.uint64), np.empty((n, n))
    members = np.empty((n + 1, 64), np.int64)
    factorial = 1.0
    for i in range(2, n + 1):
        factorial *= i
    for cell in range(start, stop):
        here = vertices[starts[cell] : starts[cell + 1]]
        if len(here) > members.shape[1]:
            members = np.empty((n + 1, 2 * len(here)), np.int64)
        for i in range(len(here)):
            members[0, i] = i
        sizes[0] = len(here)
        touched = touches[starts[cell] : starts[cell + 1]]
        total = _fan(points, here, touched, members, sizes, apexes, closures, matrix)
        found[cell] = total / factorial


@_jit
def _fan(points, here, touches, members, sizes, apexes, closures, matrix):
    """Sum of the determinants of the simplices of a polytope.

    The face at a level has n - level dimensions, and the vertices ``members[level, :sizes[level]]``.
    Its facets are gone through one by one, each a level deeper.  (No recursion: a function that
    calls itself does not survive Numba's cache.)
    """
    n, total, level = points.shape[1], 0.0, 0
    common, at = np.empty(n + 1, np.uint64), np.zeros(n + 1, np.int64)
    apexes[0] = members[0, 0]
    common[0] = _closures(touches, members[0], sizes[0], closures[0])
    while level >= 0:
        if level == n:
            total += _determinant(points, here, apexes, matrix)
            level -= 1
            continue
        facet = at[level]
        if facet == 64:
            level -= 1
            continue
        at[level] += 1
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
        sizes[level], apexes[level], at[level] = count, members[level, 0], 0
        common[level] = _closures(touches, members[level], count, closures[level])
    return total


@_jit
def _closures(touches, members, size, closures):
    """Of each facet: what facets all vertices of the face that touch it touch; 0 if none does.

    Returns the facets that all vertices of the face touch.
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


@_jit
def _is_largest(closures, common, facet):
    """Whether no other facet meets the face in more, or, of lower number, in the same vertices."""
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


@_jit
def _determinant(points, here, apexes, matrix):
    """Absolute determinant of the edges from the first apex, by elimination with pivots."""
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
