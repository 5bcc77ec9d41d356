"""Convex polygons and segments in the plane: how far, how large, and where the middle is.

The largest circle within a polygon is found in `refmmr.reference.incircles`.

Many polygons are two arrays: `vertices` (C, 2), one polygon after the other, each counter-clockwise,
and `starts` (R + 1,), where each begins; polygon i is ``vertices[starts[i] : starts[i + 1]]``, with
one vertex at least.

Where a complex of regions is cut finely, its polygons are often slivers, and edges may be as short
as a rounding error, so that nothing is known about their direction.  Hence nothing relies on the
direction of a single short edge:

- inside or outside is told by counting edges that a ray crosses, and a short edge is hardly ever
  met, whereas the line through it might cut the polygon in two;
- a middle is a mean of vertices with weights that are not negative (`centroids`).
"""

from __future__ import annotations

import numpy as np

from refmmr.reference.hyperplanes import dual_norm, norm, shortest_step

BLOCK = 2**14
"""Numbers in an intermediate array: so few that it stays in the cache."""

SHORT = 1e-150
"""A shorter edge is a point: squares of its length would vanish."""


def to_segments(
    points: np.ndarray, segments: np.ndarray, p: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance in l_p from each point to the nearest of many segments.

    Points are taken in groups of neighbours.  Within distance rho of the group's middle, only those
    segments can be nearest to a point that are no farther from the middle than the nearest one plus
    2 rho (the triangle inequality, twice).  Of these all are tried, in blocks of bounded size; see
    `slides` for one point and one segment.

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
    # Coordinates first, (2, m): each is one run of memory.
    lines = np.stack([starts.T, edges.T, slides(edges, p).T])
    index = np.empty(len(points), dtype=int)
    for group in _neighbours(points):
        near = _within_reach(points[group], lines, p)
        candidates = lines[:, :, None].take(near, axis=-1)
        size = max(1, BLOCK // len(near))
        for block in (group[first : first + size] for first in range(0, len(group), size)):
            gaps = _gaps(points[block].T[:, :, None], candidates)
            index[block] = near[_lengths(gaps, p).argmin(axis=1)]
    nearest = nearest_points(points, starts[index], ends[index], p)
    return norm(points - nearest, p), nearest, index


def _neighbours(points):
    """Indices of points, in groups: one for each cell of a grid that holds any."""
    if not len(points):
        return []
    # Some 4 sqrt(q) cells for q points balance the work on middles and on points.
    side = int(np.ceil(2 * len(points) ** 0.25))
    low, high = points.min(axis=0), points.max(axis=0)
    scale = np.where(high > low, high - low, 1)
    column, row = np.minimum((points - low) / scale * side, side - 1).astype(int).T
    cell = column * side + row
    order = np.argsort(cell, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(cell[order])) + 1)


def _within_reach(points, lines, p):
    """Indices of the segments that one of these points may be nearest to."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = norm(points - middle, p).max()
    distance = _lengths(_gaps(middle[:, None], lines), p)
    spare = 1 + 1e-9  # for rounding
    return np.flatnonzero(distance <= (distance.min() + 2 * radius) * spare)


def _gaps(x, lines):
    """From the nearest point of each segment to x: shapes (2, ...), (3, 2, ...) to (2, ...)."""
    start, edge, slide = lines
    offset = x - start
    t = np.clip((offset * slide).sum(axis=0), 0, 1)
    return offset - t * edge


def _lengths(gaps, p):
    """``||gap||_p`` of vectors along the first axis: (2, ...) to (...)."""
    return dual_norm(gaps, {1: np.inf, 2: 2, np.inf: 1}[p], axis=0)


def nearest_points(x: np.ndarray, starts: np.ndarray, ends: np.ndarray, p: float) -> np.ndarray:
    """The point of a segment that is nearest to x in l_p; shapes (..., 2) that broadcast."""
    edge = ends - starts
    t = np.clip(((x - starts) * slides(edge, p)).sum(axis=-1), 0, 1)[..., None]
    return np.where(t < 1, starts + t * edge, ends)


def slides(edge: np.ndarray, p: float) -> np.ndarray:
    """For lines along `edge`: the vectors w with which ``t = <w, x - a>`` is nearest to x.

    The distance of x to the point ``a + t edge`` of a segment is a convex function of t.  So its
    minimum over ``0 <= t <= 1`` is the minimum over the whole line, moved to the nearer end.

    The shortest way from x to the line has the same direction for all x: that of the free move v
    of the line's normal (`refmmr.reference.hyperplanes.shortest_step`).  In l_1 it is along one axis,
    so one coordinate difference is 0 in the end; in l_inf both differences are equally large; in
    l_2 it is perpendicular.  Hence t is a linear function of x, ``<w, x - a>``, that does not
    change along v and grows by 1 along the edge: w is v turned by a right angle.  As no l_p norm
    minds such a turn, w is the free move of the edge itself: the shortest w with ``<w, edge> = 1``.

    Parameters
    ----------
    edge : ndarray, shape (..., 2)
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (..., 2)
        0 where the edge is but a point: every x is nearest to its start.
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
    # Inside, a ray to the right leaves once; outside it meets no edge, or enters and leaves.
    up = ends[:, 1] > vertices[:, 1]
    meets = (vertices[:, 1] > point[1]) != (ends[:, 1] > point[1])
    right = (cross(ends - vertices, point - vertices) > 0) == up
    inside = np.logical_xor.reduceat(meets & right, starts[:-1])
    return np.where(inside, 0, np.minimum.reduceat(to_edges, starts[:-1]))


def areas(starts: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Areas of polygons, (R + 1,), (C, 2) to (R,): as sums of triangles at the first vertex."""
    fan, _ = _fans(starts, vertices)
    return np.add.reduceat(fan, starts[:-1]) / 2


def centroids(starts: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Centers of mass of convex polygons, or the mean of the vertices where there is no area.

    A polygon is a fan of triangles at its first vertex, and its center of mass is the mean of
    theirs, weighted by area.  Rounding may spoil the weights of a sliver, but with weights that are
    not negative the mean is still a point of the polygon.

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
    flat = total == 0
    return vertices[starts[:-1]] + np.where(flat, mean, weighted / np.where(flat, 1, total))


def _fans(starts, vertices):
    """Twice the area between edges and the first vertex, (C,); vertices seen from there, (C, 2)."""
    from_first = vertices - np.repeat(vertices[starts[:-1]], np.diff(starts), axis=0)
    return cross(from_first, from_first[_after(starts)]), from_first


def _after(starts):
    """Index of the vertex after each vertex of its polygon, (C,)."""
    after = np.arange(1, starts[-1] + 1)
    after[starts[1:] - 1] = starts[:-1]
    return after


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products of vectors along the last axis."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
