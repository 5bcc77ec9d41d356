"""Linear regions in a box of any dimension: a walk from region to region, through their facets.

On a linear region every hidden unit is affine, ``f_j(z) = <V_j, z> + a_j``, and the region is the
polytope where each has its sign.  Beyond each of its facets inside the domain lies another
region, so all of them are reached from one (Xu et al. 2021, "Traversing the local polytopes of ReLU
neural networks").  Vertices, of which there are exponentially many, are not enumerated: a region
costs a few dozen linear programs (`refmmr.regions.redundancy`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import highspy
import numpy as np

from refmmr.reference.network import Network
from refmmr.regions.halfspaces import RegionPolytope, ScaledDomain
from refmmr.regions.redundancy import FacetSearch, Proofs, RegionPrograms

__all__ = ["Walk", "walk"]

STEPS_THROUGH = 10.0 ** np.arange(-10, -5)
"""Lengths of steps from the facet of a region too thin to hold a ball, to regions beyond it."""


class Walk(NamedTuple):
    """The regions that a walk visited, and the facets between them.

    Attributes
    ----------
    patterns : ndarray of bool, shape (R, N)
    centers, radii : ndarray, shapes (R, n) and (R,)
        Of the largest l_2 ball inside each region.
    hyperplanes, cells : ndarray of int, shapes (F,) and (F, 2)
        Of the facets, as in `Facets`; a cell is -1 also where the region was not visited.
    undecided : int
        Number of facets and regions too thin to decide about.
    complete : bool
        Whether all regions that can be reached were visited.
    """

    patterns: np.ndarray
    centers: np.ndarray
    radii: np.ndarray
    hyperplanes: np.ndarray
    cells: np.ndarray
    undecided: int
    complete: bool


def walk(
    net: Network,
    origin: np.ndarray,
    directions: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    *,
    start: np.ndarray | None = None,
    max_regions: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_region: Callable[[int, int], object] = lambda visited, pending: None,
) -> Walk:
    """All linear regions of a network in a box, and all facets between them, breadth-first.

    Parameters
    ----------
    net : Network
        With float64 weights.
    origin : ndarray, shape (*input_shape)
    directions : ndarray, shape (n, *input_shape)
        The point z of the box is the input ``origin + sum_k z_k directions_k``.
    lo, hi : ndarray, shape (n,)
        Bounds of z, ``lo < hi``.
    start : ndarray, shape (n,), optional
        A point of the first region; if not given, the centre of the box.
    max_regions : int, optional
        Largest number of regions to visit.
    stop : callable, optional
        Called before each region; the walk ends when it returns True.
    on_region : callable, optional
        Called after each region with the number of regions visited and of those known but not
        visited.

    Returns
    -------
    Walk
        A hyperplane that several units share has the number of the first.  The second cell of a
        facet is -1 if the region there was not visited or is too thin.
    """
    domain = ScaledDomain(net, origin, directions, lo, hi)
    traversal = _Traversal(domain)
    traversal.begin(domain.center if start is None else start)
    complete = False
    while not complete:
        if (max_regions is not None and traversal.count >= max_regions) or stop():
            break
        if traversal.n_pending:
            traversal.visit_next()
            on_region(traversal.count, traversal.n_pending)
        complete = not traversal.n_pending
    return traversal.result(complete)


class _Pending(NamedTuple):
    """A region that is known but not visited.

    Attributes
    ----------
    pattern : ndarray of bool, shape (N,)
    entry : (ndarray, ndarray), shapes (n,)
        A point on its boundary and a step into it.
    basis : HighsBasis or None
        Where the program for the centre of the neighbour that found it ended.
    facets : list of int
        Units of the facets that visited neighbours share with it.
    proofs : list of Proofs
        Of these neighbours.
    """

    pattern: np.ndarray
    entry: tuple[np.ndarray, np.ndarray]
    basis: highspy.HighsBasis | None
    facets: list[int]
    proofs: list[Proofs]


class _Traversal:
    """The state of a walk.  Regions are numbered as they are found, and visited in this order."""

    def __init__(self, domain: ScaledDomain) -> None:
        self.domain = domain
        self.N = domain.net.n_hidden
        self.programs = RegionPrograms(domain.n, self.N + 2 * domain.n)
        self.numbers: dict[bytes, int] = {}  # of each region, by its packed pattern
        self.pending: list[_Pending | None] = []  # by number; None: visited
        self.visited: list[tuple[np.ndarray, np.ndarray, float] | None] = []  # None: too thin
        self.facets: list[tuple[int, int, int]] = []  # hyperplane and the numbers of both regions
        self.count = 0
        self.undecided = 0

    @property
    def n_pending(self) -> int:
        """Number of regions that are known but not visited."""
        return len(self.pending) - len(self.visited)

    def begin(self, z: np.ndarray) -> None:
        """Find the region at a point of the box, (n,), or one beside it."""
        domain = self.domain
        u = (z - domain.center) / domain.scale
        goal = np.random.default_rng(0).uniform(-domain.half_widths, domain.half_widths)
        step = goal - u
        self._find_beyond(u, step / np.sqrt((step * step).sum()))

    def _find_beyond(self, u: np.ndarray, step: np.ndarray) -> None:
        """Find the region just beyond a point, (n,), in the direction of a step, (n,)."""
        pattern = self.domain.patterns_beyond(u[None], step[None], 2 * self.domain.errors)[0]
        self._number(pattern, (u, step))

    def _number(
        self,
        pattern: np.ndarray,
        entry: tuple[np.ndarray, np.ndarray],
        basis: highspy.HighsBasis | None = None,
    ) -> int:
        """The number of the region of a pattern, which is pending if it is new."""
        new = len(self.numbers)
        number = self.numbers.setdefault(np.packbits(pattern).tobytes(), new)
        if number == new:
            self.pending.append(_Pending(pattern, entry, basis, [], []))
        return number

    def visit_next(self) -> None:
        """Visit the next region: find its centre, its facets and its neighbours."""
        number = len(self.visited)
        region = self.pending[number]
        assert region is not None
        self.pending[number] = None
        P = RegionPolytope(self.domain, region.pattern)
        center = self.programs.center(P, region.basis)
        slacks = None if center is None else P.slacks(center)
        if center is None or slacks is None or (slacks <= P.clearance).any():
            self.visited.append(None)
            self.undecided += 1
            self._step_through(*region.entry)
            return
        basis = self.programs.highs.getBasis()
        known = [unit for unit in region.facets if P.in_use[unit]]
        search = FacetSearch(P, center, known, region.proofs)
        search.run(self.programs)
        self.count += 1
        self.undecided += search.undecided + len(region.facets) - len(known)
        self.undecided += P.uncertain_constants()
        self.visited.append((region.pattern, center, float(slacks.min())))
        search.is_facet[known] = False  # they are in the list already
        self._find_neighbours(region.pattern, P, search, basis)

    def _find_neighbours(
        self,
        pattern: np.ndarray,
        P: RegionPolytope,
        search: FacetSearch,
        basis: highspy.HighsBasis,
    ) -> None:
        """Record the new facets of the region visited last, and the regions beyond them."""
        here = len(self.visited) - 1
        faces = np.flatnonzero(search.is_facet[self.N :]).tolist()
        self.facets += [(-1 - face, here, -1) for face in faces]
        for face in faces:  # units that float arithmetic takes for a face of the domain
            self.undecided += P.count_uncertain(P.stands_for.get(self.N + face, []))
        rows = np.flatnonzero(search.is_facet[: self.N])
        if not len(rows):
            return
        points, steps, proofs = search.points[rows], -P.A[rows], search.proofs()
        beyond = self.domain.patterns_beyond(points, steps, P.zero)
        for row, point, step, other in zip(rows.tolist(), points, steps, beyond, strict=True):
            differ = other != pattern
            if not differ[row] or differ.argmax() != row:
                self.undecided += 1
                continue
            # Units with almost the same hyperplane have thin regions between them.
            differ[P.stands_for.get(row, [])] = True
            self.undecided += not P.share_hyperplane(np.flatnonzero(differ))
            there = self._number(other, (point, step), basis)
            self.facets.append((row, here, there))
            neighbour = self.pending[there]
            if neighbour is None:  # visited before: it should have had this facet
                self.undecided += 1
                continue
            neighbour.facets.append(row)
            if proofs is not None:
                neighbour.proofs.append(proofs)

    def _step_through(self, point: np.ndarray, step: np.ndarray) -> None:
        """Find the regions beyond one that is too thin."""
        for distance in STEPS_THROUGH:
            there = point + distance * step
            if (np.abs(there) <= self.domain.half_widths).all():
                self._find_beyond(there, step)

    def result(self, complete: bool) -> Walk:
        """Regions and facets, without the regions that are too thin."""
        domain = self.domain
        regions = [region for region in self.visited if region is not None]
        number = np.full(len(self.numbers) + 1, -1)  # the last entry stands for no region
        number[[i for i, region in enumerate(self.visited) if region]] = np.arange(len(regions))
        facets = np.array(self.facets, dtype=int).reshape(-1, 3)
        patterns, centers, radii = zip(*regions, strict=True) if regions else ((), (), ())
        return Walk(
            patterns=np.array(patterns, bool).reshape(len(radii), self.N),
            centers=domain.center + domain.scale * np.array(centers).reshape(-1, domain.n),
            radii=domain.scale * np.array(radii),
            hyperplanes=facets[:, 0],
            cells=number[facets[:, 1:]],
            undecided=self.undecided,
            complete=complete,
        )
