"""HiGHS (Huangfu and Hall 2018): set-up, models and results; and the least-distance problem.

Linear programs and mixed-integer linear programs are models ``(costs, columns, A, rows)``: minimise
``<costs, u>`` over ``columns[0] <= u <= columns[1]`` and ``rows[0] <= A u <= rows[1]``.  Callers do
not trust the results: they compute bounds from dual variables, with rounding errors, and check
points.
"""

from __future__ import annotations

from threading import Lock, RLock
from typing import Any

import highspy
import numpy as np
from scipy import sparse
from scipy.optimize import nnls

INFEASIBLE = highspy.HighsModelStatus.kInfeasible
OPTIMAL = highspy.HighsModelStatus.kOptimal
UNBOUNDED = highspy.HighsModelStatus.kUnbounded
BOUNDED = (
    OPTIMAL,
    highspy.HighsModelStatus.kObjectiveTarget,
    highspy.HighsModelStatus.kTimeLimit,
)
"""Statuses of a mixed-integer run after which it has a bound."""

Interval = tuple[np.ndarray, np.ndarray]


def solver(tolerance: float = 1e-9, **options: bool | int | float | str) -> highspy.Highs:
    """HiGHS without a model: silent, on one thread.

    Parameters
    ----------
    tolerance : float
        Largest absolute violation of a row, a column bound or a reduced cost.
    **options
        More options of HiGHS.
    """
    highs = highspy.Highs()
    # highspy has one pair of locks for all instances, so that two threads cannot solve at once and
    # each waits for the solver of the other.  These are this instance's own.
    vars(highs).update(_Highs__solver_started=Lock(), _Highs__solver_stopped=RLock())
    common: dict[str, bool | int | float | str] = {
        "output_flag": False,
        "threads": 1,
        "primal_feasibility_tolerance": tolerance,
        "dual_feasibility_tolerance": tolerance,
    }
    for name, value in (common | options).items():
        highs.setOptionValue(name, value)
    return highs


def simplex(tolerance: float = 1e-9, **options: bool | int | float | str) -> highspy.Highs:
    """HiGHS for many small linear programs: each starts from the basis of the last one."""
    return solver(tolerance, presolve="off", solver="simplex", parallel="off", **options)


def load(
    highs: highspy.Highs,
    costs: np.ndarray,
    columns: Interval,
    A: np.ndarray | sparse.csr_array,
    rows: Interval,
    integer: np.ndarray | None = None,
) -> None:
    """Give a model to HiGHS; it replaces the last one.

    A model that HiGHS refuses, because of a number that is not finite, leaves an empty one: it is
    never optimal.

    Parameters
    ----------
    highs : Highs
    costs : ndarray, shape (n,)
    columns : (lower, upper), shapes (n,)
    A : ndarray or csr_array, shape (m, n)
    rows : (lower, upper), shapes (m,)
    integer : ndarray of bool, shape (n,), optional
        Variables that must be integers.
    """
    m, n = A.shape
    if isinstance(A, np.ndarray):
        starts, indices = np.arange(0, m * n, n), np.tile(np.arange(n, dtype=np.int32), m)
        values = A.reshape(-1)
    else:
        starts, indices, values = A.indptr[:-1], A.indices, A.data
    kinds = np.zeros(n) if integer is None else integer
    model: list[Any] = [
        *(n, m, len(values), int(highspy.MatrixFormat.kRowwise)),
        *(int(highspy.ObjSense.kMinimize), 0.0, costs, *columns, *rows),
        *(starts.astype(np.int32), indices.astype(np.int32, copy=False), values),
        kinds.astype(np.int32),
    ]
    if highs.passModel(*model) == highspy.HighsStatus.kError:
        highs.clearModel()


def run(highs: highspy.Highs) -> highspy.HighsModelStatus:
    """Solve in a second thread, so that Ctrl-C is noticed; it stops the solver."""
    highs.HandleUserInterrupt = True
    highs.startSolve()
    try:
        while not highs.wait(0.2)[0]:
            pass
    except BaseException:
        highs.cancelSolve()
        highs.wait(5)
        raise
    return highs.getModelStatus()


def reached_bound(highs: highspy.Highs, status: highspy.HighsModelStatus) -> float:
    """HiGHS's lower bound of a mixed-integer program: infinite if infeasible, -inf on failure.

    It proves nothing: the program is one of rounded coefficients, solved to tolerances, and HiGHS
    may be wrong.
    """
    if status == INFEASIBLE:
        return np.inf
    return float(highs.getInfo().mip_dual_bound) if status in BOUNDED else -np.inf


def set_costs(highs: highspy.Highs, costs: np.ndarray, offset: float) -> None:
    """Minimise ``<costs, u> + offset``."""
    highs.changeColsCost(len(costs), np.arange(len(costs), dtype=np.int32), costs)
    highs.changeObjectiveOffset(offset)


MAX_BOUND = 1e19
"""HiGHS takes 1e20 as infinite, and refuses a row whose bounds no finite number satisfies."""


def add_row(
    highs: highspy.Highs, row: np.ndarray, lower: float = -np.inf, upper: float = np.inf
) -> None:
    """Add ``lower <= <row, u> <= upper``, or a weaker constraint where HiGHS refuses the bounds."""
    lower, upper = min(lower, MAX_BOUND), max(upper, -MAX_BOUND)
    nonzero = np.flatnonzero(row).astype(np.int32)
    highs.addRow(lower, upper, len(nonzero), nonzero, row[nonzero])


def dual_ray(highs: highspy.Highs) -> np.ndarray | None:
    """Multipliers of the rows, (m,), that prove a model infeasible, or None if HiGHS has none."""
    _, exists, ray = highs.getDualRay()[:3]  # type: ignore[attr-defined]
    return np.array(ray) if exists else None


def unit_of(distances: np.ndarray) -> float:
    """A power of two near the median of some distances, as unit of a problem.

    HiGHS has absolute tolerances, and 1e20 is infinite to it; squares of l_2 may overflow.
    """
    sizes = np.abs(distances)
    sizes = sizes[(sizes > 0) & np.isfinite(sizes)]
    return float(np.ldexp(1.0, np.frexp(np.median(sizes))[1])) if len(sizes) else 1.0


def least_distance(
    A: np.ndarray, slack: np.ndarray, max_iterations: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The shortest delta in l_2 with ``A delta <= slack`` (Lawson and Hanson 1974, chapter 23).

    At the optimum delta is a combination of the normals of tight constraints, ``delta = -A^T v``
    with v >= 0.  Such a v follows from non-negative least squares,

        minimise ``|| A^T u ||^2 + (<slack, u> + 1)^2``   over u >= 0.

    Call the residuals ``r = A^T u`` and ``s = <slack, u> + 1``.  Optimality says that the gradient
    ``A r + slack s`` is >= 0, and 0 where u > 0.  Multiplied by u this is ``||r||^2 + s^2 - s =
    0``, so s > 0 unless both residuals vanish, and ``delta = -r / s`` has ``A delta <= slack``,
    with equality where u > 0: all conditions for the shortest one.  (If both vanish, u proves
    by ``A^T u = 0`` and ``<slack, u> = -1`` that no delta exists.)

    Parameters
    ----------
    A : ndarray, shape (m, d)
    slack : ndarray, shape (m,)
        In units of the distance, so that ``s = 1 / (1 + ||delta||^2)`` is not small.
    max_iterations : int, optional
        ``3 m`` if not given.

    Returns
    -------
    u : ndarray, shape (m,)
    residuals : ndarray, shape (d + 1,)
        r, then s.

    Raises
    ------
    RuntimeError, ValueError
        After too many iterations; for entries that are not finite.
    """
    rows, goal = np.vstack([A.T, slack]), np.append(np.zeros(A.shape[1]), -1.0)
    u, _ = nnls(rows, goal, maxiter=max_iterations)
    return u, rows @ u - goal
