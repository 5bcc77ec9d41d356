"""Proofs for `refmmr.reference.proof`, from the record of branch and bound.

The checker of the reference is run on what branch and bound recorded.  It clips and rounds a little
differently, and nodes whose units are all stable were proved by cuts: so it may leave a few nodes
open.  These get a further bound here, by linear programming duality or by gradient steps in
float64, and are split if that is not enough.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr import _kernels, _solvers
from refmmr.certify.bounds import _place, _tree
from refmmr.certify.bounds._nearest import nearest_point
from refmmr.certify.bounds._tree_record import parameters as parameters_of
from refmmr.reference import ascent as book
from refmmr.reference.backward_bound import backward_bound
from refmmr.reference.network import flat, unflat
from refmmr.reference.proof import (
    Proof,
    Question,
    clipped_bounds,
    first_bounds,
    fix,
    gaps,
    margin_row,
    node_bound,
)

ROOT_STEPS = 20
"""Gradient steps for a class without a tree, as in branch and bound."""

STEPS = 200
"""Gradient steps for a node that the checker leaves open."""

MAX_REPAIRS = 200
"""Nodes added to a tree, at most: the checker agrees with branch and bound but for rounding."""

SHARES = 10.0 ** -np.arange(0, 15, 3)
"""Least multipliers of the margin that are tried in a region that is empty by itself, as a share of
the largest one: multipliers of the units are relative to it."""

PENALTIES = 1e2, 1e6
"""Limits of the sum of all multipliers, relative to the margin's gradient and its value over the
radius."""


class Record(NamedTuple):
    """What branch and bound did for one robust point."""

    start: _place.Start
    y: int
    trees: dict[int, _tree.Tree]  # of the classes that took one

    @classmethod
    def of(cls, start: _place.Start, y: int, trees: dict[int, _tree.Tree]) -> Record | None:
        """The record, if the place asks for one."""
        return cls(start, y, trees) if start.place.record else None


def complete_proof(record: Record) -> Proof | None:
    """A proof that the checker accepts; None where that takes too much."""
    if not all(tree.record.complete for tree in record.trees.values()):
        return None
    nodes = _collected(record)
    proof = nodes.proof()
    net, ball = record.start.place.net, record.start.place.ball
    magnitudes, known = first_bounds(net, ball, [part[0] for part in proof.slopes])
    for target in range(net.n_classes):
        if target == record.y:
            continue
        question = Question(net, ball, margin_row(net, record.y, target), magnitudes)
        for node, left in gaps(question, proof, nodes.root(target), known):
            if not _close(question, nodes, node, left):
                return None
    return nodes.proof()


class _Nodes:
    """The nodes of a proof, one after the other."""

    def __init__(self, again, slopes):
        self.target, self.parent, self.unit, self.sign, self.parameters = [], [], [], [], []
        self.again, self.slopes = again, slopes

    def add(self, target, parent, unit, sign, parameters):
        """One more node; its number."""
        self.target.append(target)
        self.parent.append(parent)
        self.unit.append(unit)
        self.sign.append(sign)
        self.parameters.append(parameters)
        return len(self.target) - 1

    def root(self, target):
        """The number of a root."""
        pairs = zip(self.target, self.parent, strict=True)
        return next(i for i, pair in enumerate(pairs) if pair == (target, -1))

    def proof(self):
        """The nodes as arrays."""
        return Proof(
            np.array(self.target, np.int32), np.array(self.parent, np.int32),
            np.array(self.unit, np.int32), np.array(self.sign, np.int8), np.stack(self.parameters),
            np.array(self.again, np.int32), self.slopes,
        )  # fmt: skip


def _collected(record):
    """The recorded nodes.

    A node is known by its fixed units, one more than its parent's.  The nodes without fixed units
    follow each other, from the root on.
    """
    start, net = record.start, record.start.place.net
    nodes = _Nodes([], [])
    first = [form.slopes for form in start.forms]
    rounds = [first]
    targets = [s for s in range(net.n_classes) if s != record.y and s not in record.trees]
    if targets:
        rows = np.stack([margin_row(net, record.y, s) for s in targets])
        root = book.root(start.bounds).take(np.zeros(len(rows), dtype=int))
        ascent = _place.ascend(start.place, rows, root, ROOT_STEPS)
        found = parameters_of(root._replace(slopes=ascent.slopes), len(rows))
        for target, parameters in zip(targets, found, strict=True):
            nodes.add(target, -1, -1, 0, parameters)
    for target, tree in record.trees.items():
        numbers: dict[bytes, int] = {}
        turns = iter(tree.record.rounds)
        for fixed_rows, found in tree.record.nodes:
            for fixed, parameters in zip(fixed_rows, found, strict=True):
                parent, unit = numbers.get(fixed.tobytes(), -1), -1
                if fixed.any():
                    parent, unit = _parent(fixed, numbers)
                sign = 0 if unit < 0 else int(fixed[unit])
                number = nodes.add(target, parent, unit, sign, parameters)
                numbers[fixed.tobytes()] = number
                if unit < 0 and (turn := next(turns, None)) is not None:
                    nodes.again.append(number)
                    padding = [np.zeros_like(part) for part in first[len(turn) :]]
                    rounds.append([*turn, *padding])
    nodes.slopes = [np.stack(parts) for parts in zip(*rounds, strict=True)]
    return nodes


def _parent(fixed, numbers):
    """The number of the node in which one unit less is fixed, and that unit."""
    for unit in np.flatnonzero(fixed).tolist():
        before = fixed.copy()
        before[unit] = 0
        if (number := numbers.get(before.tobytes())) is not None:
            return number, unit
    raise ValueError("expected a parent in the record")


def _close(question, nodes, node, known):
    """Add nodes below one that is open, until all are closed; False if that takes too many."""
    limit = len(nodes.target) + MAX_REPAIRS
    target, stack = nodes.target[node], [(node, known)]
    while stack:
        node, known = stack.pop()
        parameters, scores = _better(question, known, nodes.parameters[node])
        node = nodes.add(target, node, -1, 0, parameters)
        known = _left(question, known, parameters)
        if known is None:
            continue
        scores = np.where(_unstable(known.bounds), scores, -1)
        if scores.max(initial=-1) < 0 or len(nodes.target) > limit:
            return False
        unit = int(scores.argmax())
        for sign in (-1, 1):
            child = nodes.add(target, node, unit, sign, parameters)
            half = fix(question.net, known, unit, sign)
            half = None if half is None else _left(question, half, parameters)
            if half is not None:
                stack.append((child, half))
    return True


def _left(question, known, parameters):
    """What is known of the counterexamples that a node's bound leaves; None if it leaves none."""
    linear = node_bound(question, known.bounds, parameters)
    if linear.minimum(question.ball)[0, 0] > 0:
        return None
    return clipped_bounds(question, linear, known)


def _unstable(bounds):
    """Which units of one node are unstable, (N,)."""
    parts = [(lower < 0) & (upper > 0) for lower, upper in bounds]
    return flat([*parts, np.zeros((1, 0), dtype=bool)])[0]


def _better(question, known, parameters):
    """Parameters for the bounds of a node, and scores of its units: (N,) each."""
    bounds = known.bounds
    if not _unstable(bounds).any():
        return _dual_parameters(question, bounds), np.full(len(parameters), -1.0)
    before = unflat(parameters.astype(np.float64)[None], question.net.unit_shapes)
    slopes, betas = [part.clip(0, 1) for part in before], [(-part).clip(0) for part in before]
    stable = [(1 * (lower >= 0) - (upper <= 0)).astype(np.int8) for lower, upper in bounds]
    start = book.Nodes(bounds, stable, slopes, betas)
    ascent = _kernels.ascend(question.net, question.ball, question.row[None], start, STEPS)
    better = start._replace(slopes=ascent.slopes, multipliers=ascent.multipliers)
    return parameters_of(better, 1)[0], flat(ascent.scores)[0]


def _dual_parameters(question, bounds):
    """Multipliers of all units in a node where all are stable, (N,).

    There the network is affine, and the smallest margin over the signs of the units is a linear
    program, in l_2 with a quadratic constraint.  Multipliers come from its dual.
    """
    ball = question.ball
    values, rows = _affine_forms(question, bounds)
    lo, hi = np.full((2, ball.x.shape[1]), np.inf) * [[-1], [1]]
    if ball.box is not None:
        lo, hi = ball.box[0] - ball.x[0], ball.box[1] - ball.x[0]
    tried = [np.zeros(len(values) - 1)]
    if ball.p == 2:
        # Twice the radius: a step that is too long need not be precise.
        radius = 2 * float(ball.radius[0])
        nothing = np.zeros(len(values))
        found, _ = nearest_point(values, rows, lo, hi, 2, nothing, radius)
        found = np.nan_to_num(found).clip(0)
        least = np.maximum(found[-1], SHARES * found.max(initial=0))
        tried += [-found[:-1] / part for part in least if part > 0]
    else:
        size = np.abs(rows[-1]).sum() + abs(values[-1]) / float(ball.radius[0])
        tried += [_program(values, rows, lo, hi, ball, size * part) for part in PENALTIES]
    smallest = [node_bound(question, bounds, part).minimum(ball)[0, 0] for part in tried]
    return tried[int(np.argmax(smallest))]


def _affine_forms(question, bounds):
    """Functions ``values + <rows, z - x>`` that are at least 0 at the counterexamples of a node.

    Those of the units, (N + 1,) and (N + 1, d), and -1 times the margin.
    """
    net, ball, magnitudes = question.net, question.ball, question.magnitudes
    masks = [(lower >= 0) * 1.0 for lower, _ in bounds]
    exact = [(mask - 1, mask) for mask in masks]  # bounds of units whose ReLU is exact
    values, rows = [], []
    for k in range(len(bounds) + 1):
        functions = -question.row[None, None]
        if k < len(bounds):
            functions = np.diag((2 * masks[k] - 1).reshape(-1)).reshape(1, -1, *net.unit_shapes[k])
        linear = backward_bound(
            net, ball, functions, exact[:k], masks[:k], None, magnitudes[: k + 1]
        )
        rows.append(linear.A[0])
        values.append(linear.constant[0] + linear.A[0] @ ball.x[0])
    return np.concatenate(values), np.concatenate(rows)


def _program(values, rows, lo, hi, ball, penalty):
    """Multipliers from ``min margin + penalty * largest violation`` in l_1 and l_inf, (N,)."""
    radius, d = float(ball.radius[0]), len(lo)
    size = np.abs(rows).sum(axis=1)
    size = np.where(size > 0, size, 1)[:-1]
    A = rows[:-1] / size[:, None]
    floor, cost = -values[:-1] / size, -rows[-1]
    ends = np.maximum(lo, -radius), np.minimum(hi, radius)
    ceiling = np.full(len(A), np.inf)
    if ball.p == 1:  # steps up and down
        A, cost = np.vstack([np.hstack([A, -A]), -np.ones(2 * d)]), np.append(cost, -cost)
        ends = np.zeros(2 * d), np.append(ends[1], -ends[0])
        floor, ceiling = np.append(floor, -radius), np.append(ceiling, np.inf)
    slack = np.ones((len(A), 1))
    slack[len(size) :] = 0
    highs = _solvers.solver()
    columns = np.append(ends[0], 0), np.append(ends[1], np.inf)
    _solvers.load(highs, np.append(cost, penalty), columns, np.hstack([A, slack]), (floor, ceiling))
    highs.run()
    if highs.getModelStatus() != _solvers.OPTIMAL:
        return np.zeros(len(size))
    return -np.maximum(np.array(highs.getSolution().row_dual)[: len(size)], 0) / size
