"""Rows of V: the gradients of all units and margins, at the cost of what is not zero in them.

A row of V is the unit's own weights carried back to the input, ``v = c W_1`` with ``c`` its
*coefficients* over the first layers' units.  The first layers, the *stem*, are what makes rows
cheap:

- a dense network's stem is W_1, the same for all samples: all coefficients times it, one product;
- a convolutional stem's rows are zero outside the unit's receptive field, so they are kept as
  *patches*.  A unit behind the stem adds up the patches that its coefficients ask for.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Conv, Dense, Geometry, Passes, all_windows
from refmmr.backends._numba.layout import Layout
from refmmr.backends._numba.patches import SecondLayer
from refmmr.reference.network import Gradients


class Stem(ABC):
    """What both kinds of stem have; only convolutions have fields, pixels and windows."""

    depth = 1
    fields: Sequence[list[Geometry]] = ()
    pixels: Sequence[np.ndarray] = ()
    windows: Sequence[Passes] = ()

    @abstractmethod
    def copy(self) -> Stem:
        """The same stem with memory of its own."""

    @abstractmethod
    def patches(self, k: int) -> np.ndarray:
        """Rows of a layer of the stem."""

    @abstractmethod
    def linearize(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows of the hidden layers of the stem behind the first, for c samples."""

    @abstractmethod
    def through_masks(self, masks: np.ndarray, name: object) -> np.ndarray:
        """Rows of the units of the layer behind, over what the masks (c, N) leave: (c, U, d)."""

    @abstractmethod
    def multiply(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """Rows of units with coefficients over the stem's last layer: (c, U, N) to (c, U, d)."""


class DenseStem(Stem):
    """The first layer of a dense network."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.W = layout.layers[0].W
        self.buffers = Buffers(layout.dtype)

    def copy(self) -> DenseStem:
        """The same stem with memory of its own."""
        return DenseStem(self.layout)

    def patches(self, k: int) -> np.ndarray:
        """Rows of the first layer, (1, units, d)."""
        return self.W[None]

    def linearize(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows of the hidden layers of the stem behind the first: there are none."""
        return []

    def through_masks(self, masks: np.ndarray, name: object) -> np.ndarray:
        """Rows of the units of the second layer, (c, U, d), for masks (c, N_1) of the first."""
        W = self.layout.layers[1].W
        coefficients = self.buffers.take("coefficients", len(masks), *W.shape)
        weights_through_masks(W, masks, coefficients)
        return self.multiply(coefficients, name)

    def multiply(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """Rows of units behind the stem: (c, U, N_1) to (c, U, d)."""
        c, units, n_inputs = coefficients.shape
        rows = self.buffers.take(name, c, units, self.W.shape[1])
        out = rows.reshape(c * units, rows.shape[2])
        np.matmul(coefficients.reshape(-1, n_inputs), self.W, out=out)
        return rows


class ConvStem(Stem):
    """The convolutions before the first dense layer.

    Patches of layer k are (c, positions, patch, channels); what lies outside the image is 0.
    `pixels[k]` says which number of the patch, channel-last, stands where.
    """

    def __init__(self, layout: Layout) -> None:
        self.dtype = layout.dtype
        self.convs = [layer for layer in layout.layers if isinstance(layer, Conv)]
        self.depth = len(self.convs)
        # Gradients go back through patches: `project` and `add_patch_gradients`.
        self.keeps_patches = self.depth == 2
        self.buffers = Buffers(layout.dtype)
        self.fields = [receptive_fields(self.convs, k) for k in range(self.depth)]
        self.windows = [window_passes(self.convs, self.fields[k], layout.dtype)
                        for k in range(self.depth)]  # fmt: skip
        self.pixels = [np.arange(fields[0].window) for fields in self.fields]
        if self.depth > 1:
            self.second = SecondLayer(self.convs, self.fields[1])
            self.dsecond = self.second.zeros()
            self.pixels[1] = self.second.pixels
        image = np.ones((1, self.convs[0].inputs), layout.dtype)
        self.inside = [
            all_windows(image, fields[0])[:, pixels]
            for fields, pixels in zip(self.fields, self.pixels, strict=True)
        ]
        self._first = (self.inside[0][:, :, None] * self.convs[0].W.T)[None]
        self._rows = [self._first]
        # The weights of the first dense layer behind, a unit of the stem a row.
        self._columns = np.ascontiguousarray(layout.layers[self.depth].W.T)

    def copy(self) -> ConvStem:
        """The same stem with memory of its own."""
        other = copy.copy(self)
        other.buffers = Buffers(self.dtype)
        other.windows = [Passes(passes.layers, self.dtype) for passes in self.windows]
        other._rows = [self._first]
        if self.depth > 1:
            other.dsecond = self.second.zeros()
        return other

    def patches(self, k: int) -> np.ndarray:
        """Patches of a layer as last looked at; those of layer 0 are shared, c = 1."""
        return self._rows[k]

    def linearize(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Patches of layers 1, 2, ... of the stem for c samples, given their masks."""
        self._rows = [self._first]
        for k in range(1, self.depth):
            c, positions = len(masks[0]), self.convs[k].geometry.positions
            patch, channels = len(self.pixels[k]), len(self.convs[k].W)
            rows = self.buffers.take(("rows", k), c, positions, patch, channels)
            if k == 1:
                seen = all_windows(masks[0], self.fields[1][1])
                self.second.multiply(seen, rows.reshape(-1, patch, channels), self.buffers)
            else:
                self._linearize(k, masks, rows)
            _clip(rows, self.inside[k])
            self._rows.append(rows)
        return self._rows[1:]

    def _linearize(self, k, masks, rows):
        """A unit's filter through its window of the mask, and back to the input."""
        conv, fields, channels = self.convs[k], self.fields[k], rows.shape[3]
        # The masks of a position are the same for all of its channels.
        seen = [all_windows(masks[j - 1], fields[j]) for j in range(1, k + 1)]
        shape = len(masks[0]) * conv.geometry.positions * channels, conv.W.shape[1]
        coefficients = self.buffers.take(("c", k), *shape)
        _filters_through_masks(conv.W, seen[-1], coefficients)
        lower = [np.repeat(mask, channels, axis=0) for mask in seen[:-1]]
        passes = self.windows[k]
        found = passes.input_gradient(passes.backward(coefficients, lower)[0])
        rows[...] = found.reshape(*rows.shape[:2], channels, -1).swapaxes(2, 3)

    def through_masks(self, masks: np.ndarray, name: object) -> np.ndarray:
        """Rows of the units of the first dense layer, (c, U, d), for masks (c, N) before it."""
        coefficients = self.buffers.take("coefficients", len(masks), *self._columns.shape)
        _columns_through_masks(self._columns, masks, coefficients)
        return self._multiply(coefficients, name)

    def multiply(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """Rows of units behind the stem: (c, U, positions * channels) to (c, U, d)."""
        return self._multiply(np.ascontiguousarray(coefficients.swapaxes(1, 2)), name)

    def project(self, G: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What comes out of the stem, unmasked, when directions are pushed through it.

        Parameters
        ----------
        G : ndarray, shape (r, d)
        samples : ndarray of int, shape (r,)
            Whose patches, of those last looked at; in order.

        Returns
        -------
        h : ndarray, shape (r, positions * channels)
        seen : ndarray, shape (r, positions, patch)
            What the patches see of G.
        """
        patches, field = self._rows[-1], self.fields[-1][0]
        _, positions, size, channels = patches.shape
        seen = self.buffers.take("seen", len(G), positions, size)
        _patch_windows(G, self.pixels[-1], field, seen)
        h = self.buffers.take("projected", len(G), positions, channels)
        for i, mine in _groups(samples):
            np.matmul(seen[mine].swapaxes(0, 1), patches[i], out=h[mine].swapaxes(0, 1))
        return h.reshape(len(G), -1), seen

    def add_patch_gradients(
        self, seen: np.ndarray, coefficients: np.ndarray, samples: np.ndarray, drows: np.ndarray
    ) -> None:
        """Gradient to the patches of ``<G, v>`` with v the sum of patches by coefficients.

        `coefficients` is (r, positions * channels), `drows` like the patches, and set where a
        sample has any.
        """
        coefficients = coefficients.reshape(len(seen), drows.shape[1], drows.shape[3])
        for i, mine in _groups(samples):
            drows[i] += np.matmul(
                seen[mine].transpose(1, 2, 0),
                coefficients[mine].swapaxes(0, 1),
                out=self.buffers.take("dpatches", *drows.shape[1:]),
            )

    def add_drows(self, drows: np.ndarray) -> None:
        """Add what the patches last looked at feel to the gradient to the filters."""
        drows = drows.reshape(-1, *drows.shape[2:])
        self.second.add_gradient(drows, self.dsecond, self.buffers)

    def finish(self, sums: Gradients) -> None:
        """Carry what `add_drows` has added up on to the gradients of the layers."""
        self.second.add_to_filters(self.dsecond, sums[0][0], sums[1][0])

    def _multiply(self, coefficients, name):
        field, patches, pixels = self.fields[-1][0], self._rows[-1], self.pixels[-1]
        _, positions, size, channels = patches.shape
        c, _, units = coefficients.shape
        rows = self.buffers.take(name, c, units, field.inputs)
        columns = self.buffers.take("columns", c, field.inputs, units)
        columns[:] = 0
        coefficients = coefficients.reshape(c, positions, channels, units)
        # A group of positions at a time, so that the products stay in cache.
        group = max(1, 2**18 // max(1, units * size))
        for i in range(c):
            for first in range(0, positions, group):
                here = slice(first, first + group)
                parts = self.buffers.take("parts", len(coefficients[i, here]), size, units)
                np.matmul(patches[i % len(patches), here], coefficients[i, here], out=parts)
                _add_patches(parts, first, pixels, columns[i], field)
        _transpose(columns, rows)
        return rows


def _groups(samples: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Runs of equal numbers: the number, and where it stands."""
    starts = np.flatnonzero(np.diff(samples, prepend=-1))
    for start, stop in pairwise([*starts.tolist(), len(samples)]):
        yield int(samples[start]), slice(start, stop)


def make_stem(layout: Layout) -> Stem:
    """The stem of a network."""
    return ConvStem(layout) if layout.n_convs else DenseStem(layout)


def receptive_fields(convs: Sequence[Conv], k: int) -> list[Geometry]:
    """For units of convolution k: where they look in the inputs of convolutions 0, ..., k.

    As if a single convolution led from there: its kernel is the field, its stride and padding say
    where the field of each output pixel lies.
    """
    last = convs[k].geometry
    fields = [last]
    for conv in reversed(convs[:k]):
        above, below = fields[0], conv.geometry
        fields.insert(0, below._replace(
            rows=last.rows, columns=last.columns,
            kernel_height=(above.kernel_height - 1) * below.down + below.kernel_height,
            kernel_width=(above.kernel_width - 1) * below.across + below.kernel_width,
            down=above.down * below.down, across=above.across * below.across,
            top=above.top * below.down + below.top, left=above.left * below.across + below.left,
        ))  # fmt: skip
    return fields


def window_passes(convs: Sequence[Conv], fields: Sequence[Geometry], dtype: np.dtype) -> Passes:
    """The convolutions as a receptive field alone meets them: small images, no padding."""
    layers: list[Dense | Conv] = []
    for conv, field, above in zip(convs, fields, fields[1:], strict=False):
        geometry = conv.geometry._replace(
            height=field.kernel_height, width=field.kernel_width,
            rows=above.kernel_height, columns=above.kernel_width, top=0, left=0,
        )  # fmt: skip
        layers.append(Conv(conv.W, conv.b, geometry))
    return Passes(layers, dtype)


@jit
def weights_through_masks(W, masks, out):
    """out[i, u] = W[u] * masks[i]."""
    for i in range(len(masks)):
        for u in range(len(W)):
            for j in range(W.shape[1]):
                out[i, u, j] = W[u, j] if masks[i, j] else 0


@jit
def _columns_through_masks(columns, masks, out):
    """out[i, j] = columns[j] * masks[i, j]."""
    for i in range(len(masks)):
        for j in range(len(columns)):
            target, source = out[i, j], columns[j]
            if masks[i, j]:
                for u in range(len(source)):
                    target[u] = source[u]
            else:
                target[:] = 0


@jit
def _filters_through_masks(W, masks, out):
    """out[(n, o)] = W[o] * masks[n]."""
    channels = W.shape[0]
    for n in range(masks.shape[0]):
        for o in range(channels):
            for j in range(W.shape[1]):
                out[n * channels + o, j] = W[o, j] if masks[n, j] else 0


@jit
def _patch_windows(G, pixels, g, seen):
    """seen[r, q, j] = what number j of the patch at position q sees of G[r]; 0 outside."""
    row = pixels // (g.kernel_width * g.channels)
    column = pixels % (g.kernel_width * g.channels) // g.channels
    offset = (row * g.width + column) * g.channels + pixels % g.channels
    for r in range(len(G)):
        for q in range(seen.shape[1]):
            top, left = q // g.columns * g.down - g.top, q % g.columns * g.across - g.left
            start = (top * g.width + left) * g.channels
            target, source = seen[r, q], G[r]
            whole = top >= 0 and top + g.kernel_height <= g.height
            if whole and left >= 0 and left + g.kernel_width <= g.width:
                for j in range(len(pixels)):
                    target[j] = source[start + offset[j]]
            else:
                for j in range(len(pixels)):
                    i, k = top + row[j], left + column[j]
                    inside = 0 <= i < g.height and 0 <= k < g.width
                    target[j] = source[start + offset[j]] if inside else 0


@jit
def _clip(rows, inside):
    """Forget what lies outside the image."""
    for i in range(rows.shape[0]):
        for q in range(rows.shape[1]):
            for j in range(rows.shape[2]):
                if inside[q, j] == 0:
                    rows[i, q, j] = 0


@jit
def _add_patches(parts, first, pixels, columns, g):
    """columns[pixel of the image] += parts[q, pixel of the patch], of position first + q."""
    for q in range(parts.shape[0]):
        top = (first + q) // g.columns * g.down - g.top
        left = (first + q) % g.columns * g.across - g.left
        for j in range(len(pixels)):
            row = top + pixels[j] // (g.kernel_width * g.channels)
            rest = pixels[j] % (g.kernel_width * g.channels)
            column = left + rest // g.channels
            if 0 <= row < g.height and 0 <= column < g.width:
                target = columns[(row * g.width + column) * g.channels + rest % g.channels]
                part = parts[q, j]
                for u in range(len(part)):
                    target[u] += part[u]


@jit
def _transpose(a, out):
    """Transpose all a[n] into out[n], a square of 16 x 16 at a time."""
    for n in range(a.shape[0]):
        source, target = a[n], out[n]
        for i in range(0, a.shape[1], 16):
            for j in range(0, a.shape[2], 16):
                for k in range(j, min(j + 16, a.shape[2])):
                    for m in range(i, min(i + 16, a.shape[1])):
                        target[k, m] = source[m, k]
