"""Does a ball hold an adversarial example?  Decided by four methods, from cheap to expensive.

Each method takes the classes that the one before leaves open:

1. CROWN's bounds, and the linear relaxation (`refmmr.certify.bounds.lp`);
2. a descent of the margin from the optimum of the linear program, for an example;
3. branch and bound over linear programs (`refmmr.certify.bounds._branching`), which needs a handful
   of them where the cuts of a general solver take seconds;
4. the branch and cut of HiGHS (`refmmr.certify.bounds._milp`).

Examples and the proofs of the first three hold in real arithmetic.  A proof by the last rests on
the tolerances of HiGHS, 1e-9 in units in which all variables are about 1.  Its *bound* counts,
never its best solution, and must exceed 0 by `SAFETY`.
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

SAFETY = 1e-6
"""A margin counts as positive if HiGHS proves that it exceeds this, in units of its size on the
ball: a thousand times the solver's tolerance."""

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
    nodes, unproved = 0, []
    for s in targets:
        tree = _branching.prove_margin(
            net, centers, y, s, float(sizes[s]), program, bounds, deadline=deadline
        )
        nodes += tree.nodes
        example = example_near(tree.point, s)
        if example is not None:
            return Decision(False, example, targets, 0, nodes)
        if not tree.proved:
            unproved.append(s)
    if not unproved:
        return Decision(True, None, [], 0, nodes)

    program = _milp.build(net, x.reshape(-1), p, eps, flat_box, bounds, binary=True)
    binaries, left = int(program.binary.sum()), []
    for s in unproved:
        if time.monotonic() > deadline:
            left.append(s)
            continue
        costs, offset = _milp.margin(program, y, s, float(sizes[s]))
        highs = _milp.solver(program, deadline)
        _solvers.add_row(highs, costs, upper=SAFETY - offset)
        _solvers.set_costs(highs, costs, offset)
        highs.setOptionValue("objective_target", -SAFETY)
        status = _solvers.run(highs)
        nodes += max(0, highs.getInfo().mip_node_count)
        if _solvers.proved_bound(highs, status) > SAFETY:
            continue
        left.append(s)
        example = example_near(_milp.input_of(program, x, highs), s)
        if example is not None:
            return Decision(False, example, targets, binaries, nodes)
    return Decision(not left, None, left, binaries, nodes)


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
