"""The same numbers without rounding: arrays and networks of `fractions.Fraction`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from refmmr.reference import layers as _layers
from refmmr.reference import network as _network

__all__ = ["exact_network", "fractions"]


def fractions(array: Any) -> np.ndarray:
    """The same numbers as `fractions.Fraction`, in an object array.

    Examples
    --------
    >>> fractions([0.5, -3])
    array([Fraction(1, 2), Fraction(-3, 1)], dtype=object)
    """
    array = np.asarray(array)
    numbers = [Fraction(number) for number in array.ravel().tolist()]
    return np.array(numbers, dtype=object).reshape(array.shape)


def exact_network(net: _network.Network) -> _network.Network:
    """The same network on fractions: a `refmmr.reference.network.Network` without rounding.

    Parameters
    ----------
    net : Network

    Returns
    -------
    refmmr.reference.network.Network
        Its methods take and give object arrays such as `fractions` makes.
    """
    layers: list[_layers.Layer] = []
    for layer in net.layers:
        if isinstance(layer, _layers.Conv2d):
            W, b = fractions(layer.W), fractions(layer.b)
            layers.append(_layers.Conv2d(W, b, layer.stride, layer.padding))
        elif isinstance(layer, _layers.Linear):
            layers.append(_layers.Linear(fractions(layer.W), fractions(layer.b)))
        else:
            layers.append(layer)
    return _network.Network(layers, net.input_shape)
