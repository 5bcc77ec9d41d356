"""The nearest points of polytopes, which the search proposes and proves bounds with.

All problems have the form: find the shortest step delta within the box, ``lo <= delta <= hi``, with

    values_j + <rows_j, delta> >= 0   for all j,   with equality for one row if that is a facet.

A solver returns the step and multipliers of the rows.  Neither is trusted: the multipliers give
one half-space, whose distance is bounded with all rounding errors, and the step gives a point,
which is verified.  So a solver may stop early, or fail.  In l_2 the problem is one of least
distance (`_least_distance`), in l_1 and l_inf a linear program (`_linear_programs`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from refmmr import _solvers
from refmmr.certify.bounds._least_distance import LeastDistance, least_distance
from refmmr.certify.bounds._linear_programs import LinearPrograms, shortest_sum, smallest_cube
from refmmr.reference.hyperplanes import dual_norm


class ShortestSteps(Protocol):
    """Shortest steps to the rows of one polytope."""

    def solve(
        self, targets: np.ndarray, facets: np.ndarray, limit: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The shortest steps to where some rows are 0 or positive.

        Parameters
        ----------
        targets : ndarray of int, shape (B,)
            A row for each problem.
        facets : ndarray of bool, shape (B,)
            Whether the row is to be 0; otherwise it may be positive, too.
        limit : float
            A longer step need not be precise.

        Returns
        -------
        multipliers, steps : ndarray, shapes (B, m) and (B, d)
        """

    def beyond(self, target: int, overshoot: float) -> np.ndarray:
        """The shortest step (d,) with ``values + <rows, delta> >= overshoot |values|`` in a row."""


def shortest_steps(
    values: np.ndarray,
    rows: np.ndarray,
    optional: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    p: float,
) -> ShortestSteps:
    """The solver for a polytope.

    Parameters
    ----------
    values, rows : ndarray, shapes (m,) and (m, d)
    optional : ndarray of bool, shape (m,)
        Rows that only hold where they are the target.
    lo, hi : ndarray, shape (d,)
        Of the step.
    p : {1, 2, inf}
    """
    if p == 2:
        return LeastDistance(values, rows, optional, lo, hi)
    return LinearPrograms(values, rows, optional, lo, hi, p)


def nearest_point(
    values: np.ndarray,
    rows: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    p: float,
    multipliers: np.ndarray,
    limit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The shortest step with ``values + rows delta >= 0`` within the box, for few rows.

    Parameters
    ----------
    values, rows : ndarray, shapes (m,) and (m, d)
    lo, hi : ndarray, shape (d,)
        Of the step.
    p : {1, 2, inf}
    multipliers : ndarray, shape (m,)
        A guess, >= 0.
    limit : float
        A longer step need not be precise.

    Returns
    -------
    multipliers, step : ndarray, shapes (m,) and (d,)
    """
    unit = _solvers.unit_of(values / np.where(rows.any(axis=1), dual_norm(rows, p), 1))
    values, lo, hi, limit = values / unit, lo / unit, hi / unit, limit / unit
    if p == 2:
        multipliers, step = least_distance(values, rows, lo, hi, multipliers / unit, limit)
        multipliers = multipliers * unit
    elif p == 1:
        multipliers, step = shortest_sum(values, rows, lo, hi)
    else:
        multipliers, step = smallest_cube(values, rows, lo, hi, multipliers, limit)
    return multipliers, step * unit
