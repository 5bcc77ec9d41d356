"""The exact minimal adversarial perturbation, by search.

Two searches share the examples that they find (`Incumbent`), and the larger of their lower bounds
counts.  A best-first search visits linear regions one by one (GeoCert: Jordan, Lewis, Dimakis 2019,
see `refmmr.certify.bounds._region_search`).  Where regions are too many for that, branch and bound
fixes the activation of some units and bounds all regions that agree with it together
(`refmmr.certify.bounds._subproblems`).  After the first few regions the subproblems take most
turns.  Regions then leave out the hyperplanes of units that are stable on the remaining ball: no
segment within it meets them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refmmr._examples import Box
from refmmr.certify.bounds import EXACT, Bounds
from refmmr.certify.bounds._affine_maps import AffineMaps
from refmmr.certify.bounds._incumbent import Incumbent
from refmmr.certify.bounds._region_search import RegionSearch
from refmmr.certify.bounds._subproblems import Subproblems
from refmmr.reference.network import Network

FIRST_REGIONS = 6
"""Regions that are visited before any subproblem: enough for points whose example is nearby."""

SUBPROBLEMS_PER_REGION = 16
"""Subproblems between two further regions, which take about as long to visit."""

LARGE = 10**5
"""Hidden units times inputs, the entries of an affine map, above which a region is expensive: then
one region is visited first, and `RARE` times as many subproblems lie between two further ones."""

RARE = 8
"""Factor on `SUBPROBLEMS_PER_REGION` for networks above `LARGE`."""


class SearchResult(NamedTuple):
    """The bounds of each point, and the regions that were visited."""

    bounds: Bounds
    regions: np.ndarray  # (n,) int


def search_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    goal: np.ndarray | None = None,
    **options: Any,
) -> Bounds:
    """The bounds of `search`, without the numbers of regions."""
    return search(net, X, y, p, box, goal, **options).bounds


def search(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    goal: np.ndarray | None = None,
    *,
    max_regions: int | None = None,
    max_seconds: float | None = None,
    upper: np.ndarray | None = None,
    adversarial: np.ndarray | None = None,
    on_region: Callable[[int, PointSearch], object] = lambda point, state: None,
) -> SearchResult:
    """Bounds on the minimal perturbation of each sample, exact if nothing ends the search early.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray of float64, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, 2, inf}
    box : (lo, hi) or None
        Arrays of the shape of an input, with X inside.
    goal : ndarray, shape (n,), optional
        Radii to decide about: the search of a point ends when ``lower >= goal`` or
        ``upper < goal``.
    max_regions, max_seconds : optional
        Budget for each sample.
    upper, adversarial : ndarray, shapes (n,) and (n, *input_shape), optional
        Verified adversarial examples and their distances, infinite where there is none: regions
        farther away need no visit.
    on_region : callable, optional
        Called after each region with the number of the sample and its `PointSearch`.

    Returns
    -------
    SearchResult
    """
    searches = point_searches(net, X, y, p, box, goal, upper, adversarial)
    done = []
    for i, state in enumerate(searches):
        state.run(max_regions, max_seconds, partial(on_region, i))
        done.append(state)
    bounds = Bounds(
        np.array([state.lower for state in done]),
        np.array([state.upper for state in done]),
        np.array([state.adversarial for state in done]).reshape(X.shape),
    )
    return SearchResult(bounds, np.array([state.regions for state in done]))


def point_searches(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    goal: np.ndarray | None = None,
    upper: np.ndarray | None = None,
    adversarial: np.ndarray | None = None,
) -> Iterator[PointSearch]:
    """The searches that `search` runs one after the other, not yet begun."""
    maps = AffineMaps(net)
    for i, x in enumerate(X):
        point = Incumbent(net, p, box, x, int(y[i]), np.inf if goal is None else float(goal[i]))
        state = PointSearch(maps, point)
        if upper is not None and adversarial is not None and upper[i] < point.upper:
            point.upper, point.adversarial = float(upper[i]), adversarial[i].reshape(-1)
        yield state


class PointSearch:
    """The search of one sample.

    Attributes
    ----------
    point : Incumbent
        The sample and its nearest example.
    region_search : RegionSearch
    subproblems : Subproblems
    done : bool
        Whether the search is over.
    """

    def __init__(self, maps: AffineMaps, point: Incumbent) -> None:
        self.point = point
        self.region_search = RegionSearch(maps, point)
        self.subproblems = Subproblems(maps.net, point.p, point.box, point)
        self.subproblems.done = maps.net.n_hidden == 0
        large = maps.net.n_hidden * point.flat.size > LARGE
        self._first = 1 if large else FIRST_REGIONS
        self._each = RARE * SUBPROBLEMS_PER_REGION if large else SUBPROBLEMS_PER_REGION
        self.done = False
        self._update()

    @property
    def lower(self) -> float:
        """A lower bound on the minimal perturbation, at any time."""
        lower = max(self.region_search.lower, self.subproblems.lower)
        lower = np.inf if lower >= self.point.farthest else lower
        return min(lower, self.upper)

    @property
    def upper(self) -> float:
        """Distance of the nearest example so far."""
        return self.point.upper

    @property
    def adversarial(self) -> np.ndarray:
        """That example, (d,); NaN without one."""
        return self.point.adversarial

    @property
    def regions(self) -> int:
        """Linear regions visited so far."""
        return self.region_search.visited

    def run(
        self,
        max_regions: int | None = None,
        max_seconds: float | None = None,
        on_region: Callable[[PointSearch], object] = lambda state: None,
    ) -> None:
        """Search on, until the bounds meet, the goal is decided or a budget is spent."""
        deadline = np.inf if max_seconds is None else time.monotonic() + max_seconds
        self.subproblems.deadline = deadline
        while not self.done:
            if max_regions is not None and self.regions >= max_regions:
                break
            if time.monotonic() >= deadline:
                break
            visited = self.regions
            self.step()
            if self.regions > visited:
                on_region(self)

    def step(self) -> None:
        """One step of either search."""
        regions, subproblems = self.region_search, self.subproblems
        turn = self.regions >= self._first + subproblems.nodes // self._each
        if not subproblems.done and (turn or regions.exhausted) and np.isfinite(self.point.limit):
            subproblems.step()
            if subproblems.stable is not None:
                regions.leave_out(subproblems.stable, subproblems.stable_radius)
        else:
            regions.step()
        self._update()

    def _update(self) -> None:
        """Decide whether the search is over."""
        self.region_search.drop_entered()
        lower, upper, goal = self.lower, self.upper, self.point.goal
        decided = lower >= goal or upper < goal < np.inf or upper <= lower * (1 + EXACT)
        # Nothing raises the bound any more: entries of both queues were left out for memory, or the
        # bound is the distance of a tie.
        finite = np.isfinite(self.point.limit)
        stuck = self.region_search.exhausted and (self.subproblems.done or not finite)
        self.done = self.region_search.ended or decided or stuck or self.subproblems.tied
