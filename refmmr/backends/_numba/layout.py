"""A network's weights in the order of the passes, and the way back to the user's order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refmmr.backends._numba.layers import Conv, Dense, Geometry, Layer, Passes
from refmmr.reference import layers as reference
from refmmr.reference.network import Gradients, Network

PRODUCTS_PER_THREAD = 3 * 10**7
"""Products below which a thread of its own costs more than it brings."""


def runs(start: int, stop: int, size: int) -> Iterator[slice]:
    """Cut a range into runs."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def add_up(parts: dict[int, Gradients]) -> Gradients:
    """The sum of the threads' gradients, by the first sample of each.

    In the order of the samples, so that the same threads give the same bits.
    """
    total, *others = (parts[start] for start in sorted(parts))
    for other in others:
        for (sum_W, sum_b), (dW, db) in zip(total, other, strict=True):
            sum_W += dW
            sum_b += db
    return total


class Layout:
    """A network laid out for inputs like X, in the wider dtype of the two.

    Convolutions first, then dense layers; a convolution that no dense layer follows becomes a dense
    one.
    """

    def __init__(self, net: Network, X: np.ndarray) -> None:
        self.net = net
        self.dtype = np.result_type(X, *(W for W, _ in net.parameters))
        convs = [layer for layer in net.affine_layers if isinstance(layer, reference.Conv2d)]
        if len(convs) == len(net.affine_layers):
            convs = convs[:-1]
        self.n_convs = len(convs)
        # Height, width and channels of the images that the convolutions meet, the last one's
        # output included; the rest sees vectors.
        shapes = [net.input_shape, *(net.shapes[i + 1] for i in net.affine)]
        self.images = [(h, w, c) for c, h, w in shapes[: self.n_convs + 1]] if convs else []
        self.layers: list[Layer] = []
        for k, layer in enumerate(net.affine_layers):
            W, b = (array.astype(self.dtype, copy=False) for array in (layer.W, layer.b))
            if k < self.n_convs and isinstance(layer, reference.Conv2d):
                self.layers.append(_conv(layer, W, b, *self.images[k : k + 2]))
            else:
                W, b = _densely(layer, W, b, shapes[k], shapes[k + 1])
                self.layers.append(Dense(self._columns(k, W), b))

    def passes(self) -> Passes:
        """A runner with memory of its own."""
        return Passes(self.layers, self.dtype)

    def least(self, passes: int) -> int:
        """Samples that are worth a thread, if each goes through the network so many times."""
        products = sum(layer.products for layer in self.layers)
        return max(1, PRODUCTS_PER_THREAD // (products * passes))

    def inputs(self, X: np.ndarray) -> np.ndarray:
        """A user's ``(n, *input_shape)`` as (n, d) in the order of the passes."""
        X = X.astype(self.dtype, copy=False)
        if self.n_convs:
            X = X.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(X.reshape(len(X), -1))

    def outside(self, X: np.ndarray) -> np.ndarray:
        """Undo `inputs`."""
        if self.n_convs:
            height, width, channels = self.images[0]
            X = X.reshape(len(X), height, width, channels).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(X).reshape(len(X), *self.net.input_shape)

    def units(self, k: int, values: np.ndarray) -> np.ndarray:
        """Units of hidden layer k, (n, N_k), in the user's order."""
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
        """A gradient to add to, in the layout of the passes."""
        return [(np.zeros_like(layer.W), np.zeros_like(layer.b)) for layer in self.layers]

    def gradients(self, sums: Gradients) -> Gradients:
        """Gradients in the user's shapes and dtype."""
        result = []
        for k, (layer, (dW, db)) in enumerate(zip(self.net.affine_layers, sums, strict=True)):
            if k < self.n_convs:
                n_out, n_in, height, width = layer.W.shape
                dW = dW.reshape(n_out, height, width, n_in).transpose(0, 3, 1, 2)
            elif isinstance(layer, reference.Conv2d):
                dW, db = self._sparsely(k, layer, self._columns_back(k, dW), db)
            else:
                dW = self._columns_back(k, dW)
            W, b = layer.W, layer.b
            result.append((np.ascontiguousarray(dW, dtype=W.dtype), db.astype(b.dtype)))
        return result

    def _columns(self, k: int, W: np.ndarray) -> np.ndarray:
        """The first dense layer behind convolutions reads its image channel-last."""
        if k != self.n_convs or k == 0:
            return W
        height, width, channels = self.images[-1]
        W = W.reshape(len(W), channels, height, width)
        return W.transpose(0, 2, 3, 1).reshape(len(W), -1)

    def _columns_back(self, k: int, dW: np.ndarray) -> np.ndarray:
        if k != self.n_convs or k == 0:
            return dW
        height, width, channels = self.images[-1]
        dW = dW.reshape(len(dW), height, width, channels)
        return dW.transpose(0, 3, 1, 2).reshape(len(dW), -1)

    def _sparsely(self, k, layer, dW, db):
        """Gradient to a filter from the gradient to the dense matrix that it stands for."""
        shape = self.net.input_shape if k == 0 else self.net.shapes[self.net.affine[k]]
        # Column j of the matrix is what the convolution makes of basis vector j.
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
    (height, width, channels), (rows, columns, _) = image, output
    (top, _), (left, _) = layer.pads(height, width)
    (down, across), (kernel_height, kernel_width) = layer.stride, W.shape[2:]
    geometry = Geometry(
        height, width, channels, rows, columns, kernel_height, kernel_width, down, across, top, left
    )
    return Conv(W.transpose(0, 2, 3, 1).reshape(len(W), -1), b, geometry)


def _densely(layer, W, b, input_shape, output_shape):
    """A layer as one matrix; a convolution's columns are its images of the basis vectors."""
    if isinstance(layer, reference.Linear):
        return W, b
    basis = _basis(input_shape, W.dtype)
    columns = layer.with_weights(W, b).linear(basis).reshape(len(basis), -1)
    return columns.T, np.repeat(b, int(np.prod(output_shape[1:])))


def _basis(shape, dtype):
    d = int(np.prod(shape))
    return np.eye(d, dtype=dtype).reshape(d, *shape)
