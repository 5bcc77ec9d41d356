"""The nearest adversarial example that walking along the decision boundary finds.

PGD asks whether a ball of a given radius holds an adversarial example; here the radius itself is to
be small.  The geometry does most of the work: around any point z the network is affine, so the
decision boundary with each rival class is a hyperplane there,

    { z' : m + <w, z' - z> = 0 },      m = f_y(z) - f_s(z),   w = its gradient,

and both the nearest point of it to z and the nearest one to the original x are known in closed
form, within the box, too (`refmmr.reference.hyperplanes`).  One run has three parts.

walk
    Go a little beyond the nearest hyperplane, to a mixture of the two projections: that of z
    finds the boundary, that of x pulls towards the minimal perturbation.  A misclassified point
    is remembered if it is the nearest so far, and the walk goes on from a point back towards x.
bisect
    The segment from x to the best point crosses the boundary: come as near as it does.
slide
    In the linear region of the best point the decision boundary is flat, and the nearest point of
    it to x is a projection.  Go there, or as far on the way as the class stays wrong.

Further runs start at random points of half the best radius, each with one rival class alone.

Walking with two projections is the idea of FAB (Croce, Hein: Minimally distorted adversarial
examples with a fast adaptive boundary attack, ICML 2020); the linearisation is that of DeepFool
(Moosavi-Dezfooli et al., CVPR 2016).
"""

from __future__ import annotations

import numpy as np

from refmmr import _kernels
from refmmr.reference.hyperplanes import dual_norm, norm, shortest_step, shortest_step_in_box
from refmmr.reference.loss import margins
from refmmr.reference.network import Network
from refmmr.reference.pgd import project, surely_misclassified
from refmmr.reference.rounding import rounding_factor, value_errors

Box = tuple[np.ndarray, np.ndarray]

BEYOND = 1.05
"""A step of the walk, in lengths of the way to the hyperplane."""

PULL = 0.1
"""Share of the projection of x in a step of the walk, at most."""

BACK = 0.9
"""Where the walk goes on after a misclassified point, on the way from x to it."""

HALVINGS = 12
"""Steps of a bisection."""

SLIDES = 6
"""Projections of x onto the boundary at the best point so far."""

SHARES = (1.0, 0.5, 0.2, 0.05)
"""How much of the way to such a projection is tried."""

HAIR = 1e-7
"""How far beyond the hyperplane it is, relative to the way there."""

BLOCK = 64
"""Samples that are handled at once."""


def minimal_attack(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    steps: int,
    restarts: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Adversarial examples as near to X as they are found.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray of float64, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
        True classes.
    p : {1, 2, inf}
    box : (lo, hi) or None
        Arrays of the shape of an input, with X inside.
    steps : int
        Steps of the walk, in each run.
    restarts : int
        Runs: the first from X, with all rivals; the others from random points, with one rival each.
    rng : numpy.random.Generator
        For the starts.

    Returns
    -------
    Z : ndarray, shape (n, *input_shape)
        Inside the box and misclassified in real arithmetic; NaN where none was found; X itself
        where that is misclassified.
    distances : ndarray, shape (n,)
        ``||Z - X||_p`` rounded up; 0 where X is misclassified, infinite where none was found.
    """
    best, distances = np.full_like(X, np.nan), np.full(len(X), np.inf)
    wrong = net.logits(X).argmax(axis=1) != y
    best[wrong], distances[wrong] = X[wrong], 0
    right = np.flatnonzero(~wrong)
    for start in range(0, len(right), BLOCK):
        rows = right[start : start + BLOCK]
        search = _Search(net, X[rows], y[rows], p, box)
        for run in range(restarts):
            search.run(steps, run, rng)
        best[rows], distances[rows] = search.best, search.distances
    return best, distances


class _Search:
    """The search for a batch of rightly classified samples, with its best points so far."""

    def __init__(self, net, X, y, p, box):
        self.net, self.X, self.y, self.p, self.box = net, X, y, p, box
        self.best, self.distances = np.full_like(X, np.nan), np.full(len(X), np.inf)
        logits = net.logits(X)
        others = np.argsort(np.arange(net.n_classes) == y[:, None], axis=1, kind="stable")
        others = others[:, :-1]
        # The nearest rivals first, by the affine map at X; and how near the nearest one seems.
        _, w = _kernels.margin_gradients(net, X, y, others)
        margin = _margin(logits, y, others)
        away = _away(margin, w, p)
        self.rivals = np.take_along_axis(others, np.argsort(away, axis=1), axis=1)
        nearest = away.min(axis=1)
        self.reach = np.where(np.isfinite(nearest), nearest, 1)
        # The projections onto the hyperplanes of X itself: the nearest examples, if they are any.
        x = X.reshape(len(X), -1)
        for s in range(w.shape[1]):
            target = x + self._moves(x, w[:, s], margin[:, s] * (1 + HAIR))
            self._keep(np.arange(len(X)), self._inside(target.reshape(X.shape)))

    def run(self, steps, number, rng):
        """One run: walk, bisect, slide."""
        rivals, start = self.rivals, self.X
        if number > 0:
            one = (number - 1) % rivals.shape[1]
            rivals, start = rivals[:, one : one + 1], self._random_start(rng)
        Z, found = self._walk(start, rivals, steps)
        if len(found):
            self._keep(found, self._bisect(found, Z))
            self._slide(found)

    def _walk(self, Z, rivals, steps):
        """The nearest misclassified points on the way, and the samples that have one."""
        X, y = self.X, self.y
        best, radius = X.copy(), np.full(len(X), np.inf)
        for _ in range(steps):
            Z = self._step(Z, rivals)
            length = self._length(Z - X)
            wrong = margins(self.net.logits(Z), y) < 0
            nearer = wrong & (length < radius)
            best[nearer], radius[nearer] = Z[nearer], length[nearer]
            Z = np.where(_beside(wrong, Z), self._inside(X + BACK * (Z - X)), Z)
        found = np.flatnonzero(np.isfinite(radius))
        return best[found], found

    def _step(self, Z, rivals):
        """A little beyond the nearest hyperplane, between the projections of Z and of X."""
        n = len(Z)
        logits, w = _kernels.margin_gradients(self.net, Z, self.y, rivals)
        margin = _margin(logits, self.y, rivals)
        nearest = np.abs(_away(margin, w, self.p)).argmin(axis=1)
        w, margin = w[np.arange(n), nearest], margin[np.arange(n), nearest]
        x, z = self.X.reshape(n, -1), Z.reshape(n, -1)
        from_z = self._moves(z, w, margin)
        from_x = self._moves(x, w, margin + (w * (x - z)).sum(axis=1))
        ways = norm(from_z, self.p), norm(from_x, self.p)
        total = ways[0] + ways[1]
        pull = np.minimum(ways[0] / np.where(total > 0, total, 1), PULL)[:, None]
        target = (1 - pull) * (z + BEYOND * from_z) + pull * (x + BEYOND * from_x)
        return self._inside(target.reshape(Z.shape))

    def _bisect(self, rows, Z):
        """As near to X on the segment from Z as the class is surely wrong."""
        X, y = self.X[rows], self.y[rows]
        # The errors are convex in the point: those at the two ends bound all between.
        ends = (value_errors(self.net, end)[-1].reshape(len(end), -1) for end in (X, Z))
        error = np.maximum(*ends).max(axis=1)
        low, high = np.zeros(len(rows)), np.ones(len(rows))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            logits = self.net.logits(self._between(X, Z, middle))
            wrong = margins(logits, y) < -5 * error
            low, high = np.where(wrong, low, middle), np.where(wrong, middle, high)
        return self._between(X, Z, high)

    def _slide(self, rows):
        """Project X onto the boundary in the region of the best point, again and again."""
        for _ in range(SLIDES):
            rows = rows[np.isfinite(self.distances[rows])]
            if len(rows) == 0:
                return
            target = self._projection(rows)
            before = self.distances[rows]
            for share in SHARES:
                left = self.distances[rows] >= before
                some = rows[left]
                share_of = np.full(len(some), share)
                self._keep(some, self._between(self.best[some], target[left], share_of))
            rows = rows[self.distances[rows] < before * (1 - 1e-9)]

    def _projection(self, rows):
        """The nearest point to X, a hair beyond the hyperplane at the best point."""
        X, Z, y = self.X[rows], self.best[rows], self.y[rows]
        rivals = self.net.logits(Z)
        rivals[np.arange(len(rows)), y] = -np.inf
        logits, w = _kernels.margin_gradients(self.net, Z, y, rivals.argmax(axis=1)[:, None])
        w, margin = w[:, 0], margins(logits, y)
        x, z = X.reshape(len(X), -1), Z.reshape(len(X), -1)
        value = margin + (w * (x - z)).sum(axis=1)
        return self._inside((x + self._moves(x, w, value * (1 + HAIR))).reshape(X.shape))

    def _keep(self, rows, Z):
        """Take what is surely misclassified and nearer than the best points so far."""
        if len(rows) == 0:
            return
        d = self.X[0].size
        length = self._length(Z - self.X[rows]) * (1 + rounding_factor(4 * d + 8))
        nearer = (length < self.distances[rows]) & (margins(self.net.logits(Z), self.y[rows]) < 0)
        if nearer.any():
            nearer[nearer] = surely_misclassified(self.net, Z[nearer], self.y[rows[nearer]])
        self.best[rows[nearer]], self.distances[rows[nearer]] = Z[nearer], length[nearer]

    def _random_start(self, rng):
        """A random point of half the best radius."""
        radius = np.where(np.isfinite(self.distances), self.distances, 2 * self.reach) / 2
        direction = rng.standard_normal(self.X.shape)
        if self.p == np.inf:
            direction = rng.uniform(-1, 1, self.X.shape)
        # Sparse where the ball has vertices.
        if self.p == 1:
            direction = project(np.zeros_like(direction), 3 * direction, 1, 1.0, None)
        length = self._length(direction)
        scale = radius / np.where(length > 0, length, 1)
        return self._inside(self.X + _beside(scale, self.X) * direction)

    def _moves(self, x, w, value):
        """The shortest steps onto hyperplanes; as far as it goes where the box is in the way."""
        if self.box is None:
            hyperplane = (w != 0).any(axis=1, keepdims=True)
            return np.where(hyperplane, shortest_step(np.where(hyperplane, w, 1), value, self.p), 0)
        lo, hi = (side.reshape(-1) for side in self.box)
        distance, delta = shortest_step_in_box(x, w, value, lo, hi, self.p)
        sink = w * np.where(value < 0, -1, 1)[:, None]
        vertex = np.where(sink > 0, lo, np.where(sink < 0, hi, x)) - x
        return np.where(np.isinf(distance)[:, None], vertex, delta)

    def _between(self, X, Z, share):
        return self._inside(X + _beside(share, X) * (Z - X))

    def _inside(self, Z):
        return Z if self.box is None else np.clip(Z, *self.box)

    def _length(self, delta):
        return norm(delta.reshape(len(delta), -1), self.p)


def _margin(logits, y, rivals):
    """``f_y - f_s`` for each rival s, shape (n, r)."""
    return np.take_along_axis(logits, y[:, None], 1) - np.take_along_axis(logits, rivals, 1)


def _away(margin, w, p):
    """Free distances to the hyperplanes, infinite where there is none."""
    slope = dual_norm(w, p)
    return np.where(slope > 0, margin / np.where(slope > 0, slope, 1), np.inf)


def _beside(per_sample, X):
    """One number a sample, to broadcast against X."""
    return per_sample.reshape(-1, *[1] * (X.ndim - 1))
