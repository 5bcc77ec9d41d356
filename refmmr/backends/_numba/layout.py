"""A network's weights in the order that the twins compute in, and the translation to the user's.

Images are channel-last inside, ``(height, width, channels)`` flattened, and ``(channels, height,
width)`` outside.  Whatever a user passes or gets goes through `Layout`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refmmr.backends._numba.layers import Conv, Dense, Geometry, Layer
from refmmr.reference import layers as reference
from refmmr.reference.network import Gradients, Network

PRODUCTS_PER_THREAD = 3 * 10**7
"""Multiplications that are worth a thread of their own: about a millisecond of a core."""


def runs(start: int, stop: int, size: int) -> Iterator[slice]:
    """Cut a range into runs of this size, and a shorter last one."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def add_up(parts: dict[int, Gradients]) -> Gradients:
    """Sum of the threads' gradients, given by the first sample of each.

    In the order of the samples: the same number of threads gives the same bits.
    """
    total, *others = (parts[start] for start in sorted(parts))
    for other in others:
        for (sum_W, sum_b), (dW, db) in zip(total, other, strict=True):
            sum_W += dW
            sum_b += db
    return total


class Layout:
    """A network laid out for inputs like X, in the wider dtype of the two.

    First the convolutions, then dense layers.  A convolution that no dense layer follows (it ends
    the network) becomes a dense layer.

    Attributes
    ----------
    layers : list of Conv and Dense
    n_convs : int
        How many of them are convolutions.
    images : list of (height, width, channels)
        Inputs of the convolutions and the output of the last one; empty without convolutions.
    """

    def __init__(self, net: Network, X: np.ndarray) -> None:
        self.net = net
        self.dtype = np.result_type(X, *(W for W, _ in net.parameters))
        convs = [layer for layer in net.affine_layers if isinstance(layer, reference.Conv2d)]
        if len(convs) == len(net.affine_layers):
            convs = convs[:-1]
        self.n_convs = len(convs)
        shapes = [net.input_shape, *(net.shapes[i + 1] for i in net.affine)]
        self.images = [(h, w, c) for c, h, w in shapes[: self.n_convs + 1]] if convs else []
        self.layers: list[Layer] = []
        for k, layer in enumerate(net.affine_layers):
            W, b = (array.astype(self.dtype, copy=False) for array in (layer.W, layer.b))
            if k < self.n_convs and isinstance(layer, reference.Conv2d):
                self.layers.append(_conv(layer, W, b, *self.images[k : k + 2]))
            else:
                W, b = _as_dense(layer, W, b, shapes[k], shapes[k + 1])
                self.layers.append(Dense(self._columns(k, W), b))

    def samples_per_thread(self, passes: int) -> int:
        """Samples that are worth a thread, if each takes this number of passes."""
        products = sum(layer.products for layer in self.layers)
        return max(1, PRODUCTS_PER_THREAD // (products * passes))

    def inputs(self, X: np.ndarray) -> np.ndarray:
        """Inputs in this order: (n, *input_shape) to (n, d)."""
        X = X.astype(self.dtype, copy=False)
        if self.n_convs:
            X = X.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(X.reshape(len(X), -1))

    def inputs_back(self, X: np.ndarray) -> np.ndarray:
        """Undo `inputs`: (n, d) to (n, *input_shape)."""
        if self.n_convs:
            height, width, channels = self.images[0]
            X = X.reshape(len(X), height, width, channels).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(X).reshape(len(X), *self.net.input_shape)

    def input_bounds(self, box: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The ends of a box, which broadcast against an input, in this order: (d,) each."""
        shape = self.net.input_shape
        lo, hi = (self.inputs(np.broadcast_to(bound, shape)[None])[0] for bound in box)
        return lo, hi

    def units(self, k: int, values: np.ndarray) -> np.ndarray:
        """Values of the units of hidden layer k in the user's order: (n, N_k)."""
        if k >= self.n_convs:
            return values
        height, width, channels = self.images[k + 1]
        return values.reshape(-1, height * width, channels).swapaxes(1, 2).reshape(len(values), -1)

    def units_back(self, k: int, values: np.ndarray) -> np.ndarray:
        """Undo `units`."""
        if k >= self.n_convs:
            return values
        height, width, channels = self.images[k + 1]
        return values.reshape(-1, channels, height * width).swapaxes(1, 2).reshape(len(values), -1)

    def zeros(self) -> Gradients:
        """A gradient with respect to the weights, in this order, to add to."""
        return [(np.zeros_like(layer.W), np.zeros_like(layer.b)) for layer in self.layers]

    def gradients(self, sums: Gradients) -> Gradients:
        """Gradients with respect to the weights, in the user's shapes and dtype."""
        result = []
        for k, (layer, (dW, db)) in enumerate(zip(self.net.affine_layers, sums, strict=True)):
            if k < self.n_convs:
                n_out, n_in, height, width = layer.W.shape
                dW = dW.reshape(n_out, height, width, n_in).transpose(0, 3, 1, 2)
            elif isinstance(layer, reference.Conv2d):
                dW, db = self._filter_gradient(k, layer, self._columns_back(k, dW), db)
            else:
                dW = self._columns_back(k, dW)
            W, b = layer.W, layer.b
            result.append((np.ascontiguousarray(dW, dtype=W.dtype), db.astype(b.dtype)))
        return result

    def _columns(self, k: int, W: np.ndarray) -> np.ndarray:
        """Weights of dense layer k, (outputs, inputs): the first reads its image channel-last."""
        if k != self.n_convs or k == 0:
            return W
        height, width, channels = self.images[-1]
        W = W.reshape(len(W), channels, height, width)
        return W.transpose(0, 2, 3, 1).reshape(len(W), -1)

    def _columns_back(self, k: int, dW: np.ndarray) -> np.ndarray:
        """Undo `_columns`."""
        if k != self.n_convs or k == 0:
            return dW
        height, width, channels = self.images[-1]
        dW = dW.reshape(len(dW), height, width, channels)
        return dW.transpose(0, 3, 1, 2).reshape(len(dW), -1)

    def _filter_gradient(self, k, layer, dW, db):
        """Gradient with respect to a filter, from that of the dense matrix of the convolution."""
        shape = self.net.input_shape if k == 0 else self.net.shapes[self.net.affine[k]]
        # Column j of the matrix is the convolution of basis vector j.
        columns = dW.T.reshape(-1, *layer.output_shape(shape))
        dW, _ = layer.gradient(_basis(shape, dW.dtype), columns)
        return dW, db.reshape(len(layer.b), -1).sum(axis=1)


def _conv(
    layer: reference.Conv2d,
    W: np.ndarray,
    b: np.ndarray,
    image: tuple[int, int, int],
    output: tuple[int, int, int],
) -> Conv:
    """A convolution with filters (channels out, in, height, width) in this order."""
    (height, width, channels), (rows, columns, _) = image, output
    (top, _), (left, _) = layer.pads(height, width)
    (down, across), (kernel_height, kernel_width) = layer.stride, W.shape[2:]
    geometry = Geometry(
        height, width, channels, rows, columns, kernel_height, kernel_width, down, across, top, left
    )
    return Conv(W.transpose(0, 2, 3, 1).reshape(len(W), -1), b, geometry)


def _as_dense(layer, W, b, input_shape, output_shape):
    """A layer's matrix (outputs, inputs) and biases; column j is the layer at basis vector j."""
    if isinstance(layer, reference.Linear):
        return W, b
    basis = _basis(input_shape, W.dtype)
    columns = layer.with_weights(W, b).linear(basis).reshape(len(basis), -1)
    return columns.T, np.repeat(b, int(np.prod(output_shape[1:])))


def _basis(shape, dtype):
    """Basis vectors of the inputs of a layer, (d, *shape)."""
    d = int(np.prod(shape))
    return np.eye(d, dtype=dtype).reshape(d, *shape)
