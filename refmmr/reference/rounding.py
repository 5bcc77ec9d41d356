"""How wrong floats can be: a-priori bounds on the rounding error of f and V.

A sum of n products, added in any order, is off by at most ``gamma_n |w| . |x|`` with
``gamma_n = n u / (1 - n u)`` and u the unit roundoff; and a chain of such products by at most
``gamma`` of all the terms together, times the same chain of *absolute values* (Higham, Accuracy and
Stability of Numerical Algorithms, sections 3.1 and 3.5).  A ReLU does not add to it: with the right
masks it is an exact product with 0 or 1.  So one forward pass through the network of absolute
weights bounds the error of a forward pass, at every unit:

    |computed f_k - f_k|          <=  gamma * |W_k| s_{k-1} |W_{k-1}| ... (|W_1| |x| + |b_1|) ...
    ||computed V_k - V_k||_q      <=  gamma * |W_k| s_{k-1} |W_{k-1}| ... |W_1| 1

(the second is the l_1 norm of the row, which is at least its l_q norm).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr.reference.network import Network

UNDERFLOW = 1e-150
"""Added to every bound: what products and squares too small for a float lose is less."""


def rounding_factor(n: int) -> float:
    """``n u / (1 - n u)`` for float64."""
    u = np.finfo(np.float64).eps / 2
    return n * u / (1 - n * u)


def roundings(net: Network) -> list[int]:
    """Roundings on the way from the input to f_k: terms of all sums so far, biases included.

    Twice as many as there are, which covers the rounding of the bound itself.
    """
    terms = [int(np.prod(W.shape[1:])) + 1 for W, _ in net.parameters]
    return [2 * int(total) + 8 for total in np.cumsum(terms)]


def absolute(net: Network) -> Network:
    """The network of absolute weights and biases."""
    return net.map(np.abs)


def indicator(net: Network) -> Network:
    """The network with a 1 for every weight and bias that is not 0: it counts paths."""
    return net.map(lambda weights: 1.0 * (weights != 0))


def value_errors(
    net: Network, X: np.ndarray, masks: Sequence[np.ndarray] | None = None, *, extra: int = 0
) -> list[np.ndarray]:
    """Bounds on the error of ``f_1, ..., f_{L+1}`` at X, shapes (n, *unit_shape).

    They hold if the masks are right: where ``|f_k| <= bound`` in a hidden layer, the mask of that
    unit is uncertain and the bounds of the layers behind it are void.  Without masks the magnitudes
    of all units are summed, and the bounds hold in any case: a float on the wrong side of a ReLU is
    off by no more than the pre-activation itself is.  The bound is 0 where no weight or bias leads
    to the unit: it is 0 on the whole region.  `extra` roundings of each product are allowed for.
    """
    if masks is None:
        masks = [np.ones((1, *shape), dtype=bool) for shape in net.unit_shapes]
    return _bounds(net, np.abs(X), masks, bias=True, extra=extra)


def gradient_errors(net: Network, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Bounds on the l_q error, any q, of the rows of ``V_1, ..., V_{L+1}``, as `value_errors`.

    The bound is 0 where no weight leads to the unit: it is constant on the whole region.
    """
    return _bounds(net, np.ones((1, *net.input_shape)), masks, bias=False)


def _bounds(net, inputs, masks, bias, extra=0):
    """``gamma`` times the sum of all absolute products, wherever there is any product."""
    magnitudes = absolute(net).forward(inputs, masks, bias=bias).outputs
    paths = indicator(net).forward(np.ones((1, *net.input_shape)), masks, bias=bias).outputs
    return [
        np.where(path > 0, rounding_factor(count + extra) * magnitude + UNDERFLOW, 0)
        for count, magnitude, path in zip(roundings(net), magnitudes, paths, strict=True)
    ]
