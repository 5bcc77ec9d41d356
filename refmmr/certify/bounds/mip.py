"""The minimal adversarial perturbation by mixed-integer linear programs (Tjeng et al. 2019).

A ball is decided by `refmmr.certify.bounds._decision`.  The minimal perturbation is found by
bisection over balls, and in the end by a program for the nearest point with ``f_s >= f_y``; the
ball up to just before that point is then decided like any other.

Adversarial examples and decisions hold in real arithmetic: no bound is taken from the solver.
"""

from __future__ import annotations

import time

import highspy
import numpy as np

from refmmr import _examples, _solvers
from refmmr._examples import Box
from refmmr.certify.bounds import Bounds, _milp, region
from refmmr.certify.bounds._decision import decide, descend
from refmmr.certify.bounds._samples import distance, one_by_one
from refmmr.certify.bounds.linear import farthest_distance
from refmmr.certify.bounds.lp import check_norm, layer_bounds, margins_below
from refmmr.reference.network import Network

DISTANCE_GAP = 5e-8
"""Absolute gap of the program for the nearest point, in units of the radius of the ball: 50 times
the solver's tolerance, and less than the smallest of `PROOF_GAPS`."""

PROOF_GAPS = (2e-7, 7e-7, 1e-4, 1e-2)
"""Shares by which the ball to be proved is smaller than the distance of the nearest example.

The first two are below the relative tolerance 1e-6 at which bounds count as equal, the second in
case the first ball holds an example; the others are for margins that rounding errors hide."""

NARROW = 1.02
"""Factor between the bounds below which one program finds the nearest example: the bounds of the
units on the larger ball are then hardly worse than on the smaller one."""

VERTEX_MARGINS = (1e-6, 1e-7)
"""Margins, in units of their size on the ball, of examples beyond a vertex of the decision
boundary: above the tolerance of HiGHS."""

ENLARGEMENTS = (1e-9, 1e-8, 1e-7, 5e-7)
"""Shares by which a ball is enlarged for an example beyond a boundary point on its surface."""

MAX_BALLS = 64
"""Balls that are decided for one point: against endless loops, a dozen usually suffice."""


def mip_bounds(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    goal: np.ndarray | None = None,
    *,
    max_seconds: float | None = None,
    upper: np.ndarray | None = None,
    adversarial: np.ndarray | None = None,
) -> Bounds:
    """Minimal adversarial perturbation of each sample, by mixed-integer linear programs.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray of float64, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, inf}
        HiGHS solves no mixed-integer quadratic program, which l_2 would need.
    box : (lo, hi) or None
        Arrays of the shape of an input, with X inside.
    goal : ndarray, shape (n,), optional
        Radii to decide about: the lower bound is the goal if there is no adversarial example in the
        closed ball of that radius, otherwise 0.  Without it the minimal perturbation is bounded.
    max_seconds : float, optional
        For each sample; then the bounds reached so far are returned.
    upper, adversarial : ndarray, shapes (n,) and (n, *input_shape), optional
        Verified adversarial examples and their distances, infinite and NaN where none is known.

    Returns
    -------
    Bounds
        They hold in real arithmetic.

    Raises
    ------
    ValueError
        For p = 2.

    References
    ----------
    Tjeng, Xiao, Tedrake (2019): Evaluating robustness of neural networks with mixed integer
    programming.
    """
    check_norm(p)

    def bound(i, eps, example, deadline):
        point = net, X[i], int(y[i]), p
        if eps is None:
            return minimal_perturbation(*point, box, example, deadline=deadline)
        bounds = layer_bounds(net, X[i], p, eps, box)
        decision = decide(*point, eps, box, bounds, deadline=deadline)
        return eps if decision.robust else 0.0, decision.adversarial

    return one_by_one(
        net, X, y, p, bound, goal, max_seconds=max_seconds, upper=upper, adversarial=adversarial
    )


def minimal_perturbation(
    net: Network,
    x: np.ndarray,
    y: int,
    p: float,
    box: Box | None,
    adversarial: np.ndarray | None = None,
    *,
    deadline: float = np.inf,
) -> tuple[float, np.ndarray | None]:
    """Distance to the nearest adversarial example.

    Balls of growing radius are decided until one holds an example, then the bounds are brought
    together by bisection; where they are near each other, one program finds the nearest example.
    The bounds of the units, tighter on smaller balls, thus belong to a ball of the right size.

    Parameters
    ----------
    net : Network
    x : ndarray, shape (*input_shape)
    y : int
        The class of x.
    p : {1, inf}
    box : (lo, hi) or None
    adversarial : ndarray of the shape of x, optional
        A verified example.
    deadline : float
        Time of `time.monotonic` at which to stop.

    Returns
    -------
    lower : float
        No example is nearer; infinite if the whole box has one class.
    adversarial : ndarray of the shape of x, or None
        The nearest example found.
    """
    start = region.region_bounds(net, x[None], np.full(1, y), p, box)
    lower, farthest = float(start.lower[0]), float(farthest_distance(x[None], p, box)[0])
    if np.isinf(lower):
        return lower, None
    best, upper = adversarial, np.inf if adversarial is None else distance(x, adversarial, p)
    if start.upper[0] < upper:
        best, upper = start.adversarial[0], float(start.upper[0])
    if best is not None:
        best, upper = _examples.bring_nearer(net, x, best, y, p, box)
    tried = lower  # of an undecided ball, too: a larger one may hold an example
    for _ in range(MAX_BALLS):
        if lower >= farthest:
            return (np.inf, None) if best is None else (lower, best)
        if upper <= NARROW * tried or tried >= farthest or time.monotonic() > deadline:
            break
        if tried == 0:
            eps = upper / 64 if np.isfinite(upper) else float(np.abs(x).max() or 1.0) / 64
        else:
            eps = min(2 * tried, float(np.sqrt(tried * upper)), farthest)
        bounds = layer_bounds(net, x, p, eps, box)
        decision = decide(net, x, y, p, eps, box, bounds, deadline=deadline)
        if decision.adversarial is not None:
            best, upper = _examples.bring_nearer(net, x, decision.adversarial, y, p, box)
        else:
            tried = eps
            lower = eps if decision.robust else lower
    if best is None or time.monotonic() > deadline:
        return lower, best
    nearest = _nearest_example(net, x, y, p, box, best, deadline)
    for gap in PROOF_GAPS:
        eps = distance(x, nearest, p) * (1 - gap)
        if eps <= lower or time.monotonic() > deadline:
            break
        bounds = layer_bounds(net, x, p, eps, box)
        decision = decide(net, x, y, p, eps, box, bounds, deadline=deadline)
        if decision.robust:
            return eps, nearest
        if decision.adversarial is not None:
            nearest, _ = _examples.bring_nearer(net, x, decision.adversarial, y, p, box)
    return lower, nearest


def _nearest_example(net, x, y, p, box, best, deadline):
    """One program for each class: the nearest point where it wins, in the ball up to `best`.

    Returns a verified example of the shape of x, `best` if none is nearer.
    """
    eps = upper = distance(x, best, p)
    bounds = layer_bounds(net, x, p, eps, box)
    below = margins_below(net, x, y, p, eps, box, bounds, deadline=deadline)
    targets = np.flatnonzero(~(below.lower > 0))
    if len(targets) and not below.complete:
        return best
    flat_box = None if box is None else (box[0].reshape(-1), box[1].reshape(-1))
    program = _milp.build(net, x.reshape(-1), p, eps, flat_box, bounds, binary=True)
    program, length = _milp.with_length(program, p)
    lengths = np.zeros(len(program.lower))
    lengths[length] = 1
    logits = net.logits(x[None])[0]

    def keep(candidate):
        nonlocal best, upper
        nearer, found = _examples.bring_nearer(net, x, candidate, y, p, box)
        if found < upper:
            best, upper = nearer, found

    for s in targets[np.argsort(below.lower[targets])].tolist():
        size = max(float(logits[y] - logits[s]), -float(below.lower[s]))
        costs, offset = _milp.margin(program, y, s, size)
        highs = _milp.solver(program, deadline)
        _solvers.add_row(highs, costs, upper=-offset)
        _solvers.set_costs(highs, lengths, 0.0)
        highs.changeColBounds(length, 0.0, min(1.0, upper / eps))
        highs.setOptionValue("mip_abs_gap", DISTANCE_GAP)
        bound = min(_solvers.reached_bound(highs, _solvers.run(highs)), upper / eps)
        point = _milp.input_of(program, x, highs)
        if point is None:
            continue
        # It lies on the decision boundary: its region has the nearest piece of it.
        keep(point)
        keep(_example_beyond(net, x, point, y, s, p, box))
        # Where it is a vertex of the boundary, no projection leads there: demand a margin.
        margin_row = highs.getNumRow() - 1
        for margin in VERTEX_MARGINS:
            if upper <= eps * bound * (1 + PROOF_GAPS[0]):
                break
            highs.changeRowBounds(margin_row, -highspy.kHighsInf, -margin - offset)
            _solvers.run(highs)
            point = _milp.input_of(program, x, highs)
            if point is not None:
                keep(point)
    return best


def _example_beyond(net, x, z, y, s, p, box):
    """A verified example hardly farther away than z, a point of the boundary; or z itself."""
    length = distance(x, z, p)
    for share in ENLARGEMENTS:
        found = descend(net, x, z, y, s, p, length * (1 + share), box, first=4 * share)
        if found is not None:
            return found
    return z
