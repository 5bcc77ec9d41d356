"""Certification methods: one method a file, each a function from points to `Bounds`.

A new method is a function in a file here, and a line in `refmmr.certify.methods.METHODS`:

    def my_bounds(net, X, y, p, box, goal=None, **options) -> Bounds

Files that begin with an underscore are parts of methods:

- of ``search``: `_incumbent`, `_region_search` with `_affine_maps`, `_subproblems` with `_cuts`,
  and `_nearest` with `_least_distance` (l_2) and `_linear_programs` (l_1, l_inf);
- of ``bab``: `_place`, which is the ball, `_tree`, and `_tree_record` and `_proofs` for
  certificates in files;
- of ``mip``: `_decision` of one ball, `_branching`, and the program itself, `_milp`, from which
  ``lp`` takes its relaxation.

Methods that take one sample after the other share `_samples`.  Linear relaxations share
`refmmr.reference.backward_bound`, adversarial examples are verified by `refmmr._examples`, and
`refmmr._solvers` sets up HiGHS.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EXACT = 1e-6
"""Bounds that agree to this relative tolerance are called exact."""


class Bounds(NamedTuple):
    """Bounds on the minimal adversarial perturbation of each point: what every method returns."""

    lower: np.ndarray  # (n,), in real arithmetic
    upper: np.ndarray  # (n,), infinite where no adversarial example was found
    adversarial: np.ndarray  # (n, *input_shape), NaN where none was found
