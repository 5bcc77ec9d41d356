"""The branch-and-bound tree of one linear function, many nodes at once.

The steps are those of `refmmr.reference.branch_and_bound`.  Gradient steps run in float32, as they
only choose the free parameters of the bounds.  Every bound that counts is then a backward bound in
float64 with its rounding errors subtracted: that of a node, that of a clipped unit, and the
half-space that the unit was clipped with.  So a node is never proved by float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refmmr import _kernels
from refmmr.certify.bounds._place import (
    LARGEST,
    Start,
    ascend,
    bound,
    bound_units,
    finished,
)
from refmmr.certify.bounds._tree_record import TreeRecord
from refmmr.reference import ascent as book
from refmmr.reference import envelope
from refmmr.reference.ascent import Nodes
from refmmr.reference.branch_and_bound import split
from refmmr.reference.intervals import Bounds
from refmmr.reference.network import Network, flat, unflat

BATCH = 64
"""Nodes that are split together: matrix products are fast from about this many rows on."""

ROOT_STEPS = 60
"""Gradient steps at the root: its bound and half-space decide how large the tree becomes."""

NODE_STEPS = 10
"""Gradient steps in a node, which starts from the parameters of its parent.  With 6 the steps are
still too long at the end: on a convolutional network whose first layer has 3136 units, most of them
always active, bounds stay where they are however many units are fixed, and trees of 20 thousand
nodes are open; with 10 they have 76 nodes.  A node costs hardly more."""

SMALL = 2**14
"""Hidden units times inputs, at most, for `SMALL_NODE_STEPS`: a step costs little, and bounds must
be sharp next to the minimal perturbation, where such networks are certified."""

SMALL_NODE_STEPS = 20
"""Gradient steps in a node of a small network."""

ROUNDS = 3
"""Rounds of clipping and bounding at the root."""

MIN_GAIN = 5e-3
"""Stop them where a round gains less than this share of the bound's distance to 0."""

CANDIDATES = 4
"""Units that are tried before a split in networks of several hidden layers ("filtered smart
branching", De Palma et al. 2021): the score of a unit says less there."""

CLIP_SHARE = 0.1
"""Units of a node of several hidden layers are clipped where their score is above this share of the
mean score of the unstable units of their layer: the relaxations of the others cost little."""

MAX_BYTES = 2**30
"""Above this size of the queue the newest nodes come first, so that it stops growing."""


class Relaxed(NamedTuple):
    """n nodes after their gradient steps, and their bounds."""

    nodes: Nodes
    centers: np.ndarray  # (n, d) of `refmmr.reference.envelope`; (n, 0) without
    scores: np.ndarray  # (n, N)
    points: np.ndarray  # (n, d), where the last bound is smallest
    values: np.ndarray  # (n,), the bounds
    c: np.ndarray  # (n, d): counterexamples have ``<c, z> + e <= 0``
    e: np.ndarray  # (n,)

    def take(self, rows: np.ndarray) -> Relaxed:
        """Some of the nodes."""
        return Relaxed(self.nodes.take(rows), *(part[rows] for part in self[1:]))


def _worth_clipping(scores: np.ndarray) -> np.ndarray:
    """The units whose bounds are worth making better in each node: (n, *unit_shape) to (n, units).

    All, where the scores are not finite.
    """
    scores = scores.reshape(len(scores), -1)
    unstable = scores >= 0
    total = np.where(unstable, scores, 0).sum(axis=1, keepdims=True)
    mean = total / np.maximum(unstable.sum(axis=1, keepdims=True), 1)
    return ~(scores < CLIP_SHARE * mean)


def _output_weights(net: Network, row: np.ndarray) -> np.ndarray:
    """Coefficients of the activations of the last hidden layer in ``<row, f_{L+1}>``, (units,)."""
    g = row[None]
    for i in reversed(net.span(len(net.affine) - 1)):
        g = net.layers[i].transpose(g, net.shapes[i])
    return g.reshape(-1)


class Tree:
    """Branch and bound for ``<row, f_{L+1}(z)> + constant > 0`` on one ball.

    Parameters
    ----------
    start : Start
    row : ndarray, shape (*logits_shape)
    check : callable
        Called with points (n, d) where a bound is smallest; it returns True if the search may end
        because one of them is a counterexample.
    constant : float

    Attributes
    ----------
    refuted : bool
        `check` found a counterexample.
    nodes : int
        Bounded so far.
    stuck : list of ndarray (N,) int8
        Nodes without an unstable unit whose bounds are not positive: the units of counterexamples
        are 1 active, -1 inactive.
    given_up : bool
        They cannot be proved either.
    record : TreeRecord
    """

    def __init__(
        self,
        start: Start,
        row: np.ndarray,
        check: Callable[[np.ndarray], bool],
        constant: float = 0.0,
    ) -> None:
        self.place, self.row, self.constant, self.check = start.place, row, constant, check
        self.forms, self.magnitudes = list(start.forms), start.magnitudes
        self.nodes, self.refuted, self.given_up = 0, False, False
        self.stuck: list[np.ndarray] = []
        self.record = TreeRecord(start.place.record)
        small = start.place.net.n_hidden * start.place.ball.x.size <= SMALL
        self._envelopes = start.envelopes
        self._steps = SMALL_NODE_STEPS if small else NODE_STEPS
        self._shapes = start.place.net.unit_shapes
        self._output_weights = _output_weights(start.place.net, row)
        self._queue: list[tuple[np.ndarray, ...]] = []
        self._values = np.zeros(0)
        self._stuck = 0.0  # the smallest bound of the nodes in `stuck`, or 0
        self._root(start.bounds)

    @property
    def proved(self) -> bool:
        """No counterexample is in the ball."""
        return not (self.refuted or self._queue or self.stuck)

    @property
    def lower(self) -> float:
        """No point of the ball has a smaller value of the function, where that is at most 0."""
        return float(min(self._values.min(initial=0), self._stuck))

    @property
    def done(self) -> bool:
        """Nothing is left to split."""
        return self.refuted or not self._queue

    def anew(self, start: Start) -> Tree:
        """The tree of the same function from another start; it counts the nodes of both."""
        tree = Tree(start, self.row, self.check, self.constant)
        tree.nodes += self.nodes
        return tree

    def run(self, deadline: float = np.inf, max_nodes: float = np.inf) -> None:
        """Split nodes until all are proved, a counterexample is found or a limit is reached."""
        while not self.done and self.nodes < max_nodes and time.monotonic() < deadline:
            self.step()

    def _relax(self, nodes, centers, steps, seen=envelope.SEEN):
        """Bound nodes, after gradient steps in the parameters of their relaxations: `Relaxed`."""
        self.nodes += len(centers)
        if self._envelopes is not None:
            found = _kernels.ascend_envelopes(
                self.place.net, self._envelopes, self.row, nodes, centers, steps, seen
            )
            nodes = nodes._replace(slopes=[found.slopes], multipliers=[found.multipliers])
            lines = finished(self.place, found.bound, self.constant)
            return Relaxed(nodes, found.centers, found.scores, found.points, *lines)
        rows = np.repeat(self.row[None], len(centers), axis=0)
        ascent = ascend(self.place, rows, nodes, steps)
        nodes = nodes._replace(slopes=ascent.slopes, multipliers=ascent.multipliers)
        self.record.add(nodes)
        lines = bound(self.place, rows, nodes, self.magnitudes, self.constant)
        # Without hidden layers there are no units.
        scores = flat(ascent.scores) if ascent.scores else np.zeros((len(centers), 0))
        return Relaxed(nodes, centers, scores, ascent.points, *lines)

    def _root(self, bounds: list[Bounds]) -> None:
        """Bound the ball, clip all units by the half-space of that bound, and bound it again."""
        nodes, before = book.root(bounds), -np.inf
        centers = np.zeros((1, 0 if self._envelopes is None else self.place.ball.x.size))
        for turn in range(ROUNDS + 1):
            now = self._relax(nodes, centers, ROOT_STEPS, envelope.SEEN if turn else 0)
            value = now.values[0]
            if value > 0:
                return
            self.refuted = self.check(now.points)
            if self.refuted:
                return
            if turn == ROUNDS or value - before < MIN_GAIN * -value:
                break
            before = value
            clipped = self._clip_root(now.nodes.bounds, now.c, now.e)
            if clipped is None:
                return
            nodes, centers = now.nodes._replace(bounds=clipped), now.centers
        if bounds:
            self._push(now)
        else:
            self.stuck.append(np.zeros(0, np.int8))  # an affine function: nothing to split
            self._stuck = min(self._stuck, float(value))

    def _clip_root(self, bounds, c, e):
        """Bounds of all units in a half-space, layer after layer; None if it is empty."""
        fresh: list[Bounds] = []
        self.record.rounds.append([])
        for k, own in enumerate(bounds):
            if k:
                own, self.forms[k] = bound_units(self.place, k, fresh, own, self.magnitudes)
            self.record.add_slopes(self.forms[k].slopes)
            # Copies: what holds for this function's counterexamples does not for those of others.
            lower, upper = (side.reshape(1, -1).copy() for side in own)
            lower, upper = self._clip_layer(k, lower, upper, c, e, lower < upper, 12)
            if (lower > upper).any():
                return None
            fresh.append((lower.reshape(own[0].shape), upper.reshape(own[1].shape)))
        return fresh

    def _clip_layer(self, k, lower, upper, c, e, wanted, steps):
        """Bounds (n, units) of a layer in the half-spaces ``<c, z> + e <= 0``, each of a node."""
        forms = self.forms[k]
        low, high = lower[:, forms.units], upper[:, forms.units]
        need = wanted[:, forms.units] & (low < 0) & (high > 0)
        below, above = (
            _kernels.clip_nodes(self.place.ball, forms.A[i], forms.constant[i], c, e, need, steps)
            for i in (0, 1)
        )
        lower[:, forms.units] = np.maximum(low, below)
        upper[:, forms.units] = np.minimum(high, -above)
        return lower, upper

    def step(self) -> None:
        """Split some nodes, and bound their halves."""
        nodes, centers, scores, values = self._pop()
        nodes = split(nodes, self._choose(nodes, scores))
        now = self._relax(nodes, np.repeat(centers, 2, axis=0), self._steps)
        # What holds on a node holds on its halves; few gradient steps can end below it.
        now = now._replace(values=np.fmax(now.values, np.repeat(values, 2)))
        left = np.flatnonzero(~(now.values > 0))
        if not len(left):
            return
        now = now.take(left)
        if self.check(now.points):
            self.refuted = True
            return
        self._clip_and_push(now)

    def _clip_and_push(self, now):
        bounds: list[Bounds] = []
        n = len(now.values)
        empty = np.zeros(n, dtype=bool)
        by_layer = unflat(now.scores, self._shapes)
        for k, (own, own_scores) in enumerate(zip(now.nodes.bounds, by_layer, strict=True)):
            lower, upper = (side.reshape(n, -1).copy() for side in own)
            wanted = _worth_clipping(own_scores)
            if len(now.nodes.bounds) == 1:
                # Where the output weight is positive, only the lower relaxation is used, which
                # does not depend on the bounds.
                wanted &= self._output_weights < 0
            lower, upper = self._clip_layer(k, lower, upper, now.c, now.e, wanted, 6)
            empty |= (lower > upper).any(axis=1)
            bounds.append((lower.reshape(own[0].shape), upper.reshape(own[1].shape)))
        now = now._replace(nodes=now.nodes._replace(bounds=bounds))
        self._push(now.take(np.flatnonzero(~empty)))

    def _choose(self, nodes, scores):
        """The unit at which to split each node."""
        if len(nodes.bounds) == 1:
            return scores.argmax(axis=1)
        n = len(scores)
        count = min(CANDIDATES, scores.shape[1])
        tried = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        place, dtype = self.place, self.place.dtype
        bounds: list[Bounds] = [
            (low.astype(dtype), high.astype(dtype)) for low, high in nodes.bounds
        ]
        # Only by their relaxations: with the multipliers of `split` all halves begin alike.
        betas = [
            np.where(fixed != 0, beta, 0)
            for fixed, beta in zip(nodes.fixed, nodes.multipliers, strict=True)
        ]
        nodes = nodes._replace(bounds=bounds, multipliers=betas)
        children = split(nodes.take(np.repeat(np.arange(n), count)), tried.reshape(-1))
        rows: np.ndarray = np.repeat(self.row[None].astype(dtype), 2 * n * count, axis=0)
        linear = _kernels.bound(place.fast, place.fast_ball, rows, children, self.magnitudes)
        values = linear.minimum(place.fast_ball)[:, 0].astype(np.float64) + self.constant
        values = np.minimum(values.reshape(n, count, 2), 0)
        quality = values.min(axis=2) + 0.1 * values.max(axis=2)
        # A stable unit is no candidate, not even where the bounds of all others are -inf.
        quality = np.maximum(np.nan_to_num(quality), -LARGEST)
        quality[np.take_along_axis(scores, tried, 1) < 0] = -np.inf
        return np.take_along_axis(tried, quality.argmax(axis=1)[:, None], 1)[:, 0]

    def _push(self, now):
        if not len(now.values):
            return
        nodes = now.nodes
        lower, upper = (flat(side) for side in zip(*nodes.bounds, strict=True))
        parts = [flat(field) for field in (nodes.fixed, nodes.slopes, nodes.multipliers)]
        scores = np.nan_to_num(now.scores, nan=0)
        scores[(lower >= 0) | (upper <= 0)] = -1
        leaf = scores.max(axis=1, initial=-1) < 0
        self.stuck += list(np.where(lower >= 0, 1, -1).astype(np.int8)[leaf])
        self._stuck = min(self._stuck, float(now.values[leaf].min(initial=0)))
        keep = np.flatnonzero(~leaf)
        columns = [lower, upper, *parts, now.centers, scores]
        # Copies: a view of one row would keep the arrays of the whole batch.
        self._queue += [tuple(column[i].copy() for column in columns) for i in keep]
        self._values = np.concatenate([self._values, now.values[keep]])

    def _pop(self):
        """The nodes with the smallest bounds, and these; the newest where the queue is large."""
        count = min(BATCH, len(self._queue))
        size = sum(part.nbytes for part in self._queue[0])
        if size * len(self._queue) > MAX_BYTES:
            chosen = np.arange(len(self._queue) - count, len(self._queue))
        else:
            chosen = np.argpartition(self._values, count - 1)[:count]
        columns = [
            np.stack(column) for column in zip(*(self._queue[i] for i in chosen), strict=True)
        ]
        kept = np.ones(len(self._queue), dtype=bool)
        kept[chosen] = False
        self._queue = [self._queue[i] for i in np.flatnonzero(kept)]
        values, self._values = self._values[chosen], self._values[kept]
        lower, upper, fixed, slopes, betas, centers, scores = columns
        bounds = list(zip(unflat(lower, self._shapes), unflat(upper, self._shapes), strict=True))
        fields = [unflat(part, self._shapes) for part in (fixed, slopes, betas)]
        return Nodes(bounds, *fields), centers, scores, values
