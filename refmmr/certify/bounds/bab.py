"""Exact bounds by branch and bound on linear relaxations: alpha-beta-CROWN (Wang et al. 2021).

A ball is decided class by class, each step on the classes that the one before leaves open:

1. bounds of all units, and of the margins, with slopes that are chosen for each of them;
2. projected gradient descent of the margins, for an example;
3. a tree for each margin (`refmmr.certify.bounds._tree`), the smallest bound first, with descents
   from the points where the bounds of nodes are smallest; of one dense hidden layer in l_inf, with
   envelopes on the box instead of triangles (`refmmr.reference.envelope`);
4. where all units of a node are fixed and gradient steps do not prove it, which happens next to the
   minimal perturbation: the nearest point of that region, by cuts (`_subproblems`).

Proofs hold in real arithmetic, examples are verified in it (`refmmr._examples`).
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from refmmr import _examples, _kernels
from refmmr._examples import Box
from refmmr.certify.bounds import EXACT, Bounds, _place, _tree, _unit_trees
from refmmr.certify.bounds._ball_examples import BallExamples
from refmmr.certify.bounds._incumbent import Incumbent
from refmmr.certify.bounds._proofs import Record, complete_proof
from refmmr.certify.bounds._samples import distance, one_by_one
from refmmr.certify.bounds._subproblems import Subproblem, Subproblems
from refmmr.certify.bounds.linear import crown_bounds, farthest_distance
from refmmr.reference.ball import ball
from refmmr.reference.network import Network, activation_pattern
from refmmr.reference.proof import Proof

MARGIN_STEPS = 20
"""Gradient steps for the margins of all classes together, before the trees take more."""

RESTARTS = 10
"""Starts of the descent for each class that the bounds leave open, the first one at the point."""

FIRST_NODES = 1000
"""Nodes for a ball at first, a second or so, when the minimal perturbation is searched; a ball that
takes more is tried again with four times as many, after a smaller one."""

NEARER = 0.99
"""Projections that bring an example nearer by less than this creep along the decision boundary: the
nearest point of its linear region comes next, in small networks, where it takes little time."""

MAX_UNDECIDED = 2
"""Balls with a tie in them, or that rounding errors leave open, before the minimal perturbation is
given up: smaller ones gain little."""

MAX_UNPROVED = 1000
"""Leaves at ties that are bounded in one tree, a few seconds: up to 2^N meet in one point."""

FAR = 1e3
"""Rounding errors are relative to the ball.  Below this multiple of the distance that was proved in
an undecided ball, they do not matter: there is a tie at that distance."""

GAP = 0.5 * EXACT
"""The last ball is smaller by this share than the distance of the nearest example."""


class Decision(NamedTuple):
    """Whether a closed ball within the box is free of other classes."""

    robust: bool
    adversarial: np.ndarray | None  # a verified example in the ball, of the shape of an input
    radius: float  # no example is nearer; 0 where a limit was reached
    trees: list[_tree.Tree]  # of the classes that took one
    nodes: int
    record: Record | None = None  # for a proof, where it was asked for


def bab_bounds(
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
    proofs: dict[int, Proof | None] | None = None,
) -> Bounds:
    """Bounds on the minimal perturbation of each sample, exact if nothing ends the search early.

    Parameters
    ----------
    net : Network
        With float64 weights.
    X : ndarray of float64, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, 2, inf}
    box : (lo, hi) or None
        Arrays of the shape of an input, with X inside.
    goal : ndarray, shape (n,), optional
        Radii to decide about: the lower bound is the goal if there is no adversarial example in the
        closed ball of that radius, otherwise 0.  Without it the minimal perturbation is bounded.
    max_seconds : float, optional
        For each sample; then the bounds reached so far are returned.
    upper, adversarial : ndarray, shapes (n,) and (n, *input_shape), optional
        Verified adversarial examples and their distances, infinite and NaN where none is known.
    proofs : dict, optional
        Filled with a proof for each sample that is robust, by its number; None if the proof cannot
        be checked.  With a goal only.

    Returns
    -------
    Bounds
        They hold in real arithmetic.
    """

    def bound(i, eps, example, deadline):
        point = net, X[i], int(y[i]), p
        if eps is None:
            return minimal_perturbation(*point, box, example, deadline=deadline)
        decision = decide(*point, eps, box, deadline=deadline, record=proofs is not None)
        if proofs is not None and decision.record is not None:
            proofs[i] = complete_proof(decision.record)
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
    """Distance to the nearest adversarial example, between bounds that meet.

    The ball just below the nearest example so far is decided: either it is robust, and the example
    is the nearest, or it holds a nearer one.  Where that takes too many nodes, a ball between the
    bounds comes first.  A ball with a tie in it, a point where two logits are equal, cannot be
    proved robust and need not hold an example: then the distance of the tie is the lower bound.

    Parameters
    ----------
    net : Network
    x : ndarray, shape (*input_shape)
    y : int
        The class of x.
    p : {1, 2, inf}
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
    start = crown_bounds(net, x[None], np.full(1, y), p, box, deadline=deadline)
    lower, farthest = float(start.lower[0]), float(farthest_distance(x[None], p, box)[0])
    if np.isinf(lower):
        return lower, None
    best, upper = adversarial, np.inf if adversarial is None else distance(x, adversarial, p)
    max_nodes, last = FIRST_NODES, True
    undecided, count = np.inf, 0
    while min(upper, undecided) > lower * (1 + EXACT) and time.monotonic() < deadline:
        largest = min(upper * (1 - GAP), farthest, undecided)
        if np.isfinite(largest):
            between = np.sqrt(lower * largest) if lower > 0 else largest / 16
            eps = largest if last and largest < undecided else float(between)
        else:
            eps = 2 * lower if lower > 0 else float(np.abs(x).max() or 1.0) / 64
        decision = decide(net, x, y, p, eps, box, deadline=deadline, max_nodes=max_nodes)
        lower = max(lower, decision.radius)
        if decision.adversarial is not None:
            before = upper
            best, upper = _brought_nearer(net, x, decision.adversarial, y, p, box, upper)
            # Where that does not bring it nearer, halve the interval instead of creeping.
            last = upper < NEARER * before
        elif decision.robust:
            last = True
            if eps >= farthest:
                return (np.inf, None) if best is None else (upper, best)
        elif any(tree.given_up for tree in decision.trees):
            undecided, count = eps, count + 1
            if count == MAX_UNDECIDED or undecided <= FAR * lower:
                break
        else:
            last = not last
            max_nodes *= 4 if last else 1
    return min(lower, upper), best


def _brought_nearer(net, x, z, y, p, box, before):
    """An example of a ball that is smaller than the distance before, by projections of x.

    Where they gain little, by the nearest point of the linear region of the example.
    """
    best, upper = _examples.bring_nearer(net, x, z, y, p, box)
    small = net.n_hidden * x.size <= _tree.SMALL
    if best is None or upper < NEARER * before or not small:
        return best, upper
    point = Incumbent(net, p, box, x, y, upper)
    point.upper, point.adversarial = upper, best.reshape(-1)
    logits, active = net.logits(best[None])[0], activation_pattern(net, best[None])[0]
    logits[y] = -np.inf
    fixed = np.where(active, 1, -1).astype(np.int8)
    region = Subproblem(int(logits.argmax()), fixed, [], np.zeros(0), -1)
    Subproblems(net, p, box, point).distance(region)
    return point.adversarial.reshape(x.shape), point.upper


def decide(
    net: Network,
    x: np.ndarray,
    y: int,
    p: float,
    eps: float,
    box: Box | None,
    *,
    deadline: float = np.inf,
    max_nodes: float = np.inf,
    record: bool = False,
) -> Decision:
    """Whether the ball ``||z - x||_p <= eps`` within the box holds an adversarial example.

    Parameters
    ----------
    net : Network
    x : ndarray, shape (*input_shape)
    y : int
    p : {1, 2, inf}
    eps : float
    box : (lo, hi) or None
    deadline : float
        Time of `time.monotonic` at which to give up.
    max_nodes : float
        For each tree.
    record : bool
        Whether to keep what a proof needs.

    Returns
    -------
    Decision
        Neither robust nor with an example where a limit was reached, or a margin is too near 0.
    """
    # A ball that holds the whole box may be huge: rounding errors are relative to its radius.
    eps = min(eps, float(farthest_distance(x[None], p, box)[0]))
    place = _place.place(net, ball(x[None], np.full(1, eps), p, box), deadline, record)
    try:
        return _decide(place, x, y, eps, box, max_nodes)
    except _place.OutOfTimeError:
        return Decision(False, None, 0, [], 0)


def _decide(place, x, y, eps, box, max_nodes):
    net, p = place.net, place.ball.p
    bounds = _kernels.layer_bounds(net, x[None], p, place.ball.radius, box, "crown")[:-1]
    start = _place.start(place, bounds)
    targets = np.array([s for s in range(net.n_classes) if s != y])
    unit = np.eye(net.n_classes)
    rows = (unit[y] - unit[targets]).reshape(-1, *net.logits_shape)
    values, points = _place.root_bounds(start, rows, MARGIN_STEPS)
    order = np.argsort(values)
    left = order[~(values[order] > 0)]
    count = len(targets)
    if not len(left):
        return Decision(True, None, eps, [], count, Record.of(start, y, {}))
    examples = BallExamples(place, x, y, p, eps, box)
    if examples.among(points) or examples.descents(rows[left], 1):
        return Decision(False, examples.found, 0, [], count)
    # The roots of all trees before more descents: most of them are proved.
    trees: list[_tree.Tree] = []
    for i in left:
        trees.append(_tree.Tree(start, rows[i], examples))
        if trees[-1].refuted:
            break
    proved = np.array([tree.proved for tree in trees])
    if examples.found is None and not proved.all():
        examples.descents(rows[left[~proved]], RESTARTS)
    if examples.found is None:
        start, trees = _unit_trees.run(start, trees, max_nodes)
    radius = eps
    for i, tree in zip(left, trees, strict=False):
        if examples.found is not None or not tree.done:
            radius = 0.0
            break
        if tree.stuck:
            radius = min(radius, _prove_leaves(tree, examples, int(targets[i])))
    robust = examples.found is None and all(tree.proved for tree in trees)
    record = Record.of(start, y, dict(zip(targets[left].tolist(), trees, strict=False)))
    count += sum(tree.nodes for tree in trees)
    return Decision(robust, examples.found, radius, trees, count, record if robust else None)


def _prove_leaves(tree, examples, target):
    """Nodes whose units are all fixed, by the nearest point that their constraints allow.

    Returns a radius: within it the tree's ball has no counterexample.  It is smaller than the ball
    where the margin reaches 0 in a leaf and no example is found, at a tie.
    """
    place, eps = examples.place, float(examples.place.ball.radius[0])
    point = Incumbent(place.net, examples.p, examples.box, examples.x, examples.y, eps)
    cuts = Subproblems(place.net, examples.p, examples.box, point)
    cuts.deadline = place.deadline
    radius = eps
    unproved: list[np.ndarray] = []
    while tree.stuck:
        found = cuts.distance(Subproblem(target, tree.stuck[-1], [], np.zeros(0), -1))
        if point.upper <= examples.eps:
            examples.found = point.adversarial.reshape(examples.x.shape)
        late = time.monotonic() >= place.deadline or len(unproved) == MAX_UNPROVED
        if examples.found is not None or late:
            radius = 0.0
            break
        # Only now that it is bounded: an interruption leaves it among the others.
        leaf = tree.stuck.pop()
        if found < eps:
            radius = min(radius, found)
            unproved.append(leaf)
    tree.given_up = bool(unproved)
    tree.stuck += unproved
    return radius
