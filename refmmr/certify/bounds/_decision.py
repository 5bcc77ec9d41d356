"""Does a ball hold an adversarial example?  Decided by four methods, from cheap to expensive.

Each method takes the classes that the one before leaves open:

1. CROWN's bounds, and the linear relaxation (`refmmr.certify.bounds.lp`);
2. a descent of the margin from the optimum of the linear program, for an example;
3. branch and bound over linear programs (`refmmr.certify.bounds._branching`), up to a number of
   them;
4. the branch and cut of HiGHS (`refmmr.certify.bounds._milp`), for an example; where it finds none,
   branch and bound goes on to the end.

Examples and proofs hold in real arithmetic.  What HiGHS says proves nothing: the coefficients of
its program are rounded, it has tolerances, and it may be wrong.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from refmmr import _examples, _solvers
from refmmr._examples import Box
from refmmr.certify.bounds import _branching, _milp
from refmmr.certify.bounds._milp import LayerBounds
from refmmr.certify.bounds.lp import margins_below
from refmmr.reference.ball import ball
from refmmr.reference.network import Network
from refmmr.reference.pgd import project, steepest

DESCENT_STEPS = 60
"""Gradient steps of a descent: their lengths fall to a hundredth of the first."""


class Decision(NamedTuple):
    """Whether a closed ball within the box is free of other classes."""

    robust: bool
    adversarial: np.ndarray | None  # a verified example in the ball, of the shape of an input
    targets: list[int]  # classes that are not excluded
    binaries: int  # binary variables of the mixed-integer program
    nodes: int  # of all branch-and-bound trees


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
    flat_box = None if box is None else (box[0].reshape(-1), box[1].reshape(-1))

    def example_near(start: np.ndarray | None, s: int) -> np.ndarray | None:
        if start is None:
            return None
        return descend(net, x, start.reshape(x.shape), y, s, p, eps, box)

    below = margins_below(net, x, y, p, eps, box, bounds, deadline=deadline)
    targets = np.flatnonzero(~(below.lower > 0))
    targets = targets[np.argsort(below.lower[targets])].tolist()
    for s in targets:
        example = example_near(below.points.get(s), s)
        if example is not None:
            return Decision(False, example, targets, 0, 0)
    if not targets or not below.complete:
        return Decision(not targets, None, targets, 0, 0)

    logits = net.logits(x[None])[0]
    sizes = np.maximum(logits[y] - logits, -below.lower)
    centers = ball(x[None], np.full(1, eps), p, flat_box)
    program = _milp.build(net, x.reshape(-1), p, eps, flat_box, bounds, binary=False)
    nodes = 0
    unproved: dict[int, list[_branching.Branch]] = {}
    for s in targets:
        tree = _branching.prove_margin(
            net, centers, y, s, float(sizes[s]), program, bounds, deadline=deadline
        )
        nodes += tree.nodes
        example = example_near(tree.point, s)
        if example is not None:
            return Decision(False, example, targets, 0, nodes)
        if not tree.proved:
            unproved[s] = tree.left
    if not unproved:
        return Decision(True, None, [], 0, nodes)

    integer = _milp.build(net, x.reshape(-1), p, eps, flat_box, bounds, binary=True)
    binaries, left = int(integer.binary.sum()), []
    for s, branches in unproved.items():
        point = None
        if time.monotonic() < deadline:
            point, count = _smallest_margin(integer, x, y, s, float(sizes[s]), deadline)
            nodes += count
        example = example_near(point, s)
        if example is None and branches:
            tree = _branching.prove_margin(
                net, centers, y, s, float(sizes[s]), program, bounds,
                branches=branches, deadline=deadline, max_nodes=np.inf,
            )  # fmt: skip
            nodes += tree.nodes
            if tree.proved:
                continue
            example = example_near(tree.point, s)
        if example is not None:
            return Decision(False, example, targets, binaries, nodes)
        left.append(s)
    return Decision(not left, None, left, binaries, nodes)


def _smallest_margin(program, x, y, s, size, deadline):
    """HiGHS's point with a margin ``f_y - f_s <= 0``, or None, and its number of nodes."""
    costs, offset = _milp.margin(program, y, s, size)
    highs = _milp.solver(program, deadline)
    _solvers.add_row(highs, costs, upper=-offset)
    _solvers.set_costs(highs, costs, offset)
    highs.setOptionValue("objective_target", 0.0)
    _solvers.run(highs)
    return _milp.input_of(program, x, highs), max(0, highs.getInfo().mip_node_count)


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
    """Projected gradient descent of the margin ``f_y - f_s``, until a verified example is reached.

    Parameters
    ----------
    net : Network
    x, start : ndarray, shape (*input_shape)
        The center of the ball, and where the descent starts.
    y, s : int
    p : {1, 2, inf}
    eps : float
    box : (lo, hi) or None
    first : float
        Length of the first step, in units of eps.

    Returns
    -------
    ndarray of the shape of x, or None
        A verified example in the ball.
    """
    X, label = x[None], np.full(1, y)
    df = net.at_logits((np.eye(net.n_classes)[s] - np.eye(net.n_classes)[y])[None])
    # A smaller radius, so that rounding carries no point out of the ball.
    radius = eps * (1 - 1e-12) * (1 - 1e-14 * x.size)
    Z = project(X, start[None], p, radius, box)
    for step in eps * first * np.geomspace(1, 0.01, DESCENT_STEPS):
        if _examples.verified_distances(net, X, Z, label, p, box)[0] <= eps:
            return Z[0]
        cache = net.forward(Z)
        deltas = net.backward(cache, df)
        direction = steepest(net.input_gradient(deltas), p)
        Z = project(X, Z + step * direction, p, radius, box)
    return None
