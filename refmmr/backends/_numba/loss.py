"""The gradients of the cross-entropy and of margins: twins of `refmmr.reference.loss`."""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.layout import Layout, add_up, runs
from refmmr.backends._numba.network import BLOCK, Passes
from refmmr.reference import loss as reference
from refmmr.reference.network import Gradients, Network

MIN_SAMPLES = 16
"""Samples of a thread at least: each has gradients of its own, which are added up in the end."""


@implements("numba", reference.loss_gradient)
def loss_gradient(net: Network, X: np.ndarray, y: np.ndarray) -> tuple[float, Gradients]:
    """Twin of `refmmr.reference.loss.loss_gradient`."""
    layout = Layout(net, X)
    values = np.empty(len(X), layout.dtype)
    parts: dict[int, Gradients] = {}

    def part(start: int, stop: int) -> None:
        passes, sums = Passes(layout.layers, layout.dtype), layout.zeros()
        for here in runs(start, stop, BLOCK):
            cache = passes.forward(layout.inputs(X[here]))
            values[here] = reference.cross_entropy(cache.logits, y[here])
            dlogits = reference.cross_entropy_gradient(cache.logits, y[here]) / len(X)
            passes.add_gradients(cache, passes.backward(dlogits, cache.masks), sums)
        parts[start] = sums

    threads.spread(part, len(X), least=max(MIN_SAMPLES, layout.samples_per_thread(3)))
    return float(values.mean()), layout.gradients(add_up(parts))


@implements("numba", reference.margin_gradients)
def margin_gradients(
    net: Network, Z: np.ndarray, y: np.ndarray, rivals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Twin of `refmmr.reference.loss.margin_gradients`."""
    layout = Layout(net, Z)
    (n, r), flat = rivals.shape, layout.inputs(Z)
    logits = np.empty((n, net.n_classes), layout.dtype)
    gradients = np.empty((n * r, flat.shape[1]), layout.dtype)
    dlogits = np.zeros((n * r, net.n_classes), layout.dtype)
    rows = np.arange(n * r)
    dlogits[rows, np.repeat(y, r)] = 1
    dlogits[rows, rivals.reshape(-1)] = -1

    def part(start: int, stop: int) -> None:
        passes = Passes(layout.layers, layout.dtype)
        for here in runs(start, stop, max(1, BLOCK // r)):
            margins = slice(here.start * r, here.stop * r)
            cache = passes.forward(flat[here])
            logits[here] = cache.logits
            masks = [np.repeat(mask, r, axis=0) for mask in cache.masks]
            deltas = passes.backward(dlogits[margins], masks)
            gradients[margins] = passes.input_gradient(deltas[0])

    threads.spread(part, n, least=layout.samples_per_thread(1 + r))
    return logits, layout.inputs_back(gradients).reshape(n, r, -1)
