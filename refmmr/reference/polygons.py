"""Convex polygons and segments in the plane: distances, areas and centroids.

The largest circle within a polygon is found in `refmmr.reference.incircles`.

Many polygons are two arrays: `vertices` (C, 2), one polygon after the other, each in
counter-clockwise order, and `starts` (R + 1,).  Polygon i has the vertices
``vertices[starts[i] : starts[i + 1]]``, one at least.

The regions of a wide network are often slivers, with edges as short as a rounding error, whose
direction is arbitrary.  Hence nothing here relies on the direction of a single short edge:

- whether a point is inside is decided by counting the edges that a ray from it crosses; a ray
  hardly ever meets a short edge, whereas the line through it may cut the polygon in two;
- a centroid is a mean of points of the polygon with weights that are not negative (`centroids`).
"""

from __future__ import annotations

import numpy as np

from refmmr.reference.hyperplanes import dual_norm, norm, shortest_step

BLOCK = 2**14
"""Largest number of elements of an intermediate array: 128 KB, which stay in the L2 cache."""

SHORT = 1e-150
"""Edges shorter than this are treated as points: the square of their length would underflow."""


def to_segments(
    points: np.ndarray, segments: np.ndarray, p: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance in l_p from each point to the nearest of many segments.

    The points are grouped by the cells of a grid.  Let c be the center of a group and rho its
    radius.  By the triangle inequality, a segment nearest to a point of the group is no farther
    from c than the segment nearest to c plus 2 rho.  All segments within that distance are tried,
    in blocks of `BLOCK` numbers; see `projections` for one point and one segment.

    Parameters
    ----------
    points : ndarray, shape (q, 2)
    segments : ndarray, shape (m, 2, 2)
        Both ends of each; they may coincide.
    p : {1, 2, inf}

    Returns
    -------
    distance : ndarray, shape (q,)
        Infinite if there are no segments.
    nearest : ndarray, shape (q, 2)
        A point of the segment at that distance; NaN if there are none.
    index : ndarray of int, shape (q,)
        The nearest segment, the first of equals; -1 if there are none.
    """
    if not len(segments):
        nearest = np.full((len(points), 2), np.nan)
        return np.full(len(points), np.inf), nearest, np.full(len(points), -1)
    starts, ends = segments[:, 0], segments[:, 1]
    edges = ends - starts
    # Coordinates first, (2, m): each is contiguous.
    lines = np.stack([starts.T, edges.T, projections(edges, p).T])
    index = np.empty(len(points), dtype=int)
    for group in _grid_groups(points):
        near = _within_reach(points[group], lines, p)
        candidates = lines[:, :, None].take(near, axis=-1)
        size = max(1, BLOCK // len(near))
        for block in (group[first : first + size] for first in range(0, len(group), size)):
            gaps = _gaps(points[block].T[:, :, None], candidates)
            index[block] = near[_lengths(gaps, p).argmin(axis=1)]
    nearest = nearest_points(points, starts[index], ends[index], p)
    return norm(points - nearest, p), nearest, index


def _grid_groups(points):
    """Indices of the points in each nonempty cell of a grid."""
    if not len(points):
        return []
    # About 4 sqrt(q) cells for q points balance the work on centers and on points.
    n_rows = int(np.ceil(2 * len(points) ** 0.25))
    low, high = points.min(axis=0), points.max(axis=0)
    scale = np.where(high > low, high - low, 1)
    column, row = np.minimum((points - low) / scale * n_rows, n_rows - 1).astype(int).T
    cell = column * n_rows + row
    order = np.argsort(cell, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(cell[order])) + 1)


def _within_reach(points, lines, p):
    """Indices of the segments that may be nearest to one of these points."""
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = norm(points - center, p).max()
    distance = _lengths(_gaps(center[:, None], lines), p)
    rounding = 1 + 1e-9
    return np.flatnonzero(distance <= (distance.min() + 2 * radius) * rounding)


def _gaps(x, lines):
    """Vectors from the nearest point of each segment to x: (2, ...), (3, 2, ...) to (2, ...)."""
    start, edge, projection = lines
    offset = x - start
    t = np.clip((offset * projection).sum(axis=0), 0, 1)
    return offset - t * edge


def _lengths(gaps, p):
    """``||gap||_p`` of vectors along the first axis: (2, ...) to (...)."""
    return dual_norm(gaps, {1: np.inf, 2: 2, np.inf: 1}[p], axis=0)


def nearest_points(x: np.ndarray, starts: np.ndarray, ends: np.ndarray, p: float) -> np.ndarray:
    """The point of a segment that is nearest to x in l_p; shapes (..., 2) that broadcast."""
    edge = ends - starts
    t = np.clip(((x - starts) * projections(edge, p)).sum(axis=-1), 0, 1)[..., None]
    return np.where(t < 1, starts + t * edge, ends)


def projections(edge: np.ndarray, p: float) -> np.ndarray:
    """Vectors w such that ``a + <w, x - a> edge`` is a point nearest to x on a line along `edge`.

    The distance of x to the point ``a + t edge`` is a convex function of t.  So its minimum over a
    segment, ``0 <= t <= 1``, is its minimum over the line, clipped to [0, 1].

    The shortest step from x to the line has the same direction v for all x, that of
    `refmmr.reference.hyperplanes.shortest_step`: in l_2 it is perpendicular to the edge, in l_1 it
    is along one axis, in l_inf its coordinates have equal absolute values.  Hence the minimal t is
    a linear function of x, ``t = <w, x - a>``, with ``<w, v> = 0`` and ``<w, edge> = 1``: a
    multiple of v rotated by a right angle.  The l_p norms are invariant under this rotation, so w
    is the shortest vector with ``<w, edge> = 1``.

    Parameters
    ----------
    edge : ndarray, shape (..., 2)
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (..., 2)
        0 where the edge is a point (`SHORT`): the start is nearest to every x.
    """
    point = np.abs(edge).max(axis=-1) < SHORT
    safe = np.where(point[..., None], 1, edge)
    w = shortest_step(safe, np.full(edge.shape[:-1], -1.0), p)
    return np.where(point[..., None], 0, w)


def to_polygons(
    point: np.ndarray, starts: np.ndarray, vertices: np.ndarray, p: float
) -> np.ndarray:
    """Distance in l_p from one point to each convex polygon.

    Parameters
    ----------
    point : ndarray, shape (2,)
    starts, vertices : ndarray, shapes (R + 1,), (C, 2)
        The polygons.
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (R,)
        0 inside.
    """
    ends = vertices[_after(starts)]
    to_edges = norm(point - nearest_points(point, vertices, ends, p), p)
    # From inside, a ray to the right crosses one edge; from outside none or two.
    up = ends[:, 1] > vertices[:, 1]
    crosses = (vertices[:, 1] > point[1]) != (ends[:, 1] > point[1])
    right = (cross(ends - vertices, point - vertices) > 0) == up
    inside = np.logical_xor.reduceat(crosses & right, starts[:-1])
    return np.where(inside, 0, np.minimum.reduceat(to_edges, starts[:-1]))


def areas(starts: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Areas of polygons, (R + 1,), (C, 2) to (R,): sums of triangles at the first vertex."""
    fan, _ = _fans(starts, vertices)
    return np.add.reduceat(fan, starts[:-1]) / 2


def centroids(starts: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Centroids of convex polygons, or the mean of the vertices where the area is 0.

    A polygon is a fan of triangles at its first vertex, and its centroid is the mean of theirs,
    weighted by area.  The weights of a sliver may be wrong by rounding; negative ones are set to 0,
    so that the mean is still a point of the polygon.

    Parameters
    ----------
    starts, vertices : ndarray, shapes (R + 1,), (C, 2)

    Returns
    -------
    ndarray, shape (R, 2)
    """
    fan, from_first = _fans(starts, vertices)
    weights = np.maximum(fan, 0)
    total = np.add.reduceat(weights, starts[:-1])[:, None]
    thirds = (from_first + from_first[_after(starts)]) / 3
    weighted = np.add.reduceat(weights[:, None] * thirds, starts[:-1])
    mean = np.add.reduceat(from_first, starts[:-1]) / np.diff(starts)[:, None]
    no_area = total == 0
    mean = np.where(no_area, mean, weighted / np.where(no_area, 1, total))
    return vertices[starts[:-1]] + mean


def _fans(starts, vertices):
    """Twice the area of each edge's triangle, (C,); vertices relative to the first one, (C, 2)."""
    from_first = vertices - np.repeat(vertices[starts[:-1]], np.diff(starts), axis=0)
    return cross(from_first, from_first[_after(starts)]), from_first


def _after(starts):
    """Index of the next vertex of the same polygon, for each vertex, (C,)."""
    after = np.arange(1, starts[-1] + 1)
    after[starts[1:] - 1] = starts[:-1]
    return after


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products of vectors along the last axis."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
