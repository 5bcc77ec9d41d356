"""Gradient steps and clipped bounds: twins of `refmmr.reference.ascent` and `clipping`.

A step is two matrix products a layer, back and forth, for all nodes of a thread; all that happens
at a hidden layer on either way is one compiled loop (`ascent_kernels`).  Arrays of units are
``(n, units)``, in the order of the reference.
"""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba import ascent_kernels as kernels
from refmmr.reference import ascent, clipping
from refmmr.reference.ascent import MOMENTS, TIE, Ascent, Nodes, step_length
from refmmr.reference.ball import SMALL, Ball
from refmmr.reference.network import Network
from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor

LEAST = 16
"""Nodes of a thread, at least: products of fewer rows are slower per row."""


@implements("numba", ascent.ascend)
def ascend(net: Network, ball: Ball, rows: np.ndarray, nodes: Nodes, steps: int) -> Ascent:
    """Twin of `refmmr.reference.ascent.ascend`."""
    n, dtype = len(rows), rows.dtype
    layers = range(len(nodes.bounds))
    shapes = net.unit_shapes[: len(nodes.bounds)]
    slopes, betas = (
        [np.array(part, dtype).reshape(n, -1) for part in field] for field in nodes[2:]
    )
    best, values = [part.copy() for part in (*slopes, *betas)], np.empty(n, dtype)
    scores = [np.empty_like(part) for part in slopes]
    points = np.empty((n, ball.x.shape[1]), dtype)
    limits = _limits(ball, dtype)

    def part(start, stop):
        some = slice(start, stop)
        worker = _Ascent(net, limits, rows[some], nodes.take(np.arange(start, stop)))
        worker.run(
            [a[some] for a in slopes], [a[some] for a in betas], [a[some] for a in best],
            values[some], points[some], [a[some] for a in scores], steps,
        )  # fmt: skip

    threads.spread(part, n, least=LEAST)
    shaped = [
        [array.reshape(n, *shape) for array, shape in zip(arrays, shapes, strict=True)]
        for arrays in (best[: len(layers)], best[len(layers) :], scores)
    ]
    return Ascent(shaped[0], shaped[1], values, shaped[2], points)


def _limits(ball, dtype):
    """The ball as the kernels read it."""
    d = ball.x.shape[1]
    lo, hi = (np.full(d, -np.inf), np.full(d, np.inf)) if ball.box is None else ball.box
    low, high = (
        np.maximum(ball.x[0] - ball.radius[0], lo),
        np.minimum(ball.x[0] + ball.radius[0], hi),
    )
    norm = {np.inf: kernels.LINF, 2: kernels.L2, 1: kernels.L1}[ball.p]
    x, low, high = (np.ascontiguousarray(end, dtype=dtype) for end in (ball.x[0], low, high))
    return kernels.Limits(norm, x, low, high, dtype.type(ball.radius[0]))


class _Ascent:
    """The gradient steps of the nodes of one thread."""

    def __init__(self, net, limits, rows, nodes):
        self.net, self.limits, self.n, self.dtype = net, limits, len(rows), rows.dtype
        count = len(nodes.bounds)
        self.fixed = [np.ascontiguousarray(part.reshape(self.n, -1)) for part in nodes.fixed]
        self.any_fixed = [bool(part.any()) for part in self.fixed]
        self.lines = []
        for lower, upper in nodes.bounds:
            lower, upper = (
                np.ascontiguousarray(side.reshape(self.n, -1), dtype=self.dtype)
                for side in (lower, upper)
            )
            lines = kernels.Lines(
                lower,
                upper,
                np.empty_like(lower),
                np.empty_like(lower),
                np.empty(lower.shape, bool),
            )
            kernels.upper_lines(lines)
            self.lines.append(lines)
        self.biases = [
            np.ascontiguousarray(
                np.broadcast_to(layer.b.reshape(-1, *(1 for _ in shape[1:])), shape)
                .reshape(-1)
                .astype(self.dtype)
            )
            for layer, shape in zip(net.affine_layers[:count], net.unit_shapes, strict=False)
        ]
        # The step through the layer of the bounded function is the same every time.
        self.last = self._transpose(count, rows.reshape(self.n, -1))
        sums = rows.sum(axis=(-2, -1)) if rows.ndim == 4 else rows
        self.constant = (sums @ net.affine_layers[count].b).astype(self.dtype)

    def run(self, slopes, betas, best, values, points, scores, steps):
        n, dtype = self.n, self.dtype
        count = len(self.lines)
        values[:] = -np.inf
        moments = [np.zeros((4, *slope.shape), dtype) for slope in slopes]
        means = [np.zeros_like(slope) for slope in slopes]
        G: list[np.ndarray] = [self.last] * count
        factors = [np.empty_like(slope) for slope in slopes]
        products = [np.empty_like(slope) for slope in slopes]
        sizes = None
        weights = 0.0
        better = np.empty(n, bool)
        for step in range(steps + 1):
            constant, rows = self.constant.copy(), self.last
            for k in reversed(range(count)):
                G[k] = rows
                kernels.relax_back(
                    rows, self.lines[k], slopes[k], self.fixed[k], betas[k], self.any_fixed[k],
                    self.biases[k], factors[k], products[k], constant,
                )  # fmt: skip
                rows = self._transpose(k, products[k])
            kernels.minimize(rows, self.limits, constant, values, points, better)
            for k in range(count):
                kernels.keep(better, slopes[k], betas[k], best[k], best[count + k])
            weight = (step + 1.0) ** 2
            weights += weight
            if sizes is None:
                sizes = [np.abs(g).mean(axis=1) for g in G]
            numbers = np.array(
                [
                    weight, step_length(step, steps), *MOMENTS,
                    *(1 / (1 - moment ** (step + 1)) for moment in MOMENTS),
                ],
                dtype,
            )  # fmt: skip
            g = points
            for k in range(count):
                f = self._apply(k, g)
                kernels.step_forward(
                    f, G[k], self.lines[k], factors[k], self.fixed[k], self.any_fixed[k], sizes[k],
                    numbers, step < steps, means[k], moments[k], slopes[k], betas[k], products[k],
                )  # fmt: skip
                g = products[k]
        for k in range(count):
            kernels.score(
                G[k], means[k], dtype.type(1 / weights), self.lines[k], slopes[k], dtype.type(TIE),
                scores[k],
            )  # fmt: skip

    def _apply(self, k, g):
        """Pre-activations f_k, (n, units)."""
        span = self.net.span(k)
        g = g.reshape(self.n, *self.net.shapes[span[0]])
        for i in span:
            g = self.net.layers[i].apply(g)
        return np.ascontiguousarray(g.reshape(self.n, -1))

    def _transpose(self, k, rows):
        """Coefficients of the input of layer k."""
        span = self.net.span(k)
        g = rows.reshape(self.n, *self.net.shapes[span[-1] + 1])
        for i in reversed(span):
            g = self.net.layers[i].transpose(g, self.net.shapes[i])
        return np.ascontiguousarray(g.reshape(self.n, -1))


@implements("numba", clipping.clip_nodes)
def clip_nodes(
    ball: Ball,
    A: np.ndarray,
    constant: np.ndarray,
    c: np.ndarray,
    e: np.ndarray,
    wanted: np.ndarray,
    steps: int,
) -> np.ndarray:
    """Twin of `refmmr.reference.clipping.clip_nodes`."""
    values = np.full(wanted.shape, -np.inf)
    limits = _limits(ball, np.dtype(np.float64))
    largest = np.maximum(np.abs(limits.low), np.abs(limits.high))
    error = rounding_factor(8 * A.shape[1] + 64)
    sizes, cut_sizes = np.abs(A) @ largest + np.abs(constant), np.abs(c) @ largest + np.abs(e)
    # Products that underflow; in l_2 squares do, too.
    smallest = SMALL if ball.p == 2 else SMALLEST_NORMAL
    allowance = A.shape[1] * smallest * (1 + largest.sum())
    norms = np.abs(A).sum(axis=1)
    cut_norms = np.abs(c).sum(axis=1)
    if ball.p == np.inf:
        # ``<w, z>`` lies within ``sum_j |w_j| half_j`` of its value at the center.
        center, half = (limits.low + limits.high) / 2, (limits.high - limits.low) / 2
        constant, e = A @ center + constant, c @ center + e
        A, c = A * half, c * half

    def part(start, stop):
        some = slice(start, stop)
        kernels.clip(
            A, constant, sizes, norms, c[some], e[some], cut_sizes[some], cut_norms[some],
            wanted[some], limits,
            error, allowance, steps, values[some],
        )  # fmt: skip

    threads.spread(part, len(c), least=LEAST)
    return values
