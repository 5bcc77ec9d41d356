"""Adversarial examples in one ball: points that bounds propose, and descents of the margins.

Descents run in float32; an example is verified in exact arithmetic (`refmmr._examples`).
"""

from __future__ import annotations

import time

import numpy as np

from refmmr import _examples
from refmmr.reference.loss import margins
from refmmr.reference.pgd import project, steepest

DESCENT_STEPS = 60
"""Steps of the descent; their lengths fall linearly from the radius to 0."""

FROM_NODES = 8
"""Points of a batch of nodes, those with the smallest margins, from which descents start: where the
margins of examples are hardly negative, random starts find none, and these are next to them."""

NODE_DESCENT = 20, 0.25
"""Steps of such a descent, and the length of the first one, as a share of the radius."""

NEAR = 1e-4
"""A margin in float32 below this share of the logits' size is computed again in float64."""


class BallExamples:
    """Points that bounds and descents propose, and the first verified example among them."""

    def __init__(self, place, x, y, p, eps, box):
        self.place, self.x, self.y, self.p, self.eps, self.box = place, x, y, p, eps, box
        self.found: np.ndarray | None = None

    def __call__(self, points: np.ndarray) -> bool:
        """Whether an example is among points (n, d) of nodes, or next to them."""
        if self.among(points):
            return True
        if len(points) < FROM_NODES:  # a root has descents of its own
            return False
        Z = points.astype(self.place.dtype).reshape(-1, *self.x.shape)
        logits = self.place.fast.logits(Z)
        others = np.delete(np.arange(logits.shape[1]), self.y)
        nearest = np.argsort(logits[:, self.y] - logits[:, others].max(axis=1))[:FROM_NODES]
        unit = np.eye(logits.shape[1])
        rows = unit[self.y] - unit[others[logits[nearest][:, others].argmax(axis=1)]]
        return self._after(Z[nearest], rows, *NODE_DESCENT)

    def descents(self, rows: np.ndarray, starts: int) -> bool:
        """Whether descents of functions, rows (m, *logits_shape), end at one: `starts` each.

        The first one starts at x, the others at random points of the ball.
        """
        half, p = self.place.dtype, self.p
        rows = np.repeat(rows, starts, axis=0)
        X = np.repeat(self.x[None], len(rows), axis=0).astype(half)
        rng = np.random.default_rng(0)
        draw = rng.uniform(-1, 1, X.shape) if p == np.inf else rng.standard_normal(X.shape)
        draw[::starts] = 0
        return self._after((X + self.eps * draw).astype(half), rows, DESCENT_STEPS, 1.0)

    def _after(self, Z, rows, steps, first):
        """Whether an example is among the ends of descents in float32, one for each row.

        first : length of the first step, as a share of the radius.
        """
        net, half, p, eps = self.place.fast, self.place.dtype, self.p, self.eps
        X = np.repeat(self.x[None], len(Z), axis=0).astype(half)
        limits = None if self.box is None else tuple(side.astype(half) for side in self.box)
        df = net.at_logits(-rows.reshape(len(rows), -1).astype(half))
        Z = project(X, Z, p, eps, limits)
        for i in range(steps):
            if time.monotonic() > self.place.deadline:
                break
            deltas = net.backward(net.forward(Z), df)
            direction = steepest(net.input_gradient(deltas), p)
            Z = project(X, Z + half(first * eps * (1 - i / steps)) * direction, p, eps, limits)
        return self.among(Z)

    def among(self, points: np.ndarray) -> bool:
        """Whether an example is among points (n, d)."""
        Z = points.astype(np.float64).reshape(-1, *self.x.shape)
        label = np.full(len(Z), self.y)
        logits = self.place.fast.logits(Z.astype(self.place.dtype))
        near = margins(logits, label) <= NEAR * np.abs(logits).max(axis=1)
        if not near.any():
            return False
        Z, label = Z[near], label[near]
        X = np.repeat(self.x[None], len(Z), axis=0)
        # A smaller radius, so that rounding carries no point out of the ball.
        Z = project(X, Z, self.p, self.eps * (1 - 1e-12 - 1e-14 * self.x.size), self.box)
        distances = _examples.verified_distances(self.place.net, X, Z, label, self.p, self.box)
        best = distances.argmin()
        if distances[best] <= self.eps:
            self.found = Z[best]
        return self.found is not None
