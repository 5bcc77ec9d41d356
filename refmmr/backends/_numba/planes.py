"""A strided convolution of images with few channels, without windows.

The windows of such a convolution (`layers`) are short runs of numbers, and copying them takes
longer than the product.  Here the strides split an image into *planes*, one for each remainder of
row and column and each channel:

    plane[a, b][r, c] = x[r * down + a - top, c * across + b - left],    0 outside the image.

Tap (i, j) of a filter reads plane ``(i % down, j % across)`` from row ``i // down`` and column
``j // across`` on, pixel by pixel in the order of the output.  So an output channel is a sum of
weights times *runs* of planes, each as long as an image; its rows have the length of a plane's, and
what is in excess is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Conv, Layer

MOST_CHANNELS = 4
"""Channels of an image at most: the windows of more are long enough to be copied quickly."""


class Split(NamedTuple):
    """Sizes of an image (height, width, channels), of its planes, and of the output."""

    height: int
    width: int
    channels: int
    down: int  # strides
    across: int
    top: int  # padding
    left: int
    plane_rows: int
    plane_columns: int
    rows: int  # of the output image
    columns: int


def without_windows(layer: Layer) -> Layer:
    """The same layer as `PlaneConv` if that is faster: for passes without weight gradients."""
    if not isinstance(layer, Conv):
        return layer
    fits = layer.geometry.across > 1 and layer.geometry.channels <= MOST_CHANNELS
    return PlaneConv(layer) if fits else layer


class PlaneConv(Conv):
    """Twin of `Conv2d` without windows; it has no gradient with respect to the weights."""

    def __init__(self, conv: Conv) -> None:
        super().__init__(conv.W, conv.b, conv.geometry)
        g = conv.geometry
        pitch = g.columns + (g.kernel_width - 1) // g.across
        rows = g.rows + (g.kernel_height - 1) // g.down
        self.split = Split(
            g.height, g.width, g.channels, g.down, g.across, g.top, g.left,
            rows, pitch, g.rows, g.columns,
        )  # fmt: skip
        i, j, channel = np.indices((g.kernel_height, g.kernel_width, g.channels)).reshape(3, -1)
        plane = (i % g.down * g.across + j % g.across) * g.channels + channel
        # Filters and taps in fours, as `_add_runs` takes them; the additional weights are 0.
        shape = len(self.W), len(plane)
        self.weights = np.pad(self.W, [(0, -size % 4) for size in shape])
        starts = plane * rows * pitch + i // g.down * pitch + j // g.across
        self.plane_starts = np.pad(starts, (0, -len(starts) % 4))
        self.output_starts = np.arange(len(self.weights)) * (g.rows * pitch)
        self.plane_numbers = g.down * g.across * g.channels * rows * pitch
        self.output_numbers = len(self.weights) * g.rows * pitch
        self.transposed_weights = np.ascontiguousarray(self.weights.T)

    def operand(self, x: np.ndarray, buffers: Buffers, name: object) -> np.ndarray:
        """The images themselves, (n, inputs)."""
        return x

    def linear(self, operand: np.ndarray, out: np.ndarray) -> None:
        """``W x`` of each image: (n, inputs) to `out`, (n, outputs)."""
        runs = self.weights, self.plane_starts, self.output_starts
        planes = np.zeros(self.plane_numbers, out.dtype)
        channels = np.empty(self.output_numbers, out.dtype)
        _forward(operand, *runs, self.split, planes, channels, out.reshape(-1, len(self.W)))

    def transpose(self, g: np.ndarray, out: np.ndarray, buffers: Buffers) -> None:
        """``W^T g`` of each image: (n, outputs) to `out`, (n, inputs)."""
        runs = self.transposed_weights, self.output_starts, self.plane_starts
        planes = np.empty(self.plane_numbers, out.dtype)
        channels = np.zeros(self.output_numbers, out.dtype)
        _backward(g.reshape(-1, len(self.W)), *runs, self.split, planes, channels, out)


@jit
def _forward(x, W, inputs, outputs, split, planes, channels, y):
    """Twin of `Conv2d.linear`.

    x: (n, numbers of an image).  W, inputs, outputs: see `_add_runs`.  planes: 0 before.  channels:
    the output image channel by channel.  y: (n * positions, channels out), the result.
    """
    pitch, positions = split.plane_columns, split.rows * split.columns
    size = split.rows * pitch
    for n in range(len(x)):
        _copy_planes(x[n], planes, split, True)
        channels[:] = 0
        _add_runs(W, inputs, outputs, planes, channels, (split.rows - 1) * pitch + split.columns)
        for r in range(split.rows):
            for c in range(split.columns):
                pixel, at = y[n * positions + r * split.columns + c], r * pitch + c
                for o in range(len(pixel)):
                    pixel[o] = channels[o * size + at]


@jit
def _backward(g, W, inputs, outputs, split, planes, channels, x):
    """Twin of `Conv2d.transpose`.

    g: (n * positions, channels out).  W, inputs, outputs: see `_add_runs`.  planes: of one image.
    channels: 0 before.  x: (n, numbers of an image), the result.
    """
    pitch, positions = split.plane_columns, split.rows * split.columns
    size = split.rows * pitch
    for n in range(len(x)):
        for r in range(split.rows):
            for c in range(split.columns):
                pixel, at = g[n * positions + r * split.columns + c], r * pitch + c
                for o in range(len(pixel)):
                    channels[o * size + at] = pixel[o]
        planes[:] = 0
        _add_runs(W, inputs, outputs, channels, planes, (split.rows - 1) * pitch + split.columns)
        x[n] = 0  # where no tap reads it
        _copy_planes(x[n], planes, split, False)


@jit
def _add_runs(W, inputs, outputs, source, target, length):
    """Add ``W[o, t]`` times run t of `source` to run o of `target`, for all o and t.

    W: (m, k), multiples of 4.  inputs: (k,), outputs: (m,), where the runs start.  Eight products
    for six loads and two stores: one at a time would be limited by these.
    """
    for o in range(0, len(outputs), 2):
        a = target[outputs[o] : outputs[o] + length]
        b = target[outputs[o + 1] : outputs[o + 1] + length]
        for t in range(0, len(inputs), 4):
            x0 = source[inputs[t] : inputs[t] + length]
            x1 = source[inputs[t + 1] : inputs[t + 1] + length]
            x2 = source[inputs[t + 2] : inputs[t + 2] + length]
            x3 = source[inputs[t + 3] : inputs[t + 3] + length]
            v0, v1, v2, v3 = W[o, t], W[o, t + 1], W[o, t + 2], W[o, t + 3]
            w0, w1, w2, w3 = W[o + 1, t], W[o + 1, t + 1], W[o + 1, t + 2], W[o + 1, t + 3]
            for q in range(length):
                p0, p1, p2, p3 = x0[q], x1[q], x2[q], x3[q]
                a[q] += v0 * p0 + v1 * p1 + v2 * p2 + v3 * p3
                b[q] += w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3


@jit
def _copy_planes(x, planes, split, forward):
    """Between an image (numbers,) and its planes: to the planes, or back from them."""
    channels, pitch, step = split.channels, split.plane_columns, split.across * split.channels
    size, line = split.plane_rows * pitch, split.width * split.channels
    for a in range(split.down):
        # The rows r of which r * down + a - top is a row of the image; columns likewise.
        low = max(0, (split.top - a + split.down - 1) // split.down)
        high = min(split.plane_rows, (split.height + split.top - a - 1) // split.down + 1)
        for b in range(split.across):
            left = max(0, (split.left - b + split.across - 1) // split.across)
            right = min(pitch, (split.width + split.left - b - 1) // split.across + 1)
            for channel in range(channels):
                plane = planes[((a * split.across + b) * channels + channel) * size :]
                for r in range(low, high):
                    first = (r * split.down + a - split.top) * line
                    first += (left * split.across + b - split.left) * channels + channel
                    pixels, run = x[first:], plane[r * pitch + left : r * pitch + max(left, right)]
                    if forward:
                        for c in range(len(run)):
                            run[c] = pixels[c * step]
                    else:
                        for c in range(len(run)):
                            pixels[c * step] = run[c]
