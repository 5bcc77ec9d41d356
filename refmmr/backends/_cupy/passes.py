"""Forward passes and gradients with respect to the inputs as a fixed sequence of kernels.

The buffers are allocated and the kernels prepared once, for a network's shapes and a number of
samples; then a pass costs the host a few microseconds a kernel, and nothing of it needs cuBLAS,
which cannot be captured into a CUDA graph by CuPy.
"""

from __future__ import annotations

import math

import cupy
import numpy as np

from refmmr.backends._cupy.kernels import Launch, prepared
from refmmr.backends._cupy.network import DeviceConv2d, per_network
from refmmr.reference.layers import Flatten
from refmmr.reference.network import Network

SAMPLES, COLUMNS, CHANNELS = 8, 4, 4
"""Tiles of a thread of a product, and of a convolution; the same numbers stand in `attack.cu`."""
SLICE = 32
"""Fewest terms that a thread of `product` adds up."""
THREADS = 2**16
"""Threads of a product that keep a large GPU busy; with fewer outputs there are more slices."""


class Passes:
    """The passes of n samples through networks of one architecture.

    Attributes
    ----------
    inputs, input_gradient : cupy.ndarray, shape (n, *input_shape)
        Buffers.  What is in `inputs` goes through the network.
    logits, logit_gradient : cupy.ndarray, shape (n, K)
    forward, backward : list of Launch
        From `inputs` to `logits`, from `logit_gradient` to `input_gradient`.
    """

    def __init__(self, net: Network, n: int) -> None:
        self.n, self.dtype = n, net.affine_layers[0].W.dtype
        self.weights: list[tuple[cupy.ndarray, ...]] = []
        self.forward: list[Launch] = []
        self.backward: list[Launch] = []
        self.inputs, self.input_gradient = self._pair(net.shapes[0])
        values, gradient, gated = self.inputs, self.input_gradient, False
        for i, layer in enumerate(net.layers):
            if isinstance(layer, Flatten):  # the same memory
                continue
            relu = i != net.affine[-1]
            new_values, new_gradient = self._pair(net.shapes[i + 1])
            add = self._conv if isinstance(layer, DeviceConv2d) else self._dense
            add(layer, net.shapes[i], values, new_values, gradient, new_gradient, relu, gated)
            values, gradient, gated = new_values, new_gradient, True
        self.logits, self.logit_gradient = (a.reshape(n, -1) for a in (values, gradient))

    def load(self, net: Network) -> None:
        """Copy the weights of a network into the buffers."""
        for layer, buffers in zip(net.affine_layers, self.weights, strict=True):
            for buffer, array in zip(buffers, (layer.W, layer.b, layer.W.T), strict=False):
                buffer[...] = array

    def _pair(self, shape):
        """Buffers for activations and for gradients with respect to them."""
        return tuple(cupy.empty((self.n, *shape), self.dtype) for _ in range(2))

    def _conv(self, layer, shape, x, out, dx, dout, relu, gated):
        W, b = cupy.empty_like(layer.W), cupy.empty_like(layer.b)
        self.weights.append((W, b))
        args = (W, b, out, *conv_sizes(layer, shape), relu)
        self.forward.append(prepared("convolve", self.dtype, conv_threads(out), x, *args))
        args = (dout, W, x, dx, *conv_sizes(layer, shape), gated)
        self.backward.insert(0, prepared("convolve_back", self.dtype, conv_threads(dx), *args))

    def _dense(self, layer, shape, x, out, dx, dout, relu, gated):
        n_out, n_in = layer.W.shape
        W, b = cupy.empty_like(layer.W), cupy.empty_like(layer.b)
        turned = cupy.empty((n_in, n_out), self.dtype)
        self.weights.append((W, b, turned))
        product, partial, slices = self._product(x, turned, n_in, n_out)
        self.forward += [
            product,
            prepared("activate", self.dtype, out.size, partial, b, out, slices, n_out, relu),
        ]
        product, partial, slices = self._product(dout, W, n_out, n_in)
        self.backward[:0] = [
            product,
            prepared("gate", self.dtype, dx.size, partial, x, dx, slices, gated),
        ]

    def _product(self, x, weights, inner, columns):
        """The product of samples with weights, as sums over slices of the inner axis."""
        tiles = math.ceil(self.n / SAMPLES) * math.ceil(columns / COLUMNS)
        slices = max(1, min(inner // SLICE, math.ceil(THREADS / tiles)))
        partial = cupy.empty((slices, self.n, columns), self.dtype)
        threads = slices * tiles
        args = (x, weights, partial, self.n, inner, columns, slices)
        return prepared("product", self.dtype, threads, *args), partial, slices


def conv_sizes(layer: DeviceConv2d, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes that the kernels of a convolution take."""
    return (*input_shape, len(layer.b), *layer.grid(input_shape))


def conv_threads(out: cupy.ndarray) -> int:
    """Threads of a kernel of a convolution whose result has the shape (n, channels, h, w)."""
    n, channels, height, width = out.shape
    return n * math.ceil(channels / CHANNELS) * height * width


@per_network
def architecture(net: Network) -> tuple[object, ...]:
    """What the passes of a network depend on, besides its weights."""
    layers = [
        (layer.W.shape, layer.stride, layer.padding)
        if isinstance(layer, DeviceConv2d)
        else None
        if isinstance(layer, Flatten)
        else layer.W.shape
        for layer in net.layers
    ]
    return (net.input_shape, np.dtype(net.affine_layers[0].W.dtype).name, *layers)
