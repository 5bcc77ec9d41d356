"""Where in a polytope is a hyperplane nearest?  Multipliers that suggest an answer, for the search.

All programs have the form: find the shortest step delta, within the box, such that

    values_j + <rows_j, delta> >= 0   for all j,   with equality for j = target, if it is a facet.

What comes back are multipliers of the rows and the step.  Neither is trusted by anybody: the
multipliers become a half-space, whose distance is bounded rigorously, and the step a point, which
is checked (`refmmr.certify.bounds.search`).  So a program may stop early, or fail.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import highspy
import numpy as np

from refmmr.reference.hyperplanes import norm, shortest_step_in_box

ROUNDS = 6
"""How often a least-distance program takes in rows, before slower least squares finish it."""

STEPS = 15
"""Newton steps in between, at most."""

ROWS, PASSES = 8, 60
"""Rows that a linear program takes in at once, and how often."""

MODELS, HALVINGS = 30, 12
"""Quadratic models for one nearest point, and steps back from their maxima."""

CUBES = 30
"""Radii that are tried for the smallest cube, at most."""

TOLERANCE = 1e-9
"""How far a row may be violated, relative to the length of the step."""

OPTIONS: dict[str, bool | int | float | str] = {
    "output_flag": False,
    "presolve": "off",
    "solver": "simplex",
    "parallel": "off",
    "threads": 1,
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
    "simplex_iteration_limit": 2000,
}
"""For HiGHS."""


class Targets(NamedTuple):
    """Which rows are to be met: facets with equality, decision boundaries from either side."""

    rows: np.ndarray  # (B,) int
    facets: np.ndarray  # (B,) bool


class Program(Protocol):
    """Programs over one polytope."""

    def solve(self, targets: Targets, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """Multipliers (B, m) and steps (B, d); distances above the limit need not be precise."""

    def beyond(self, index: int, hair: float) -> np.ndarray:
        """The step (d,) with ``values + <rows, delta> >= hair |values|`` for the row `index`."""


class LeastDistance:
    """l_2: Newton's method on the dual, whose variables are few, for all targets at once.

    With multipliers lambda the step is ``delta = clip(sum_j lambda_j rows_j, lo, hi)``, and the
    dual function has the gradient ``-(values + rows delta)`` and the Hessian
    ``-rows diag(delta within lo, hi) rows^T``: it is concave, piecewise quadratic and smooth.  Rows
    are only taken in when a step violates them.
    """

    def __init__(
        self,
        values: np.ndarray,
        rows: np.ndarray,
        optional: np.ndarray,
        lo: np.ndarray,
        hi: np.ndarray,
    ) -> None:
        length = np.sqrt((rows * rows).sum(axis=1))
        self.scale = np.where(length > 0, length, 1)
        self.values, self.rows = values / self.scale, rows / self.scale[:, None]
        self.usual = (length > 0) & ~optional
        self.lo, self.hi = lo, hi

    def solve(self, targets: Targets, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Program`."""
        B, m = len(targets.rows), len(self.values)
        result, steps = np.zeros((B, m)), np.zeros((B, self.rows.shape[1]))
        left = np.arange(B)
        # The rows in use of each target, the target itself first; -1 is none.
        work = np.full((B, 4), -1)
        work[:, 0] = targets.rows
        start = self.values[targets.rows]
        lam = np.zeros((B, 4))
        lam[:, 0] = -start
        for turn in range(ROUNDS):
            M = self.rows[work] * (work >= 0)[:, :, None]
            a = np.where(work >= 0, self.values[work], 0)
            lam, delta = self._newton(M, a, lam, targets.facets[left], limit)
            slack = self.values + delta @ self.rows.T
            slack[:, ~self.usual] = np.inf
            np.put_along_axis(slack, np.where(work >= 0, work, work[:, :1]), np.inf, axis=1)
            size = np.sqrt((delta * delta).sum(axis=1))
            worst = slack.argmin(axis=1)
            dual = 0.5 * size**2 - (lam * (a + (M @ delta[:, :, None])[:, :, 0])).sum(axis=1)
            done = (slack[np.arange(len(left)), worst] >= -TOLERANCE * size) | (
                dual > 0.5 * limit**2
            )
            if done.any() or turn == ROUNDS - 1:
                end = done if turn < ROUNDS - 1 else np.ones(len(left), bool)
                full = np.zeros((int(end.sum()), m))
                np.add.at(
                    full,
                    (np.arange(len(full))[:, None], np.maximum(work[end], 0)),
                    np.where(work[end] >= 0, lam[end], 0),
                )
                result[left[end]], steps[left[end]] = full, delta[end]
                keep = ~end
                left, work, lam, slack = left[keep], work[keep], lam[keep], slack[keep]
                if not len(left):
                    break
            work, lam = self._take_in(work, lam, slack)
        doubtful = np.flatnonzero(~self._solved(targets, result, steps, limit))
        for i in doubtful.tolist():
            result[i], steps[i] = self._precise(int(targets.rows[i]), bool(targets.facets[i]))
        return result / self.scale, steps

    def beyond(self, index: int, hair: float) -> np.ndarray:
        """See `Program`."""
        value = self.values[index]
        self.values[index] -= hair * abs(value)
        _, step = self._precise(index, False)
        self.values[index] = value
        return step

    def _solved(self, targets, multipliers, steps, limit):
        """Which targets have a step that all rows allow, as long as the dual function promises."""
        slack = self.values + steps @ self.rows.T
        size = np.sqrt((steps * steps).sum(axis=1))
        dual = 0.5 * size**2 - (multipliers * slack).sum(axis=1)
        met = slack[np.arange(len(steps)), targets.rows]
        slack[:, ~self.usual] = 0
        tolerance = 1e-8 * size
        allowed = (slack.min(axis=1) >= -tolerance) & (met >= -tolerance)
        tight = 0.5 * size**2 * (1 - 1e-8) <= dual
        return (allowed & tight) | (dual >= 0.5 * limit**2)

    def _precise(self, index, facet):
        """One target, by non-negative least squares (Lawson and Hanson 1974, chapter 23).

        The box becomes rows, too.  The residual r of ``min ||E u - (0, ..., 0, 1)||`` over u >= 0,
        where the columns of E are ``(rows_j, -values_j)``, gives the step ``-r[:-1] / r[-1]``; no
        residual means that there is none, and u proves it.
        """
        from scipy.optimize import nnls

        chosen = self.usual.copy()
        chosen[index] = True
        chosen = np.flatnonzero(chosen)
        d = self.rows.shape[1]
        below, above = np.flatnonzero(np.isfinite(self.lo)), np.flatnonzero(np.isfinite(self.hi))
        columns = [self.rows[chosen].T, np.eye(d)[:, below], -np.eye(d)[:, above]]
        needs = [-self.values[chosen], self.lo[below], -self.hi[above]]
        if facet:
            columns.append(-self.rows[[index]].T)
            needs.append(self.values[[index]])
        needs_row = np.concatenate(needs)
        unit = np.abs(needs_row[np.searchsorted(chosen, index)])
        unit = unit if unit > 0 else 1.0
        E = np.vstack([np.hstack(columns), needs_row / unit])
        multipliers, step = np.zeros(len(self.values)), np.zeros(d)
        try:
            u, _ = nnls(E, np.append(np.zeros(d), 1.0), maxiter=20 * E.shape[1])
        except (RuntimeError, ValueError):  # too many steps, or numbers that are not finite
            return multipliers, step
        r = E @ u
        r[-1] -= 1
        multipliers[chosen] = u[: len(chosen)]
        if facet:
            multipliers[index] -= u[-1]
        if r[-1] < -1e-12:
            step = np.clip(unit * r[:-1] / -r[-1], self.lo, self.hi)
            multipliers *= unit / -r[-1]
        return multipliers, step

    def _take_in(self, work, lam, slack):
        """Forget rows that have no multiplier, take in the two that are violated most."""
        idle = (lam == 0) & (work >= 0)
        idle[:, 0] = False
        work = np.where(idle, -1, work)
        order = np.argsort(work < 0, axis=1, kind="stable")
        work, lam = np.take_along_axis(work, order, 1), np.take_along_axis(lam, order, 1)
        used = int((work >= 0).sum(axis=1).max())
        work, lam = work[:, :used], lam[:, :used]
        worst = np.argpartition(slack, 1, axis=1)[:, :2]
        worst = np.where(np.take_along_axis(slack, worst, 1) < 0, worst, -1)
        return np.hstack([work, worst]), np.hstack([lam, np.zeros(worst.shape)])

    def _newton(self, M, a, lam, facet, limit):
        """Maximise the dual function over the multipliers of a few rows."""
        B, k, _ = M.shape
        identity = np.eye(k)
        lam = lam.copy()
        first = np.zeros((B, k), bool)
        first[:, 0] = facet
        step = np.ones(B)
        delta, dual = self._dual(M, a, lam)
        active = np.ones(B, bool)
        for _ in range(STEPS):
            slack = a + (M @ delta[:, :, None])[:, :, 0]
            free = first | (lam > 0) | (slack < 0)
            free &= (M != 0).any(axis=2)
            scale = np.abs(a[:, 0]) + np.sqrt((delta * delta).sum(axis=1))
            error = np.abs(np.where(free, slack, 0)).max(axis=1)
            active &= (error > 1e-12 * scale) & (dual <= 0.5 * limit**2 * 1.0001)
            if not active.any():
                break
            inside = (delta > self.lo) & (delta < self.hi)
            H = (M * inside[:, None, :]) @ M.swapaxes(1, 2)
            both = free[:, :, None] & free[:, None, :]
            H = np.where(both, H, 0) + identity * np.where(free, 1e-11, 1)[:, None, :]
            move = np.linalg.solve(H, np.where(free, -slack, 0)[:, :, None])[:, :, 0]
            # As far as no multiplier becomes negative; if that is nowhere, cut off what does.
            falling = (move < 0) & ~first & free
            room = np.where(falling, lam / np.where(falling, -move, 1), np.inf).min(axis=1)
            new = lam + np.where(active, step, 0)[:, None] * move
            held = lam + np.where(active, np.minimum(step, room), 0)[:, None] * move
            new, held = (np.where(first, it, np.maximum(it, 0)) for it in (new, held))
            new_delta, new_dual = self._dual(M, a, new)
            held_delta, held_dual = self._dual(M, a, held)
            rather = held_dual > new_dual
            new = np.where(rather[:, None], held, new)
            new_delta = np.where(rather[:, None], held_delta, new_delta)
            new_dual = np.maximum(new_dual, held_dual)
            better = new_dual > dual
            lam = np.where(better[:, None], new, lam)
            delta = np.where(better[:, None], new_delta, delta)
            dual = np.where(better, new_dual, dual)
            step = np.where(better, np.minimum(1, 2 * step), step / 4)
            active &= step > 1e-4
        return lam, delta

    def _dual(self, M, a, lam):
        """The step and the value of the dual function."""
        delta = np.clip((lam[:, None, :] @ M)[:, 0], self.lo, self.hi)
        slack = a + (M @ delta[:, :, None])[:, :, 0]
        return delta, 0.5 * (delta * delta).sum(axis=1) - (lam * slack).sum(axis=1)


class LinearPrograms:
    """l_1 and l_inf: one model of HiGHS a polytope, whose rows are switched target by target."""

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
        self.scale = np.where(length > 0, length, 1)
        self.usual = (length > 0) & ~optional
        self.floor = -values / self.scale
        self.rows = rows / self.scale[:, None]
        self.p = p
        d = self.rows.shape[1]
        self.highs: Any = highspy.Highs()
        for option, value in OPTIONS.items():
            self.highs.setOptionValue(option, value)
        # Columns: how far up and how far down; in l_inf also the length r, with r - delta >= 0.
        up, down = np.maximum(hi, 0), np.maximum(-lo, 0)
        if p == 1:
            self.sides = 0
            cost, bounds = np.ones(2 * d), (np.zeros(2 * d), np.append(up, down))
            A = np.zeros((0, 2 * d))
        else:
            sides = np.vstack([-np.eye(d)[up > 0], np.eye(d)[down > 0]])
            self.sides = len(sides)
            cost, bounds = np.append(np.zeros(d), 1), (np.append(-down, 0), np.append(up, np.inf))
            A = np.hstack([sides, np.ones((len(sides), 1))])
        indices = np.nonzero(A)[1]
        starts = np.append(0, np.cumsum((A != 0).sum(axis=1)))[:-1]
        model: list[Any] = [
            *(A.shape[1], A.shape[0], len(indices), int(highspy.MatrixFormat.kRowwise)),
            *(int(highspy.ObjSense.kMinimize), 0.0, cost, *bounds),
            *(np.zeros(len(A)), np.full(len(A), np.inf), starts.astype(np.int32)),
            *(indices.astype(np.int32), A[A != 0], np.zeros(len(cost), np.int32)),
        ]
        self.highs.passModel(*model)
        # Rows of the model, and where each row of the polytope is among them.
        self.used: list[int] = []
        self.place = np.full(len(values), -1)

    def solve(self, targets: Targets, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Program`."""
        answers = [
            self._one(int(index), bool(facet), limit=limit)
            for index, facet in zip(*targets, strict=True)
        ]
        multipliers, steps = (np.array(part) for part in zip(*answers, strict=True))
        return multipliers / self.scale, steps

    def beyond(self, index: int, hair: float) -> np.ndarray:
        """See `Program`."""
        return self._one(index, False, hair)[1]

    def _one(self, index, facet, hair=0.0, limit=np.inf):
        """One target: rows come into the model when a step violates them."""
        floor = self.floor[index]
        bound = floor + hair * abs(floor)
        if self.place[index] < 0:
            self._add(index, -np.inf)
        at = int(self.place[index]) + self.sides
        self.highs.changeRowBounds(at, bound, bound if facet else np.inf)
        y, delta = np.zeros(len(self.floor)), np.zeros(self.rows.shape[1])
        for _ in range(PASSES):
            self.highs.run()
            status = self.highs.getModelStatus()
            if status != highspy.HighsModelStatus.kOptimal:
                if status == highspy.HighsModelStatus.kInfeasible:
                    ray = self.highs.getDualRay()
                    if ray[1]:
                        y[self.used] = np.array(ray[2])[self.sides :]
                break
            solution = self.highs.getSolution()
            y[self.used] = np.array(solution.row_dual)[self.sides :]
            delta = self._step(np.array(solution.col_value))
            slack = self.rows @ delta - self.floor
            slack[self.used] = np.inf
            slack[~self.usual] = np.inf
            worst = np.argsort(slack)[:ROWS]
            worst = worst[slack[worst] < -TOLERANCE * np.abs(delta).max()]
            if not len(worst) or norm(delta, self.p) > limit:
                break
            for row in worst.tolist():
                self._add(row, self.floor[row])
        self.highs.changeRowBounds(at, floor if self.usual[index] else -np.inf, np.inf)
        return y, delta

    def _step(self, columns):
        """The step, from the values of all columns."""
        d = self.rows.shape[1]
        return columns[:d] - columns[d:] if self.p == 1 else columns[:d]

    def _add(self, row, floor):
        """Take a row into the model."""
        entries = self.rows[row]
        entries = np.append(entries, -entries) if self.p == 1 else entries
        indices = np.flatnonzero(entries)
        self.highs.addRow(floor, np.inf, len(indices), indices.astype(np.int32), entries[indices])
        self.place[row] = len(self.used)
        self.used.append(row)


def nearest_point(
    values: np.ndarray,
    rows: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    p: float,
    multipliers: np.ndarray,
    limit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The shortest step with ``values + rows delta >= 0`` in the box, by few rows.

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
    if p == 2:
        return _least_square(values, rows, lo, hi, multipliers, limit)
    if p == 1:
        return _shortest_sum(values, rows, lo, hi)
    return _smallest_cube(values, rows, lo, hi, multipliers, limit)


def _least_square(values, rows, lo, hi, lam, limit):
    """l_2: the dual function of `LeastDistance`, by quadratic models.

    With the coordinates that the box holds kept fixed, the dual function is quadratic, and its
    maximum over all multipliers >= 0 is a problem of non-negative least squares, in as many
    variables as there are rows.  Its solution is a direction of ascent.
    """
    from scipy.optimize import nnls

    scale = np.sqrt((rows * rows).sum(axis=1))
    scale = np.where(scale > 0, scale, 1)
    M, a = rows / scale[:, None], values / scale
    lam = lam * scale
    if not (lam > 0).any():
        lam = np.where(np.arange(len(a)) == a.argmin(), np.maximum(-a, 0), 0)
    step = np.clip(lam @ M, lo, hi)
    for _ in range(MODELS):
        gradient = -(a + M @ step)
        length = np.sqrt(step @ step)
        if 0.5 * length**2 + lam @ gradient > 0.5 * limit**2:
            break
        tolerance = 1e-11 * (length + 1e-3 * limit)
        if (np.where(lam > 0, np.abs(gradient), gradient) <= tolerance).all():
            break
        inside = (step > lo) & (step < hi)
        H = (M * inside) @ M.T + 1e-11 * np.eye(len(a))
        try:
            L = np.linalg.cholesky(H)
            best, _ = nnls(L.T, np.linalg.solve(L, H @ lam + gradient), maxiter=20 * len(a))
        except (RuntimeError, ValueError, np.linalg.LinAlgError):
            break
        # As far as the dual function rises: its slope falls on the way.
        way, share = best - lam, 1.0
        for _ in range(HALVINGS):
            step = np.clip((lam + share * way) @ M, lo, hi)
            slope = -(way @ (a + M @ step))
            if slope >= -0.3 * (way @ gradient):
                break
            share /= 2
        lam = np.maximum(lam + share * way, 0)
    return lam / scale, step


def _shortest_sum(values, rows, lo, hi):
    """l_1: one linear program, whose columns are how far up and how far down."""
    m, d = rows.shape
    highs = _model(
        np.ones(2 * d), np.zeros(2 * d), np.append(hi, -lo), -values, np.hstack([rows, -rows])
    )
    highs.run()
    lam, step = np.zeros(m), np.zeros(d)
    status = highs.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        ray = highs.getDualRay()
        if ray[1]:
            lam = np.array(ray[2])
    elif status == highspy.HighsModelStatus.kOptimal:
        solution = highs.getSolution()
        lam, columns = np.array(solution.row_dual), np.array(solution.col_value)
        step = columns[:d] - columns[d:]
    return np.maximum(lam, 0), np.clip(step, lo, hi)


def _smallest_cube(values, rows, lo, hi, lam, limit):
    """l_inf: how far the worst row is violated on a cube of radius r falls, convexly, with r.

    A linear program says how far, and which sum of rows proves it; the distance of that one
    half-space is the next r, at most the right one: Newton's method, from the left.
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
            highs = _model(np.append(zero, 1), low, high, -values / length, A)
        else:
            highs.changeColsBounds(d + 1, np.arange(d + 1, dtype=np.int32), low, high)
        highs.run()
        if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            break
        solution = highs.getSolution()
        columns = np.array(solution.col_value)
        step = np.clip(columns[:d], lo, hi)
        if columns[d] <= 1e-10 * radius:
            break
        lam = np.maximum(np.array(solution.row_dual), 0) / length
    return lam, step


def _model(cost, low, high, floor, A):
    """Minimise ``<cost, u>`` subject to ``low <= u <= high`` and ``A u >= floor``."""
    highs: Any = highspy.Highs()
    for option, value in OPTIONS.items():
        highs.setOptionValue(option, value)
    m, n = A.shape
    model: list[Any] = [
        *(n, m, m * n, int(highspy.MatrixFormat.kRowwise)),
        *(int(highspy.ObjSense.kMinimize), 0.0, cost, low, high),
        *(floor, np.full(m, np.inf), (n * np.arange(m)).astype(np.int32)),
        *(np.tile(np.arange(n), m).astype(np.int32), A.reshape(-1), np.zeros(n, np.int32)),
    ]
    highs.passModel(*model)
    return highs
