"""Trees whose hidden units are bounded by trees, too, where relaxations are stacked.

The relaxation of a unit costs as much as its bounds are wide, and behind several layers of
relaxations they are wide: a margin that a large tree leaves open may be proved at the root once the
bounds of the units are nearly exact.  The pre-activation of a unit is an output of a shorter
network, the layers up to its own, so a tree (`refmmr.certify.bounds._tree`) improves its bounds as
well, layer after layer.  Tjeng et al.  (2019) solve a mixed-integer program for each unit instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from refmmr.certify.bounds import _place, _tree
from refmmr.reference import envelope
from refmmr.reference.layers import Flatten, Linear
from refmmr.reference.network import Network
from refmmr.reference.rounding import layer_magnitudes

FIRST_NODES = 1000
"""Nodes of a tree before the bounds of the units are improved, less than a second or so."""

UNIT_NODES = 16
"""Nodes of the tree of each side of each unit at first: all together take a few seconds."""

GROWTH = 4
"""Factor on that from one turn to the next."""

MIN_GAIN = 0.05
"""The last turn is one that makes the bounds of unstable units narrower by less than this share."""


def run(
    start: _place.Start, trees: list[_tree.Tree], max_nodes: float = np.inf
) -> tuple[_place.Start, list[_tree.Tree]]:
    """Run trees of one start until all are done, one is refuted, or a limit is reached.

    Where one takes many nodes, the bounds of the units are improved, and all that are not done
    begin anew from there.  Then it may take as many nodes as the units have taken before their
    bounds are improved further, and so on while that gains something.  Certificates have no room
    for trees of units: where they are recorded, and in networks of one hidden layer, there is one
    turn without end.

    Parameters
    ----------
    start : Start
    trees : list of Tree
        The hardest first.
    max_nodes : float
        Of each tree.

    Returns
    -------
    start : Start
        With the bounds of the units so far.
    trees : list of Tree
        Up to the first that is refuted.
    """
    deadline = start.place.deadline
    in_turns = len(start.bounds) > 1 and not start.place.record
    share, unit_nodes = FIRST_NODES if in_turns else np.inf, UNIT_NODES
    while True:
        for tree in trees:
            tree.run(deadline, min(tree.nodes + share, max_nodes))
            if tree.refuted or not tree.done:
                break
        over = tree.nodes >= max_nodes or time.monotonic() >= deadline
        if over or _ended(trees):
            return start, trees
        total, before = 0, _width(start)
        for better, taken in refined(start, unit_nodes):
            start, total = better, total + taken
            trees = _anew(start, trees)
            if _ended(trees):
                return start, trees
        gained = before - _width(start) >= MIN_GAIN * before
        share, unit_nodes = max(share, total) if gained else np.inf, unit_nodes * GROWTH


def _width(start):
    """The sum of the widths of the bounds of all unstable units behind the first layer."""
    unstable = [(high - low)[(low < 0) & (high > 0)] for low, high in start.bounds[1:]]
    return sum(part.sum() for part in unstable)


def _ended(trees):
    """Whether nothing is left to split."""
    return trees[-1].refuted or all(tree.done for tree in trees)


def _anew(start, trees):
    """Trees that are not done, from a better start; up to the first that is refuted."""
    fresh: list[_tree.Tree] = []
    for tree in trees:
        fresh.append(tree if tree.done else tree.anew(start))
        if fresh[-1].refuted:
            break
    return fresh


def refined(start: _place.Start, max_nodes: int) -> Iterator[tuple[_place.Start, int]]:
    """Better bounds of the units behind the first hidden layer, layer after layer, by trees.

    Parameters
    ----------
    start : Start
    max_nodes : int
        Of the tree of each side of each unit.

    Yields
    ------
    start : Start
        After each layer, with bounds of the units behind it that follow; the last one where the
        deadline of the place has passed.
    nodes : int
        That were bounded since the one before.
    """
    bounds, forms = list(start.bounds), list(start.forms)
    try:
        for k in range(1, len(bounds)):
            bounds[k], nodes = _layer(start.place, k, bounds, forms, max_nodes)
            for i in range(k + 1, len(bounds)):
                bounds[i], forms[i] = _place.bound_units(
                    start.place, i, bounds[:i], bounds[i], start.magnitudes
                )
            yield start._replace(bounds=list(bounds), forms=list(forms)), nodes
    except _place.OutOfTimeError:
        return


def _layer(place, k, bounds, forms, max_nodes):
    """Better bounds (lower, upper) of hidden layer k, by trees, and the nodes that they took.

    A tree bounds the values up to 0: a bound that reaches 0 makes the unit stable.
    """
    lower, upper = (side.copy() for side in bounds[k])
    low, high = (side.reshape(-1) for side in (lower, upper))
    units = np.flatnonzero((low < 0) & (high > 0))
    if not len(units):
        return bounds[k], 0
    start = _outputs(place, k, units, bounds[:k], forms[:k])
    total = 0
    for unit, row in zip(units, np.eye(len(units)), strict=True):
        for sign, side in ((1, low), (-1, high)):
            if time.monotonic() >= place.deadline:
                raise _place.OutOfTimeError
            if low[unit] < 0 < high[unit]:  # the other side may have made it stable
                tree = _tree.Tree(start, sign * row, _none)
                tree.run(place.deadline, max_nodes)
                side[unit] = sign * max(sign * side[unit], tree.lower)
                total += tree.nodes
    return (lower, upper), total


def _outputs(place, k, units, bounds, forms):
    """The start of trees for some units of hidden layer k: they are the outputs of a network."""
    net, before = place.net, place.net.span(k)
    W = np.zeros((len(units), *net.unit_shapes[k]))
    W.reshape(len(units), -1)[np.arange(len(units)), units] = 1
    for i in reversed(before):
        W = net.layers[i].transpose(W, net.shapes[i])
    zero = np.zeros((1, *net.shapes[before[-1]]))
    b = net.layers[before[-1]].apply(zero).reshape(-1)[units]
    flatten = [] if len(net.shapes[before[0]]) == 1 else [Flatten()]
    layers = [*net.layers[: before[0]], *flatten, Linear(W.reshape(len(units), -1), b)]
    place = _place.place(Network(layers, net.input_shape), place.ball, place.deadline)
    magnitudes = layer_magnitudes(place.net, place.ball, bounds)
    hidden = envelope.hidden(place.net, place.ball) if _place.has_envelopes(place) else None
    return _place.Start(place, bounds, forms, magnitudes, hidden)


def _none(points):
    """No point is looked for."""
    return False
