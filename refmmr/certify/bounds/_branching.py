"""Branch and bound over activation patterns, each leaf proved in real arithmetic.

A unit that the linear program leaves between its two pieces is fixed both ways: inactive (f <= 0)
in one branch, active (f >= 0) in the other.  Each branch is a linear program again, solved from the
optimum of the one before in a few steps of the simplex method.  Its bound is computed from its dual
variables with all rounding errors, as that of the root (`refmmr.certify.bounds.lp`).  The duals of
fixed units are multipliers of their constraints, as in beta-CROWN (Wang et al. 2021); those of an
infeasible program prove that no point of the ball is in the branch.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from refmmr import _solvers
from refmmr.certify.bounds import _milp
from refmmr.certify.bounds._milp import LayerBounds, Milp
from refmmr.certify.bounds.lp import ball_magnitudes, dual_bound, unit_duals
from refmmr.reference.ball import Ball
from refmmr.reference.network import Network

MAX_NODES = 2000
"""Stop after this many linear programs, a few seconds, and let the mixed-integer solver look for an
example: its cutting planes tighten all of its nodes."""

COMPLEMENTARY = 1e-9
"""A unit lies on its ReLU if the smaller of its two parts is below this, relative to its bounds:
the tolerance of the solver."""

Branch = dict[tuple[int, int], int]
"""Fixed units, (layer, position among its unstable units): 1 active, -1 inactive."""


class MarginProof(NamedTuple):
    """The result of branch and bound for one margin."""

    proved: bool  # no point of the ball has a margin <= 0
    point: np.ndarray | None  # one that has, in floats, (d,)
    nodes: int
    left: list[Branch]  # not proved; empty where rounding errors or the solver end the attempt


def prove_margin(
    net: Network,
    ball: Ball,
    y: int,
    s: int,
    size: float,
    program: Milp,
    bounds: LayerBounds,
    *,
    branches: list[Branch] | None = None,
    deadline: float = np.inf,
    max_nodes: float = MAX_NODES,
) -> MarginProof:
    """Whether the margin ``f_y - f_s`` is positive on a ball, depth first.

    Parameters
    ----------
    net : Network
    ball : Ball
        Around one point.
    y, s : int
    size : float
        Of the margin on the ball, > 0.
    program : Milp
        Of the network on the ball, continuous.
    bounds : list of (lower, upper)
        Of the pre-activations, arrays (units,).
    branches : list of Branch, optional
        Those that an earlier call left; the whole ball if not given.
    deadline : float
        Time of `time.monotonic` at which to stop.
    max_nodes : float

    Returns
    -------
    MarginProof
        Neither proved nor with a point where a limit was reached, or rounding errors are too large.
    """
    row = (np.eye(net.n_classes)[y] - np.eye(net.n_classes)[s]) / size
    highs = _milp.solver(program, deadline)
    costs, offset = _milp.margin(program, y, s)
    _solvers.set_costs(highs, costs / size, offset / size)
    magnitudes = ball_magnitudes(net, ball, bounds)
    branches = [{}] if branches is None else list(branches)
    current: Branch = {}
    nodes = 0
    while branches:
        if nodes >= max_nodes or time.monotonic() > deadline:
            return MarginProof(False, None, nodes, branches)
        branch = branches.pop()
        _fix(highs, program, current, branch)
        current, nodes = branch, nodes + 1
        status = _solvers.run(highs)
        fixed = _fixed_units(net, program, branch)
        if status == _solvers.INFEASIBLE:
            ray = _solvers.dual_ray(highs)
            if ray is not None:
                # A ray bounds the function 0: a positive bound of it is a contradiction.
                duals = unit_duals(program, ray, net)
                if dual_bound(net, ball, 0 * row, bounds, duals, fixed, magnitudes) > 0:
                    continue
            return MarginProof(False, None, nodes, [])
        if status != _solvers.OPTIMAL:
            return MarginProof(False, None, nodes, [])
        solution = highs.getSolution()
        duals = unit_duals(program, np.array(solution.row_dual), net)
        if dual_bound(net, ball, row, bounds, duals, fixed, magnitudes) > 0:
            continue
        values = np.array(solution.col_value)
        point = ball.x[0] + program.step @ values
        logits = net.logits(point.reshape(1, *net.input_shape))[0]
        if logits[y] < logits[s]:
            return MarginProof(False, point, nodes, [])
        unit = _branching_unit(program, bounds, values, duals, branch)
        if unit is None:
            # The program is exact at its minimiser, whose margin is about 0.
            return MarginProof(False, point, nodes, [])
        branches += [{**branch, unit: -1}, {**branch, unit: 1}]
    return MarginProof(True, None, nodes, [])


def _fix(highs, program, current, branch):
    """Fix the binary variables of another branch than the current one."""
    for k, j in sorted(current.keys() | branch.keys()):
        if current.get((k, j)) != branch.get((k, j)):
            low, high = {None: (0.0, 1.0), 1: (1.0, 1.0), -1: (0.0, 0.0)}[branch.get((k, j))]
            highs.changeColBounds(int(program.split[k].switch[j]), low, high)


def _fixed_units(net, program, branch):
    """The fixed units of each hidden layer: 1 active, -1 inactive, 0 open; arrays (units,)."""
    fixed = [np.zeros(int(np.prod(shape)), dtype=int) for shape in net.unit_shapes]
    for (k, j), sign in branch.items():
        fixed[k][program.split[k].units[j]] = sign
    return fixed


def _branching_unit(program, bounds, values, duals, branch):
    """The open unit whose relaxation costs most at the minimiser; None if all are on their ReLUs.

    Where a lower relaxation is used, the minimiser is on the ReLU.  Where an upper one is used, the
    dual variable is ``G u / (u - l)``, and fixing the unit gains at most ``|G|`` times the smaller
    of its two parts.
    """
    best, unit = -1.0, None
    for k, split in enumerate(program.split):
        low, high = (side[split.units] for side in bounds[k])
        part = np.minimum(values[split.positive] * high, -values[split.negative] * low)
        part[[j for layer, j in branch if layer == k]] = 0
        score = np.abs(duals[k][split.units]) * (high - low) / high * part
        score[part <= COMPLEMENTARY * split.size] = -1
        if len(score) and score.max() > best:
            best, unit = float(score.max()), (k, int(score.argmax()))
    return unit
