"""Leaves of a branch-and-bound tree: nodes whose units are all fixed, but that are not proved.

In a leaf the network is affine.  Whether its row can be at most 0 there is a linear program
over the ball (l_1, l_inf), whose dual variables are the best multipliers of the fixed units.  They
are only a proposal: what counts is the backward bound with these multipliers, in real arithmetic.
"""

from __future__ import annotations

import numpy as np

from refmmr.certify.bounds import _place, _tree
from refmmr.reference import ascent as book
from refmmr.reference.network import unflat

PENALTIES = (1e2, 1e5)
"""Largest multipliers, relative to the coefficients of the row: an empty leaf has no largest ones.
The smaller are tried first, as large ones magnify rounding errors."""

RUNS, STEPS = 3, 60
"""Runs of gradient steps in l_2, where the program is no linear one; each begins with large steps
from where the last one ended."""

MAX_LEAVES = 1000
"""Leaves, at most, for which programs are solved: some seconds."""


def prove_leaves(tree: _tree.Tree, start: _place.Start) -> None:
    """Take the leaves off `tree.stuck` that have a proof; stop at the first that has none."""
    if len(tree.stuck) > MAX_LEAVES or tree.refuted:
        return
    while tree.stuck and not tree.refuted and _is_proved(tree, start, tree.stuck[-1]):
        tree.stuck.pop()


def _is_proved(tree, start, signs):
    place = start.place
    nodes = _leaf(start, signs)
    if place.ball.p == 2:
        for _ in range(RUNS):
            ascent = _place.ascend(place, tree.row[None], nodes, STEPS)
            nodes = nodes._replace(multipliers=ascent.multipliers)
            if _bound(tree, start, nodes) > 0:
                return True
            if tree.check(ascent.points):
                tree.refuted = True
                return False
        return False
    for penalty in PENALTIES:
        found = _program(tree, place, signs, nodes.fixed, penalty)
        if found is None:
            return False
        multipliers, z = found
        if _bound(tree, start, nodes._replace(multipliers=multipliers)) > 0:
            return True
        if tree.check(z[None]):
            tree.refuted = True
            return False
    return False


def _leaf(start, signs):
    """The node in which all units are fixed that are unstable on the whole ball."""
    parts = unflat(signs[None], start.place.net.unit_shapes)
    root = book.root(start.bounds)
    bounds, fixed = [], []
    for (lower, upper), sign in zip(root.bounds, parts, strict=True):
        unstable = (lower < 0) & (upper > 0)
        bounds.append(
            (
                np.where(unstable & (sign > 0), 0, lower),
                np.where(unstable & (sign < 0), 0, upper),
            )
        )
        fixed.append(np.where(unstable, sign, 0).astype(np.int8))
    return root._replace(bounds=bounds, fixed=fixed)


def _bound(tree, start, nodes):
    return _place.bound(start.place, tree.row[None], nodes, start.magnitudes, tree.constant)[0][0]


def _program(tree, place, signs, fixed, penalty):
    """Multipliers of the fixed units, layer by layer, and the point of the linear program.

    ``min <w, z> + penalty t`` over z in the ball and t >= 0, where ``sign_j f_j(z) + t >= 0``.
    """
    net, ball = place.net, place.ball
    d = ball.x.size
    masks = [part > 0 for part in unflat(signs[None], net.unit_shapes)]
    zero = np.zeros((1, *net.input_shape))
    basis = np.eye(d).reshape(-1, *net.input_shape)
    constants = net.forward(zero, masks).outputs
    rows = net.forward(basis, masks, bias=False).outputs
    chosen = [np.flatnonzero(part.reshape(-1)) for part in fixed]
    sign = np.concatenate(
        [part.reshape(-1)[j] for part, j in zip(fixed, chosen, strict=True)]
    ).astype(float)
    V = np.concatenate(
        [part.reshape(d, -1)[:, j] for part, j in zip(rows[:-1], chosen, strict=True)], axis=1
    )
    a = np.concatenate(
        [part.reshape(-1)[j] for part, j in zip(constants[:-1], chosen, strict=True)]
    )
    w = rows[-1].reshape(d, -1) @ tree.row.reshape(-1)
    # Multipliers are measured in coefficients of the row over those of the units.
    size = np.abs(V).max(axis=0, initial=0)
    size = np.where(size > 0, size, 1)
    scale = max(np.abs(w).max(), np.finfo(float).tiny)
    A = np.column_stack([-(sign / size * V).T, -np.ones(len(sign))])
    c = np.append(w / scale, penalty)
    result = _solve(c, A, sign * a / size, ball)
    if result is None:
        return None
    z, duals = result
    beta = np.maximum(-duals, 0) * scale / size
    ends = np.cumsum([len(j) for j in chosen])[:-1]
    multipliers = []
    for part, j, own in zip(fixed, chosen, np.split(beta, ends), strict=True):
        layer = np.zeros(part.size)
        layer[j] = own
        multipliers.append(layer.reshape(part.shape))
    return multipliers, z


def _solve(c, A, b, ball):
    """``min <c, (z, t)>`` with ``A (z, t) <= b``: z, and the dual variables of the rows."""
    from scipy.optimize import linprog  # late: importing refmmr loads no SciPy

    d, m = ball.x.size, len(b)
    x, low, high = ball.x[0], ball.lowest[0], ball.highest[0]
    ends = [*zip(low, high, strict=True), (0, None)]
    if ball.p == 1:
        # z - x lies between -s and s, and the s add up to the radius at most.
        one, none = np.eye(d), np.zeros((d, 1))
        A = np.column_stack([A, np.zeros((m, d))])
        more = np.vstack([
            np.column_stack([one, none, -one]), np.column_stack([-one, none, -one]),
            np.append(np.zeros(d + 1), np.ones(d))[None],
        ])  # fmt: skip
        A, b = np.vstack([A, more]), np.concatenate([b, x, -x, ball.radius[:1]])
        c = np.append(c, np.zeros(d))
        ends += [(0, None)] * d
    try:
        result = linprog(c, A, b, bounds=ends, method="highs")
    except ValueError:  # numbers beyond those of the solver
        return None
    if result.status != 0:
        return None
    return result.x[:d], np.asarray(result.ineqlin.marginals)[:m]
