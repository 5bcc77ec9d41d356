"""Families of linear regions at once: the other half of the search (`refmmr.certify.bounds.search`).

A *family* fixes the side of some hidden units and leaves the others open.  On a ball that holds all
that is of interest, most units are stable; a ReLU between lines (`refmmr.reference.backward_bound`)
stands for each that is open.  So, carried back to the input,

    df . (f_1, ..., f_{L+1})   >=   <w, z> + b      for every z of the ball in the family,

for any coefficients `df`.  Take the margin over class c, minus ``beta_i >= 0`` times what is
positive for a fixed unit: an adversarial example of class c in the family makes the left side at
most 0, so it lies in the half-space ``<w, z> + b <= 0``.  That is a *cut*.

Cuts are found one after the other, at the nearest point that the cuts so far allow, where the lower
line of a unit is chosen to be tight.  They are convex, so what is missing at the last point is the
upper lines: the family is halved at the unit whose line is farthest off.  The family that may hold
the nearest example comes first, and the smallest key is a lower bound of the perturbation.

**Keys are proved** as those of regions are: multipliers of the cuts come from a program that nobody
trusts, the sum of the cuts is one half-space, and its distance is bounded with all rounding errors.
Those of a cut are bounded on the ball, as `refmmr.reference.backward_bound` does it.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np

from refmmr import _kernels
from refmmr.certify.bounds._nearest import nearest_point
from refmmr.reference import rounding
from refmmr.reference.backward_bound import relu_lines
from refmmr.reference.ball import ball, largest_gain
from refmmr.reference.hyperplanes import dual_norm
from refmmr.reference.network import Network

CUTS = 40
"""Rounds of cuts for one family, at most."""

CLOSE = 0.02
"""A round that gains less than this share of what is missing is the last one for a family."""

SHRINK = 0.97
"""The bounds of the units are found again when the ball has shrunk by this factor."""

SMALL = 600
"""Units behind the first layer up to which their bounds are found again for every family."""

SELDOM = 8
"""Examples are looked for at one of so many families."""

NEAR = 0.9
"""Balls smaller than what matters are looked at first, if less than this share is proved."""

TINY = 1e-6
"""Share of what matters below which no smaller ball is looked at."""

PROMISING = 0.3
"""Still smaller balls come before those of which less is proved at once."""


Box = tuple[np.ndarray, np.ndarray]


class Cut(NamedTuple):
    """A half-space ``value + <row, delta> >= 0`` with all adversarial examples of a family."""

    row: np.ndarray  # (d,)
    value: float
    error: float  # the exact value is off by no more, anywhere on the ball


class Family(NamedTuple):
    """Regions that have the sides of some units in common."""

    target: int  # the class
    fixed: np.ndarray  # (N,) int8: 1 active, -1 inactive, 0 open
    cuts: list[Cut]
    multipliers: np.ndarray  # of the cuts
    split: int  # the unit to halve it at; -1 for none


class Point(Protocol):
    """What the families need to know about the search of a point (`search.PointSearch`)."""

    x: np.ndarray
    flat: np.ndarray
    y: int
    lo: np.ndarray
    hi: np.ndarray

    @property
    def limit(self) -> float:
        """No point farther away is of interest."""

    def attempt(self, step: np.ndarray) -> None:
        """See whether a step, or the ones that it suggests, are adversarial."""

    def distances(
        self, w: np.ndarray, value: np.ndarray, value_error: np.ndarray, w_error: np.ndarray
    ) -> np.ndarray:
        """Proved distances of half-spaces."""


class Families:
    """The search of one point through families of regions.

    Attributes
    ----------
    lower : float
        A lower bound of the minimal perturbation, at any time.
    nodes : int
        Families looked at.
    done : bool
        Nothing is left to be done.
    stable : ndarray, shape (N,) bool, or None
        Units that have the same side everywhere within `stable_radius` of the point.
    """

    def __init__(self, net: Network, p: float, box: Box | None, point: Point) -> None:
        self.net, self.p, self.box, self.point = net, p, box, point
        self.lower, self.nodes, self.done = 0.0, 0, False
        self._order = count()
        self._queue: list[tuple[float, int, Family]] = []
        # Bounds hold so far away; what was dropped is farther away than that.
        self._radius, self._dropped = np.inf, 0.0
        self._stuck, self._fresh = False, False
        # A ball of this radius seemed too large.
        self._ceiling = np.inf
        self.stable: np.ndarray | None = None
        self.stable_radius = np.inf
        self._ends = np.cumsum([0, *(int(np.prod(shape)) for shape in net.unit_shapes)]).tolist()

    def step(self) -> None:
        """Halve the nearest family, or begin with a ball."""
        with np.errstate(all="ignore"):
            if not self._queue:
                self._begin(self._next_radius())
            else:
                self._halve()
        self._settle()

    def _settle(self) -> None:
        """What the queue proves; and whether it has answered."""
        smallest = self._queue[0][0] if self._queue else np.inf
        self.lower = max(self.lower, min(smallest, self._dropped))
        reached = min(self._radius, self.point.limit)
        if smallest >= reached:
            self._queue = []
        limit = self.point.limit
        share = NEAR if self._radius >= limit else PROMISING
        if self._fresh and self._queue and self.lower < share * self._radius:
            # Bounds on a smaller ball are better ones.
            self._queue, self._ceiling = [], self._radius
            self._stuck = self._radius < TINY * limit
        self._fresh = False
        self.done = self._stuck or self.lower >= limit

    def _next_radius(self) -> float:
        """First as far as it matters; where that leaves much open, a smaller ball."""
        limit = self.point.limit
        ceiling = min(self._ceiling, limit)
        if self.lower >= NEAR * ceiling or not np.isfinite(self._ceiling):
            self._ceiling = limit
            return limit if self.lower >= NEAR * limit else ceiling
        return max((self.lower + ceiling) / 2, ceiling / 4)

    def _begin(self, radius: float) -> None:
        """All classes on a ball."""
        self._radius, self._dropped = radius, radius
        self._bound_units()
        fixed = np.zeros(self._ends[-1], np.int8)
        rivals = [c for c in range(self.net.n_classes) if c != self.point.y]
        found = [self._look(Family(c, fixed, [], np.zeros(0), -1), 0.0) for c in rivals]
        # Only now, so that an interruption leaves no part of them.
        self._queue, self._fresh = sorted(entry for entry in found if entry), True

    def _halve(self) -> None:
        if self.point.limit < SHRINK * self._radius:
            self._radius = self.point.limit
            self._bound_units()
        key, _, family = self._queue[0]
        if family.split < 0:
            # Nothing is open, yet the bounds have not met: nothing more can be said.
            self._stuck = True
            return
        halves = []
        for side in (1, -1):
            fixed = family.fixed.copy()
            fixed[family.split] = side
            halves.append(self._look(family._replace(fixed=fixed), key))
        # The halves go in first, so that an interruption loses nothing: none comes before it.
        for half in halves:
            if half:
                heapq.heappush(self._queue, half)
        heapq.heappop(self._queue)

    def _bound_units(self) -> None:
        """Bounds of all units on the ball, and of the sizes that rounding errors depend on."""
        net, point = self.net, self.point
        radius = np.array([self._radius])
        self._bounds = [
            (low[0], high[0])
            for low, high in _kernels.layer_bounds(net, point.x, self.p, radius, self.box, "crown")[
                :-1
            ]
        ]
        if self.stable is None:
            low, high = (
                np.concatenate([side.reshape(-1) for side in sides])
                for sides in zip(*self._bounds, strict=True)
            )
            self.stable, self.stable_radius = (low > 0) | (high < 0), self._radius
        self._ball = ball(point.x, radius, self.p, self.box)
        self._room = point.lo - point.flat, point.hi - point.flat
        lowest, highest = point.flat - self._radius, point.flat + self._radius
        largest = np.maximum(
            np.abs(np.maximum(lowest, point.lo)), np.abs(np.minimum(highest, point.hi))
        ).reshape(net.input_shape)
        sizes = [largest, *(np.maximum(np.abs(low), np.abs(high)) for low, high in self._bounds)]
        self._magnitudes = []
        # Everything that is rounded is a sum of so many terms, times a few for the lines between.
        shapes = [*net.unit_shapes, net.shapes[-1]]
        terms = [
            W[0].size + int(np.prod(shape)) + 8
            for (W, _), shape in zip(net.parameters, shapes, strict=True)
        ]
        self._factors = [rounding.rounding_factor(8 * int(total)) for total in np.cumsum(terms)]
        for k, layer in enumerate(net.affine_layers):
            size = sizes[k][None]
            for i in net.span(k)[:-1]:
                size = net.layers[i].apply(size)
            heavy = layer.with_weights(np.abs(layer.W), np.abs(layer.b))
            self._magnitudes.append(heavy.apply(size)[0])

    def _look(self, family: Family, key: float) -> tuple[float, int, Family] | None:
        """Find the key of a family, as an entry of the queue; None if it is too far away."""
        self.nodes += 1
        limit = min(self.point.limit, self._radius)
        bounds = self._fix(family.fixed)
        if bounds is None:
            self._drop(limit)
            return None
        cuts, lam = list(family.cuts), family.multipliers
        step, scores = np.zeros(self.point.flat.size), np.zeros(len(family.fixed))
        if cuts:
            lam, step = self._nearest(cuts, lam, limit)
            key = max(key, self._prove(cuts, lam))
        for turn in range(CUTS):
            if key >= limit:
                self._drop(limit)
                return None
            new, scores = self._cuts(family, bounds, step)
            off = np.array([-(cut.value + cut.row @ step) for cut in new])
            length = np.array([float(dual_norm(cut.row, self.p)) for cut in new])
            off = off / np.where(length > 0, length, 1)
            missing = limit - key
            exact = scores.max(initial=0) <= 0
            least = 1e-8 * limit if exact else CLOSE * 0.25 * missing
            use = [
                cut for cut, far in zip(new, off.tolist(), strict=True) if far > least or not turn
            ]
            if not use:
                break
            cuts += use
            lam = np.append(lam, np.zeros(len(use)))
            lam, step = self._nearest(cuts, lam, limit)
            new_key = max(key, self._prove(cuts, lam))
            if turn > 3 and not exact and new_key - key < CLOSE * 0.25 * missing:
                key = new_key
                break
            key = new_key
        if not scores.any() or self.nodes % SELDOM == 1 or not family.fixed.any():
            self.point.attempt(step)
        limit = min(self.point.limit, self._radius)
        if key >= limit:
            self._drop(limit)
            return None
        needed = np.flatnonzero(lam != 0)
        split = self._split(family.fixed, bounds, scores)
        found = Family(family.target, family.fixed, [cuts[i] for i in needed], lam[needed], split)
        return key, next(self._order), found

    def _drop(self, limit: float) -> None:
        """A family is farther away than the limit."""
        self._dropped = min(self._dropped, limit)

    def _fix(self, fixed):
        """Bounds of all units in a family, or None if it is empty.

        Behind the first layer they are found again, as units before them are fixed.
        """
        bounds: list[tuple[np.ndarray, np.ndarray]] = []
        deep = sum(low.size for low, _ in self._bounds[1:]) <= SMALL and fixed.any()
        for k, (low, high) in enumerate(self._bounds):
            part = fixed[self._ends[k] : self._ends[k + 1]].reshape(low.shape)
            if k and deep:
                low, high = self._narrow(bounds, low, high)
            if ((part > 0) & (high < 0) | (part < 0) & (low > 0)).any():
                return None
            low, high = (
                np.where(part > 0, np.maximum(low, 0), low),
                np.where(part < 0, np.minimum(high, 0), high),
            )
            bounds.append((low, high))
        return bounds

    def _narrow(self, bounds, low, high):
        """Better bounds of the open units of the layer behind those of `bounds`."""
        open_ = (low < 0) & (high > 0)
        units = np.flatnonzero(open_)
        if not len(units):
            return low, high
        rows = np.zeros((2 * len(units), low.size))
        rows[np.arange(len(units)), units] = 1
        rows[len(units) + np.arange(len(units)), units] = -1
        none = [np.zeros((1, *lower.shape)) for lower, _ in bounds]
        tight = [upper > -lower for lower, upper in bounds]
        A, value, error, _ = self._carry_back([*none, rows.reshape(-1, *low.shape)], bounds, tight)
        reach = np.minimum(self._radius, np.maximum(self._room[1], -self._room[0]))
        gamma = rounding.rounding_factor(8 * len(reach) + 64)
        gain = largest_gain(self._ball, -A[None])[0] + gamma * (np.abs(A) @ reach)
        least = value - gain - error * (1 + gamma)
        least = np.where(np.isfinite(least), least, -np.inf)
        low, high = low.copy(), high.copy()
        low[open_] = np.maximum(low[open_], least[: len(units)])
        high[open_] = np.minimum(high[open_], -least[len(units) :])
        return low, high

    def _outputs(self, step, bounds):
        """Pre-activations at a step, fixed and stable units frozen as the family has them."""
        net = self.net
        g = (self.point.flat + step).reshape(self.point.x.shape)
        outputs = []
        for i, layer in enumerate(net.layers):
            g = layer.apply(g)
            if i in net.affine:
                outputs.append(g)
                if i != net.affine[-1]:
                    low, high = bounds[len(outputs) - 1]
                    g = g * np.where(low >= 0, True, (high > 0) & (g > 0))
        return outputs

    def _split(self, fixed, bounds, scores):
        """The open unit whose upper line is farthest off; any open one if all are right."""
        if scores.max(initial=0) > 0:
            return int(scores.argmax())
        open_ = np.concatenate(
            [((low < 0) & (high > 0)).reshape(-1) for low, high in bounds] or [np.zeros(0, bool)]
        )
        open_ &= fixed == 0
        return int(open_.argmax()) if open_.any() else -1

    def _cuts(self, family, bounds, step):
        """Cuts at a step, and how far the upper lines are off there, for each unit."""
        net = self.net
        outputs = self._outputs(step, bounds)
        f = np.concatenate([output.reshape(-1) for output in outputs[:-1]])
        # Fixed units that are on the wrong side there.
        beyond = np.flatnonzero(family.fixed * f < 0)
        m = 1 + len(beyond)
        df = [np.zeros((m, *shape)) for shape in (*net.unit_shapes, net.shapes[-1])]
        df[-1].reshape(m, -1)[0, [self.point.y, family.target]] = 1, -1
        for row, unit in enumerate(beyond.tolist()):
            k = int(np.searchsorted(self._ends, unit, side="right")) - 1
            df[k].reshape(m, -1)[1 + row, unit - self._ends[k]] = -family.fixed[unit]
        tight = [output[0] > 0 for output in outputs[:-1]]
        A, value, error, slopes = self._carry_back(df, bounds, tight)
        found = []
        for row, v, e in zip(-A, -value, error, strict=True):
            # By a power of two, which rounds nothing.
            _, exponent = np.frexp(np.abs(row).max(initial=0))
            scale = float(np.ldexp(1.0, -int(exponent)))
            found.append(Cut(row * scale, float(v) * scale, float(e) * scale))
        scores = np.zeros(len(family.fixed))
        for k, (low, high) in enumerate(bounds):
            lines = relu_lines(low, high, "crown")
            f = outputs[k][0]
            above = lines.upper_slope * f + lines.intercept - np.maximum(f, 0)
            open_ = (low < 0) & (high > 0)
            part = np.where(open_, np.maximum(-slopes[k][0], 0) * np.maximum(above, 0), 0)
            scores[self._ends[k] : self._ends[k + 1]] = part.reshape(-1)
        size = np.abs(scores).max(initial=0)
        scale = max(float(np.abs(outputs[-1]).max()), 1e-300)
        return found, np.where(scores > 1e-9 * scale, scores, 0) if size else scores

    def _carry_back(self, df, bounds, tight):
        """Affine functions below those with coefficients `df`, (m, *shape) for each layer.

        Returns their gradients (m, d), values at x (m,), how far they are off anywhere on the ball
        (m,), and the coefficients of the activations of each hidden layer on the way.
        """
        net, flat = self.net, self.point.flat
        k = len(df) - 1
        m = len(df[-1])
        rows = df[-1][None]
        factor = self._factors[k]
        constant, error = np.zeros(m), np.zeros(m)
        slopes: list[np.ndarray] = []
        while True:
            layer = net.affine_layers[k]
            magnitude = self._magnitudes[k].reshape(-1)
            error = error + factor * (np.abs(rows).reshape(m, -1) @ magnitude) + rounding.UNDERFLOW
            sums = rows.sum(axis=(-2, -1)) if rows.ndim == 5 else rows
            constant = constant + (sums @ layer.b)[0]
            for i in reversed(net.span(k)):
                rows = net.layers[i].transpose(rows, net.shapes[i])
            k -= 1
            if k < 0:
                break
            slopes.insert(0, rows[0])
            low, high = bounds[k]
            lines = relu_lines(low, high, "crown")
            lower_slope = np.where((low < 0) & (high > 0), tight[k], lines.lower_slope)
            constant = constant + np.minimum(rows, 0).reshape(m, -1) @ lines.intercept.reshape(-1)
            rows = rows * np.where(rows > 0, lower_slope, lines.upper_slope) + df[k]
        A = rows.reshape(m, -1)
        value = A @ flat + constant
        # The sum over the inputs and the constant, in any order.
        gamma = rounding.rounding_factor(2 * len(flat) + 16)
        error = error * (1 + gamma) + gamma * (np.abs(A) @ np.abs(flat) + np.abs(constant))
        return A, value, error, slopes

    def _nearest(self, cuts, lam, limit):
        """Multipliers of the cuts, and the nearest step that they allow."""
        rows = np.array([cut.row for cut in cuts])
        values = np.array([cut.value for cut in cuts])
        lo, hi = self.point.lo - self.point.flat, self.point.hi - self.point.flat
        return nearest_point(values, rows, lo, hi, self.p, lam, limit)

    def _prove(self, cuts, lam):
        """How far the sum of the cuts is, proved; 0 for nothing."""
        lam = np.where(np.isfinite(lam), np.maximum(lam, 0), 0)
        largest = lam.max(initial=0)
        if not largest > 0:
            return 0.0
        lam = lam / largest
        use = np.flatnonzero(lam)
        v = lam[use]
        rows = np.array([cuts[i].row for i in use])
        values, errors = (
            np.array([getattr(cuts[i], name) for i in use]) for name in ("value", "error")
        )
        gamma = rounding.rounding_factor(2 * len(use) + 16)
        value_error = v @ (errors + gamma * np.abs(values))
        w_error = v @ (gamma * np.abs(rows).sum(axis=1))
        value_error, w_error = (
            np.array([error * (1 + gamma) + rounding.UNDERFLOW]) for error in (value_error, w_error)
        )
        w, value = -(v @ rows)[None], -np.array([v @ values])
        distance = float(self.point.distances(w, value, value_error, w_error)[0])
        return min(distance, self._radius)
