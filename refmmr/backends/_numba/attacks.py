"""Projected gradient descent: the twin of `reference.attacks.pgd`.

A step is two passes of matrix products, and one run over each sample for everything else: the step
in its norm, the projections, and the best point so far.
"""

from __future__ import annotations

import numba
import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.passes import Layout
from refmmr.reference import attacks as reference
from refmmr.reference.network import Network

_jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})

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
    """Twin of `refmmr.reference.attacks.pgd`."""
    dtype = np.result_type(X, *(W for W, _ in net.parameters))
    layout = Layout(net, dtype)
    flat, found = layout.inputs(X), layout.inputs(start).copy()
    everywhere = (np.full(1, -np.inf), np.full(1, np.inf))
    lo, hi = (
        layout.inputs(np.broadcast_to(side.astype(dtype), net.input_shape)[None])[0]
        for side in box or everywhere
    )
    labels = y.astype(np.int64)

    def part(first: int, stop: int) -> None:
        passes = layout.passes()
        for begin in range(first, stop, BLOCK):
            here = slice(begin, min(begin + BLOCK, stop))
            climb(passes, flat[here], labels[here], found[here])

    def climb(passes, x, y, z):
        best = z.copy()
        best_margin = np.full(len(x), np.inf, dtype)
        scratch = np.empty(x.shape[1], dtype)
        dlogits = np.empty((len(x), net.n_classes), dtype)
        for _ in range(steps):
            trail = passes.forward(z)
            _odds_gradient(trail.logits, y, dlogits, z, best, best_margin)
            gradient = passes.input_gradient(passes.backward(dlogits, trail.masks)[0])
            _step(x, z, gradient, p, step_size, eps, lo, hi, scratch)
        if not keep_last:
            _odds_gradient(passes.forward(z).logits, y, dlogits, z, best, best_margin)
            z[:] = best

    threads.spread(part, len(X), least=8)
    return layout.outside(found)


@_jit
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


@_jit
def _step(x, z, gradient, p, step_size, eps, lo, hi, scratch):
    """One step in the direction of steepest ascent, back into the ball and the box."""
    step_size, eps = x.dtype.type(step_size), x.dtype.type(eps)
    for n in range(len(x)):
        g, point, center = gradient[n], z[n], x[n]
        largest = g.dtype.type(0)
        for j in range(len(g)):
            # Forget the coordinates that climb out of the box.
            if (point[j] <= lo[j] and g[j] < 0) or (point[j] >= hi[j] and g[j] > 0):
                g[j] = 0
            largest = max(largest, abs(g[j]))
        if largest > 0:
            _move(g, point, p, step_size, largest)
        _project(center, point, p, eps, scratch)
        for j in range(len(g)):
            point[j] = min(max(point[j], lo[j]), hi[j])


@_jit
def _move(g, point, p, step_size, largest):
    """Add a step of l_p length `step_size`; g / largest has no square that underflows."""
    if p == 2:
        total, scale = g.dtype.type(0), 1 / largest
        for j in range(len(g)):
            total += (g[j] * scale) * (g[j] * scale)
        scale *= step_size / np.sqrt(total)
        for j in range(len(g)):
            point[j] += scale * g[j]
    elif p == 1:
        count = g.dtype.type(0)
        for j in range(len(g)):
            count += abs(g[j]) == largest
        for j in range(len(g)):
            if abs(g[j]) == largest:
                point[j] += step_size * np.sign(g[j]) / count
    else:
        for j in range(len(g)):
            point[j] += step_size * np.sign(g[j])


@_jit
def _project(center, point, p, eps, scratch):
    """Bring a point into the ball; it keeps its place if it is inside."""
    if p == 2:
        largest = point.dtype.type(0)
        for j in range(len(point)):
            largest = max(largest, abs(point[j] - center[j]))
        if largest == 0:
            return
        total = point.dtype.type(0)
        for j in range(len(point)):
            part = (point[j] - center[j]) / largest
            total += part * part
        factor = min(point.dtype.type(1), eps / (np.sqrt(total) * largest))
        for j in range(len(point)):
            point[j] = center[j] + (point[j] - center[j]) * factor
    elif p == 1:
        threshold = _l1_threshold(center, point, eps, scratch)
        for j in range(len(point)):
            delta = point[j] - center[j]
            point[j] = center[j] + np.sign(delta) * max(point.dtype.type(0), abs(delta) - threshold)
    else:
        for j in range(len(point)):
            point[j] = center[j] + min(max(point[j] - center[j], -eps), eps)


@_jit
def _l1_threshold(center, point, eps, sizes):
    """By how much all sizes shrink, so that they add up to eps (0 if they do not exceed it).

    Start with all of them and drop those that the threshold would make 0, until none is left.
    """
    total, count = point.dtype.type(0), len(point)
    for j in range(len(point)):
        sizes[j] = abs(point[j] - center[j])
        total += sizes[j]
    if total <= eps:
        return point.dtype.type(0)
    while True:
        threshold = (total - eps) / count
        total, kept = point.dtype.type(0), 0
        for j in range(count):
            if sizes[j] > threshold:
                sizes[kept] = sizes[j]
                total += sizes[j]
                kept += 1
        if kept == count or kept == 0:
            return threshold
        count = kept
