"""Gradient steps and bounds of nodes: twins of `refmmr.reference.ascent`.

A step is two matrix products a layer, back and forth, for all nodes of a thread; all that happens
at a hidden layer on either way is one compiled loop (`ascent_kernels`).  Arrays of units are
``(n, units)``, in the order of `layout`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba import ascent_kernels as kernels
from refmmr.backends._numba.layers import Buffers, Dense, Layer
from refmmr.backends._numba.layout import Layout, runs
from refmmr.reference import ascent as reference
from refmmr.reference.ascent import (
    MOMENTS,
    TIE,
    Ascent,
    Nodes,
    mean_size,
    split_multiplier,
    step_length,
)
from refmmr.reference.backward_bound import LinearBound
from refmmr.reference.ball import Ball
from refmmr.reference.network import Network
from refmmr.reference.rounding import (
    SMALLEST_NORMAL,
    Magnitude,
    backward_factor,
    layer_magnitudes,
    rounding_factor,
)

LEAST = 16
"""Nodes of a thread, at least: products of fewer rows are slower per row."""

NUMBERS = 2**19
"""Numbers in the widest array of a run of nodes: a few MB, to stay near a core's cache."""


@implements("numba", reference.ascend)
def ascend(net: Network, ball: Ball, rows: np.ndarray, nodes: Nodes, steps: int) -> Ascent:
    """Twin of `refmmr.reference.ascent.ascend`."""
    n, dtype, count = len(rows), rows.dtype, len(nodes.bounds)
    layers = _Layers(net, nodes, rows)
    slopes, betas = ([np.array(part, dtype) for part in field] for field in nodes[2:])
    scores = [np.full(part.shape, -1, dtype) for part in slopes]
    values, points = np.empty(n, dtype), np.empty((n, ball.x.shape[1]), dtype)
    limits = limits_of(layers.layout, ball, dtype)

    def part(start, stop):
        for some in runs(start, stop, layers.run):
            worker = _Ascent(layers, some)
            found, own_scores = worker.ascend(limits, values[some], steps)
            points[some] = layers.points(worker.points)
            for k in range(count):
                layers.put(k, slopes[k], some, found[k])
                layers.put(k, betas[k], some, found[count + k])
                layers.put(k, scores[k], some, own_scores[k])

    threads.spread(part, n, least=LEAST)
    return Ascent(slopes, betas, values, scores, points)


@implements("numba", reference.bound)
def bound(
    net: Network,
    ball: Ball,
    rows: np.ndarray,
    nodes: Nodes,
    magnitudes: Sequence[Magnitude] | None = None,
) -> LinearBound:
    """Twin of `refmmr.reference.ascent.bound`; without the coefficients of hidden layers."""
    if magnitudes is None:
        magnitudes = layer_magnitudes(net, ball, nodes.bounds)
    layers = _Layers(net, nodes, rows)
    terms = [
        np.ascontiguousarray(layers.inner(k, part.terms), dtype=rows.dtype)
        for k, part in enumerate(magnitudes)
    ]
    inputs = [part.inputs.astype(rows.dtype) for part in magnitudes]
    n, factor = len(rows), rows.dtype.type(backward_factor(net))
    A = np.empty((n, 1, ball.x.shape[1]), rows.dtype)
    constant, error = np.empty((n, 1), rows.dtype), np.empty((n, 1), rows.dtype)

    def part(start, stop):
        for some in runs(start, stop, layers.run):
            worker = _Ascent(layers, some, rounding_factor(8))
            own, constant[some, 0], sums = worker.bound(
                [part[some] if len(part) > 1 else part for part in terms],
                [part[some] if len(part) > 1 else part for part in inputs],
            )
            A[some, 0], error[some, 0] = layers.points(own), factor * sums

    with np.errstate(over="ignore", invalid="ignore"):
        threads.spread(part, n, least=LEAST)
    return LinearBound(A, constant, error, [])


def limits_of(layout, ball, dtype):
    """The ball as the kernels read it, its coordinates in the order of a layout if one is given."""
    d = ball.x.shape[1]
    lo, hi = (np.full(d, -np.inf), np.full(d, np.inf)) if ball.box is None else ball.box
    low, high = (
        np.maximum(ball.x[0] - ball.radius[0], lo),
        np.minimum(ball.x[0] + ball.radius[0], hi),
    )
    norm = {np.inf: kernels.LINF, 2: kernels.L2, 1: kernels.L1}[ball.p]
    sides = [ball.x[0], low, high]
    if layout is not None:
        sides = [layout.inputs(side.reshape(1, *layout.net.input_shape))[0] for side in sides]
    x, low, high = (np.ascontiguousarray(side, dtype=dtype) for side in sides)
    return kernels.Limits(norm, x, low, high, dtype.type(ball.radius[0]))


class _Layers:
    """The layers up to the bounded one, in the order of `Layout`, and the nodes.

    A unit of a dense layer that is inactive in all nodes, without a multiplier, is left out.
    """

    def __init__(self, net, nodes, rows):
        self.layout = Layout(net, np.zeros(0, rows.dtype))
        self.nodes, self.rows, self.dtype = nodes, rows, rows.dtype
        self.count = len(nodes.bounds)
        self.kept: list[np.ndarray | slice] = []
        for k, ((_, upper), fixed) in enumerate(zip(nodes.bounds, nodes.fixed, strict=True)):
            if k < self.layout.n_convs:
                self.kept.append(slice(None))
            else:
                self.kept.append(np.flatnonzero(((upper > 0) | (fixed != 0)).any(axis=0)))
        self.kept.append(slice(None))
        self.layers: list[Layer] = []
        before: np.ndarray | slice = slice(None)
        for layer, kept in zip(self.layout.layers, self.kept, strict=False):
            if isinstance(layer, Dense):
                layer = Dense(layer.W[kept][:, before], layer.b[kept])
            self.layers.append(layer)
            before = kept
        self.biases = [
            layer.b if isinstance(layer, Dense) else np.tile(layer.b, layer.geometry.positions)
            for layer in self.layers
        ]
        widest = max(max(layer.buffer_size, layer.inputs) for layer in self.layers)
        self.run = max(LEAST, NUMBERS // widest)

    def inner(self, k, values, some=slice(None)):
        """Values of the units of layer k in some nodes, in this order: (n, kept units)."""
        values = values[some].reshape(len(values[some]), -1)
        return self.layout.units_back(k, values)[:, self.kept[k]]

    def put(self, k, whole, some, values):
        """Write the values of the kept units to their places in an array of the reference."""
        shape = whole[some].shape
        if k < self.layout.n_convs:
            whole[some] = self.layout.units(k, values).reshape(shape)
        else:
            whole[some][:, self.kept[k]] = values  # a dense layer's units are (n, units)

    def points(self, z):
        """Points, or rows, of inputs in the order of the reference: (n, d)."""
        return self.layout.inputs_back(z).reshape(len(z), -1)


class _Ascent:
    """Some nodes of a thread.  With `slack`, the upper relaxations are rounded up."""

    def __init__(self, layers, some, slack=0.0):
        self.layers, self.dtype = layers, layers.dtype
        self.buffers = Buffers(self.dtype)
        nodes, self.count = layers.nodes, layers.count
        units = range(self.count)

        def take(k, values, dtype=self.dtype):
            return np.array(layers.inner(k, values, some), dtype=dtype, order="C")

        self.fixed = [take(k, nodes.fixed[k], np.int8) for k in units]
        self.slopes = [take(k, nodes.slopes[k]) for k in units]
        self.betas = [take(k, nodes.multipliers[k]) for k in units]
        self.any_fixed = [bool(part.any()) for part in self.fixed]
        self.lines = []
        for k in units:
            lower, upper = (take(k, side) for side in nodes.bounds[k])
            slope, intercept, unstable = (
                np.empty(lower.shape, t) for t in (*[self.dtype] * 2, bool)
            )
            lines = kernels.Lines(lower, upper, slope, intercept, unstable)
            kernels.upper_lines(
                lines, self.dtype.type(slack), self.dtype.type(slack * SMALLEST_NORMAL)
            )
            self.lines.append(lines)
        self.first = take(self.count, layers.rows)
        self.n = len(self.first)
        # The step through the layer of the bounded function is the same every time.
        self.last = self._transpose(self.count, self.first)
        self.constant = self.first @ layers.biases[self.count]

    def bound(self, terms, inputs):
        """The backward bound: ``A`` (n, d), constant (n,), and sums of terms of its error, (n,)."""
        constant, rows, G = self.constant.copy(), self.last, self.first
        sums = np.zeros(self.n, self.dtype)
        for k in reversed(range(self.count)):
            sums += _sizes(G, terms[k + 1], inputs[k + 1])
            factors, G = np.empty_like(rows), np.empty_like(rows)
            self._relax_back(k, rows, factors, G, constant)
            rows = self._transpose(k, G)
        return rows, constant, sums + _sizes(G, terms[0], inputs[0])

    def ascend(self, limits, values, steps):
        """Gradient steps: the best slopes and multipliers, and the scores."""
        dtype, count, slopes, betas = self.dtype, self.count, self.slopes, self.betas
        values[:] = -np.inf
        self.points = points = np.empty((self.n, len(limits.x)), dtype)
        best = [part.copy() for part in (*slopes, *betas)]
        moments = [np.zeros((4, *slope.shape), dtype) for slope in slopes]
        means = [np.zeros_like(slope) for slope in slopes]
        G: list[np.ndarray] = [self.last] * count
        factors = [np.empty_like(slope) for slope in slopes]
        products = [np.empty_like(slope) for slope in slopes]
        sizes = None
        weights = 0.0
        better = np.empty(self.n, bool)
        for step in range(steps + 1):
            constant, rows = self.constant.copy(), self.last
            for k in reversed(range(count)):
                G[k] = rows
                self._relax_back(k, rows, factors[k], products[k], constant)
                rows = self._transpose(k, products[k])
            kernels.minimize(rows, limits, constant, values, points, better)
            for k in range(count):
                kernels.keep(better, slopes[k], betas[k], best[k], best[count + k])
            weight = (step + 1.0) ** 2
            weights += weight
            if sizes is None:
                sizes = [mean_size(g, line.upper) for g, line in zip(G, self.lines, strict=True)]
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
        scores = [np.empty_like(slope) for slope in slopes]
        for k in range(count):
            kernels.score(
                G[k], means[k], dtype.type(1 / weights), self.lines[k], slopes[k], dtype.type(TIE),
                scores[k],
            )  # fmt: skip
            found = best[count + k]
            found[:] = np.where(self.lines[k].unstable, split_multiplier(G[k]), found)
        return best, scores

    def _relax_back(self, k, rows, factors, products, constant):
        kernels.relax_back(
            rows, self.lines[k], self.slopes[k], self.fixed[k], self.betas[k], self.any_fixed[k],
            factors, products, constant,
        )  # fmt: skip
        constant += products @ self.layers.biases[k]

    def _apply(self, k, g):
        """Pre-activations f_k, (n, units)."""
        layer = self.layers.layers[k]
        f = np.empty((self.n, layer.outputs), self.dtype)
        layer.linear(layer.operand(g, self.buffers, "windows"), f)
        f += self.layers.biases[k]
        return f

    def _transpose(self, k, rows):
        """Coefficients of the input of layer k."""
        layer = self.layers.layers[k]
        g = np.empty((self.n, layer.inputs), self.dtype)
        layer.transpose(rows, g, self.buffers)
        return g


def _sizes(rows, terms, inputs):
    """The sum of `rounding.backward_errors` for rows (n, units), without its factor: (n,)."""
    rows = np.abs(rows)
    sums = rows @ terms[0] if len(terms) == 1 else np.einsum("ij,ij->i", rows, terms)
    return sums + rows.dtype.type(SMALLEST_NORMAL) * (1 + inputs)
