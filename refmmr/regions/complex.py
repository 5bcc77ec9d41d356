"""The complex of all linear regions of a network in a domain: regions, facets and vertices."""

from __future__ import annotations

import os
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _kernels
from refmmr import _validate as check
from refmmr.network import Network
from refmmr.reference import volumes
from refmmr.reference.class_pieces import ClassPiece
from refmmr.reference.enumeration import Regions
from refmmr.regions import decision, measures
from refmmr.regions.decision import DecisionBoundary
from refmmr.regions.domains import AffineDomain
from refmmr.regions.faces import face_counts
from refmmr.regions.facets import Facets, facet_table
from refmmr.regions.graph import AffineMaps, LinearRegions, read_only
from refmmr.regions.measures import BoundaryDistance
from refmmr.regions.ragged import Ragged
from refmmr.regions.verify import Verification, verify

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from refmmr.regions.explore import Explorer

__all__ = ["RegionComplex"]


class RegionComplex(LinearRegions):
    """All linear regions of a network in a domain, with their vertices.

    Returned by `enumerate_regions`.

    Attributes
    ----------
    net, domain, packed_patterns, complete
        As of `LinearRegions`.
    raw : Regions
        The arrays that `refmmr.reference.enumeration.enumerate_regions` returns, in float64.
    points : ndarray, shape (V, n)
        All vertices, each once, in the domain's coordinates.
    vertex_numbers : Ragged of int
        Numbers of the vertices of each region, rows of `points`; in the plane counter-clockwise.
    uncertain : ndarray of bool, shape (V,)
        Vertices where the value of some unit was within its rounding error and was replaced by 0.
        If no vertex is uncertain, all signs at the computed vertices are proved.
    exact_raw : Regions or None
        The same arrays without rounding, if all signs were decided in exact arithmetic.
    exact_points, exact_volumes : ndarray of fractions.Fraction or None
        Likewise the vertices and the volumes.
    """

    exact_raw: Regions | None = None
    exact_points: np.ndarray | None = None
    exact_volumes: np.ndarray | None = None

    def __init__(self, net: Network, domain: AffineDomain, regions: Regions) -> None:
        super().__init__(net, domain, regions.patterns, regions.complete)
        if regions.points.dtype == object:
            self.exact_raw, self.exact_points = regions, regions.points
            # Volumes of slivers would be lost in the rounding of their vertices.
            self.exact_volumes = volumes.volumes(regions)
            self.volumes = read_only(self.exact_volumes.astype(np.float64))
            regions = regions._replace(
                points=regions.points.astype(np.float64), maps=_floats(regions.maps)
            )
        self.raw = regions
        self.points, self.uncertain = regions.points, regions.uncertain
        self.vertex_numbers = Ragged(regions.vertex_starts, regions.vertices)

    @cached_property
    def vertices(self) -> Ragged:
        """Vertices of each region, arrays (m, n); in the plane counter-clockwise."""
        return Ragged(self.vertex_numbers.starts, self.points[self.vertex_numbers.flat])

    @cached_property
    def affine_maps(self) -> AffineMaps:
        """The logits of each region as an affine map of the domain's coordinates."""
        return AffineMaps.of_rows(self.raw.maps)

    @cached_property
    def breakpoints(self) -> np.ndarray:
        """The ends of a segment and all vertices between them, shape (V,), in ascending order.

        Raises
        ------
        ValueError
            For a domain that is not a line.
        """
        if self.dimension != 1:
            raise ValueError(
                f"breakpoints: expected a line, got a domain of {self.dimension} dimensions"
            )
        return read_only(np.sort(self.points[:, 0]))

    @cached_property
    def volumes(self) -> np.ndarray:
        """Volume of each region, (n_regions,), in the domain's coordinates.

        Areas of a plane are in squared units of the input, volumes of a `Segment` shares of its
        length.
        """
        found = np.maximum(_kernels.volumes(self.raw), 0)
        if self.dimension > 2 and self.uncertain.any():
            measures.mend_volumes(self, found)
        return read_only(found)

    @property
    def areas(self) -> np.ndarray:
        """The same as `volumes`."""
        return self.volumes

    @cached_property
    def centers(self) -> np.ndarray:  # type: ignore[override]  # computed at first use
        """The mean of the vertices of each region, (n_regions, n)."""
        sums = np.add.reduceat(self.vertices.flat, self.vertex_numbers.starts[:-1])
        return read_only(sums / self.vertex_numbers.sizes[:, None])

    @property
    def facets(self) -> Facets:  # type: ignore[override]  # computed at first use
        """The facets of all regions, each once, with the regions on both sides."""
        return self._facet_table[0]

    @property
    def unmatched_facets(self) -> int:
        """Number of facets inside the domain with no region, or several, on the other side."""
        return self._facet_table[1]

    @cached_property
    def _facet_table(self) -> tuple[Facets, int]:
        return facet_table(self.raw)

    # ---- Checks and measures.

    def verify(self) -> Verification:
        """Check the invariants of the complex, with values computed again from the network.

        Volumes add up to that of the domain; patterns are distinct; the centre of every region has
        its pattern; every facet inside the domain separates two regions that differ in its unit,
        and all units that differ are 0 on it; the Euler characteristic is 1.  If every facet inside
        the domain has a region on the other side, no region is missing.

        Returns
        -------
        Verification
            `ok`, and the problems in words.
        """
        return verify(self)

    def euler_characteristic(self) -> int | None:
        """Vertices minus edges plus faces ...: 1 if the regions subdivide a box.

        All faces are counted, which takes milliseconds per region in more than two dimensions.
        None if rounding errors spoiled faces of thin regions: where signs at uncertain vertices are
        replaced by 0, those at the vertices of one region may contradict each other.
        """
        found = int(((-1) ** np.arange(self.dimension + 1) * face_counts(self)).sum())
        spoiled = self.complete and found != 1 and self.uncertain.any()
        return None if spoiled else found

    def boundary_distance(self, Z: ArrayLike, p: float | str = 2) -> BoundaryDistance:
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
            Only the boundary within the domain is known: a distance is that in the whole plane if
            it is at most the distance to the faces of the domain.
        """
        return measures.boundary_distance(self, Z, p)

    def regions_meeting_ball(self, z: ArrayLike, radius: float, p: float | str = 2) -> np.ndarray:
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
            Their numbers, in ascending order.
        """
        return measures.regions_meeting_ball(self, z, radius, p)

    def to_frame(self) -> pandas.DataFrame:
        """A table with a row for each region.

        Returns
        -------
        pandas.DataFrame
            Columns: winner (class at the centre), volume, inradius (of the largest l_2 ball),
            facets, vertices, active (number of active units), jacobian_norm (spectral norm of the
            Jacobian of the logits with respect to the domain's coordinates).

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        return measures.to_frame(self)

    def _repr_html_(self) -> str:
        from refmmr.display import html

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

    # ---- Classes.

    @cached_property
    def classes(self) -> np.ndarray:
        """Class of the largest logit at each region's centre, the first of equals; (n_regions,)."""
        if self.exact_raw is None or np.isfinite(self.logit_errors).all():
            return super().classes
        return read_only(decision.exact_classes(self))

    @cached_property
    def contested(self) -> np.ndarray:
        """Numbers of the regions where more than one class may have the largest logit, (m,)."""
        return decision.contested(self)

    @cached_property
    def class_pieces(self) -> tuple[list[ClassPiece], np.ndarray]:
        """The contested regions cut by the class of the largest logit, and their vertices.

        The vertices are in fractions if the complex is exact.
        """
        return decision.cut_by_class(self)

    def class_polygons(self) -> list[tuple[int, np.ndarray]]:
        """Regions cut by the class that wins: pairs (class, vertices (m, n))."""
        return decision.class_polygons(self)

    def decision_boundary(self) -> DecisionBoundary:
        """Exact pieces of the set where two classes tie for the largest logit.

        Where logits tie on a whole region, the first of the classes wins there and only the facets
        to other classes count.

        Returns
        -------
        DecisionBoundary
            In the plane segments, in n dimensions polytopes of n - 1 dimensions.
        """
        return decision.decision_boundary(self)

    # ---- Bent hyperplanes.

    def bent_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """The zero set of each hidden unit in a plane: a bent hyperplane, here a bent line.

        A unit after the first layer is affine on each region of the layers before it, so its zero
        set bends where it crosses theirs (Hanin and Rolnick 2019).

        Returns
        -------
        segments : ndarray, shape (m, 2, 2)
        units : ndarray, shape (m,)
            The unit of each segment; a segment where several units change sign occurs once per
            unit.

        Raises
        ------
        ValueError
            For a domain that is not of two dimensions; see `bent_hyperplane`.
        """
        self.check_plane("bent_lines")
        facets, units = self.flips()
        return self.points[self.facets.vertices.flat.reshape(-1, 2)[facets]], units

    def bent_hyperplane(self, unit: int) -> list[np.ndarray]:
        """The facets on which a hidden unit changes sign, vertices (k, n) of each.

        Parameters
        ----------
        unit : int
            Number of the unit among all of `net`.
        """
        unit = check.check_count("unit", unit, 0, self.net.n_hidden - 1)
        facets, units = self._flips
        return [self.points[self.facets.vertices[i]] for i in facets[units == unit].tolist()]

    @cached_property
    def _flips(self) -> tuple[np.ndarray, np.ndarray]:
        return self.flips()

    def check_plane(self, name: str) -> None:
        """Raise a ValueError, about this method or argument, if the domain is not a plane."""
        if self.dimension != 2:
            raise ValueError(
                f"{name}: expected a plane, got a domain of {self.dimension} dimensions"
            )

    def plot(self, color: str = "region", ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the regions of a plane; see `refmmr.display.figures.regions`."""
        from refmmr.display.figures import regions as draw

        self.check_plane("plot")
        return draw(self, color=color, ax=ax, **options)

    def explore(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ) -> Explorer:
        """An interactive page of the regions of a plane; see `refmmr.regions.explore.explore`."""
        from refmmr.regions.explore import explore

        self.check_plane("explore")
        return explore(self, path, points=points, labels=labels)

    # ---- Files.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the complex to an .npz file; see `refmmr.regions.files.save_regions`."""
        from refmmr.regions.files import save_regions

        save_regions(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RegionComplex:
        """Read a complex that `save` wrote; see `refmmr.regions.files.load_regions`."""
        from refmmr.regions.files import load_regions

        return load_regions(path, cls)

    def to_geojson(self) -> dict[str, Any]:
        """The regions of a plane as GeoJSON; see `refmmr.regions.export.geojson`."""
        from refmmr.regions.export import geojson

        return geojson(self)

    def to_svg(self, color: str = "class", **options: Any) -> str:
        """The regions of a plane as a picture; see `refmmr.regions.export.svg`."""
        from refmmr.regions.export import svg

        return svg(self, color, **options)


def _floats(fractions: np.ndarray) -> np.ndarray:
    """Fractions as floats, infinite where they are too large."""
    try:
        return fractions.astype(np.float64)
    except OverflowError:
        numbers = [_float(number) for number in fractions.ravel().tolist()]
        return np.array(numbers).reshape(fractions.shape)


def _float(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return np.inf if number > 0 else -np.inf
