"""Interval bound propagation, IBP (Gowal et al. 2018, Mirman et al. 2018).

If every input of a layer lies between ``lower`` and ``upper``, that is within ``radius`` of the
``center``, an output lies within ``|W| radius`` of ``W center + b``.  The ReLU maps both ends.
Layer by layer this bounds the whole network, at the cost of two forward passes; the bounds are
loose because the units of a layer cannot all be at their worst at once.
"""

from __future__ import annotations

import numpy as np

from refmmr.reference.network import Network
from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor

Bounds = tuple[np.ndarray, np.ndarray]
"""(lower, upper) of the pre-activations of a layer, each (n, *unit_shape)."""


def through(net: Network, k: int, lower: np.ndarray, upper: np.ndarray) -> Bounds:
    """Bounds of ``f_k`` (k from 0) from bounds of its inputs, valid in real arithmetic.

    ``W (lower + upper) / 2 + b  -+  |W| (upper - lower) / 2``, rounded outwards.

    Parameters
    ----------
    net : Network
    k : int
        The affine layer.
    lower, upper : ndarray, shape (n, *shape)
        Of the input of the network for k = 0, else of ``f_{k-1}`` (before the ReLU).

    Returns
    -------
    lower, upper : ndarray, shape (n, *unit_shape)
    """
    if k > 0:
        lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)
    for i in net.span(k)[:-1]:
        lower, upper = net.layers[i].apply(lower), net.layers[i].apply(upper)
    layer = net.affine_layers[k]
    size = layer.with_weights(np.abs(layer.W), np.abs(layer.b))
    # Division by 2 comes last: half of the smallest float is 0, which a large weight would magnify.
    middle = layer.with_weights(layer.W, 2 * layer.b).apply(lower + upper) / 2
    spread = size.linear(upper - lower) / 2
    # The sums of `middle` and `spread`, and a few roundings of terms no larger than these.
    terms = 2 * layer.W[0].size + 32
    largest = size.apply(np.maximum(np.abs(lower), np.abs(upper)))
    slack = rounding_factor(terms) * (largest + SMALLEST_NORMAL)
    low, high = middle - spread - slack, middle + spread + slack
    if k > 0:
        # Terms of at least 0 have a sum of at least 0, whatever was rounded: such a unit, one that
        # carries an activation to the next layer for instance, is always active.
        sure = (layer.W >= 0).all(axis=tuple(range(1, layer.W.ndim))) & (layer.b >= 0)
        low[:, sure] = np.maximum(low[:, sure], 0)
    return low, high
