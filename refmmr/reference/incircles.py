"""The largest circle within each of many convex polygons."""

from __future__ import annotations

import numpy as np

from refmmr.reference.polygons import cross

BLOCK = 2**18
"""Largest number of elements of an intermediate array, about: 2 MB."""


def inradii(starts: np.ndarray, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest circle (l_2) within each convex polygon.

    A circle with center c lies in a half-plane ``<n, z> <= h`` with ``||n|| = 1`` if its radius is
    at most the slack ``h - <n, c>``.  So the largest circle is a linear program in c and the radius
    (the Chebyshev center): it maximises the smallest slack, and touches three edges, or two
    parallel ones.

    It is solved by an active-set method, since few edges are touched.  Start with the largest
    circle in the bounding box.  Add the edge that the circle violates most to the active set.  The
    largest circle within the active lines touches the new one and two others: try all pairs.
    Repeat until no edge is violated; the number of rounds hardly grows with the number of edges.
    The radius of a candidate is its smallest slack, so candidates spoiled by rounding (by three
    nearly parallel lines, say) are not chosen, and the circle that is returned lies within the
    polygon.

    Parameters
    ----------
    starts, vertices : ndarray, shapes (R + 1,), (C, 2)

    Returns
    -------
    centers : ndarray, shape (R, 2)
        One of several where the circle touches two parallel edges.
    radii : ndarray, shape (R,)
        Not negative.
    """
    counts = np.diff(starts)
    centers, radii = np.empty((len(counts), 2)), np.empty(len(counts))
    for m in np.unique(counts).tolist():
        alike = np.flatnonzero(counts == m)
        size = max(1, BLOCK // (m + 8) ** 2)
        for block in (alike[first : first + size] for first in range(0, len(alike), size)):
            polygons = vertices[starts[block][:, None] + np.arange(m)]
            centers[block], radii[block] = _incircles(polygons)
    return centers, radii


def _incircles(polygons):
    """`inradii` of polygons with the same number of vertices, (R, m, 2)."""
    middle = polygons.mean(axis=1)
    normals, heights = _lines(polygons, middle)
    box = heights[:, -4:]  # the bounding box: right, top, left, bottom
    centers = (box[:, :2] - box[:, 2:]) / 2
    radii = (box[:, :2] + box[:, 2:]).min(axis=1) / 2
    m = polygons.shape[1]
    active = np.broadcast_to(np.arange(m, m + 4), (len(polygons), 4))
    todo = np.arange(len(polygons))
    while True:
        slack = _slacks(normals[todo], heights[todo], centers[todo])
        worst = slack.argmin(axis=1)[:, None]
        violated = (slack.min(axis=1) < radii[todo]) & (active != worst).all(axis=1)
        if not violated.any():
            break
        todo, active = todo[violated], np.concatenate([active, worst], axis=1)[violated]
        n, h = normals[todo[:, None], active], heights[todo[:, None], active]
        centers[todo], radii[todo] = _largest_touching_last(n, h)
    within = _slacks(normals, heights, centers).min(axis=1)
    return middle + centers, np.maximum(within, 0)


def _lines(polygons, middle):
    """Lines ``<n, z - middle> = h``: normals (R, m + 4, 2), outward, and heights (R, m + 4).

    First those of the edges, then those of the bounding box.  The height is the largest over all
    vertices.  This is the height of the edge, unless the edge is as short as a rounding error and
    its direction arbitrary: then its line would cut off a part of the polygon.
    """
    edges = np.roll(polygons, -1, axis=1) - polygons
    lengths = np.hypot(edges[..., 0], edges[..., 1])[..., None]
    outward = np.stack([edges[..., 1], -edges[..., 0]], axis=-1) / np.where(lengths, lengths, 1)
    axes = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    axes = np.broadcast_to(axes, (len(polygons), 4, 2))
    normals = np.concatenate([outward, axes], axis=1)
    heights = _dot(normals[:, :, None], (polygons - middle[:, None])[:, None]).max(axis=2)
    heights[:, :-4][lengths[..., 0] == 0] = np.inf  # an edge of length 0 has no line
    return normals, heights


def _slacks(normals, heights, centers):
    """``h - <n, c>`` for each line: (R, l, 2), (R, l), (R, 2) to (R, l)."""
    return heights - _dot(normals, centers[:, None])


def _largest_touching_last(n, h):
    """Of the circles that touch the last line and two others, the largest within all lines.

    Parameters
    ----------
    n, h : ndarray, shapes (R, l, 2), (R, l)

    Returns
    -------
    centers, radii : ndarray, shapes (R, 2), (R,)
    """
    i, j = np.triu_indices(n.shape[1] - 1, k=1)
    n1, n2, n3 = n[:, i], n[:, j], n[:, -1:]
    h1, h2, h3 = h[:, i, None], h[:, j, None], h[:, -1:, None]
    # Cramer's rule for ``<n, c> + radius = h`` with the three lines.
    det = cross(n1, n2) + cross(n2, n3) + cross(n3, n1)
    turned = h1 * (n2 - n3) + h2 * (n3 - n1) + h3 * (n1 - n2)
    det = np.where(det == 0, 1, det)  # parallel lines: an arbitrary candidate, not chosen
    candidates = np.stack([turned[..., 1] / det, -turned[..., 0] / det], axis=-1)
    radii = (h[:, None] - _dot(n[:, None], candidates[:, :, None])).min(axis=2)
    best = radii.argmax(axis=1)
    rows = np.arange(len(n))
    return candidates[rows, best], radii[rows, best]


def _dot(a, b):
    """Scalar products of vectors along the last axis."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1]
