"""Convex polytopes in any dimension: how large one is, and how far.

A polytope is ``{ z : A z <= b }``.  Questions about it are linear programs, for HiGHS, or in l_2 a
least-squares problem; SciPy has both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult, linprog, nnls

from refmmr.reference.hyperplanes import dual_norm, norm

__all__ = ["distance", "inradius"]

TOLERANCE = 1e-10
"""How far HiGHS may leave a unit constraint; the least that it takes."""

INFEASIBLE, UNBOUNDED = 2, 3


def inradius(A: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest ball (l_2) within a polytope: its Chebyshev center and its radius.

    A ball is on the inner side of ``<a, z> = b`` if ``<a, center> + radius ||a|| <= b``: a linear
    program in the center and the radius.

    Parameters
    ----------
    A : ndarray, shape (m, n)
        Rows of any length; a row of zeros says ``0 <= b``.
    b : ndarray, shape (m,)

    Returns
    -------
    center : ndarray, shape (n,)
        NaN where there is no largest ball.
    radius : float
        The slack of the center, so that the ball is inside up to rounding; 0 if the polytope is
        flat (then the center is in it up to 1e-10), -inf if it is empty, inf if it holds balls of
        any size.

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
    grow = np.append(np.zeros(n), -1)
    result = _program(grow, np.column_stack([A, lengths]), b, [(None, None)] * n + [(0, None)])
    if result.status == INFEASIBLE:
        return np.full(n, np.nan), -np.inf
    if result.status == UNBOUNDED:
        return np.full(n, np.nan), np.inf
    center = result.x[:-1]
    slack = (b - A @ center)[lengths > 0]
    return center, max(0.0, float(slack.min()))


def distance(A: np.ndarray, b: np.ndarray, z: np.ndarray, p: float) -> float:
    """Distance in l_p from a point to a polytope.

    With the point as the origin this is the shortest step delta with ``A delta <= b - A z``.  In
    l_1 and l_inf it is a linear program; for l_2 see `_least_distance`.

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
    # The farthest of the half-spaces is at most as far as the polytope; as the unit of length it
    # makes the tolerance of HiGHS a relative one.
    lengths = dual_norm(A, p, axis=1)
    unit = float((-slack / np.where(lengths > 0, lengths, 1)).max())
    step = _shortest_step(A, slack / unit, 1 if p == 1 else np.inf)
    if step is None:
        return np.inf
    if p == 2:
        unit *= float(norm(step, np.inf))
        step = _least_distance(A, slack / unit)
    return unit * float(norm(step, p))


def _shortest_step(A, slack, p):
    """The delta with ``A delta <= slack`` that is shortest in l_1 or l_inf; None if there is none.

    Variables are delta and bounds on the sizes of its coordinates: one for each in l_1, and their
    sum is minimised; a common one in l_inf.
    """
    m, n = A.shape
    sizes = np.eye(n) if p == 1 else np.ones((n, 1))
    rows = np.block([[A, np.zeros((m, sizes.shape[1]))], [np.eye(n), -sizes], [-np.eye(n), -sizes]])
    costs = np.append(np.zeros(n), np.ones(sizes.shape[1]))
    result = _program(costs, rows, np.append(slack, np.zeros(2 * n)), (None, None))
    return None if result.status == INFEASIBLE else result.x[:n]


def _least_distance(A, slack):
    """The delta with ``A delta <= slack`` that is shortest in l_2 (Lawson and Hanson, chapter 23).

    At the optimum delta is a combination of the normals of the constraints that hold it, ``delta =
    -A^T v`` with v >= 0.  Such a v follows from a least-squares problem with u >= 0,

        minimise ``|| A^T u ||^2 + (<slack, u> + 1)^2``.

    Call the residuals ``r = A^T u`` and ``s = <slack, u> + 1``.  Optimality says that the gradient
    ``A r + slack s`` is >= 0, and 0 where u > 0.  Multiplied by u this is ``||r||^2 + s^2 - s =
    0``, so s > 0 unless both residuals vanish, and ``delta = -r / s`` has ``A delta <= slack``,
    with equality where u > 0: all conditions for the shortest one.  (If both vanish, u proves
    by ``A^T u = 0`` and ``<slack, u> = -1`` that no delta exists.)

    With slacks in units of the distance in l_inf, ``||delta||^2 <= n``; so ``s = 1 / (1 +
    ||delta||^2)`` is not small, and the division is harmless.
    """
    rows = np.vstack([A.T, slack])
    lengths = norm(rows, 2, axis=0)  # of constraints that are far away, large
    rows = rows / np.where(lengths > 0, lengths, 1)
    goal = np.append(np.zeros(A.shape[1]), -1)
    residual = rows @ nnls(rows, goal)[0] - goal
    return -residual[:-1] / residual[-1]


def _unit_rows(A, b):
    """The same polytope with rows of length 1 (l_2), or 0."""
    lengths = norm(A, 2, axis=1)
    lengths = np.where(lengths > 0, lengths, 1)
    return A / lengths[:, None], b / lengths


def _program(costs: np.ndarray, A: np.ndarray, b: np.ndarray, bounds: Any) -> OptimizeResult:
    """Minimise ``<costs, x>`` subject to ``A x <= b`` by HiGHS."""
    # Presolving may end with "infeasible or unbounded"; without it HiGHS says which.
    for presolve in (True, False):
        options = {
            "presolve": presolve,
            "primal_feasibility_tolerance": TOLERANCE,
            "dual_feasibility_tolerance": TOLERANCE,
        }
        result = linprog(costs, A, b, bounds=bounds, method="highs", options=options)
        if result.status in (0, INFEASIBLE, UNBOUNDED):
            return result
    raise RuntimeError(f"HiGHS does not decide a linear program: {result.message}")
