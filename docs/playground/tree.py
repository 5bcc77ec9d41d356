"""The trees of the playground: branch and bound around one point of the plane, at several radii.

``data()`` computes every node (a second or two) with the functions of `refmmr.reference`; the
script draws them and opens those that the reader splits.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

import refmmr as rm
from refmmr.reference import ascent, backward_bound, branch_and_bound, clipping, intervals
from refmmr.reference.ball import Ball, ball
from refmmr.reference.network import flat
from refmmr.reference.relaxation import lower_slope

SIZES = (2, 12, 12, 2)
CENTRE = (0.3, 0.2)
FRAME = (-0.55, -0.65, 1.15, 1.05)
RADII = (0.38, 0.5, 0.55, 0.6, 0.69)
"""CROWN proves the discs up to 0.36; the last one reaches a point of the other class."""
STEPS = 50
"""Gradient steps of a node."""
GRID = 300
"""Points of the frame in each direction, for the smallest margin."""
ARC = 72
"""Vertices of a disc."""

HalfSpace = tuple[np.ndarray, float]
"""c and e of ``<c, z> + e <= 0``."""


class Node(NamedTuple):
    """A node, as branch and bound meets it."""

    parent: int  # -1 for the root
    unit: int  # fixed last, among all units; -1 for the root
    sign: int  # 1 active, -1 inactive
    nodes: ascent.Nodes  # this node alone, with the slopes and multipliers that were chosen
    bounds: dict[str, float]  # of each method
    half_spaces: dict[str, HalfSpace]  # of each method but intervals: where f <= 0 is possible
    point: np.ndarray  # (2,): where the last bound is smallest
    margin: float  # at that point
    outcome: str  # "split", "proved", "example", or "empty": clipping has left nothing
    split: int  # the unit that costs most, among all units; -1 where nothing is split


def network() -> rm.Network:
    """That of tutorial 7, its weights rounded to float32."""
    rng = np.random.default_rng(5)
    layers = []
    for m, n in pairwise(SIZES):
        W, b = rng.normal(size=(n, m)) / np.sqrt(m) * 1.6, rng.normal(size=n) / 2
        layers.append(rm.Linear(*(np.float64(np.float32(array)) for array in (W, b))))
    return rm.Network(layers, SIZES[0])


def question(net: rm.Network, radius: float) -> tuple[Ball, np.ndarray]:
    """The disc, and the coefficients of the margin: positive where the class is the centre's."""
    x = np.array([CENTRE])
    row = np.where(np.arange(net.n_classes) == net.predict(x)[0], 1.0, -1.0)
    return ball(x, np.array([radius]), 2, None), row


def grow(net: rm.Network, around: Ball, row: np.ndarray) -> list[Node]:
    """All nodes that `refmmr.reference.branch_and_bound.search` can meet, whatever its order.

    A point of another class ends its own node alone: the reader may open that one last.
    """
    hidden = backward_bound.layer_bounds(net, around.x, 2, around.radius, None, "crown")[:-1]
    tree: list[Node] = []
    queue = [(ascent.root(hidden), -1, -1, 0)]
    while queue:
        node, parent, unit, sign = queue.pop(0)
        tree.append(visit(net, around, row, node)._replace(parent=parent, unit=unit, sign=sign))
        if tree[-1].outcome == "split":
            split_at, number = tree[-1].split, len(tree) - 1
            both = branch_and_bound.split(tree[-1].nodes, np.array([split_at]))
            queue += [(both.take(np.array([i])), number, split_at, 2 * i - 1) for i in (0, 1)]
    return tree


def visit(net: rm.Network, around: Ball, row: np.ndarray, node: ascent.Nodes) -> Node:
    """Bound a node, look at the minimizer, clip the first layer, choose the unit to split."""
    unstable = any(((lower < 0) & (upper > 0)).any() for lower, upper in node.bounds)
    steps = STEPS if unstable else branch_and_bound.LAST_STEPS
    best = ascent.ascend(net, around, row[None], node, steps)
    node = node._replace(slopes=best.slopes, multipliers=best.multipliers)
    bounds, half_spaces = methods(net, around, row, node)
    point = best.points[0]
    margin = float(row @ net(point[None])[0])
    found = Node(-1, -1, 0, node, bounds, half_spaces, point, margin, "proved", -1)
    if margin <= 0:
        return found._replace(outcome="example")
    if bounds["beta"] > 0:
        return found
    clipped = clip_first_layer(net, around, node, *half_spaces["beta"])
    scores = flat(best.scores)[0]
    lower, upper = clipped.bounds[0]
    if (lower > upper).any():
        return found._replace(outcome="empty")
    if scores.max() < 0:
        raise ValueError("a node without unstable units is not proved: choose other radii")
    return found._replace(outcome="split", split=int(scores.argmax()), nodes=clipped)


def clip_first_layer(
    net: rm.Network, around: Ball, node: ascent.Nodes, c: np.ndarray, e: float
) -> ascent.Nodes:
    """The node with the units of the first layer bounded again where ``<c, z> + e <= 0``."""
    unit_rows = np.eye(net.unit_shapes[0][0])[None]
    first = backward_bound.backward_bound(net, around, unit_rows, [], [])
    A, constant, error = first.A[0], first.constant[0], first.error[0]
    below = clipping.clip(around, A, constant - error, c, e)
    above = -clipping.clip(around, -A, -constant - error, c, e)
    lower, upper = node.bounds[0]
    clipped = np.maximum(lower, below), np.minimum(upper, above)
    return node._replace(bounds=[clipped, *node.bounds[1:]])


def methods(
    net: rm.Network, around: Ball, row: np.ndarray, node: ascent.Nodes
) -> tuple[dict[str, float], dict[str, HalfSpace]]:
    """The bound of each method in a node, and its half-space.

    All but intervals take the node's bounds of the units; "alpha" knows the sign of a fixed unit,
    but has no multiplier for it.
    """
    free = node._replace(fixed=[np.zeros_like(part) for part in node.fixed])
    alpha = ascent.ascend(net, around, row[None], free, STEPS)
    choices = {
        name: free._replace(slopes=[lower_slope(*pair, name) for pair in node.bounds])
        for name in ("fast-lin", "crown")
    } | {"alpha": free._replace(slopes=alpha.slopes), "beta": node}
    bounds, half_spaces = {"ibp": interval_bound(net, around, row, node)}, {}
    for name, choice in choices.items():
        linear = ascent.bound(net, around, row[None], choice)
        bounds[name] = float(linear.minimum(around)[0, 0])
        half_spaces[name] = linear.A[0, 0], float((linear.constant - linear.error)[0, 0])
    return bounds, half_spaces


def interval_bound(net: rm.Network, around: Ball, row: np.ndarray, node: ascent.Nodes) -> float:
    """IBP of the margin on the square around the disc, with the signs of fixed units."""
    lower, upper = around.lowest, around.highest
    for k, fixed in enumerate(node.fixed):
        lower, upper = intervals.through(net, k, lower, upper)
        lower = np.where(fixed > 0, np.maximum(lower, 0), lower)
        upper = np.where(fixed < 0, np.minimum(upper, 0), upper)
    last = net.affine_layers[-1]
    w = row @ last.W
    smallest = np.where(w > 0, w * np.maximum(lower, 0), w * np.maximum(upper, 0))
    return float(smallest.sum() + row @ last.b)


# What the script reads.


def data() -> dict[str, Any]:
    """Everything that the trees are given."""
    net = network()
    parameters = [np.asarray(array, "<f4") for pair in net.parameters for array in pair]
    return {
        "frame": FRAME,
        "sizes": SIZES,
        "weights": base64.b64encode(b"".join(a.tobytes() for a in parameters)).decode(),
        "centre": CENTRE,
        "trees": [tree(net, radius) for radius in RADII],
    }


def tree(net: rm.Network, radius: float) -> dict[str, Any]:
    """One tree: the nodes, each with what is drawn of it."""
    around, row = question(net, radius)
    x0, y0, x1, y1 = FRAME
    axes = np.linspace(x0, x1, GRID), np.linspace(y0, y1, GRID)
    Z = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    Z = Z[np.linalg.norm(Z - CENTRE, axis=1) <= radius]
    pattern, margins = net.activation_pattern(Z), net(Z) @ row
    nodes = grow(net, around, row)
    return {"radius": radius, "nodes": [shown(node, radius, pattern, margins) for node in nodes]}


def shown(node: Node, radius: float, pattern: np.ndarray, margins: np.ndarray) -> dict[str, Any]:
    """A node for the script; `pattern` (n, N) and `margins` (n,) are of points of the disc."""
    fixed = flat(node.nodes.fixed)[0]
    inside = np.where(fixed == 0, True, pattern == (fixed > 0)).all(axis=1)
    chords = {name: chord(*half, radius) for name, half in node.half_spaces.items()}
    lower, upper, slope = (
        flat(part)[0] for part in (*zip(*node.nodes.bounds, strict=True), node.nodes.slopes)
    )
    state = np.select([fixed > 0, fixed < 0, lower >= 0, upper <= 0], list("AIai"), "u")
    entry: dict[str, Any] = {
        "parent": node.parent, "unit": node.unit, "sign": node.sign, "outcome": node.outcome,
        "bounds": {name: rounded(value) for name, value in node.bounds.items()},
        "chords": {name: points for name, points in chords.items() if points},
        "part": segment(*node.half_spaces["beta"], radius),
        "point": rounded(node.point), "margin": rounded(node.margin), "units": "".join(state),
        "truth": rounded(margins[inside].min()) if inside.any() else None,
    }  # fmt: skip
    if node.split >= 0:
        i = node.split
        entry["split"] = {
            "unit": i, "l": rounded(lower[i]), "u": rounded(upper[i]), "slope": rounded(slope[i]),
        }  # fmt: skip
    return entry


def chord(c: np.ndarray, e: float, radius: float) -> list[list[float]] | None:
    """The two ends of ``<c, z> + e = 0`` within the disc; None where it misses the disc."""
    angles = ends(c, e, radius)
    return None if angles is None else rounded(on_circle(np.array(angles), radius))


def segment(c: np.ndarray, e: float, radius: float) -> list[list[float]]:
    """The part of the disc with ``<c, z> + e <= 0``, a polygon; its arc has `ARC` vertices."""
    angles = ends(c, e, radius)
    if angles is None:
        inside = c @ CENTRE + e <= 0
        angles = (0, 2 * np.pi) if inside else (0, 0)
    return rounded(on_circle(np.linspace(*angles, ARC), radius)) if angles != (0, 0) else []


def ends(c: np.ndarray, e: float, radius: float) -> tuple[float, float] | None:
    """Angles between which the circle has ``<c, z> + e <= 0``; None if the line misses it."""
    length = np.linalg.norm(c)
    height = (c @ CENTRE + e) / length  # of the centre above the line
    if abs(height) >= radius:
        return None
    middle = np.arctan2(-c[1], -c[0])
    half = np.arccos(height / radius)
    return middle - half, middle + half


def on_circle(angles: np.ndarray, radius: float) -> np.ndarray:
    """Points of the circle, (n, 2)."""
    return CENTRE + radius * np.column_stack([np.cos(angles), np.sin(angles)])


def rounded(values: Any) -> Any:
    """Numbers with four decimals, as lists."""
    return np.round(np.asarray(values, float), 4).tolist()
