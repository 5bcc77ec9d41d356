"""The gradients of the cross-entropy and of margins: twins of `refmmr.reference.loss`."""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layout import Layout, add_up, runs
from refmmr.backends._numba.network import BLOCK, Passes
from refmmr.reference import loss as reference
from refmmr.reference.network import Gradients, Network

MIN_SAMPLES = 16
"""Samples of a thread at least: each has gradients of its own, which are added up in the end."""


class Losses:
    """Cross-entropy of each sample, (n,), and whether it is misclassified, as passes go along."""

    def __init__(self, y: np.ndarray, dtype: np.dtype) -> None:
        self.y = y.astype(np.int64, copy=False)
        self.values, self.wrong = np.empty(len(y), dtype), np.empty(len(y), bool)

    def add_gradient(self, rows: slice, logits: np.ndarray, dlogits: np.ndarray) -> None:
        """Add the gradient of the mean over all samples to `dlogits`, (samples of `rows`, K)."""
        y, values, wrong = self.y[rows], self.values[rows], self.wrong[rows]
        _cross_entropy(logits, y, 1 / len(self.y), values, wrong, dlogits)

    def mean(self) -> float:
        """Mean cross-entropy."""
        return float(self.values.mean())


def losses_and_gradient(net: Network, X: np.ndarray, y: np.ndarray) -> tuple[Losses, Gradients]:
    """Cross-entropy and errors of a batch, and the gradient of the mean cross-entropy."""
    layout = Layout(net, X)
    losses = Losses(y, layout.dtype)
    parts: dict[int, Gradients] = {}

    def part(start: int, stop: int) -> None:
        passes, sums = Passes(layout.layers, layout.dtype), layout.zeros()
        for here in runs(start, stop, BLOCK):
            cache = passes.forward(layout.inputs(X[here]))
            dlogits = np.zeros_like(cache.logits)
            losses.add_gradient(here, cache.logits, dlogits)
            passes.add_gradients(cache, passes.backward(dlogits, cache.masks), sums)
        parts[start] = sums

    threads.spread(part, len(X), least=max(MIN_SAMPLES, layout.samples_per_thread(3)))
    return losses, layout.gradients(add_up(parts))


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


@jit
def _cross_entropy(logits, y, scale, losses, wrong, dlogits):
    """Cross-entropy of each sample, and ``scale`` times its gradient.

    Twin of `loss.cross_entropy` and `loss.cross_entropy_gradient`.  logits: (n, K).  y: (n,).
    losses, wrong: (n,), the results; wrong where another class has the first largest logit.
    dlogits: (n, K), added to.
    """
    number = logits.dtype.type
    powers = np.empty(logits.shape[1], logits.dtype)
    for n in range(len(logits)):
        row, own, first = logits[n], y[n], 0
        for s in range(len(row)):
            if row[s] > row[first]:
                first = s
        rivals = number(0)
        for s in range(len(row)):
            powers[s] = np.exp(row[s] - row[first])
            rivals += powers[s] if s != own else number(0)
        total = rivals + powers[own]
        losses[n] = np.log(total) - (row[own] - row[first])
        wrong[n] = first != own
        factor = number(scale) / total
        for s in range(len(row)):
            # The own entry is minus the sum of the others: softmax - 1 would cancel.
            dlogits[n, s] += factor * powers[s] if s != own else -factor * rivals
