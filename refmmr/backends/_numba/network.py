"""Forward and backward passes of a batch: twins of `refmmr.reference.network`.

    f_k = W_k g_{k-1} + b_k,    s_k = 1[f_k > 0],    g_k = s_k * f_k
    delta_k = df_k + s_k * (W_{k+1}^T delta_{k+1})

Each layer is a matrix product (`layers`) followed by one loop for bias, ReLU and mask.  All arrays
are (n, units of a layer), in the order of `layout`.  Memory is allocated once for each `Passes`: a
pass overwrites the results of the one before, and a step of an attack allocates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Layer
from refmmr.backends._numba.layout import Layout, runs
from refmmr.reference import network as reference
from refmmr.reference.network import Gradients, Network

BLOCK = 64
"""Samples in one pass: enough rows for the speed of a large product."""


@implements("numba", reference.logits)
def logits(net: Network, X: np.ndarray) -> np.ndarray:
    """Twin of `refmmr.reference.network.logits`."""
    layout = Layout(net, X)
    result = np.empty((len(X), net.n_classes), layout.dtype)

    def part(start: int, stop: int) -> None:
        passes = Passes(layout.layers, layout.dtype)
        for here in runs(start, stop, BLOCK):
            result[here] = passes.forward(layout.inputs(X[here])).logits

    threads.spread(part, len(X), least=max(BLOCK, layout.samples_per_thread(1)))
    return result


@implements("numba", reference.activation_pattern)
def activation_pattern(net: Network, X: np.ndarray) -> np.ndarray:
    """Twin of `refmmr.reference.network.activation_pattern`."""
    layout = Layout(net, X)
    result = np.empty((len(X), net.n_hidden), bool)

    def part(start: int, stop: int) -> None:
        passes = Passes(layout.layers, layout.dtype)
        for here in runs(start, stop, BLOCK):
            masks = passes.forward(layout.inputs(X[here])).masks
            for k, units in enumerate(net.unit_slices):
                result[here, units] = layout.units(k, masks[k])

    threads.spread(part, len(X), least=max(BLOCK, layout.samples_per_thread(1)))
    return result


class ForwardCache(NamedTuple):
    """What the forward pass keeps for the backward pass."""

    inputs: list[np.ndarray]  # g_{k-1}, the input of every layer, (n, inputs of the layer)
    pre_activations: list[np.ndarray]  # f_k of every hidden layer, if asked for
    masks: list[np.ndarray]  # s_k of every hidden layer, bool
    logits: np.ndarray  # (n, K)


class Passes:
    """A chain of layers with a ReLU between them, and the memory to run it, of one thread."""

    def __init__(self, layers: Sequence[Layer], dtype: np.dtype) -> None:
        self.layers = list(layers)
        self.buffers = Buffers(dtype)

    def forward(self, X: np.ndarray, pre_activations: bool = False) -> ForwardCache:
        """Push points (n, d) through the network; twin of `Network.forward`."""
        cache = ForwardCache([X], [], [], self._output("logits", len(X), self.layers[-1]))
        for k, layer in enumerate(self.layers[:-1]):
            f = self._output(("f", k), len(X), layer)
            layer.linear(layer.operand(cache.inputs[-1], self.buffers, "windows"), f)
            mask = self.buffers.take(("mask", k), *f.shape, dtype=bool)
            # A convolution has one bias for each channel, the last axis.
            flat = (-1, len(layer.b))
            if pre_activations:
                g = self._output(("g", k), len(X), layer)
                _relu(f.reshape(flat), layer.b, g.reshape(flat), mask.reshape(flat))
                cache.pre_activations.append(f)
            else:
                g = f
                _relu_in_place(f.reshape(flat), layer.b, mask.reshape(flat))
            cache.inputs.append(g)
            cache.masks.append(mask)
        last = self.layers[-1]
        last.linear(cache.inputs[-1], cache.logits)
        cache.logits.reshape(-1, len(last.b))[...] += last.b
        return cache

    def push_directions(
        self, G: np.ndarray, masks: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Push directions through the first layers, frozen and without biases.

        Twin of ``Network.forward(G, masks, bias=False)``.

        Parameters
        ----------
        G : ndarray, shape (r, d)
        masks : sequence of ndarray, shapes (r, units of a layer)
            One for each layer that is passed.

        Returns
        -------
        operands : list of ndarray
            `operand` of each of these layers' inputs, for `add_direction_gradients`.
        h : ndarray, shape (r, outputs of the last of them)
        """
        h, operands = G, []
        for k, mask in enumerate(masks):
            layer = self.layers[k]
            operands.append(layer.operand(h, self.buffers, ("operand", k)))
            h = self._output(("direction", k), len(G), layer)
            layer.linear(operands[-1], h)
            apply_mask(h, mask)
        return operands, h

    def backward(
        self,
        last: np.ndarray,
        masks: Sequence[np.ndarray],
        df: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Propagate gradients back from layer ``K = len(masks)``; twin of `Network.backward`.

        Parameters
        ----------
        last : ndarray, shape (n, outputs of layer K)
            delta_K.
        masks : sequence of ndarray
            s_k of layers 0, ..., K - 1.
        df : sequence of ndarray, optional
            Partial derivatives of the loss with respect to f_k of these layers.

        Returns
        -------
        list of ndarray
            delta_k of layers 0, ..., K.
        """
        deltas = [last]
        for k in reversed(range(len(masks))):
            delta = self._output(("delta", k), len(last), self.layers[k])
            self.layers[k + 1].transpose(deltas[0], delta, self.buffers)
            if df is None:
                apply_mask(delta, masks[k])
            else:
                _apply_mask_and_add(delta, masks[k], df[k])
            deltas.insert(0, delta)
        return deltas

    def input_gradient(self, delta: np.ndarray) -> np.ndarray:
        """``W_1^T delta_1``, (n, d)."""
        gradient = self.buffers.take("input gradient", len(delta), self.layers[0].inputs)
        self.layers[0].transpose(delta, gradient, self.buffers)
        return gradient

    def add_gradients(
        self, cache: ForwardCache, deltas: Sequence[np.ndarray], sums: Gradients
    ) -> None:
        """Add the gradient with respect to the weights to `sums`, one (dW, db) a layer."""
        for layer, x, delta, (dW, db) in zip(self.layers, cache.inputs, deltas, sums, strict=True):
            layer.add_gradient(layer.operand(x, self.buffers, "windows"), delta, dW, db)

    def add_direction_gradients(
        self, operands: Sequence[np.ndarray], deltas: Sequence[np.ndarray], sums: Gradients
    ) -> None:
        """The same for directions, through the layers that they have passed: no bias moves them."""
        for layer, x, delta, (dW, _) in zip(self.layers, operands, deltas, sums, strict=False):
            layer.add_gradient(x, delta, dW, None)

    def _output(self, name: object, n: int, layer: Layer) -> np.ndarray:
        return self.buffers.take(name, n, layer.outputs)


# A loop over one array that is read and written is vectorised; over two that might overlap, it is
# not.  Hence `value` in what follows, and a kernel of its own for each of the two cases.


@jit
def _relu_in_place(f, b, mask):
    """``f = max(f + b, 0)`` and ``mask = f + b > 0``: f and mask are (n, outputs), b (outputs,)."""
    for n in range(f.shape[0]):
        for i in range(f.shape[1]):
            value = f[n, i] + b[i]
            mask[n, i] = value > 0
            f[n, i] = 0 if value <= 0 else value  # NaN stays


@jit
def _relu(f, b, g, mask):
    """``f = f + b``, ``g = max(f, 0)`` and ``mask = f > 0``: all (n, outputs), b (outputs,)."""
    for n in range(f.shape[0]):
        for i in range(f.shape[1]):
            value = f[n, i] + b[i]
            f[n, i] = value
            mask[n, i] = value > 0
            g[n, i] = 0 if value <= 0 else value


@jit
def apply_mask(g, mask):
    """``g = g * mask``: both (n, units); the ReLU's backward step."""
    for n in range(g.shape[0]):
        for i in range(g.shape[1]):
            value = g[n, i]
            g[n, i] = value if mask[n, i] else 0


@jit
def _apply_mask_and_add(g, mask, df):
    """``g = g * mask + df``: all (n, units); the ReLU's backward step in `Passes.backward`."""
    for n in range(g.shape[0]):
        for i in range(g.shape[1]):
            value = g[n, i]
            g[n, i] = df[n, i] + (value if mask[n, i] else 0)
