"""Linear relaxations: lines around every ReLU, carried back to the input.

On a ball around x a hidden unit lies between bounds, ``l <= f <= u``.  If l >= 0 its ReLU is the
identity, if u <= 0 it is zero: such a unit is *stable*, and nothing is lost.  The ReLU of an
unstable unit is kept between two lines:

    lower_slope * f   <=   max(f, 0)   <=   u / (u - l) * (f - l).

Replace every ReLU by the line that makes things worse, and a linear function of a layer has a bound
that is affine in the input: start with its coefficients, ``A f_k``, and go back layer by layer,

    A f_k = (A W_k) g_{k-1} + A b_k,      and  a g >= a * (lower line if a > 0, upper line if a < 0)

for each entry a of ``A W_k``.  At the input the ball's largest gain (`refmmr.reference.ball`) ends
it.  The bounds of layer k need those of the layers before it, so they are found in order.

The lower slope is free, between 0 and 1, and the rules differ in nothing else:

=========== ============================================= =====================================
"fast-lin"  ``u / (u - l)``, parallel to the upper line   Wong & Kolter (KW), Weng et al. 2018
"crown"     1 if ``u > -l``, else 0: the smaller triangle Zhang et al. 2018
"ibp"       no lines at all, see `intervals`              Gowal et al. 2018, Mirman et al. 2018
=========== ============================================= =====================================

All of it holds in real arithmetic.  What a step back rounds off A acts on a layer whose size is
known: at most ``gamma |A| (|W| max|g| + |b|)``, which is added up on the way and subtracted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.reference.ball import Ball, ball, largest_gain
from refmmr.reference.intervals import Bounds, through
from refmmr.reference.network import Network
from refmmr.reference.rounding import UNDERFLOW, rounding_factor

RULES = ("ibp", "fast-lin", "crown")

CHUNK_BYTES = 2**25
"""Coefficients are carried back in groups of rows so that no array of them is larger than this."""


class Lines(NamedTuple):
    """Two lines around the ReLU of each unit of a layer, arrays (n, *unit_shape)."""

    lower_slope: np.ndarray  # the lower line passes through the origin
    upper_slope: np.ndarray
    intercept: np.ndarray  # of the upper line, >= 0


def relu_lines(lower: np.ndarray, upper: np.ndarray, rule: str) -> Lines:
    """The lines of a rule, for units between bounds (n, *unit_shape)."""
    active = (lower >= 0).astype(lower.dtype)
    unstable = (lower < 0) & (upper > 0)
    width = np.where(unstable, upper - lower, 1)
    upper_slope = np.where(unstable, upper / width, active)
    # The line must pass above both vertices, (l, 0) and (u, u), whatever the slope was rounded to.
    slack = rounding_factor(8)
    above = np.maximum(-upper_slope * lower, upper - upper_slope * upper + slack * upper)
    intercept = np.where(unstable, above * (1 + slack), 0)
    chosen = upper_slope if rule == "fast-lin" else (upper > -lower).astype(lower.dtype)
    return Lines(np.where(unstable, chosen, active), upper_slope, intercept)


def layer_bounds(
    net: Network,
    X: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    rule: str,
) -> list[Bounds]:
    """Bounds of all pre-activations on the balls ``||z - x||_p <= eps`` within the box.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray, shape (n, *input_shape)
    p : {1, 2, inf}
    eps : ndarray, shape (n,)
    box : (lo, hi) or None
        Arrays of the shape of an input, with X inside.
    rule : {"ibp", "fast-lin", "crown"}
        Lines are carried back for units that intervals leave unstable, and for the logits; the
        better of both bounds is kept.

    Returns
    -------
    list of (lower, upper), each (n, *unit_shape)
        One pair per affine layer, the logits last.
    """
    where = ball(X, eps, p, box)
    return _bounds(net, where, rule, len(net.affine))


def margin_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    eps: np.ndarray,
    box: tuple[np.ndarray, np.ndarray] | None,
    rule: str,
) -> np.ndarray:
    """Lower bounds of the margins ``f_y - f_s`` on the balls: (n, K), infinite in column y.

    Arguments as for `layer_bounds`, and the classes y, (n,).  Positive for all s: no point of the
    ball has another class than y.
    """
    where = ball(X, eps, p, box)
    hidden = _bounds(net, where, rule, len(net.affine) - 1)
    unit = np.eye(net.n_classes)
    rows = (unit[y][:, None, :] - unit).reshape(len(X), net.n_classes, *net.shapes[-1])
    margins = carry_back(net, where, len(net.affine) - 1, rows, hidden, rule)
    margins[np.arange(len(X)), y] = np.inf
    return margins


def _bounds(net: Network, where: Ball, rule: str, layers: int) -> list[Bounds]:
    """Bounds of the first affine layers."""
    shape = (len(where.x), *net.input_shape)
    bounds: list[Bounds] = []
    lower, upper = where.lowest.reshape(shape), where.highest.reshape(shape)
    for k in range(layers):
        lower, upper = through(net, k, lower, upper)
        bounds.append((lower, upper))
        # Intervals are exact for a first layer in l_inf, and all there is to IBP behind it.
        if (where.p != np.inf) if k == 0 else (rule != "ibp"):
            asked = (lower < 0) & (upper > 0) | (k == len(net.affine) - 1) | (rule == "ibp")
            wanted = asked.any(axis=0)
            if not wanted.any():
                continue
            rows = np.eye(wanted.size)[wanted.reshape(-1)].reshape(1, -1, *wanted.shape)
            below, above = (
                carry_back(net, where, k, sign * rows, bounds[:k], rule) for sign in (1, -1)
            )
            mine = asked[:, wanted]
            lower[:, wanted] = np.maximum(lower[:, wanted], np.where(mine, below, -np.inf))
            upper[:, wanted] = np.minimum(upper[:, wanted], np.where(mine, -above, np.inf))
    return bounds


def carry_back(
    net: Network, where: Ball, k: int, rows: np.ndarray, bounds: list[Bounds], rule: str
) -> np.ndarray:
    """Lower bounds of linear functions of ``f_k`` on the ball.

    Parameters
    ----------
    net : Network
    where : Ball
        Around n points.
    k : int
        Which affine layer (from 0) the functions are of.
    rows : ndarray, shape (n or 1, m, *shape of f_k)
        Their coefficients A.
    bounds : list of (lower, upper)
        Of the pre-activations before it.
    rule : {"ibp", "fast-lin", "crown"}
        "ibp" goes one layer back, and ends at the intervals there.

    Returns
    -------
    ndarray, shape (n, m)
    """
    n, m = len(where.x), rows.shape[1]
    widest = max(int(np.prod(shape)) for shape in net.shapes)
    size = max(1, CHUNK_BYTES // (8 * widest))
    lower = np.empty((n, m))
    for i in range(0, n, max(1, size // m)):
        points = slice(i, i + max(1, size // m))
        part = where._replace(x=where.x[points], radius=where.radius[points])
        near = [(low[points], high[points]) for low, high in bounds]
        own = rows[points] if len(rows) == n else rows
        for j in range(0, m, size):
            some = own[:, j : j + size]
            lower[points, j : j + size] = _carry_back(net, part, k, some, near, rule)
    return lower


def _carry_back(net, where, k, rows, bounds, rule):
    shape = (len(where.x), *net.input_shape)
    largest = np.maximum(np.abs(where.lowest), np.abs(where.highest)).reshape(shape)
    sizes = [largest, *(np.maximum(np.abs(low), np.abs(high)) for low, high in bounds)]
    factor = rounding_factor(terms(net))
    constant = np.zeros((len(where.x), rows.shape[1]))
    error = np.zeros_like(constant)
    while True:
        layer = net.affine_layers[k]
        magnitude = _through_absolute(net, k, sizes[k])
        error = error + factor * _dot(np.abs(rows), magnitude[:, None]) + UNDERFLOW
        constant = constant + _sum_channels(rows) @ layer.b
        for i in reversed(net.span(k)):
            rows = net.layers[i].transpose(rows, net.shapes[i])
        k -= 1
        if k < 0:
            rows = rows.reshape(*rows.shape[:2], -1)
            ends = (rows * where.x[:, None]).sum(axis=-1) - largest_gain(where, -rows)
            return constant + ends - error
        low, high = (side[:, None] for side in bounds[k])
        if rule == "ibp":
            ends = np.where(rows > 0, np.maximum(low, 0), np.maximum(high, 0))
            return constant + _dot(rows, ends) - error
        lines = relu_lines(low, high, rule)
        constant = constant + _dot(np.minimum(rows, 0), lines.intercept)
        rows = rows * np.where(rows > 0, lines.lower_slope, lines.upper_slope)


def terms(net: Network) -> int:
    """Roundings that a number meets on its way back, and more.

    A step back through a layer sums over its units, and so do biases and intercepts; the last sum
    is over the input.  Eight times all of them together cover the lines between, the largest gain
    and the rounding of the error itself.
    """
    return 8 * sum(int(np.prod(shape)) for shape in net.shapes) + 64


def _through_absolute(net, k, size):
    """``|W_k| size + |b_k|``: how large the terms of f_k can be, (n, *unit_shape)."""
    for i in net.span(k)[:-1]:
        size = net.layers[i].apply(size)
    layer = net.affine_layers[k]
    return layer.with_weights(np.abs(layer.W), np.abs(layer.b)).apply(size)


def _dot(rows, values):
    """Sum over the units of a layer: two arrays (n, m, *unit_shape) to (n, m)."""
    return (rows * values).reshape(*np.broadcast_shapes(rows.shape, values.shape)[:2], -1).sum(-1)


def _sum_channels(rows):
    """Sum over the pixels of an image, as they share a bias: (n, m, c, h, w) to (n, m, c)."""
    return rows.sum(axis=(-2, -1)) if rows.ndim == 5 else rows
