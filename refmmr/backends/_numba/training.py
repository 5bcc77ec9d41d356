"""Forward passes, the gradient of the cross-entropy, and Adam's step."""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layout import Layout, add_up, runs
from refmmr.reference import adam as reference_adam
from refmmr.reference import loss as reference_loss
from refmmr.reference import network as reference_network
from refmmr.reference.network import Gradients, Network

BLOCK = 64
"""Samples that go through the network together."""


@implements("numba", reference_network.logits)
def logits(net: Network, X: np.ndarray) -> np.ndarray:
    """Twin of `refmmr.reference.network.logits`."""
    layout = Layout(net, X)
    result = np.empty((len(X), net.n_classes), layout.dtype)

    def part(first: int, stop: int) -> None:
        passes = layout.passes()
        for here in runs(first, stop, BLOCK):
            result[here] = passes.forward(layout.inputs(X[here])).logits

    threads.spread(part, len(X), least=max(BLOCK, layout.least(1)))
    return result


@implements("numba", reference_network.activation_pattern)
def activation_pattern(net: Network, X: np.ndarray) -> np.ndarray:
    """Twin of `refmmr.reference.network.activation_pattern`."""
    layout = Layout(net, X)
    result = np.empty((len(X), net.n_hidden), bool)

    def part(first: int, stop: int) -> None:
        passes = layout.passes()
        for here in runs(first, stop, BLOCK):
            unit = 0
            for k, mask in enumerate(passes.forward(layout.inputs(X[here])).masks):
                result[here, unit : unit + mask.shape[1]] = layout.units(k, mask)
                unit += mask.shape[1]

    threads.spread(part, len(X), least=max(BLOCK, layout.least(1)))
    return result


@implements("numba", reference_loss.loss_gradient)
def loss_gradient(net: Network, X: np.ndarray, y: np.ndarray) -> tuple[float, Gradients]:
    """Twin of `refmmr.reference.loss.loss_gradient`."""
    layout = Layout(net, X)
    values = np.empty(len(X), layout.dtype)
    parts: dict[int, Gradients] = {}

    def part(first: int, stop: int) -> None:
        passes, sums = layout.passes(), layout.zeros()
        for here in runs(first, stop, BLOCK):
            cache = passes.forward(layout.inputs(X[here]))
            values[here] = reference_loss.cross_entropy(cache.logits, y[here])
            delta = reference_loss.cross_entropy_gradient(cache.logits, y[here]) / len(X)
            passes.add_gradients(cache, passes.backward(delta, cache.masks), sums)
        parts[first] = sums

    threads.spread(part, len(X), least=max(16, layout.least(3)))
    return float(values.mean()), layout.gradients(add_up(parts))


@implements("numba", reference_adam.update)
def update(
    arrays: list[np.ndarray],
    means: list[np.ndarray],
    squares: list[np.ndarray],
    gradients: list[np.ndarray],
    scale: float,
) -> None:
    """Twin of `refmmr.reference.adam.update`: one run over memory instead of a dozen."""
    for group in zip(arrays, means, squares, gradients, strict=True):
        if not all(part.flags.c_contiguous for part in group):
            array, mean, square, gradient = group
            reference_adam.update([array], [mean], [square], [gradient], scale)
            continue
        array, mean, square, gradient = (part.reshape(-1) for part in group)
        threads.spread(
            _update, array.size, array, mean, square, gradient, scale, *reference_adam.BETAS,
            reference_adam.EPSILON, least=2**16,
        )  # fmt: skip


@jit
def _update(start, stop, arrays, means, squares, gradients, scale, first, second, epsilon):
    scale, epsilon = arrays.dtype.type(scale), arrays.dtype.type(epsilon)
    new_mean, new_square = arrays.dtype.type(1 - first), arrays.dtype.type(1 - second)
    for i in range(start, stop):
        g = gradients[i]
        means[i] += new_mean * (g - means[i])
        squares[i] += new_square * (g * g - squares[i])
        arrays[i] -= scale * means[i] / (np.sqrt(squares[i]) + epsilon)
