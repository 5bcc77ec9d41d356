"""Gradient steps in the free parameters of a backward bound: alpha-beta-CROWN.

In the backward bound (`refmmr.reference.backward_bound`) the lower slopes ``alpha`` of unstable
units, between 0 and 1, and the multipliers ``beta >= 0`` of units that are fixed by a split are
free: each choice gives a valid bound (Xu et al. 2021, Wang et al. 2021).  Let G be the coefficients
of the activations of a layer.  Let f be its pre-activations in the network whose ReLUs are replaced
by the relaxations that G selects, at the point where ``<A, z>`` is smallest.  Then

    d bound / d alpha_j = max(G_j, 0) f_j,      d bound / d beta_j = -sign_j f_j

(sign 1 for active, -1 for inactive): *one forward pass* is the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.backward_bound import LinearBound, backward_bound
from refmmr.reference.ball import Ball, minimizer
from refmmr.reference.hyperplanes import divide
from refmmr.reference.intervals import Bounds
from refmmr.reference.network import Network
from refmmr.reference.relaxation import lower_slope, relu_relaxation
from refmmr.reference.rounding import Magnitude, layer_magnitudes

FIRST_RATE = 0.1
"""Length of the first gradient step, for slopes between 0 and 1."""

DECAY = 0.93
"""Factor on the length from one step to the next, at least; of many steps, the last one is a tenth
of the first."""

MOMENTS = 0.9, 0.999
"""Decay of the two moments of the gradient (Adam, Kingma and Ba 2015)."""

TIE = 1e-3
"""Share of the intercept in the score of a unit, which decides where no relaxation costs anything:
a node without a positive gap is split, too."""


class Nodes(NamedTuple):
    """n nodes: a list entry for each hidden layer before the bounded one, arrays (n, *unit_shape).

    A unit is *fixed* by a split; it is stable in its node as well.
    """

    bounds: list[Bounds]  # of the pre-activations of counterexamples in the node
    fixed: list[np.ndarray]  # 1 active, -1 inactive, 0 not fixed
    slopes: list[np.ndarray]  # alpha, between 0 and 1
    multipliers: list[np.ndarray]  # beta >= 0 of fixed units; of unstable: `split_multiplier`

    def take(self, rows: np.ndarray) -> Nodes:
        """Some of the nodes."""
        bounds = [(lower[rows], upper[rows]) for lower, upper in self.bounds]
        return Nodes(bounds, *([part[rows] for part in field] for field in self[1:]))


class Ascent(NamedTuple):
    """The result of gradient steps on n nodes."""

    slopes: list[np.ndarray]
    multipliers: list[np.ndarray]
    values: np.ndarray  # (n,) the bounds that they give, in floats
    scores: list[np.ndarray]  # of each unit, (n, *unit_shape); see `score`
    points: np.ndarray  # (n, d): where the last bound is smallest


def root(bounds: Sequence[Bounds]) -> Nodes:
    """Nodes without fixed units, one for each row of the bounds, with CROWN's slopes."""
    slopes = [lower_slope(lower, upper, "crown") for lower, upper in bounds]
    nothing = [np.zeros_like(slope) for slope in slopes]
    return Nodes(list(bounds), [part.astype(np.int8) for part in nothing], slopes, nothing)


def bound(
    net: Network,
    ball: Ball,
    rows: np.ndarray,
    nodes: Nodes,
    magnitudes: Sequence[Magnitude] | None = None,
) -> LinearBound:
    """The backward bound of one function a node, rows (n, *shape of f_k).

    `magnitudes` of the layers may be those of wider bounds, of the root.
    """
    multipliers = [
        -(sign * beta)[:, None] for sign, beta in zip(nodes.fixed, nodes.multipliers, strict=True)
    ]
    return backward_bound(
        net, ball, rows[:, None], nodes.bounds, nodes.slopes, multipliers, magnitudes
    )


def ascend(net: Network, ball: Ball, rows: np.ndarray, nodes: Nodes, steps: int) -> Ascent:
    """Projected gradient steps in the slopes and multipliers of n nodes; the best of them all.

    Parameters
    ----------
    net : Network
    ball : Ball
        n balls.
    rows : ndarray, shape (n, *shape of f_k)
        Coefficients of the function to bound, of the pre-activations of a layer.
    nodes : Nodes
        Of the hidden layers before that layer.
    steps : int

    Returns
    -------
    Ascent
    """
    n, layers = len(rows), range(len(nodes.bounds))
    slopes, betas = list(nodes.slopes), list(nodes.multipliers)
    best, best_slopes, best_betas = np.full(n, -np.inf), list(slopes), list(betas)
    moments = [[np.zeros((2, *part.shape)) for part in field] for field in (slopes, betas)]
    means = [np.zeros_like(slope) for slope in slopes]
    weights, unit = 0.0, None
    magnitudes = layer_magnitudes(net, ball, nodes.bounds)
    for step in range(steps + 1):
        current = nodes._replace(slopes=slopes, multipliers=betas)
        linear = bound(net, ball, rows, current, magnitudes)
        G = [coefficients[:, 0] for coefficients in linear.coefficients]
        value = linear.minimum(ball)[:, 0]
        better = value > best
        best = np.where(better, value, best)
        best_slopes = [_where(better, *pair) for pair in zip(slopes, best_slopes, strict=True)]
        best_betas = [_where(better, *pair) for pair in zip(betas, best_betas, strict=True)]
        points = minimizer(ball, linear.A)[:, 0]
        f = _forward(net, points, current, G)
        weight = (step + 1.0) ** 2  # later minimizers count more
        weights += weight
        means = [mean + weight * part for mean, part in zip(means, f, strict=True)]
        if unit is None:  # multipliers are measured in coefficients of a typical unit
            unit = [
                mean_size(part, upper) for part, (_, upper) in zip(G, nodes.bounds, strict=True)
            ]
        if step == steps:
            break
        rate = step_length(step, steps)
        for k in layers:
            free = (nodes.bounds[k][0] < 0) & (nodes.bounds[k][1] > 0)
            size = unit[k].reshape(n, *(1 for _ in G[k].shape[1:]))
            slope_gradient = np.where(free, np.maximum(G[k], 0) * f[k], 0)
            beta_gradient = -nodes.fixed[k] * f[k]
            move = rate * adam_direction(moments[0][k], slope_gradient, step)
            slopes[k] = np.clip(slopes[k] + move, 0, 1)
            move = rate * size * adam_direction(moments[1][k], beta_gradient, step)
            betas[k] = np.maximum(betas[k] + move, 0)
    averages = [mean / weights for mean in means]
    best_betas = [
        np.where((lower < 0) & (upper > 0), split_multiplier(g), beta)
        for (lower, upper), g, beta in zip(nodes.bounds, G, best_betas, strict=True)
    ]
    return Ascent(best_slopes, best_betas, best, score(current, G, averages), points)


def split_multiplier(G: np.ndarray) -> np.ndarray:
    """What an unstable unit keeps for its split: ``max(G, 0)``, 0 where it overflowed.

    A unit with ``G > 0`` has ``alpha G f`` in the bound.  Fixed inactive, with ``beta = alpha G``,
    or fixed active, with ``beta = (1 - alpha) G``, it has the same: so both halves begin with the
    bound of their parent, or a better one (`refmmr.reference.branch_and_bound.split`).
    """
    return np.where(np.isfinite(G), np.maximum(G, 0), 0).astype(G.dtype)


def mean_size(G: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The mean absolute coefficient of units that can be active, (n, *unit_shape) to (n,)."""
    G, used = (part.reshape(len(G), -1) for part in (np.abs(G), upper > 0))
    return (G * used).sum(axis=1) / np.maximum(used.sum(axis=1), 1).astype(G.dtype)


def step_length(step: int, steps: int) -> float:
    """The length of a gradient step, counted from 0."""
    return FIRST_RATE * float(max(DECAY, 0.1 ** (1 / max(steps, 1))) ** step)


def score(nodes: Nodes, G: Sequence[np.ndarray], f: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the relaxation of each unit costs at pre-activations f; -1 where it is exact.

    ``|G| (upper bound of the ReLU - ReLU)`` or ``|G| (ReLU - lower bound)``, whichever is used.
    """
    scores = []
    for (lower, upper), slope, g, z in zip(nodes.bounds, nodes.slopes, G, f, strict=True):
        line = relu_relaxation(lower, upper, slope)
        z = np.clip(z, lower, upper)
        above = line.upper_slope * z + line.intercept - np.maximum(z, 0)
        below = np.maximum(z, 0) - line.lower_slope * z
        gap = np.abs(g) * (np.where(g < 0, above, below) + TIE * line.intercept)
        scores.append(np.where((lower < 0) & (upper > 0), gap, -1))
    return scores


def _forward(net, points, nodes, G):
    """Pre-activations of points, with each ReLU replaced by the relaxation that G selects."""
    g = points.reshape(-1, *net.input_shape)
    f = []
    for k, ((lower, upper), slope, coefficients) in enumerate(
        zip(nodes.bounds, nodes.slopes, G, strict=True)
    ):
        for i in net.span(k):
            g = net.layers[i].apply(g)
        f.append(g)
        line = relu_relaxation(lower, upper, slope)
        g = np.where(coefficients < 0, line.upper_slope * g + line.intercept, line.lower_slope * g)
    return f


def adam_direction(moments: np.ndarray, gradient: np.ndarray, step: int) -> np.ndarray:
    """The direction of an ascent step (Adam); `moments` (2, ...) are updated in place."""
    for moment, decay, part in zip(moments, MOMENTS, (gradient, gradient**2), strict=True):
        moment += (1 - decay) * (part - moment)
    first, second = (m / (1 - d ** (step + 1)) for m, d in zip(moments, MOMENTS, strict=True))
    return divide(first, np.sqrt(second))


def _where(rows, a, b):
    """Rows of a where `rows` is true, of b elsewhere."""
    return np.where(rows.reshape(-1, *(1 for _ in a.shape[1:])), a, b)
