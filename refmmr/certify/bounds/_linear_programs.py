"""Linear programs: the shortest step in l_1 or l_inf with linear inequalities within a box."""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np
from scipy import sparse

from refmmr import _solvers
from refmmr.reference.hyperplanes import norm, shortest_step_in_box

ROWS, PASSES = 8, 60
"""Violated rows that enter a model at once, and rounds of adding rows: few rows are ever tight."""

CUBES = 30
"""Radii that `smallest_cube` tries at most: Newton's method needs a handful, unless rounding errors
keep it from ending."""

TOLERANCE = 1e-9
"""Violation of a row that does not count, relative to the length of the step: as for HiGHS."""


def _solver() -> highspy.Highs:
    return _solvers.simplex(TOLERANCE, simplex_iteration_limit=2000)


class LinearPrograms:
    """Steps to many rows of one polytope, by one model of HiGHS; only the target's bounds change.

    Rows enter the model when a step violates them.  See
    `refmmr.certify.bounds._nearest.shortest_steps` for the parameters.
    """

    def __init__(
        self,
        values: np.ndarray,
        rows: np.ndarray,
        optional: np.ndarray,
        lo: np.ndarray,
        hi: np.ndarray,
        p: float,
    ) -> None:
        length = np.abs(rows).max(axis=1, initial=0)
        finite = np.isfinite(values) & np.isfinite(length)
        self.scale = np.where(finite & (length > 0), length, 1)
        self.floor = -np.where(finite, values, 0) / self.scale
        self.unit = _solvers.unit_of(self.floor)
        self.floor /= self.unit
        lo, hi = lo / self.unit, hi / self.unit
        self.usable = finite & (length > 0) & (np.abs(self.floor) < _solvers.MAX_BOUND)
        self.required = self.usable & ~optional
        self.rows = np.where(finite[:, None], rows, 0) / self.scale[:, None]
        self.p = p
        d = self.rows.shape[1]
        # Columns: the step up and down in l_1; in l_inf the step and its length r, with rows
        # r - delta >= 0 and r + delta >= 0.
        up, down = np.maximum(hi, 0), np.maximum(-lo, 0)
        if p == 1:
            costs, columns = np.ones(2 * d), (np.zeros(2 * d), np.append(up, down))
            A = np.zeros((0, 2 * d))
        else:
            signs = np.vstack([-np.eye(d)[up > 0], np.eye(d)[down > 0]])
            costs, columns = (
                np.append(np.zeros(d), 1),
                (np.append(-down, 0), np.append(up, np.inf)),
            )
            A = np.hstack([signs, np.ones((len(signs), 1))])
        self.first = len(A)  # rows of the model before those of the polytope
        self.highs: Any = _solver()
        none = np.full(len(A), np.inf)
        _solvers.load(self.highs, costs, columns, sparse.csr_array(A), (np.zeros(len(A)), none))
        # Rows of the polytope in the model, and the place of each of all rows among them.
        self.used: list[int] = []
        self.place = np.full(len(values), -1)

    def solve(
        self, targets: np.ndarray, facets: np.ndarray, limit: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `refmmr.certify.bounds._nearest.ShortestSteps`."""
        found = [
            self._one(int(target), bool(facet), limit=limit / self.unit)
            for target, facet in zip(targets, facets, strict=True)
        ]
        multipliers, steps = (np.array(part) for part in zip(*found, strict=True))
        return multipliers / self.scale, steps * self.unit

    def beyond(self, target: int, overshoot: float) -> np.ndarray:
        """See `refmmr.certify.bounds._nearest.ShortestSteps`."""
        return self._one(target, False, overshoot)[1] * self.unit

    def _one(self, target, facet, overshoot=0.0, limit=np.inf):
        """Multipliers (m,) and the step (d,) for one target; zeros if HiGHS cannot take its row."""
        floor = self.floor[target]
        bound = floor + overshoot * abs(floor)
        y, delta = np.zeros(len(self.floor)), np.zeros(self.rows.shape[1])
        if not self.usable[target]:
            return y, delta
        if self.place[target] < 0:
            self._add(target, -np.inf)
        at = int(self.place[target]) + self.first
        self.highs.changeRowBounds(at, bound, bound if facet else np.inf)
        for _ in range(PASSES):
            self.highs.run()
            status = self.highs.getModelStatus()
            if status == _solvers.INFEASIBLE:
                ray = _solvers.dual_ray(self.highs)
                if ray is not None:
                    y[self.used] = ray[self.first :]
            if status != _solvers.OPTIMAL:
                break
            solution = self.highs.getSolution()
            y[self.used] = np.array(solution.row_dual)[self.first :]
            delta = self._step(np.array(solution.col_value))
            slack = self.rows @ delta - self.floor
            slack[self.used] = np.inf
            slack[~self.required] = np.inf
            worst = np.argsort(slack)[:ROWS]
            worst = worst[slack[worst] < -TOLERANCE * np.abs(delta).max()]
            if not len(worst) or norm(delta, self.p) > limit:
                break
            for row in worst.tolist():
                self._add(row, self.floor[row])
        self.highs.changeRowBounds(at, floor if self.required[target] else -np.inf, np.inf)
        return y, delta

    def _step(self, columns):
        """The step, from the values of all columns."""
        d = self.rows.shape[1]
        return columns[:d] - columns[d:] if self.p == 1 else columns[:d]

    def _add(self, row, floor):
        """Add a row to the model."""
        entries = self.rows[row]
        entries = np.append(entries, -entries) if self.p == 1 else entries
        _solvers.add_row(self.highs, entries, lower=floor)
        self.place[row] = len(self.used)
        self.used.append(row)


def shortest_sum(
    values: np.ndarray, rows: np.ndarray, lo: np.ndarray, hi: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The shortest step in l_1, by one linear program whose columns are the steps up and down.

    See `refmmr.certify.bounds._nearest.nearest_point` for the parameters.
    """
    m, d = rows.shape
    highs = _solver()
    columns = np.zeros(2 * d), np.append(hi, -lo)
    A = np.hstack([rows, -rows])
    _solvers.load(highs, np.ones(2 * d), columns, A, (-values, np.full(m, np.inf)))
    highs.run()
    lam, step = np.zeros(m), np.zeros(d)
    status = highs.getModelStatus()
    if status == _solvers.INFEASIBLE:
        ray = _solvers.dual_ray(highs)
        lam = lam if ray is None else ray
    elif status == _solvers.OPTIMAL:
        solution = highs.getSolution()
        lam, moves = np.array(solution.row_dual), np.array(solution.col_value)
        step = moves[:d] - moves[d:]
    return np.maximum(lam, 0), np.clip(step, lo, hi)


def smallest_cube(
    values: np.ndarray,
    rows: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    lam: np.ndarray,
    limit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The shortest step in l_inf, by Newton's method on the radius of a cube.

    The smallest possible violation of the worst row on the cube of radius r is convex and falls
    with r.  A linear program finds it, with multipliers of the rows; the distance of the sum of
    rows is the next r, which never exceeds the solution.  See
    `refmmr.certify.bounds._nearest.nearest_point` for the parameters.
    """
    m, d = rows.shape
    length = np.abs(rows).sum(axis=1)
    length = np.where(length > 0, length, 1)
    if not lam @ values < 0:
        lam = np.where(np.arange(m) == (-values / length).argmax(), 1.0, 0.0)
    zero = np.zeros(d)
    A = np.hstack([rows / length[:, None], np.ones((m, 1))])
    highs: Any = None
    step, radius = zero, 0.0
    for _ in range(CUBES):
        distance, move = shortest_step_in_box(zero, lam @ rows, lam @ values, lo, hi, np.inf)
        new = -float(distance)
        if not new > radius * (1 + 1e-9):
            break
        radius, step = new, move
        if not radius < limit:
            break
        low, high = np.append(np.maximum(lo, -radius), 0), np.append(np.minimum(hi, radius), np.inf)
        if highs is None:
            highs = _solver()
            floor = -values / length, np.full(m, np.inf)
            _solvers.load(highs, np.append(zero, 1), (low, high), A, floor)
        else:
            highs.changeColsBounds(d + 1, np.arange(d + 1, dtype=np.int32), low, high)
        highs.run()
        if highs.getModelStatus() != _solvers.OPTIMAL:
            break
        solution = highs.getSolution()
        columns = np.array(solution.col_value)
        step = np.clip(columns[:d], lo, hi)
        if columns[d] <= 1e-10 * radius:
            break
        lam = np.maximum(np.array(solution.row_dual), 0) / length
    return lam, step
