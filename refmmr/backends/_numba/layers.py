"""Dense layers and convolutions as matrix products: twins of `refmmr.reference.layers`.

A layer is one product over the whole batch.  For a dense layer, x of shape (n, inputs),

    y = x W^T,    W: (outputs, inputs),

and for a convolution the rows of x are its *windows* (im2col), one per sample and output pixel:

    y = windows(x) W^T,    windows(x): (n * positions, window),    W: (output channels, window).

The transposed product gives a gradient for each window; the transpose of `windows` adds it back to
its place in the image (col2im).  Images are kept channel-last, ``(height, width, channels)``
flattened, so that a window is `kernel_height` contiguous runs of numbers.  Padding is not stored.

All kernels that read a `Geometry` are in this file, see `jit`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit


class Geometry(NamedTuple):
    """Sizes of a convolution."""

    height: int  # of the input image
    width: int
    channels: int
    rows: int  # of the output image
    columns: int
    kernel_height: int
    kernel_width: int
    down: int  # strides
    across: int
    top: int  # padding
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
    """Arrays that are allocated once and used again, by name."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._arrays: dict[object, np.ndarray] = {}

    def take(self, name: object, *shape: int, dtype: type | None = None) -> np.ndarray:
        """An uninitialised array of this shape; it overwrites the last one of this name."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, dtype or self.dtype)
        return self._arrays[name][:size].reshape(shape)


class Dense:
    """Twin of `Linear`: ``y = W x + b`` with W of shape (outputs, inputs), b of (outputs,)."""

    def __init__(self, W: np.ndarray, b: np.ndarray) -> None:
        self.W, self.b = np.ascontiguousarray(W), np.ascontiguousarray(b)
        self.outputs, self.inputs = W.shape
        # Numbers in the largest buffer, and multiplications, of one sample.
        self.buffer_size, self.products = self.outputs, W.size
        self._transposed = self.W.T

    def copy_transposed(self) -> None:
        """Store W^T contiguously: that pays where small batches are multiplied many times."""
        self._transposed = np.ascontiguousarray(self.W.T)

    def operand(self, x: np.ndarray, buffers: Buffers, name: object) -> np.ndarray:
        """The left factor of the product: x itself, (n, inputs)."""
        return x

    def linear(self, operand: np.ndarray, out: np.ndarray) -> None:
        """``W x`` of each sample: `operand` of x, to `out`, (n, outputs)."""
        np.matmul(operand, self._transposed, out=out)

    def transpose(self, g: np.ndarray, out: np.ndarray, buffers: Buffers) -> None:
        """``W^T g`` of each sample: (n, outputs) to `out`, (n, inputs)."""
        np.matmul(g, self.W, out=out)

    def add_gradient(
        self, operand: np.ndarray, g: np.ndarray, dW: np.ndarray, db: np.ndarray | None
    ) -> None:
        """Add ``sum g x^T`` to dW and ``sum g`` to db, over all samples: g is (n, outputs)."""
        dW += np.matmul(g.T, operand)
        if db is not None:
            db += g.sum(axis=0)


class Conv:
    """Twin of `Conv2d`: W of shape (output channels, window), b of (output channels,)."""

    def __init__(self, W: np.ndarray, b: np.ndarray, geometry: Geometry) -> None:
        self.W, self.b, self.geometry = np.ascontiguousarray(W), np.ascontiguousarray(b), geometry
        self.inputs, self.outputs = geometry.inputs, geometry.positions * len(W)
        # Numbers in the largest buffer, and multiplications, of one sample.
        self.buffer_size = max(self.outputs, geometry.positions * geometry.window)
        self.products = self.W.size * geometry.positions

    def operand(self, x: np.ndarray, buffers: Buffers, name: object) -> np.ndarray:
        """The left factor of the product: windows of x, (n, inputs) to (n * positions, window)."""
        windows = buffers.take(name, len(x) * self.geometry.positions, self.geometry.window)
        _gather_windows(x, windows, self.geometry)
        return windows

    def linear(self, operand: np.ndarray, out: np.ndarray) -> None:
        """``W x`` of each sample: `operand` of x, to `out`, (n, outputs)."""
        np.matmul(operand, self.W.T, out=out.reshape(len(operand), -1))

    def transpose(self, g: np.ndarray, out: np.ndarray, buffers: Buffers) -> None:
        """``W^T g`` of each sample: (n, outputs) to `out`, (n, inputs)."""
        g = g.reshape(-1, len(self.W))
        windows = np.matmul(g, self.W, out=buffers.take("windows", len(g), self.W.shape[1]))
        _scatter_windows(windows, out, self.geometry)

    def add_gradient(
        self, operand: np.ndarray, g: np.ndarray, dW: np.ndarray, db: np.ndarray | None
    ) -> None:
        """Add the gradient of ``sum g * (W x + b)`` to dW and db: g is (n, outputs)."""
        g = g.reshape(-1, len(self.W))
        dW += np.matmul(g.T, operand)
        if db is not None:
            db += g.sum(axis=0)


Layer = Dense | Conv


def all_windows(x: np.ndarray, field: Geometry) -> np.ndarray:
    """Windows of all output pixels of images (n, inputs): (n * positions, window)."""
    samples = np.repeat(np.arange(len(x)), field.positions)
    return some_windows(x, samples, np.tile(np.arange(field.positions), len(x)), field)


def some_windows(
    x: np.ndarray, samples: np.ndarray, positions: np.ndarray, field: Geometry
) -> np.ndarray:
    """Windows of some output pixels, each of one sample: (r,), (r,) to (r, window).

    0 outside the image.
    """
    windows = np.empty((len(samples), field.window), x.dtype)
    _gather_some_windows(x, samples, positions, windows, field)
    return windows


# The inner loops run over slices: with indices the compiler cannot tell that a run is contiguous,
# and they take three times as long.


@jit
def _copy_window(image, window, top, left, g):
    """Copy the window whose first pixel is (top, left); 0 outside the image.

    image: (inputs,).  window: (g.window,), the result.
    """
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
def _gather_windows(x, windows, g):
    """Windows of all output pixels, im2col: the twin of `Conv2d._windows`.

    x: (n, inputs).  windows: (n * positions, window), the result.
    """
    for n in range(x.shape[0]):
        for r in range(g.rows):
            for c in range(g.columns):
                window = windows[(n * g.rows + r) * g.columns + c]
                _copy_window(x[n], window, r * g.down - g.top, c * g.across - g.left, g)


@jit
def _gather_some_windows(x, samples, positions, windows, g):
    """Windows of some output pixels.

    x: (n, inputs).  samples, positions: (r,).  windows: (r, window), the result.
    """
    for n in range(len(samples)):
        row, column = positions[n] // g.columns, positions[n] % g.columns
        top, left = row * g.down - g.top, column * g.across - g.left
        _copy_window(x[samples[n]], windows[n], top, left, g)


@jit
def _scatter_windows(windows, x, g):
    """Add every window to its place in the image, col2im: the transpose of `_gather_windows`.

    windows: (n * positions, window).  x: (n, inputs), the result.
    """
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
