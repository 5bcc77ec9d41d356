"""Rows of V, the gradients of all units and margins: the twin of `refmmr.reference.affine.probe`.

A row of V is a linear combination of the rows of an earlier layer; for a unit behind the first
layers, ``v = c V_stem`` with c the unit's *coefficients*: its own weights where the mask is 1.  The
first layers, the *stem*, are chosen so that this is cheap:

- of a dense network the stem is the first layer.  Its rows are W_1, the same for all samples: the
  coefficients of all units of all samples times W_1 are a single product;
- of a convolutional network the stem is all convolutions.  The row of a convolutional unit is zero
  outside its receptive field, and only that *patch* is stored.  Patches of the second convolution
  are the product of masks and weights (`patches`), those of later ones a backward pass through a
  window of the network.  The row of a unit behind the stem is the sum of the patches, times its
  coefficients, at their places in the image.

The reference pushes all d basis vectors through the network instead, whatever is zero in the rows.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Conv, Dense, Geometry, all_windows
from refmmr.backends._numba.layout import Layout, runs
from refmmr.backends._numba.network import Passes
from refmmr.backends._numba.patches import SecondConv
from refmmr.reference.network import Gradients

PRODUCT_NUMBERS = 2**17
"""Numbers in the result of one product of patches: they are in the cache of a core when they are
added to the image."""


class Stem(ABC):
    """The first layers, whose rows of V are cheap; memory of one thread.

    Attributes
    ----------
    depth : int
        How many layers it has.
    fields, orders, windows
        Of each convolution, see `ConvStem`; a dense stem has none.
    """

    depth = 1
    fields: Sequence[list[Geometry]] = ()
    orders: Sequence[np.ndarray] = ()
    windows: Sequence[Passes] = ()

    @abstractmethod
    def copy(self) -> Stem:
        """The same stem with memory of its own, for another thread."""

    @abstractmethod
    def first_rows(self) -> np.ndarray:
        """Rows of the first layer, the same for all samples: patches, or (1, N_1, d)."""

    @abstractmethod
    def compute_rows(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows of its layers 1, ..., depth - 1 for c samples, from masks (c, N_k) of all layers."""

    @abstractmethod
    def next_rows(self, mask: np.ndarray, name: object) -> np.ndarray:
        """Rows of the layer behind it, ``W diag(mask) V_stem``: mask (c, N), rows (c, units, d)."""

    @abstractmethod
    def combine(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """``coefficients V_stem``: (c, units, N) of its last layer to rows (c, units, d)."""


class DenseStem(Stem):
    """The first layer of a dense network."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.W = layout.layers[0].W
        self.buffers = Buffers(layout.dtype)

    def copy(self) -> DenseStem:
        """The same stem with memory of its own, for another thread."""
        return DenseStem(self.layout)

    def first_rows(self) -> np.ndarray:
        """Rows of the first layer, (1, N_1, d)."""
        return self.W[None]

    def compute_rows(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """There is no layer but the first."""
        return []

    def next_rows(self, mask: np.ndarray, name: object) -> np.ndarray:
        """Rows of the second layer, ``W_2 diag(mask) W_1``: mask (c, N_1), rows (c, N_2, d)."""
        W = self.layout.layers[1].W
        coefficients = self.buffers.take("coefficients", len(mask), *W.shape)
        mask_rows(W, mask, coefficients)
        return self.combine(coefficients, name)

    def combine(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """``coefficients W_1``: (c, units, N_1) to (c, units, d), one product for all samples."""
        c, units, n_inputs = coefficients.shape
        rows = self.buffers.take(name, c, units, self.W.shape[1])
        out = rows.reshape(c * units, rows.shape[2])
        np.matmul(coefficients.reshape(-1, n_inputs), self.W, out=out)
        return rows


class ConvStem(Stem):
    """The convolutions before the first dense layer.

    Rows of layer k are patches, (c, positions, patch, channels); 0 outside the image.

    Attributes
    ----------
    fields : list of list of Geometry
        Of each layer its `receptive_fields`.
    orders : list of ndarray of int
        Number j of a patch is number ``orders[k][j]`` of the receptive field, channel-last.
    windows : list of Passes
        Of each layer k, the layers 0, ..., k - 1 on a single receptive field.
    columns : ndarray, shape (units of the stem, outputs)
        The weights of the first dense layer behind it, transposed.
    places : ndarray of int, shape (positions, patch)
        Of each number of a patch of the last layer its place in the image, -1 outside.
    back_through_patches : bool
        Whether gradients go back through patches (`push_through`): for two convolutions.
    """

    def __init__(self, layout: Layout) -> None:
        self.dtype = layout.dtype
        self.convs = [layer for layer in layout.layers if isinstance(layer, Conv)]
        self.depth = len(self.convs)
        self.back_through_patches = self.depth == 2
        self.buffers = Buffers(layout.dtype)
        self.fields = [receptive_fields(self.convs, k) for k in range(self.depth)]
        self.windows = [window_passes(self.convs, fields, layout.dtype) for fields in self.fields]
        self.orders = [np.arange(fields[0].window) for fields in self.fields]
        if self.depth > 1:
            self.second = SecondConv(self.convs, self.fields[1][0])
            self.dsecond = self.second.zeros()
            self.orders[1] = self.second.order
        image = np.ones((1, self.convs[0].inputs), layout.dtype)
        # Per layer (positions, patch): 1 inside the image, 0 outside.
        self.inside = [
            all_windows(image, fields[0])[:, order]
            for fields, order in zip(self.fields, self.orders, strict=True)
        ]
        numbers = np.arange(1.0, 1 + self.convs[0].inputs)[None]
        places = all_windows(numbers, self.fields[-1][0])[:, self.orders[-1]]
        self.places = places.astype(np.int64) - 1
        self._first = (self.inside[0][:, :, None] * self.convs[0].W.T)[None]
        self._rows = [self._first]
        self.columns = np.ascontiguousarray(layout.layers[self.depth].W.T)

    def copy(self) -> ConvStem:
        """The same stem with memory of its own, for another thread."""
        other = copy.copy(self)
        other.buffers = Buffers(self.dtype)
        other.windows = [Passes(passes.layers, self.dtype) for passes in self.windows]
        other._rows = [self._first]
        if self.depth > 1:
            other.dsecond = self.second.zeros()
        return other

    def first_rows(self) -> np.ndarray:
        """Patches of the first convolution, (1, positions, patch, channels)."""
        return self._first

    def compute_rows(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Patches of its layers 1, ..., depth - 1 for c samples, from masks (c, N_k)."""
        self._rows = [self._first]
        for k in range(1, self.depth):
            c, positions = len(masks[0]), self.convs[k].geometry.positions
            patch, channels = len(self.orders[k]), len(self.convs[k].W)
            rows = self.buffers.take(("rows", k), c, positions, patch, channels)
            if k == 1:
                self.second.patches(masks[0], rows, self.buffers)
            else:
                self._backward_rows(k, masks, rows)
            _clear_outside(rows, self.inside[k])
            self._rows.append(rows)
        return self._rows[1:]

    def _backward_rows(self, k, masks, rows):
        """Patches of layer k, (c, positions, patch, channels): a backward pass for each unit.

        It starts with the unit's filter where its window of the mask is 1.
        """
        conv, fields, channels = self.convs[k], self.fields[k], rows.shape[3]
        windows = [all_windows(masks[j - 1], fields[j]) for j in range(1, k + 1)]
        shape = len(masks[0]) * conv.geometry.positions, channels, conv.W.shape[1]
        filters = self.buffers.take(("filters", k), *shape)
        mask_rows(conv.W, windows[-1], filters)
        # The masks of a position are the same for all of its channels.
        lower = [np.repeat(mask, channels, axis=0) for mask in windows[:-1]]
        passes = self.windows[k]
        deltas = passes.backward(filters.reshape(-1, shape[2]), lower)
        found = passes.input_gradient(deltas[0])
        rows[...] = found.reshape(*rows.shape[:2], channels, -1).swapaxes(2, 3)

    def next_rows(self, mask: np.ndarray, name: object) -> np.ndarray:
        """Rows of the first dense layer, (c, units, d), for masks (c, N) of the stem's last."""
        coefficients = self.buffers.take("coefficients", len(mask), *self.columns.shape)
        _mask_columns(self.columns, mask, coefficients)
        return self._combine(coefficients, name)

    def combine(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """Patches times coefficients: (c, units, positions * channels) to rows (c, units, d)."""
        return self._combine(np.ascontiguousarray(coefficients.swapaxes(1, 2)), name)

    def _combine(self, coefficients, name):
        """The same for coefficients (c, positions * channels, units)."""
        _, positions, _, channels = self._rows[-1].shape
        c, _, units = coefficients.shape
        rows = self.buffers.take(name, c, units, self.convs[0].inputs)
        columns = self.buffers.take("columns", 1, self.convs[0].inputs, units)
        for i in range(c):
            self.combine_columns(i, coefficients[i].reshape(positions, channels, units), columns[0])
            _transpose(columns, rows[i : i + 1])
        return rows

    def combine_columns(self, i: int, coefficients: np.ndarray, columns: np.ndarray) -> None:
        """Rows of sample i of the last `compute_rows`, as columns.

        `coefficients` is (positions, channels, r), `columns`, the result, (d, r).
        """
        patches = self._rows[-1]
        patches = patches[i % len(patches)]
        positions, size, _ = patches.shape
        r = coefficients.shape[2]
        columns[:] = 0
        group = max(1, PRODUCT_NUMBERS // max(1, r * size))
        for here in runs(0, positions, group):
            parts = self.buffers.take("parts", here.stop - here.start, size, r)
            np.matmul(patches[here], coefficients[here], out=parts)
            _add_windows(parts, self.places[here], columns)

    def push_through(self, i: int, G: np.ndarray, coefficients: np.ndarray, h: np.ndarray) -> None:
        """Push directions through the patches of sample i, and their gradient into the patches.

        The patches are overwritten by the gradient of ``sum_r <G_r, coefficients_r V_stem>`` with
        respect to them.

        Parameters
        ----------
        i : int
            A sample of the last `compute_rows`.
        G : ndarray, shape (d, r)
        coefficients : ndarray, shape (positions, channels, r)
        h : ndarray, shape (r, positions, channels)
            The result: ``<G, v>`` of all units of the stem's last layer.
        """
        patches = self._rows[-1][i]
        windows = self.buffers.take("windows of G", *patches.shape[:2], G.shape[1])
        _gather_windows(G, self.places, windows)
        np.matmul(windows.swapaxes(1, 2), patches, out=h.swapaxes(0, 1))
        np.matmul(windows, coefficients.swapaxes(1, 2), out=patches)

    def add_patch_gradients(self, mask: np.ndarray, dpatches: np.ndarray) -> None:
        """Take the gradient with respect to the patches of these masks into the sum of `finish`."""
        self.second.add_gradient(mask, dpatches, self.dsecond, self.buffers)

    def finish(self, sums: Gradients) -> None:
        """Add the gradients with respect to the filters of both convolutions to `sums`."""
        self.second.add_to_filters(self.dsecond, sums[0][0], sums[1][0])


def make_stem(layout: Layout) -> Stem:
    """The stem of a network."""
    return ConvStem(layout) if layout.n_convs else DenseStem(layout)


def receptive_fields(convs: Sequence[Conv], k: int) -> list[Geometry]:
    """For units of convolution k, their receptive fields in the inputs of convolutions 0, ..., k.

    As if one convolution led from that input to layer k: its kernel is the field, its stride and
    padding say where the field of each output pixel is.
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
    """The convolutions before the last field, on one receptive field as their image, unpadded."""
    layers: list[Dense | Conv] = []
    for conv, field, above in zip(convs, fields, fields[1:], strict=False):
        geometry = conv.geometry._replace(
            height=field.kernel_height, width=field.kernel_width,
            rows=above.kernel_height, columns=above.kernel_width, top=0, left=0,
        )  # fmt: skip
        layers.append(Conv(conv.W, conv.b, geometry))
    return Passes(layers, dtype)


@jit
def mask_rows(W, masks, out):
    """``W diag(mask)`` of each mask: W (units, m), masks (c, m), out (c, units, m), the result."""
    for i in range(len(masks)):
        for u in range(len(W)):
            for j in range(W.shape[1]):
                out[i, u, j] = W[u, j] if masks[i, j] else 0


@jit
def _mask_columns(columns, masks, out):
    """The same transposed: columns (m, units), masks (c, m), out (c, m, units), the result."""
    for i in range(len(masks)):
        for j in range(len(columns)):
            target, source = out[i, j], columns[j]
            if masks[i, j]:
                for u in range(len(source)):
                    target[u] = source[u]
            else:
                target[:] = 0


@jit
def _clear_outside(rows, inside):
    """Set to 0 what is outside the image.

    rows: (c, positions, patch, channels), changed.  inside: (positions, patch), 0 outside.
    """
    for i in range(rows.shape[0]):
        for q in range(rows.shape[1]):
            for j in range(rows.shape[2]):
                if inside[q, j] == 0:
                    rows[i, q, j] = 0


@jit
def _transpose(a, out):
    """Transpose each of a (c, m, units) into out (c, units, m), in tiles of 16 x 16.

    A tile has a cache line in each of its rows, of both arrays.
    """
    for n in range(a.shape[0]):
        source, target = a[n], out[n]
        for i in range(0, a.shape[1], 16):
            for j in range(0, a.shape[2], 16):
                for k in range(j, min(j + 16, a.shape[2])):
                    for m in range(i, min(i + 16, a.shape[1])):
                        target[k, m] = source[m, k]


@jit
def _add_windows(windows, places, columns):
    """Add windows of r images at once to their places, col2im.

    windows: (q, window, r).  places: (q, window), in the image, -1 outside.  columns: (d, r), added
    to.  Neighbours in the window that are neighbours in the image are one run of numbers.
    """
    r, flat = columns.shape[1], columns.reshape(-1)
    for q in range(windows.shape[0]):
        place, window = places[q], windows[q].reshape(-1)
        stop = 0
        while stop < len(place):
            start, stop = stop, _run_end(place, stop)
            if place[start] >= 0:
                target = flat[place[start] * r : (place[start] + stop - start) * r]
                source = window[start * r : stop * r]
                for u in range(len(source)):
                    target[u] += source[u]


@jit
def _gather_windows(columns, places, windows):
    """Windows of r images, 0 outside: the transpose of `_add_windows`, whose shapes it has."""
    r, flat = columns.shape[1], columns.reshape(-1)
    for q in range(windows.shape[0]):
        place, window = places[q], windows[q].reshape(-1)
        stop = 0
        while stop < len(place):
            start, stop = stop, _run_end(place, stop)
            target = window[start * r : stop * r]
            if place[start] >= 0:
                source = flat[place[start] * r : (place[start] + stop - start) * r]
                for u in range(len(target)):
                    target[u] = source[u]
            else:
                target[:] = 0


@jit
def _run_end(place, start):
    """The end of the run of places, consecutive or all -1, that begins at `start`: (window,)."""
    stop, step = start + 1, 1 if place[start] >= 0 else 0
    while stop < len(place) and place[stop] == place[start] + step * (stop - start):
        stop += 1
    return stop
