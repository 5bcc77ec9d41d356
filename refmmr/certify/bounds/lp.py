"""The linear program over the relaxations of all units (Ehlers 2017, Salman et al. 2019).

Every unstable ReLU is replaced by its triangle, and a solver minimises the margin.  By duality the
optimum is that of the backward bound (`refmmr.reference.backward_bound`) with the best lower slope
for each unit, and with multipliers of the bounds ``l <= f <= u`` where the optimum rests on these:
the dual variables give both.  Nothing relies on the solver.  The bound is computed from them with
all rounding errors, so it holds in real arithmetic, whatever the solver's tolerances are and
however it ended.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from refmmr import _kernels, _solvers
from refmmr._examples import Box
from refmmr.certify.bounds import Bounds, _milp
from refmmr.certify.bounds._milp import LayerBounds, Milp
from refmmr.certify.bounds._samples import one_by_one
from refmmr.certify.bounds.linear import crown_bounds, farthest_distance
from refmmr.reference import ball as balls
from refmmr.reference.backward_bound import backward_bound
from refmmr.reference.ball import Ball
from refmmr.reference.network import Network
from refmmr.reference.relaxation import lower_slope, relu_relaxation
from refmmr.reference.rounding import (
    SMALLEST_NORMAL,
    Magnitude,
    layer_magnitudes,
    rounding_factor,
)

PRECISION = 1e-4
"""Halve the bracket around the certified radius down to this relative width: each halving costs
a linear program per class, and the remaining gap is below the fourth digit."""

WIDENING = 1e-150
"""Added to the bounds of units, by which programs divide: its inverse and its products with large
bounds are floats."""

MIN_MULTIPLIER = 1e-9
"""Multipliers below this share of the activation's coefficient are errors of the solver: its
tolerance."""

GROWTH_STEPS = 64
"""Steps by a quarter from CROWN's radius upwards, at most: a factor of a million."""


class Margins(NamedTuple):
    """What is known of the margins ``f_y - f_s`` on a ball, for all classes s."""

    lower: np.ndarray  # (K,), infinite for s = y; in real arithmetic
    points: dict[int, np.ndarray]  # the minimiser of the program of s, (d,)
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
    """Certified radius of each sample by the linear program over the relaxations.

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
        Radii to decide about.  Without it the largest certified radius is computed.
    max_seconds : float, optional
        For each sample; the bound proved by then is returned.

    Returns
    -------
    Bounds
        The lower bounds hold in real arithmetic.  Adversarial examples are known for misclassified
        samples only: the samples themselves.

    Raises
    ------
    ValueError
        For p = 2.
    """
    check_norm(p)

    def bound(i, eps, example, deadline):
        return _radius(net, X[i], int(y[i]), p, box, eps, deadline), None

    return one_by_one(net, X, y, p, bound, goal, max_seconds=max_seconds)


def check_norm(p: float) -> None:
    """Refuse l_2: a linear program describes balls that are polytopes."""
    if p not in (1, np.inf):
        raise ValueError(
            f"p: expected 1 or inf for methods that use linear programs, got {p!r}: "
            "HiGHS solves no mixed-integer quadratic program"
        )


def _radius(net, x, y, p, box, goal, deadline):
    """The certified end of a bracket around the radius where the margin bound is 0."""

    def proved(eps):
        bounds = layer_bounds(net, x, p, eps, box)
        if time.monotonic() > deadline:
            return False
        found = margins_below(net, x, y, p, eps, box, bounds, deadline=deadline, all_targets=False)
        return bool((found.lower > 0).all())

    if goal is not None:
        return goal if proved(goal) else 0.0
    start = crown_bounds(net, x[None], np.full(1, y), p, box, deadline=deadline)
    low = float(start.lower[0])
    if not np.isfinite(low) or low == 0:
        return low
    farthest = float(farthest_distance(x[None], p, box)[0])
    high = low
    for _ in range(GROWTH_STEPS):
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


def layer_bounds(net: Network, x: np.ndarray, p: float, eps: float, box: Box | None) -> LayerBounds:
    """Bounds of the pre-activations of each affine layer on a ball by CROWN, arrays (units,).

    They are widened by `WIDENING`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = _kernels.layer_bounds(net, x[None], p, np.full(1, eps), box, "crown")
    return [(low.reshape(-1) - WIDENING, high.reshape(-1) + WIDENING) for low, high in found]


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
    """Lower bounds of the margins on a ball: by CROWN, and by programs where that proves nothing.

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
    ball = balls.ball(x[None], np.full(1, eps), p, flat_box)
    rows = np.eye(net.n_classes)[y] - np.eye(net.n_classes)
    lower = lower_bounds(net, ball, rows, bounds)
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
            duals = unit_duals(program, np.array(solution.row_dual), net)
            lower[s] = max(lower[s], dual_bound(net, ball, rows[s], bounds, duals))
        if status == _solvers.OPTIMAL:
            points[s] = x.reshape(-1) + program.step @ np.array(solution.col_value)
        if not lower[s] > 0 and not all_targets:
            break
    return Margins(lower, points, bool(len(points) == len(targets)))


def unit_duals(program: Milp, row_duals: np.ndarray, net: Network) -> list[np.ndarray]:
    """The dual variable of each pre-activation f: the change of the minimum per unit of f.

    Arrays (units,), one per hidden layer; NaN for units that have no row in the program.
    """
    duals = [np.full(int(np.prod(shape)), np.nan) for shape in net.unit_shapes]
    for dual, split in zip(duals, program.split, strict=True):
        dual[split.units] = row_duals[split.rows] / split.size
        dual[split.active] = row_duals[split.active_rows] / split.active_size
    return duals


def lower_bounds(net: Network, ball: Ball, rows: np.ndarray, bounds: LayerBounds) -> np.ndarray:
    """CROWN's lower bounds of linear functions of the logits on one ball, rows (m, K): (m,)."""
    hidden = _batched(net, bounds)
    slopes = [lower_slope(low, high, "crown") for low, high in hidden]
    with np.errstate(over="ignore", invalid="ignore"):
        rows = rows.reshape(1, -1, *net.logits_shape)
        return backward_bound(net, ball, rows, hidden, slopes).minimum(ball)[0]


def dual_bound(
    net: Network,
    ball: Ball,
    row: np.ndarray,
    bounds: LayerBounds,
    duals: list[np.ndarray],
    fixed: list[np.ndarray] | None = None,
    magnitudes: list[Magnitude] | None = None,
) -> float:
    """A lower bound of a linear function of the logits on one ball, by dual variables.

    Dual variables of any value give a bound that holds; those of the program give its optimum.

    Parameters
    ----------
    net : Network
    ball : Ball
        Around one point.
    row : ndarray, shape (K,)
        Coefficients of the logits.
    bounds : list of (lower, upper)
        Of the pre-activations, arrays (units,).
    duals : list of ndarray (units,)
        For each hidden layer, by `unit_duals`.
    fixed : list of ndarray of int (units,), optional
        Units that the subproblem fixes active (1) or inactive (-1); 0 for others.
    magnitudes : list of Magnitude, optional
        By `ball_magnitudes`.

    Returns
    -------
    float
        It holds in real arithmetic at all points of the ball in the subproblem; -inf where floats
        overflow.
    """
    if fixed is not None:
        bounds = [
            (
                np.where(sign > 0, np.maximum(low, 0), low),
                np.where(sign < 0, np.minimum(high, 0), high),
            )
            for (low, high), sign in zip(bounds, fixed, strict=False)
        ]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        slopes, multipliers = _slopes_and_multipliers(net, row, bounds, duals)
        rows, hidden = row.reshape(1, 1, *net.logits_shape), _batched(net, bounds)
        bound = backward_bound(net, ball, rows, hidden, slopes, multipliers, magnitudes)
        lowest = bound.minimum(ball)[0, 0] - _largest_sum(multipliers, bounds)
        return float(np.nextafter(lowest, -np.inf)) if np.isfinite(lowest) else -np.inf


def ball_magnitudes(net: Network, ball: Ball, bounds: LayerBounds) -> list[Magnitude]:
    """The magnitudes for `dual_bound`, which all subproblems on a ball share."""
    return layer_magnitudes(net, ball, _batched(net, bounds))


def _slopes_and_multipliers(net, row, bounds, duals):
    """Choose them so that each dual variable is the coefficient of its pre-activation.

    A unit whose activation has the coefficient G > 0 gets the lower slope ``dual / G``, clipped to
    [0, 1].  The multiplier is what is left of the dual variable: it belongs to the constraint of a
    fixed unit, or to a bound of f on which the program rests.
    """
    slopes: list[np.ndarray] = []
    multipliers: list[np.ndarray] = []
    affine = _milp.matrices(net)
    for k in reversed(range(len(duals))):
        G, dual = row @ affine[k + 1][0], duals[k]
        slope = np.clip(dual / np.where(G > 0, G, np.inf), 0, 1)
        lower, upper = bounds[k]
        relaxation = relu_relaxation(lower, upper, slope)
        row = G * np.where(G > 0, relaxation.lower_slope, relaxation.upper_slope)
        rest = dual - row
        multiplier = np.where(np.abs(rest) > MIN_MULTIPLIER * np.abs(G), rest, 0)  # 0 for NaN, too
        row = row + multiplier
        slopes.insert(0, slope.reshape(1, *net.unit_shapes[k]))
        multipliers.insert(0, multiplier.reshape(1, 1, *net.unit_shapes[k]))
    return slopes, multipliers


def _largest_sum(multipliers, bounds):
    """At least the largest ``sum_j multipliers_j . f_j`` of pre-activations f within the bounds."""
    products = [
        np.maximum(m.reshape(-1) * low, m.reshape(-1) * high)
        for m, (low, high) in zip(multipliers, bounds, strict=False)
    ]
    terms = np.concatenate([np.zeros(0), *products])
    error = rounding_factor(2 * len(terms) + 8) * np.abs(terms).sum() + SMALLEST_NORMAL
    return terms.sum() + error if terms.any() else 0.0


def _batched(net, bounds):
    """Bounds of the hidden layers as the reference has them: arrays (1, *unit_shape)."""
    pairs = zip(bounds, net.unit_shapes, strict=False)
    return [(low.reshape(1, *shape), high.reshape(1, *shape)) for (low, high), shape in pairs]
