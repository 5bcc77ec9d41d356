"""All linear regions of a network in a domain, and the graph of those that share a facet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _validate as check
from refmmr._optional import require
from refmmr.network import Network
from refmmr.reference import enumeration
from refmmr.reference.network import flat, unflat
from refmmr.regions.domains import AffineDomain
from refmmr.regions.facets import Facets
from refmmr.regions.ragged import Ragged

if TYPE_CHECKING:
    import networkx

    from refmmr.regions.walk import Walk

__all__ = ["AffineMaps", "LinearRegions", "RegionGraph", "check_complex"]

CHUNK = 1024
"""Number of regions whose affine maps of all units are in memory at once."""

DIRECTIONS = 8
"""Number of random directions tried from a point on a hyperplane, to find a region beside it."""


class AffineMaps(NamedTuple):
    """The logits of each of R regions: ``V z + a`` in the domain's n coordinates.

    Attributes
    ----------
    V : ndarray, shape (R, K, n)
    a : ndarray, shape (R, K)
    """

    V: np.ndarray
    a: np.ndarray

    @classmethod
    def of_rows(cls, rows: np.ndarray) -> AffineMaps:
        """From the maps of the reference, (R, n + 1, K): n rows of V^T, then a."""
        return cls(np.moveaxis(rows[:, :-1], 1, 2), rows[:, -1])


class LinearRegions:
    """Linear regions and their facets: the base class of `RegionComplex` and `RegionGraph`.

    These provide `facets` and `centers`.  What is computed from them is kept after its first use,
    in arrays that are read-only: a copy may be changed.

    Attributes
    ----------
    net : Network
        In float64.
    domain : Box, Slice or Segment
    packed_patterns : ndarray of uint8, shape (n_regions, ceil(n_hidden / 8))
        Activation pattern of each region, as bits (`numpy.packbits` with ``bitorder="little"``).
    complete : bool
        False if a budget or the user ended the enumeration early: then some regions are missing.
    facets : Facets
        The facets of all regions, each once, with the regions on both sides.
    centers : ndarray, shape (n_regions, n)
        A point inside each region, in the domain's coordinates.
    """

    facets: Facets
    centers: np.ndarray

    def __init__(
        self, net: Network, domain: AffineDomain, packed_patterns: np.ndarray, complete: bool
    ) -> None:
        self.net, self.domain = net, domain
        self.packed_patterns, self.complete = packed_patterns, complete

    def __len__(self) -> int:
        return len(self.packed_patterns)

    def __repr__(self) -> str:
        part = "" if self.complete else "incomplete, "
        kind = type(self).__name__
        return f"{kind}({part}{len(self)} regions of {self.net.n_hidden} units in {self.domain})"

    @property
    def dimension(self) -> int:
        """Number of coordinates of the domain, n."""
        return self.domain.dimension

    # ---- Patterns and affine maps.

    @cached_property
    def patterns(self) -> np.ndarray:
        """Activation pattern of each region, (n_regions, n_hidden) bool.

        This takes eight times the memory of `packed_patterns`; see `patterns_of` for some regions.
        """
        return read_only(self.patterns_of(slice(None)))

    def patterns_of(self, which: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Activation patterns of some regions, (m, n_hidden) bool, unpacked at every call."""
        return _unpacked(self.packed_patterns[which], self.net.n_hidden)

    @cached_property
    def affine_maps(self) -> AffineMaps:
        """The logits of each region as an affine map of the domain's coordinates."""
        rows = [maps[:, :, -self.net.n_classes :] for maps in self._maps_of_units()]
        return AffineMaps.of_rows(np.concatenate(rows))

    def _maps_of_units(self, which: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The maps of all units and logits, (c, n + 1, N + K), for chunks of c regions."""
        which = np.arange(len(self)) if which is None else which
        directions, origin = self.domain.directions[None], self.domain.origin[None, None]
        for start in range(0, len(which), CHUNK):
            some = which[start : start + CHUNK]
            masks = [mask[:, None] for mask in unflat(self.patterns_of(some), self.net.unit_shapes)]
            linear = self.net.forward(directions, masks, bias=False).outputs
            offset = self.net.forward(origin, masks).outputs
            parts = []
            for V, a in zip(linear, offset, strict=True):
                both = [np.broadcast_to(array, (len(some), *array.shape[1:])) for array in (V, a)]
                rows = np.concatenate(both, axis=1)
                parts.append(rows.reshape(*rows.shape[:2], -1))
            yield np.concatenate(parts, axis=2)

    @cached_property
    def classes(self) -> np.ndarray:
        """Class of the largest logit at each region's centre, the first of equals; (n_regions,)."""
        return read_only(self._classes_in_floats())

    def _classes_in_floats(self) -> np.ndarray:
        V, a = self.affine_maps
        logits = np.einsum("rkn,rn->rk", V, self.centers) + a
        best = logits.argmax(axis=1)[:, None]
        # Logits that differ by less than their rounding errors count as equal.
        margin = 2 * (self.logit_errors + self.logit_errors[best])
        return (np.take_along_axis(logits, best, axis=1) - logits <= margin).argmax(axis=1)

    @cached_property
    def logit_errors(self) -> np.ndarray:
        """Bounds on the rounding error of each logit anywhere in the domain, (n_classes,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return enumeration.value_errors(self.net, self.domain.arrays())[-1]

    @cached_property
    def layer_counts(self) -> np.ndarray:
        """Number of regions of the first k hidden layers, for k = 0, ..., L."""
        counts = [1]
        for units in self.net.unit_slices:
            prefix = self.packed_patterns[:, : -(-units.stop // 8)].copy()
            if units.stop % 8:
                prefix[:, -1] &= 2 ** (units.stop % 8) - 1
            counts.append(len(np.unique(prefix, axis=0)))
        return read_only(np.array(counts))

    # ---- Facets and neighbours.

    @cached_property
    def neighbours(self) -> np.ndarray:
        """Pairs of regions that share a facet, (m, 2), the smaller first: the dual graph."""
        return read_only(self.facets.cells[self.facets.cells[:, 1] >= 0])

    @cached_property
    def facets_of(self) -> Ragged:
        """Numbers of the facets of each region."""
        cells = self.facets.cells.ravel()
        order = np.argsort(cells, kind="stable")
        counts = np.bincount(cells[cells >= 0], minlength=len(self))
        outside = len(cells) - counts.sum()
        return Ragged(np.append(0, np.cumsum(counts)), order[outside:] // 2)

    def flips(self) -> tuple[np.ndarray, np.ndarray]:
        """Which units change sign at which facets.

        Returns
        -------
        facets, units : ndarray of int, shape (m,)
            One entry for each unit that is active on exactly one side of a facet.  Several units
            may share a facet.
        """
        inner = np.flatnonzero(self.facets.cells[:, 1] >= 0)
        found = [(np.zeros(0, dtype=int), np.zeros(0, dtype=int))]
        for start in range(0, len(inner), 16 * CHUNK):
            some = inner[start : start + 16 * CHUNK]
            one, other = self.packed_patterns[self.facets.cells[some]].swapaxes(0, 1)
            place, unit = np.nonzero(_unpacked(one ^ other, self.net.n_hidden))
            found.append((some[place], unit))
        facets, units = (np.concatenate(part) for part in zip(*found, strict=True))
        return facets, units

    def halfspaces(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The half-spaces that bound a region: ``A z <= b``, one row per facet.

        Parameters
        ----------
        i : int
            Number of the region.

        Returns
        -------
        A : ndarray, shape (m, n)
            Outward normals, l_2 length 1.
        b : ndarray, shape (m,)
        """
        i = check.check_count("i", i, 0, len(self) - 1)
        hyperplanes = self.facets.hyperplanes[self.facets_of[i]]
        (maps,) = next(self._maps_of_units(np.array([i])))
        n = self.dimension
        A, b = np.empty((len(hyperplanes), n)), np.empty(len(hyperplanes))
        of_unit = hyperplanes >= 0
        units = hyperplanes[of_unit]
        outward = np.where(self.patterns_of([i])[0, units], -1.0, 1.0)
        A[of_unit] = (maps[:n, units] * outward).T
        b[of_unit] = -maps[n, units] * outward
        lengths = np.linalg.norm(A[of_unit], axis=1)
        A[of_unit] /= lengths[:, None]
        b[of_unit] /= lengths
        axis, upper = np.divmod(-1 - hyperplanes[~of_unit], 2)  # see `Facets.hyperplanes`
        A[~of_unit] = np.eye(n)[axis] * np.where(upper, 1, -1)[:, None]
        lo, hi = self.domain.rectangle
        b[~of_unit] = np.where(upper, hi[axis], -lo[axis])
        return A, b

    # ---- The region of a point.

    def region_of(self, Z: ArrayLike) -> np.ndarray:
        """Index of the region of each point, -1 outside the domain.

        Parameters
        ----------
        Z : array_like, shape (m, n)
            Points in the domain's coordinates (for a `Box` the inputs; see `Slice.project`).

        Returns
        -------
        ndarray of int, shape (m,)
            A point on a hyperplane belongs to one of the regions beside it.  -1 also where a region
            is missing because the enumeration is not complete.
        """
        Z = check.check_array("Z", Z, 2).astype(np.float64)
        check.check_shape("Z", Z, (len(Z), self.dimension))
        lo, hi = self.domain.rectangle
        inside = np.flatnonzero(((lo <= Z) & (hi >= Z)).all(axis=1))
        index = np.full(len(Z), -1)
        if len(inside):
            patterns = self.net.activation_pattern(self.domain.embed(Z[inside]))
            index[inside] = [self._numbers.get(row.tobytes(), -1) for row in _packed(patterns)]
        for i in inside[index[inside] < 0]:
            index[i] = self._beside(Z[i])
        return index

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        """The number of each region by its packed pattern."""
        return {pattern.tobytes(): i for i, pattern in enumerate(self.packed_patterns)}

    def _beside(self, z: np.ndarray) -> int:
        """A region beside z, a point on a hyperplane whose own pattern no region has.

        Units that are 0 at z get the sign that they have after an arbitrarily small step from z
        towards a random point of the domain: that of their directional derivative.
        """
        rng = np.random.default_rng(0)
        lo, hi = self.domain.rectangle
        for goal in rng.uniform(lo, hi, (DIRECTIONS, self.dimension)):
            pattern = _packed(self._pattern_towards(z, goal - z))
            found = self._numbers.get(pattern.tobytes())
            if found is not None:
                return found
        return self._least_violated(z)

    def _pattern_towards(self, z: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Activation pattern at z + t step for small t > 0, (N,)."""
        errors = enumeration.value_errors(self.net, self.domain.arrays())
        point = self.domain.embed(z[None])
        direction = np.tensordot(step[None], self.domain.directions, axes=1)
        masks: list[np.ndarray] = []
        for k in range(len(self.net.unit_shapes)):
            frozen = [*masks, *(np.zeros((1, *s), bool) for s in self.net.unit_shapes[k:])]
            value = self.net.forward(point, frozen).outputs[k]
            slope = self.net.forward(direction, frozen, bias=False).outputs[k]
            decided = np.abs(value) > errors[k].reshape(value.shape)
            masks.append(np.where(decided, value > 0, slope > 0))
        return flat(masks)[0]

    def _least_violated(self, z: np.ndarray) -> int:
        """The region whose half-spaces z violates least; -1 if regions are missing."""
        if not self.complete:
            return -1
        violations = []
        for i in range(len(self)):
            A, b = self.halfspaces(i)
            violations.append(float((A @ z - b).max()))
        return int(np.argmin(violations))

    def to_networkx(self) -> networkx.Graph:
        """The dual graph: one node per region, one edge per facet between two regions.

        Nodes have the attributes ``pattern`` (a string of 0 and 1) and ``winner`` (the class),
        edges have ``hyperplane`` (the unit).

        Raises
        ------
        ImportError
            If networkx is not installed.
        """
        graph: networkx.Graph = require("networkx", "to_networkx").Graph()
        for i, (pattern, winner) in enumerate(
            zip(self.patterns_of(slice(None)), self.classes, strict=True)
        ):
            text = "".join("01"[int(bit)] for bit in pattern)
            graph.add_node(i, pattern=text, winner=int(winner))
        inner = self.facets.cells[:, 1] >= 0
        hyperplanes = self.facets.hyperplanes[inner].tolist()
        for (i, j), hyperplane in zip(self.neighbours.tolist(), hyperplanes, strict=True):
            graph.add_edge(i, j, hyperplane=hyperplane)
        return graph


class RegionGraph(LinearRegions):
    """The linear regions that a walk through their facets found, without their vertices.

    Returned by `enumerate_regions` with method "walk".

    Attributes
    ----------
    net, domain, packed_patterns, complete
        As of `LinearRegions`.
    facets : Facets
        All facets, each once, without vertices.
    centers : ndarray, shape (n_regions, n)
        Centre of the largest l_2 ball inside each region, in the domain's coordinates.
    radii : ndarray, shape (n_regions,)
        The radius of that ball.
    undecided : int
        Number of facets and regions too thin for a linear program to decide about.
    """

    def __init__(self, net: Network, domain: AffineDomain, walk: Walk) -> None:
        super().__init__(net, domain, _packed(walk.patterns), walk.complete)
        no_vertices = Ragged(np.zeros(len(walk.hyperplanes) + 1, int), np.zeros(0, int))
        self.facets = Facets(walk.hyperplanes, walk.cells, no_vertices)
        self.centers, self.radii = walk.centers, walk.radii
        self.undecided = walk.undecided


def read_only(array: np.ndarray) -> np.ndarray:
    """The array, which nobody may change from now on: its owner keeps it."""
    array.setflags(write=False)
    return array


def _packed(patterns: np.ndarray) -> np.ndarray:
    return np.packbits(patterns, axis=-1, bitorder="little")


def _unpacked(packed: np.ndarray, n_bits: int) -> np.ndarray:
    return np.unpackbits(packed, axis=1, count=n_bits, bitorder="little").astype(bool)


def check_complex(cx: object) -> None:
    """Raise a TypeError for anything but a `RegionComplex`, which alone has vertices."""
    if not (isinstance(cx, LinearRegions) and hasattr(cx, "vertex_numbers")):
        raise TypeError(f"cx: expected a RegionComplex, got {type(cx).__name__}")
