"""The smallest value of each output on a ball, between bounds that meet.

Descents find a small value; a tree (`refmmr.certify.bounds._tree`) proves that no value is smaller
by more than a small gap, or meets one that is, from which the next descent starts.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from refmmr import _kernels
from refmmr._boxes import Box
from refmmr.certify._leaves import prove_leaves
from refmmr.certify.bounds import _place, _tree, _unit_trees
from refmmr.network import Network
from refmmr.reference.ball import ball
from refmmr.reference.pgd import project, random_start, steepest

GAP = 1e-4
"""Distance of a proved bound to a value that is reached, relative to the width of the first bounds:
as many digits as a plot shows.  The last digits take most of the time."""

RESTARTS = 5
"""Descents for each output and side; the first starts at the center."""

STEPS = 60
"""Steps of a descent; their lengths fall linearly from the radius to 0."""

WIDER = 10
"""Factor on the gap where a tree ends without a proof: in a node whose units are all fixed, the
multipliers that gradient steps find are a little worse than the best ones."""

TURNS = 20
"""Trees for each output and side, at most."""


class Ends(NamedTuple):
    """Bounds of the outputs on one ball, (K,) each: proved, and reached by a point."""

    lower: np.ndarray
    upper: np.ndarray
    reached_lower: np.ndarray
    reached_upper: np.ndarray


def tighten(
    net: Network,
    x: np.ndarray,
    p: float,
    eps: float,
    box: Box | None,
    lower: np.ndarray,
    upper: np.ndarray,
    deadline: float = np.inf,
) -> Ends:
    """Better bounds of the outputs on a ball.

    Parameters
    ----------
    net : Network
        With float64 weights.
    x : ndarray, shape (*input_shape)
    p : {1, 2, inf}
    eps : float
    box : (lo, hi) or None
    lower, upper : ndarray, shape (K,)
        Valid bounds.
    deadline : float
        Time of `time.monotonic` at which to stop.

    Returns
    -------
    Ends
    """
    radius = np.array([eps])
    place = _place.place(net, ball(x[None], radius, p, box), deadline)
    hidden = _kernels.layer_bounds(net, x[None], p, radius, box, "crown")[:-1]
    try:
        start = _place.start(place, hidden)
    except _place.OutOfTimeError:
        start = None
    ends = Ends(lower.copy(), upper.copy(), np.empty_like(lower), np.empty_like(upper))
    for k in range(net.n_classes):
        width = upper[k] - lower[k]
        row = np.zeros(net.n_classes)
        row[k] = 1
        point = x, p, eps, box
        values = _Values(net, row, *point, deadline)
        ends.lower[k] = _smallest(start, values, lower[k], width, deadline)
        ends.reached_lower[k] = values.best
        values = _Values(net, -row, *point, deadline)
        ends.upper[k] = -_smallest(start, values, -upper[k], width, deadline)
        ends.reached_upper[k] = -values.best
    return ends


def _smallest(start, values, lower, width, deadline):
    """A proved lower bound of ``<row, f>``; without a start, as time is over, the one given."""
    values.descend(RESTARTS)
    gap = GAP * width
    for _ in range(TURNS if start is not None else 0):
        target = values.best - gap
        if not (lower < target and time.monotonic() < deadline):
            break
        values.goal = target
        start, tree = _tree_of(start, values)
        if tree is None:
            break
        if tree.proved:
            lower = target
            break
        if tree.refuted:
            values.descend(1)
        else:
            gap *= WIDER
    return min(lower, values.best)


def _tree_of(start, values):
    """The tree for whether ``<row, f>`` is above the goal on the whole ball; None out of time.

    And the start, with the bounds of the units so far.
    """
    row = values.row.reshape(start.place.net.logits_shape)
    try:
        tree = _tree.Tree(start, row, values, -values.goal)
        start, (tree,) = _unit_trees.run(start, [tree])
    except _place.OutOfTimeError:
        return start, None
    if tree.done:
        prove_leaves(tree, start)
    return start, tree


class _Values:
    """The smallest value of ``<row, f>`` at points of the ball so far, called by the trees."""

    def __init__(self, net, row, x, p, eps, box, deadline):
        self.net, self.row, self.x, self.p, self.eps, self.box = net, row, x, p, eps, box
        self.deadline = deadline
        self.best, self.best_point = float(net.logits(x[None])[0] @ row), x
        self.goal = -np.inf

    def __call__(self, points: np.ndarray) -> bool:
        """Whether a point among (n, d) has a value of at most the goal."""
        Z = points.astype(np.float64).reshape(-1, *self.x.shape)
        X = np.broadcast_to(self.x, Z.shape)
        Z = project(X, Z, self.p, self.eps * (1 - 1e-12), self.box)
        values = self.net.logits(Z) @ self.row
        i = int(values.argmin())
        if values[i] < self.best:
            self.best, self.best_point = float(values[i]), Z[i]
        return self.best <= self.goal

    def descend(self, n: int) -> None:
        """Descents: from the best point, and from n - 1 random ones."""
        X = np.repeat(self.x[None], n, axis=0)
        Z = random_start(X, self.p, self.eps, self.box, np.random.default_rng(0))
        Z[0] = self.best_point
        for i in range(STEPS):
            if time.monotonic() > self.deadline:
                break
            cache = self.net.forward(Z)
            df = np.broadcast_to(-self.row, (n, len(self.row)))
            deltas = self.net.backward(cache, self.net.at_logits(df))
            # In l_1 steps go along the gradient, too: one coordinate at a time gets stuck.
            direction = steepest(self.net.input_gradient(deltas), max(self.p, 2))
            step = self.eps * (1 - i / STEPS) * direction
            Z = project(X, Z + step, self.p, self.eps, self.box)
            self(Z.reshape(n, -1))
