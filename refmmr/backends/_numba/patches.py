"""Rows of V of the second convolution, as patches that are linear in the masks of the first.

A unit of the second convolution, channel o, has a row of V that is zero outside its receptive
field, the *patch*.  Its entry at pixel a of the patch is

    v[a, o] = sum over taps t and channels c of  mask[t, c] * W_2[o, t, c] * W_1[c, a - stride * t],

where the taps t are the pixels of the second filter, and mask[t, c] says whether the unit of the
first convolution that tap t reads is active.  The sum has only the taps whose windows contain a.
Pixels that are in the windows of the same taps form a *group*; the products of the weights of a
group are one matrix, independent of the sample, of shape (taps * c, pixels * o).  So all patches of
all samples are one matrix product for each group: masks times weights.  The gradient with respect
to the weights is the transposed product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Conv, Geometry


class Group(NamedTuple):
    """Pixels of the patch that are in the windows of the same taps of the second filter."""

    rows: np.ndarray  # of the pixels
    columns: np.ndarray
    row_taps: range
    column_taps: range
    weights: np.ndarray  # (taps * channels of the first, pixels * input channels * output channels)


class SecondConv:
    """The patches of the second convolution, and their gradient.

    Attributes
    ----------
    order : ndarray of int, shape (window,)
        Group by group: entry j of a patch is number order[j] of the receptive field, channel-last.
    """

    def __init__(self, convs: Sequence[Conv], field: Geometry) -> None:
        self.convs = first, second = convs[0], convs[1]
        g1, g2 = first.geometry, second.geometry
        self.filters = [_filters(conv, conv.W) for conv in self.convs]
        self.kernel = g2.kernel_height, g2.kernel_width, g2.channels
        self.groups = [
            Group(rows, columns, row_taps, column_taps,
                  _group_weights(self.filters, g1, rows, columns, row_taps, column_taps))
            for rows, row_taps in _by_taps(
                field.kernel_height, g2.kernel_height, g1.down, g1.kernel_height
            )
            for columns, column_taps in _by_taps(
                field.kernel_width, g2.kernel_width, g1.across, g1.kernel_width
            )
        ]  # fmt: skip
        numbers = np.arange(field.window).reshape(field.kernel_height, field.kernel_width, -1)
        members = [numbers[np.ix_(group.rows, group.columns)].ravel() for group in self.groups]
        self.order = np.concatenate(members)
        self._sizes = [len(numbers) for numbers in members]
        self._taps = np.array(
            [
                (group.row_taps.start, group.row_taps.stop,
                 group.column_taps.start, group.column_taps.stop)
                for group in self.groups
            ]
        )  # fmt: skip
        self._ends = np.cumsum([0, *(len(group.weights) for group in self.groups)])

    def patches(self, masks: np.ndarray, out: np.ndarray, buffers: Buffers) -> None:
        """Masks in the windows of m units, (m, window of the second), to patches.

        `out` is (m, patch, output channels).
        """
        gathered = buffers.take("group masks", len(out) * self._ends[-1])
        _gather_group_masks(masks.reshape(len(out), *self.kernel), self._taps, self._ends, gathered)
        for group, group_masks, part in self._split_groups(gathered, out):
            np.matmul(group_masks, group.weights, out=part)

    def zeros(self) -> np.ndarray:
        """A gradient with respect to the weights of all groups, end to end, to add to."""
        return np.zeros(sum(group.weights.size for group in self.groups), self.convs[0].W.dtype)

    def add_gradient(self, dpatches: np.ndarray, total: np.ndarray, buffers: Buffers) -> None:
        """Add the gradient with respect to the weights of all groups to `total`, see `zeros`.

        `dpatches` is (m, patch, output channels), the gradient with respect to the last `patches`.
        """
        gathered = buffers.take("group masks", len(dpatches) * self._ends[-1])
        dweights = buffers.take("dweights", total.size)
        split = self._split_groups(gathered, dpatches)
        for (_, masks, part), out in zip(split, self._split_weights(dweights), strict=True):
            np.matmul(masks.T, part, out=out)
        total += dweights

    def add_to_filters(self, total: np.ndarray, dW1: np.ndarray, dW2: np.ndarray) -> None:
        """Add the gradients with respect to both filters, from that of the groups' weights.

        Each weight of a group is a product ``W_1 * W_2``; the product rule gives both.
        """
        W1, W2 = self.filters
        dW1, dW2 = _filters(self.convs[0], dW1), _filters(self.convs[1], dW2)
        down, across = self.convs[0].geometry.down, self.convs[0].geometry.across
        for dweights, group in zip(self._split_weights(total), self.groups, strict=True):
            rows, columns = group.rows, group.columns
            shape = W1.shape[0], len(rows), len(columns), W1.shape[3], W2.shape[0]
            parts = dweights.reshape(-1, *shape)
            taps = [(i, j) for i in group.row_taps for j in group.column_taps]
            for (i, j), part in zip(taps, parts, strict=True):
                here = np.ix_(np.arange(shape[0]), rows - i * down, columns - j * across)
                dW2[:, i, j] += np.einsum("cabxo,cabx->oc", part, W1[here])
                dW1[here] += np.einsum("cabxo,oc->cabx", part, W2[:, i, j])

    def _split_weights(self, flat: np.ndarray) -> list[np.ndarray]:
        """The part of each group, of the shape of its weights."""
        ends = np.cumsum([group.weights.size for group in self.groups])
        parts = np.split(flat, ends[:-1])
        return [part.reshape(g.weights.shape) for part, g in zip(parts, self.groups, strict=True)]

    def _split_groups(
        self, masks: np.ndarray, patches: np.ndarray
    ) -> Iterator[tuple[Group, np.ndarray, np.ndarray]]:
        """For each group its masks, (m, taps * channels), and its part of the patches, (m, ...)."""
        m, start = len(patches), 0
        for i, (group, size) in enumerate(zip(self.groups, self._sizes, strict=True)):
            group_masks = masks[m * self._ends[i] : m * self._ends[i + 1]].reshape(m, -1)
            yield group, group_masks, patches[:, start : start + size].reshape(m, -1)
            start += size


def _filters(conv: Conv, W: np.ndarray) -> np.ndarray:
    """The filters of a convolution, (output channels, height, width, input channels)."""
    g = conv.geometry
    return W.reshape(len(W), g.kernel_height, g.kernel_width, g.channels)


def _by_taps(size: int, n_taps: int, stride: int, kernel: int) -> list[tuple[np.ndarray, range]]:
    """Coordinates of a patch by the taps whose windows contain them: always an interval."""
    groups: dict[range, list[int]] = {}
    for a in range(size):
        taps = [t for t in range(n_taps) if 0 <= a - t * stride < kernel]
        interval = range(taps[0], taps[-1] + 1) if taps else range(0)
        groups.setdefault(interval, []).append(a)
    return [(np.array(members), interval) for interval, members in groups.items()]


def _group_weights(filters, g1, rows, columns, row_taps, column_taps):
    """``W_1[c, a - stride * t] * W_2[o, t, c]``: (taps * channels c, pixels a * o)."""
    W1, W2 = filters
    weights = [
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
def _gather_group_masks(masks, taps, ends, out):
    """The masks that each group's taps read, group after group.

    masks: (m, kernel height, kernel width, channels), the windows of the second convolution.  taps:
    (groups, 4), first and last + 1 row and column of each group's taps.  ends: (groups + 1,), a
    group's masks are ``out[m * ends[i] : m * ends[i + 1]]``, (m, taps * channels).
    """
    m, channels = len(masks), masks.shape[3]
    for group in range(len(taps)):
        j = m * ends[group]
        for n in range(m):
            for a in range(taps[group, 0], taps[group, 1]):
                for b in range(taps[group, 2], taps[group, 3]):
                    for c in range(channels):
                        out[j] = masks[n, a, b, c]
                        j += 1
