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


class Front:
    """What both kinds of front have; only convolutions have fields, pixels and windows."""

    depth = 1
    fields: Sequence[list[Geometry]] = ()
    pixels: Sequence[np.ndarray] = ()
    windows: Sequence[Passes] = ()

    def patches(self, k: int) -> np.ndarray:
        """Rows of a layer of the front."""
        raise NotImplementedError

    def look(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows of the hidden layers of the front behind the first, for c samples."""
        raise NotImplementedError

    def through_masks(self, W: np.ndarray, masks: np.ndarray, name: object) -> np.ndarray:
        """Rows of units with weights W (U, N) over what the masks (c, N) leave: (c, U, d)."""
        raise NotImplementedError

    def multiply(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """Rows of units with coefficients over the front's last layer: (c, U, N) to (c, U, d)."""
        raise NotImplementedError


class DenseFront(Front):
    """The first layer of a dense network."""

    def __init__(self, layout: Layout) -> None:
        self.W = layout.layers[0].W
        self.buffers = Buffers(layout.dtype)

    def patches(self, k: int) -> np.ndarray:
        """Rows of the first layer, (1, units, d)."""
        return self.W[None]

    def look(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows of the hidden layers of the front behind the first: there are none."""
        return []

    def through_masks(self, W: np.ndarray, masks: np.ndarray, name: object) -> np.ndarray:
        """Rows of units with weights W (U, N_1) over what the masks (c, N_1) leave: (c, U, d)."""
        coefficients = self.buffers.take("coefficients", len(masks), *W.shape)
        weights_through_masks(W, masks, coefficients)
        return self.multiply(coefficients, name)

    def multiply(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """Rows of units behind the front: (c, U, N_1) to (c, U, d)."""
        c, units, n_inputs = coefficients.shape
        rows = self.buffers.take(name, c, units, self.W.shape[1])
        np.matmul(coefficients.reshape(-1, n_inputs), self.W, out=rows.reshape(c * units, -1))
        return rows


class ConvFront(Front):
    """The convolutions before the first dense layer.

    Patches of layer k are (c, positions, patch, channels); what lies outside the image is 0.
    `pixels[k]` says which number of the patch, channel-last, stands where.
    """

    def __init__(self, layout: Layout) -> None:
        self.convs = [layer for layer in layout.layers if isinstance(layer, Conv)]
        self.depth = len(self.convs)
        self.buffers = Buffers(layout.dtype)
        self.fields = [receptive_fields(self.convs, k) for k in range(self.depth)]
        self.windows = [window_passes(self.convs, self.fields[k], layout.dtype)
                        for k in range(self.depth)]  # fmt: skip
        self.pixels = [np.arange(fields[0].window) for fields in self.fields]
        if self.depth > 1:
            self.second = SecondLayer(self.convs, self.fields[1])
            self.pixels[1] = self.second.pixels
        image = np.ones((1, self.convs[0].inputs), layout.dtype)
        self.inside = [
            all_windows(image, fields[0])[:, pixels]
            for fields, pixels in zip(self.fields, self.pixels, strict=True)
        ]
        self._first = (self.inside[0][:, :, None] * self.convs[0].W.T)[None]
        self._rows = [self._first]
        self._columns: np.ndarray | None = None

    def patches(self, k: int) -> np.ndarray:
        """Patches of a layer as last looked at; those of layer 0 are shared, c = 1."""
        return self._rows[k]

    def look(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Patches of layers 1, 2, ... of the front for c samples, given their masks."""
        self._rows = [self._first]
        for k in range(1, self.depth):
            c, positions = len(masks[0]), self.convs[k].geometry.positions
            patch, channels = len(self.pixels[k]), len(self.convs[k].W)
            rows = self.buffers.take(("rows", k), c, positions, patch, channels)
            if k == 1:
                seen = all_windows(masks[0], self.fields[1][1])
                self.second.multiply(seen, rows.reshape(-1, patch, channels), self.buffers)
            else:
                self._look(k, masks, rows)
            _clip(rows, self.inside[k])
            self._rows.append(rows)
        return self._rows[1:]

    def _look(self, k, masks, rows):
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

    def through_masks(self, W: np.ndarray, masks: np.ndarray, name: object) -> np.ndarray:
        """Rows of units with weights W (U, N) over what the masks (c, N) leave: (c, U, d)."""
        coefficients = self.buffers.take("coefficients", len(masks), W.shape[1], len(W))
        if self._columns is None:
            self._columns = np.ascontiguousarray(W.T)
        _columns_through_masks(self._columns, masks, coefficients)
        return self._multiply(coefficients, name)

    def multiply(self, coefficients: np.ndarray, name: object) -> np.ndarray:
        """Rows of units behind the front: (c, U, positions * channels) to (c, U, d)."""
        return self._multiply(np.ascontiguousarray(coefficients.swapaxes(1, 2)), name)

    def _multiply(self, coefficients, name):
        field, patches, pixels = self.fields[-1][0], self._rows[-1], self.pixels[-1]
        _, positions, size, channels = patches.shape
        c, _, units = coefficients.shape
        rows = self.buffers.take(name, c, units, field.inputs)
        columns = self.buffers.take("columns", field.inputs, units)
        coefficients = coefficients.reshape(c, positions, channels, units)
        # A group of positions at a time, so that the products stay in cache.
        group = max(1, 2**17 // max(1, units * size))
        for i in range(c):
            columns[:] = 0
            for first in range(0, positions, group):
                here = slice(first, first + group)
                parts = self.buffers.take("parts", len(coefficients[i, here]), size, units)
                np.matmul(patches[i % len(patches), here], coefficients[i, here], out=parts)
                _add_patches(parts, first, pixels, columns, field)
            _transpose(columns, rows[i])
        return rows


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
        self.taps, self.weights, pixels = [], [], []
        for rows, row_taps in down:
            for columns, column_taps in across:
                pixels.append(grid[np.ix_(rows, columns)].ravel())
                self.taps.append((row_taps.start, row_taps.stop, column_taps.start,
                                  column_taps.stop))  # fmt: skip
                self.weights.append(_block_weights(convs, rows, columns, row_taps, column_taps))
        self.pixels = np.concatenate(pixels)
        self.kernel = second.kernel_height, second.kernel_width, second.channels
        self.sizes = [len(block) for block in pixels]

    def multiply(self, seen: np.ndarray, rows: np.ndarray, buffers: Buffers) -> None:
        """Masks (m, window of the second layer) to patches (m, patch, channels)."""
        m, _, channels = rows.shape
        start = 0
        height, width, depth = self.kernel
        for taps, weights, size in zip(self.taps, self.weights, self.sizes, strict=True):
            masks = buffers.take("block", m, len(weights))
            _gather_block(seen.reshape(m, height, width, depth), taps, masks)
            out = rows[:, start : start + size].reshape(m, size * channels)
            np.matmul(masks, weights, out=out)
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
def weights_through_masks(W, masks, out):
    """out[i, u] = W[u] * masks[i]."""
    for i in range(len(masks)):
        for u in range(len(W)):
            for j in range(W.shape[1]):
                out[i, u, j] = W[u, j] if masks[i, j] else 0


@_jit
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


@_jit
def _filters_through_masks(W, masks, out):
    """out[(n, o)] = W[o] * masks[n]."""
    channels = W.shape[0]
    for n in range(masks.shape[0]):
        for o in range(channels):
            for j in range(W.shape[1]):
                out[n * channels + o, j] = W[o, j] if masks[n, j] else 0


@_jit
def _gather_block(seen, taps, masks):
    """The masks of some rows and columns of taps, side by side."""
    top, bottom, left, right = taps
    for n in range(len(seen)):
        j = 0
        for a in range(top, bottom):
            for b in range(left, right):
                for c in range(seen.shape[3]):
                    masks[n, j] = seen[n, a, b, c]
                    j += 1


@_jit
def _clip(rows, inside):
    """Forget what lies outside the image."""
    for i in range(rows.shape[0]):
        for q in range(rows.shape[1]):
            for j in range(rows.shape[2]):
                if inside[q, j] == 0:
                    rows[i, q, j] = 0


@_jit
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


@_jit
def _transpose(a, out):
    """Transpose a into out, a square of 16 x 16 at a time."""
    for i in range(0, a.shape[0], 16):
        for j in range(0, a.shape[1], 16):
            for k in range(j, min(j + 16, a.shape[1])):
                for m in range(i, min(i + 16, a.shape[0])):
                    out[k, m] = a[m, k]
