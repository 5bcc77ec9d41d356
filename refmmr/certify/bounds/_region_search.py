"""Best-first search through linear regions: GeoCert (Jordan, Lewis, Dimakis 2019).

On the linear region of an activation pattern the network is affine: the zero sets of its hidden
units and of its margins are hyperplanes.  The segment from a point x to its nearest adversarial
example passes through a sequence of regions and leaves each on the hyperplane of a unit.  The
search follows all such segments at once, nearest first.  Its queue holds regions, each with a lower
bound on the distance from x to where a segment can enter it, and decision boundaries, with a lower
bound on the distance to where they meet their region.  The smallest bound in the queue is a lower
bound on the minimal perturbation, at any time; when it belongs to a decision boundary, the search
ends.

**Completeness.**  Two patterns that differ in unit i only have the same affine map where
``f_i = 0``.  So a segment may change one unit at a time, also where it meets several hyperplanes at
once (those of the first layer first, and so on), and whether a hyperplane is a facet of the region
need not be known.  On a region f_i is affine, and runs towards 0 along the segment: only those
hyperplanes count for which f_i has the sign of the region at x.

**Proof of the bounds.**  On a region all rows ``g_j(z) >= 0`` hold.  Multiply each by ``v_j >= 0``
(the row of the facet, which is 0, by any number) and add: the sum is one half-space, whose distance
within the box is bounded with all rounding errors (`Incumbent.distances`).  The multipliers come
from a solver that is not trusted (`refmmr.certify.bounds._nearest`); if the facet is empty, the
distance is infinite.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from refmmr import _examples
from refmmr._examples import OVERSHOOTS
from refmmr.certify.bounds import EXACT
from refmmr.certify.bounds._affine_maps import AffineMaps, PointErrors
from refmmr.certify.bounds._incumbent import Incumbent
from refmmr.certify.bounds._nearest import ShortestSteps, shortest_steps
from refmmr.reference import rounding
from refmmr.reference.hyperplanes import dual_norm, norm

REFINE_WITHIN = 1.15
"""Refine the hyperplanes of a region whose bounds are at most this factor above the smallest one in
the queue: they are soon needed, and one call for many takes less time than many calls."""

REFINE_AT_LEAST = 6
"""Refine at least this many hyperplanes of a region in one call: a call has a fixed cost."""

STRETCHES = 1 + 0.02 * np.arange(12)
"""Factors by which the first projections are lengthened, one after the other: the affine map at the
end of each gives the next, until an example is found."""

MAX_BYTES = 2**29
"""Size of the queue above which its farther half is left out: a region of a network of 1024 units
on 784 inputs takes 6 MB.  What was left out bounds what can still be proved."""

ENTER, REFINE, REACH = range(3)
"""What an entry of the queue asks for: visit a region; refine the distances of a region's
hyperplanes; step across a decision boundary within its region, which ends the search."""


class Entry(NamedTuple):
    """An entry of the queue, ordered by its bound."""

    bound: float  # a lower bound on the distance
    order: int  # of two equal bounds the older entry comes first
    kind: int
    data: Any  # a pattern (N,), a region, or a region and the number of one of its hyperplanes

    @property
    def nbytes(self) -> int:
        """Memory, roughly: a pattern is in a set, too, and a solver has a copy of the rows."""
        if self.kind == ENTER:
            return 2 * int(self.data.nbytes) + 256
        region = self.data if self.kind == REFINE else self.data[0]
        return 2 * int(region.rows.nbytes)


class Region:
    """The affine map of one activation pattern, around x.

    Row j < N is unit j, with the sign that makes it >= 0 on the region; row N + c is the negative
    margin over class c, which is >= 0 where c wins.

    Attributes
    ----------
    values, rows : ndarray, shapes (N + K,) and (N + K, d)
    toward : ndarray, shape (N + K,)
        Signs that make the values at x positive for all hyperplanes that count.
    targets : ndarray of int, shape (t,)
        The rows of the hyperplanes that count.
    bounds : ndarray, shape (t,)
        Lower bounds on their distances: in the whole space, then within the box, then within the
        region.
    in_box, pending : ndarray of bool, shape (t,)
        Whether a bound is one within the box; whether it is to be refined.
    """

    def __init__(self, search: RegionSearch, pattern: np.ndarray) -> None:
        maps, point, N = search.maps, search.point, len(pattern)
        y, masks = point.y, maps.masks(pattern)
        f = [output.reshape(-1) for output in maps.net.forward(point.x, masks).outputs]
        V = maps.gradients(masks)
        signs = np.where(pattern, 1.0, -1.0)
        self.pattern = pattern
        self.values = np.concatenate([*f[:-1], f[-1] - f[-1][y]])
        self.rows = np.concatenate([*V[:-1], V[-1] - V[-1][y]])
        self.values[:N] *= signs
        self.rows[:N] *= signs[:, None]
        self.toward = np.append(np.ones(N), -np.ones(len(self.values) - N))
        # Negated: where a float overflowed, the hyperplane counts.  So does a margin of exactly 0.
        counts = ~(self.values * self.toward < -search.errors.values)
        counts[N + y] = False
        counts[:N] &= ~search.stable
        flat_rows = np.asarray(~self.rows.any(axis=1))
        if flat_rows[:N].any():
            counts[:N] &= ~(flat_rows[:N] & maps.constant(masks))
        self.targets = np.flatnonzero(counts)
        self.bounds = np.zeros(len(self.targets))
        self.in_box = np.zeros(len(self.targets), dtype=bool)
        self.pending = np.ones(len(self.targets), dtype=bool)
        # Rows of the solver, and the place of each of all rows among them.
        self.used, self.place = np.zeros(0, dtype=int), np.zeros(0, dtype=int)
        self._solver: ShortestSteps | None = None

    def solver(self, search: RegionSearch, limit: float) -> ShortestSteps:
        """The solver for this polytope, for steps up to a length; made when it is first needed."""
        if self._solver is None:
            point, N = search.point, len(self.pattern)
            # A row that no such step violates is left out.
            near = self.values[:N] < limit * dual_norm(self.rows[:N], point.p)
            near &= ~search.stable
            targets = self.targets[self.pending]
            near[targets[targets < N]] = True
            self.used = np.append(np.flatnonzero(near), np.arange(N, len(self.values)))
            self.place = np.full(len(self.values), -1)
            self.place[self.used] = np.arange(len(self.used))
            self._solver = shortest_steps(
                self.values[self.used], self.rows[self.used], self.used >= N,
                point.lo - point.flat, point.hi - point.flat, point.p,
            )  # fmt: skip
        return self._solver


class RegionSearch:
    """The search of one point through its linear regions.

    Attributes
    ----------
    visited : int
        Regions so far.
    ended : bool
        Whether the nearest decision boundary was reached.
    stable : ndarray of bool, shape (N,)
        Units whose hyperplanes are left out, see `leave_out`.
    """

    def __init__(self, maps: AffineMaps, point: Incumbent) -> None:
        self.maps, self.point = maps, point
        self.visited, self.ended = 0, False
        self._order = count()
        self._queue: list[Entry] = []
        self._bytes = 0  # of the queue
        self._entered: set[bytes] = set()
        self._known: dict[bytes, float] = {}  # the smallest bound of each region offered
        self.stable, self._reach = np.zeros(maps.net.n_hidden, bool), np.inf
        with np.errstate(all="ignore"):
            self.errors = PointErrors(maps.net, point.x, point.y)
            cache = maps.net.forward(point.x)
        outputs = np.concatenate([output.reshape(-1) for output in cache.outputs])
        N = len(self.stable)
        self._certain = np.abs(outputs[:N]) > self.errors.values[:N]
        if _examples.misclassified(maps.net, point.x, np.full(1, point.y))[0]:
            point.upper, point.adversarial = 0.0, point.flat
        else:
            masks = [mask.reshape(-1) for mask in cache.masks]
            self._push(0.0, ENTER, np.concatenate([np.zeros(0, bool), *masks]))

    @property
    def lower(self) -> float:
        """A lower bound on the minimal perturbation, at any time."""
        return min(self._queue[0].bound if self._queue else np.inf, self._reach)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left that could raise the bound."""
        return not self._queue or self._queue[0].bound >= self._reach

    def leave_out(self, stable: np.ndarray, radius: float) -> None:
        """Leave out the hyperplanes of units (N,) that are stable within a radius.

        Beyond it nothing is proved any more.  Only the first call counts.
        """
        if self._reach == np.inf:
            self.stable, self._reach = stable & self._certain, radius

    def step(self) -> None:
        """Work on the entry of smallest bound.

        What comes out of it has no smaller bound and enters the queue before the entry leaves it.
        So `lower` holds all along, also if this is interrupted.
        """
        bound, _, kind, data = self._queue[0]
        if kind == REACH:
            self._reach_boundary(bound, *data)
            return
        # Overflow gives NaN, which becomes a bound of 0.
        with np.errstate(all="ignore"):
            if kind == ENTER:
                self._enter(bound, data)
            else:
                self._refine(bound, data)
        self._pop()
        self.drop_entered()
        if self._bytes > MAX_BYTES:
            self._leave_out_half()

    def drop_entered(self) -> None:
        """Drop regions at the head of the queue that were entered by another facet."""
        while self._queue and (
            self._queue[0].kind == ENTER and self._queue[0].data.tobytes() in self._entered
        ):
            self._pop()

    def _push(self, bound: float, kind: int, data: Any) -> None:
        entry = Entry(bound, next(self._order), kind, data)
        heapq.heappush(self._queue, entry)
        self._bytes += entry.nbytes

    def _pop(self) -> None:
        self._bytes -= heapq.heappop(self._queue).nbytes

    def _leave_out_half(self) -> None:
        """Leave out the farther entries; nothing is proved beyond the nearest of them any more."""
        entries = sorted(self._queue)
        sizes = np.cumsum([entry.nbytes for entry in entries])
        keep = max(1, int(np.searchsorted(sizes, MAX_BYTES // 2)))
        if keep == len(entries):
            return
        self._reach = min(self._reach, entries[keep].bound)
        for entry in entries[keep:]:
            if entry.kind == ENTER:
                self._known.pop(entry.data.tobytes(), None)
        self._queue, self._bytes = entries[:keep], int(sizes[keep - 1])  # a sorted list is a heap

    def _enter(self, bound: float, pattern: np.ndarray) -> None:
        """Visit a region: bound distances in the whole space, project onto decision boundaries."""
        region, point = Region(self, pattern), self.point
        N, targets = len(pattern), region.targets
        if bound == 0:
            # The pattern of x itself is not certain where units may be 0.
            unsure = targets[targets < N]
            unsure = unsure[~(np.abs(region.values[unsure]) > self.errors.values[unsure])]
            for unit in unsure.tolist():
                self._offer(bound, _flipped(pattern, unit))
            targets = np.setdiff1d(targets, unsure)
        region.targets = targets
        region.bounds = np.maximum(self._single_distances(region, targets, in_box=False), bound)
        region.in_box = np.full(len(targets), point.box is None)
        region.pending = region.bounds < point.upper
        self._project(region)
        if not self.visited and region.bounds.min(initial=np.inf) < point.upper * (1 - EXACT):
            self._first_example(pattern)
        self._requeue(region)
        self._entered.add(pattern.tobytes())
        self.visited += 1

    def _offer(self, bound: float, pattern: np.ndarray) -> None:
        """Put a region into the queue, unless it is there with no larger bound."""
        name = pattern.tobytes()
        known = self._known.get(name, np.inf)
        if bound < self.point.upper and name not in self._entered and bound < known:
            self._known[name] = bound
            self._push(bound, ENTER, pattern)

    def _requeue(self, region: Region) -> None:
        """Put the hyperplanes of a region that are pending into the queue."""
        if region.pending.any():
            bound = region.bounds[region.pending].min()
            if bound < self.point.upper:
                self._push(float(bound), REFINE, region)

    def _refine(self, bound: float, region: Region) -> None:
        """Bound the distances of the next hyperplanes within the box, then within the region."""
        N, upper = len(region.pattern), self.point.upper
        for i in np.flatnonzero(region.pending & (region.targets < N)).tolist():
            name = _flipped(region.pattern, region.targets[i]).tobytes()
            if name in self._entered or self._known.get(name, np.inf) <= region.bounds[i]:
                region.pending[i] = False
        region.pending &= region.bounds < upper
        order = np.flatnonzero(region.pending)
        order = order[np.argsort(region.bounds[order])]
        soon = int((region.bounds[order] <= REFINE_WITHIN * bound).sum())
        some = order[: max(soon, REFINE_AT_LEAST)]
        free = some[~region.in_box[some]]
        if len(free):
            within = self._single_distances(region, region.targets[free], in_box=True)
            region.bounds[free] = np.maximum(region.bounds[free], within)
            region.in_box[free] = True
            # Those that turn out to be far away can wait.
            some = some[region.bounds[some] <= min(REFINE_WITHIN * bound, upper)]
        if len(some):
            targets = region.targets[some]
            distances, steps = self._distances_in_region(region, targets)
            distances = np.maximum(distances, region.bounds[some])
            decisions = targets >= N
            if decisions.any():
                self.point.propose(steps[decisions])
            for target, distance in zip(targets.tolist(), distances.tolist(), strict=True):
                if target < N:
                    self._offer(distance, _flipped(region.pattern, target))
                elif distance < self.point.upper:
                    self._push(distance, REACH, (region, target))
            region.pending[some] = False
        self._requeue(region)

    def _reach_boundary(self, bound: float, region: Region, target: int) -> None:
        """Step across the nearest decision boundary, within its region."""
        solver = region.solver(self, self.point.upper)
        for overshoot in OVERSHOOTS:
            step = solver.beyond(int(region.place[target]), overshoot)
            self.point.propose(step[None], overshoots=(0.0,))
            if self.point.upper <= bound * (1 + EXACT):
                break
        self.ended = True

    def _single_distances(self, region: Region, targets: np.ndarray, in_box: bool) -> np.ndarray:
        """Lower bounds on the distances of single hyperplanes, (t,)."""
        toward = region.toward[targets]
        w, value = region.rows[targets] * toward[:, None], region.values[targets] * toward
        errors = self.errors.values[targets], self.errors.rows[targets]
        return self.point.distances(w, value, *errors, in_box=in_box)

    def _distances_in_region(
        self, region: Region, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower bounds on distances within the region, (t,), and the shortest steps, (t, d)."""
        limit, facets = self.point.limit, targets < len(region.pattern)
        solver = region.solver(self, limit)
        place = region.place[targets]
        v, steps = solver.solve(place, facets, limit)
        v = np.where(np.isfinite(v), v, 0)
        free = np.zeros(v.shape, bool)
        free[np.arange(len(v)), place] = facets
        v = np.where(free, v, np.maximum(v, 0))
        largest = np.abs(v).max(axis=1, keepdims=True)
        v = v / np.where(largest > 0, largest, 1)
        rows, values = region.rows[region.used], region.values[region.used]
        w, value, size = -v @ rows, -v @ values, np.abs(v)
        gamma = rounding.rounding_factor(2 * len(values) + 16)
        value_error = size @ (self.errors.values[region.used] + gamma * np.abs(values))
        w_error = size @ (self.errors.rows[region.used] + gamma * np.abs(rows).sum(axis=1))
        value_error, w_error = (
            error * (1 + gamma) + rounding.SMALLEST_NORMAL for error in (value_error, w_error)
        )
        return self.point.distances(w, value, value_error, w_error), steps

    def _project(self, region: Region) -> np.ndarray | None:
        """Propose the projections onto the decision boundaries; returns the shortest step (d,)."""
        decisions = np.arange(len(region.pattern), len(region.values))
        exist = region.rows[decisions].any(axis=1) & (region.values[decisions] < 0)
        decisions = decisions[exist]
        steps = self.point.projection_steps(region.rows[decisions], region.values[decisions])
        steps = steps[steps.any(axis=1)]
        if not len(steps):
            return None
        self.point.propose(steps)
        return steps[norm(steps, self.point.p).argmin()]

    def _first_example(self, pattern: np.ndarray) -> None:
        """Project x repeatedly, each time by the affine map where the last projection ended."""
        point, net = self.point, self.maps.net
        for stretch in STRETCHES:
            before = point.upper
            step = self._project(Region(self, pattern))
            if step is None or not np.isfinite(step).all() or before == point.upper < np.inf:
                break
            z = np.clip(point.flat + stretch * step, point.lo, point.hi)
            masks = net.forward(z.reshape(point.x.shape)).masks
            pattern = np.concatenate([pattern[:0], *(mask.reshape(-1) for mask in masks)])


def _flipped(pattern, unit):
    """The pattern with one unit changed."""
    pattern = pattern.copy()
    pattern[unit] = ~pattern[unit]
    return pattern
