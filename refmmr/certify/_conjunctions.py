"""The largest row of a clause, as the output of a network.

A clause has a counterexample where all its rows ``g_1, ..., g_m`` are at most 0.  Each row may be
negative somewhere, and yet ``max_i g_i`` positive everywhere.  The maximum of two numbers of at
least 0 is ``b + ReLU(a - b)``, so the network is continued:

    f                       logits, shifted to be at least 0, so that a ReLU leaves them as they are
    v_i = g_i + t           rows of the clause
    v_b + ReLU(v_a - v_b)   maxima of pairs, of pairs of these, ...

and branch and bound decides about it as about any network.  The lower slope alpha of such a unit
makes the bound one of ``alpha v_a + (1 - alpha) v_b``: gradient steps look for the convex
combination of rows that is proved best (a Lagrangian bound).  Fixing the unit chooses a row.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from refmmr.certify._clauses import rounded
from refmmr.certify.bounds import _place
from refmmr.network import Flatten, Linear, Network
from refmmr.reference.intervals import through
from refmmr.reference.rounding import layer_magnitudes

SLACK = 1e-6
"""Added to shifts, relative to the numbers shifted: what is computed of their signs has errors."""


def largest_row(
    net: Network, C: np.ndarray, constants: np.ndarray, lowest: np.ndarray, f_lower: np.ndarray
) -> tuple[Network, float]:
    """A network and a constant: where their sum is positive, so is one of the rows.

    Parameters
    ----------
    net : Network
        With float64 weights.
    C : ndarray, shape (m, K)
        Rows ``g = C f + constants``, or at least that.
    constants : ndarray, shape (m,)
    lowest : ndarray, shape (m,)
        Lower bounds of the rows.  They need not hold, but units are stable if they do.
    f_lower : ndarray, shape (K,)
        Proved lower bounds of the logits: elsewhere the network says nothing.

    Returns
    -------
    Network
        With one output.
    float
    """
    last, shift = _shifted(net, f_lower)
    i = net.affine[-1]
    layers = [*net.layers[:i], last, *net.layers[i + 1 :]]
    if len(net.shapes[-1]) > 1:
        layers.append(Flatten())
    t = float((1 + SLACK) * max(-lowest.min(), 0) + SLACK * (1 + np.abs(constants).max()))
    offsets = [
        rounded(Fraction(t) + Fraction(constant) - _product(row, shift), up=False)
        for row, constant in zip(C.tolist(), constants.tolist(), strict=True)
    ]
    # Where a v is negative, its ReLU is larger.  But the sum that is returned is negative then,
    # unless another v is above t, since t >= 0.
    layers.append(Linear(C, np.array(offsets)))
    merge = np.eye(len(C))  # from activations to the numbers whose maximum is sought
    while len(merge) > 1:
        pairs, merged = _pairs(len(merge))
        W = pairs @ merge
        layers.append(Linear(W, np.zeros(len(W))))
        merge = merged
    layers.append(Linear(merge, np.zeros(1)))
    return Network(layers, net.input_shape), -t


def _shifted(net, f_lower):
    """The last layer with biases for which all logits are positive, and by what they are raised."""
    layer = net.affine_layers[-1]
    below = f_lower.reshape(net.logits_shape)
    if below.ndim > 1:
        below = below.min(axis=(1, 2))  # pixels share a bias
    raised = np.maximum(-below, 0) + SLACK * (1 + np.abs(below) + np.abs(layer.b))
    b = layer.b + raised
    pairs = zip(b.tolist(), layer.b.tolist(), strict=True)
    exact = [Fraction(new) - Fraction(old) for new, old in pairs]
    pixels = net.n_classes // len(exact)
    return layer.with_weights(layer.W, b), [shift for shift in exact for _ in range(pixels)]


def _product(row, shift):
    return sum((Fraction(c) * s for c, s in zip(row, shift, strict=True) if c), Fraction(0))


def _pairs(n):
    """The units of n numbers, a difference and a copy for each pair; and their maxima."""
    pairs, merged = [], []
    unit = np.eye(n)
    for i in range(0, n - 1, 2):
        pairs += [unit[i] - unit[i + 1], unit[i + 1]]
        merged.append([len(pairs) - 2, len(pairs) - 1])
    if n % 2:
        pairs.append(unit[-1])
        merged.append([len(pairs) - 1])
    maxima = np.zeros((len(merged), len(pairs)))
    for i, units in enumerate(merged):
        maxima[i, units] = 1
    return np.array(pairs), maxima


def continued(start: _place.Start, net: Network) -> _place.Start:
    """The start of the trees of a network whose first hidden layers are those of `start`."""
    before = start.place
    place = _place.place(net, before.ball, before.deadline)
    bounds = list(start.bounds)
    box = before.ball.lowest, before.ball.highest
    ends = tuple(end.reshape(-1, *net.input_shape) for end in box)
    for k in range(len(bounds), len(net.unit_shapes)):
        bounds.append(through(net, k, *(bounds[-1] if bounds else ends)))
    magnitudes = layer_magnitudes(net, place.ball, bounds)
    forms = list(start.forms)
    for k in range(len(forms), len(bounds)):
        bounds[k], form = _place.bound_units(place, k, bounds[:k], bounds[k], magnitudes)
        forms.append(form)
    return _place.Start(place, bounds, forms, magnitudes)
