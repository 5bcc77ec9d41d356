"""Convex polytopes ``{ z : A z <= b }`` in any dimension: the largest ball inside, distances.

Both are linear programs, for HiGHS; distances in l_2 a non-negative least-squares problem.
"""

from __future__ import annotations

import highspy
import numpy as np

from refmmr import _solvers
from refmmr.reference.hyperplanes import dual_norm, norm

__all__ = ["distance", "inradius", "projection_step"]

TOLERANCE = 1e-10
"""Tolerance of HiGHS for a constraint with a row of length 1: the smallest that it accepts."""


def inradius(A: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest ball (l_2) in a polytope: its Chebyshev centre and its radius.

    A ball lies in the half-space ``<a, z> <= b`` if ``<a, center> + radius ||a|| <= b``, so this is
    a linear program in the centre and the radius (Boyd and Vandenberghe 2004, section 4.3.1).

    Parameters
    ----------
    A : ndarray, shape (m, n)
        Rows of any length; a row of zeros says ``0 <= b``.
    b : ndarray, shape (m,)

    Returns
    -------
    center : ndarray, shape (n,)
        NaN if there is no largest ball.
    radius : float
        The smallest slack of the centre, so that the ball is inside up to rounding; 0 if the
        polytope is flat (then the centre is in it up to 1e-10), -inf if it is empty, inf if it
        holds balls of any size.

    Raises
    ------
    RuntimeError
        If HiGHS does not decide.

    Examples
    --------
    >>> center, radius = inradius(np.array([[-1, 0], [0, -1], [3, 4]]), np.array([0, 0, 12]))
    >>> print(center.round(9), round(radius, 9))
    [1. 1.] 1.0
    """
    A, b = _unit_rows(A, b)
    n = A.shape[1]
    lengths = A.any(axis=1).astype(float)
    largest = np.append(np.zeros(n), -1.0)
    lower = np.append(np.full(n, -np.inf), 0)
    status, solution = _minimize(largest, np.column_stack([A, lengths]), b, lower)
    if status == _solvers.INFEASIBLE:
        return np.full(n, np.nan), -np.inf
    if status == _solvers.UNBOUNDED:
        return np.full(n, np.nan), np.inf
    center = solution[:-1]
    slack = (b - A @ center)[lengths > 0]
    return center, max(0.0, float(slack.min()))


def distance(A: np.ndarray, b: np.ndarray, z: np.ndarray, p: float) -> float:
    """Distance in l_p from a point to a polytope.

    This is the length of the shortest step delta with ``A delta <= b - A z``: in l_1 and l_inf a
    linear program, in l_2 a least-distance problem.

    Parameters
    ----------
    A : ndarray, shape (m, n)
        Rows of any length; a row of zeros says ``0 <= b``.
    b : ndarray, shape (m,)
    z : ndarray, shape (n,)
    p : {1, 2, inf}

    Returns
    -------
    float
        0 inside, inf if the polytope is empty.

    Raises
    ------
    RuntimeError
        If HiGHS does not decide.

    Examples
    --------
    >>> A, b = np.array([[1, 0], [0, 1]]), np.array([-3, -4])
    >>> [round(distance(A, b, np.zeros(2), p), 9) for p in (1, 2, np.inf)]
    [7.0, 5.0, 4.0]
    """
    A, b = _unit_rows(A, b)
    slack = b - A @ z
    if (slack >= 0).all():
        return 0.0
    # The distance to the farthest half-space is a lower bound.  As the unit of length it makes the
    # tolerance of HiGHS relative.
    lengths = dual_norm(A, p, axis=1)
    unit = float((-slack / np.where(lengths > 0, lengths, 1)).max())
    step = _shortest_step(A, slack / unit, 1 if p == 1 else np.inf)
    if step is None:
        return np.inf
    if p == 2:
        unit *= float(norm(step, np.inf))
        step = projection_step(A, slack / unit)
    return unit * float(norm(step, p))


def _shortest_step(A, slack, p):
    """The shortest delta in l_1 or l_inf with ``A delta <= slack``, or None.

    Variables are delta and upper bounds on ``|delta_i|``: one for each i in l_1, where their sum is
    minimised, and a common one in l_inf.
    """
    m, n = A.shape
    sizes = np.eye(n) if p == 1 else np.ones((n, 1))
    rows = np.block([[A, np.zeros((m, sizes.shape[1]))], [np.eye(n), -sizes], [-np.eye(n), -sizes]])
    costs = np.append(np.zeros(n), np.ones(sizes.shape[1]))
    limits = np.append(slack, np.zeros(2 * n))
    status, solution = _minimize(costs, rows, limits, np.full(len(costs), -np.inf))
    return None if status == _solvers.INFEASIBLE else solution[:n]


def projection_step(A: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """The shortest delta in l_2 with ``A delta <= slack``, for slacks in units of its l_inf length.

    Constraints that are far away have large rows ``(A_i, slack_i)``; all are scaled to length 1.
    """
    lengths = norm(np.vstack([A.T, slack]), 2, axis=0)
    lengths = np.where(lengths > 0, lengths, 1)
    _, residuals = _solvers.least_distance(A / lengths[:, None], slack / lengths)
    return -residuals[:-1] / residuals[-1]


def _unit_rows(A, b):
    """The same polytope with rows of length 1 (l_2), or 0."""
    lengths = norm(A, 2, axis=1)
    lengths = np.where(lengths > 0, lengths, 1)
    return A / lengths[:, None], b / lengths


def _minimize(
    costs: np.ndarray, A: np.ndarray, b: np.ndarray, lower: np.ndarray
) -> tuple[highspy.HighsModelStatus, np.ndarray]:
    """Minimise ``<costs, x>`` subject to ``A x <= b`` and ``x >= lower``: the status and x."""
    columns = lower, np.full(len(costs), np.inf)
    rows = np.full(len(b), -np.inf), b
    # Presolve may end with "infeasible or unbounded"; without it HiGHS distinguishes the two.
    for presolve in ("on", "off"):
        highs = _solvers.solver(TOLERANCE, presolve=presolve)
        _solvers.load(highs, costs, columns, A, rows)
        highs.run()
        status = highs.getModelStatus()
        if status in (_solvers.OPTIMAL, _solvers.INFEASIBLE, _solvers.UNBOUNDED):
            return status, np.array(highs.getSolution().col_value)
    message = highs.modelStatusToString(status)
    raise RuntimeError(f"HiGHS does not decide a linear program: {message}")
