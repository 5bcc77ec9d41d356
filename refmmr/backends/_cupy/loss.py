"""Twins of the forward pass and of `refmmr.reference.loss`."""

from __future__ import annotations

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.network import groups, one_hot
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
    cache = net.forward(X)
    found = cache.outputs[-1].reshape(len(X), -1)
    own = one_hot(y, net.n_classes)
    shifted = found - found.max(axis=1, keepdims=True)
    losses = cupy.log(cupy.exp(shifted).sum(axis=1)) - cupy.where(own, shifted, 0).sum(axis=1)
    # The class's own entry is minus the sum of the others: softmax - 1 would cancel.
    rivals = cupy.where(own, 0, reference.softmax(found))
    dlogits = cupy.where(own, -rivals.sum(axis=1, keepdims=True), rivals) / len(X)
    deltas = backward(net, cache, dlogits)
    return float(losses.mean()), net.weight_gradients(cache, deltas)


def backward(net, cache, dlogits):
    """Gradients with respect to all pre-activations from that to the logits, ``(n, K)``."""
    return net.backward(cache, net.at_logits(dlogits))
