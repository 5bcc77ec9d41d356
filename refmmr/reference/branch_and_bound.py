"""Branch and bound on linear relaxations: the exact answer, by bounds that are improved and split.

Is ``f(z) = <row, f_{L+1}(z)> + constant`` positive on a ball within a box?  The backward bound
(`refmmr.reference.backward_bound`) says yes where it is positive.  Where it is not, four steps
bring it up, the last one without end:

    ascend  Gradient steps in the free parameters of the bound (`refmmr.reference.ascent`).
    clip    Only a half-space of the ball can hold a point with f(z) <= 0.  The units are bounded
            again on it (`refmmr.reference.clipping`).
    score   The relaxation of one unit costs most at the minimizer of the bound.
    split   That unit is fixed: active (f >= 0) in one node, inactive (f <= 0) in the other.
            Its relaxation is exact in both.

`search` does this until all nodes are proved, or a point with ``f(z) <= 0`` is met (Bunel et al.
2018).  All bounds that count are backward bounds, with their rounding errors subtracted.

The pre-activation of a unit is such a function, too, of the network that ends at its layer.  Where
several layers of relaxations are stacked, bounds of units are wide; the production code brings them
up in the same four steps (`refmmr.certify.bounds._unit_trees`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.ascent import Nodes, ascend, bound, root
from refmmr.reference.backward_bound import backward_bound
from refmmr.reference.ball import Ball
from refmmr.reference.clipping import clip
from refmmr.reference.intervals import Bounds
from refmmr.reference.network import Network, flat

LAST_STEPS = 400
"""Gradient steps of a node without unstable units, which is not split."""


def split(nodes: Nodes, units: np.ndarray) -> Nodes:
    """Fix one unit of each node, given by its number among all N: inactive first, then active.

    Its multipliers are such that both halves begin with the bound of their parent
    (`refmmr.reference.ascent.split_multiplier`).
    """
    n = len(units)
    both = nodes.take(np.repeat(np.arange(n), 2))
    for i, unit in enumerate(np.repeat(units, 2)):
        sign = 2 * (i % 2) - 1
        for (lower, upper), fixed, alpha, beta in zip(*both, strict=True):
            if unit < fixed[i].size:
                place = (i, *np.unravel_index(unit, fixed[i].shape))
                fixed[place] = sign
                (lower if sign > 0 else upper)[place] = 0
                beta[place] *= 1 - alpha[place] if sign > 0 else alpha[place]
                break
            unit -= fixed[i].size
    return both


class Visit(NamedTuple):
    """A node of the tree, as `search` met it."""

    parent: int  # its number, -1 for the root
    unit: int  # that was fixed last, among all N; -1 for the root
    sign: int  # 1 active, -1 inactive
    bound: float
    half_space: tuple[np.ndarray, float]  # c and e: counterexamples have ``<c, z> + e <= 0``


def search(
    net: Network,
    ball: Ball,
    row: np.ndarray,
    bounds: Sequence[Bounds],
    *,
    constant: float = 0.0,
    steps: int = 20,
    max_nodes: int = 1000,
) -> tuple[bool, np.ndarray | None, list[Visit]]:
    """Whether ``<row, f_{L+1}(z)> + constant > 0`` on one ball, node by node.

    The units of the first layer are clipped; the production code clips those of all layers, many
    nodes at once (`refmmr.certify.bounds.bab`).

    Parameters
    ----------
    net : Network
    ball : Ball
        Around one point.
    row : ndarray, shape (*logits_shape)
    bounds : list of (lower, upper), each (1, *unit_shape)
        Of the hidden layers, valid on the ball.
    constant : float
    steps : int
        Gradient steps in a node.
    max_nodes : int

    Returns
    -------
    proved : bool
    point : ndarray, shape (d,), or None
        Where the function is at most 0, in floats.
    tree : list of Visit
        The nodes in the order in which they were bounded.  Neither proved nor a point where these
        are `max_nodes`, or where the function is too near 0 in a node without unstable units.
    """
    unit_rows = np.eye(bounds[0][0].size).reshape(1, -1, *net.unit_shapes[0])
    first = backward_bound(net, ball, unit_rows, [], [])
    A, offset, error = first.A[0], first.constant[0], first.error[0]
    tree: list[Visit] = []
    queue = [(root(bounds), -1, -1, 0)]
    while queue and len(tree) < max_nodes:
        node, parent, unit, sign = queue.pop(0)
        unstable = any(((lower < 0) & (upper > 0)).any() for lower, upper in node.bounds)
        best = ascend(net, ball, row[None], node, steps if unstable else LAST_STEPS)
        node = node._replace(slopes=best.slopes, multipliers=best.multipliers)
        linear = bound(net, ball, row[None], node)
        c, e = linear.A[0, 0], (linear.constant - linear.error)[0, 0] + constant
        tree.append(Visit(parent, unit, sign, linear.minimum(ball)[0, 0] + constant, (c, e)))
        z = best.points[0]
        if (row * net.forward(z.reshape(1, *net.input_shape)).outputs[-1][0]).sum() <= -constant:
            return False, z, tree
        if tree[-1].bound > 0:
            continue
        lower, upper = node.bounds[0]
        below = clip(ball, A, offset - error, c, e).reshape(lower.shape)
        above = -clip(ball, -A, -offset - error, c, e).reshape(lower.shape)
        node.bounds[0] = np.maximum(lower, below), np.minimum(upper, above)
        if (node.bounds[0][0] > node.bounds[0][1]).any():
            continue  # no counterexample is in this half-space
        scores = flat(best.scores)[0]
        if scores.max() >= 0:
            split_at = int(scores.argmax())
            halves = split(node, np.array([split_at]))
            queue += [
                (halves.take(np.array([i])), len(tree) - 1, split_at, 2 * i - 1) for i in (0, 1)
            ]
        elif unstable:
            queue.append((node, len(tree) - 1, unit, sign))  # clipping has made its units stable
        else:
            return False, None, tree  # the function is too near 0
    return not queue, None, tree
