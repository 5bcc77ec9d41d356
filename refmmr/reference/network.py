"""A ReLU network: affine layers with a ReLU between, forward and backward on one page.

Notation.  Affine layers are counted ``k = 1, ..., L + 1``:

    f_k = W_k g_{k-1} + b_k          pre-activations, ``f_{L+1}`` are the logits
    g_k = max(f_k, 0) = s_k * f_k    activations, ``g_0 = x``
    s_k = 1[f_k > 0]                 the activation pattern, a mask per hidden layer

A ReLU *is* a mask.  `Network.forward` computes the masks from the points themselves, or takes the
masks of other points: then the network is affine, and directions (a basis vector, a direction of a
plane) go through it like points.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from refmmr.reference.layers import Flatten, Layer, Map

Gradients = list[tuple[np.ndarray, np.ndarray]]
"""One ``(dW, db)`` per affine layer, as the parameters are one ``(W, b)`` each."""


class ForwardCache(NamedTuple):
    """What the forward pass keeps for the backward pass."""

    inputs: list[np.ndarray]  # the input of every layer
    outputs: list[np.ndarray]  # f_k for k = 1, ..., L + 1, shape (n, ..., *shape of layer k)
    masks: list[np.ndarray]  # s_k for k = 1, ..., L, shapes that broadcast against f_k


class Network:
    """A ReLU network.

    Parameters
    ----------
    layers : sequence of Linear, Conv2d and Flatten
        A ReLU follows every layer with weights except the last.
    input_shape : tuple of int
        Shape of one input, ``(d,)`` or ``(channels, height, width)``.
    """

    def __init__(self, layers: Sequence[Layer], input_shape: tuple[int, ...]) -> None:
        self.layers = list(layers)
        self.input_shape = tuple(input_shape)
        # Shape of the input of each layer, then of the logits.
        self.shapes = [self.input_shape]
        for layer in self.layers:
            self.shapes.append(layer.output_shape(self.shapes[-1]))
        # The layers with weights, and their positions in `layers`.
        self.affine_layers = [layer for layer in self.layers if not isinstance(layer, Flatten)]
        self.affine = [i for i, layer in enumerate(self.layers) if not isinstance(layer, Flatten)]
        *self.unit_shapes, self.logits_shape = (self.shapes[i + 1] for i in self.affine)

    def map(self, f: Map) -> Network:
        """The same network on ``f(W)`` and ``f(b)`` of every layer with weights."""
        return Network([layer.map(f) for layer in self.layers], self.input_shape)

    def span(self, k: int) -> range:
        """Positions in `layers` of affine layer k, from 0, and of the `Flatten` layers before it.

        Together they map the activations ``g_{k-1}`` to the pre-activations ``f_k``.
        """
        return range(self.affine[k - 1] + 1 if k else 0, self.affine[k] + 1)

    @property
    def unit_slices(self) -> list[slice]:
        """The position of each hidden layer's units among all N."""
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.unit_shapes)]).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]

    @property
    def n_hidden(self) -> int:
        """Number of hidden units, N."""
        return sum(int(np.prod(shape)) for shape in self.unit_shapes)

    @property
    def n_classes(self) -> int:
        """Number of logits, K."""
        return int(np.prod(self.shapes[-1]))

    @property
    def parameters(self) -> Gradients:
        """One ``(W, b)`` per affine layer."""
        return [(layer.W, layer.b) for layer in self.affine_layers]

    def forward(
        self, X: np.ndarray, masks: Sequence[np.ndarray] | None = None, *, bias: bool = True
    ) -> ForwardCache:
        """Propagate points, or directions, through the network.

        Parameters
        ----------
        X : ndarray, shape (n, ..., *input_shape)
            Points or directions.
        masks : sequence of ndarray, optional
            Frozen activation patterns, shapes that broadcast against the pre-activations.
            Without them each point has its own, ``s_k = 1[f_k > 0]``.
        bias : bool
            False for directions: a difference of two points does not depend on the biases.

        Returns
        -------
        ForwardCache
            Inputs of all layers, pre-activations ``f_1, ..., f_{L+1}`` and masks.
        """
        inputs: list[np.ndarray] = []
        outputs: list[np.ndarray] = []
        used: list[np.ndarray] = []
        g = X
        for i, layer in enumerate(self.layers):
            inputs.append(g)
            g = layer.apply(g) if bias else layer.linear(g)
            if i in self.affine:
                outputs.append(g)
                if i != self.affine[-1]:
                    used.append(g > 0 if masks is None else masks[len(used)])
                    g = g * used[-1]
        return ForwardCache(inputs, outputs, used)

    def backward(self, cache: ForwardCache, df: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Propagate gradients back from the pre-activations that a loss reads to all of them.

        Parameters
        ----------
        cache : ForwardCache
            The result of `forward`.
        df : sequence of (ndarray or None), one per affine layer
            Partial derivatives of the loss J with respect to ``f_k``, the other layers held fixed
            (the cross-entropy reads only the logits, MMR reads all layers).  None is zero.

        Returns
        -------
        list of ndarray, one per affine layer
            The total derivatives ``delta_k = df_k + s_k * (W_{k+1}^T delta_{k+1})``, of the shape
            of ``f_k``.
        """
        deltas = [_or_zero(df[-1], cache.outputs[-1])]
        for k in reversed(range(len(self.affine) - 1)):
            g = deltas[0]
            for i in reversed(self.span(k + 1)):
                g = self.layers[i].transpose(g, self.shapes[i])
            g = g * cache.masks[k]
            if len(cache.outputs[k]) < len(g):  # all samples share the forward pass: sum over them
                g = g.sum(axis=0, keepdims=True)
            deltas.insert(0, g if df[k] is None else g + df[k])
        return deltas

    def at_logits(self, dlogits: np.ndarray) -> list[np.ndarray | None]:
        """The argument `df` for a loss of the logits alone, from its gradient there, (..., K)."""
        last = dlogits.reshape(*dlogits.shape[:-1], *self.logits_shape)
        return [*(None for _ in self.unit_shapes), last]

    def weight_gradients(self, cache: ForwardCache, deltas: Sequence[np.ndarray]) -> Gradients:
        """``dJ / dW_k = delta_k g_{k-1}^T`` and ``dJ / db_k = delta_k``, summed over samples."""
        inputs = [cache.inputs[i] for i in self.affine]
        layers = zip(self.affine_layers, inputs, deltas, strict=True)
        return [layer.gradient(g, delta) for layer, g, delta in layers]

    def input_gradient(self, deltas: Sequence[np.ndarray]) -> np.ndarray:
        """``dJ / dx = W_1^T delta_1``, of the shape of the inputs."""
        g = deltas[0]
        for i in reversed(self.span(0)):
            g = self.layers[i].transpose(g, self.shapes[i])
        return g

    def logits(self, X: np.ndarray) -> np.ndarray:
        """Outputs of the network, shape (n, K)."""
        logits = self.forward(X).outputs[-1]
        return logits.reshape(len(logits), -1)


def logits(net: Network, X: np.ndarray) -> np.ndarray:
    """Outputs of the network: ``(n, *input_shape) -> (n, K)``."""
    return net.logits(X)


def activation_pattern(net: Network, X: np.ndarray) -> np.ndarray:
    """Which hidden units are active, layer by layer: ``(n, *input_shape) -> (n, N)`` bool."""
    masks = net.forward(X).masks
    return flat(masks) if masks else np.zeros_like(X, bool, shape=(len(X), 0))


def flat(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate the units of all layers: arrays ``(n, *unit_shape)`` to one ``(n, N)``.

    A first axis of length 1 (the same for all samples) is broadcast to n.
    """
    n = max(len(layer) for layer in layers)
    parts = [layer.reshape(len(layer), -1) for layer in layers]
    return np.concatenate([np.broadcast_to(part, (n, part.shape[1])) for part in parts], axis=1)


def unflat(units: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The inverse of `flat`: ``(n, N)`` to one ``(n, *unit_shape)`` per layer."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes], dtype=int)
    parts = np.split(units, ends, axis=1)[:-1]
    return [part.reshape(len(part), *shape) for part, shape in zip(parts, shapes, strict=True)]


def zero_gradients(net: Network) -> Gradients:
    """A gradient with respect to the weights to add to: one ``(dW, db)`` per affine layer."""
    return [(np.zeros_like(W), np.zeros_like(b)) for W, b in net.parameters]


def add_mean(total: Gradients, part: Gradients, n: int) -> None:
    """Add the share of a part in a mean over n samples, ``total += part / n``, in place."""
    for (sum_W, sum_b), (dW, db) in zip(total, part, strict=True):
        sum_W += dW / n
        sum_b += db / n


def _or_zero(g: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    return np.zeros_like(like) if g is None else g
