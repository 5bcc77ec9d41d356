"""Least distance: the shortest step in l_2 that satisfies linear inequalities within a box.

    minimise  1/2 ||delta||^2   over   values + rows delta >= 0,   lo <= delta <= hi.

With multipliers lambda >= 0 of the rows, the step that minimises the Lagrangian is
``delta = clip(rows^T lambda, lo, hi)``, and the dual function

    q(lambda)  =  1/2 ||delta||^2 - <lambda, values + rows delta>

is concave, piecewise quadratic and smooth, with gradient ``-(values + rows delta)`` and Hessian
``-rows diag(lo < delta < hi) rows^T``.  It is maximised by Newton's method, in the few variables
whose rows are violated or tight; problems that this does not solve go to non-negative least squares
(Lawson and Hanson 1974, chapter 23).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from refmmr import _solvers
from refmmr.reference.hyperplanes import dual_norm

ROUNDS = 6
"""Rounds of adding violated rows; then the slower non-negative least squares finish a problem."""

NEWTON_STEPS = 15
"""Newton steps in a round: a handful usually suffice for a piecewise quadratic function."""

MODELS = 30
"""Quadratic models of the dual function in `least_distance`: a limit against endless loops that
floats rarely reach."""

REGULARIZATION = 1e-11
"""Added to the diagonal of a model's Hessian, whose rows have length 1: it is singular where there
are more rows than free coordinates."""

HALVINGS = 60
"""Halvings of the move to a model's maximum.  A model without one, which keeps coordinates at a
bound of the box that a short move would release, moves `1 / REGULARIZATION` (2^37) times too far.
If such a move is not undone, floats lose the dual function, and later cuts start from there."""

TOLERANCE = 1e-9
"""Violation of a row that does not count, relative to the length of the step: as for HiGHS."""


class LeastDistance:
    """Steps to many rows of one polytope at once, by Newton's method on the dual function.

    Each problem starts with its target as the only row; rows that a step violates are added.  See
    `refmmr.certify.bounds._nearest.shortest_steps` for the parameters.
    """

    def __init__(
        self,
        values: np.ndarray,
        rows: np.ndarray,
        optional: np.ndarray,
        lo: np.ndarray,
        hi: np.ndarray,
    ) -> None:
        length = dual_norm(rows, 2)
        self.scale = np.where(length > 0, length, 1)
        self.values, self.rows = values / self.scale, rows / self.scale[:, None]
        self.unit = _solvers.unit_of(self.values)
        self.values = self.values / self.unit
        self.required = (length > 0) & ~optional
        self.lo, self.hi = lo / self.unit, hi / self.unit

    def solve(
        self, targets: np.ndarray, facets: np.ndarray, limit: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `refmmr.certify.bounds._nearest.ShortestSteps`."""
        limit = limit / self.unit
        B, m = len(targets), len(self.values)
        multipliers, steps = np.zeros((B, m)), np.zeros((B, self.rows.shape[1]))
        left = np.arange(B)
        # The rows in use for each target, (B, k), itself first, -1 for none; and their multipliers.
        work = np.full((B, 4), -1)
        work[:, 0] = targets
        lam = np.zeros((B, 4))
        lam[:, 0] = -self.values[targets]
        for turn in range(ROUNDS):
            M = self.rows[work] * (work >= 0)[:, :, None]
            a = np.where(work >= 0, self.values[work], 0)
            lam, delta = self._newton(M, a, lam, facets[left], limit)
            slack = self.values + delta @ self.rows.T
            slack[:, ~self.required] = np.inf
            np.put_along_axis(slack, np.where(work >= 0, work, work[:, :1]), np.inf, axis=1)
            size = np.sqrt((delta * delta).sum(axis=1))
            worst = slack.argmin(axis=1)
            dual = 0.5 * size**2 - (lam * _slack(M, a, delta)).sum(axis=1)
            done = (slack[np.arange(len(left)), worst] >= -TOLERANCE * size) | (
                dual > 0.5 * limit * limit
            )
            if done.any() or turn == ROUNDS - 1:
                end = done if turn < ROUNDS - 1 else np.ones(len(left), bool)
                full = np.zeros((int(end.sum()), m))
                np.add.at(
                    full,
                    (np.arange(len(full))[:, None], np.maximum(work[end], 0)),
                    np.where(work[end] >= 0, lam[end], 0),
                )
                multipliers[left[end]], steps[left[end]] = full, delta[end]
                keep = ~end
                left, work, lam, slack = left[keep], work[keep], lam[keep], slack[keep]
                if not len(left):
                    break
            work, lam = _exchange(work, lam, slack)
        unsolved = np.flatnonzero(~self._solved(targets, multipliers, steps, limit))
        for i in unsolved.tolist():
            multipliers[i], steps[i] = self._precise(int(targets[i]), bool(facets[i]))
        return multipliers / self.scale, steps * self.unit

    def beyond(self, target: int, overshoot: float) -> np.ndarray:
        """See `refmmr.certify.bounds._nearest.ShortestSteps`."""
        value = self.values[target]
        self.values[target] -= overshoot * abs(value)
        _, step = self._precise(target, False)
        self.values[target] = value
        return step * self.unit

    def _solved(self, targets, multipliers, steps, limit):
        """Which steps satisfy all rows and are as long as the dual function says, (B,) bool."""
        slack = self.values + steps @ self.rows.T
        size = np.sqrt((steps * steps).sum(axis=1))
        dual = 0.5 * size**2 - (multipliers * slack).sum(axis=1)
        met = slack[np.arange(len(steps)), targets]
        slack[:, ~self.required] = 0
        tolerance = 1e-8 * size
        allowed = (slack.min(axis=1) >= -tolerance) & (met >= -tolerance)
        tight = 0.5 * size**2 * (1 - 1e-8) <= dual
        return (allowed & tight) | (dual >= 0.5 * limit * limit)

    def _precise(self, target, facet):
        """One target, by non-negative least squares (Lawson and Hanson 1974, chapter 23).

        The box gives rows, too.  Where there is no step the multipliers prove it.
        """
        chosen = self.required.copy()
        chosen[target] = True
        chosen = np.flatnonzero(chosen)
        d = self.rows.shape[1]
        below, above = np.flatnonzero(np.isfinite(self.lo)), np.flatnonzero(np.isfinite(self.hi))
        normals = [self.rows[chosen], np.eye(d)[below], -np.eye(d)[above]]
        slacks = [self.values[chosen], -self.lo[below], self.hi[above]]
        if facet:
            normals.append(-self.rows[[target]])
            slacks.append(-self.values[[target]])
        slack = np.concatenate(slacks)
        unit = np.abs(slack[np.searchsorted(chosen, target)])
        unit = unit if unit > 0 else 1.0
        multipliers, step = np.zeros(len(self.values)), np.zeros(d)
        try:
            u, r = _solvers.least_distance(-np.vstack(normals), slack / unit, 20 * len(slack))
        except (RuntimeError, ValueError):  # too many iterations, or entries that are not finite
            return multipliers, step
        multipliers[chosen] = u[: len(chosen)]
        if facet:
            multipliers[target] -= u[-1]
        if r[-1] > 1e-12:
            step = np.clip(-unit * r[:-1] / r[-1], self.lo, self.hi)
            multipliers *= unit / r[-1]
        return multipliers, step

    def _newton(self, M, a, lam, facet, limit):
        """Maximise the dual functions of B problems over the multipliers of k rows each, (B, k)."""
        B, k, _ = M.shape
        identity = np.eye(k)
        lam = lam.copy()
        first = np.zeros((B, k), bool)
        first[:, 0] = facet
        step = np.ones(B)
        delta, dual = self._dual(M, a, lam)
        active = np.ones(B, bool)
        for _ in range(NEWTON_STEPS):
            slack = _slack(M, a, delta)
            free = first | (lam > 0) | (slack < 0)
            free &= (M != 0).any(axis=2)
            scale = np.abs(a[:, 0]) + np.sqrt((delta * delta).sum(axis=1))
            error = np.abs(np.where(free, slack, 0)).max(axis=1)
            active &= (error > 1e-12 * scale) & (dual <= 0.5 * limit * limit * 1.0001)
            if not active.any():
                break
            inside = (delta > self.lo) & (delta < self.hi)
            H = (M * inside[:, None, :]) @ M.swapaxes(1, 2)
            both = free[:, :, None] & free[:, None, :]
            H = np.where(both, H, 0) + identity * np.where(free, 1e-11, 1)[:, None, :]
            move = np.linalg.solve(H, np.where(free, -slack, 0)[:, :, None])[:, :, 0]
            # Stop where the first multiplier reaches 0, or go on and clip it: the better one.
            falling = (move < 0) & ~first & free
            room = np.where(falling, lam / np.where(falling, -move, 1), np.inf).min(axis=1)
            new = lam + np.where(active, step, 0)[:, None] * move
            held = lam + np.where(active, np.minimum(step, room), 0)[:, None] * move
            new, held = (np.where(first, v, np.maximum(v, 0)) for v in (new, held))
            new_delta, new_dual = self._dual(M, a, new)
            held_delta, held_dual = self._dual(M, a, held)
            held_better = held_dual > new_dual
            new = np.where(held_better[:, None], held, new)
            new_delta = np.where(held_better[:, None], held_delta, new_delta)
            new_dual = np.maximum(new_dual, held_dual)
            better = new_dual > dual
            lam = np.where(better[:, None], new, lam)
            delta = np.where(better[:, None], new_delta, delta)
            dual = np.where(better, new_dual, dual)
            step = np.where(better, np.minimum(1, 2 * step), step / 4)
            active &= step > 1e-4
        return lam, delta

    def _dual(self, M, a, lam):
        """The steps (B, d) and the values (B,) of the dual functions."""
        delta = np.clip((lam[:, None, :] @ M)[:, 0], self.lo, self.hi)
        return delta, 0.5 * (delta * delta).sum(axis=1) - (lam * _slack(M, a, delta)).sum(axis=1)


def _slack(M, a, delta):
    """``a + M delta`` for each of B problems: (B, k, d), (B, k), (B, d) -> (B, k)."""
    return a + (M @ delta[:, :, None])[:, :, 0]


def _exchange(work, lam, slack):
    """Drop the rows with multiplier 0, add the two that are violated most."""
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


def least_distance(
    values: np.ndarray,
    rows: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    lam: np.ndarray,
    limit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """One problem with few rows, by quadratic models of the dual function.

    With the coordinates at a bound of the box kept fixed, the dual function is quadratic, and its
    maximum over lambda >= 0 is a problem of non-negative least squares in as many variables as
    there are rows.  Its solution gives a direction of ascent.  See
    `refmmr.certify.bounds._nearest.nearest_point` for the parameters.
    """
    scale = dual_norm(rows, 2)
    scale = np.where(scale > 0, scale, 1)
    M, a = rows / scale[:, None], values / scale
    lam = lam * scale
    if not (lam > 0).any():
        lam = np.where(np.arange(len(a)) == a.argmin(), np.maximum(-a, 0), 0)
    step = np.clip(lam @ M, lo, hi)
    for _ in range(MODELS):
        gradient = -(a + M @ step)
        length = np.sqrt(step @ step)
        if 0.5 * length**2 + lam @ gradient > 0.5 * limit * limit:
            break
        tolerance = 1e-11 * (length + 1e-3 * limit)
        if (np.where(lam > 0, np.abs(gradient), gradient) <= tolerance).all():
            break
        inside = (step > lo) & (step < hi)
        H = (M * inside) @ M.T + REGULARIZATION * np.eye(len(a))
        try:
            L = np.linalg.cholesky(H)
            best, _ = nnls(L.T, np.linalg.solve(L, H @ lam + gradient), maxiter=20 * len(a))
        except (RuntimeError, ValueError, np.linalg.LinAlgError):
            break
        # Halve the move until the slope of the dual function at its end is not far below 0.
        move, share = best - lam, 1.0
        for _ in range(HALVINGS):
            step = np.clip((lam + share * move) @ M, lo, hi)
            slope = -(move @ (a + M @ step))
            if slope >= -0.3 * (move @ gradient):
                break
            share /= 2
        lam = np.maximum(lam + share * move, 0)
    return lam / scale, step
