"""Rows of V of the second convolution, as patches that are linear in the masks of the first.

A unit of the second convolution, channel o, has a row of V that is zero outside its receptive
field, the *patch*.  Its entry at pixel a of the patch is

    v[a, o] = sum over taps t and channels c of  mask[t, c] * W_2[o, t, c] * W_1[c, a - stride * t],

where the taps t are the pixels of the second filter, and mask[t, c] says whether the unit of the
first convolution that tap t reads is active.  The sum has only the taps whose windows contain a.
Pixels that are in the windows of the same taps form a *group*; the products of the weights of a
group are one matrix, independent of the sample, of shape (taps * c, pixels * o).  So all patches of
all samples are one matrix product for each group: masks times weights.

A mask has only zeros and ones, so a product with it is a sum of rows of the matrix, and the sums of
any of four rows are sixteen vectors that can be known before ("the method of the Four Russians",
Arlazarov, Dinic, Kronrod, Faradzev 1970).  The masks of four channels make a *code* of four bits;
a patch is the sum of the vectors that the codes of its taps point to, a quarter of the additions.
The gradient with respect to the weights is the transpose: the gradient of a patch is added to the
vectors that its codes point to, and each weight gets the sum over the codes with its bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Conv, Geometry

CHUNK = 16
"""Channels whose codes are read together: four, so that the sum that a vector is added to is read
and written a quarter as often."""
BITS = (np.arange(16)[:, None] >> np.arange(4)) % 2
"""Of each code its four bits, (16, 4)."""


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
        # Per group the pixels times input channels, and the length of a vector.
        self._sizes = np.array([len(numbers) for numbers in members])
        self._lengths = self._sizes * len(second.W)
        self._taps = np.array(
            [
                (group.row_taps.start, group.row_taps.stop,
                 group.column_taps.start, group.column_taps.stop)
                for group in self.groups
            ]
        )  # fmt: skip
        self.chunks = -(-g2.channels // CHUNK)
        self._tables = np.concatenate([self._table(group.weights) for group in self.groups])
        # Where the filter begins at each position.
        row, column = np.divmod(np.arange(g2.positions), g2.columns)
        self._origins = row * g2.down - g2.top, column * g2.across - g2.left

    def _table(self, weights: np.ndarray) -> np.ndarray:
        """Sums of any of four rows: of each tap and chunk (4, 16, length), flat."""
        n_taps, channels = len(weights) // self.kernel[2], self.kernel[2]
        rows = np.zeros((n_taps, self.chunks * CHUNK, weights.shape[1]), weights.dtype)
        rows[:, :channels] = weights.reshape(n_taps, channels, weights.shape[1])
        return np.matmul(BITS.astype(weights.dtype), rows.reshape(-1, 4, weights.shape[1])).ravel()

    def patches(self, masks: np.ndarray, out: np.ndarray, buffers: Buffers) -> None:
        """Masks of the first convolution, (c, units), to `out`, (c, positions, patch, channels)."""
        codes = self._codes(masks, buffers)
        out = out.reshape(*out.shape[:2], -1)
        _add_vectors(codes, self._taps, self._lengths, self._origins, self._tables, out)

    def _codes(self, masks, buffers):
        """The codes of the masks, (c, height, width, 4 * chunks)."""
        g = self.convs[1].geometry
        codes = buffers.take(
            "codes", len(masks), g.height, g.width, 4 * self.chunks, dtype=np.uint8
        )
        shape = len(masks) * g.height * g.width, -1
        _encode(masks.reshape(shape), codes.reshape(shape))
        return codes

    def zeros(self) -> np.ndarray:
        """A gradient with respect to the tables, to add to."""
        return np.zeros_like(self._tables)

    def add_gradient(
        self, masks: np.ndarray, dpatches: np.ndarray, total: np.ndarray, buffers: Buffers
    ) -> None:
        """Add the gradient with respect to the tables to `total`, see `zeros`.

        `dpatches`, (c, positions, patch, channels), is that with respect to the `patches` of these
        masks.
        """
        codes = self._codes(masks, buffers)
        dpatches = dpatches.reshape(*dpatches.shape[:2], -1)
        _add_to_vectors(codes, self._taps, self._lengths, self._origins, dpatches, total)

    def add_to_filters(self, total: np.ndarray, dW1: np.ndarray, dW2: np.ndarray) -> None:
        """Add the gradients with respect to both filters, from that of the tables.

        Each weight of a group is a product ``W_1 * W_2``; the product rule gives both.
        """
        W1, W2 = self.filters
        dW1, dW2 = _filters(self.convs[0], dW1), _filters(self.convs[1], dW2)
        down, across = self.convs[0].geometry.down, self.convs[0].geometry.across
        for dweights, group in zip(self._weight_gradients(total), self.groups, strict=True):
            rows, columns = group.rows, group.columns
            shape = W1.shape[0], len(rows), len(columns), W1.shape[3], W2.shape[0]
            parts = dweights.reshape(-1, *shape)
            taps = [(i, j) for i in group.row_taps for j in group.column_taps]
            for (i, j), part in zip(taps, parts, strict=True):
                here = np.s_[:, _interval(rows - i * down), _interval(columns - j * across)]
                dW2[:, i, j] += np.einsum("cabxo,cabx->oc", part, W1[here])
                dW1[here] += np.einsum("cabxo,oc->cabx", part, W2[:, i, j])

    def _weight_gradients(self, dtables: np.ndarray) -> Iterator[np.ndarray]:
        """Gradient with respect to the weights of each group, from that of the tables."""
        start = 0
        for group, length in zip(self.groups, self._lengths.tolist(), strict=True):
            n_taps = len(group.row_taps) * len(group.column_taps)
            stop = start + 4 * CHUNK * self.chunks * n_taps * length
            vectors = dtables[start:stop].reshape(-1, 16, length)
            rows = np.matmul(BITS.T.astype(dtables.dtype), vectors)
            rows = rows.reshape(n_taps, self.chunks * CHUNK, length)[:, : self.kernel[2]]
            yield rows.reshape(group.weights.shape)
            start = stop


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


def _interval(coordinates):
    """Consecutive coordinates as a slice, as those of a group with taps are."""
    return slice(coordinates[0], coordinates[-1] + 1)


def _group_weights(filters, g1, rows, columns, row_taps, column_taps):
    """``W_1[c, a - stride * t] * W_2[o, t, c]``: (taps * channels c, pixels a * o)."""
    W1, W2 = filters
    weights = [
        np.einsum(
            "cabx,oc->cabxo",
            W1[:, _interval(rows - i * g1.down), _interval(columns - j * g1.across)],
            W2[:, i, j],
        ).reshape(len(W1), -1)
        for i in row_taps
        for j in column_taps
    ]
    size = len(rows) * len(columns) * g1.channels * len(W2)
    return np.concatenate([np.zeros((0, size), W1.dtype), *weights])


@jit
def _encode(masks, codes):
    """Codes of four channels each: masks (n, channels), codes (n, 4 * chunks), the result."""
    for n in range(len(masks)):
        codes[n] = 0
        for channel in range(masks.shape[1]):
            codes[n, channel // 4] |= masks[n, channel] << channel % 4


@jit
def _add_vectors(codes, taps, lengths, origins, tables, out):
    """The patches: of each group the sum over taps and channels of the vectors of their codes.

    codes: (c, height, width, 4 * chunks).  taps: (groups, 4), first and last + 1 row and column of
    each group's taps.  lengths: (groups,), of its vectors.  origins: row and column where the
    second filter begins, (positions,) each.  tables: flat, of each group, tap and chunk
    (4, 16, length).  out: (c, positions, sum of the lengths), the result.
    """
    ys, xs = origins
    start = begin = 0
    out[:] = 0
    for group in range(len(taps)):
        length = lengths[group]
        for a in range(taps[group, 0], taps[group, 1]):
            for b in range(taps[group, 2], taps[group, 3]):
                for chunk in range(codes.shape[3] // 4):
                    table = tables[start : start + 64 * length].reshape(4, 16, length)
                    start += 64 * length
                    for n in range(len(codes)):
                        for q in range(len(ys)):
                            y, x = ys[q] + a, xs[q] + b
                            if 0 <= y < codes.shape[1] and 0 <= x < codes.shape[2]:
                                code = codes[n, y, x, 4 * chunk : 4 * chunk + 4]
                                v0, v1 = table[0, code[0]], table[1, code[1]]
                                v2, v3 = table[2, code[2]], table[3, code[3]]
                                target = out[n, q, begin : begin + length]
                                for u in range(length):
                                    target[u] += (v0[u] + v1[u]) + (v2[u] + v3[u])
        begin += length


@jit
def _add_to_vectors(codes, taps, lengths, origins, dpatches, dtables):
    """Add the gradient of the patches to the vectors of their codes, in `dtables`.

    The transpose of `_add_vectors`, whose shapes it has.
    """
    ys, xs = origins
    start = begin = 0
    for group in range(len(taps)):
        length = lengths[group]
        for a in range(taps[group, 0], taps[group, 1]):
            for b in range(taps[group, 2], taps[group, 3]):
                for chunk in range(codes.shape[3] // 4):
                    table = dtables[start : start + 64 * length].reshape(4, 16, length)
                    start += 64 * length
                    for n in range(len(codes)):
                        for q in range(len(ys)):
                            y, x = ys[q] + a, xs[q] + b
                            if 0 <= y < codes.shape[1] and 0 <= x < codes.shape[2]:
                                code = codes[n, y, x, 4 * chunk : 4 * chunk + 4]
                                source = dpatches[n, q, begin : begin + length]
                                # Two at a time: of more the compiler does not prove that they do
                                # not overlap, and it does not vectorise the loop.
                                v0, v1 = table[0, code[0]], table[1, code[1]]
                                for u in range(length):
                                    v0[u] += source[u]
                                    v1[u] += source[u]
                                v2, v3 = table[2, code[2]], table[3, code[3]]
                                for u in range(length):
                                    v2[u] += source[u]
                                    v3[u] += source[u]
        begin += length
