"""The objective of training and its gradient: the twin of `refmmr.reference.objective`."""

from __future__ import annotations

from collections.abc import Sequence

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.loss import logits, loss_gradient
from refmmr.backends._cupy.mmr import mmr_gradient
from refmmr.reference import objective as reference
from refmmr.reference.mmr import Regularizer
from refmmr.reference.network import Network
from refmmr.reference.objective import Objective


@implements("cupy", reference.objective_gradient)
@on_device
def objective_gradient(
    net: Network, X: cupy.ndarray, y: cupy.ndarray, terms: Sequence[Regularizer] = ()
) -> Objective:
    """See `refmmr.reference.objective.objective_gradient`."""
    wrong = (logits(net, X).argmax(axis=1) != y).sum()
    cross_entropy, gradients = loss_gradient(net, X, y)
    mmr = 0.0
    for term in terms:
        value, more = mmr_gradient(net, X, y, term.p, *term[2:])
        mmr += term.lam * value
        gradients = [
            (dW + term.lam * more_W, db + term.lam * more_b)
            for (dW, db), (more_W, more_b) in zip(gradients, more, strict=True)
        ]
    return Objective(cross_entropy, mmr, int(wrong), gradients)
