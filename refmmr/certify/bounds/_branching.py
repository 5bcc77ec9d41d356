"""Branch and bound over activation patterns, each leaf proved in real arithmetic.

A unit that the linear program leaves between its two parts is decided both ways: off (f <= 0) in
one branch, on (f >= 0) in the other.  Each branch is a linear program again, solved from the
optimum of the one before in a few steps.  As for the triangles (`refmmr.certify.bounds.lp`), the
solver's dual variables are advice, and the bound of a leaf is computed from them with all rounding
errors: on a branch the lines of a decided unit are

    off:   a max(f, 0) = 0    >=  price * f    for any price >= 0,
    on:    a max(f, 0) = a f  >=  price * f    for any price <= a.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from refmmr import _solvers
from refmmr.certify.bounds import _milp
from refmmr.certify.bounds._milp import LayerBounds, Milp
from refmmr.certify.bounds.lp import lines_below, node_prices
from refmmr.reference.ball import Ball
from refmmr.reference.network import Network

MAX_NODES = 2000

SPLIT = 1e-9
"""A unit is decided if the smaller of its parts is below this, in units of its size."""

Branch = dict[tuple[int, int], int]
"""Decided units, (layer, position among its unstable units): 1 on, -1 off."""


class Search(NamedTuple):
    """What became of a search."""

    proved: bool  # no point of the ball has a margin <= 0
    point: np.ndarray | None  # one that has, in floats, (d,)
    nodes: int


def search(
    net: Network,
    where: Ball,
    y: int,
    s: int,
    size: float,
    program: Milp,
    bounds: LayerBounds,
    *,
    deadline: float = np.inf,
    max_nodes: int = MAX_NODES,
) -> Search:
    """Whether the margin ``f_y - f_s`` is positive on a ball.

    Parameters
    ----------
    net : Network
    where : Ball
        Around one point.
    y, s : int
    size : float
        Of the margin on the ball, > 0.
    program : Milp
        Of the network on the ball, continuous.
    bounds : list of (lower, upper)
        Of the pre-activations, arrays (units,).
    deadline : float
        Time of `time.monotonic` at which to give up.
    max_nodes : int

    Returns
    -------
    Search
        Neither proved nor with a point where the search was given up.
    """
    row = (np.eye(net.n_classes)[y] - np.eye(net.n_classes)[s]) / size
    highs = _milp.solver(program, deadline)
    costs, offset = _milp.margin(program, y, s)
    _solvers.set_costs(highs, costs / size, offset / size)
    branches: list[Branch] = [{}]
    now: Branch = {}
    nodes = 0
    while branches:
        if nodes >= max_nodes or time.monotonic() > deadline:
            return Search(False, None, nodes)
        branch = branches.pop()
        _move(highs, program, now, branch)
        now, nodes = branch, nodes + 1
        status = _solvers.run(highs)
        signs = _signs(net, program, branch)
        if status == _solvers.INFEASIBLE:
            ray = _solvers.dual_ray(highs)
            if ray is not None:
                prices = node_prices(program, ray, net)
                if lines_below(net, where, 0 * row, bounds, prices, signs) > 0:
                    continue
            return Search(False, None, nodes)
        if status != _solvers.OPTIMAL:
            return Search(False, None, nodes)
        solution = highs.getSolution()
        duals, values = np.array(solution.row_dual), np.array(solution.col_value)
        prices = node_prices(program, duals, net)
        if lines_below(net, where, row, bounds, prices, signs) > 0:
            continue
        point = where.x[0] + program.step @ values
        logits = net.logits(point.reshape(1, *net.input_shape))[0]
        if logits[y] < logits[s]:
            return Search(False, point, nodes)
        unit = _undecided(program, bounds, values, prices, branch)
        if unit is None:
            # The program is exact here: its point is one with a margin of about 0.
            return Search(False, point, nodes)
        branches += [{**branch, unit: -1}, {**branch, unit: 1}]
    return Search(True, None, nodes)


def _move(highs, program, now, branch):
    """Fix the switches of another branch."""
    for k, j in sorted(now.keys() | branch.keys()):
        if now.get((k, j)) != branch.get((k, j)):
            low, high = {None: (0.0, 1.0), 1: (1.0, 1.0), -1: (0.0, 0.0)}[branch.get((k, j))]
            highs.changeColBounds(int(program.split[k].switch[j]), low, high)


def _signs(net, program, branch):
    """The decided units of each hidden layer: 1 on, -1 off, 0 open; arrays (units,)."""
    signs = [np.zeros(int(np.prod(shape)), dtype=int) for shape in net.unit_shapes]
    for (k, j), sign in branch.items():
        signs[k][program.split[k].units[j]] = sign
    return signs


def _undecided(program, bounds, values, prices, branch):
    """The open unit that costs most: its price times its distance to the ReLU; None if all fit.

    On the lower lines the program's units lie on the ReLU anyway; where the upper line is used, the
    price is ``a u / (u - l)``, and deciding the unit gains up to ``|a|`` times the smaller part.
    """
    best, unit = -1.0, None
    for k, split in enumerate(program.split):
        low, high = (side[split.units] for side in bounds[k])
        gap = np.minimum(values[split.positive] * high, -values[split.negative] * low)
        gap[[j for layer, j in branch if layer == k]] = 0
        score = np.abs(prices[k][split.units]) * (high - low) / high * gap
        score[gap <= SPLIT * split.size] = -1
        if len(score) and score.max() > best:
            best, unit = float(score.max()), (k, int(score.argmax()))
    return unit
