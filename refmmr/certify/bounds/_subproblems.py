"""Branch and bound over activation patterns, for the search (`refmmr.certify.bounds.search`).

A *subproblem* fixes the activation of some hidden units and a class c, and leaves the other units
open.  All its adversarial examples on a ball lie in half-spaces, its *cuts*
(`refmmr.certify.bounds._cuts`), which also prove its lower bound.

Cuts are added one by one, each at the nearest point that the cuts so far allow, with the lower
relaxations that are tight there.  As cuts are convex, what they miss at the last point is due to
the upper relaxations: the subproblem is split at the unit whose upper relaxation costs most.  The
subproblem with the smallest lower bound comes first, and that bound is one of the minimal
perturbation.
"""

from __future__ import annotations

import heapq
import time
from itertools import count
from typing import NamedTuple

import numpy as np

from refmmr._examples import OVERSHOOTS, Box
from refmmr.certify.bounds import EXACT
from refmmr.certify.bounds._cuts import Cut, Cuts, flat
from refmmr.certify.bounds._incumbent import Incumbent
from refmmr.reference.hyperplanes import dual_norm, norm
from refmmr.reference.loss import margins
from refmmr.reference.network import Network

MAX_CUTS = 40
"""Rounds of cuts per subproblem, at most: later rounds gain less than a split does."""

MIN_GAIN = 0.005
"""Stop adding cuts when a round raises the lower bound by less than this share of its distance to
the limit: a split costs as much as a few rounds, and then gains more."""

FIRST_ROUNDS = 4
"""Rounds without that test: the first cuts of a subproblem gain irregularly."""

SHRINK = 0.97
"""Bound the units again when the ball has shrunk to this share of its radius: smaller changes save
fewer subproblems than the bounds cost."""

ATTACK_EVERY = 8
"""Attack every `ATTACK_EVERY`-th subproblem: an attack costs about as much as bounding one."""

LARGE_SHARE = 0.9
"""If the first pass on the whole ball certifies a smaller share of the radius, shrink the ball:
on a smaller ball more units are stable."""

SMALL_SHARE = 0.3
"""If the first pass on a smaller ball certifies a smaller share of its radius, shrink it again."""

MAX_BYTES = 2**29
"""Size of the queue above which its farther half is left out, as in
`refmmr.certify.bounds._region_search`."""

MIN_SHARE = 1e-6
"""Give up instead of shrinking the ball below this share of the limit."""

PRECISION = 1e-9
"""Values of this size, relative to the terms that they are sums of, count as 0 in a tie: it is the
tolerance of the solvers."""

CLOSED, TIE = -1, -2
"""Instead of the unit to split at: no unit is open, or splitting cannot raise the bound."""


class Subproblem(NamedTuple):
    """The adversarial examples of one class in all regions that agree on the fixed units."""

    target: int  # the class
    fixed: np.ndarray  # (N,) int8: 1 active, -1 inactive, 0 open
    cuts: list[Cut]
    multipliers: np.ndarray  # of the cuts
    split: int  # the unit to split it at, or `CLOSED` or `TIE`

    @property
    def nbytes(self) -> int:
        """Memory, at most: branches share cuts."""
        return self.fixed.nbytes + sum(cut.row.nbytes + 256 for cut in self.cuts)


class Subproblems:
    """Branch and bound around one point.

    Attributes
    ----------
    lower : float
        A lower bound of the minimal perturbation, at any time.
    nodes : int
        Subproblems bounded so far.
    done : bool
        Nothing is left to do.
    tied : bool
        The bound is the distance of a tie, up to rounding errors, so that no larger one can be
        proved, and no example was found near it.
    stable : ndarray, shape (N,) bool, or None
        Units whose activation is the same everywhere within `stable_radius` of the point.
    deadline : float
        Time of `time.monotonic` after which no subproblem is bounded.
    """

    def __init__(self, net: Network, p: float, box: Box | None, point: Incumbent) -> None:
        self.net, self.p, self.box, self.point = net, p, box, point
        self.lower, self.nodes, self.done, self.tied = 0.0, 0, False, False
        self._order = count()
        self.deadline = np.inf
        self._queue: list[tuple[float, int, Subproblem]] = []  # lower bound first
        self._bytes = 0  # of the queue, at most
        # The radius within which bounds hold, and how far away the dropped subproblems are.
        self._radius, self._dropped = np.inf, 0.0
        self._left_out = np.inf  # how far away those are that were left out for memory
        self._stuck, self._fresh = False, False
        # The radius of a ball that was too large.
        self._ceiling = np.inf
        self.stable: np.ndarray | None = None
        self.stable_radius = np.inf

    def step(self) -> None:
        """Split the nearest subproblem, or begin with a ball."""
        with np.errstate(all="ignore"):
            if not self._queue:
                self._begin(self._next_radius())
            else:
                self._branch()
        self._settle()

    def distance(self, subproblem: Subproblem) -> float:
        """Up to the goal, a lower bound on the distance of the examples in it, by cuts alone."""
        with np.errstate(all="ignore"):
            if not np.isfinite(self._radius):
                self._radius = self.point.goal
                self._bound_units()
            entry = self._bound(subproblem, 0.0)
        return min(self.point.upper, self._radius) if entry is None else entry[0]

    def _settle(self) -> None:
        """Update the lower bound, and decide whether the ball or the search is finished."""
        smallest = self._queue[0][0] if self._queue else np.inf
        self.lower = max(self.lower, min(smallest, self._dropped, self._left_out))
        limit = self.point.limit
        end = min(self._radius, limit)
        if smallest >= min(end, self._left_out):
            self._queue = []
            self._stuck |= self._left_out < end
        share = LARGE_SHARE if self._radius >= limit else SMALL_SHARE
        if self._fresh and self._queue and self.lower < share * self._radius:
            self._queue, self._ceiling = [], self._radius
            self._stuck = self._radius < MIN_SHARE * limit
        self._fresh = False
        self.done = self._stuck or self.lower >= limit

    def _next_radius(self) -> float:
        """The limit at first; a smaller radius after a ball that was too large."""
        limit = self.point.limit
        ceiling = min(self._ceiling, limit)
        if self.lower >= LARGE_SHARE * ceiling or not np.isfinite(self._ceiling):
            self._ceiling = limit
            return limit if self.lower >= LARGE_SHARE * limit else ceiling
        return max((self.lower + ceiling) / 2, ceiling / 4)

    def _begin(self, radius: float) -> None:
        """A subproblem without fixed units for each class."""
        self._radius, self._dropped, self._left_out = radius, radius, np.inf
        self._bound_units()
        fixed = np.zeros(self.net.n_hidden, np.int8)
        rivals = [c for c in range(self.net.n_classes) if c != self.point.y]
        found = []
        for c in rivals:
            if time.monotonic() > self.deadline:
                self._dropped = 0.0  # nothing is proved: the ball is begun again, if at all
                return
            found.append(self._bound(Subproblem(c, fixed, [], np.zeros(0), CLOSED), 0.0))
        # Assigned once all are bounded, so that an interruption leaves no incomplete queue.
        self._queue, self._fresh = sorted(entry for entry in found if entry), True
        self._bytes = sum(entry[2].nbytes for entry in self._queue)

    def _branch(self) -> None:
        """Fix one more unit of the nearest subproblem, active and inactive."""
        if self.point.limit < SHRINK * self._radius:
            self._radius = self.point.limit
            self._bound_units()
        lower, _, subproblem = self._queue[0]
        if subproblem.split < 0:
            # The bounds have not met, because of rounding errors or a tie.
            self._stuck, self.tied = True, subproblem.split == TIE
            return
        branches = []
        for sign in (1, -1):
            fixed = subproblem.fixed.copy()
            fixed[subproblem.split] = sign
            branches.append(self._bound(subproblem._replace(fixed=fixed), lower))
        # The branches go in first: their bounds are no smaller, and an interruption loses nothing.
        for branch in branches:
            if branch:
                heapq.heappush(self._queue, branch)
                self._bytes += branch[2].nbytes
        self._bytes -= heapq.heappop(self._queue)[2].nbytes
        if self._bytes > MAX_BYTES:
            self._leave_out_half()

    def _leave_out_half(self) -> None:
        """Leave out the farther subproblems; nothing is proved beyond the nearest of them."""
        self._queue.sort()
        sizes = np.cumsum([entry[2].nbytes for entry in self._queue])
        keep = max(1, int(np.searchsorted(sizes, MAX_BYTES // 2)))
        if keep < len(self._queue):
            self._left_out = min(self._left_out, self._queue[keep][0])
            self._queue, self._bytes = self._queue[:keep], int(sizes[keep - 1])

    def _bound_units(self) -> None:
        """Bounds of all units on the ball, from which cuts are made."""
        self._cuts = Cuts(self.net, self.p, self.box, self.point, self._radius)
        if self.stable is None:
            low, high = (flat([pair[side] for pair in self._cuts.bounds]) for side in (0, 1))
            self.stable, self.stable_radius = (low > 0) | (high < 0), self._radius

    def _bound(self, subproblem: Subproblem, lower: float) -> tuple[float, int, Subproblem] | None:
        """Raise the lower bound of a subproblem by cuts.

        Returns an entry of the queue, or None if the subproblem is empty or beyond the limit.
        """
        self.nodes += 1
        limit = min(self.point.limit, self._radius)
        bounds = self._cuts.fix(subproblem.fixed)
        if bounds is None:
            self._drop(limit)
            return None
        cuts, v = list(subproblem.cuts), subproblem.multipliers
        step, scores = np.zeros(self.point.flat.size), np.zeros(len(subproblem.fixed))
        if cuts:
            v, step = self._cuts.nearest(cuts, v, limit)
            lower = max(lower, self._cuts.prove(cuts, v))
        for turn in range(MAX_CUTS):
            if turn and time.monotonic() > self.deadline:
                break
            if lower >= limit:
                self._drop(limit)
                return None
            new, scores = self._cuts.at(subproblem.target, subproblem.fixed, bounds, step)
            length = np.array([float(dual_norm(cut.row, self.p)) for cut in new])
            beyond = np.array([-(cut.value + cut.row @ step) for cut in new])
            beyond = beyond / np.where(length > 0, length, 1)
            gain = MIN_GAIN * (limit - lower)
            exact = scores.max(initial=0) <= 0
            tolerance = 1e-8 * limit if exact else gain
            use = [
                cut
                for cut, far in zip(new, beyond.tolist(), strict=True)
                if far > tolerance or not turn
            ]
            if not use:
                break
            cuts += use
            v = np.append(v, np.zeros(len(use)))
            v, step = self._cuts.nearest(cuts, v, limit)
            before, lower = lower, max(lower, self._cuts.prove(cuts, v))
            if turn >= FIRST_ROUNDS and not exact and lower - before < gain:
                break
        if not scores.any() or self.nodes % ATTACK_EVERY == 1 or not subproblem.fixed.any():
            self.point.attempt(step)
            if not scores.any() and self.point.upper > lower * (1 + EXACT):
                self._step_inside(cuts, v, limit, lower)
        limit = min(self.point.limit, self._radius)
        if lower >= limit:
            self._drop(limit)
            return None
        needed = np.flatnonzero(v != 0)
        cuts, split = [cuts[i] for i in needed], _branching_unit(subproblem.fixed, bounds, scores)
        # All subproblems whose regions meet in a tie have its distance: do not split them all.
        split = TIE if self._is_tie(step, lower) else split
        done = Subproblem(subproblem.target, subproblem.fixed, cuts, v[needed], split)
        return lower, next(self._order), done

    def _step_inside(self, cuts, v, limit, lower):
        """Propose the nearest point a little inside of all cuts.

        At the nearest point itself several regions may meet, and the next one holds no example.
        """
        for share in OVERSHOOTS:
            inside = [cut._replace(value=cut.value - share * abs(cut.value)) for cut in cuts]
            _, step = self._cuts.nearest(inside, v, limit)
            self.point.propose(step[None], overshoots=(0.0,))
            if self.point.upper <= lower * (1 + EXACT):
                break

    def _is_tie(self, step: np.ndarray, lower: float) -> bool:
        """Whether a step as short as the bound leads to a tie with no example near it.

        More than d units must be 0 there, which is no general position: they meet in up to 2^N
        patterns.  Few patterns are cheap to tell apart, and some of them may have an example.
        """
        point, net = self.point, self.net
        if not norm(step, self.p) <= lower * (1 + EXACT):
            return False
        z = np.clip(point.flat + step, point.lo, point.hi).reshape(point.x.shape)
        outputs = net.forward(z).outputs
        sizes = [PRECISION * magnitude.terms for magnitude in self._cuts.magnitudes]
        zeros = sum(
            int((np.abs(f) <= size).sum()) for f, size in zip(outputs[:-1], sizes, strict=False)
        )
        margin = abs(float(margins(outputs[-1].reshape(1, -1), np.full(1, point.y))[0]))
        if zeros <= step.size or not margin <= 2 * sizes[-1].max():
            return False
        point.attempt(step)
        return point.upper > lower * (1 + EXACT)

    def _drop(self, limit: float) -> None:
        """Leave out a subproblem that is farther away than the limit."""
        self._dropped = min(self._dropped, limit)


def _branching_unit(fixed, bounds, scores):
    """The open unit whose upper relaxation costs most; the first open one if none does."""
    if scores.max(initial=0) > 0:
        return int(scores.argmax())
    unstable = flat([(low < 0) & (high > 0) for low, high in bounds]) > 0
    unstable &= fixed == 0
    return int(unstable.argmax()) if unstable.any() else CLOSED
