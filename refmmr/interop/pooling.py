"""Pooling and the transposed convolution, as operations of a graph.

average pooling     an affine map
max-pooling         the maximum of the entries of each window, pair by pair: for windows of k
                    entries and n of them about 2 k n units in ceil(log2 k) layers (a convolution
                    with a ReLU before it has k n units where windows do not overlap)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from refmmr.interop.graph import MAX_UNITS, Graph
from refmmr.interop.linear_maps import MAX_ENTRIES, Matrix, inside
from refmmr.interop.values import Affine, Value

__all__ = ["Windows", "average_pool", "conv_transpose", "max_pool", "mean"]

Pair = tuple[int, int]


class Windows(NamedTuple):
    """The windows of a pooling."""

    size: Pair  # height, width
    stride: Pair
    pads: tuple[Pair, Pair] = ((0, 0), (0, 0))  # (top, bottom), (left, right)
    dilation: Pair = (1, 1)
    ceil: bool = False  # whether the last window may begin inside and end outside

    def taps(self, axis: int, pixels: int) -> np.ndarray:
        """Pixels that each window reads along an axis, ``(windows, size)``; some are outside."""
        before, after = self.pads[axis]
        reach = (self.size[axis] - 1) * self.dilation[axis] + 1
        room = pixels + before + after - reach
        stride = self.stride[axis]
        windows = (-(-room // stride) if self.ceil else room // stride) + 1
        if self.ceil and (windows - 1) * stride >= pixels + before:
            windows -= 1  # it would begin outside
        first = np.arange(max(windows, 0))[:, None] * stride - before
        return first + np.arange(self.size[axis]) * self.dilation[axis]


def max_pool(graph: Graph, x: Value, windows: Windows, where: str) -> Value:
    """The maximum of each window of an image; pads do not count."""
    rows, columns = _pixels(graph, x, windows, where)
    channels, height, width = graph.image(x, where)
    shape = (*x.shape[:-3], channels, len(rows), len(columns))
    if math.prod(shape) * rows.shape[1] * columns.shape[1] > MAX_UNITS:
        graph.refuse(where, f"expected windows of at most {MAX_UNITS} pixels in all, got more")
    # A 0 beside entries of at least 0 changes no maximum; else a pixel of the window is repeated.
    if not x.nonnegative:
        rows, columns = _clamped(rows, height), _clamped(columns, width)
    rows = np.where((rows >= 0) & (rows < height), rows, -1)
    columns = np.where((columns >= 0) & (columns < width), columns, -1)
    offset = np.arange(channels)[:, None, None] * height * width
    taps = []
    for row in rows.T:
        for column in columns.T:
            pixels = offset + row[:, None] * width + column
            outside = (row[:, None] < 0) | (column < 0)
            taps.append(graph.pick(x, np.where(outside, -1, pixels).reshape(shape), where))
    return graph.maximum(taps, where, "MaxPool")


def average_pool(
    graph: Graph,
    x: Value,
    windows: Windows,
    where: str,
    count_pads: bool = False,
    divisor: int | None = None,
) -> Affine:
    """The mean of each window of an image; pads count as zeros, or do not count."""
    rows, columns = _pixels(graph, x, windows, where)
    channels, height, width = graph.image(x, where)
    pooled = [_sums(rows, height), _sums(columns, width)]
    entries = channels * pooled[0].nnz * pooled[1].nnz
    if entries > MAX_ENTRIES:
        graph.refuse(where, f"expected at most {MAX_ENTRIES} entries of a map, got {entries}")
    image = sparse.kron(pooled[0], pooled[1])
    counts = np.asarray(image.sum(axis=1)).reshape(-1)
    if count_pads:
        # Pads count, but not what `ceil` adds behind them.
        inside_pads = [
            (taps < size + after).sum(axis=1)
            for taps, size, (_, after) in zip(
                (rows, columns), (height, width), windows.pads, strict=True
            )
        ]
        counts = np.outer(*inside_pads).reshape(-1)
    if divisor is not None:
        counts = np.full_like(counts, divisor)
    scaled = sparse.diags_array(1 / counts) @ sparse.csr_array(image)
    whole = sparse.csr_array(sparse.kron(sparse.eye_array(channels), scaled))
    shape = (*x.shape[:-3], channels, len(rows), len(columns))
    return graph.affine([(x, Matrix(whole))], shape, where)


def mean(
    graph: Graph, x: Value, axes: tuple[int, ...], keep: bool, where: str, total: bool = False
) -> Affine:
    """The mean over axes, or the sum where `total`."""
    kept = np.zeros([1 if k in axes else size for k, size in enumerate(x.shape)])
    group = np.arange(kept.size).reshape(kept.shape) + np.zeros(x.shape, np.int64)
    factor = 1.0 if total else kept.size / x.size
    M = sparse.csr_array(
        (np.full(x.size, factor), (group.reshape(-1), np.arange(x.size))), (kept.size, x.size)
    )
    shape = kept.shape if keep else tuple(size for k, size in enumerate(x.shape) if k not in axes)
    return graph.affine([(x, Matrix(M))], shape, where)


def conv_transpose(
    graph: Graph,
    x: Value,
    W: ArrayLike,
    b: ArrayLike,
    where: str,
    stride: Pair,
    pads: tuple[Pair, Pair],
    output: Pair,
) -> Affine:
    """The transpose of a convolution: W (n_in, n_out, kernel_height, kernel_width), b (n_out,).

    Pixel y of the input adds ``W[i]`` to pixel ``stride y + i - top`` of the output, whose size is
    `output`.
    """
    W, b = graph.numbers(W, where, "W").astype(np.float64), graph.numbers(b, where, "b")
    channels, height, width = graph.image(x, where, W.shape[0])
    n_out, taps = W.shape[1], math.prod(W.shape[2:])
    shape = (n_out, *output)
    entries = height * width * taps * channels * n_out
    if entries > MAX_ENTRIES or min(output) < 1 or math.prod(shape) > MAX_UNITS:
        graph.refuse(
            where,
            f"expected an output of at most {MAX_UNITS} units, from at most {MAX_ENTRIES} "
            f"products, got shape {shape} and {entries}",
        )
    whole = sparse.csr_array((math.prod(shape), x.size))
    for i, j in np.ndindex(*W.shape[2:]):
        y, row = inside(height, output[0], stride[0], i - pads[0][0])
        z, column = inside(width, output[1], stride[1], j - pads[1][0])
        down = sparse.csr_array((np.ones(len(y)), (row, y)), (output[0], height))
        across = sparse.csr_array((np.ones(len(z)), (column, z)), (output[1], width))
        whole = whole + sparse.kron(W[:, :, i, j].T, sparse.kron(down, across))
    return graph.affine(
        [(x, Matrix(sparse.csr_array(whole)))], (*x.shape[:-3], *shape), where, b[:, None, None]
    )


def _pixels(graph: Graph, x: Value, windows: Windows, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of each window along both axes; each window has one inside the image."""
    _, height, width = graph.image(x, where)
    for axis, pixels in enumerate((height, width)):
        padded = pixels + sum(windows.pads[axis])
        if padded * windows.size[axis] > MAX_UNITS:
            graph.refuse(where, f"expected at most {MAX_UNITS} units with pads, got more")
    rows, columns = windows.taps(0, height), windows.taps(1, width)
    for taps, pixels in ((rows, height), (columns, width)):
        if not taps.size or not ((taps >= 0) & (taps < pixels)).any(axis=1).all():
            graph.refuse(
                where,
                f"expected windows that all meet the image, got windows of {windows.size} with "
                f"pads {windows.pads} on {height} x {width}",
            )
    return rows, columns


def _clamped(taps: np.ndarray, pixels: int) -> np.ndarray:
    """The taps of each window, those outside of the image in place of the nearest one inside."""
    valid = (taps >= 0) & (taps < pixels)
    low = np.where(valid, taps, pixels).min(axis=1, keepdims=True)
    high = np.where(valid, taps, -1).max(axis=1, keepdims=True)
    return np.clip(taps, low, high)


def _sums(taps: np.ndarray, pixels: int) -> sparse.csr_array:
    """The matrix that sums the pixels of each window along an axis, ``(windows, pixels)``."""
    windows = np.broadcast_to(np.arange(len(taps))[:, None], taps.shape)
    valid = (taps >= 0) & (taps < pixels)
    return sparse.csr_array(
        (np.ones(valid.sum()), (windows[valid], taps[valid])), (len(taps), pixels)
    )
