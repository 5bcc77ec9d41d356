"""The least upper relaxation of a ReLU on a box, for networks of one hidden layer in l_inf.

The triangle of `refmmr.reference.relaxation` knows of a unit only that it lies between two bounds.
On a box ``low <= z <= high`` more is true.  Give each weight of the unit ``w . z + b`` a slope of
its own, ``0 <= s_i <= 1``.  Then for all z of the box

    max(w . z + b, 0)  <=  sum_i s_i w_i z_i  +  max( least, rest ),
    least = - sum_i s_i (smallest w_i z_i),     rest = b + sum_i (1 - s_i) (largest w_i z_i).

Where the unit is inactive, ``sum s_i w_i z_i + least >= 0``; where it is active,
``w . z + b = sum s_i w_i z_i + (b + sum (1 - s_i) w_i z_i)``, which is at most that with `rest`.
The two are equal where ``sum_i s_i |w_i| (high_i - low_i)`` is the upper bound of the unit.  With
equal slopes this is the triangle.  The least of these bounds at a point z has slopes 1 for the
coordinates that are nearest to the end of the box where ``w_i z_i`` is smallest, and 0 for the
others: it is the concave envelope of the unit on the box (Tjandraatmadja et al. 2020, who build on
Anderson et al. 2020).  At a vertex of the box it is exact, and the minimizers of linear bounds are
vertices.  So the bound of the network becomes much better, for the price of a slope a weight.

The slopes follow from one point, the average of the minimizers so far (`upper_slopes`), and are
averaged over the steps themselves, as in the method of Frank and Wolfe (1956).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.reference.ascent import TIE, Nodes, adam_direction, mean_size, step_length
from refmmr.reference.backward_bound import LinearBound
from refmmr.reference.ball import Ball
from refmmr.reference.network import Network
from refmmr.reference.relaxation import relu_relaxation
from refmmr.reference.rounding import Magnitude, backward_errors, layer_magnitudes

SHARPNESS = 4.0
"""How fast the slopes fall from 1 to 0 with the distance to the near end, in widths of the box."""

FIRST_RATE = 0.6
"""Length of the first gradient step in lower slopes and multipliers."""

LATE = 3.0
"""Step k (from 1) has a share of ``LATE / (LATE + k)`` in the averages: later steps count more."""

SEEN = 6
"""Steps that the center of a parent node stands for."""


class Hidden(NamedTuple):
    """The hidden layer on a ball: in coordinates v of a box that holds it, between -1 and 1."""

    low: np.ndarray  # (d,), ends of the box: v = -1
    high: np.ndarray  # v = 1
    P: np.ndarray  # (units, d): f = P v + q
    q: np.ndarray  # (units,)
    upper: np.ndarray  # (units,) the largest f on the box
    magnitudes: list[Magnitude]  # of both layers, see `bound_errors`


class EnvelopeAscent(NamedTuple):
    """The result of gradient steps on n nodes."""

    slopes: np.ndarray  # (n, units), lower slopes
    multipliers: np.ndarray  # (n, units)
    centers: np.ndarray  # (n, d), averages of the minimizers
    scores: np.ndarray  # (n, units), as of `ascent.score`
    points: np.ndarray  # (n, d), where the last bound is smallest
    bound: LinearBound  # of one function


class Upper(NamedTuple):
    """Upper relaxations of m units: these slopes, mixed with the chord of the triangle."""

    slopes: np.ndarray  # (m, d), multiplied by their weight
    weight: np.ndarray  # (m,), between 0 and 1; the rest is that of the chord


def hidden(net: Network, ball: Ball) -> Hidden:
    """The hidden layer on a ball around one point; the box is rounded outwards."""
    W, b = net.parameters[0]
    low, high = np.nextafter(ball.lowest[0], -np.inf), np.nextafter(ball.highest[0], np.inf)
    P, q = W * ((high - low) / 2), W @ ((low + high) / 2) + b
    z = layer_magnitudes(net, ball, [])[0].terms
    magnitudes = layer_magnitudes(net, ball, [(-z, z)])
    return Hidden(low, high, P, q, q + np.abs(P).sum(axis=1), magnitudes)


def near_end(P: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Distances t of a point from the ends at which units are smallest, in widths: (m, d)."""
    return (1 + np.where(P > 0, 1, -1) * center) / 2


def upper_slopes(P: np.ndarray, upper: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The slopes ``clip(1/2 + SHARPNESS (level - t_i), 0, 1)`` of units with weights P (m, d).

    The level of a unit is the one with ``sum_i s_i 2 |P_i| = upper``, (m,).
    """
    t = near_end(P, center)
    low = np.full((len(P), 1), -0.5 / SHARPNESS)
    high = 1 - low
    for _ in range(50):
        level = (low + high) / 2
        slopes = np.clip(0.5 + SHARPNESS * (level - t), 0, 1)
        enough = ((2 * np.abs(P) * slopes).sum(axis=1) >= upper)[:, None]
        low, high = np.where(enough, low, level), np.where(enough, level, high)
    return slopes


def constants(W: np.ndarray, b: np.ndarray, layer: Hidden, upper: Upper) -> np.ndarray:
    """The constants ``max(least, rest)`` of m units, times the weight of the slopes: (m,)."""
    ends = W * layer.low, W * layer.high
    weight = upper.weight[:, None]
    rest = upper.weight * b + ((weight - upper.slopes) * np.maximum(*ends)).sum(axis=1)
    return np.maximum(-(upper.slopes * np.minimum(*ends)).sum(axis=1), rest)


def ascend(
    net: Network,
    layer: Hidden,
    row: np.ndarray,
    nodes: Nodes,
    centers: np.ndarray,
    steps: int,
    seen: int = SEEN,
) -> EnvelopeAscent:
    """Gradient steps and the backward bound of ``<row, f_2>`` in n nodes; the best of them all.

    Parameters
    ----------
    net : Network
        With one hidden layer, both layers `Linear`.
    layer : Hidden
        On a ball in l_inf, around one point, by `hidden`.
    row : ndarray, shape (K,)
        Coefficients of the logits.
    nodes : Nodes
        n of them.
    centers : ndarray, shape (n, d)
        Averages of minimizers, in coordinates between -1 and 1.
    steps : int
    seen : int
        Steps that the centers stand for, 0 at the root.

    Returns
    -------
    EnvelopeAscent
        The bound holds in real arithmetic at all points of a node at which its bounds of the units
        do.
    """
    parts = [
        _ascend_node(net, layer, row, nodes.take(np.array([i])), centers[i], steps, seen)
        for i in range(len(centers))
    ]
    slopes, betas, centers, scores, points, A, constant = map(np.stack, zip(*parts, strict=True))
    error = bound_errors(net, layer, row, betas)[:, None]
    bound = LinearBound(A[:, None], constant[:, None], error, [])
    return EnvelopeAscent(slopes, betas, centers, scores, points, bound)


def bound_errors(net: Network, layer: Hidden, row: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """Bounds on the rounding errors of the bounds with multipliers (n, units): (n,).

    With ``z = max |f_1|`` in absolute values, all terms are parts of ``|row| (|V| z + |c|)``, or of
    ``(|row| |V| + beta) z``, which is counted four times: the parts of a mixed relaxation, and the
    errors of the bounds of the unit.  Both are steps of a backward bound.
    """
    first, last = layer.magnitudes
    rows = 4 * (np.abs(row) @ np.abs(net.parameters[1][0]) + betas)
    errors = backward_errors(net, rows[:, None], first) + backward_errors(
        net, row[None, None], last
    )
    return errors[:, 0]


def _ascend_node(net, layer, row, node, center, steps, seen):
    """The fields of `EnvelopeAscent` for one node, and ``A`` and the constant of its bound."""
    (W, b), (V, c) = net.parameters
    g = row @ V
    fixed, slopes, betas = (field[0][0] for field in node[1:])
    lower, upper = (side[0] for side in node.bounds[0])
    chord = relu_relaxation(lower, upper, slopes)
    unstable = (lower < 0) & (upper > 0)
    above = np.flatnonzero(unstable & (g < 0))  # units whose upper relaxation is used
    P, chord_slope, intercept = layer.P[above], chord.upper_slope[above], chord.intercept[above]
    upper_of = Upper(np.zeros_like(P), np.zeros(len(P)))
    best: tuple = (-np.inf,)
    moments = np.zeros((2, 2, len(g)))
    unit = mean_size(g[None], upper[None])[0]
    for step in range(steps + 1):
        share = LATE / (LATE + step + seen)
        wanted = upper_slopes(P, layer.upper[above], center)
        value = (2 * np.abs(P) * wanted * near_end(P, center)).sum(axis=1)
        better = value < chord_slope * (P @ center + layer.q[above]) + intercept
        upper_of = Upper(
            *(
                old + (share if step else 1) * (new - old)
                for new, old in zip((better[:, None] * wanted, 1.0 * better), upper_of, strict=True)
            )
        )
        weight = upper_of.weight
        factors = np.where(unstable, np.where(g > 0, slopes, 0), chord.upper_slope)
        factors[above] = (1 - weight) * chord_slope
        rows = g * factors - fixed * betas
        A = rows @ W + g[above] @ (upper_of.slopes * W[above])
        own = (1 - weight) * intercept + constants(W[above], b[above], layer, upper_of)
        constant = row @ c + rows @ b + g[above] @ own
        point = np.where(A > 0, layer.low, layer.high)
        if A @ point + constant > best[0]:
            best = A @ point + constant, slopes, betas, A, constant
        v = np.where(A > 0, -1, 1)
        center = center + share * (v - center)
        if step < steps:
            f = layer.P @ v + layer.q
            rate = FIRST_RATE * step_length(step, steps) / step_length(0, steps)
            gradient = np.where(unstable & (g > 0), g * f, 0)
            slopes = np.clip(slopes + rate * adam_direction(moments[0], gradient, step), 0, 1)
            move = rate * unit * adam_direction(moments[1], -fixed * f, step)
            betas = np.maximum(betas + move, 0)
    f = layer.P @ center + layer.q
    z = np.clip(f, lower, upper)
    line = slopes * z
    mixed = (upper_of.slopes * P) @ center + _offset(P, layer.upper[above], upper_of)
    line[above] = mixed + (1 - weight) * (chord_slope * z[above] + intercept)
    gap = np.abs(g) * (np.abs(line - np.maximum(z, 0)) + TIE * chord.intercept)
    return (*best[1:3], center, np.where(unstable, gap, -1), point, *best[3:])


def _offset(P, upper, relaxation):
    """The constants of the slopes in coordinates of the box: (m,)."""
    sums = (np.abs(P) * relaxation.slopes).sum(axis=1)
    return sums + np.maximum(relaxation.weight * upper - 2 * sums, 0)
