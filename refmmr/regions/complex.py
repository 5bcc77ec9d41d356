"""The complex of all linear regions: a graph of regions that also knows every vertex."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _kernels
from refmmr import _validate as check
from refmmr.display import html
from refmmr.exact import exact_network
from refmmr.network import Network
from refmmr.reference import class_pieces, volumes
from refmmr.reference import enumeration as _regions
from refmmr.reference.class_pieces import ClassPiece
from refmmr.regions.domains import AffineDomain
from refmmr.regions.faces import face_counts
from refmmr.regions.facets import Facets, facet_table
from refmmr.regions.graph import AffineMaps, RegionGraph, as_maps
from refmmr.regions.measures import (
    BoundaryDistance,
    boundary_distance,
    regions_meeting_ball,
    to_frame,
)
from refmmr.regions.ragged import Ragged
from refmmr.regions.verify import Verification, verify

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from refmmr.regions.explore import Explorer

__all__ = ["DecisionBoundary", "RegionComplex"]


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


class RegionComplex(RegionGraph):
    """All linear regions of a network in a domain, with their vertices.

    Attributes
    ----------
    net : Network
        In float64.
    domain : Box, Slice or Segment
    packed_patterns : ndarray of uint8, shape (n_regions, ceil(n_hidden / 8))
        Activation pattern of each region, as bits
        (`numpy.packbits` with ``bitorder="little"``).
    points : ndarray, shape (V, n)
        All vertices, each once, in the domain's coordinates.
    vertices : Ragged of int
        Numbers of the vertices of each region, rows of `points`; in the plane counter-clockwise.
    uncertain : ndarray of bool, shape (V,)
        Vertices where the sign of some unit was within its rounding error, and was taken for 0.  If
        there is none, all signs at the computed vertices are proved.
    exact_points : ndarray of fractions.Fraction or None
        The vertices without rounding, if all signs were decided in exact arithmetic; likewise
        `exact_volumes`.
    complete : bool
        False if a budget or the user ended the enumeration early: then some regions are missing.
    """

    exact_points: np.ndarray | None = None
    exact_volumes: np.ndarray | None = None
    _exact: _regions.Regions | None = None

    def __init__(self, net: Network, domain: AffineDomain, regions: _regions.Regions) -> None:
        # Not that of the base class: what a walk has found is made here when it is asked for.
        self.net, self.domain = net, domain
        if regions.points.dtype == object:
            self.exact_points, self._exact = regions.points, regions
            # Sizes of slivers would be lost in the rounding of their vertices.
            self.exact_volumes = volumes.volumes(regions)
            self.volumes = self.exact_volumes.astype(np.float64)
            regions = regions._replace(
                points=regions.points.astype(np.float64), maps=regions.maps.astype(np.float64)
            )
        self.raw = regions
        self.packed_patterns, self.complete = regions.patterns, regions.complete
        self.points, self.uncertain = regions.points, regions.uncertain
        self.vertex_numbers = Ragged(regions.vertex_starts, regions.vertices)

    @cached_property
    def vertices(self) -> Ragged:
        """Vertices of each region, arrays (m, n); in the plane counter-clockwise."""
        return Ragged(self.vertex_numbers.starts, self.points[self.vertex_numbers.flat])

    @cached_property
    def affine_maps(self) -> AffineMaps:
        """The logits of each region as an affine map of the domain's coordinates."""
        return AffineMaps(*as_maps(self.raw.maps))

    @property
    def breakpoints(self) -> np.ndarray:
        """Where a line enters and leaves regions, rising: its two ends and all vertices between.

        Raises
        ------
        ValueError
            For a domain that is not a line.
        """
        if self.dimension != 1:
            raise ValueError(
                f"breakpoints: expected a line, got a domain of {self.dimension} dimensions"
            )
        return np.sort(self.points[:, 0])

    @cached_property
    def volumes(self) -> np.ndarray:
        """Volume of each region, (n_regions,), in the domain's coordinates.

        Areas of a plane in squared units of the input; of a `Segment` shares of its length.
        """
        return np.maximum(_kernels.volumes(self.raw), 0)

    @property
    def areas(self) -> np.ndarray:
        """The same as `volumes`."""
        return self.volumes

    @cached_property
    def centers(self) -> np.ndarray:  # type: ignore[override]
        """The mean of the vertices of each region, (n_regions, n)."""
        sums = np.add.reduceat(self.vertices.flat, self.vertex_numbers.starts[:-1])
        return sums / self.vertex_numbers.sizes[:, None]

    @cached_property
    def _facets(self) -> tuple[Facets, int]:
        return facet_table(self.raw)

    @property
    def facets(self) -> Facets:  # type: ignore[override]
        """Facets that matter (none is redundant), each once, with the regions on both sides."""
        return self._facets[0]

    @property
    def unmatched_facets(self) -> int:
        """Facets inside the domain with no region, or more than one, on the other side."""
        return self._facets[1]

    # ---- How large, how far.

    def verify(self) -> Verification:
        """Check the invariants of the complex, from the network afresh.

        Volumes add up to the domain's; patterns are distinct; the centre of every region has its
        pattern; every facet inside the domain parts two regions that differ in its unit, and lies
        where the units are 0 that change sign there; the Euler characteristic is 1.  If every facet
        has a region on the other side, none can be missing.

        Returns
        -------
        Verification
            With `ok`, and the problems in words.
        """
        return verify(self)

    def euler_characteristic(self) -> int:
        """Vertices minus edges plus faces ...: 1 if the cells fit together to a box.

        All faces are counted, which takes milliseconds a region in more than two dimensions.
        """
        return int(((-1) ** np.arange(self.dimension + 1) * face_counts(self)).sum())

    def boundary_distance(self, Z: ArrayLike, p: float) -> BoundaryDistance:
        """Exact distance from points of a plane to the decision boundary within the domain.

        Parameters
        ----------
        Z : array_like, shape (m, 2)
            Points in the domain's coordinates.
        p : {1, 2, inf}
            The norm, of the domain's coordinates.

        Returns
        -------
        BoundaryDistance
            What is outside of the domain is not known: a distance is that in the whole plane if it
            is not larger than the one to the domain's faces.
        """
        return boundary_distance(self, Z, p)

    def regions_meeting_ball(self, z: ArrayLike, radius: float, p: float) -> np.ndarray:
        """Regions that a ball meets.

        Parameters
        ----------
        z : array_like, shape (n,)
            Its centre, in the domain's coordinates.
        radius : float
        p : {1, 2, inf}
            The norm, of the domain's coordinates.

        Returns
        -------
        ndarray of int
            Their numbers, rising.
        """
        return regions_meeting_ball(self, z, radius, p)

    def to_frame(self) -> pandas.DataFrame:
        """A table with a row for each region.

        Returns
        -------
        pandas.DataFrame
            Columns: winner (class at the centre), volume, inradius (of the largest l_2 ball),
            facets, vertices, active (number of active units), jacobian_norm (largest l_2 stretch
            of the logits, with respect to the domain's coordinates).

        Raises
        ------
        ImportError
            When pandas is not installed.
        """
        return to_frame(self)

    def _repr_html_(self) -> str:
        return html.regions(self)

    def summary(self) -> dict[str, Any]:
        """A few numbers about the complex: counts, sizes, uncertain vertices."""
        volumes = self.volumes
        return {
            "regions": len(self),
            "regions_by_layer": self.layer_counts.tolist(),
            "vertices": len(self.points),
            "facets": len(self.facets.hyperplanes),
            "mean_facets": float(self.facets_of.sizes.mean()),
            "smallest_volume": float(volumes.min()),
            "median_volume": float(np.median(volumes)),
            "largest_volume": float(volumes.max()),
            "uncertain_vertices": int(self.uncertain.sum()),
            "complete": self.complete,
        }

    # ---- Who wins.

    @cached_property
    def class_pieces(self) -> tuple[list[ClassPiece], np.ndarray]:
        """Regions where more than one class may win, cut by winner; the points they use.

        In fractions, if the complex is exact.
        """
        which = self._contested.tolist()
        if self._exact is None:
            return class_pieces.class_pieces(self.net, self.raw, self.domain.arrays(), which)
        net, arrays = exact_network(self.net), self.domain.arrays(exact=True)
        return class_pieces.class_pieces(net, self._exact, arrays, which)

    @cached_property
    def _contested(self) -> np.ndarray:
        """Regions where no class is clearly ahead of all others at every vertex."""
        owner = self.vertex_numbers.owners()
        errors = self._logit_errors
        contested = np.zeros(len(self), dtype=bool)
        step = max(1, 2**22 // self.net.n_classes)
        for start in range(0, len(owner), step):
            some = slice(start, start + step)
            V, a = (part[owner[some]] for part in self.affine_maps)
            logits = np.einsum("ckn,cn->ck", V, self.vertices.flat[some]) + a
            winner = self.classes[owner[some]][:, None]
            lead = np.take_along_axis(logits, winner, axis=1) - logits
            margin = 2 * (errors + errors[winner])
            np.put_along_axis(lead, winner, np.inf, axis=1)
            contested[owner[some][(lead <= margin).any(axis=1)]] = True
        return np.flatnonzero(contested)

    def class_polygons(self) -> list[tuple[int, np.ndarray]]:
        """Regions cut by the class that wins: pairs (class, vertices (m, n))."""
        pieces, points = self.class_pieces
        whole = np.ones(len(self), dtype=bool)
        whole[self._contested] = False
        winners, vertices = self.classes, self.vertices
        points = points.astype(np.float64)
        found = [(int(winners[i]), vertices[i]) for i in np.flatnonzero(whole).tolist()]
        return found + [(piece.winner, points[piece.cell.vertices]) for piece in pieces]

    def decision_boundary(self) -> DecisionBoundary:
        """Exact pieces of the set where two classes tie for the largest logit.

        Where logits tie on a whole region, the first of the classes wins there and only the facets
        to other classes count.

        Returns
        -------
        DecisionBoundary
            In the plane segments, in n dimensions polytopes of n - 1 dimensions.
        """
        pieces, points = self.class_pieces
        found: dict[tuple, list[int]] = {}
        for piece in pieces:
            for place, vertices, pair in self._ties(piece, points):
                found.setdefault((place, *pair), vertices)
        points = points.astype(np.float64)
        parts = [points[vertices] for vertices in found.values()]
        classes = np.array([key[1:] for key in found], dtype=int).reshape(-1, 2)
        if self.dimension == 2:
            return DecisionBoundary(np.array(parts).reshape(-1, 2, 2), classes)
        return DecisionBoundary(parts, classes)

    def _ties(
        self, piece: ClassPiece, points: np.ndarray
    ) -> Iterator[tuple[Hashable, list[int], tuple[int, int]]]:
        """Facets of a piece along which another class ties: (place, vertices, (class, class)) each.

        Two classes tie on one polytope at most in each place, which is the inside of a region or a
        facet between two.  Each class's piece may report it, with vertices of other numbers where
        a third class ends the tie.
        """
        cell, n_classes = piece.cell, self.net.n_classes
        touches = _regions.cell_touches(cell)
        rows = (self._exact or self.raw).maps[piece.region]
        logits = points[cell.vertices] @ rows[:-1] + rows[-1]
        errors = self._logit_errors if self._exact is None else np.zeros(n_classes)
        lead = logits[:, piece.winner, None] - logits
        equal = np.abs(lead) <= 2 * (errors + errors[piece.winner])
        facets = self._facet_names(piece.region)
        for facet, hyperplane in enumerate(cell.hyperplanes.tolist()):
            on = touches[:, facet]
            rivals = equal[on].all(axis=0) & ~equal.all(axis=0)
            if hyperplane >= self.net.n_hidden:
                # A cut through the region: its two classes tie, and perhaps others.
                rivals[list(divmod(hyperplane - self.net.n_hidden, n_classes))] = True
                rivals[piece.winner] = False
            place = facets.get(hyperplane, piece.region)
            vertices = _in_order(cell, facet, on)
            for rival in np.flatnonzero(rivals).tolist():
                yield place, vertices, (min(piece.winner, rival), max(piece.winner, rival))

    def _facet_names(self, region: int) -> dict[int, frozenset[int]]:
        """The vertices of each facet of a region, by its hyperplane."""
        cell = _regions.region_cell(self.raw, region)
        touches = _regions.cell_touches(cell)
        return {
            hyperplane: frozenset(cell.vertices[touches[:, facet]].tolist())
            for facet, hyperplane in enumerate(cell.hyperplanes.tolist())
        }

    # ---- Hyperplanes.

    def bent_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """The hyperplanes of a plane: where each unit changes sign, a line that bends at those before.

        Returns
        -------
        segments : ndarray, shape (m, 2, 2)
        units : ndarray, shape (m,)
            The unit of each segment; where several change sign, the segment is there for each.

        Raises
        ------
        ValueError
            For a domain that is not of two dimensions; see `bent_hyperplane`.
        """
        self.check_plane("bent_lines")
        facets, units = self.flips()
        return self.points[self.facets.vertices.flat.reshape(-1, 2)[facets]], units

    def bent_hyperplane(self, unit: int) -> list[np.ndarray]:
        """The facets where a hidden unit changes sign, vertices (k, n) of each."""
        unit = check.check_count("unit", unit, 0, self.net.n_hidden - 1)
        facets, units = self._flips
        return [self.points[self.facets.vertices[i]] for i in facets[units == unit].tolist()]

    @cached_property
    def _flips(self) -> tuple[np.ndarray, np.ndarray]:
        return self.flips()

    def check_plane(self, what: str) -> None:
        """Raise a ValueError if the domain is not of two dimensions."""
        if self.dimension != 2:
            raise ValueError(
                f"{what}: expected a plane, got a domain of {self.dimension} dimensions"
            )

    def plot(self, color: str = "region", ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the regions of a plane; see `refmmr.display.figures.regions`."""
        from refmmr.display.figures import regions as draw

        self.check_plane("plot")
        return draw(self, color=color, ax=ax, **options)

    def explore(self, path: str | os.PathLike[str] | None = None) -> Explorer:
        """An interactive page of the regions of a plane; see `refmmr.regions.explore.explore`."""
        from refmmr.regions.explore import explore

        self.check_plane("explore")
        return explore(self, path)

    # ---- Files.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the complex to an .npz file; see `refmmr.regions.files.save_regions`."""
        from refmmr.regions.files import save_regions

        save_regions(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> RegionComplex:
        """Read a complex that `save` wrote; see `refmmr.regions.files.load_regions`."""
        from refmmr.regions.files import load_regions

        return load_regions(path)

    def to_geojson(self) -> dict[str, Any]:
        """The regions of a plane as GeoJSON; see `refmmr.regions.export.geojson`."""
        from refmmr.regions.export import geojson

        return geojson(self)

    def to_svg(self, color: str = "class", **options: Any) -> str:
        """The regions of a plane as a picture; see `refmmr.regions.export.svg`."""
        from refmmr.regions.export import svg

        return svg(self, color, **options)


def _in_order(cell: _regions.Cell, facet: int, on: np.ndarray) -> list[int]:
    """Numbers of the vertices of a facet; of a polygon's edge from start to end."""
    if isinstance(cell, _regions.Polygon):
        return [int(cell.vertices[facet]), int(cell.vertices[(facet + 1) % len(cell.vertices)])]
    return cell.vertices[on].tolist()
