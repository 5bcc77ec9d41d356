"""Exact answers by mixed-integer linear programs (Tjeng, Xiao, Tedrake 2019).

A program asks for the smallest margin ``f_y - f_s`` on a ball, or for the nearest point with
``f_s >= f_y`` (`refmmr.certify.bounds._milp`).

Whether a ball is free of other classes is asked in four steps, each for what the one before leaves
open: CROWN's bounds; the linear program, with a descent from the point that it proposes; a search
tree over linear programs (`refmmr.certify.bounds._branching`), which needs a handful of them where the cuts
of a general solver take seconds; HiGHS's own search.  The nearest point is found by halving with
such questions, and by HiGHS at the end.

What is promised: an adversarial example is verified in real arithmetic, and so are the proofs of
the first three steps.  A proof by HiGHS's own search rests on its tolerances, 1e-9 in units in
which everything is about 1.  It is its *bound* that counts, never its best solution, and it must
exceed 0 by `SAFETY`, far above the tolerances; a distance is reduced by `DISTANCE_SAFETY`.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import highspy
import numpy as np

from refmmr import _examples, _solvers
from refmmr.certify.bounds import Bounds, _branching, _milp, region
from refmmr.certify.bounds._milp import Box, LayerBounds, Milp
from refmmr.certify.bounds.lp import check_norm, layer_bounds, margins_below, reach
from refmmr.reference.ball import ball
from refmmr.reference.loss import margins
from refmmr.reference.network import Network
from refmmr.reference.pgd import project, steepest

SAFETY = 1e-6
"""What a margin, in units of its size on the ball, must exceed to count as positive."""

DISTANCE_SAFETY = 2e-7
"""What is taken off a distance, in units of the radius of the ball searched."""

NARROW = 1.02
"""Ratio of the bounds from which on the nearest example is looked for by one program."""

BEYOND = (1e-6, 1e-7)
"""Margins, in units of their size on the ball, of examples beyond a vertex of the boundary."""

DESCENT_STEPS = 60
DOUBLINGS = 64

_SOUND = (
    _solvers.INFEASIBLE,
    _solvers.OPTIMAL,
    highspy.HighsModelStatus.kObjectiveTarget,
    highspy.HighsModelStatus.kTimeLimit,
)
"""Ends of a search after which its bound is one."""


class Decision(NamedTuple):
    """Whether a closed ball within the box is free of other classes."""

    robust: bool
    adversarial: np.ndarray | None  # a verified example in the ball, of the shape of an input
    targets: list[int]  # classes that are not excluded
    binaries: int  # of the largest program
    nodes: int  # of all searches


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
        closed ball of that radius, otherwise 0.  Without it the minimal perturbation is looked for.
    max_seconds : float, optional
        For each sample; then the bounds reached so far are returned.
    upper, adversarial : ndarray, shapes (n,) and (n, *input_shape), optional
        Verified adversarial examples and their distances, infinite and NaN where none is known.

    Returns
    -------
    Bounds
        Adversarial examples and most decisions are verified in real arithmetic; a minimal
        perturbation (and what only HiGHS's own search decides) rests on its tolerances.

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
    logits = net.logits(X)
    lower = np.zeros(len(X))
    best = np.full(len(X), np.inf) if upper is None else upper.copy()
    found = np.full(X.shape, np.nan) if adversarial is None else adversarial.copy()
    wrong = logits.argmax(axis=1) != y
    best[wrong], found[wrong] = 0, X[wrong]
    for i in np.flatnonzero(margins(logits, y) > 0).tolist():
        deadline = np.inf if max_seconds is None else time.monotonic() + max_seconds
        point = net, X[i], int(y[i]), p
        example = None if np.isinf(best[i]) else found[i]
        if goal is not None and best[i] < goal[i]:
            continue
        if goal is None:
            lower[i], example = minimal_distortion(*point, box, example, deadline=deadline)
        else:
            eps = float(goal[i])
            bounds = layer_bounds(net, X[i], p, eps, box)
            decision = decide(*point, eps, box, bounds, deadline=deadline)
            lower[i] = eps if decision.robust else 0
            example = decision.adversarial
        if example is not None and (length := _distance(X[i], example, p)) < best[i]:
            best[i], found[i] = length, example
    return Bounds(np.minimum(lower, best), best, found)


def decide(
    net: Network,
    x: np.ndarray,
    y: int,
    p: float,
    eps: float,
    box: Box | None,
    bounds: LayerBounds,
    *,
    deadline: float = np.inf,
) -> Decision:
    """Whether the ball ``||z - x||_p <= eps`` within the box holds an adversarial example.

    Parameters
    ----------
    net : Network
    x : ndarray, shape (*input_shape)
    y : int
    p : {1, inf}
    eps : float
    box : (lo, hi) or None
    bounds : list of (lower, upper)
        Of the pre-activations of each affine layer, valid on the ball; arrays of as many elements
        as the layer has units.
    deadline : float
        Time of `time.monotonic` at which to give up.

    Returns
    -------
    Decision
        Neither robust nor with an example where time ran out, or where a margin is too near 0.
    """
    bounds = [(low.reshape(-1), high.reshape(-1)) for low, high in bounds]
    below = margins_below(net, x, y, p, eps, box, bounds, deadline=deadline)
    targets = np.flatnonzero(~(below.lower > 0))
    targets = targets[np.argsort(below.lower[targets])]
    for s in targets.tolist():
        if s in below.points:
            start = below.points[s].reshape(x.shape)
            example = descend(net, x, start, y, s, p, eps, box)
            if example is not None:
                return Decision(False, example, targets.tolist(), 0, 0)
    if len(targets) == 0 or not below.complete:
        return Decision(len(targets) == 0, None, targets.tolist(), 0, 0)
    logits = net.logits(x[None])[0]
    sizes = np.maximum(logits[y] - logits, -below.lower)
    nodes = 0
    where = ball(x[None], np.full(1, eps), p, _flat(box))
    program = _milp.build(net, x.reshape(-1), p, eps, _flat(box), bounds, binary=False)
    open_: list[int] = []
    for s in targets.tolist():
        ended = _branching.prove_margin(
            net, where, y, s, float(sizes[s]), program, bounds, deadline=deadline
        )
        nodes += ended.nodes
        if ended.point is not None:
            start = ended.point.reshape(x.shape)
            example = descend(net, x, start, y, s, p, eps, box)
            if example is not None:
                return Decision(False, example, targets.tolist(), 0, nodes)
        if not ended.proved:
            open_.append(s)
    if not open_:
        return Decision(True, None, [], 0, nodes)
    program = _milp.build(net, x.reshape(-1), p, eps, _flat(box), bounds, binary=True)
    binaries = int(program.binary.sum())
    left = []
    for s in open_:
        if time.monotonic() > deadline:
            left.append(s)
            continue
        size = float(sizes[s])
        highs = _search(program, y, s, size, deadline)
        _solvers.set_costs(highs, *_margin(program, y, s, size))
        highs.setOptionValue("objective_target", -SAFETY)
        status = _solvers.run(highs)
        info = highs.getInfo()
        nodes += max(0, info.mip_node_count)
        if _excluded(status, info, SAFETY):
            continue
        left.append(s)
        if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            example = descend(net, x, _input(program, x, highs), y, s, p, eps, box)
            if example is not None:
                return Decision(False, example, targets.tolist(), binaries, nodes)
    return Decision(len(left) == 0, None, left, binaries, nodes)


def minimal_distortion(
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

    Balls of growing radius are decided until an example is found, then the two bounds are brought
    together by halving; where they are near each other, one program finds the nearest example.  So
    the bounds of the units, which are the better the smaller the ball, fit the question.

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
    lower, farthest = float(start.lower[0]), reach(x, p, box)
    if np.isinf(lower):
        return lower, None
    best, upper = adversarial, np.inf if adversarial is None else _distance(x, adversarial, p)
    if start.upper[0] < upper:
        best, upper = start.adversarial[0], float(start.upper[0])
    if best is not None:
        best, upper = _examples.bring_nearer(net, x, best, y, p, box)
    tried = lower  # where a tie leaves a radius undecided, larger ones may show examples
    for _ in range(DOUBLINGS):
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
    return _nearest(net, x, y, p, box, lower, best, deadline)


def _nearest(net, x, y, p, box, lower, best, deadline):
    """One search a class for the nearest point on the other side, within the ball up to `best`."""
    eps = upper = _distance(x, best, p)
    bounds = layer_bounds(net, x, p, eps, box)
    below = margins_below(net, x, y, p, eps, box, bounds, deadline=deadline)
    targets = np.flatnonzero(~(below.lower > 0))
    if len(targets) and not below.complete:
        return lower, best
    program = _milp.build(net, x.reshape(-1), p, eps, _flat(box), bounds, binary=True)
    program, length = _milp.with_length(program, p)
    logits = net.logits(x[None])[0]
    reached = 1.0
    for s in targets[np.argsort(below.lower[targets])].tolist():
        size = max(float(logits[y] - logits[s]), -float(below.lower[s]))
        highs = _search(program, y, s, size, deadline, slack=0.0)
        _, offset = _margin(program, y, s, size)
        highs.changeColBounds(length, 0.0, min(1.0, upper / eps))
        costs = np.zeros(len(program.lower))
        costs[length] = 1
        _solvers.set_costs(highs, costs, 0.0)
        highs.setOptionValue("mip_abs_gap", DISTANCE_SAFETY / 4)
        status = _solvers.run(highs)
        info = highs.getInfo()
        if status == _solvers.INFEASIBLE:
            bound = upper / eps
        elif status in _SOUND:
            bound = min(info.mip_dual_bound, upper / eps)
        else:
            bound = 0.0
        reached = min(reached, bound)
        if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            # The solution lies on the decision boundary; it leads to the same piece of it.
            point = _input(program, x, highs)
            for candidate in (point, _across(net, x, point, y, s, p, box)):
                nearer, found = _examples.bring_nearer(net, x, candidate, y, p, box)
                if found < upper:
                    best, upper = nearer, found
            # Or it is a vertex of the boundary: look for the nearest point a little beyond it.
            margin = highs.getNumRow() - 1
            for beyond in BEYOND:
                if upper <= eps * bound * (1 + 2 * DISTANCE_SAFETY):
                    break
                highs.changeRowBounds(margin, -highspy.kHighsInf, -beyond - offset)
                _solvers.run(highs)
                status = highs.getInfo().primal_solution_status
                if status == highspy.SolutionStatus.kSolutionStatusFeasible:
                    nearer, found = _examples.bring_nearer(
                        net, x, _input(program, x, highs), y, p, box
                    )
                    if found < upper:
                        best, upper = nearer, found
    return max(lower, min(upper, eps * (reached - DISTANCE_SAFETY))), best


def _across(net, x, z, y, s, p, box):
    """A point beyond the decision boundary a hair farther than z, which lies on it; or z itself.

    Where the nearest point is a vertex of the boundary, no projection leads there.
    """
    length = _distance(x, z, p)
    for hair in (1e-9, 1e-8, 1e-7, 5e-7):
        found = descend(net, x, z, y, s, p, length * (1 + hair), box, first=4 * hair)
        if found is not None:
            return found
    return z


def _search(program, y, s, size, deadline, slack=SAFETY):
    """HiGHS, looking only at points beyond the decision boundary, margin at most the slack."""
    highs = _milp.solver(program, deadline)
    costs, offset = _margin(program, y, s, size)
    _solvers.add_row(highs, costs, upper=slack - offset)
    return highs


def _margin(program: Milp, y: int, s: int, size: float) -> tuple[np.ndarray, float]:
    costs, offset = _milp.margin(program, y, s)
    return costs / size, offset / size


def _excluded(status, info, bound):
    """Whether a search has proved that there is nothing below a bound."""
    infeasible = status == _solvers.INFEASIBLE
    return infeasible or (status in _SOUND and info.mip_dual_bound > bound)


def _distance(x, z, p):
    return float(_examples.distance_rounded_up(x[None], z[None], p)[0])


def _flat(box):
    return None if box is None else (box[0].reshape(-1), box[1].reshape(-1))


def _input(program, x, highs):
    """The input that a solution stands for, shape of x."""
    solution = np.array(highs.getSolution().col_value)
    return x + (program.step @ solution).reshape(x.shape)


def descend(
    net: Network,
    x: np.ndarray,
    start: np.ndarray,
    y: int,
    s: int,
    p: float,
    eps: float,
    box: Box | None,
    first: float = 0.5,
) -> np.ndarray | None:
    """Go down the margin of y over s from a point, in steps that shrink; a verified example.

    The first step has the length ``first * eps``, the last a hundredth of that.

    Returns
    -------
    ndarray of the shape of x, or None
        A point of the ball and of the box that surely has another class than y.
    """
    X, label = x[None], np.full(1, y)
    toward = (np.eye(net.n_classes)[s] - np.eye(net.n_classes)[y]).reshape(1, *net.shapes[-1])
    # A hair inside the ball: rounding must not carry the point out of it.
    radius = eps * (1 - 1e-12) * (1 - 1e-14 * x.size)
    Z = project(X, start[None], p, radius, box)
    for step in eps * first * np.geomspace(1, 0.01, DESCENT_STEPS):
        if _examples.verified_distances(net, X, Z, label, p, box)[0] <= eps:
            return Z[0]
        cache = net.forward(Z)
        deltas = net.backward(cache, [*(None for _ in net.unit_shapes), toward])
        direction = steepest(net.input_gradient(deltas), p)
        Z = project(X, Z + step * direction, p, radius, box)
    return None
