"""The second convolution's patches: products of the first one's masks, forward and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Conv, Geometry


class SecondLayer:
    """Patches of the second convolution, which are linear in the mask of the first.

    A number of the patch is the sum, over the filter taps (and channels) that look at it, of mask
    times second weight times first weight.  Numbers seen by the same taps form a *block*; the
    weights of each block are one matrix, and the masks of all positions times it are one product.
    """

    def __init__(self, convs: Sequence[Conv], fields: Sequence[Geometry]) -> None:
        first, second = (conv.geometry for conv in convs[:2])
        patch = fields[0]
        down = _spans(patch.kernel_height, second.kernel_height, first.down, first.kernel_height)
        across = _spans(patch.kernel_width, second.kernel_width, first.across, first.kernel_width)
        grid = np.arange(patch.window).reshape(patch.kernel_height, patch.kernel_width, -1)
        taps, pixels = [], []
        self.weights: list[np.ndarray] = []
        self.convs = convs[:2]
        self.shapes = [
            (len(conv.W), *geometry)
            for conv, geometry in (
                (convs[0], (first.kernel_height, first.kernel_width, first.channels)),
                (convs[1], (second.kernel_height, second.kernel_width, second.channels)),
            )
        ]
        self.spans = []
        for rows, row_taps in down:
            for columns, column_taps in across:
                pixels.append(grid[np.ix_(rows, columns)].ravel())
                taps.append((row_taps.start, row_taps.stop, column_taps.start, column_taps.stop))
                self.spans.append((rows, columns, row_taps, column_taps))
                self.weights.append(_block_weights(convs, rows, columns, row_taps, column_taps))
        self.pixels = np.concatenate(pixels)
        self.kernel = second.kernel_height, second.kernel_width, second.channels
        self.sizes = [len(block) for block in pixels]
        self.taps = np.array(taps)
        self._ends = np.cumsum([0, *(len(weights) for weights in self.weights)])

    def multiply(self, seen: np.ndarray, rows: np.ndarray, buffers: Buffers) -> None:
        """Masks (m, window of the second layer) to patches (m, patch, channels)."""
        masks = buffers.take("blocks", len(rows) * self._ends[-1])
        _gather_blocks(seen.reshape(len(rows), *self.kernel), self.taps, self._ends, masks)
        for weights, block, out in self._blocks(masks, rows):
            np.matmul(block, weights, out=out)

    def add_gradient(self, drows: np.ndarray, total: np.ndarray, buffers: Buffers) -> None:
        """Add to `total`, see `zeros`, what the patches of the last `multiply` feel."""
        masks = buffers.take("blocks", len(drows) * self._ends[-1])
        dweights = buffers.take("dweights", total.size)
        parts = self._split(dweights)
        for (_, block, part), out in zip(self._blocks(masks, drows), parts, strict=True):
            np.matmul(block.T, part, out=out)
        total += dweights

    def zeros(self) -> np.ndarray:
        """A gradient to the weights of all blocks end to end, to add to."""
        return np.zeros(sum(weights.size for weights in self.weights), self.weights[0].dtype)

    def _split(self, flat: np.ndarray) -> list[np.ndarray]:
        """The part of each block, of the shape of its weights."""
        ends = np.cumsum([weights.size for weights in self.weights])
        parts = np.split(flat, ends[:-1])
        return [part.reshape(w.shape) for part, w in zip(parts, self.weights, strict=True)]

    def add_to_filters(self, total: np.ndarray, dW1: np.ndarray, dW2: np.ndarray) -> None:
        """Carry the gradient to the blocks' weights on to the filters of the two layers."""
        (W1, dW1), (W2, dW2) = (
            [filters.reshape(self.shapes[k]) for filters in pair]
            for k, pair in enumerate(((self.convs[0].W, dW1), (self.convs[1].W, dW2)))
        )
        down, across = self.convs[0].geometry.down, self.convs[0].geometry.across
        for dweights, (rows, columns, row_taps, column_taps) in zip(
            self._split(total), self.spans, strict=True
        ):
            shape = W1.shape[0], len(rows), len(columns), W1.shape[3], W2.shape[0]
            parts = dweights.reshape(-1, *shape)
            taps = [(i, j) for i in row_taps for j in column_taps]
            for (i, j), part in zip(taps, parts, strict=True):
                here = np.ix_(np.arange(shape[0]), rows - i * down, columns - j * across)
                dW2[:, i, j] += np.einsum("cabxo,cabx->oc", part, W1[here])
                dW1[here] += np.einsum("cabxo,oc->cabx", part, W2[:, i, j])

    def _blocks(self, masks, rows):
        """For each block its weights, its masks and its part of the patches, as matrices."""
        m, start = len(rows), 0
        for i, (weights, size) in enumerate(zip(self.weights, self.sizes, strict=True)):
            block = masks[m * self._ends[i] : m * self._ends[i + 1]].reshape(m, -1)
            yield weights, block, rows[:, start : start + size].reshape(m, -1)
            start += size


def _spans(size: int, n_taps: int, stride: int, kernel: int) -> list[tuple[np.ndarray, range]]:
    """Coordinates of a patch, grouped by the interval of taps whose windows cover them."""
    groups: dict[range, list[int]] = {}
    for a in range(size):
        taps = [t for t in range(n_taps) if 0 <= a - t * stride < kernel]
        span = range(taps[0], taps[-1] + 1) if taps else range(0)
        groups.setdefault(span, []).append(a)
    return [(np.array(members), span) for span, members in groups.items()]


def _block_weights(convs, rows, columns, row_taps, column_taps):
    """(taps * channels, numbers * output channels) of a block."""
    (W1, g1), (W2, g2) = ((conv.W, conv.geometry) for conv in convs[:2])
    W1 = W1.reshape(len(W1), g1.kernel_height, g1.kernel_width, g1.channels)
    W2 = W2.reshape(len(W2), g2.kernel_height, g2.kernel_width, g2.channels)
    weights = [
        # Channel of the first layer, then the numbers of the block, then the output channel.
        np.einsum(
            "cabx,oc->cabxo",
            W1[:, rows - i * g1.down][:, :, columns - j * g1.across],
            W2[:, i, j],
        ).reshape(len(W1), -1)
        for i in row_taps
        for j in column_taps
    ]
    size = len(rows) * len(columns) * g1.channels * len(W2)
    return np.concatenate([np.zeros((0, size), W1.dtype), *weights])


@jit
def _gather_blocks(seen, taps, ends, masks):
    """The masks of each block's rows and columns of taps, (m, taps * channels), end to end."""
    m, channels = len(seen), seen.shape[3]
    for block in range(len(taps)):
        j = m * ends[block]
        for n in range(m):
            for a in range(taps[block, 0], taps[block, 1]):
                for b in range(taps[block, 2], taps[block, 3]):
                    for c in range(channels):
                        masks[j] = seen[n, a, b, c]
                        j += 1
