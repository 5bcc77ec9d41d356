"""The backward bound: a lower bound of a linear function of a layer that is affine in the input.

It starts with the coefficients of the function, ``A f_k``, and replaces layer after layer, down to
the input:

    A f_k = G g_{k-1} + A b_k      with   G = A W_k,
    G g_{k-1} >= sum_j G_j * (lower relaxation of unit j if G_j > 0, upper if G_j < 0).

The result is ``<A, z> + constant``, whose minimum over the ball is known
(`refmmr.reference.ball`).
The relaxations need bounds of the layers before layer k, so layers are bounded in order.

Methods differ in the lower slopes alone (`refmmr.reference.relaxation`).  In a *subproblem* some
units are fixed active (f >= 0) or inactive (f <= 0).  These constraints are added with multipliers,
as in beta-CROWN (Wang et al. 2021): for any ``beta >= 0``

    A f_k  >=  A f_k - sum_active beta_j f_j + sum_inactive beta_j f_j.

The bounds hold in real arithmetic: a bound on the rounding error (`refmmr.reference.rounding`) is
subtracted.  Where a float overflows, the bound is -inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.ball import Ball, ball, largest_gain
from refmmr.reference.intervals import Bounds, through
from refmmr.reference.layers import Linear
from refmmr.reference.network import Network
from refmmr.reference.relaxation import lower_slope, relu_relaxation
from refmmr.reference.rounding import Magnitude, backward_errors, layer_magnitudes

CHUNK_BYTES = 2**25
"""Largest array of coefficients: rows are propagated in groups that respect it."""


class LinearBound(NamedTuple):
    """Lower bounds ``<A, z> + constant - error`` of m functions on n balls."""

    A: np.ndarray  # (n or 1, m, d)
    constant: np.ndarray  # (n, m)
    error: np.ndarray  # (n, m)
    coefficients: list[np.ndarray]  # G of each hidden layer's activations, (n or 1, m, *unit_shape)

    def minimum(self, ball: Ball) -> np.ndarray:
        """The smallest value on each ball, (n, m); -inf where a float overflowed."""
        ends = (self.A * ball.x[:, None]).sum(axis=-1) - largest_gain(ball, -self.A)
        return _finite_or_minus_inf(self.constant + ends - self.error)


def backward_bound(
    net: Network,
    ball: Ball,
    rows: np.ndarray,
    bounds: Sequence[Bounds],
    lower_slopes: Sequence[np.ndarray],
    multipliers: Sequence[np.ndarray | None] | None = None,
    magnitudes: Sequence[Magnitude] | None = None,
) -> LinearBound:
    """Affine lower bounds of linear functions of a layer, ``A f_k``, on n balls or subproblems.

    Parameters
    ----------
    net : Network
        With float64 weights.
    ball : Ball
        Around n points; n subproblems of one point are n equal balls.
    rows : ndarray, shape (n or 1, m, *shape of f_k)
        The coefficients A of m functions, for each ball or the same for all.
    bounds : sequence of (lower, upper), one per hidden layer before f_k
        Bounds of its pre-activations, arrays (n, *unit_shape), with ``lower >= 0`` for units that
        are fixed active and ``upper <= 0`` for units that are fixed inactive.
    lower_slopes : sequence of ndarray (n, *unit_shape), one per hidden layer before f_k
        Of the relaxations of unstable units, between 0 and 1.
    multipliers : sequence of (ndarray (n or 1, m, *unit_shape) or None), optional
        Coefficients of the pre-activations of hidden layers that are added to the functions:
        ``-beta`` for units fixed active and ``+beta`` for units fixed inactive, ``beta >= 0``.
    magnitudes : sequence of Magnitude, optional
        Of the layers up to f_k, by `layer_magnitudes` for `bounds` or for wider ones.

    Returns
    -------
    LinearBound
        ``<A, z> + constant - error <= rows . f_k(z) + sum_j multipliers_j . f_j(z)`` for all z of
        the ball at which the bounds hold, in real arithmetic.
    """
    if magnitudes is None:
        magnitudes = layer_magnitudes(net, ball, bounds)
    constant = error = np.zeros((len(ball.x), rows.shape[1]))
    coefficients: list[np.ndarray] = []
    for k in reversed(range(len(bounds) + 1)):
        error = error + backward_errors(net, rows, magnitudes[k])
        rows, bias = _affine_step(net, k, rows)
        constant = constant + bias
        if k == 0:
            break
        coefficients.insert(0, rows)
        lower, upper, slope = (part[:, None] for part in (*bounds[k - 1], lower_slopes[k - 1]))
        relaxation = relu_relaxation(lower, upper, slope)
        constant = constant + _dot(np.minimum(rows, 0), relaxation.intercept)
        rows = rows * np.where(rows > 0, relaxation.lower_slope, relaxation.upper_slope)
        if multipliers is not None and (added := multipliers[k - 1]) is not None:
            rows = rows + added
    return LinearBound(rows.reshape(*rows.shape[:2], -1), constant, error, coefficients)


def layer_bounds(
    net: Network,
    X: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    method: str,
) -> list[Bounds]:
    """Bounds of all pre-activations on the balls ``||z - x||_p <= eps`` within the box.

    Each is the better of the interval bound and, for logits and for units that intervals leave
    unstable, the backward bound.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray, shape (n, *input_shape)
    p : {1, 2, inf}
    eps : ndarray, shape (n,)
    box : (lo, hi) or None
        Arrays of the shape of an input, or of X for a box of each point, with X inside.
    method : {"ibp", "fast-lin", "crown"}

    Returns
    -------
    list of (lower, upper), each (n, *unit_shape)
        One pair per affine layer, the logits last.
    """
    return _layer_bounds(net, ball(X, eps, p, box), method, len(net.affine))


def margin_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    method: str,
) -> np.ndarray:
    """Lower bounds of the margins ``f_y - f_s`` on the balls: (n, K), infinite in column y.

    Arguments as of `layer_bounds`, and classes y, (n,).  A ball has class y if all are positive.
    """
    unit = np.eye(net.n_classes)
    margins = row_bounds(net, X, unit[y][:, None, :] - unit, p, eps, box, method)
    margins[np.arange(len(X)), y] = np.inf
    return margins


def row_bounds(
    net: Network,
    X: np.ndarray,
    rows: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    method: str,
) -> np.ndarray:
    """Lower bounds of functions of the logits, rows (n or 1, m, K): (n, m); see `layer_bounds`."""
    balls = ball(X, eps, p, box)
    hidden = _layer_bounds(net, balls, method, len(net.affine) - 1)
    return _lowest(net, balls, rows.reshape(*rows.shape[:2], *net.logits_shape), hidden, method)


def _layer_bounds(net, ball, method, layers):
    """Bounds of the first `layers` affine layers."""
    bounds: list[Bounds] = []
    lower, upper = (end.reshape(-1, *net.input_shape) for end in (ball.lowest, ball.highest))
    for k in range(layers):
        lower, upper = through(net, k, lower, upper)
        everything = k == len(net.affine) - 1 or method == "ibp"
        # In l_inf intervals are exact for the first layer; for later layers IBP has nothing else.
        balls = [ball] if (ball.p != np.inf if k == 0 else method != "ibp") else []
        if k == 0 and balls and not everything and isinstance(net.affine_layers[0], Linear):
            balls = [ball._replace(box=None), ball]  # a norm is cheap, and makes many units stable
        for around in balls:
            selected = (lower < 0) & (upper > 0) | everything
            units = selected.any(axis=0)
            if units.any():
                rows = np.eye(units.size)[units.reshape(-1)].reshape(1, -1, *units.shape)
                below, above = (_lowest(net, around, s * rows, bounds, method) for s in (1, -1))
                own = selected[:, units]
                lower[:, units] = np.maximum(lower[:, units], np.where(own, below, -np.inf))
                upper[:, units] = np.minimum(upper[:, units], np.where(own, -above, np.inf))
        bounds.append((lower, upper))
    return bounds


def _lowest(net, ball, rows, bounds, method):
    """Lower bounds (n, m) of functions of f_k, rows (n or 1, m, *unit_shape), on the balls."""
    intervals = method == "ibp" and len(bounds) > 0
    n, m = len(ball.x), rows.shape[1]
    magnitudes = layer_magnitudes(net, ball, bounds, len(bounds) if intervals else 0)
    slopes = [] if intervals else [lower_slope(low, high, method) for low, high in bounds]
    size = max(1, CHUNK_BYTES // (8 * max(int(np.prod(shape)) for shape in net.shapes)))
    found = np.empty((n, m))
    for i in range(0, n, max(1, size // m)):
        points = slice(i, i + max(1, size // m))
        part = ball.take(points)
        near = [(lower[points], upper[points]) for lower, upper in bounds]
        sizes = [Magnitude(*(part[points] for part in pair)) for pair in magnitudes]
        own = rows[points] if len(rows) == n else rows
        for j in range(0, m, size):
            some = own[:, j : j + size]
            if intervals:
                found[points, j : j + size] = _interval_minimum(net, some, near, sizes)
                continue
            slope = [array[points] for array in slopes]
            bound = backward_bound(net, part, some, near, slope, None, sizes)
            found[points, j : j + size] = bound.minimum(part)
    return found


def _interval_minimum(net, rows, bounds, magnitudes):
    """IBP of linear functions: one backward step, then the minimum over intervals of its inputs."""
    error = backward_errors(net, rows, magnitudes[-1])
    rows, constant = _affine_step(net, len(bounds), rows)
    lower, upper = (np.maximum(bound, 0)[:, None] for bound in bounds[-1])
    return _finite_or_minus_inf(constant + _dot(rows, np.where(rows > 0, lower, upper)) - error)


def _affine_step(net, k, rows):
    """``A W_k`` and ``A b_k``."""
    sums = rows.sum(axis=(-2, -1)) if rows.ndim == 5 else rows  # a channel's pixels share a bias
    bias = sums @ net.affine_layers[k].b
    for i in reversed(net.span(k)):
        rows = net.layers[i].transpose(rows, net.shapes[i])
    return rows, bias


def _dot(rows, values):
    """Sum over the units of a layer: two arrays (n, m, *unit_shape) to (n, m)."""
    return (rows * values).sum(axis=tuple(range(2, rows.ndim)))


def _finite_or_minus_inf(values):
    """Lower bounds, with the trivial bound -inf where a float overflowed."""
    return np.where(np.isfinite(values), values, -np.inf)
