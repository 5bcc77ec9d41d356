"""The clauses of a property in floats: boxes rounded outwards, rows with bounds on their rounding.

The decimal numbers of a file are not floats, and what is proved for rounded numbers must hold for
those of the file.  So a box is rounded outwards; a row ``<x, z> + <y, f(z)> <= bound`` gets
coefficients in float64, and all that they can be wrong by is subtracted from its lower bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refmmr.interop.vnnlib import Clause
from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor


class Rows(NamedTuple):
    """The rows of some clauses on one box: ``g = D z + C f(z) - bound``, M functions.

    A clause has a counterexample where all its g are at most 0; it has none if one g is positive on
    the whole box.
    """

    C: np.ndarray  # (M, K)
    D: np.ndarray  # (M, d)
    bound: np.ndarray  # (M,)
    C_error: np.ndarray  # (M, K), at least the error of C
    D_error: np.ndarray  # (M, d)
    bound_error: np.ndarray  # (M,)
    clause: np.ndarray  # (M,) its number, increasing

    def take(self, rows: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(*(part[rows] for part in self))

    def values(self, z: np.ndarray, f: np.ndarray) -> np.ndarray:
        """All g at points z (n, d) with outputs f (n, K), in floats: (n, M)."""
        return z @ self.D.T + f @ self.C.T - self.bound

    def lower(
        self, below: np.ndarray, lo: np.ndarray, hi: np.ndarray, f_size: np.ndarray
    ) -> np.ndarray:
        """Lower bounds of g on boxes, in real arithmetic.

        Parameters
        ----------
        below : ndarray, shape (n, M)
            Lower bounds of ``C f(z)``.
        lo, hi : ndarray, shape (n, d)
        f_size : ndarray, shape (K,)
            Bounds of ``|f|`` on all of them.

        Returns
        -------
        ndarray, shape (n, M)
            -inf where a float overflowed.
        """
        error = self.bound_error + self.C_error @ np.where(self.C_error.any(axis=0), f_size, 0)
        inputs = np.zeros_like(below)
        if self.D.any() or self.D_error.any():
            D = self.D[:, None]  # (M, 1, d)
            inputs = np.where(D > 0, D * lo, D * hi).sum(axis=2).T
            size = np.maximum(np.abs(lo), np.abs(hi)).T
            terms = (np.abs(self.D) @ size + SMALLEST_NORMAL).T
            error = error + rounding_factor(4 * len(size) + 8) * terms + (self.D_error @ size).T
        total = below + inputs - self.bound
        terms = np.abs(below) + np.abs(inputs) + np.abs(self.bound) + error
        # Three additions and this product: fewer than 16 roundings.  The errors were summed in
        # floats, too: twice as much covers it.
        total = total - 2 * error - rounding_factor(16) * terms
        return np.where(np.isfinite(total), total, -np.inf)

    def open_clauses(self, lower: np.ndarray, n_clauses: int) -> np.ndarray:
        """Clauses without a row whose lower bound (n, M) is positive: (n, n_clauses) bool."""
        proved = np.zeros((len(lower), n_clauses), dtype=bool)
        for column, clause in zip((lower > 0).T, self.clause, strict=True):
            proved[:, clause] |= column
        return ~proved


def rows_of(clauses: Sequence[Clause], d: int, n_outputs: int) -> Rows:
    """The rows of clauses, which are numbered in their order."""
    rows = [(number, row) for number, clause in enumerate(clauses) for row in clause.rows]
    C, C_error = _coefficients([row.y for _, row in rows], n_outputs)
    D, D_error = _coefficients([row.x for _, row in rows], d)
    bound, bound_error = _coefficients([{0: row.bound} for _, row in rows], 1)
    numbers = np.array([number for number, _ in rows], dtype=int)
    return Rows(C, D, bound[:, 0], C_error, D_error, bound_error[:, 0], numbers)


def _coefficients(parts: Sequence[dict[int, Fraction]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as floats, and bounds on what they are wrong by."""
    values, errors = np.zeros((2, len(parts), size))
    for i, part in enumerate(parts):
        for j, exact in part.items():
            values[i, j] = nearest(exact)
            if np.isfinite(values[i, j]):
                errors[i, j] = rounded(abs(exact - Fraction(float(values[i, j]))), up=True)
    return values, errors


def nearest(number: Fraction) -> float:
    """The nearest float; infinite for a number beyond all floats."""
    try:
        return float(number)
    except OverflowError:
        return np.inf if number > 0 else -np.inf


def rounded(number: Fraction, up: bool) -> float:
    """The next float that is not below (`up`) or not above a number."""
    value = nearest(number)
    if np.isinf(value):
        return value if (value > 0) == up else float(np.nextafter(value, 0))
    exact = Fraction(value)
    if up and exact < number:
        return float(np.nextafter(value, np.inf))
    if not up and exact > number:
        return float(np.nextafter(value, -np.inf))
    return value


def box_around(clause: Clause) -> tuple[np.ndarray, np.ndarray]:
    """The box of a clause, rounded outwards: (d,) each."""
    lo = np.array([rounded(number, up=False) for number in clause.lo])
    hi = np.array([rounded(number, up=True) for number in clause.hi])
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ValueError("expected bounds of inputs that floats hold")
    return lo, hi
