"""Branch and bound along the units, for the rows of clauses.

The bounds of all units are made better once, on the whole box.  Then each open clause needs one row
that is positive on it: a tree (`refmmr.certify.bounds._tree`) for each of its rows, those whose
bounds are nearest to 0 first, until one is proved.
"""

from __future__ import annotations

import time

import numpy as np

from refmmr import _kernels
from refmmr.certify._clauses import Rows
from refmmr.certify._counterexamples import Examples
from refmmr.certify._leaves import prove_leaves
from refmmr.certify.bounds import _tree
from refmmr.network import Network
from refmmr.reference.ball import ball

ROW_STEPS = 20
"""Gradient steps for the rows of all clauses together, before the trees take more."""


def split_units(
    net: Network,
    rows: Rows,
    n_clauses: int,
    box: tuple[np.ndarray, np.ndarray],
    f_size: np.ndarray,
    examples: Examples,
    deadline: float,
) -> bool:
    """Whether no clause has a counterexample in the box; False if one is found or time is over.

    Arguments are those of `refmmr.certify._input_splitting.split_inputs`.
    """
    if not net.unit_shapes:
        return False  # the function is affine: its bounds were exact up to rounding
    lo, hi = box
    shape = (1, *net.input_shape)
    x = np.clip(lo + (hi - lo) / 2, lo, hi).reshape(shape)
    limits = lo.reshape(net.input_shape), hi.reshape(net.input_shape)
    radius = np.array([2 * (hi - lo).max()])
    with np.errstate(over="ignore", invalid="ignore"):
        place = _tree.place(net, ball(x, radius, np.inf, limits))
        hidden = _kernels.layer_bounds(net, x, np.inf, radius, limits, "crown")[:-1]
        start = _tree.start(place, hidden)
        C = rows.C.reshape(-1, *net.logits_shape)
        values, points = _tree.root_bounds(start, C, ROW_STEPS)
        lower = rows.lower(values[None], lo[None], hi[None], f_size)
        if examples(points):
            return False
        # A lower bound of what a row adds to its function of the logits, errors included.
        constants = rows.lower(np.zeros((1, len(C))), lo[None], hi[None], f_size)[0]
        open_clauses = np.flatnonzero(rows.open_clauses(lower, n_clauses)[0])
        best = [lower[0, rows.clause == clause].max() for clause in open_clauses]
        # The hardest first: if its time is over, so is that of the others.
        for clause in open_clauses[np.argsort(best)]:
            own = np.flatnonzero(rows.clause == clause)
            own = own[np.argsort(-lower[0, own])]
            if not _some_row_is_positive(start, C[own], constants[own], examples, deadline):
                return False
    return True


def _some_row_is_positive(start, C, constants, examples, deadline):
    """Whether the tree of one row ends with a proof; the rows share the time that is left."""
    for number, (row, constant) in enumerate(zip(C, constants, strict=True)):
        now = time.monotonic()
        if now > deadline or not np.isfinite(constant):
            return False
        tree = _tree.Tree(start, row, examples, float(constant))
        tree.run(now + (deadline - now) / (len(C) - number))
        if tree.done:
            prove_leaves(tree, start)
        if tree.proved:
            return True
        if examples.found is not None:
            return False
    return False
