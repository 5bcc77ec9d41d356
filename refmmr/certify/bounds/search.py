"""The exact minimal adversarial perturbation: a best-first search through linear regions.

On the linear region of an activation pattern s the network is affine, and so are its hyperplanes: one for
each hidden unit, one for each other class.  Walk from a point x straight to its nearest adversarial
example z: region after region, each left through the hyperplane of a unit.  The search follows all such
walks at once, nearest first.  Its queue holds patterns, each with a *key* that is at most the
distance from x to where the walk can enter the region; and decision boundaries, with a key at most
the distance to where they can be met within their region.  The smallest key is a lower bound of the
minimal perturbation, at any time; when it belongs to a decision boundary, that is the answer.

**Nothing is missed.**  Two patterns that differ in unit i only have the same affine map where
``f_i = 0``.  So a walk may change one unit at a time, also where it meets several hyperplanes at once
(first those of the first layer, and so on), and whether a hyperplane is a facet of the region need not be
known.  As the walk is straight, f_i is affine on it and runs towards 0 from x on: only hyperplanes count
of which x lies on the region's side.

**Keys are proved.**  Every row ``g_j(z) >= 0`` that holds on a region may be multiplied by any
``v_j >= 0`` and added up (the unit that is 0 by any number): the sum is one half-space, whose
distance within the box is bounded with all rounding errors (`refmmr.certify.bounds.region`).  What
multipliers are good ones is said by a program (`refmmr.certify.bounds._nearest`), which nobody
needs to trust; an empty set shows itself as an infinite distance.

**Where regions are many** they are not looked at one by one: after a few of them, families of
regions are halved and bounded as a whole (`refmmr.certify.bounds._subproblems`), and only now and then
another region is visited.  Both share the examples, the larger of both lower bounds counts, and the
walks leave out the hyperplanes of units that are stable on the ball that matters: a straight walk of that
length never meets them.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from refmmr import _examples
from refmmr._examples import OVERSHOOTS
from refmmr.certify.bounds import Bounds, region
from refmmr.certify.bounds._nearest import ShortestSteps, shortest_steps
from refmmr.certify.bounds._subproblems import Families
from refmmr.reference import rounding
from refmmr.reference.affine import basis
from refmmr.reference.hyperplanes import dual_norm, norm
from refmmr.reference.network import Network

Box = tuple[np.ndarray, np.ndarray]

EXACT = 1e-6
"""The search of a point ends when its bounds agree to this relative tolerance."""

AHEAD = 1.15
"""How far beyond the present key hyperplanes of a region are looked at together."""

TOGETHER = 6
"""Hyperplanes of a region that are looked at together, at least."""

LEAST = 1e-9
"""How much nearer a new example must be, relatively."""

TRIES = 4
"""Projections that follow the nearest point of a family, at most."""

GUESSES = 1 + 0.02 * np.arange(12)
"""How far the projections that lead to a first example are lengthened."""

FIRST, EACH = 6, 16
"""Regions that are visited before families of regions are looked at, and families for each other
region."""

LARGE = 10**5
"""Units times inputs from which on regions are dear: one comes first, and others are seldom."""

FARTHER = 1 + 1e-9
"""No point of the box is farther away than its farthest one times this, rounding included."""

OPEN, LOOK, MEET = range(3)
"""What an entry of the queue stands for: a region to enter, hyperplanes to look at, the end."""


class SearchResult(NamedTuple):
    """What the search knows about each point."""

    bounds: Bounds
    regions: np.ndarray  # (n,) int: linear regions that were visited


def search_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    goal: np.ndarray | None = None,
    **options: Any,
) -> Bounds:
    """Bounds on the minimal perturbation by search, as `search`."""
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
        Known adversarial examples and their distances, infinite where there is none: regions beyond
        need no visit.
    on_region : callable, optional
        Told after each region: the number of the sample, and its `PointSearch`.

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
    """The search of each sample, not begun: what `search` runs one after the other."""
    shared = _Shared(net, p, box)
    for i, x in enumerate(X):
        state = PointSearch(shared, x, int(y[i]), np.inf if goal is None else float(goal[i]))
        if upper is not None and adversarial is not None and upper[i] < state.upper:
            state.upper, state.adversarial = float(upper[i]), adversarial[i].reshape(-1)
        yield state


class _Shared:
    """What all samples share."""

    def __init__(self, net: Network, p: float, box: Box | None) -> None:
        self.net, self.p, self.box = net, p, box
        d = int(np.prod(net.input_shape))
        vertices = (np.full(d, -np.inf), np.full(d, np.inf)) if box is None else box
        self.lo, self.hi = (vertex.reshape(-1) for vertex in vertices)
        # V of the first layer, as probes: it is the same for all patterns.
        self.first = basis(net, np.dtype(np.float64))
        for layer in net.layers[: net.affine[0] + 1]:
            self.first = layer.linear(self.first)

    def gradients(self, masks: list[np.ndarray]) -> list[np.ndarray]:
        """V of each layer for a pattern, (N_k, d)."""
        g, net = self.first, self.net
        probes = [g]
        for i in range(net.affine[0] + 1, len(net.layers)):
            if i - 1 in net.affine:
                g = g * masks[len(probes) - 1]
            g = net.layers[i].linear(g)
            if i in net.affine:
                probes.append(g)
        return [probe.reshape(len(probe), -1).T for probe in probes]


class _Errors:
    """Bounds on the rounding errors of the frozen maps of all patterns, at one point."""

    def __init__(self, net: Network, x: np.ndarray, y: int) -> None:
        everything = [np.ones((1, *shape), dtype=bool) for shape in net.unit_shapes]
        f = [e.reshape(-1) for e in rounding.value_errors(net, x, everything)]
        V = [e.reshape(-1) for e in rounding.gradient_errors(net, everything)]
        # The subtraction itself rounds too: at most as much again.
        self.values = np.concatenate([*f[:-1], 2 * (f[-1] + f[-1][y])])
        self.rows = np.concatenate([*V[:-1], 2 * (V[-1] + V[-1][y])])
        self.indicator = rounding.indicator(net)

    def constant(self, masks: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Units to which no weight or bias leads: 0 on the whole region, without any error."""
        ones = np.ones((1, *shape))
        paths = self.indicator.forward(ones, masks).outputs[:-1]
        return np.concatenate([path.reshape(-1) == 0 for path in paths])


class _Region:
    """The affine maps of one activation pattern, around x.

    Row j < N is unit j, with the sign that makes it >= 0 on the region; row N + c is the negative
    margin over class c, which is >= 0 where c wins.
    """

    def __init__(self, state: PointSearch, pattern: np.ndarray) -> None:
        net, x = state.shared.net, state.x
        self.pattern = pattern
        masks = state.unflat(pattern)
        outputs = net.forward(x, masks).outputs
        values = [f.reshape(-1) for f in outputs]
        V = state.shared.gradients(masks)
        side = np.where(pattern, 1.0, -1.0)
        y = state.y
        self.values = np.concatenate([*values[:-1], values[-1] - values[-1][y]])
        self.rows = np.concatenate([*V[:-1], V[-1] - V[-1][y]])
        N = len(pattern)
        self.values[:N] *= side
        self.rows[:N] *= side[:, None]
        # Signed, so that x is on the positive side of all hyperplanes that count.
        toward = np.append(np.ones(N), -np.ones(len(self.values) - N))
        seen = self.values * toward > -state.errors.values
        seen[N + y] = False
        seen[:N] &= ~state.stable
        flat_rows = np.asarray(~self.rows.any(axis=1))
        if flat_rows[:N].any():
            seen[:N] &= ~(flat_rows[:N] & state.errors.constant(masks, net.input_shape))
        self.toward = toward
        # The hyperplanes that count, with keys: free first, then in the box, then within the region.
        self.targets = np.flatnonzero(seen)
        self.keys = np.zeros(len(self.targets))
        self.boxed = np.zeros(len(self.targets), dtype=bool)
        self.waiting = np.ones(len(self.targets), dtype=bool)
        # The rows that are in the program, which is made when it is needed.
        self.used, self.place = np.zeros(0, dtype=int), np.zeros(0, dtype=int)
        self._program: ShortestSteps | None = None

    def program(self, state: PointSearch, limit: float) -> ShortestSteps:
        """The program about this polytope, for steps of at most some length."""
        if self._program is None:
            N, p = len(self.pattern), state.shared.p
            # A row that no such step violates is left out.
            near = self.values[:N] < limit * dual_norm(self.rows[:N], p)
            near &= ~state.stable
            targets = self.targets[self.waiting]
            near[targets[targets < N]] = True
            self.used = np.append(np.flatnonzero(near), np.arange(N, len(self.values)))
            self.place = np.full(len(self.values), -1)
            self.place[self.used] = np.arange(len(self.used))
            self._program = shortest_steps(
                self.values[self.used], self.rows[self.used], self.used >= N,
                state.lo - state.flat, state.hi - state.flat, p,
            )  # fmt: skip
        return self._program


class PointSearch:
    """The search of one sample.

    Attributes
    ----------
    lower, upper : float
        Bounds on the minimal perturbation, at any time.
    adversarial : ndarray, shape (d,)
        The example that `upper` belongs to; NaN without one.
    regions, nodes : int
        Linear regions visited so far, and families of regions looked at.
    done : bool
        Nothing is left to be done.
    """

    def __init__(self, shared: _Shared, x: np.ndarray, y: int, goal: float = np.inf) -> None:
        self.shared, self.y, self.goal = shared, y, goal
        net = shared.net
        self.x = x[None]
        self.flat = x.reshape(-1)
        self.lo, self.hi = shared.lo, shared.hi
        self.farthest = float(norm(np.maximum(self.hi - self.flat, self.flat - self.lo), shared.p))
        self.upper, self.adversarial = np.inf, np.full(self.flat.size, np.nan)
        self.regions, self.done = 0, False
        self.families = Families(net, shared.p, shared.box, self)
        large = net.n_hidden * self.flat.size > LARGE
        self._first, self._each = (1, 8 * EACH) if large else (FIRST, EACH)
        if net.n_hidden == 0:
            self.families.done = True
        self._order = count()
        self._opened: set[bytes] = set()
        self._known: dict[bytes, float] = {}
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in net.unit_shapes)]).tolist()
        self._layers = [
            (slice(start, end), (1, *shape))
            for start, end, shape in zip(ends[:-1], ends[1:], net.unit_shapes, strict=True)
        ]
        with np.errstate(all="ignore"):
            self.errors = _Errors(net, self.x, y)
            cache = net.forward(self.x)
        logits = cache.outputs[-1].reshape(-1)
        pattern = np.concatenate([np.zeros(0, bool), *(mask.reshape(-1) for mask in cache.masks)])
        self._queue: list[tuple[float, int, int, Any]] = []
        # Units that no walk switches which is no longer than the reach.
        self.stable, self._reach = np.zeros(len(pattern), bool), np.inf
        outputs = np.concatenate([output.reshape(-1) for output in cache.outputs])
        self._sure = np.abs(outputs[: len(pattern)]) > self.errors.values[: len(pattern)]
        if logits.argmax() != y:
            self.upper, self.adversarial = 0.0, self.flat
        else:
            self._push(0.0, OPEN, pattern)
        self._settle()

    @property
    def lower(self) -> float:
        """No point nearer than this has another class."""
        walked = min(self._queue[0][0] if self._queue else np.inf, self._reach)
        lower = max(walked, self.families.lower)
        # Where the box ends.
        lower = np.inf if lower >= self.farthest * FARTHER else lower
        return min(lower, self.upper)

    @property
    def limit(self) -> float:
        """No point farther away is of interest."""
        return min(self.upper, self.goal, self.farthest * FARTHER)

    @property
    def nodes(self) -> int:
        """Families of regions looked at so far."""
        return self.families.nodes

    def run(
        self,
        max_regions: int | None = None,
        max_seconds: float | None = None,
        on_region: Callable[[PointSearch], object] = lambda state: None,
    ) -> None:
        """Search on, until the answer is known or a budget is spent."""
        begin = time.perf_counter()
        while not self.done:
            if max_regions is not None and self.regions >= max_regions:
                break
            if max_seconds is not None and time.perf_counter() - begin >= max_seconds:
                break
            visited = self.regions
            self.step()
            if self.regions > visited:
                on_region(self)

    def step(self) -> None:
        """Work on the nearest entry of the queue, or on the nearest family of regions."""
        turn = self.regions >= self._first + self.families.nodes // self._each
        if not self.families.done and (turn or not self._queue) and np.isfinite(self.limit):
            self.families.step()
            if self._reach == np.inf and self.families.stable is not None:
                self._leave_out(self.families.stable, self.families.stable_radius)
            self._settle()
            return
        key, _, kind, what = self._queue[0]
        if kind == MEET:
            self._meet(*what)
            return
        # Overflow ends in a NaN, which becomes a key of 0: never a wrong bound.
        with np.errstate(all="ignore"):
            # What comes out of an entry has no smaller key, and is in the queue before the entry
            # goes: `lower` holds all along, also if this is interrupted.
            if kind == OPEN:
                self._open(key, what)
            else:
                self._look(key, what)
        heapq.heappop(self._queue)
        self._settle()

    def _leave_out(self, stable: np.ndarray, radius: float) -> None:
        """Forget the hyperplanes of units that nobody switches within a radius."""
        self.stable = stable & self._sure
        self._reach = radius

    def _settle(self) -> None:
        """Drop what is not needed any more, and see whether the search is over."""
        while self._queue and (
            self._queue[0][2] == OPEN and self._queue[0][3].tobytes() in self._opened
        ):
            heapq.heappop(self._queue)
        lower = self.lower
        self.done = (
            lower >= self.goal
            or self.upper < self.goal < np.inf
            or (self.upper <= lower * (1 + EXACT))
        )

    def _push(self, key: float, kind: int, what: Any) -> None:
        heapq.heappush(self._queue, (key, next(self._order), kind, what))

    def unflat(self, pattern: np.ndarray) -> list[np.ndarray]:
        """The masks of a pattern."""
        return [pattern[part].reshape(shape) for part, shape in self._layers]

    def _open(self, key: float, pattern: np.ndarray) -> None:
        """Enter a region, and see how far its hyperplanes are, each by itself."""
        here = _Region(self, pattern)
        N, errors = len(pattern), self.errors
        targets = here.targets
        if key == 0:
            # The pattern of x itself is not certain where units may be 0.
            unsure = targets[targets < N]
            unsure = unsure[np.abs(here.values[unsure]) <= errors.values[unsure]]
            for unit in unsure.tolist():
                self._offer(key, self._flipped(pattern, unit))
            targets = np.setdiff1d(targets, unsure)
        here.targets = targets
        here.keys = np.maximum(self._cheap(here, targets, None), key)
        here.boxed = np.full(len(targets), self.shared.box is None)
        here.waiting = here.keys < self.upper
        self._project(here)
        if not self.regions and here.keys.min(initial=np.inf) < self.upper * (1 - EXACT):
            self._guess(pattern)
        self._wait(here)
        self._opened.add(pattern.tobytes())
        self.regions += 1

    def _flipped(self, pattern, unit):
        pattern = pattern.copy()
        pattern[unit] = ~pattern[unit]
        return pattern

    def _offer(self, key: float, pattern: np.ndarray) -> None:
        """Put a region into the queue, unless it is there already."""
        name = pattern.tobytes()
        if key < self.upper and name not in self._opened and key < self._known.get(name, np.inf):
            self._known[name] = key
            self._push(key, OPEN, pattern)

    def _wait(self, here: _Region) -> None:
        """Put the hyperplanes that are left into the queue."""
        if here.waiting.any():
            key = here.keys[here.waiting].min()
            if key < self.upper:
                self._push(float(key), LOOK, here)

    def _look(self, key: float, here: _Region) -> None:
        """See how far the next hyperplanes are within their region."""
        N = len(here.pattern)
        for i in np.flatnonzero(here.waiting & (here.targets < N)).tolist():
            name = self._flipped(here.pattern, here.targets[i]).tobytes()
            if name in self._opened or self._known.get(name, np.inf) <= here.keys[i]:
                here.waiting[i] = False
        here.waiting &= here.keys < self.upper
        order = np.flatnonzero(here.waiting)
        order = order[np.argsort(here.keys[order])]
        soon = max(int((here.keys[order] <= AHEAD * key).sum()), TOGETHER)
        now = order[:soon]
        free = now[~here.boxed[now]]
        if len(free):
            # First the box: what is far away then can wait.
            boxed = self._cheap(here, here.targets[free], self.shared.box)
            here.keys[free] = np.maximum(here.keys[free], boxed)
            here.boxed[free] = True
            now = now[here.keys[now] <= min(AHEAD * key, self.upper)]
        if len(now):
            targets = here.targets[now]
            keys, steps = self._refined(here, targets)
            keys = np.maximum(keys, here.keys[now])
            decisions = targets >= N
            if decisions.any():
                self._try(steps[decisions])
            for target, new in zip(targets.tolist(), keys.tolist(), strict=True):
                if target < N:
                    self._offer(new, self._flipped(here.pattern, target))
                elif new < self.upper:
                    self._push(new, MEET, (here, target))
            here.waiting[now] = False
        self._wait(here)

    def _meet(self, here: _Region, target: int) -> None:
        """The nearest entry is a decision boundary: step across it, within its region."""
        program = here.program(self, self.upper)
        index = int(here.place[target])
        for overshoot in OVERSHOOTS:
            self._try(program.beyond(index, overshoot)[None], overshoots=(0.0,))
            if self.upper <= self.lower * (1 + EXACT):
                break
        self.done = True

    def attempt(self, step: np.ndarray) -> None:
        """Propose the point that a step leads to as an example, then projections from there on."""
        self._try(step[None])
        labels = np.full(1, self.y)
        for _ in range(TRIES):
            before = self.upper
            z = np.clip(self.flat + step, self.lo, self.hi).reshape(self.x.shape)
            value, w = _examples.linear_margin(self.shared.net, self.x, z, labels)
            if not value[0] > 0 or not w.any():
                break
            step = self._projections(w, value)[0]
            self._try(step[None])
            if self.upper == before < np.inf:
                break

    def _projections(self, w: np.ndarray, value: np.ndarray) -> np.ndarray:
        return _examples.projection_steps(self.flat[None], w, value, self.shared.p, self.shared.box)

    def _cheap(self, here: _Region, targets: np.ndarray, box: Box | None) -> np.ndarray:
        """Distances of single hyperplanes, free or in the box."""
        toward = here.toward[targets]
        w = here.rows[targets] * toward[:, None]
        value = here.values[targets] * toward
        value_error, w_error = self.errors.values[targets], self.errors.rows[targets]
        return self._distances(w, value, value_error, w_error, box)

    def distances(
        self, w: np.ndarray, value: np.ndarray, value_error: np.ndarray, w_error: np.ndarray
    ) -> np.ndarray:
        """Proved distances of half-spaces, within the box."""
        return self._distances(w, value, value_error, w_error, self.shared.box)

    def _distances(self, w, value, value_error, w_error, box):
        """Distances of half-spaces, for the worst ones within the rounding errors."""
        if box is None:
            keys = self._free(w, value, value_error, w_error)
        else:
            keys = region.hyperplane_in_box(
                self.flat, w, value, value_error, w_error, self.lo, self.hi, self.shared.p
            )
        return np.where(keys >= 0, keys, 0)

    def _free(self, w, value, value_error, w_error):
        """Distances in the whole space, for the worst hyperplanes within the rounding errors."""
        slack = 1 - rounding.rounding_factor(4 * w.shape[1] + 32)
        rest = value - value_error
        slope = dual_norm(w, self.shared.p) / slack + w_error
        keys = np.where(slope > 0, rest / np.where(slope > 0, slope, 1), np.inf) * slack
        return np.where(rest > 0, keys, 0)

    def _refined(self, here: _Region, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances of hyperplanes within their region, and the steps there."""
        N = len(here.pattern)
        limit = min(self.upper, self.goal, self.farthest)
        program = here.program(self, limit)
        v, steps = program.solve(here.place[targets], targets < N, limit)
        v = np.where(np.isfinite(v), v, 0)
        free = np.zeros(v.shape, bool)
        free[np.arange(len(v)), here.place[targets]] = targets < N
        v = np.where(free, v, np.maximum(v, 0))
        largest = np.abs(v).max(axis=1, keepdims=True)
        v = v / np.where(largest > 0, largest, 1)
        rows, values = here.rows[here.used], here.values[here.used]
        w, value, size = -v @ rows, -v @ values, np.abs(v)
        gamma = rounding.rounding_factor(2 * len(values) + 16)
        value_error = size @ (self.errors.values[here.used] + gamma * np.abs(values))
        w_error = size @ (self.errors.rows[here.used] + gamma * np.abs(rows).sum(axis=1))
        value_error, w_error = (
            error * (1 + gamma) + rounding.UNDERFLOW for error in (value_error, w_error)
        )
        return self._distances(w, value, value_error, w_error, self.shared.box), steps

    def _project(self, here: _Region) -> np.ndarray | None:
        """Try the projections onto the decision boundaries of the region's affine map.

        Returns the shortest step.
        """
        decisions = np.arange(len(here.pattern), len(here.values))
        decisions = decisions[here.rows[decisions].any(axis=1) & (here.values[decisions] < 0)]
        if not len(decisions):
            return None
        moves = self._projections(here.rows[decisions], here.values[decisions])
        moves = moves[moves.any(axis=1)]
        self._try(moves)
        lengths = norm(moves, self.shared.p)
        return moves[lengths.argmin()] if len(moves) else None

    def _guess(self, pattern: np.ndarray) -> None:
        """Look for a first example: project x again and again, as the network is where that led."""
        for longer in GUESSES:
            before = self.upper
            step = self._project(_Region(self, pattern))
            if step is None or not np.isfinite(step).all() or before == self.upper < np.inf:
                break
            z = np.clip(self.flat + longer * step, self.lo, self.hi)
            masks = self.shared.net.forward(z.reshape(self.x.shape)).masks
            pattern = np.concatenate([pattern[:0], *(mask.reshape(-1) for mask in masks)])

    def _try(self, steps: np.ndarray, overshoots: tuple[float, ...] = OVERSHOOTS) -> None:
        """Keep the nearest verified example a little beyond the steps, if it is nearer."""
        steps = steps[steps.any(axis=1)]
        if not len(steps):
            return
        longer = (1 + np.array(overshoots))[:, None, None] * steps
        Z = np.clip(self.flat + longer.reshape(-1, self.flat.size), self.lo, self.hi)
        distances = _examples.verified_distances(
            self.shared.net, self.x, Z.reshape(-1, *self.x.shape[1:]), np.full(len(Z), self.y),
            self.shared.p, self.shared.box, self.upper * (1 - LEAST),
        )  # fmt: skip
        best = distances.argmin()
        if distances[best] < self.upper:
            self.upper, self.adversarial = float(distances[best]), Z[best]
