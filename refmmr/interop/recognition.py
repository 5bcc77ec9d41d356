"""Recognise a convolution in a sparse matrix.

A layer of a chain may have to compute several things at once: the units of an operator, and those
that carry other values through.  As matrices these are easy to put together; where all of them are
convolutions of the same image, the layer is one convolution with the channels of all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

__all__ = ["Block", "Convolution", "Rows", "recognise"]

MAX_WEIGHTS = 2**27
"""Largest number of weights of the filters: 1 GiB in float64."""
MAX_STRIDES = 16
"""Pairs of strides that are tried for a grid; the first is nearly always the one."""

Shape = tuple[int, ...]
Image = tuple[int, int, int]
ORDERS = ((0, 1, 2), (2, 0, 1))
"""Axes of channel, height and width in a value: NCHW and NHWC."""


class Rows(NamedTuple):
    """Rows of a layer: ``M x + offset`` of flattened arrays, and the shape of the result."""

    M: sparse.csr_array
    offset: np.ndarray
    shape: Shape


class Block(NamedTuple):
    """Rows as channels of an image: the row that computes each pixel, (channels, height, width)."""

    rows: np.ndarray


class Convolution(NamedTuple):
    """Filters that compute all rows, and the index of each row's result in the flat output."""

    W: np.ndarray
    b: np.ndarray
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    places: list[np.ndarray]


class _Taps(NamedTuple):
    """The distinct weights of filters: channels, and offsets from the pixel times the stride."""

    out: np.ndarray
    channel: np.ndarray
    dy: np.ndarray
    dx: np.ndarray
    weight: np.ndarray


def recognise(parts: Sequence[Rows], image: Image) -> Convolution | None:
    """The convolution of an image that computes all rows, or None where there is none.

    Parameters
    ----------
    parts : sequence of Rows
        Their matrices read the image, flattened from ``(channels, height, width)``.
    image : (channels, height, width)

    Returns
    -------
    Convolution or None
        Channels of the output are those of the first rows, then of the second, and so on; a value
        of a larger image than the others has a channel for each of its phases.
    """
    for grid in _grids(parts):
        options = [list(_blocks(part, grid)) for part in parts]
        if not all(options):
            continue
        for stride in _strides(image, grid):
            found = [_first(part, own, image, stride) for part, own in zip(parts, options,
                     strict=True)]  # fmt: skip
            if all(found):
                return _joined(parts, [f for f in found if f], image, grid, stride)
    return None


def _grids(parts: Sequence[Rows]) -> list[tuple[int, int]]:
    """Heights and widths that the output may have: those of NCHW first, and of each the smallest.

    Not of a single pixel, which a dense layer serves as well.
    """
    found: dict[tuple[int, int], None] = {}
    for order in ORDERS:
        shapes = [shape for part in parts if (shape := _image(part.shape))]
        grids = {(shape[order[1]], shape[order[2]]) for shape in shapes}
        found.update(dict.fromkeys(sorted(grids - {(1, 1)}, key=math.prod)))
    return list(found)


def _image(shape: Shape) -> Shape | None:
    """The three axes of an image, without those of size 1 in front."""
    three = shape[-3:]
    return three if len(three) == 3 and math.prod(three) == math.prod(shape) else None


def _blocks(part: Rows, grid: tuple[int, int]) -> Iterator[Block]:
    """The ways in which rows are channels of images of the grid."""
    shape = _image(part.shape)
    if shape is None:
        return
    numbers = np.arange(math.prod(shape)).reshape(shape)
    for order in ORDERS:
        rows = numbers.transpose(order)
        channels, height, width = rows.shape
        a, b = height // grid[0], width // grid[1]
        if (a * grid[0], b * grid[1]) == (height, width):
            phases = rows.reshape(channels, grid[0], a, grid[1], b).transpose(0, 2, 4, 1, 3)
            yield Block(phases.reshape(-1, *grid))


def _strides(image: Image, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Strides to try, the likely ones first."""
    sides = [
        range(1, -(-size // cells) + 1) if cells > 1 else range(1, 2)
        for size, cells in zip(image[1:], grid, strict=True)
    ]

    def unlikely(stride: tuple[int, int]) -> float:
        return sum(
            abs(step - size / cells)
            for step, size, cells in zip(stride, image[1:], grid, strict=True)
        )

    return sorted(itertools.product(sides[0], sides[1]), key=unlikely)[:MAX_STRIDES]


def _first(
    part: Rows, options: Sequence[Block], image: Image, stride: tuple[int, int]
) -> tuple[Block, _Taps] | None:
    """The first of the ways in which the rows are a convolution."""
    for block in options:
        offsets = part.offset[block.rows]
        if (offsets == offsets[:, :1, :1]).all():
            taps = _taps(part.M, block, image, stride)
            if taps is not None:
                return block, taps
    return None


def _taps(M: sparse.csr_array, block: Block, image: Image, stride: tuple[int, int]) -> _Taps | None:
    """The weights of filters, if each is the same for all pixels of the output.

    An entry in the row of output pixel (i, j) and the column of image pixel (y, x) belongs to the
    tap with offsets ``(y - stride i, x - stride j)``.
    """
    _, height, width = block.rows.shape
    place = np.empty(M.shape[0], np.int64)
    place[block.rows.reshape(-1)] = np.arange(block.rows.size)
    row = place[np.repeat(np.arange(M.shape[0]), np.diff(M.indptr))]
    out, i, j = np.unravel_index(row, block.rows.shape)
    channel, y, x = np.unravel_index(M.indices, image)
    dy, dx = y - stride[0] * i, x - stride[1] * j
    if not len(dy):
        nothing = np.zeros(0, int)
        return _Taps(nothing, nothing, nothing, nothing, np.zeros(0))
    spans = int(np.ptp(dy)) + 1, int(np.ptp(dx)) + 1
    key = ((out * image[0] + channel) * spans[0] + dy - dy.min()) * spans[1] + dx - dx.min()
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    weight, first = M.data[order], order[starts]
    if (weight != np.repeat(weight[starts], counts)).any():
        return None
    dy, dx = dy[first], dx[first]
    # Every pixel of the output that has the tap's pixel inside the image has to have the entry.
    expected = _reading(dy, height, image[1], stride[0]) * _reading(dx, width, image[2], stride[1])
    if (counts != expected).any():
        return None
    return _Taps(out[first], channel[first], dy, dx, weight[starts])


def _reading(offsets: np.ndarray, outputs: int, inputs: int, stride: int) -> np.ndarray:
    """For each offset, the number of outputs i with ``0 <= stride i + offset < inputs``."""
    low = np.maximum(0, -(offsets // stride))
    high = np.minimum(outputs - 1, (inputs - 1 - offsets) // stride)
    counts: np.ndarray = np.maximum(high - low + 1, 0)
    return counts


def _joined(
    parts: Sequence[Rows],
    found: Sequence[tuple[Block, _Taps]],
    image: Image,
    grid: tuple[int, int],
    stride: tuple[int, int],
) -> Convolution | None:
    """One convolution with the channels of all blocks."""
    before, after, kernel = [], [], []
    for axis in range(2):
        offsets = np.concatenate([(taps.dy, taps.dx)[axis] for _, taps in found] + [[0]])
        top = max(0, -int(offsets.min()))
        reach = (grid[axis] - 1) * stride[axis] - top
        size = max(int(offsets.max()) + 1 + top, image[axis + 1] - reach - stride[axis] + 1)
        before.append(top)
        kernel.append(size)
        after.append(max(0, reach + size - image[axis + 1]))
    channels = [len(block.rows) for block, _ in found]
    if sum(channels) * image[0] * math.prod(kernel) > MAX_WEIGHTS:
        return None
    W = np.zeros((sum(channels), image[0], *kernel))
    b = np.zeros(len(W))
    places = []
    start = 0
    for part, (block, taps), n in zip(parts, found, channels, strict=True):
        W[start + taps.out, taps.channel, taps.dy + before[0], taps.dx + before[1]] = taps.weight
        b[start : start + n] = part.offset[block.rows[:, 0, 0]]
        place = np.empty(block.rows.size, np.int64)
        place[block.rows.reshape(-1)] = start * math.prod(grid) + np.arange(block.rows.size)
        places.append(place)
        start += n
    padding = (before[0], after[0]), (before[1], after[1])
    return Convolution(W, b, stride, padding, places)
