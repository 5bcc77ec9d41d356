"""A-priori bounds on the rounding errors of f, of V and of backward bounds, in float64.

A sum of n products, added in any order, has an error of at most ``gamma_n |w| . |x|`` with
``gamma_n = n u / (1 - n u)`` and u the unit roundoff.  A chain of such products has an error of at
most ``gamma`` of all the terms together, times the same chain of *absolute values* (Higham 2002,
sections 3.1 and 3.5).  A ReLU does not add to it: with the right masks it is an exact product with
0 or 1.  So one forward pass through the network of absolute weights bounds the error of a forward
pass, at every unit:

    |computed f_k - f_k|      <=  gamma * |W_k| s_{k-1} |W_{k-1}| ... (|W_1| |x| + |b_1|) ...
    ||computed V_k - V_k||_q  <=  gamma * |W_k| s_{k-1} |W_{k-1}| ... |W_1| 1

(the second is the l_1 norm of the row, which is at least its l_q norm).

**Underflow.**  A product below the smallest normal number t has an error of at most ``u t``, like a
product of size t (sums do not underflow).  So the errors of n products add up to at most
``n u t <= gamma_n t``, and a bound covers underflow if t is added to its sum of absolute products.
In the pass above, t is added to the absolute biases of every layer, so that later layers multiply
it by their weights.

**Backward bounds.**  A backward bound (`refmmr.reference.backward_bound`) replaces ``A f_k`` by
``G g_{k-1} + A b_k`` with ``G = A W_k``.  The error of G is multiplied by the activations
``g_{k-1}`` alone, whose size on the ball is bounded.  So the error of a step is at most

    gamma * ( |A| (|W_k| max|g_{k-1}| + |b_k|)  +  t (1 + sum max|g_{k-1}|) ),

and the errors of all steps are summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.ball import Ball
from refmmr.reference.layers import Flatten
from refmmr.reference.network import Network

SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)
"""The t of underflow, ``2^-1022``."""


def rounding_factor(n: int) -> float:
    """``gamma_n = n u / (1 - n u)`` for float64."""
    u = 2.0**-53
    return n * u / (1 - n * u)


def roundings(net: Network) -> list[int]:
    """Roundings between the input and each f_k: the terms of all sums up to it, biases included.

    Twice their number, which also covers the rounding of the bound itself.
    """
    terms = [int(np.prod(W.shape[1:])) + 1 for W, _ in net.parameters]
    return [2 * int(total) + 8 for total in np.cumsum(terms)]


def absolute(net: Network, *, bias: bool = True) -> Network:
    """The network of absolute weights and biases, with an allowance for underflow in the biases.

    It is t times the number of inputs: a row of V consists of one sum for each input.
    """
    allowance = SMALLEST_NORMAL * float(np.prod(net.input_shape))
    layers = [
        layer
        if isinstance(layer, Flatten)
        else layer.with_weights(np.abs(layer.W), bias * np.abs(layer.b) + allowance)
        for layer in net.layers
    ]
    return Network(layers, net.input_shape)


def indicator(net: Network) -> Network:
    """The network with a 1 for every weight and bias that is not 0: it counts paths."""
    return net.map(lambda weights: 1.0 * (weights != 0))


def value_errors(
    net: Network, X: np.ndarray, masks: Sequence[np.ndarray] | None = None, *, extra: int = 0
) -> list[np.ndarray]:
    """Bounds on the error of ``f_1, ..., f_{L+1}`` at X, shapes (n, *unit_shape).

    They hold if the masks are right: where ``|f_k| <= bound`` in a hidden layer, the mask of that
    unit is uncertain and the bounds of later layers are void.  Without masks the magnitudes of all
    units are summed, and the bounds always hold: a wrong mask changes an activation by no more than
    the error of the pre-activation.  The bound is 0 where no path of nonzero weights leads to the
    unit from an input or a bias: f is exactly 0 there.  `extra` is a number of further roundings.
    """
    if masks is None:
        masks = [np.ones((1, *shape), dtype=bool) for shape in net.unit_shapes]
    return _bounds(net, np.abs(X), masks, bias=True, extra=extra)


def gradient_errors(net: Network, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Bounds on the l_q error, any q, of the rows of ``V_1, ..., V_{L+1}``; see `value_errors`.

    The bound is 0 where no path of nonzero weights leads from an input to the unit: V is 0 there.
    """
    return _bounds(net, np.ones((1, *net.input_shape)), masks, bias=False)


def _bounds(net, inputs, masks, bias, extra=0):
    """``gamma`` times the sum of absolute products; 0 for units that no path leads to."""
    magnitudes = absolute(net, bias=bias).forward(inputs, masks).outputs
    paths = indicator(net).forward(np.ones((1, *net.input_shape)), masks, bias=bias).outputs
    return [
        # A product below the normal numbers has few digits: t covers their error, too.
        np.where(path > 0, rounding_factor(count + extra) * magnitude + SMALLEST_NORMAL, 0)
        for count, magnitude, path in zip(roundings(net), magnitudes, paths, strict=True)
    ]


class Magnitude(NamedTuple):
    """Bounds on the absolute terms that an affine layer sums, on each of n balls."""

    terms: np.ndarray  # |W_k| |g_{k-1}| + |b_k| + t, (n, *unit_shape)
    inputs: np.ndarray  # the sum of all |g_{k-1}|, (n,)


def layer_magnitudes(
    net: Network, ball: Ball, bounds: Sequence[tuple[np.ndarray, np.ndarray]], first: int = 0
) -> list[Magnitude]:
    """The magnitudes of the layers ``first, ..., len(bounds)``, counted from 0.

    `bounds` are (lower, upper) of the first hidden layers, arrays (n, *unit_shape).
    """
    largest = np.maximum(np.abs(ball.lowest), np.abs(ball.highest))
    sizes = [largest.reshape(-1, *net.input_shape)]
    sizes += [np.maximum(np.abs(lower), np.abs(upper)) for lower, upper in bounds]
    return [_magnitude(net, k, size) for k, size in enumerate(sizes) if k >= first]


def _magnitude(net, k, size):
    inputs = size.reshape(len(size), -1).sum(axis=1)
    for i in net.span(k)[:-1]:
        size = net.layers[i].apply(size)
    layer = net.affine_layers[k].map(np.abs)
    return Magnitude(layer.apply(size) + SMALLEST_NORMAL, inputs)


def backward_errors(net: Network, rows: np.ndarray, magnitude: Magnitude) -> np.ndarray:
    """Bounds on the error of one backward step of ``rows . f_k``, rows (n or 1, m, *shape): (n, m).

    They cover the relaxation of the activations before the layer, too.
    """
    terms = np.abs(rows) * magnitude.terms[:, None]
    sums = terms.reshape(*terms.shape[:2], -1).sum(axis=-1)
    return backward_factor(net) * (sums + SMALLEST_NORMAL * (1 + magnitude.inputs[:, None]))


def backward_factor(net: Network) -> float:
    """``gamma_n`` with n above the number of roundings between a layer and the input.

    A step sums over the units of a layer, and so do biases and intercepts; the last sum is over the
    inputs.  Eight times the number of all terms also covers the relaxations, the minimum on the
    ball and the rounding of the error itself.
    """
    return rounding_factor(8 * sum(math.prod(shape) for shape in net.shapes) + 64)
