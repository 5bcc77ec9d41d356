"""Bounds by linear relaxations: the twin of `refmmr.reference.backward_bound`.

Every linear function of a layer is a *row* of coefficients, and belongs to a sample.  Rows of all
samples go back together, a block at a time: a step through a layer is one matrix product of the
block, a step through a ReLU one compiled loop (`backward_bound_kernels`).

The row of a unit of a convolution only touches a window of the layer before, and then of the image.
So a row is stored as a window of an image; that of a dense layer is the whole image, and a vector
is an image of one pixel.  Only units that intervals leave unstable have rows.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.backward_bound_kernels import (
    Balls,
    Relaxed,
    Rows,
    ball_minimum,
    fold_windows,
    interval_minimum,
    relax_rows,
    relax_units,
)
from refmmr.backends._numba.layers import Buffers, Conv, Dense, Layer
from refmmr.backends._numba.layout import Layout, runs
from refmmr.reference import backward_bound as reference
from refmmr.reference.hyperplanes import dual_norm
from refmmr.reference.network import Network
from refmmr.reference.rounding import SMALLEST_NORMAL, backward_factor, rounding_factor

NUMBERS = 2**18
"""Numbers in the widest array of a block of rows: 2 MB, to stay in a core's cache."""

SAMPLES = 128
"""Samples whose intervals a thread computes together, for the same reason."""


@implements("numba", reference.row_bounds)
def row_bounds(
    net: Network,
    X: np.ndarray,
    rows: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    method: str,
) -> np.ndarray:
    """Twin of `refmmr.reference.backward_bound.row_bounds`."""
    return Bounds(Points(net, X, p, box, method), eps).rows(rows)


@implements("numba", reference.layer_bounds)
def layer_bounds(
    net: Network,
    X: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    method: str,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Twin of `refmmr.reference.backward_bound.layer_bounds`."""
    bounds = Bounds(Points(net, X, p, box, method), eps)
    bounds.bound(len(net.affine))
    shapes = [*net.unit_shapes, net.shapes[-1]]
    units = bounds.layout.units
    return [
        (units(k, low).reshape(len(X), *shape), units(k, high).reshape(len(X), *shape))
        for k, (low, high, shape) in enumerate(zip(bounds.low, bounds.high, shapes, strict=True))
    ]


class _Weights:
    """What the bounds of a layer read of its weights, besides themselves."""

    def __init__(self, layer: Layer, behind: bool) -> None:
        copies = 1 if isinstance(layer, Dense) else layer.geometry.positions
        self.b = np.tile(layer.b, copies)  # of all units
        self.size = np.abs(layer.W)
        self.sums = self.size.sum(axis=1)
        # Terms of at least 0, behind a ReLU: see `intervals.through`.
        self.sure = np.tile((layer.W >= 0).all(axis=1) & (layer.b >= 0) & behind, copies)


class Points:
    """Points within a box, the layers, and all that does not depend on the radius."""

    def __init__(self, net, X, p, box, method):
        self.layout = layout = Layout(net, X)
        self.net, self.p, self.method, self.layers = net, p, method, layout.layers
        self.factor = backward_factor(net)
        self.weights = [_Weights(layer, k > 0) for k, layer in enumerate(self.layers)]
        self.x, self.boxed = layout.inputs(X), box is not None
        self.lo, self.hi = (np.full((1, self.x.shape[1]), s * np.inf) for s in (-1, 1))
        if box is not None:  # one for all, or one for each point
            sides = (side if side.shape == X.shape else side[None] for side in box)
            self.lo, self.hi = (layout.inputs(side) for side in sides)
        # The images before the layers.
        self.images = [
            layout.images[k] if k <= layout.n_convs and layout.images else (1, 1, layer.inputs)
            for k, layer in enumerate(self.layers)
        ]

    @cached_property
    def norms(self) -> np.ndarray:
        """Dual norms of the rows of a dense first layer, (units,)."""
        return dual_norm(self.layers[0].W, self.p)

    @cached_property
    def values(self) -> np.ndarray:
        """Pre-activations of a dense first layer at the points, (n, units)."""
        return self.x @ self.layers[0].W.T + self.layers[0].b


class Bounds:
    """Bounds, relaxations and magnitudes on balls around some of the points, layer after layer."""

    def __init__(self, points: Points, eps: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.points, self.layout, self.layers = points, points.layout, points.layers
        self.net, self.p, self.method, self.factor = (
            points.net, points.p, points.method, points.factor
        )  # fmt: skip
        self.images = points.images
        self.chosen = np.arange(len(points.x)) if rows is None else rows
        self.n = len(self.chosen)
        x, radius = points.x[self.chosen], np.ascontiguousarray(eps, dtype=np.float64)
        own = self.chosen if len(points.lo) > 1 else slice(None)
        lo, hi = points.lo[own], points.hi[own]
        self.balls = Balls(x, radius, self.p == 1, points.boxed, lo, hi)
        self.lowest = np.maximum(x - radius[:, None], lo)
        self.highest = np.minimum(x + radius[:, None], hi)
        # Of the pre-activations of each layer, (n, units).  IBP reads the last layer behind its
        # ReLU, `activations`; the other methods read `hidden`.
        self.low: list[np.ndarray] = []
        self.high: list[np.ndarray] = []
        self.hidden: list[Relaxed] = []

    def margins(self, y: np.ndarray) -> np.ndarray:
        """Lower bounds of ``f_y - f_s``, (n, K)."""
        last = len(self.layers) - 1
        self.bound(last)
        layer = self.layers[last]
        terms, inputs = self._magnitude(last, *self._before(last, slice(None)))
        classes = len(layer.b)
        samples = np.repeat(np.arange(self.n), classes)
        own, rival = np.repeat(y, classes), np.tile(np.arange(classes), self.n)
        margins = np.full(self.n * classes, np.inf)
        wanted = np.flatnonzero(own != rival)

        def start(some):
            i, own_, rival_ = samples[some], own[some], rival[some]
            A = layer.W[own_] - layer.W[rival_]
            error = self._error(terms[i, own_] + terms[i, rival_], inputs[i])
            return self._whole(last, i, A, layer.b[own_] - layer.b[rival_], error)

        margins[wanted] = self._in_blocks(last, wanted, start)
        return margins.reshape(self.n, classes)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Lower bounds of linear functions of the logits, rows (n or 1, m, K): (n, m)."""
        last = len(self.layers) - 1
        self.bound(last)
        layer = self.layers[last]
        terms, inputs = self._magnitude(last, *self._before(last, slice(None)))
        m = rows.shape[1]

        def start(some):
            i, j = np.divmod(some, m)
            C = rows[i if len(rows) > 1 else 0, j]
            error = self._error((terms[i] * np.abs(C)).sum(axis=1), inputs[i])
            return self._whole(last, i, C @ layer.W, C @ layer.b, error)

        return self._in_blocks(last, np.arange(self.n * m), start).reshape(self.n, m)

    def bound(self, count: int) -> None:
        """Bounds of the first affine layers."""
        for k in range(count):
            everything = k == len(self.layers) - 1 or self.method == "ibp"
            norms = k == 0 and self.p != np.inf and isinstance(self.layers[0], Dense)
            if norms and not everything and count == 1:
                low, high, terms, inputs = self._by_norms()
            else:  # later layers read the bounds of stable units, too
                low, high, terms, inputs = self._intervals(k)
                if norms and not everything:
                    below, above, _, _ = self._by_norms()
                    unstable = (low < 0) & (high > 0)
                    np.maximum(low, below, out=low, where=unstable)
                    np.minimum(high, above, out=high, where=unstable)
            if (self.p != np.inf) if k == 0 else (self.method != "ibp"):
                samples, units = np.nonzero((low < 0) & (high > 0) | everything)
                for sign, side in ((1, low), (-1, high)):
                    found = self._units(k, samples, units, sign, terms, inputs)
                    better = np.maximum if sign > 0 else np.minimum
                    side[samples, units] = better(side[samples, units], sign * found)
            self.low.append(low)
            self.high.append(high)
            if self.method == "ibp":
                self.activations = np.maximum(low, 0), np.maximum(high, 0)
            elif k < len(self.layers) - 1:
                slopes = np.empty((3, *low.shape))
                self.hidden.append(Relaxed(slopes[0], slopes[1], slopes[2], terms, inputs))
                crown = self.method == "crown"
                relax_units(low, high, crown, rounding_factor(8), self.hidden[k])

    def _by_norms(self):
        """Bounds of a dense first layer on the balls without the box, and its magnitude."""
        terms, inputs = self._magnitude(0, self.lowest, self.highest)
        middle = self.points.values[self.chosen]
        spread = self.balls.radius[:, None] * self.points.norms
        reach = spread + self._error(terms + spread, inputs[:, None])
        return middle - reach, middle + reach, terms, inputs

    def _before(self, k, samples):
        """Bounds of what layer k reads, before the ReLU: two arrays (n, inputs)."""
        if k == 0:
            return self.lowest[samples], self.highest[samples]
        return self.low[k - 1][samples], self.high[k - 1][samples]

    def _intervals(self, k):
        """Twin of `intervals.through`; the magnitude of the layer comes with it."""
        layer, weights = self.layers[k], self.points.weights[k]
        low = np.empty((self.n, layer.outputs))
        high, terms, inputs = np.empty_like(low), np.empty_like(low), np.empty(self.n)
        factor = rounding_factor(2 * layer.W.shape[1] + 32)

        def part(first, stop):
            for some in runs(first, stop, SAMPLES):
                below, above = self._before(k, some)
                terms[some], inputs[some] = self._magnitude(k, below, above)
                if k > 0:
                    below, above = np.maximum(below, 0), np.maximum(above, 0)
                middle = _linear(layer, below + above, layer.W) / 2 + weights.b
                spread = _linear(layer, above - below, weights.size) / 2
                slack = factor * terms[some]
                low[some] = middle - spread - slack
                low[some, weights.sure] = np.maximum(low[some, weights.sure], 0)
                high[some] = middle + spread + slack

        threads.spread(part, self.n, least=max(1, 10**6 // layer.products))
        return low, high, terms, inputs

    def _magnitude(self, k, low, high):
        """Twin of `rounding.Magnitude` of layer k, or more."""
        layer, weights = self.layers[k], self.points.weights[k]
        largest = np.maximum(np.abs(low), np.abs(high))
        if isinstance(layer, Dense):
            # Without a matrix product: rounding errors are small enough.
            terms = np.outer(largest.max(axis=1), weights.sums)
        else:
            terms = _linear(layer, largest, weights.size)
        return terms + np.abs(weights.b) + SMALLEST_NORMAL, largest.sum(axis=1)

    def _error(self, terms, inputs):
        """Twin of `rounding.backward_errors` for rows of single units."""
        return self.factor * (terms + SMALLEST_NORMAL * (1 + inputs))

    def _units(self, k, samples, units, sign, terms, inputs):
        """Lower bounds of ``sign * f_k`` of some units."""
        layer = self.layers[k]

        def start(some):
            i, j = samples[some], units[some]
            error = self._error(terms[i, j], inputs[i])
            if isinstance(layer, Dense):
                A = layer.W[j]  # a copy
                A *= sign
                return self._whole(k, i, A, sign * layer.b[j], error)
            g = layer.geometry
            position, channel = np.divmod(j, len(layer.W))
            row, column = np.divmod(position, g.columns)
            origin = np.column_stack([row * g.down - g.top, column * g.across - g.left])
            window = (g.kernel_height, g.kernel_width, g.channels)
            A, constant = sign * layer.W[channel], sign * layer.b[channel]
            return Rows(i, origin, window, self.images[k], A, constant, error)

        return self._in_blocks(k, np.arange(len(samples)), start)

    def _whole(self, k, owner, A, constant, error):
        """Rows of a dense layer k: each a whole image of the layer before."""
        origin = np.zeros((len(owner), 2), dtype=np.int64)
        return Rows(owner, origin, self.images[k], self.images[k], A, constant, error)

    def _in_blocks(self, k, rows, start):
        """Lower bounds of some rows of layer k, block by block on all threads.

        `start` makes the `Rows` of a block; -inf, which proves nothing, where floats overflow.
        """
        found = np.empty(len(rows))
        size = max(4, NUMBERS // self._widest(k))
        blocks = -(-len(rows) // size)

        def part(first, stop):
            buffers = Buffers(np.dtype(np.float64))
            for block in range(first, stop):
                some = slice(block * size, (block + 1) * size)
                with np.errstate(over="ignore", invalid="ignore"):
                    found[some] = self._minimum(k, start(rows[some]), buffers)

        threads.spread(part, blocks)
        return np.where(np.isfinite(found), found, -np.inf)

    def _widest(self, k):
        """Numbers in the widest array that a row of layer k becomes."""
        layer = self.layers[k]
        widest, window = layer.W.shape[1], self.images[k]
        if isinstance(layer, Conv):
            window = (layer.geometry.kernel_height, layer.geometry.kernel_width, 0)
        for j in range(k - 1, -1, -1):
            before = self.layers[j]
            if isinstance(before, Dense):
                widest, window = max(widest, before.inputs), self.images[j]
            else:
                widest = max(widest, window[0] * window[1] * before.W.shape[1])
                window = _grown(window, before)
        return widest

    def _minimum(self, k, rows, buffers):
        """Twin of `backward_bound`: the smallest values of rows of layer k on the balls."""
        for j in range(k - 1, -1, -1):
            if self.method == "ibp":
                return rows.constant + interval_minimum(rows, *self.activations) - rows.error
            relax_rows(rows, self.hidden[j], self.layers[j].b, self.factor)
            rows = self._transpose(j, rows, buffers)
        if self.p == np.inf:
            ends = interval_minimum(rows, self.lowest, self.highest)
        else:
            ends = ball_minimum(rows, self.balls)
        return rows.constant + ends - rows.error

    def _transpose(self, j, rows, buffers):
        """``A W_j``: the same functions, of the input of layer j."""
        layer, image = self.layers[j], self.images[j]
        if isinstance(layer, Dense):
            A = np.matmul(rows.A, layer.W, out=buffers.take(j, len(rows.A), layer.inputs))
            return rows._replace(A=A, window=image, image=image)
        height, width, channels = rows.window
        pixels = rows.A.reshape(-1, channels)
        products = buffers.take("products", len(pixels), layer.W.shape[1])
        np.matmul(pixels, layer.W, out=products)
        g = layer.geometry
        window = _grown(rows.window, layer)
        A = buffers.take(j, len(rows.A), window[0] * window[1] * window[2])
        fold_windows(
            products, height, width, g.kernel_height, g.kernel_width * g.channels,
            g.down, g.across * g.channels, window[1] * g.channels, A,
        )  # fmt: skip
        origin = rows.origin * (g.down, g.across) - (g.top, g.left)
        return rows._replace(A=A, window=window, image=image, origin=origin)


def _linear(layer, x, W):
    """``W x`` of each sample, with any W of the layer's shape."""
    if isinstance(layer, Dense):
        return x @ W.T
    operand = layer.operand(np.ascontiguousarray(x), Buffers(x.dtype), "windows")
    return (operand @ W.T).reshape(len(x), -1)


def _grown(window: tuple[int, ...], layer: Conv) -> tuple[int, int, int]:
    """The window of the image before that a window of a convolution's output reads."""
    g = layer.geometry
    height = (window[0] - 1) * g.down + g.kernel_height
    width = (window[1] - 1) * g.across + g.kernel_width
    return height, width, g.channels
