"""Projected gradient descent: the twin of `refmmr.reference.pgd.pgd`.

A step is a forward and a backward pass (matrix products) of a block of samples, one loop over its
logits, and one over its points for everything else: steepest direction, projection onto the ball
and the box.

Threads share the samples.  A product of few samples spends much of its time on the weights, which
it reads and rearranges; so if there are no more samples than one product takes, and one hidden
layer, the threads share its units instead.  Such a network is a sum of networks with a part of the
units each, and so is its gradient with respect to the input: the threads add up both in every step,
and each takes the step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Barrier
from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Dense, Layer
from refmmr.backends._numba.layout import PRODUCTS_PER_THREAD, Layout, runs
from refmmr.backends._numba.network import BLOCK, Passes, apply_mask
from refmmr.backends._numba.planes import without_windows
from refmmr.reference import pgd as reference
from refmmr.reference.network import Network

MIN_SAMPLES = 8
"""Samples of a thread at least: products of fewer rows are slow."""
MIN_UNITS = 128
"""Units of a thread at least, where threads share units: products of fewer columns are slow."""


Pass = Callable[[np.ndarray], np.ndarray]


class Step(NamedTuple):
    """What a step needs besides points and gradients."""

    p: float
    size: float  # its length in l_p
    eps: float  # radius of the ball
    lo: np.ndarray  # (d,), the box; infinite where there is none
    hi: np.ndarray  # (d,)


class Best(NamedTuple):
    """The points with the smallest margins so far."""

    points: np.ndarray  # (n, d), or (0, d) if none is kept
    margins: np.ndarray  # (n,)


@implements("numba", reference.pgd)
def pgd(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    eps: float,
    steps: int,
    step_size: float,
    box: tuple[np.ndarray, np.ndarray] | None,
    start: np.ndarray,
    keep_last: bool = False,
) -> np.ndarray:
    """Twin of `refmmr.reference.pgd.pgd`."""
    layout = Layout(net, X)
    points = layout.inputs(start).copy()
    unbounded = np.full(1, -np.inf), np.full(1, np.inf)
    step = Step(p, step_size, eps, *layout.input_bounds(box or unbounded))
    attack = Attack(layout.inputs(X), y.astype(np.int64), points, step, steps, keep_last)
    sharing = _threads_that_share_units(layout, len(X), steps)
    if sharing > 1:
        _climb_together(attack, layout, sharing)
        return layout.inputs_back(points)
    layers = [without_windows(layer) for layer in layout.layers]
    for layer in layers:
        if isinstance(layer, Dense):
            layer.copy_transposed()

    def part(first: int, stop: int) -> None:
        whole = Whole(layers, layout.dtype)
        for here in runs(first, stop, BLOCK):
            attack.of(here).climb(whole.logits, whole.gradient)

    least = max(MIN_SAMPLES, layout.samples_per_thread(2 * steps))
    threads.spread(part, len(X), least=least)
    return layout.inputs_back(points)


class Attack(NamedTuple):
    """The points of some samples, and how they move."""

    centers: np.ndarray  # (n, d)
    labels: np.ndarray  # (n,)
    points: np.ndarray  # (n, d), changed
    step: Step
    steps: int
    keep_last: bool

    def of(self, rows: slice) -> Attack:
        """The attack on some of the samples."""
        return self._replace(
            centers=self.centers[rows], labels=self.labels[rows], points=self.points[rows]
        )

    def climb(self, logits: Pass, gradient: Pass) -> None:
        """Take all steps.

        `logits`: (n, d) to (n, K).  `gradient`: from that with respect to the logits (n, K) to
        that with respect to the points (n, d), at the last points that `logits` was called with.
        """
        x, y, z, dtype = self.centers, self.labels, self.points, self.points.dtype
        p = self.step.p
        take_step = _l1_step if p == 1 else _l2_step if p == 2 else _linf_step
        kept = 0 if self.keep_last else len(z)
        best = Best(z[:kept].copy(), np.full(kept, np.inf, dtype))
        for _ in range(self.steps):
            found = logits(z)
            dlogits = np.empty_like(found)
            _odds_gradient(found, y, z, dlogits, best)
            take_step(x, z, gradient(dlogits), self.step)
        if not self.keep_last:
            found = logits(z)
            _odds_gradient(found, y, z, np.empty_like(found), best)
            z[:] = best.points


class Whole:
    """The whole network, with the memory of one thread."""

    def __init__(self, layers: Sequence[Layer], dtype: np.dtype) -> None:
        self.passes = Passes(layers, dtype)
        self.masks: list[np.ndarray] = []

    def logits(self, z: np.ndarray) -> np.ndarray:
        """See `Attack.climb`."""
        cache = self.passes.forward(z)
        self.masks = cache.masks
        return cache.logits

    def gradient(self, dlogits: np.ndarray) -> np.ndarray:
        """See `Attack.climb`."""
        return self.passes.input_gradient(self.passes.backward(dlogits, self.masks)[0])


class Part:
    """Some units of the only hidden layer, with the memory of one thread.

    Hidden arrays are (units, n): so both products read W_1 as it is, which then stays in the cache
    of a core, and none is copied.
    """

    def __init__(self, layers: Sequence[Layer], units: slice, points: np.ndarray) -> None:
        first, last = layers
        self.W, self.b = first.W[units], first.b[units]
        self.last_W = np.ascontiguousarray(last.W[:, units])
        # One thread alone adds the bias of the logits.
        self.last_b = last.b if units.start == 0 else np.zeros_like(last.b)
        self.f = np.empty((len(self.W), len(points)), points.dtype)
        self.mask = np.empty(self.f.shape, bool)
        self.result = np.empty_like(points)

    def logits(self, z: np.ndarray) -> np.ndarray:
        """Its share of the logits."""
        np.matmul(self.W, z.T, out=self.f)
        _relu_rows(self.f, self.b, self.mask)
        return np.matmul(self.f.T, self.last_W.T) + self.last_b

    def gradient(self, dlogits: np.ndarray) -> np.ndarray:
        """Its share of the gradient."""
        np.matmul(self.last_W.T, dlogits.T, out=self.f)
        apply_mask(self.f, self.mask)
        return np.matmul(self.f.T, self.W, out=self.result)


def _threads_that_share_units(layout: Layout, n: int, steps: int) -> int:
    """How many threads share the hidden units in an attack on n samples; 1 if they do not."""
    if len(layout.layers) != 2 or layout.n_convs or n > BLOCK:
        return 1
    products = 2 * steps * n * sum(layer.products for layer in layout.layers)
    units = layout.layers[0].outputs
    return min(threads.get_threads(), units // MIN_UNITS, products // PRODUCTS_PER_THREAD)


def _climb_together(attack: Attack, layout: Layout, count: int) -> None:
    """All steps of an attack on a network with one hidden layer, whose units the threads share.

    There are two meetings in a step.  A thread overwrites its logits or gradient only after the
    next one, when all others have read them.
    """
    ends = [layout.layers[0].outputs * i // count for i in range(count + 1)]
    logits, gradients = ([attack.points] * count for _ in range(2))

    def climb(i: int, barrier: Barrier) -> None:
        part = Part(layout.layers, slice(ends[i], ends[i + 1]), attack.points)

        def add_up(parts: list[np.ndarray], share: Pass, operand: np.ndarray) -> np.ndarray:
            parts[i] = share(operand)
            barrier.wait()
            total = parts[0] + parts[1]
            for other in parts[2:]:
                total += other
            return total

        # All threads take the same steps; the others on points of their own.
        mine = attack if i == 0 else attack._replace(points=attack.points.copy())
        mine.climb(partial(add_up, logits, part.logits), partial(add_up, gradients, part.gradient))

    threads.together(climb, count)


@jit
def _relu_rows(f, b, mask):
    """``f = max(f + b, 0)`` and ``mask = f + b > 0``: f and mask are (units, n), b (units,)."""
    for i in range(f.shape[0]):
        bias = b[i]
        for n in range(f.shape[1]):
            value = f[i, n] + bias
            mask[i, n] = value > 0
            f[i, n] = 0 if value <= 0 else value  # NaN stays


@jit
def _odds_gradient(logits, y, z, dlogits, best):
    """The gradient of the log-odds with respect to the logits, and the better points.

    Twin of `loss.odds_gradient` and `pgd._better`.  logits: (n, K), at the points z: (n, d).
    dlogits: (n, K), the result.  best: updated where the margin is smaller, unless
    it is empty.
    """
    keep = len(best.margins) > 0
    for n in range(len(logits)):
        row, own = logits[n], y[n]
        highest = -np.inf
        for s in range(len(row)):
            if s != own:
                highest = max(highest, row[s])
        total = 0.0
        for s in range(len(row)):
            dlogits[n, s] = np.exp(row[s] - highest) if s != own else 0
            total += dlogits[n, s]
        for s in range(len(row)):
            dlogits[n, s] /= total
        dlogits[n, own] = -1
        margin = row[own] - highest
        if keep and margin < best.margins[n]:
            best.margins[n] = margin
            best.points[n] = z[n]


# A step in each norm: steepest ascent, then back into the ball and the box; twins of `pgd._inward`,
# `pgd.steepest` and `pgd.project`.  x: (n, d), the centers of the balls.  z: (n, d), the points,
# changed.  gradient: (n, d), overwritten.  A loop without a branch is vectorised.


@jit
def _linf_step(x, z, gradient, step):
    """A step along the sign of the gradient: everything in one loop."""
    number = x.dtype.type
    size, eps, lo, hi = number(step.size), number(step.eps), step.lo, step.hi
    for n in range(len(x)):
        g, point, center = gradient[n], z[n], x[n]
        for j in range(len(g)):
            at, low, high = point[j], lo[j], hi[j]
            up = (g[j] > 0) & (at < high)
            down = (g[j] < 0) & (at > low)
            move = at + (size if up else number(0)) - (size if down else number(0)) - center[j]
            move = move if move < eps else eps
            at = center[j] + (move if move > -eps else -eps)
            at = at if at > low else low
            point[j] = at if at < high else high


@jit
def _l2_step(x, z, gradient, step):
    """A step along the gradient; the ball is a matter of the length alone."""
    number = x.dtype.type
    for n in range(len(x)):
        g, point, center = gradient[n], z[n], x[n]
        _drop_outward(g, point, step)
        scale = number(step.size * _inverse_norm(g))
        for j in range(len(g)):
            g[j] = point[j] + scale * g[j] - center[j]
        factor = number(min(1.0, step.eps * _inverse_norm(g)))
        for j in range(len(g)):
            g[j] *= factor
        _into_box(g, center, point, step)


@jit
def _l1_step(x, z, gradient, step):
    """A step along the largest coordinates, and the nearest point of the ball."""
    number = x.dtype.type
    for n in range(len(x)):
        g, point, center = gradient[n], z[n], x[n]
        _drop_outward(g, point, step)
        _sparse_step(g, point, number(step.size))
        for j in range(len(g)):
            g[j] = point[j] - center[j]
        threshold = _l1_threshold(g, number(step.eps))
        for j in range(len(g)):
            size = max(number(0), abs(g[j]) - threshold)
            g[j] = size if g[j] > 0 else -size
        _into_box(g, center, point, step)


@jit
def _drop_outward(g, point, step):
    """Set the gradient to 0 where a point at the box could only leave it; all (d,)."""
    lo, hi = step.lo, step.hi
    for j in range(len(g)):
        slope, at = g[j], point[j]
        stuck = ((at <= lo[j]) & (slope < 0)) | ((at >= hi[j]) & (slope > 0))
        g[j] = 0 if stuck else slope


@jit
def _into_box(delta, center, point, step):
    """``point = center + delta`` within the box; all (d,)."""
    lo, hi = step.lo, step.hi
    for j in range(len(delta)):
        at, low, high = center[j] + delta[j], lo[j], hi[j]
        at = at if at > low else low
        point[j] = at if at < high else high


@jit
def _inverse_norm(g):
    """``1 / ||g||_2``, 0 for g = 0: (d,) to float64, without overflow or underflow."""
    total = 0.0
    for j in range(len(g)):
        total += np.float64(g[j]) * np.float64(g[j])
    if 1e-200 < total < 1e200:
        return 1 / np.sqrt(total)
    largest = 0.0
    for j in range(len(g)):
        largest = max(largest, abs(np.float64(g[j])))
    if largest == 0:
        return 0.0
    total = 0.0
    for j in range(len(g)):
        total += (g[j] / largest) * (g[j] / largest)
    return 1 / np.sqrt(total) / largest


@jit
def _sparse_step(g, point, step_size):
    """The step of l_1: the largest coordinates alone, which share its length.  g, point: (d,)."""
    largest, count = g.dtype.type(0), g.dtype.type(0)
    for j in range(len(g)):
        largest = max(largest, abs(g[j]))
    if largest == 0:
        return
    for j in range(len(g)):
        count += abs(g[j]) == largest
    for j in range(len(g)):
        if abs(g[j]) == largest:
            point[j] += step_size / count if g[j] > 0 else -step_size / count


@jit
def _l1_threshold(delta, eps):
    """The threshold that shrinks all sizes of delta, (d,), so that they add up to eps.

    0 if they do not exceed it.  Twin of `pgd._onto_l1_ball` without a sort: start with all
    coordinates and drop those that the threshold makes 0, until it drops none.
    """
    sizes = np.empty(len(delta), delta.dtype)
    total, count = delta.dtype.type(0), len(delta)
    for j in range(len(delta)):
        sizes[j] = abs(delta[j])
        total += sizes[j]
    if total <= eps:
        return delta.dtype.type(0)
    while True:
        threshold = (total - eps) / count
        total, kept = delta.dtype.type(0), 0
        for j in range(count):
            if sizes[j] > threshold:
                sizes[kept] = sizes[j]
                total += sizes[j]
                kept += 1
        if kept == count or kept == 0:
            return threshold
        count = kept
