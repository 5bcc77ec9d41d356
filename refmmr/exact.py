"""Exact arithmetic: arrays and networks of `fractions.Fraction`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from refmmr.reference.network import Network

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
    >>> net = rm.Network([rm.Linear([[0.5, 0.25]], [1]), rm.Linear([[1], [2]], [0, 0])], 2)
    >>> exact_network(net).logits(fractions([[1.0, 1.0]]))
    array([[Fraction(7, 4), Fraction(7, 2)]], dtype=object)
    """
    return net.map(fractions)
