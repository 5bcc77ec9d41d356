"""Branch and bound along the units, for the rows of clauses.

The bounds of all units are made better once, on the whole box.  Then each open clause has a tree
(`refmmr.certify.bounds._tree`), for its row, or for the largest of its rows where it has several
(`refmmr.certify._conjunctions`): that it is positive on the whole box.
"""

from __future__ import annotations

import numpy as np

from refmmr import _kernels
from refmmr.certify._clauses import Rows
from refmmr.certify._conjunctions import continued, largest_row
from refmmr.certify._counterexamples import Examples
from refmmr.certify._input_terms import carry_inputs
from refmmr.certify._leaves import prove_leaves
from refmmr.certify.bounds import _place, _tree, _unit_trees
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
    net, rows, f_size = carry_inputs(net, rows, box, f_size)
    lo, hi = box
    x = np.clip(lo + (hi - lo) / 2, lo, hi).reshape(1, *net.input_shape)
    limits = lo.reshape(net.input_shape), hi.reshape(net.input_shape)
    around = ball(x, np.array([2 * (hi - lo).max()]), np.inf, limits)
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            place = _place.place(net, around, deadline)
            return _Clauses(net, place, rows, f_size, examples).proved(n_clauses)
        except _place.OutOfTimeError:
            return False


class _Clauses:
    """The rows of clauses on one box, and their bounds on all of it."""

    def __init__(self, net, place, rows, f_size, examples):
        self.net, self.rows, self.examples = net, rows, examples
        around = place.ball
        x, *limits = (end.reshape(net.input_shape) for end in (around.x, *around.box))
        *hidden, (f_lower, _) = _kernels.layer_bounds(
            net, x[None], np.inf, around.radius, tuple(limits), "crown"
        )
        self.f_lower = f_lower.reshape(-1)
        self.start = _place.start(place, hidden)
        self.C = rows.C.reshape(-1, *net.logits_shape)
        values, self.points = _place.root_bounds(self.start, self.C, ROW_STEPS)
        box = around.lowest, around.highest
        self.lower = rows.lower(values[None], *box, f_size)[0]
        # A lower bound of what a row adds to its function of the logits, errors included.
        self.constants = rows.lower(np.zeros((1, len(self.C))), *box, f_size)[0]

    def proved(self, n_clauses):
        """Whether no clause has a counterexample."""
        if self.examples(self.points):
            return False
        waiting = np.flatnonzero(self.rows.open_clauses(self.lower[None], n_clauses)[0])
        best = [self.lower[self.rows.clause == clause].max() for clause in waiting]
        # The hardest first: if its time is over, so is that of the others.
        return all(self._is_proved(clause) for clause in waiting[np.argsort(best)])

    def _is_proved(self, clause):
        """Whether the tree of a clause ends with a proof."""
        usable = np.isfinite(self.constants) & np.isfinite(self.lower)
        own = np.flatnonzero((self.rows.clause == clause) & usable)
        if not len(own):
            return False
        best = own[self.lower[own].argmax()]
        start, row, constant = self.start, self.C[best], float(self.constants[best])
        if len(own) > 1 and np.isfinite(self.f_lower).all():
            net, constant = largest_row(
                self.net,
                self.rows.C[own],
                self.constants[own],
                self.lower[own],
                self.f_lower,
            )
            start, row = continued(start, net), np.ones(1)
        tree = _tree.Tree(start, row, self.examples, constant)
        start, (tree,) = _unit_trees.run(start, [tree])
        # Other clauses begin with the bounds of the units so far.
        shared = slice(len(self.start.bounds))
        self.start = self.start._replace(bounds=start.bounds[shared], forms=start.forms[shared])
        if tree.done:
            prove_leaves(tree, start)
        return tree.proved
