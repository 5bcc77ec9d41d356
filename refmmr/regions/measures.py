"""Distances, balls and a table of the regions of a complex."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _validate as check
from refmmr._optional import require
from refmmr.reference import incircles, polygons

if TYPE_CHECKING:
    import pandas

    from refmmr.regions.complex import RegionComplex

__all__ = [
    "BoundaryDistance",
    "boundary_distance",
    "inradii",
    "mend_volumes",
    "regions_meeting_ball",
    "to_frame",
]


VOLUME_DEFECT = 1e-9
"""Largest relative defect of the sum of all volumes that rounding errors of coordinates explain."""


class BoundaryDistance(NamedTuple):
    """Distances to the decision boundary, and its nearest points.

    Attributes
    ----------
    distance : ndarray, shape (m,)
        Infinite if the domain has no decision boundary.
    nearest : ndarray, shape (m, n)
        Points of the boundary; NaN if it is empty.
    classes : ndarray of int, shape (m, 2)
        The classes that tie there; -1 if it is empty.
    """

    distance: np.ndarray
    nearest: np.ndarray
    classes: np.ndarray


def boundary_distance(cx: RegionComplex, Z: ArrayLike, p: float | str) -> BoundaryDistance:
    """See `RegionComplex.boundary_distance`."""
    p = check.check_p(p)
    cx.check_plane("boundary_distance")
    Z = check.check_array("Z", Z, 2).astype(np.float64)
    check.check_shape("Z", Z, (len(Z), 2))
    segments, classes = cx.decision_boundary()
    distance, nearest, index = polygons.to_segments(Z, segments, p)
    pairs = np.full((len(Z), 2), -1)
    pairs[index >= 0] = classes[index[index >= 0]]
    return BoundaryDistance(distance, nearest, pairs)


def regions_meeting_ball(
    cx: RegionComplex, z: ArrayLike, radius: float, p: float | str
) -> np.ndarray:
    """See `RegionComplex.regions_meeting_ball`."""
    p = check.check_p(p)
    radius = check.check_number("radius", radius)
    z = check.check_array("z", z, 1).astype(np.float64)
    check.check_shape("z", z, (cx.dimension,))
    if cx.dimension == 2:
        gaps = polygons.to_polygons(z, cx.vertices.starts, cx.vertices.flat, p)
        return np.flatnonzero(gaps <= radius)
    starts, vertices = cx.vertices.starts[:-1], cx.vertices.flat
    lo, hi = np.minimum.reduceat(vertices, starts), np.maximum.reduceat(vertices, starts)
    # The distance to a region is at least that to its bounding box and at most that to a vertex;
    # only regions that these bounds do not decide need a linear program.
    near = np.linalg.norm(np.maximum(0, np.maximum(lo - z, z - hi)), ord=p, axis=1) <= radius
    nearest = np.minimum.reduceat(np.linalg.norm(vertices - z, ord=p, axis=1), starts)
    meets = near & (nearest <= radius)
    from refmmr.regions import polytopes  # imports SciPy and HiGHS, which takes time

    for i in np.flatnonzero(near & ~meets).tolist():
        meets[i] = polytopes.distance(*cx.halfspaces(i), z, p) <= radius
    return np.flatnonzero(meets)


def mend_volumes(cx: RegionComplex, volumes: np.ndarray) -> None:
    """Replace volumes of regions with uncertain vertices, (R,), by those of their convex hulls.

    The signs at such vertices may contradict each other, and then the facets of a region do not
    close, so that a sum over its faces misses a part.  Without that both volumes agree.
    """
    if cx.complete:
        lo, hi = cx.domain.rectangle
        if abs(volumes.sum() / np.prod(hi - lo) - 1) <= VOLUME_DEFECT:
            return
    from scipy.spatial import ConvexHull, QhullError

    uncertain = np.logical_or.reduceat(
        cx.uncertain[cx.vertex_numbers.flat], cx.vertex_numbers.starts[:-1]
    )
    for i in np.flatnonzero(uncertain).tolist():
        try:
            volumes[i] = ConvexHull(cx.vertices[i]).volume
        except QhullError:  # flat up to rounding errors
            volumes[i] = 0


def inradii(cx: RegionComplex) -> np.ndarray:
    """Radius of the largest l_2 ball in each region, (R,)."""
    if cx.dimension == 1:
        return cx.volumes / 2
    if cx.dimension == 2:
        return incircles.inradii(cx.vertices.starts, cx.vertices.flat)[1]
    from refmmr.regions import polytopes  # imports SciPy and HiGHS, which takes time

    radii = [polytopes.inradius(*cx.halfspaces(i))[1] for i in range(len(cx))]
    return np.maximum(np.array(radii), 0)


def to_frame(cx: RegionComplex) -> pandas.DataFrame:
    """See `RegionComplex.to_frame`."""
    frame: pandas.DataFrame = require("pandas", "to_frame").DataFrame(
        {
            "winner": cx.classes,
            "volume": cx.volumes,
            "inradius": inradii(cx),
            "facets": cx.facets_of.sizes,
            "vertices": cx.vertex_numbers.sizes,
            "active": cx.patterns_of(slice(None)).sum(axis=1),
            "jacobian_norm": np.linalg.norm(cx.affine_maps.V, ord=2, axis=(1, 2)),
        }
    )
    return frame.rename_axis("region")
