"""Relaxation bounds: the twin of `reference.relaxations`.

Every linear function that is carried back is a *row*, and belongs to a sample.  Rows of all samples
go back together, a block at a time: a step through a layer is one matrix product for the block, a
step through a ReLU one run over each row.

The row of a unit of a convolution only touches a window of the layer before, and then of the image.
So a row is kept as a window of an image, with its vertex; a dense layer's is the whole image (a
vector is an image of one pixel).  Only units that are unstable by intervals have rows at all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Conv, Dense, Layer
from refmmr.backends._numba.layout import Layout
from refmmr.reference import backward_bound as reference
from refmmr.reference.network import Network
from refmmr.reference.rounding import UNDERFLOW, rounding_factor

NUMBERS = 2**18
"""Numbers of the widest array of a block of rows: what a core keeps near."""

SAMPLES = 128
"""Samples whose intervals a thread takes together."""


class Rows(NamedTuple):
    """Linear functions of a layer's units, each of one sample."""

    owner: np.ndarray  # (T,), the sample
    vertex: np.ndarray  # (T, 2), of the window, may lie outside of the image
    window: tuple[int, int, int]  # height, width, channels
    A: np.ndarray  # (T, numbers of a window), coefficients
    constant: np.ndarray  # (T,)
    error: np.ndarray  # (T,)


@implements("numba", reference.margin_bounds)
def margin_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    rule: str,
) -> np.ndarray:
    """Twin of `refmmr.reference.backward_bound.margin_bounds`."""
    return _Relaxed(net, X, p, eps, box, rule).margins(y)


@implements("numba", reference.layer_bounds)
def layer_bounds(
    net: Network,
    X: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    rule: str,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Twin of `refmmr.reference.backward_bound.layer_bounds`."""
    relaxed = _Relaxed(net, X, p, eps, box, rule)
    relaxed.bound(len(net.affine))
    shapes = [*net.unit_shapes, net.shapes[-1]]
    units = relaxed.layout.units
    return [
        (units(k, low).reshape(len(X), *shape), units(k, high).reshape(len(X), *shape))
        for k, (low, high, shape) in enumerate(zip(relaxed.low, relaxed.high, shapes, strict=True))
    ]


class _Relaxed:
    """The network on the balls of all samples: bounds and lines of one layer after the other."""

    def __init__(self, net, X, p, eps, box, rule):
        self.layout = layout = Layout(net, X)
        self.layers = layout.layers
        self.net, self.p, self.rule = net, p, rule
        self.factor = rounding_factor(reference.terms(net))
        self.n = len(X)
        self.x, self.eps = layout.inputs(X), np.ascontiguousarray(eps, dtype=np.float64)
        self.boxed = box is not None
        d = self.x.shape[1]
        lo, hi = (np.full(d, -np.inf), np.full(d, np.inf))
        if box is not None:
            lo, hi = (
                layout.inputs(np.broadcast_to(side, net.input_shape)[None])[0] for side in box
            )
        self.lo, self.hi = lo, hi
        self.lowest = np.maximum(self.x - self.eps[:, None], lo)
        self.highest = np.minimum(self.x + self.eps[:, None], hi)
        # Of the pre-activations of each layer: bounds, lines of their ReLUs, and how large the
        # terms are that they are sums of.
        self.low: list[np.ndarray] = []
        self.high: list[np.ndarray] = []
        self.lines: list[np.ndarray] = []
        self.terms: list[np.ndarray] = []
        # As image shapes; a vector is an image of one pixel.
        self.images = [
            layout.images[k] if k <= layout.n_convs and layout.images else (1, 1, layer.inputs)
            for k, layer in enumerate(self.layers)
        ]

    def margins(self, y: np.ndarray) -> np.ndarray:
        """Lower bounds of ``f_y - f_s``, (n, K)."""
        last = len(self.layers) - 1
        self.bound(last)
        layer = self.layers[last]
        terms = self._terms(last)
        classes = len(layer.b)
        samples = np.repeat(np.arange(self.n), classes)
        own, rival = np.repeat(y, classes), np.tile(np.arange(classes), self.n)
        margins = np.full(self.n * classes, np.inf)
        wanted = np.flatnonzero(own != rival)
        factor = self.factor

        def start(some):
            i, own_, rival_ = samples[some], own[some], rival[some]
            A = layer.W[own_] - layer.W[rival_]
            return self._whole(
                last, i, A, layer.b[own_] - layer.b[rival_],
                factor * (terms[i, own_] + terms[i, rival_]) + UNDERFLOW,
            )  # fmt: skip

        margins[wanted] = self._in_blocks(last, wanted, start)
        return margins.reshape(self.n, classes)

    def bound(self, count: int) -> None:
        """Bounds of the first affine layers."""
        for k in range(count):
            low, high, terms = self._intervals(k)
            self.terms.append(terms)
            if (self.p != np.inf) if k == 0 else (self.rule != "ibp"):
                everything = k == len(self.layers) - 1 or self.rule == "ibp"
                samples, units = np.nonzero((low < 0) & (high > 0) | everything)
                for sign, side in ((1, low), (-1, high)):
                    found = self._units(k, samples, units, sign)
                    better = np.maximum if sign > 0 else np.minimum
                    side[samples, units] = better(side[samples, units], sign * found)
            self.low.append(low)
            self.high.append(high)
            if k < len(self.layers) - 1:
                lines = np.empty((3, *low.shape))
                _lines(low, high, self.rule == "fast-lin", rounding_factor(8), lines)
                self.lines.append(lines)

    def _intervals(self, k):
        """Bounds of layer k from those before it, and the size of its terms."""
        layer = self.layers[k]
        low = np.empty((self.n, layer.outputs))
        high, terms = np.empty_like(low), np.empty_like(low)
        size = np.abs(layer.W)
        factor = rounding_factor(2 * layer.W.shape[1] + 32)

        def part(first, stop):
            for start in range(first, stop, SAMPLES):
                rows = slice(start, min(start + SAMPLES, stop))
                if k == 0:
                    below, above = self.lowest[rows], self.highest[rows]
                    largest = np.maximum(np.abs(below), np.abs(above))
                else:
                    below, above = self.low[k - 1][rows], self.high[k - 1][rows]
                    largest = np.maximum(np.abs(below), np.abs(above))
                    below, above = np.maximum(below, 0), np.maximum(above, 0)
                middle = _forward(layer, (below + above) / 2, layer.W) + self._bias(layer)
                spread = _forward(layer, (above - below) / 2, size)
                terms[rows] = _heavy(layer, largest, size) + np.abs(self._bias(layer))
                slack = factor * terms[rows] + UNDERFLOW
                low[rows] = middle - spread - slack
                high[rows] = middle + spread + slack

        threads.spread(part, self.n, least=max(1, 10**6 // layer.products))
        return low, high, terms

    def _terms(self, k):
        """``|W_k| size + |b_k|``: the terms of the last layer, which needs no intervals."""
        layer = self.layers[k]
        if k == 0:
            largest = np.maximum(np.abs(self.lowest), np.abs(self.highest))
        else:
            largest = np.maximum(np.abs(self.low[k - 1]), np.abs(self.high[k - 1]))
        return _heavy(layer, largest, np.abs(layer.W)) + np.abs(layer.b)

    @staticmethod
    def _bias(layer: Layer) -> np.ndarray:
        return layer.b if isinstance(layer, Dense) else np.tile(layer.b, layer.geometry.positions)

    def _units(self, k, samples, units, sign):
        """Lower bounds of ``sign * f_k`` of some units."""
        layer = self.layers[k]
        factor = self.factor

        def start(some):
            i, j = samples[some], units[some]
            error = factor * self.terms[k][i, j] + UNDERFLOW
            if isinstance(layer, Dense):
                return self._whole(k, i, sign * layer.W[j], sign * layer.b[j], error)
            g = layer.geometry
            position, channel = np.divmod(j, len(layer.W))
            row, column = np.divmod(position, g.columns)
            vertex = np.column_stack([row * g.down - g.top, column * g.across - g.left])
            window = (g.kernel_height, g.kernel_width, g.channels)
            A = sign * layer.W[channel]
            return Rows(i, vertex, window, A, sign * layer.b[channel], error)

        return self._in_blocks(k, np.arange(len(samples)), start)

    def _whole(self, k, owner, A, constant, error):
        """Rows of a dense layer k: each a whole image of the layer before."""
        vertex = np.zeros((len(owner), 2), dtype=np.int64)
        return Rows(owner, vertex, self.images[k], A, constant, error)

    def _in_blocks(self, k, rows, start):
        """Carry rows back from layer k, some at a time, on all threads."""
        found = np.empty(len(rows))
        size = max(4, NUMBERS // self._widest(k))
        blocks = -(-len(rows) // size)

        def part(first, stop):
            buffers = Buffers(np.dtype(np.float64))
            for block in range(first, stop):
                some = slice(block * size, (block + 1) * size)
                with np.errstate(over="ignore", invalid="ignore"):
                    found[some] = self._carry_back(k, start(rows[some]), buffers)

        threads.spread(part, blocks)
        return found

    def _widest(self, k):
        """Numbers of the widest array on the way of a row."""
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

    def _carry_back(self, k, rows, buffers):
        """Lower bounds of the functions on the balls of their samples."""
        for j in range(k - 1, -1, -1):
            layer = self.layers[j]
            image = self.images[j + 1]
            if self.rule == "ibp":
                return rows.constant + _interval_ends(
                    rows.A, rows.vertex, rows.window, image, rows.owner,
                    np.maximum(self.low[j], 0), np.maximum(self.high[j], 0),
                ) - rows.error  # fmt: skip
            _relax(
                rows.A, rows.vertex, rows.window, image, rows.owner, self.lines[j],
                self.terms[j], layer.b, self.factor, rows.constant, rows.error,
            )  # fmt: skip
            rows = self._step(layer, j, rows, buffers)
        return self._ends(rows)

    def _step(self, layer, j, rows, buffers):
        """``A W_j``: the same functions, of the input of layer j."""
        if isinstance(layer, Dense):
            A = np.matmul(rows.A, layer.W, out=buffers.take(j, len(rows.A), layer.inputs))
            return rows._replace(A=A, window=self.images[j])
        height, width, channels = rows.window
        pixels = rows.A.reshape(-1, channels)
        products = buffers.take("products", len(pixels), layer.W.shape[1])
        np.matmul(pixels, layer.W, out=products)
        g = layer.geometry
        window = (*_grown(rows.window, layer)[:2], g.channels)
        A = buffers.take(j, len(rows.A), window[0] * window[1] * window[2])
        _fold_windows(
            products, height, width, g.kernel_height, g.kernel_width * g.channels,
            g.down, g.across * g.channels, window[1] * g.channels, A,
        )  # fmt: skip
        vertex = rows.vertex * (g.down, g.across) - (g.top, g.left)
        return rows._replace(A=A, window=window, vertex=vertex)

    def _ends(self, rows):
        """What is left at the input: the lowest value on the ball within the box."""
        given = (rows.A, rows.vertex, rows.window, self.images[0], rows.owner)
        if self.p == np.inf:
            values = _interval_ends(*given, self.lowest, self.highest)
        else:
            values = _ball_ends(*given, self.x, self.lo, self.hi, self.eps, self.boxed, self.p == 1)
        return rows.constant + values - rows.error


def _forward(layer, x, W):
    """``W x`` of each sample, with any W of the layer's shape."""
    if isinstance(layer, Dense):
        return x @ W.T
    read = layer.read(np.ascontiguousarray(x), Buffers(x.dtype), "windows")
    return (read @ W.T).reshape(len(x), -1)


def _heavy(layer, largest, size):
    """At least ``|W| largest``; of a dense layer by the largest number alone, without a product.

    It only meets rounding units.
    """
    if isinstance(layer, Dense):
        return np.outer(largest.max(axis=1), size.sum(axis=1))
    return _forward(layer, largest, size)


def _grown(window: tuple[int, ...], layer: Conv) -> tuple[int, int, int]:
    """The window of the image before that a window of a convolution's output reads."""
    g = layer.geometry
    height = (window[0] - 1) * g.down + g.kernel_height
    width = (window[1] - 1) * g.across + g.kernel_width
    return height, width, g.channels


@jit
def _lines(low, high, parallel, slack, lines):
    """Lower slope, upper slope and intercept of each unit's ReLU."""
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            down, up = low[i, j], high[i, j]
            lower = upper = intercept = 0.0
            if down >= 0:
                lower = upper = 1.0
            elif up > 0:
                upper = up / (up - down)
                intercept = max(-upper * down, up - upper * up + slack * up) * (1 + slack)
                lower = upper if parallel else (1.0 if up > -down else 0.0)
            elif not up <= 0:  # not a number
                lower = upper = intercept = np.nan
            lines[0, i, j], lines[1, i, j], lines[2, i, j] = lower, upper, intercept


@jit
def _relax(A, vertex, window, image, owner, lines, terms, b, factor, constant, error):
    """Through the ReLU of a layer, and take its biases and its rounding errors on board.

    What of a window lies outside of the image is padding: 0.
    """
    height, width, channels = window
    rows, columns, _ = image
    for t in range(len(A)):
        i = owner[t]
        up, left = vertex[t, 0], vertex[t, 1]
        gain = size = 0.0
        for y in range(height):
            for x in range(width):
                place = (y * width + x) * channels
                if not (0 <= up + y < rows and 0 <= left + x < columns):
                    for c in range(channels):
                        A[t, place + c] = 0
                    continue
                first = ((up + y) * columns + left + x) * channels
                for c in range(channels):
                    a = A[t, place + c]
                    below = a < 0
                    gain += lines[2, i, first + c] * (a if below else 0.0)
                    a *= lines[1, i, first + c] if below else lines[0, i, first + c]
                    gain += a * b[c]
                    size += abs(a) * terms[i, first + c]
                    A[t, place + c] = a
        constant[t] += gain
        error[t] += factor * size + UNDERFLOW


@jit
def _fold_windows(products, height, width, kernel, run, down, across, stride, A):
    """Add up, for each row, what all pixels of its window say about the image before.

    The products of a pixel are `kernel` runs of numbers; a pixel further they lie `across` numbers
    further, a pixel lower `down` lines of `stride` numbers.
    """
    A[:] = 0
    for t in range(len(A)):
        for y in range(height):
            for x in range(width):
                pixel = (t * height + y) * width + x
                for k in range(kernel):
                    place = (y * down + k) * stride + x * across
                    for c in range(run):
                        A[t, place + c] += products[pixel, k * run + c]


@jit
def _interval_ends(A, vertex, window, image, owner, lowest, highest):
    """The smallest value of each function where every number is between bounds."""
    height, width, channels = window
    rows, columns, _ = image
    values = np.zeros(len(A))
    for t in range(len(A)):
        i = owner[t]
        total = 0.0
        for y in range(height):
            for x in range(width):
                up, left = vertex[t, 0] + y, vertex[t, 1] + x
                if not (0 <= up < rows and 0 <= left < columns):
                    continue
                place, first = (y * width + x) * channels, (up * columns + left) * channels
                for c in range(channels):
                    a = A[t, place + c]
                    total += a * (lowest[i, first + c] if a > 0 else highest[i, first + c])
        values[t] = total
    return values


@jit
def _ball_ends(A, vertex, window, image, owner, x, lo, hi, eps, boxed, taxi):
    """The smallest value of each function on an l_1 (taxi) or l_2 ball within the box."""
    height, width, channels = window
    rows, columns, _ = image
    values = np.zeros(len(A))
    speed, reach = np.empty(A.shape[1]), np.empty(A.shape[1])
    for t in range(len(A)):
        i = owner[t]
        total = 0.0
        count = 0
        for y in range(height):
            for z in range(width):
                up, left = vertex[t, 0] + y, vertex[t, 1] + z
                if not (0 <= up < rows and 0 <= left < columns):
                    continue
                place, first = (y * width + z) * channels, (up * columns + left) * channels
                for c in range(channels):
                    a, here = A[t, place + c], x[i, first + c]
                    total += a * here
                    speed[count] = abs(a)
                    reach[count] = here - lo[first + c] if a > 0 else hi[first + c] - here
                    count += 1
        largest = 0.0
        for j in range(count):
            if not speed[j] <= largest:
                largest = speed[j]
        if largest == 0 or eps[i] == 0:
            gain = 0.0
        elif not boxed:
            gain = eps[i] * (largest if taxi else largest * _length(speed, count, largest))
        elif taxi:
            gain = _taxi_gain(speed, reach, count, eps[i])
        else:
            gain = largest * _round_gain(speed, reach, count, eps[i], largest)
        values[t] = total - gain
    return values


@jit
def _length(speed, count, largest):
    total = 0.0
    for j in range(count):
        total += (speed[j] / largest) ** 2
    return np.sqrt(total)


@jit
def _taxi_gain(speed, reach, count, radius):
    """The price is the speed of the last coordinate that is paid for: look for one at a time."""
    price, spent = np.inf, 0.0
    while spent < radius:
        following = 0.0
        for j in range(count):
            if following < speed[j] < price:
                following = speed[j]
        price = following
        if not price > 0:
            break
        for j in range(count):
            if speed[j] == price:
                spent += reach[j]
    gain = price * radius
    for j in range(count):
        if speed[j] > price:
            gain += (speed[j] - price) * reach[j]
    return gain


@jit
def _round_gain(speed, reach, count, radius, largest):
    """Raise the level until the length is the radius; who has reached the box stays there."""
    level = radius / _length(speed, count, largest)
    price = 1 / level
    while True:
        filled = rate = 0.0
        for j in range(count):
            pace = speed[j] / largest
            if pace * level >= reach[j]:
                filled += reach[j] * reach[j] if pace > 0 else 0.0
            else:
                rate += pace * pace
        if not rate > 0:
            price = 1 / level if filled >= radius * radius else 0.0
            break
        raised = np.sqrt(max(radius * radius - filled, 0.0) / rate)
        if not raised > level:
            price = 1 / level
            break
        level = raised
    gain = price * radius * radius / 2
    for j in range(count):
        pace = speed[j] / largest
        if pace >= price * reach[j]:
            gain += reach[j] * (pace - price * reach[j] / 2)
        else:
            gain += pace * pace / (2 * price)
    return gain
