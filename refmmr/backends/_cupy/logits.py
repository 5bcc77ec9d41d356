"""Twins of the forward pass: `refmmr.reference.network`."""

from __future__ import annotations

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.network import groups
from refmmr.reference import network as reference
from refmmr.reference.network import Network, flat


@implements("cupy", reference.logits)
@on_device
def logits(net: Network, X: cupy.ndarray) -> cupy.ndarray:
    """See `refmmr.reference.network.logits`."""
    return cupy.concatenate([net.logits(X[rows]) for rows in groups(net, len(X), X.itemsize)])


@implements("cupy", reference.activation_pattern)
@on_device
def activation_pattern(net: Network, X: cupy.ndarray) -> cupy.ndarray:
    """See `refmmr.reference.network.activation_pattern`."""
    if not net.unit_shapes:
        return cupy.zeros((len(X), 0), bool)
    some = groups(net, len(X), X.itemsize)
    return cupy.concatenate([flat(net.forward(X[rows]).masks) for rows in some])
