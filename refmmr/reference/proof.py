"""Proofs that a ball is free of other classes, and their check.

Branch and bound (`refmmr.reference.branch_and_bound`) searches; this chapter checks what it found.
A proof is a list of *nodes*.  It contains choices alone: where to split, and the free parameters of
bounds.  The bounds are computed again, with their rounding errors subtracted.  So whoever wrote the
proof need not be trusted: bad choices give bad bounds, which prove nothing, never wrong ones.

For each other class s there is a tree.  Its root stands for all points z of the ball with
``f_y(z) <= f_s(z)``, the counterexamples.  With the bounds of the units that are known to hold at
the counterexamples of a node, a backward bound

    <c, z> + e   <=   f_y(z) - f_s(z)

follows from one number for each unit, its lower slope or its multiplier
(`refmmr.reference.ascent`).  A node is **closed**, that is without counterexamples, in three ways:

    bound     ``<c, z> + e`` is positive on the ball.
    clipping  Counterexamples have ``<c, z> + e <= 0``.  In that half-space the units get better
              bounds (`refmmr.reference.clipping`), and those of a unit exclude each other.
    children  All are closed.  With these better bounds, they are two nodes in one of which a unit
              is active (f >= 0), inactive (f <= 0) in the other; or one, bounded once more.

The point is robust if the root of every other class is closed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.reference.backward_bound import LinearBound, backward_bound, layer_bounds
from refmmr.reference.ball import Ball
from refmmr.reference.clipping import clip
from refmmr.reference.intervals import Bounds
from refmmr.reference.network import Network, unflat
from refmmr.reference.rounding import Magnitude, layer_magnitudes

CLIP_STEPS = 8
"""Evaluations of the bound of a clipped unit, at most."""

CHUNK = 64
"""Units that are bounded together: their arrays stay in a core's cache."""

LEVELS = 255
"""Slopes of the bounds of units are multiples of ``1 / LEVELS``: a byte each."""


Magnitudes = list[Magnitude]


class Proof(NamedTuple):
    """Trees of nodes, one for each other class.  The number of a node is above its parent's."""

    target: np.ndarray  # (nodes,) the other class
    parent: np.ndarray  # (nodes,) -1 for a root
    unit: np.ndarray  # (nodes,) where it differs from its sibling, among all N; -1 without sibling
    sign: np.ndarray  # (nodes,) 1 where that unit is active, -1 inactive
    parameters: np.ndarray  # (nodes, N): the slope of an unstable unit, -1 times a multiplier
    again: np.ndarray  # (r,) nodes after which the units of all layers are bounded again
    slopes: list[np.ndarray]  # for that, at first and after those nodes, in 1 / `LEVELS`: a layer
    # has (1 + r, 2, units, units of all layers before), for lower and upper bounds


class Forms(NamedTuple):
    """Lower bounds ``<A, z> + constant`` of some units of a layer, and of their negatives."""

    units: np.ndarray  # (u,) their numbers in the layer
    A: np.ndarray  # (2, u, d)
    constant: np.ndarray  # (2, u), the rounding errors subtracted


class Known(NamedTuple):
    """What is known of the counterexamples in a node."""

    bounds: list[Bounds]  # of each hidden layer, (1, *unit_shape)
    forms: list[Forms]  # of the units that may be unstable


class Question(NamedTuple):
    """Whether ``<row, f_{L+1}>`` is positive on a ball around one point."""

    net: Network
    ball: Ball
    row: np.ndarray  # (*logits_shape)
    magnitudes: Magnitudes  # of the rounding errors, for all bounds on the ball


def open_nodes(net: Network, ball: Ball, y: int, proof: Proof) -> list[int]:
    """The nodes that are not closed; -1 for a class without a tree.  The proof is right if none is.

    The weights are float64, the ball is around one point in the box, whose class shall be y.  The
    numbers of the proof are within their ranges and not NaN.
    """
    magnitudes, known = first_bounds(net, ball, [part[0] for part in proof.slopes])
    found = []
    for target in range(net.n_classes):
        roots = np.flatnonzero((proof.parent < 0) & (proof.target == target)).tolist()
        question = Question(net, ball, margin_row(net, y, target), magnitudes)
        if target != y and not roots:
            found.append(-1)
        elif target != y:
            found += [node for node, _ in gaps(question, proof, roots[0], known)]
    return found


def margin_row(net: Network, y: int, target: int) -> np.ndarray:
    """The coefficients of ``f_y - f_target``."""
    return np.subtract(*np.eye(net.n_classes)[[y, target]]).reshape(net.logits_shape)


def first_bounds(net: Network, ball: Ball, slopes: list[np.ndarray]) -> tuple[Magnitudes, Known]:
    """Bounds of all units on the whole ball; slopes (2, units, units before) by layer."""
    x = ball.x.reshape(1, *net.input_shape)
    rough = layer_bounds(net, x, ball.p, ball.radius, ball.box, "crown")[:-1]
    magnitudes = layer_magnitudes(net, ball, rough)
    known = Known([], [])
    for k, own in enumerate(rough):
        own, forms = unit_bounds(net, ball, magnitudes, known.bounds, own, slopes[k])
        known.bounds.append(own)
        known.forms.append(forms)
    return magnitudes, known


def unit_bounds(
    net: Network, ball: Ball, magnitudes: Magnitudes, before: list[Bounds], own: Bounds,
    slopes: np.ndarray,
) -> tuple[Bounds, Forms]:  # fmt: skip
    """Better bounds of the unstable units of a layer, from the bounds of the layers before it."""
    ends = _ends(own)
    units = np.flatnonzero((ends < 0).all(axis=0))
    k, shapes = len(before), net.unit_shapes
    A, constant = np.zeros((2, len(units), ball.x.size)), np.zeros((2, len(units)))
    for start in range(0, len(units), CHUNK):
        some = units[start : start + CHUNK]
        place = slice(start, start + len(some))
        for side, sign in enumerate((1, -1)):
            rows = np.zeros((len(some), ends.shape[1]))
            rows[np.arange(len(some)), some] = sign
            rows = rows.reshape(-1, 1, *shapes[k])
            alpha = unflat(slopes[side, some] / LEVELS, shapes[:k])
            linear = backward_bound(net, ball, rows, before, alpha, None, magnitudes[: k + 1])
            A[side, place] = linear.A[:, 0]
            constant[side, place] = (linear.constant - linear.error)[:, 0]
            ends[side, some] = np.maximum(ends[side, some], linear.minimum(ball)[:, 0])
    return _bounds(ends, own), Forms(units, A, constant)


def node_bound(question: Question, bounds: list[Bounds], parameters: np.ndarray) -> LinearBound:
    """The backward bound of one node with parameters (N,), which may be any numbers.

    A number between 0 and 1 is the lower slope of an unstable unit.  ``-beta`` is the multiplier of
    a stable unit: its sign is known at the counterexamples, whether a split or a bound says so.
    """
    slopes, multipliers = [], []
    parts = unflat(parameters.astype(np.float64)[None], question.net.unit_shapes)
    for (lower, upper), part in zip(bounds, parts, strict=True):
        beta = np.maximum(-part, 0)
        slopes.append(np.clip(part, 0, 1))
        multipliers.append(np.where(lower >= 0, -beta, np.where(upper <= 0, beta, 0))[:, None])
    return backward_bound(
        question.net, question.ball, question.row[None, None], bounds, slopes, multipliers,
        question.magnitudes,
    )  # fmt: skip


def gaps(question: Question, proof: Proof, root: int, known: Known) -> list[tuple[int, Known]]:
    """The nodes of one tree that are not closed and have no children, and what these would know."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(proof.parent.tolist()):
        children.setdefault(parent, []).append(node)
    found, stack = [], [(root, known)]
    while stack:
        node, known = stack.pop()
        linear = node_bound(question, known.bounds, proof.parameters[node])
        if linear.minimum(question.ball)[0, 0] > 0:
            continue
        rounds = np.flatnonzero(proof.again == node)
        slopes = [part[1 + rounds[0]] for part in proof.slopes] if len(rounds) else None
        clipped = clipped_bounds(question, linear, known, slopes)
        if clipped is None:
            continue
        own = children.get(node, [])
        units, signs = proof.unit[own], proof.sign[own]
        if len(own) == 1 and units[0] < 0:
            stack.append((own[0], clipped))
        elif len(own) == 2 and 0 <= units[0] == units[1] and sorted(signs) == [-1, 1]:
            for child, sign in zip(own, signs.tolist(), strict=True):
                half = fix(question.net, clipped, int(units[0]), sign)
                if half is not None:
                    stack.append((child, half))
        else:
            found.append((node, clipped))
    return found


def clipped_bounds(
    question: Question, linear: LinearBound, known: Known, slopes: list[np.ndarray] | None = None
) -> Known | None:
    """Bounds of the units where a node's own bound allows counterexamples; None if none is left.

    With slopes, units behind the first layer are bounded again before.
    """
    net, ball = question.net, question.ball
    c, e = linear.A[0, 0], (linear.constant - linear.error)[0, 0]
    better = Known([], [])
    for k, (own, forms) in enumerate(zip(*known, strict=True)):
        if k and slopes is not None:
            before, magnitudes = better.bounds, question.magnitudes
            own, forms = unit_bounds(net, ball, magnitudes, before, own, slopes[k])
        ends = _ends(own)
        wanted = (ends < 0).all(axis=0)
        if len(known.bounds) == 1:
            # Of a unit that increases f only the lower relaxation counts, which has no bounds.
            wanted &= linear.coefficients[0].reshape(-1) < 0
        wanted = np.flatnonzero(wanted[forms.units])
        for start in range(0, len(wanted), CHUNK):
            some = wanted[start : start + CHUNK]
            units = forms.units[some]
            for side, (A, constant) in enumerate(zip(forms.A, forms.constant, strict=True)):
                found = clip(ball, A[some], constant[some], c, e, CLIP_STEPS)
                ends[side, units] = np.maximum(ends[side, units], found)
        if (ends[0] > -ends[1]).any():
            return None
        better.bounds.append(_bounds(ends, own))
        better.forms.append(forms)
    return better


def fix(net: Network, known: Known, unit: int, sign: int) -> Known | None:
    """The counterexamples at which one unit is active or inactive; None if there are none."""
    k = next(k for k, part in enumerate(net.unit_slices) if unit < part.stop)
    lower, upper = (side.copy() for side in known.bounds[k])
    place = np.unravel_index(unit - net.unit_slices[k].start, lower.shape)
    if sign > 0:
        lower[place] = max(lower[place], 0)
    else:
        upper[place] = min(upper[place], 0)
    bounds = [*known.bounds[:k], (lower, upper), *known.bounds[k + 1 :]]
    return None if lower[place] > upper[place] else known._replace(bounds=bounds)


def _ends(bounds):
    """Bounds of the units of a layer, and of their negatives, from below: (2, units)."""
    return np.stack([bounds[0].reshape(-1), -bounds[1].reshape(-1)])


def _bounds(ends, like):
    """The inverse of `_ends`."""
    return ends[0].reshape(like[0].shape), -ends[1].reshape(like[1].shape)
