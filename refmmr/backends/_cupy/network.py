"""Networks on the device: the reference's own, on device arrays, with faster convolutions."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import cupy
import numpy as np

from refmmr.backends._cupy.arrays import to_device, to_host
from refmmr.backends._cupy.windows import Grid, fold, unfold
from refmmr.reference.layers import Conv2d, Layer
from refmmr.reference.network import Network

GROUP_BYTES = 2**28
"""Inputs pass a network in groups that make no array larger than this: 256 MB."""


T = TypeVar("T")


def per_network(function: Callable[..., T]) -> Callable[..., T]:
    """Compute a function of a network's shapes once: only the numbers in its weights change."""
    found: weakref.WeakKeyDictionary[Network, dict[Any, T]] = weakref.WeakKeyDictionary()

    @functools.wraps(function)
    def cached(net: Network, *args: Any) -> T:
        values = found.setdefault(net, {})
        if args not in values:
            values[args] = function(net, *args)
        return values[args]

    return cached


class DeviceConv2d(Conv2d):
    """A convolution as one matrix product with all windows of its input."""

    def linear(self, x: cupy.ndarray) -> cupy.ndarray:
        """Map directions, without the bias: ``(..., n_in, h, w) -> (..., n_out, h', w')``."""
        windows, grid = self._unfold(x)
        y = windows @ self.W.reshape(len(self.W), -1).T
        return cupy.moveaxis(y.reshape(*x.shape[:-3], grid.rows, grid.columns, len(self.W)), -1, -3)

    def transpose(self, g: cupy.ndarray, input_shape: tuple[int, ...]) -> cupy.ndarray:
        """Propagate gradients back: ``(..., n_out, h', w') -> (..., n_in, h, w)``."""
        channels, height, width = input_shape
        grid = self.grid((channels, height, width))
        windows = _last(g) @ self.W.reshape(len(self.W), -1)
        windows = windows.reshape(-1, grid.rows, grid.columns, *self.W.shape[1:])
        return fold(windows, grid, (channels, height, width)).reshape(*g.shape[:-3], *input_shape)

    def gradient(self, x: cupy.ndarray, g: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
        """Gradient of ``sum(g * apply(x))`` with respect to W and b, over all leading axes."""
        windows, _ = self._unfold(x)
        g = _last(g)
        return (g.T @ windows).reshape(self.W.shape), total(g)

    def grid(self, input_shape: tuple[int, ...]) -> Grid:
        """The windows of the input that the output pixels read."""
        return _grid(self.W.shape, self.stride, self.padding, tuple(input_shape))

    def _unfold(self, x):
        """All windows of all images, one a row, and their grid."""
        images = x.reshape(-1, *x.shape[-3:])
        grid = self.grid(images.shape[1:])
        return unfold(images, grid).reshape(-1, math.prod(self.W.shape[1:])), grid


@functools.lru_cache(maxsize=128)
def _grid(filters, stride, padding, input_shape):
    """See `DeviceConv2d.grid`: it is asked for a few times a batch."""
    layer = Conv2d(np.empty(filters, bool), np.empty(filters[0], bool), stride, padding)
    _, rows, columns = layer.output_shape(input_shape)
    (top, _), (left, _) = layer.pads(*input_shape[1:])
    (_, _, height, width), (down, across) = filters, stride
    return Grid(rows, columns, height, width, down, across, top, left)


def device_network(net: Network, dtype: np.dtype | None = None) -> Network:
    """The same network with its weights on the device.

    Weights that are there already, in that dtype, share their memory: what changes them in place
    changes both networks.

    Parameters
    ----------
    net : Network
    dtype : numpy.dtype, optional
        float32 or float64; that of the weights if not given.

    Returns
    -------
    refmmr.reference.network.Network
        Without the checks of `refmmr.Network`; its methods take and return device arrays.
    """
    if dtype in (None, net.affine_layers[0].W.dtype) and net in _shared:
        return _shared[net]

    def move(array):
        return cupy.ascontiguousarray(to_device(array).astype(dtype or array.dtype, copy=False))

    def fast(layer: Layer) -> Layer:
        if isinstance(layer, Conv2d):
            return DeviceConv2d(layer.W, layer.b, layer.stride, layer.padding)
        return layer

    moved = Network([fast(layer.map(move)) for layer in net.layers], net.input_shape)
    pairs = zip(moved.parameters, net.parameters, strict=True)
    if all(new is old for news, olds in pairs for new, old in zip(news, olds, strict=True)):
        _shared[net] = moved
    return moved


_shared: weakref.WeakKeyDictionary[Network, Network] = weakref.WeakKeyDictionary()
"""The results of `device_network` that share all memory with its argument; layers never change."""


def host_network(net: Network) -> Network:
    """The same network with its weights on the host; see `device_network`."""
    return Network([layer.map(to_host) for layer in net.layers], net.input_shape)


@per_network
def unit_starts(net: Network) -> list[int]:
    """The position of the first unit of each hidden layer among all N."""
    return [own.start for own in net.unit_slices]


def one_hot(classes: cupy.ndarray, n: int) -> cupy.ndarray:
    """Each class as a row with one True: ``(m,) -> (m, n)`` bool."""
    return classes[:, None] == cupy.arange(n)


def by_layer(net: Network, units: cupy.ndarray) -> list[cupy.ndarray]:
    """Values of all hidden units layer by layer: ``(n, N)`` to one ``(n, *unit_shape)`` each."""
    layers = zip(net.unit_slices, net.unit_shapes, strict=True)
    return [units[:, own].reshape(-1, *shape) for own, shape in layers]


def groups(net: Network, m: int, itemsize: int) -> Iterator[slice]:
    """Cut m inputs into groups that make no array larger than `GROUP_BYTES` in a pass."""
    entries = [math.prod(shape) for shape in net.shapes]
    for layer, shape in zip(net.layers, net.shapes[1:], strict=True):
        if isinstance(layer, Conv2d):
            entries.append(math.prod(layer.W.shape[1:]) * math.prod(shape[1:]))
    size = max(1, GROUP_BYTES // (max(entries) * itemsize))
    for start in range(0, m, size):
        yield slice(start, min(start + size, m))


def total(rows: cupy.ndarray) -> cupy.ndarray:
    """The sum of rows, ``(m, size) -> (size,)``, as a product: CuPy's own takes far longer."""
    return (_ones(len(rows), rows.dtype.name) @ rows)[0]


@functools.lru_cache(maxsize=32)
def _ones(m: int, dtype: str) -> cupy.ndarray:
    return cupy.ones((1, m), dtype)


def _last(g):
    """Gradients of all output pixels, one a row: ``(..., n_out, h', w') -> (m, n_out)``."""
    return cupy.moveaxis(g, -3, -1).reshape(-1, g.shape[-3])
