"""Rows of V: the gradients of all units and margins, at the cost of what is not zero in them.

A row of V is the unit's own weights carried back to the input, ``v = c W_1`` with ``c`` its
*coefficients* over the first layers' units.  The first layers, the *front*, are what makes rows
cheap:

- a dense network's front is W_1, the same for all samples: all coefficients times it, one product;
- a convolutional front's rows are zero outside the unit's receptive field, so they are kept as
  *patches*.  A unit behind the front adds up the patches that its coefficients ask for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from refmmr.backends._numba.passes import Buffers, Conv, Dense, Geometry, Layout, Passes

_jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})


class DenseFront:
    """The first layer of a dense network."""

    depth = 1

    def __init__(self, layout: Layout) -> None:
        self.W = layout.layers[0].W
        self.buffers = Buffers(layout.dtype)

    def patches(self, k: int) -> np.ndarray:
        """Rows of the first layer, (positions = 1, units, d)."""
        return self.W[None]

    def look(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows of the hidden layers of the front behind the first: there are none."""
        return []

    def multiply(self, coefficients: np.ndarray, name: str) -> np.ndarray:
        """Rows of units behind the front: (c, U, N_1) to (c, U, d)."""
        c, units, n_inputs = coefficients.shape
        rows = self.buffers.take(name, c, units, self.W.shape[1])
        np.matmul(coefficients.reshape(-1, n_inputs), self.W, out=rows.reshape(c * units, -1))
        return rows


class ConvFront:
    """The convolutions before the first dense layer.

    Patches of layer k are (c, positions, channels, patch), a patch channel-last as an image, with
    zeros for what lies outside the image.
    """

    def __init__(self, layout: Layout) -> None:
        self.convs = [layer for layer in layout.layers if isinstance(layer, Conv)]
        self.depth = len(self.convs)
        self.buffers = Buffers(layout.dtype)
        self.fields = [receptive_fields(self.convs, k) for k in range(self.depth)]
        self.windows = [window_passes(self.convs, self.fields[k], layout.dtype)
                        for k in range(self.depth)]  # fmt: skip
        image = np.ones((1, self.convs[0].inputs), layout.dtype)
        self.inside = [all_windows(image, fields[0]) for fields in self.fields]
        first = self.convs[0].W
        self._first = (self.inside[0][:, None, :] * first)[None]
        self._rows = [self._first]

    def patches(self, k: int) -> np.ndarray:
        """Rows of a layer as last looked at: (c or 1, positions, channels, patch); k = 0: shared."""
        return self._rows[k]

    def look(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Patches of layers 1, 2, ... of the front for c samples, given their masks."""
        self._rows = [self._first]
        for k in range(1, self.depth):
            self._rows.append(self._look(k, masks))
        return self._rows[1:]

    def _look(self, k, masks):
        """A unit's filter through its window of the mask, and back to the input."""
        conv, fields, c = self.convs[k], self.fields[k], len(masks[0])
        positions, channels = conv.geometry.positions, len(conv.W)
        # The masks of a position are the same for all of its channels.
        seen = [all_windows(masks[j - 1], fields[j]) for j in range(1, k + 1)]
        coefficients = self.buffers.take(("c", k), c * positions * channels, conv.W.shape[1])
        _filters_through_masks(conv.W, seen[-1], coefficients)
        lower = [np.repeat(mask, channels, axis=0) for mask in seen[:-1]]
        passes = self.windows[k]
        rows = passes.input_gradient(passes.backward(coefficients, lower)[0])
        rows = rows.reshape(c, positions, channels, -1)
        _clip(rows, self.inside[k])
        return rows

    def multiply(self, coefficients: np.ndarray, name: str) -> np.ndarray:
        """Rows of units behind the front: (c, U, positions * channels) to (c, U, d)."""
        field, patches = self.fields[-1][0], self._rows[-1]
        _, positions, channels, size = patches.shape
        c, units, _ = coefficients.shape
        rows = self.buffers.take(name, c, units, field.inputs)
        coefficients = coefficients.reshape(c, units, positions, channels).swapaxes(1, 2)
        # A group of positions at a time, so that the products stay in cache.
        group = max(1, 2**17 // max(1, units * size))
        for i in range(c):
            rows[i] = 0
            for first in range(0, positions, group):
                here = slice(first, first + group)
                parts = self.buffers.take("parts", len(coefficients[i, here]), units, size)
                np.matmul(coefficients[i, here], patches[i % len(patches), here], out=parts)
                _add_patches(parts, first, rows[i], field)
        return rows


Front = DenseFront | ConvFront


def make_front(layout: Layout) -> Front:
    """The front of a network."""
    return ConvFront(layout) if layout.n_convs else DenseFront(layout)


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


@_jit
def _some_windows(x, samples, positions, windows, g):
    length = g.kernel_width * g.channels
    for r in range(len(samples)):
        n = samples[r]
        top = positions[r] // g.columns * g.down - g.top
        left = positions[r] % g.columns * g.across - g.left
        begin, end = max(0, -left), min(g.kernel_width, g.width - left)
        for i in range(g.kernel_height):
            row = top + i
            target = windows[r, i * length : (i + 1) * length]
            if row < 0 or row >= g.height or end <= begin:
                target[:] = 0
                continue
            source = (row * g.width + left) * g.channels
            target[: begin * g.channels] = 0
            target[end * g.channels :] = 0
            for j in range(begin * g.channels, end * g.channels):
                target[j] = x[n, source + j]


@_jit
def _filters_through_masks(W, masks, out):
    """out[(n, o)] = W[o] * masks[n]."""
    channels = W.shape[0]
    for n in range(masks.shape[0]):
        for o in range(channels):
            for j in range(W.shape[1]):
                out[n * channels + o, j] = W[o, j] if masks[n, j] else 0


@_jit
def _clip(rows, inside):
    """Forget what lies outside the image."""
    for q in range(inside.shape[0]):
        whole = True
        for j in range(inside.shape[1]):
            whole = whole and inside[q, j] != 0
        if whole:
            continue
        for i in range(rows.shape[0]):
            for o in range(rows.shape[2]):
                for j in range(rows.shape[3]):
                    rows[i, q, o, j] *= inside[q, j]


@_jit
def _add_patches(parts, first, rows, g):
    """rows[u] += parts[q, u], laid over the image where position first + q looks."""
    length = g.kernel_width * g.channels
    for q in range(parts.shape[0]):
        top = (first + q) // g.columns * g.down - g.top
        left = (first + q) % g.columns * g.across - g.left
        begin, end = max(0, -left), min(g.kernel_width, g.width - left)
        for u in range(parts.shape[1]):
            for i in range(max(0, -top), min(g.kernel_height, g.height - top)):
                target = ((top + i) * g.width + left) * g.channels
                for j in range(begin * g.channels, end * g.channels):
                    rows[u, target + j] += parts[q, u, i * length + j]
