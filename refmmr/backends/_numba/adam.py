"""Adam's step: the twin of `refmmr.reference.adam.update`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.reference import adam as reference

MIN_NUMBERS = 2**16
"""Weights of a thread at least: updating them takes about as long as starting it."""


class Rates(NamedTuple):
    """The constants of a step."""

    scale: float  # learning rate, with the correction of the bias
    mean: float  # beta_1, beta_2
    square: float
    epsilon: float


@implements("numba", reference.update)
def update(
    arrays: list[np.ndarray],
    means: list[np.ndarray],
    squares: list[np.ndarray],
    gradients: list[np.ndarray],
    scale: float,
) -> None:
    """Twin of `refmmr.reference.adam.update`: memory is read once instead of a dozen times."""
    rates = Rates(scale, *reference.BETAS, reference.EPSILON)
    for group in zip(arrays, means, squares, gradients, strict=True):
        if all(part.flags.c_contiguous for part in group):
            flat = (part.reshape(-1) for part in group)
            threads.spread(_update, group[0].size, *flat, rates, least=MIN_NUMBERS)
        else:
            array, mean, square, gradient = group
            reference.update([array], [mean], [square], [gradient], scale)


@jit
def _update(start, stop, arrays, means, squares, gradients, rates):
    """The step of `update` on the numbers start, ..., stop - 1 of four arrays (m,)."""
    number = arrays.dtype.type
    scale, epsilon = number(rates.scale), number(rates.epsilon)
    new_mean, new_square = number(1 - rates.mean), number(1 - rates.square)
    for i in range(start, stop):
        g = gradients[i]
        means[i] += new_mean * (g - means[i])
        squares[i] += new_square * (g * g - squares[i])
        arrays[i] -= scale * means[i] / (np.sqrt(squares[i]) + epsilon)
