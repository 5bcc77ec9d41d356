"""Projected gradient descent: the twin of `refmmr.reference.pgd.pgd`.

A step is a forward and a backward pass (matrix products) of a block of samples, one loop over its
logits, and one over its points for everything else: steepest direction, projection onto the ball
and the box.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Dense
from refmmr.backends._numba.layout import Layout, runs
from refmmr.backends._numba.network import BLOCK, Passes
from refmmr.reference import pgd as reference
from refmmr.reference.network import Network

MIN_SAMPLES = 8
"""Samples of a thread at least: products of fewer rows are slow."""


class Step(NamedTuple):
    """What a step needs besides points and gradients."""

    p: float
    size: float  # its length in l_p
    eps: float  # radius of the ball
    lo: np.ndarray  # (d,), the box; infinite where there is none
    hi: np.ndarray  # (d,)


class Best(NamedTuple):
    """The points with the smallest margins so far."""

    points: np.ndarray  # (n, d)
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
    for layer in layout.layers:
        if isinstance(layer, Dense):
            layer.copy_transposed()
    centers, points = layout.inputs(X), layout.inputs(start).copy()
    unbounded = np.full(1, -np.inf), np.full(1, np.inf)
    step = Step(p, step_size, eps, *layout.input_bounds(box or unbounded))
    labels = y.astype(np.int64)

    def part(first: int, stop: int) -> None:
        passes = Passes(layout.layers, layout.dtype)
        for here in runs(first, stop, BLOCK):
            ascend(passes, centers[here], labels[here], points[here])

    def ascend(passes, x, y, z):
        best = Best(z.copy(), np.full(len(x), np.inf, layout.dtype))
        dlogits = np.empty((len(x), net.n_classes), layout.dtype)
        for _ in range(steps):
            cache = passes.forward(z)
            _odds_gradient(cache.logits, y, z, dlogits, best)
            gradient = passes.input_gradient(passes.backward(dlogits, cache.masks)[0])
            _step(x, z, gradient, step)
        if not keep_last:
            _odds_gradient(passes.forward(z).logits, y, z, dlogits, best)
            z[:] = best.points

    least = max(MIN_SAMPLES, layout.samples_per_thread(2 * steps))
    threads.spread(part, len(X), least=least)
    return layout.inputs_back(points)


@jit
def _odds_gradient(logits, y, z, dlogits, best):
    """The gradient of the log-odds with respect to the logits, and the better points.

    Twin of `loss.odds_gradient` and `pgd._better`.  logits: (n, K), at the points z: (n, d).
    dlogits: (n, K), the result.  best: updated where the margin is smaller.
    """
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
        if margin < best.margins[n]:
            best.margins[n] = margin
            best.points[n] = z[n]


@jit
def _step(x, z, gradient, step):
    """One step of steepest ascent, then back into the ball and the box.

    Twin of `pgd._inward`, `pgd.steepest` and `pgd.project`.  x: (n, d), the centers of the balls.
    z: (n, d), the points, changed.  gradient: (n, d), overwritten.
    """
    p, lo, hi, zero = step.p, step.lo, step.hi, x.dtype.type(0)
    step_size, eps = x.dtype.type(step.size), x.dtype.type(step.eps)
    for n in range(len(x)):
        g, point, center = gradient[n], z[n], x[n]
        for j in range(len(g)):
            # No step along the coordinates that would leave the box.
            slope, at = g[j], point[j]
            stuck = ((at <= lo[j]) & (slope < 0)) | ((at >= hi[j]) & (slope > 0))
            g[j] = zero if stuck else slope
        if p == 2:
            scale = x.dtype.type(step_size * _inverse_norm(g))
            for j in range(len(g)):
                point[j] += scale * g[j]
        elif p == 1:
            _sparse_step(g, point, step_size)
        else:
            for j in range(len(g)):
                slope = g[j]
                point[j] += step_size if slope > 0 else (-step_size if slope < 0 else zero)
        delta = g  # the gradient has been used
        for j in range(len(delta)):
            delta[j] = point[j] - center[j]
        factor, threshold = x.dtype.type(1), zero
        if p == 2:
            factor = x.dtype.type(min(1.0, eps * _inverse_norm(delta)))
        elif p == 1:
            threshold = _l1_threshold(delta, eps)
        else:
            for j in range(len(delta)):
                move = delta[j]
                move = move if move < eps else eps
                delta[j] = move if move > -eps else -eps
        for j in range(len(delta)):
            move = delta[j]
            if p == 1:
                size = max(zero, abs(move) - threshold)
                move = size if move > 0 else -size
            at, low, high = center[j] + factor * move, lo[j], hi[j]
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
