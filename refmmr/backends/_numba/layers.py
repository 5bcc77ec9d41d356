"""Passes through a network, forward and back, near the speed of BLAS.

What `refmmr.reference.network` says, laid out for the machine.  Every layer is one matrix product;
a convolution's factor are the *windows* of its images, one row per output pixel.  Images are kept
channel-last, ``(height, width, channel)`` flattened, so that a window is a few contiguous runs of
numbers.  All arrays here are ``(n, units of a layer)``; only `layout` knows the order of a user's
network.

Memory is taken once per `Passes` and used again: a step of an attack allocates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.reference.network import Gradients


class Geometry(NamedTuple):
    """Sizes of a convolution, for the kernels.

    Compiled kernels of other files read it too: remove their caches when its fields change order.
    """

    height: int
    width: int
    channels: int
    rows: int  # of the output
    columns: int
    kernel_height: int
    kernel_width: int
    down: int
    across: int
    top: int
    left: int

    @property
    def inputs(self) -> int:
        """Numbers in an input image."""
        return self.height * self.width * self.channels

    @property
    def positions(self) -> int:
        """Pixels of an output image."""
        return self.rows * self.columns

    @property
    def window(self) -> int:
        """Numbers in a window."""
        return self.kernel_height * self.kernel_width * self.channels


class Buffers:
    """Arrays that are used again and again, by name."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._arrays: dict[object, np.ndarray] = {}

    def take(self, name: object, *shape: int, dtype: type | None = None) -> np.ndarray:
        """An array with anything in it; the former one of this name is void."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, dtype or self.dtype)
        return self._arrays[name][:size].reshape(shape)


class Dense:
    """``y = W x + b``; W of shape (outputs, inputs)."""

    def __init__(self, W: np.ndarray, b: np.ndarray) -> None:
        self.W, self.b = np.ascontiguousarray(W), np.ascontiguousarray(b)
        self.outputs, self.inputs = W.shape
        self.numbers, self.products = self.outputs, W.size
        self._columns = self.W.T

    def repeat(self) -> None:
        """Prepare for many products: small ones are quicker with the columns side by side."""
        self._columns = np.ascontiguousarray(self.W.T)

    def read(self, x: np.ndarray, buffers: Buffers, name: object) -> np.ndarray:
        """What the product reads: x itself."""
        return x

    def linear(self, read: np.ndarray, out: np.ndarray) -> None:
        """``W x`` of each row: (n, inputs) to (n, outputs)."""
        np.matmul(read, self._columns, out=out)

    def transpose(self, g: np.ndarray, out: np.ndarray, buffers: Buffers) -> None:
        """``W^T g`` of each row: (n, outputs) to (n, inputs)."""
        np.matmul(g, self.W, out=out)

    def add_gradient(
        self, read: np.ndarray, g: np.ndarray, dW: np.ndarray, db: np.ndarray | None
    ) -> None:
        """Add ``sum g x^T`` to dW and ``sum g`` to db."""
        dW += np.matmul(g.T, read)
        if db is not None:
            db += g.sum(axis=0)


class Conv:
    """A convolution; W of shape (output channels, window), b one number a channel."""

    def __init__(self, W: np.ndarray, b: np.ndarray, geometry: Geometry) -> None:
        self.W, self.b, self.geometry = np.ascontiguousarray(W), np.ascontiguousarray(b), geometry
        self.inputs, self.outputs = geometry.inputs, geometry.positions * len(W)
        self.numbers = max(self.outputs, geometry.positions * geometry.window)
        self.products = self.W.size * geometry.positions

    def read(self, x: np.ndarray, buffers: Buffers, name: object) -> np.ndarray:
        """What each output pixel looks at: (n, inputs) to (n * positions, window)."""
        windows = buffers.take(name, len(x) * self.geometry.positions, self.geometry.window)
        _windows(x, windows, self.geometry)
        return windows

    def linear(self, read: np.ndarray, out: np.ndarray) -> None:
        """``W x`` of each row: (n * positions, window) to (n, outputs)."""
        np.matmul(read, self.W.T, out=out.reshape(len(read), -1))

    def transpose(self, g: np.ndarray, out: np.ndarray, buffers: Buffers) -> None:
        """``W^T g`` of each row: (n, outputs) to (n, inputs)."""
        g = g.reshape(-1, len(self.W))
        windows = np.matmul(g, self.W, out=buffers.take("windows", len(g), self.W.shape[1]))
        _fold(windows, out, self.geometry)

    def add_gradient(
        self, read: np.ndarray, g: np.ndarray, dW: np.ndarray, db: np.ndarray | None
    ) -> None:
        """Add the gradient of ``sum g * (W x + b)`` to dW and db."""
        g = g.reshape(-1, len(self.W))
        dW += np.matmul(g.T, read)
        if db is not None:
            db += g.sum(axis=0)


Layer = Dense | Conv


class Trail(NamedTuple):
    """What a forward pass leaves behind, as `refmmr.reference.network.ForwardCache`."""

    inputs: list[np.ndarray]  # g_{k-1}, the input of every layer, (n, inputs of the layer)
    masks: list[np.ndarray]  # s_k of every hidden layer, bool
    logits: np.ndarray  # (n, K)


class Passes:
    """A chain of layers with a ReLU between them, and the memory to run it.

    Not for several threads at once: `layout.Layout.passes` makes one for each.
    """

    def __init__(self, layers: Sequence[Layer], dtype: np.dtype) -> None:
        self.layers = list(layers)
        self.buffers = Buffers(dtype)

    def forward(self, X: np.ndarray) -> Trail:
        """Push points (n, d) through the network.

        The result lives in buffers, until the next pass.  `pre_activations` asks for the f_k too.
        """
        return self._forward(X, None, "")

    def pre_activations(self, X: np.ndarray) -> tuple[list[np.ndarray], Trail]:
        """A forward pass that also keeps f_k of every hidden layer."""
        kept: list[np.ndarray] = []
        cache = self._forward(X, kept, "kept")
        return kept, cache

    def _forward(self, X: np.ndarray, kept: list[np.ndarray] | None, name: str) -> Trail:
        inputs, masks = [X], []
        for k, layer in enumerate(self.layers[:-1]):
            f = self.buffers.take((name, "f", k), len(X), layer.outputs)
            layer.linear(layer.read(inputs[-1], self.buffers, "windows"), f)
            mask = self.buffers.take((name, "mask", k), *f.shape, dtype=bool)
            bias, flat = layer.b, f.reshape(-1, len(layer.b))
            g = f
            if kept is None:
                _relu_in_place(flat, bias, mask)
            else:
                g = self.buffers.take((name, "g", k), *f.shape)
                _relu(flat, bias, g.reshape(flat.shape), mask)
                kept.append(f)
            inputs.append(g)
            masks.append(mask)
        logits = self.buffers.take((name, "logits"), len(X), self.layers[-1].outputs)
        self.layers[-1].linear(inputs[-1], logits)
        logits.reshape(-1, len(self.layers[-1].b))[...] += self.layers[-1].b
        return Trail(inputs, masks, logits)

    def directions(
        self, G: np.ndarray, masks: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Push directions through the first layers, frozen.

        Returns what each of those layers read, and the output of the last.
        """
        h, read = G, []
        for k, mask in enumerate(masks):
            layer = self.layers[k]
            read.append(layer.read(h, self.buffers, ("read", k)))
            h = self.buffers.take(("direction", k), len(G), layer.outputs)
            layer.linear(read[-1], h)
            apply_mask(h, mask)
        return read, h

    def backward(
        self,
        last: np.ndarray,
        masks: Sequence[np.ndarray],
        df: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Carry gradients back from layer len(masks), (n, its outputs), to all before it.

        Returns delta_k of layers 0 to len(masks); `df` is what a loss feels of their
        pre-activations besides.
        """
        deltas = [last]
        for k in reversed(range(len(masks))):
            delta = self.buffers.take(("delta", k), len(last), self.layers[k].outputs)
            self.layers[k + 1].transpose(deltas[0], delta, self.buffers)
            if df is None:
                apply_mask(delta, masks[k])
            else:
                _apply_mask_and_add(delta, masks[k], df[k])
            deltas.insert(0, delta)
        return deltas

    def input_gradient(self, delta: np.ndarray) -> np.ndarray:
        """``W_1^T delta_1``, (n, d)."""
        gradient = self.buffers.take("input gradient", len(delta), self.layers[0].inputs)
        self.layers[0].transpose(delta, gradient, self.buffers)
        return gradient

    def add_gradients(self, cache: Trail, deltas: Sequence[np.ndarray], sums: Gradients) -> None:
        """Add the gradient to the weights to `sums`, one (dW, db) a layer in this layout."""
        for layer, x, delta, (dW, db) in zip(self.layers, cache.inputs, deltas, sums, strict=True):
            layer.add_gradient(layer.read(x, self.buffers, "windows"), delta, dW, db)

    def add_direction_gradients(
        self, read: Sequence[np.ndarray], deltas: Sequence[np.ndarray], sums: Gradients
    ) -> None:
        """The same for directions, which meet no bias, through as many layers as have read them."""
        for layer, x, delta, (dW, _) in zip(self.layers, read, deltas, sums, strict=False):
            layer.add_gradient(x, delta, dW, None)


def all_windows(x: np.ndarray, field: Geometry) -> np.ndarray:
    """The fields of all output pixels of images (n, inputs): (n * positions, field)."""
    samples = np.repeat(np.arange(len(x)), field.positions)
    return some_windows(x, samples, np.tile(np.arange(field.positions), len(x)), field)


def some_windows(
    x: np.ndarray, samples: np.ndarray, positions: np.ndarray, field: Geometry
) -> np.ndarray:
    """The fields of some output pixels, each of one image: (r, field); 0 outside the image."""
    windows = np.empty((len(samples), field.window), x.dtype)
    _some_windows(x, samples, positions, windows, field)
    return windows


# Slices tell the compiler where a run ends: that is worth a factor of three in what follows.


@jit
def _copy_window(image, window, top, left, g):
    """Copy the window whose first pixel is (top, left); pixels outside the image are 0."""
    length, width = g.kernel_width * g.channels, g.width * g.channels
    left *= g.channels
    first, last = max(0, -top), min(g.kernel_height, g.height - top)
    begin = max(0, -left)
    end = max(begin, min(length, width - left))
    if begin > 0 or end < length or first > 0 or last < g.kernel_height:
        window[:] = 0
    for i in range(first, last):
        start = (top + i) * width + left
        source = image[start + begin : start + end]
        target = window[i * length + begin : i * length + end]
        for j in range(len(target)):
            target[j] = source[j]


@jit
def _windows(x, windows, g):
    """Copy what each output pixel looks at."""
    for n in range(x.shape[0]):
        for r in range(g.rows):
            for c in range(g.columns):
                window = windows[(n * g.rows + r) * g.columns + c]
                _copy_window(x[n], window, r * g.down - g.top, c * g.across - g.left, g)


@jit
def _some_windows(x, samples, positions, windows, g):
    """The same for some positions, each of one image."""
    for n in range(len(samples)):
        row, column = positions[n] // g.columns, positions[n] % g.columns
        top, left = row * g.down - g.top, column * g.across - g.left
        _copy_window(x[samples[n]], windows[n], top, left, g)


@jit
def _fold(windows, x, g):
    """The transpose of `_windows`: add every window back to its place in the image."""
    length, width = g.kernel_width * g.channels, g.width * g.channels
    x[:] = 0
    for n in range(x.shape[0]):
        image = x[n]
        for r in range(g.rows):
            top = r * g.down - g.top
            first, last = max(0, -top), min(g.kernel_height, g.height - top)
            for c in range(g.columns):
                window = windows[(n * g.rows + r) * g.columns + c]
                left = (c * g.across - g.left) * g.channels
                begin = max(0, -left)
                end = max(begin, min(length, width - left))
                for i in range(first, last):
                    start = (top + i) * width + left
                    target = image[start + begin : start + end]
                    source = window[i * length + begin : i * length + end]
                    for j in range(len(target)):
                        target[j] += source[j]


# One array that is read and written is quick; two that might overlap are not.


@jit
def _relu_in_place(f, b, mask):
    """Add b to f; mask where f > 0; and f = f * mask."""
    flat_mask = mask.reshape(f.shape)
    for n in range(f.shape[0]):
        for i in range(f.shape[1]):
            value = f[n, i] + b[i]
            flat_mask[n, i] = value > 0
            f[n, i] = 0 if value <= 0 else value  # NaN stays


@jit
def _relu(f, b, g, mask):
    """Add b to f; mask where f > 0; g = f * mask, another array than f."""
    flat_mask = mask.reshape(f.shape)
    for n in range(f.shape[0]):
        for i in range(f.shape[1]):
            value = f[n, i] + b[i]
            f[n, i] = value
            flat_mask[n, i] = value > 0
            g[n, i] = 0 if value <= 0 else value


@jit
def apply_mask(g, mask):
    """Multiply g by the mask."""
    for n in range(g.shape[0]):
        for i in range(g.shape[1]):
            value = g[n, i]
            g[n, i] = value if mask[n, i] else 0


@jit
def _apply_mask_and_add(g, mask, df):
    """Multiply g by the mask, then add."""
    for n in range(g.shape[0]):
        for i in range(g.shape[1]):
            value = g[n, i]
            g[n, i] = df[n, i] + (value if mask[n, i] else 0)
