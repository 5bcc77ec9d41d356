"""Twins of the forward pass and of `refmmr.reference.loss`."""

from __future__ import annotations

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.network import groups
from refmmr.backends._cupy.objective import objective
from refmmr.reference import loss as reference
from refmmr.reference import network as reference_network
from refmmr.reference.network import Gradients, Network, flat


@implements("cupy", reference_network.logits)
@on_device
def logits(net: Network, X: cupy.ndarray) -> cupy.ndarray:
    """See `refmmr.reference.network.logits`."""
    return cupy.concatenate([net.logits(X[rows]) for rows in groups(net, len(X), X.itemsize)])


@implements("cupy", reference_network.activation_pattern)
@on_device
def activation_pattern(net: Network, X: cupy.ndarray) -> cupy.ndarray:
    """See `refmmr.reference.network.activation_pattern`."""
    if not net.unit_shapes:
        return cupy.zeros((len(X), 0), bool)
    some = groups(net, len(X), X.itemsize)
    return cupy.concatenate([flat(net.forward(X[rows]).masks) for rows in some])


@implements("cupy", reference.loss_gradient)
@on_device
def loss_gradient(net: Network, X: cupy.ndarray, y: cupy.ndarray) -> tuple[float, Gradients]:
    """See `refmmr.reference.loss.loss_gradient`."""
    found = objective(net, X, y, ())
    return float(found.cross_entropy), found.gradients
