"""The attacks: twins of `reference.attacks.pgd` and of what `reference.minimal_attack` looks at.

A step of projected gradient descent is two passes of matrix products, and one run over each sample
for everything else: the step in its norm, the projections, and the best point so far.
"""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Dense
from refmmr.backends._numba.layout import Layout, runs
from refmmr.reference import loss
from refmmr.reference import pgd as reference
from refmmr.reference.network import Network

BLOCK = 64
"""Samples that climb together."""


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
    dtype = layout.dtype
    for layer in layout.layers:
        if isinstance(layer, Dense):
            layer.repeat()
    flat, found = layout.inputs(X), layout.inputs(start).copy()
    everywhere = (np.full(1, -np.inf), np.full(1, np.inf))
    lo, hi = (
        layout.inputs(np.broadcast_to(side.astype(dtype), net.input_shape)[None])[0]
        for side in box or everywhere
    )
    labels = y.astype(np.int64)

    def part(first: int, stop: int) -> None:
        passes = layout.passes()
        for here in runs(first, stop, BLOCK):
            climb(passes, flat[here], labels[here], found[here])

    def climb(passes, x, y, z):
        best = z.copy()
        best_margin = np.full(len(x), np.inf, dtype)
        scratch = np.empty(x.shape[1], dtype)
        dlogits = np.empty((len(x), net.n_classes), dtype)
        for _ in range(steps):
            cache = passes.forward(z)
            _odds_gradient(cache.logits, y, dlogits, z, best, best_margin)
            gradient = passes.input_gradient(passes.backward(dlogits, cache.masks)[0])
            _step(x, z, gradient, p, step_size, eps, lo, hi, scratch)
        if not keep_last:
            _odds_gradient(passes.forward(z).logits, y, dlogits, z, best, best_margin)
            z[:] = best

    threads.spread(part, len(X), least=max(8, layout.least(2 * steps)))
    return layout.outside(found)


@implements("numba", loss.margin_gradients)
def margin_gradients(
    net: Network, Z: np.ndarray, y: np.ndarray, rivals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Twin of `refmmr.reference.loss.margin_gradients`."""
    layout = Layout(net, Z)
    (n, r), flat = rivals.shape, layout.inputs(Z)
    logits = np.empty((n, net.n_classes), layout.dtype)
    gradients = np.empty((n * r, flat.shape[1]), layout.dtype)
    df = np.zeros((n * r, net.n_classes), layout.dtype)
    rows = np.arange(n * r)
    df[rows, np.repeat(y, r)] = 1
    df[rows, rivals.reshape(-1)] = -1

    def part(first: int, stop: int) -> None:
        passes = layout.passes()
        for here in runs(first, stop, max(1, BLOCK // r)):
            there = slice(here.start * r, here.stop * r)
            cache = passes.forward(flat[here])
            logits[here] = cache.logits
            masks = [np.repeat(mask, r, axis=0) for mask in cache.masks]
            gradients[there] = passes.input_gradient(passes.backward(df[there], masks)[0])

    threads.spread(part, n, least=layout.least(1 + r))
    return logits, layout.outside(gradients).reshape(n, r, -1)


@jit
def _odds_gradient(logits, y, dlogits, z, best, best_margin):
    """Gradient of the log-odds to the logits; where the margin is the smallest so far, keep z."""
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
        if margin < best_margin[n]:
            best_margin[n] = margin
            best[n] = z[n]


@jit
def _step(x, z, gradient, p, step_size, eps, lo, hi, scratch):
    """One step in the direction of steepest ascent, back into the ball and the box."""
    zero = x.dtype.type(0)
    step_size, eps = x.dtype.type(step_size), x.dtype.type(eps)
    for n in range(len(x)):
        g, point, center = gradient[n], z[n], x[n]
        for j in range(len(g)):
            # Forget the coordinates that climb out of the box.
            slope, at = g[j], point[j]
            stuck = ((at <= lo[j]) & (slope < 0)) | ((at >= hi[j]) & (slope > 0))
            g[j] = zero if stuck else slope
        if p == 2:
            scale = x.dtype.type(step_size * _inverse_length(g))
            for j in range(len(g)):
                point[j] += scale * g[j]
        elif p == 1:
            _sparse_step(g, point, step_size)
        else:
            for j in range(len(g)):
                slope = g[j]
                point[j] += step_size if slope > 0 else (-step_size if slope < 0 else zero)
        for j in range(len(g)):
            g[j] = point[j] - center[j]  # from here on g is the way from the center
        factor, threshold = x.dtype.type(1), zero
        if p == 2:
            factor = x.dtype.type(min(1.0, eps * _inverse_length(g)))
        elif p == 1:
            threshold = _l1_threshold(g, eps, scratch)
        else:
            for j in range(len(g)):
                delta = g[j]
                delta = delta if delta < eps else eps
                g[j] = delta if delta > -eps else -eps
        for j in range(len(g)):
            delta = g[j]
            if p == 1:
                size = max(zero, abs(delta) - threshold)
                delta = size if delta > 0 else -size
            at, low, high = center[j] + factor * delta, lo[j], hi[j]
            at = at if at > low else low
            point[j] = at if at < high else high


@jit
def _inverse_length(g):
    """1 / ||g||_2, 0 for g = 0; no square of it overflows or vanishes."""
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
    """The largest coordinate alone; those that share the largest size share the step."""
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
def _l1_threshold(delta, eps, sizes):
    """By how much all sizes shrink, so that they add up to eps (0 if they do not exceed it).

    Start with all of them and drop those that the threshold would make 0, until none is left.
    """
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
