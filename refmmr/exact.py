"""Exact arithmetic: arrays and networks of `fractions.Fraction`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from refmmr.reference.layers import Flatten
from refmmr.reference.network import Network

__all__ = ["exact_classes", "exact_logits", "exact_network", "fractions"]


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


def exact_network(net: Network) -> Network:
    """The same network on fractions: a `refmmr.reference.network.Network` without rounding.

    Parameters
    ----------
    net : Network

    Returns
    -------
    refmmr.reference.network.Network
        Its methods take and give object arrays such as `fractions` makes.

    Examples
    --------
    >>> import refmmr as rm
    >>> hidden, last = rm.Linear([[0.5, 0.25]], [1]), rm.Linear([[1], [2]], [0, 0])
    >>> net = rm.Network([hidden, last], 2)
    >>> exact_network(net).logits(fractions([[1.0, 1.0]]))
    array([[Fraction(7, 4), Fraction(7, 2)]], dtype=object)
    """
    return net.map(fractions)


def exact_classes(net: Network, X: np.ndarray) -> np.ndarray:
    """Class of the largest logit of each point (the first of equals), computed without rounding.

    Floats are integers times a power of two.  With one power for each layer, a forward pass needs
    integers alone, and gives the logits times a power of two.

    Parameters
    ----------
    net : Network
        Of floats.
    X : ndarray, shape (n, *input_shape)

    Returns
    -------
    ndarray of int, shape (n,)

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[0, 0, 0], [1e16, 1, -1e16]], [0.5, 0])], 3)
    >>> X = np.ones((1, 3))
    >>> net.predict(X), exact_classes(net, X)
    (array([0]), array([1]))
    """
    if not len(X):
        return np.zeros(0, dtype=int)  # to make the network of integers takes long
    first = _fraction_bits(X)
    exact, _ = _integer_network(net, first)
    classes = [exact.logits(_integers(x[None], first)).argmax() for x in X]
    return np.array(classes, dtype=int)


def exact_logits(net: Network, x: Sequence[Fraction]) -> list[Fraction]:
    """The logits of one input, computed without rounding.

    With the common denominator of the inputs taken out, all is done by integers, as in
    `exact_classes`.

    Parameters
    ----------
    net : Network
        Of floats.
    x : sequence of Fraction
        The numbers of one input, flattened.

    Returns
    -------
    list of Fraction, length K

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[0.5, 0.25]], [1]), rm.Linear([[1], [2]], [0, 0])], 2)
    >>> exact_logits(net, [Fraction(1, 3), Fraction(0)])
    [Fraction(7, 6), Fraction(7, 3)]
    """
    denominator = math.lcm(*(number.denominator for number in x))
    wholes = np.array([int(number * denominator) for number in x], dtype=object)
    exact, power = _integer_network(net, 0, denominator)
    logits = exact.logits(wholes.reshape(1, *net.input_shape))[0]
    return [Fraction(int(value), denominator << power) for value in logits]


def _integer_network(net: Network, power: int, factor: int = 1) -> tuple[Network, int]:
    """A network of integers, for inputs that were multiplied by ``2^power * factor``.

    Its logits are those of the network times ``2^k * factor``; k is returned too.
    """
    layers = []
    for layer in net.layers:
        if not isinstance(layer, Flatten):
            own = max(_fraction_bits(layer.W), _fraction_bits(layer.b) - power)
            power += own
            # `map` gives a layer of the reference, which takes numbers of any kind.
            plain = layer.map(np.asarray)
            b = _integers(layer.b, power) * factor
            layer = plain.with_weights(_integers(layer.W, own), b)
        layers.append(layer)
    return Network(layers, net.input_shape), power


MANTISSA = 53
"""Bits of a float64: it is an integer of at most as many bits, times a power of two."""


def _fraction_bits(array: np.ndarray) -> int:
    """A k >= 0 for which all numbers times ``2^k`` are integers."""
    exponents = np.frexp(array[array != 0])[1]
    return max(0, MANTISSA - int(exponents.min(initial=MANTISSA)))


def _integers(array: np.ndarray, power: int) -> np.ndarray:
    """All numbers times ``2^power``, as integers of Python in an object array."""
    mantissas, exponents = np.frexp(array)
    wholes = np.ldexp(mantissas, MANTISSA).astype(np.int64).astype(object)
    shifts = np.where(array == 0, 0, exponents - MANTISSA + power)
    return np.left_shift(wholes, shifts.astype(object))
