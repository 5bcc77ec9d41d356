"""An attack of minimal norm: it minimises the distance of an adversarial example.

PGD searches a ball of a given radius; here the radius itself is minimised.  Around any point z the
network is affine, so the decision boundary with each other class s is a hyperplane there,

    { z' : m + <w, z' - z> = 0 },      m = f_y(z) - f_s(z),   w = its gradient,

and its nearest points to z and to the original x are known in closed form, also within the box
(`refmmr.reference.hyperplanes`).  One run has three parts.

walk
    Step to a convex combination of the projections of z and of x onto the nearest hyperplane, and
    5% beyond: the first leads to the boundary, the second towards the minimal perturbation.  Keep
    the nearest misclassified point, and continue from a point between it and x.
bisect
    The segment from x to the nearest misclassified point crosses the boundary: bisect it.
slide
    In the linear region of the best example the decision boundary is flat.  Move towards the
    projection of x onto it, as far as the class stays wrong; repeat.

Further runs start at random points within half the best distance, each with one other class alone.

The walk with two projections follows FAB (Croce and Hein 2020), the linearisation DeepFool
(Moosavi-Dezfooli et al. 2016).  Every example is verified (`refmmr._examples`).
"""

from __future__ import annotations

import time

import numpy as np

from refmmr import _examples, _kernels
from refmmr._examples import Box
from refmmr.reference.hyperplanes import dual_norm, norm, shortest_step_in_box
from refmmr.reference.loss import margins
from refmmr.reference.network import Network
from refmmr.reference.pgd import project
from refmmr.reference.rounding import value_errors

EXTRAPOLATION = 1.05
"""Length of a step of the walk, relative to the step onto the hyperplane: 5% more, as in FAB."""

MAX_PULL = 0.1
"""Largest weight of the projection of x in a step of the walk, as in FAB."""

BACKWARD = 0.9
"""After a misclassified point z the walk continues from ``x + BACKWARD (z - x)``, as in FAB."""

BISECTIONS = 12
"""Steps of a bisection, down to 1 / 4096 of the segment; projections then refine further."""

SLIDES = 6
"""Largest number of projections of x onto the boundary around the best example: each projection may
change the region of the example."""

FRACTIONS = (1.0, 0.5, 0.2, 0.05)
"""Fractions of the segment to such a projection that are tried, the largest first."""

OVERSHOOT = 1e-7
"""Distance beyond the hyperplane, relative to the distance to it: more than rounding, and less than
the tolerance 1e-6 at which bounds count as equal."""

BATCH = 64
"""Samples that are attacked together: enough for efficient matrix products that stay in cache."""


def minimal_attack(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    steps: int,
    restarts: int,
    rng: np.random.Generator,
    deadline: float = np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """Verified adversarial examples near X.

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
        Number of runs: the first starts at X and uses all other classes; each further one starts at
        a random point and uses one of them.
    rng : numpy.random.Generator
        Draws the random points.
    deadline : float
        Time of `time.monotonic` after which no step of a walk is begun.

    Returns
    -------
    Z : ndarray, shape (n, *input_shape)
        Inside the box and misclassified in real arithmetic; NaN where no example was found; X
        itself where it is misclassified.
    distances : ndarray, shape (n,)
        ``||Z - X||_p`` rounded up; 0 where X is misclassified, infinite where none was found.
    """
    best, distances = np.full_like(X, np.nan), np.full(len(X), np.inf)
    wrong = _examples.misclassified(net, X, y)
    best[wrong], distances[wrong] = X[wrong], 0
    correct = np.flatnonzero(~wrong)
    # Where floats overflow, steps are NaN, and no such point is an example.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, len(correct), BATCH):
            rows = correct[start : start + BATCH]
            attack = _Attack(net, X[rows], y[rows], p, box, deadline)
            for run in range(restarts):
                attack.run(steps, run, rng)
            best[rows], distances[rows] = attack.best, attack.distances
    return best, distances


class _Attack:
    """The attack on a batch of correctly classified samples, with the best examples so far."""

    def __init__(self, net, X, y, p, box, deadline):
        self.net, self.X, self.y, self.p, self.box = net, X, y, p, box
        self.deadline = deadline
        self.best, self.distances = np.full_like(X, np.nan), np.full(len(X), np.inf)
        logits = net.logits(X)
        others = np.argsort(np.arange(net.n_classes) == y[:, None], axis=1, kind="stable")
        others = others[:, :-1]
        # Other classes in the order of their decision boundaries, by the affine map around X.
        _, w = _kernels.margin_gradients(net, X, y, others)
        margin = _margin(logits, y, others)
        boundary = _distance(margin, w, p)
        self.rivals = np.take_along_axis(others, np.argsort(boundary, axis=1), axis=1)
        nearest = boundary.min(axis=1)
        self.scale = np.where(np.isfinite(nearest), nearest, 1)
        # A projection that stays in the region of X is the minimal adversarial example.
        x = X.reshape(len(X), -1)
        for s in range(w.shape[1]):
            target = x + self._projection_steps(x, w[:, s], margin[:, s] * (1 + OVERSHOOT))
            self._keep(np.arange(len(X)), self._clip(target.reshape(X.shape)))

    def run(self, steps, number, rng):
        """One run: walk, bisect, slide."""
        rivals, start = self.rivals, self.X
        if number > 0:
            s = (number - 1) % rivals.shape[1]
            rivals, start = rivals[:, s : s + 1], self._random_start(rng)
        Z, rows = self._walk(start, rivals, steps)
        if len(rows):
            self._keep(rows, self._bisect(rows, Z))
            self._slide(rows)

    def _walk(self, Z, rivals, steps):
        """The nearest misclassified points of the walk, (m, ...), and their samples, (m,)."""
        X, y = self.X, self.y
        best, radius = X.copy(), np.full(len(X), np.inf)
        for _ in range(steps):
            if time.monotonic() > self.deadline:
                break
            Z = self._step(Z, rivals)
            length = self._length(Z - X)
            wrong = margins(self.net.logits(Z), y) < 0
            nearer = wrong & (length < radius)
            best[nearer], radius[nearer] = Z[nearer], length[nearer]
            Z = np.where(_beside(wrong, Z), self._clip(X + BACKWARD * (Z - X)), Z)
        rows = np.flatnonzero(np.isfinite(radius))
        return best[rows], rows

    def _step(self, Z, rivals):
        """A step beyond the nearest hyperplane, between the projections of Z and of X."""
        n = len(Z)
        logits, w = _kernels.margin_gradients(self.net, Z, self.y, rivals)
        margin = _margin(logits, self.y, rivals)
        nearest = np.abs(_distance(margin, w, self.p)).argmin(axis=1)
        w, margin = w[np.arange(n), nearest], margin[np.arange(n), nearest]
        x, z = self.X.reshape(n, -1), Z.reshape(n, -1)
        from_z = self._projection_steps(z, w, margin)
        from_x = self._projection_steps(x, w, margin + (w * (x - z)).sum(axis=1))
        length_z, length_x = norm(from_z, self.p), norm(from_x, self.p)
        total = length_z + length_x
        pull = np.minimum(length_z / np.where(total > 0, total, 1), MAX_PULL)[:, None]
        target = (1 - pull) * (z + EXTRAPOLATION * from_z) + pull * (x + EXTRAPOLATION * from_x)
        return self._clip(target.reshape(Z.shape))

    def _bisect(self, rows, Z):
        """The points nearest to X on the segments to Z that are surely misclassified."""
        X, y = self.X[rows], self.y[rows]
        # The error bounds are convex in the point: those at the ends bound all between.
        ends = (value_errors(self.net, end)[-1].reshape(len(end), -1) for end in (X, Z))
        error = np.maximum(*ends).max(axis=1)
        low, high = np.zeros(len(rows)), np.ones(len(rows))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            logits = self.net.logits(self._between(X, Z, middle))
            wrong = margins(logits, y) < -5 * error
            low, high = np.where(wrong, low, middle), np.where(wrong, middle, high)
        return self._between(X, Z, high)

    def _slide(self, rows):
        """Move towards the projection of X onto the boundary around the best example; repeat."""
        for _ in range(SLIDES):
            rows = rows[np.isfinite(self.distances[rows])]
            if len(rows) == 0:
                return
            target = self._projection(rows)
            before = self.distances[rows]
            for fraction in FRACTIONS:
                left = self.distances[rows] >= before
                some = rows[left]
                fractions = np.full(len(some), fraction)
                self._keep(some, self._between(self.best[some], target[left], fractions))
            rows = rows[self.distances[rows] < before * (1 - 1e-9)]

    def _projection(self, rows):
        """Projections of X onto the hyperplanes around the best examples, `OVERSHOOT` beyond."""
        X, Z, y = self.X[rows], self.best[rows], self.y[rows]
        others = self.net.logits(Z)
        others[np.arange(len(rows)), y] = -np.inf
        logits, w = _kernels.margin_gradients(self.net, Z, y, others.argmax(axis=1)[:, None])
        w, margin = w[:, 0], margins(logits, y)
        x, z = X.reshape(len(X), -1), Z.reshape(len(X), -1)
        value = margin + (w * (x - z)).sum(axis=1)
        step = self._projection_steps(x, w, value * (1 + OVERSHOOT))
        return self._clip((x + step).reshape(X.shape))

    def _keep(self, rows, Z):
        """Keep the verified examples that are nearer than the best ones so far."""
        if len(rows) == 0:
            return
        distances = _examples.verified_distances(
            self.net, self.X[rows], Z, self.y[rows], self.p, self.box, self.distances[rows]
        )
        nearer = np.isfinite(distances)
        self.best[rows[nearer]], self.distances[rows[nearer]] = Z[nearer], distances[nearer]

    def _random_start(self, rng):
        """Random points at half the best distance."""
        radius = np.where(np.isfinite(self.distances), self.distances, 2 * self.scale) / 2
        direction = rng.standard_normal(self.X.shape)
        if self.p == np.inf:
            direction = rng.uniform(-1, 1, self.X.shape)
        if self.p == 1:  # near the vertices of the ball
            direction = project(np.zeros_like(direction), 3 * direction, 1, 1.0, None)
        length = self._length(direction)
        scale = radius / np.where(length > 0, length, 1)
        return self._clip(self.X + _beside(scale, self.X) * direction)

    def _projection_steps(self, x, w, value):
        """Shortest steps onto hyperplanes, or to the vertex of the box nearest to one it misses."""
        if self.box is None:
            return _examples.projection_steps(x, w, value, self.p, None)
        lo, hi = (end.reshape(-1) for end in self.box)
        distance, delta = shortest_step_in_box(x, w, value, lo, hi, self.p)
        descent = w * np.where(value < 0, -1, 1)[:, None]
        vertex = np.where(descent > 0, lo, np.where(descent < 0, hi, x)) - x
        return np.where(np.isinf(distance)[:, None], vertex, delta)

    def _between(self, X, Z, fraction):
        return self._clip(X + _beside(fraction, X) * (Z - X))

    def _clip(self, Z):
        return _examples.clip(Z, self.box)

    def _length(self, delta):
        return norm(delta.reshape(len(delta), -1), self.p)


def _margin(logits, y, rivals):
    """``f_y - f_s`` for each rival class s, shape (n, r)."""
    return np.take_along_axis(logits, y[:, None], 1) - np.take_along_axis(logits, rivals, 1)


def _distance(margin, w, p):
    """Signed distances to the hyperplanes without a box, infinite where w = 0."""
    slope = dual_norm(w, p)
    return np.where(slope > 0, margin / np.where(slope > 0, slope, 1), np.inf)


def _beside(per_sample, X):
    """One number for each sample, shaped to broadcast against X."""
    return per_sample.reshape(-1, *[1] * (X.ndim - 1))
