"""Training on the bound of Wong and Kolter: the twin of `refmmr.reference.wong_kolter`.

Each thread takes samples of its own, to the bounds and back to the gradients:

- several hidden layers: one compiled function goes through a sample's layers, forward and backward
  (`wong_kolter_blocks`, `wong_kolter_kernels`);
- at most one: the rows of many samples' margins are one matrix product (`wong_kolter_rows`).

The first layer's coefficients are its weights, the same for all samples (`wong_kolter_first`).
"""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.layout import PRODUCTS_PER_THREAD, Layout, add_up, runs
from refmmr.backends._numba.wong_kolter_blocks import BlockPlan, BlockWorker
from refmmr.backends._numba.wong_kolter_first import FirstLayer
from refmmr.backends._numba.wong_kolter_rows import RowWorker
from refmmr.reference import wong_kolter as reference
from refmmr.reference.network import Gradients, Network

SAMPLES = 32
"""Samples that a thread takes at a time: their first layer is one product."""


@implements("numba", reference.robust_loss_gradient)
def robust_loss_gradient(
    net: Network, X: np.ndarray, y: np.ndarray, p: float, eps: float
) -> tuple[float, float, Gradients]:
    """Twin of `refmmr.reference.wong_kolter.robust_loss_gradient`."""
    layout = Layout(net, X)
    first = FirstLayer(layout, float(p))
    plan = BlockPlan(first, float(eps)) if len(layout.layers) > 2 else None
    workers: dict[int, RowWorker | BlockWorker] = {}

    def part(start: int, stop: int) -> None:
        worker = BlockWorker(plan, len(X)) if plan else RowWorker(first, float(eps), len(X))
        workers[start] = worker
        for here in runs(start, stop, SAMPLES):
            worker.add(X[here], y[here])

    threads.spread(part, len(X), least=_samples_per_thread(layout))
    ordered = [workers[start] for start in sorted(workers)]
    sums = add_up({start: worker.gradients() for start, worker in workers.items()})
    if len(layout.layers) > 1:
        dW, _ = sums[0]
        dW += first.norms_gradient(np.sum([worker.dnorms for worker in ordered], axis=0))
    value = sum(worker.value for worker in ordered)
    wrong = sum(worker.wrong for worker in ordered)
    return value, wrong / len(X), layout.gradients(sums)


def _samples_per_thread(layout: Layout) -> int:
    """Samples that are worth a thread; the coefficients of a layer's units pass the one before."""
    pairs = zip(layout.layers, layout.layers[1:], strict=False)
    products = 3 * sum(before.products * len(after.W) for before, after in pairs)
    return max(1, PRODUCTS_PER_THREAD // max(1, products))
