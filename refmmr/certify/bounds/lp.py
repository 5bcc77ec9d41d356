"""The linear program over the triangles of all unstable units (Ehlers 2017, Salman et al. 2019).

Of all ways to keep each ReLU between two lines it finds the best: by duality its optimum is that of
carrying back lines (`refmmr.reference.backward_bound`) with the best lower slope for each unit.  So
the answer of the solver is used as advice only.  Its dual variables are turned into slopes, and the
bound is computed with these, with all rounding errors allowed for: it holds in real arithmetic,
whatever the solver's tolerances and however it ended.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from refmmr import _kernels, _solvers
from refmmr.certify.bounds import Bounds, _milp
from refmmr.certify.bounds._milp import Box, LayerBounds, Milp
from refmmr.certify.bounds.linear import crown_bounds
from refmmr.reference.backward_bound import relu_lines, terms
from refmmr.reference.ball import Ball, ball, largest_gain
from refmmr.reference.hyperplanes import norm
from refmmr.reference.loss import margins
from refmmr.reference.network import Network
from refmmr.reference.rounding import UNDERFLOW, rounding_factor

PRECISION = 1e-4
"""How far, relative to itself, a radius may be below the largest that the programs prove."""


class Margins(NamedTuple):
    """What is known of the margins ``f_y - f_s`` on a ball, for all classes s."""

    lower: np.ndarray  # (K,), infinite for s = y; in real arithmetic
    points: dict[int, np.ndarray]  # where the program of s has its minimum, (d,)
    complete: bool  # whether all programs were solved


def lp_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    goal: np.ndarray | None = None,
    *,
    max_seconds: float | None = None,
) -> Bounds:
    """Certified radius of each sample by the linear program over the triangles.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray of float64, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, inf}
    box : (lo, hi) or None
        Arrays of the shape of an input, with X inside.
    goal : ndarray, shape (n,), optional
        Radii to decide about.  Without it the largest certified radius is looked for.
    max_seconds : float, optional
        For each sample; then what has been proved is returned.

    Returns
    -------
    Bounds
        The lower bounds hold in real arithmetic.  No adversarial examples are looked for; samples
        that are misclassified are their own.

    Raises
    ------
    ValueError
        For p = 2.
    """
    check_norm(p)
    lower, upper = np.zeros(len(X)), np.full(len(X), np.inf)
    adversarial = np.full(X.shape, np.nan)
    wrong = net.logits(X).argmax(axis=1) != y
    upper[wrong], adversarial[wrong] = 0, X[wrong]
    for i in np.flatnonzero(margins(net.logits(X), y) > 0).tolist():
        deadline = np.inf if max_seconds is None else time.monotonic() + max_seconds
        aim = None if goal is None else float(goal[i])
        lower[i] = _radius(net, X[i], int(y[i]), p, box, aim, deadline)
    return Bounds(lower, upper, adversarial)


def check_norm(p: float) -> None:
    """Linear programs know balls with flat faces."""
    if p not in (1, np.inf):
        raise ValueError(
            f"p: expected 1 or inf for methods that use linear programs, got {p!r}: "
            "HiGHS solves no mixed-integer quadratic program"
        )


def _radius(net, x, y, p, box, goal, deadline):
    """The certified end of a bracket around the radius where the margin bound is 0."""

    def proved(eps):
        bounds = layer_bounds(net, x, p, eps, box)
        found = margins_below(net, x, y, p, eps, box, bounds, deadline=deadline, all_targets=False)
        return bool((found.lower > 0).all())

    if goal is not None:
        return goal if proved(goal) else 0.0
    start = crown_bounds(net, x[None], np.full(1, y), p, box)
    low = float(start.lower[0])
    if not np.isfinite(low) or low == 0:
        return low
    farthest = reach(x, p, box)
    high = low
    for _ in range(64):
        if time.monotonic() > deadline:
            return low
        high = min(1.25 * high, farthest)
        if not proved(high):
            break
        low = high
        if low >= farthest:
            return np.inf
    else:
        return low
    while high - low > PRECISION * low and time.monotonic() < deadline:
        middle = (low + high) / 2
        low, high = (middle, high) if proved(middle) else (low, middle)
    return low


def reach(x: np.ndarray, p: float, box: Box | None) -> float:
    """Distance to the farthest point of the box, rounded up; infinite without a box."""
    if box is None:
        return np.inf
    return float(norm(np.maximum(box[1] - x, x - box[0]).reshape(-1), p)) * (1 + 1e-12)


def layer_bounds(net: Network, x: np.ndarray, p: float, eps: float, box: Box | None) -> LayerBounds:
    """Bounds of the pre-activations of each affine layer on a ball by CROWN, arrays (units,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = _kernels.layer_bounds(net, x[None], p, np.full(1, eps), box, "crown")
    return [(low.reshape(-1), high.reshape(-1)) for low, high in found]


def margins_below(
    net: Network,
    x: np.ndarray,
    y: int,
    p: float,
    eps: float,
    box: Box | None,
    bounds: LayerBounds,
    *,
    deadline: float = np.inf,
    all_targets: bool = True,
) -> Margins:
    """Lower bounds of the margins on a ball, by CROWN and where that is not enough by programs.

    Parameters
    ----------
    net : Network
    x : ndarray, shape (*input_shape)
    y : int
    p : {1, inf}
    eps : float
    box : (lo, hi) or None
        Arrays of the shape of x.
    bounds : list of (lower, upper)
        Of the pre-activations of each affine layer, arrays (units,), valid on the ball.
    deadline : float
        Time of `time.monotonic` at which to stop.
    all_targets : bool
        False: stop at the first class for which no proof is found.

    Returns
    -------
    Margins
    """
    flat_box = None if box is None else (box[0].reshape(-1), box[1].reshape(-1))
    where = ball(x[None], np.full(1, eps), p, flat_box)
    rows = np.eye(net.n_classes)[y] - np.eye(net.n_classes)
    lower = np.array([lines_below(net, where, row, bounds) for row in rows])
    lower[y] = np.inf
    targets = np.flatnonzero(~(lower > 0))
    points: dict[int, np.ndarray] = {}
    if len(targets) == 0 or not all(np.isfinite(side).all() for pair in bounds for side in pair):
        return Margins(lower, points, len(targets) == 0)
    program = _milp.build(net, x.reshape(-1), p, eps, flat_box, bounds, binary=False)
    for s in targets[np.argsort(lower[targets])].tolist():
        if time.monotonic() > deadline:
            return Margins(lower, points, False)
        highs = _milp.solver(program, deadline)
        costs, offset = _milp.margin(program, y, s)
        _solvers.set_costs(highs, costs, offset)
        status = _solvers.run(highs)
        solution = highs.getSolution()
        if solution.dual_valid:
            prices = node_prices(program, np.array(solution.row_dual), net)
            lower[s] = max(lower[s], lines_below(net, where, rows[s], bounds, prices))
        if status == _solvers.OPTIMAL:
            points[s] = x.reshape(-1) + program.step @ np.array(solution.col_value)
        if not lower[s] > 0 and not all_targets:
            break
    return Margins(lower, points, bool(len(points) == len(targets)))


def node_prices(program: Milp, duals: np.ndarray, net: Network) -> list[np.ndarray]:
    """The price of each pre-activation: what the minimum gains if the unit's f grows by 1."""
    prices = [np.zeros(int(np.prod(shape))) for shape in net.unit_shapes]
    for price, split in zip(prices, program.split, strict=True):
        price[split.units] = duals[split.rows] / split.size
    return prices


def lines_below(
    net: Network,
    where: Ball,
    row: np.ndarray,
    bounds: LayerBounds,
    prices: list[np.ndarray] | None = None,
    signs: list[np.ndarray] | None = None,
) -> float:
    """A lower bound of a linear function of the logits on one ball.

    Where the function grows with a unit, ``a > 0`` times its ReLU, the ReLU is replaced by the
    lower line of slope ``price / a``, which makes ``price`` the coefficient of its pre-activation,
    as in the program's dual; any price between 0 and a is right.

    Parameters
    ----------
    net : Network
    where : Ball
        Around one point.
    row : ndarray, shape (K,)
        Coefficients of the logits.
    bounds : list of (lower, upper)
        Of the pre-activations, arrays (units,).
    prices : list of ndarray (units,), optional
        For each hidden layer; without them the slopes are CROWN's.
    signs : list of ndarray of int (units,), optional
        Units that are known to be on (1) or off (-1), see `refmmr.certify.bounds._branching`.

    Returns
    -------
    float
        In real arithmetic; -inf where floats overflow.
    """
    affine = _milp.matrices(net)
    sizes = [np.maximum(np.abs(where.lowest), np.abs(where.highest))[0]]
    sizes += [np.maximum(np.abs(low), np.abs(high)) for low, high in bounds[: len(affine) - 1]]
    factor = rounding_factor(terms(net))
    constant = error = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for k in reversed(range(len(affine))):
            W, b = affine[k]
            error += factor * float(np.abs(row) @ (abs(W) @ sizes[k] + np.abs(b))) + UNDERFLOW
            constant += float(row @ b)
            row = row @ W
            if k == 0:
                break
            low, high = bounds[k - 1]
            lines = relu_lines(low, high, "crown")
            unstable = (low < 0) & (high > 0)
            below = np.where(row > 0, lines.lower_slope, lines.upper_slope) * row
            if prices is not None:
                price = prices[k - 1]
                below = np.where(unstable & (row > 0), np.clip(price, 0, np.maximum(row, 0)), below)
                if signs is not None:
                    on, off = unstable & (signs[k - 1] > 0), unstable & (signs[k - 1] < 0)
                    below = np.where(on, np.minimum(price, row), below)
                    below = np.where(off, np.maximum(price, 0), below)
                    unstable = unstable & ~on & ~off
            constant += float(np.minimum(row, 0)[unstable] @ lines.intercept[unstable])
            row = below
        ends = float(row @ where.x[0]) - float(largest_gain(where, -row[None, None])[0, 0])
        total = constant + ends - error
    return -np.inf if np.isnan(total) else total
