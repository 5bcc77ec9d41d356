"""Which half-spaces of a linear region are facets, and which are redundant.

A half-space is a facet if the region grows without it.  Either of two certificates decides, and
both are checked in NumPy, whatever HiGHS returns:

* a *point* on the hyperplane where all other rows are slack by more than rounding errors: a facet;
* *multipliers* of the other rows that imply the row (Farkas' lemma): redundant.

Rows with neither are counted as undecided.  Multipliers that imply a row only up to rounding errors
are checked in exact arithmetic (`refmmr.regions.exact_rows`).

Points are found by shooting rays from the centre of the region: the hyperplane that a ray meets
first is that of a facet, and the point where they meet is its certificate.  The linear program of a
row ends at a vertex, where as a rule exactly n rows meet.  Rays to points slightly beyond each of
the n edges there, and slightly beyond the rows where these edges end, find up to 2 n facets.
"""

from __future__ import annotations

from typing import NamedTuple

import highspy
import numpy as np

from refmmr import _solvers
from refmmr.regions.halfspaces import RegionPolytope

__all__ = ["FacetSearch", "Proofs", "RegionPrograms"]

TOLERANCE = 1e-10
"""Tolerance of HiGHS for a constraint: the smallest that it accepts."""

RELAXED_BY = 1.0
"""Distance by which a row is moved outwards for a second program, in half-widths of the domain: far
enough that the optimum is clearly beyond the row if the row is a facet."""

AT_VERTEX = 1e-9
"""Rows with at most this slack meet at the vertex where a program of HiGHS ended."""


class Proofs(NamedTuple):
    """Multipliers that proved rows redundant, sparse.

    Neighbouring regions share most rows, so these are tried there before linear programs.

    Attributes
    ----------
    rows : ndarray of int, shape (k,)
    nonzero : (ndarray, ndarray)
        Indices of the entries of Y, (k, m), that are not 0.
    values : ndarray
    """

    rows: np.ndarray
    nonzero: tuple[np.ndarray, np.ndarray]
    values: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, Y: np.ndarray) -> Proofs:
        """From rows (k,) and multipliers (k, m)."""
        first, second = np.nonzero(Y)
        return cls(rows, (first.astype(np.int32), second.astype(np.int32)), Y[first, second])

    def multipliers(self, m: int) -> np.ndarray:
        """Y, (k, m)."""
        Y = np.zeros((len(self.rows), m))
        Y[self.nonzero] = self.values
        return Y


class RegionPrograms:
    """Linear programs over one region after the other, in one model of HiGHS.

    Columns are u and t, rows ``<A_i, u> - t >= b_i``: the region shrinks as t grows.  Each program
    starts from the last basis.  The primal simplex method suits them: all programs over a region
    but the first start at a feasible vertex.

    Parameters
    ----------
    n, m : int
        Numbers of coordinates and of rows.
    """

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m
        self.highs = _solvers.simplex(
            TOLERANCE,
            simplex_strategy=4,  # primal
            simplex_scale_strategy=0,  # rows have length 1
            small_matrix_value=1e-12,
        )
        self._columns = np.arange(n, dtype=np.int32)
        self._unbounded = np.full(n + 1, np.inf)
        self._maximize_t = np.append(np.zeros(n), -1.0)

    def center(
        self, P: RegionPolytope, basis: highspy.HighsBasis | None = None, facet: int | None = None
    ) -> np.ndarray | None:
        """Centre of the largest ball (l_2) in a region, (n,), or in one of its facets."""
        A = np.column_stack([P.A, np.full(self.m, -1.0)])
        upper = np.full(self.m, np.inf)
        if facet is not None:  # on its hyperplane, away from all others
            A[facet, -1], upper[facet] = 0, P.b[facet]
        columns = -self._unbounded, self._unbounded
        _solvers.load(self.highs, self._maximize_t, columns, A, (P.b, upper))
        if basis is not None:
            self.highs.setBasis(basis)
        solution = self._solve()
        return None if solution is None else np.array(solution.col_value[: self.n])

    def fix_size(self) -> None:
        """Set t = 0: the programs that follow are over the region itself."""
        self.highs.changeColCost(self.n, 0.0)
        self.highs.changeColBounds(self.n, 0.0, 0.0)

    def minimize_row(
        self, P: RegionPolytope, row: int, relaxed_by: float
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Minimise ``<A_row, u>`` after moving the row itself outwards.

        Returns
        -------
        (u, multipliers), shapes (n,) and (m,), or None
            None if HiGHS finds no optimum.
        """
        self.highs.changeColsCost(self.n, self._columns, P.A[row])
        if relaxed_by:
            self.highs.changeRowBounds(row, P.b[row] - relaxed_by, np.inf)
        solution = self._solve()
        if relaxed_by:
            self.highs.changeRowBounds(row, P.b[row], np.inf)
        if solution is None:
            return None
        return np.array(solution.col_value[: self.n]), np.array(solution.row_dual)

    def _solve(self) -> highspy.HighsSolution | None:
        self.highs.run()
        if self.highs.getModelStatus() != _solvers.OPTIMAL:
            self.highs.clearSolver()  # once more, without the last basis
            self.highs.run()
            if self.highs.getModelStatus() != _solvers.OPTIMAL:
                return None
        return self.highs.getSolution()


class FacetSearch:
    """Decides which rows of a region are facets, and which are redundant.

    Parameters
    ----------
    P : RegionPolytope
    center : ndarray, shape (n,)
        A point strictly inside.
    known : list of int
        Rows known to be facets.
    proofs : list of Proofs
        Of neighbouring regions.

    Attributes
    ----------
    points : ndarray, shape (m, n)
        A point of each facet that was found here.
    is_facet : ndarray of bool, shape (m,)
    undecided : int
        Number of rows with no certificate.
    """

    def __init__(
        self, P: RegionPolytope, center: np.ndarray, known: list[int], proofs: list[Proofs]
    ) -> None:
        self.P, self.center = P, center
        self.points = np.zeros_like(P.A)
        self.is_facet = np.zeros(len(P.b), dtype=bool)
        self.is_facet[known] = True
        self.undecided = 0
        self._slacks = P.slacks(center)
        self._open = P.in_use.copy()
        self._open[known] = False
        self._given = proofs
        self._proofs: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self, programs: RegionPrograms) -> None:
        """Decide about all rows, cheap certificates first."""
        P = self.P
        self._shoot_rays(-P.A[P.in_use])
        for proofs in self._given:
            self._close(proofs.rows, proofs.multipliers(len(P.b)))
        self._close_outside_simplex()
        programs.fix_size()
        doubtful = []
        for row in np.argsort(self._slacks).tolist():
            if self._open[row] and not self._decide(programs, row):
                doubtful.append(row)
                self._open[row] = False
        for row in doubtful:
            point = programs.center(P, facet=row)
            if point is not None:
                self._shoot_rays(point[None] - self.center)
            self.undecided += not self.is_facet[row]

    def proofs(self) -> Proofs | None:
        """The multipliers that proved rows redundant."""
        if not self._proofs:
            return None
        rows, Y = zip(*self._proofs, strict=True)
        return Proofs.of(np.concatenate(rows), np.concatenate(Y))

    def _close(self, rows: np.ndarray, Y: np.ndarray, keep: bool = True) -> None:
        """Close those of some rows, (k,), that multipliers Y (k, m) prove redundant."""
        still = self._open[rows]
        if not still.all():
            rows, Y = rows[still], Y[still]
        proved = self.P.are_redundant(rows, Y)
        self._open[rows[proved]] = False
        if keep and proved.any():
            self._proofs.append((rows[proved], Y[proved]))

    def _shoot_rays(self, directions: np.ndarray) -> None:
        """Shoot rays from the centre, (k, n): the row that each meets first is a facet."""
        P = self.P
        rates = directions @ P.A.T
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.where(rates < 0, self._slacks / -rates, np.inf)
        first = times.argmin(axis=1)
        rays = np.arange(len(first))
        times = times[rays, first]
        points = self.center + np.where(np.isfinite(times), times, 0)[:, None] * directions
        points -= P.A[first] * (P.slacks(points)[rays, first])[:, None]  # onto the hyperplane
        spare = P.slacks(points) - P.clearance
        spare[rays, first] = np.inf
        proved = np.isfinite(times) & (spare.min(axis=1) > 0)
        self.points[first[proved]] = points[proved]
        self.is_facet[first[proved]] = True
        self._open[first[proved]] = False

    def _decide(self, programs: RegionPrograms, row: int) -> bool:
        """Decide about a row by at most two linear programs; False if it stays open."""
        P = self.P
        for relaxed_by in (0.0, RELAXED_BY):
            optimum = programs.minimize_row(P, row, relaxed_by)
            if optimum is None:
                continue
            vertex, multipliers = optimum
            multipliers[row] = 0
            if relaxed_by:  # to full precision: a row that only touches the region has no slack
                others = np.flatnonzero(multipliers)
                multipliers[others] = np.linalg.lstsq(P.A[others].T, P.A[row])[0]
            self._close(np.array([row]), multipliers[None])
            if not self._open[row]:
                return True
            if relaxed_by:
                self._shoot_rays((vertex - self.center)[None])
            else:
                self._explore_vertex(vertex)
            if not self._open[row]:
                return True
        return False

    def _explore_vertex(self, vertex: np.ndarray) -> None:
        """Find the facets at a vertex and those where its edges end, if just n rows meet there."""
        P = self.P
        slacks = P.slacks(vertex)
        at = np.flatnonzero(slacks <= AT_VERTEX)
        if len(at) != P.A.shape[1]:
            return
        try:
            edges = np.linalg.inv(P.A[at])  # column k leaves row k, along the others
        except np.linalg.LinAlgError:
            return
        rates = P.A @ edges
        slacks[at] = np.inf
        with np.errstate(divide="ignore", invalid="ignore"):
            behind = np.where(rates > 0, slacks[:, None] / rates, np.inf).min(axis=0)
            ahead = np.where(rates < 0, slacks[:, None] / -rates, np.inf)
        ahead = np.partition(ahead, 1, axis=0)[:2]
        ahead[1] = np.minimum(ahead[1], ahead[0] + 1)
        targets = np.concatenate([-np.minimum(behind, 1) * edges, ahead[1] * edges], axis=1).T
        self._shoot_rays(vertex + targets[np.isfinite(targets).all(axis=1)] - self.center)
        rows = np.flatnonzero(self._open)
        self._close(rows, P.scatter(rates[rows], at))

    def _close_outside_simplex(self) -> None:
        """Close the rows that miss the simplex of the n + 1 rows nearest to the centre."""
        P, n = self.P, self.P.A.shape[1]
        nearest = np.argsort(self._slacks)[: n + 1]
        rows = np.flatnonzero(self._open)
        facets = np.column_stack([P.A[nearest], self._slacks[nearest]])
        wanted = np.column_stack([P.A[rows], 0.999 * self._slacks[rows]])
        try:
            Y = np.linalg.solve(facets.T, wanted.T).T
        except np.linalg.LinAlgError:
            return
        self._close(rows, P.scatter(Y, nearest), keep=False)
