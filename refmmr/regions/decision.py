"""The parts of a complex where each class has the largest logit, and where two classes tie."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refmmr.exact import exact_network
from refmmr.reference import class_pieces
from refmmr.reference.cells import Cell, Polygon
from refmmr.reference.class_pieces import ClassPiece

if TYPE_CHECKING:
    from refmmr.regions.complex import RegionComplex

__all__ = [
    "DecisionBoundary",
    "class_polygons",
    "contested",
    "cut_by_class",
    "decision_boundary",
    "exact_classes",
]

CHUNK = 2**22
"""Largest number of logits in memory at once: 32 MB."""


class DecisionBoundary(NamedTuple):
    """Pieces of the set where two classes tie for the largest logit.

    Attributes
    ----------
    pieces : ndarray or list of ndarray
        In the plane the segments, shape (m, 2, 2): start and end of each, in coordinates of the
        domain.  In n dimensions a list of m arrays (k, n): the vertices of a polytope of n - 1
        dimensions.
    classes : ndarray, shape (m, 2)
        The two classes, the smaller first.
    """

    pieces: Any
    classes: np.ndarray

    @property
    def segments(self) -> np.ndarray:
        """The pieces, in the plane."""
        return self.pieces


def exact_classes(cx: RegionComplex) -> np.ndarray:
    """Class of the largest logit at each region's centre, in exact arithmetic, (R,)."""
    # The centre is the mean of the vertices, and an affine map takes it to the mean of the values.
    sums = [logits.sum(axis=0).tolist() for logits in _exact_logits(cx)]
    return np.array([logits.index(max(logits)) for logits in sums])


def _exact_logits(cx: RegionComplex) -> Iterator[np.ndarray]:
    """Of each region at its vertices, (m, K) fractions."""
    assert cx.exact_raw is not None
    assert cx.exact_points is not None
    for vertices, rows in zip(cx.vertex_numbers, cx.exact_raw.maps, strict=True):
        yield cx.exact_points[vertices] @ rows[:-1] + rows[-1]


def contested(cx: RegionComplex) -> np.ndarray:
    """Numbers of the regions where no class surely has the largest logit at every vertex."""
    if cx.exact_raw is not None and not np.isfinite(cx.logit_errors).all():
        parts = zip(_exact_logits(cx), cx.classes.tolist(), strict=True)
        leads = [logits[:, [c]] - np.delete(logits, c, axis=1) for logits, c in parts]
        return np.flatnonzero([bool((lead <= 0).any()) for lead in leads])
    owner = cx.vertex_numbers.owners()
    errors = cx.logit_errors
    found = np.zeros(len(cx), dtype=bool)
    step = max(1, CHUNK // cx.net.n_classes)
    for start in range(0, len(owner), step):
        some = slice(start, start + step)
        V, a = (part[owner[some]] for part in cx.affine_maps)
        logits = np.einsum("ckn,cn->ck", V, cx.vertices.flat[some]) + a
        winner = cx.classes[owner[some]][:, None]
        lead = np.take_along_axis(logits, winner, axis=1) - logits
        margin = 2 * (errors + errors[winner])
        np.put_along_axis(lead, winner, np.inf, axis=1)
        found[owner[some][(lead <= margin).any(axis=1)]] = True
    return np.flatnonzero(found)


def cut_by_class(cx: RegionComplex) -> tuple[list[ClassPiece], np.ndarray]:
    """See `RegionComplex.class_pieces`."""
    which = cx.contested.tolist()
    if cx.exact_raw is None:
        return class_pieces.class_pieces(cx.net, cx.raw, cx.domain.arrays(), which)
    net, arrays = exact_network(cx.net), cx.domain.arrays(exact=True)
    return class_pieces.class_pieces(net, cx.exact_raw, arrays, which)


def class_polygons(cx: RegionComplex) -> list[tuple[int, np.ndarray]]:
    """See `RegionComplex.class_polygons`."""
    pieces, points = cx.class_pieces
    whole = np.ones(len(cx), dtype=bool)
    whole[cx.contested] = False
    winners, vertices = cx.classes, cx.vertices
    points = points.astype(np.float64)
    found = [(int(winners[i]), vertices[i]) for i in np.flatnonzero(whole).tolist()]
    return found + [(piece.winner, points[piece.cell.vertices]) for piece in pieces]


def decision_boundary(cx: RegionComplex) -> DecisionBoundary:
    """See `RegionComplex.decision_boundary`."""
    pieces, points = cx.class_pieces
    found: dict[tuple, list[int]] = {}
    for piece in pieces:
        for place, vertices, pair in _ties(cx, piece, points):
            found.setdefault((place, *pair), vertices)
    points = points.astype(np.float64)
    parts = [points[vertices] for vertices in found.values()]
    classes = np.array([place_and_pair[1:] for place_and_pair in found], dtype=int).reshape(-1, 2)
    if cx.dimension == 2:
        return DecisionBoundary(np.array(parts).reshape(-1, 2, 2), classes)
    return DecisionBoundary(parts, classes)


def _ties(
    cx: RegionComplex, piece: ClassPiece, points: np.ndarray
) -> Iterator[tuple[Hashable, list[int], tuple[int, int]]]:
    """Facets of a piece along which another class ties: (place, vertices, (class, class)) each.

    A place is the inside of a region or a facet between two regions.  Two classes tie on at most
    one polytope in each place.  The pieces of both classes may yield it, with different numbers of
    vertices where a third class ends the tie.
    """
    cell, n_classes = piece.cell, cx.net.n_classes
    touches = cell.touches
    rows = (cx.exact_raw or cx.raw).maps[piece.region]
    logits = points[cell.vertices] @ rows[:-1] + rows[-1]
    errors = cx.logit_errors if cx.exact_raw is None else np.zeros(n_classes)
    lead = logits[:, piece.winner, None] - logits
    equal = np.abs(lead) <= 2 * (errors + errors[piece.winner])
    facets = _facet_names(cx, piece.region)
    for facet, hyperplane in enumerate(cell.hyperplanes.tolist()):
        on = touches[:, facet]
        rivals = equal[on].all(axis=0) & ~equal.all(axis=0)
        if hyperplane >= cx.net.n_hidden:
            # A cut through the region: its two classes tie, and perhaps others.
            rivals[list(divmod(hyperplane - cx.net.n_hidden, n_classes))] = True
            rivals[piece.winner] = False
        place = facets.get(hyperplane, piece.region)
        vertices = _in_order(cell, facet, on)
        for rival in np.flatnonzero(rivals).tolist():
            yield place, vertices, (min(piece.winner, rival), max(piece.winner, rival))


def _facet_names(cx: RegionComplex, region: int) -> dict[int, frozenset[int]]:
    """The vertices of each facet of a region, by its hyperplane."""
    cell = cx.raw.cell(region)
    touches = cell.touches
    return {
        hyperplane: frozenset(cell.vertices[touches[:, facet]].tolist())
        for facet, hyperplane in enumerate(cell.hyperplanes.tolist())
    }


def _in_order(cell: Cell, facet: int, on: np.ndarray) -> list[int]:
    """Numbers of the vertices of a facet; of a polygon's edge from start to end."""
    if isinstance(cell, Polygon):
        return [int(cell.vertices[facet]), int(cell.vertices[(facet + 1) % len(cell.vertices)])]
    return cell.vertices[on].tolist()
