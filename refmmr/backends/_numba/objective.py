"""The objective of training and its gradient: the twin of `refmmr.reference.objective`.

The cross-entropy joins the regularizers where both read the logits: one forward pass of the samples
and one backward pass serve them together.  Regularizers of several norms share the rows of V.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.distances import Block, Shared
from refmmr.backends._numba.layout import add_up, runs
from refmmr.backends._numba.loss import Losses, losses_and_gradient
from refmmr.backends._numba.mmr_gradient import GradientWorker
from refmmr.backends._numba.network import BLOCK
from refmmr.reference import objective as reference
from refmmr.reference.mmr import Regularizer
from refmmr.reference.network import Gradients, Network
from refmmr.reference.objective import Objective


@implements("numba", reference.objective_gradient)
def objective_gradient(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    terms: Sequence[Regularizer] = (),
    border: str = "exact",
    nearest: str = "each",
) -> Objective:
    """Twin of `refmmr.reference.objective.objective_gradient`."""
    if not terms:
        losses, gradients = losses_and_gradient(net, X, y)
        return Objective(losses.mean(), 0.0, int(losses.wrong.sum()), gradients)
    shared = Shared(net, X, *(term.p for term in terms), border=border)
    losses, values = Losses(y, shared.dtype), np.zeros((2, len(X)), shared.dtype)
    parts: dict[int, Gradients] = {}

    def part(start: int, stop: int) -> None:
        worker = ObjectiveWorker(shared, terms, nearest, losses)
        for rows in runs(start, stop, BLOCK):
            worker.rows = rows
            worker.add_gradients(X[rows], y[rows], values[:, rows])
        parts[start] = worker.finish()

    threads.spread(part, len(X), least=shared.samples_per_thread)
    mmr = float(values.sum(dtype=np.float64)) / len(X)
    gradients = shared.layout.gradients(add_up(parts))
    return Objective(losses.mean(), mmr, int(losses.wrong.sum()), gradients)


class ObjectiveWorker(GradientWorker):
    """Adds up the gradient of cross-entropy and regularizers, with the memory of one thread."""

    def __init__(
        self, shared: Shared, terms: Sequence[Regularizer], nearest: str, losses: Losses
    ) -> None:
        super().__init__(shared, terms, nearest)
        self.losses = losses
        self.rows = slice(0)  # the block at work

    def logit_gradient(self, block: Block, dmargin: np.ndarray) -> np.ndarray:
        """Gradient with respect to the logits: of the margins, and of the cross-entropy, (n, K)."""
        dlogits = super().logit_gradient(block, dmargin)
        self.losses.add_gradient(self.rows, block.cache.logits, dlogits)
        return dlogits
