"""From l_1 and l_inf to every l_p: the certified radii that follow from those of two norms.

Let the class be constant on the l_1 ball of radius ``e_1`` around x in R^d, and on the l_inf ball
of radius ``e_inf``.  Then it is constant on their union, and each l_p ball inside the union is
certified.  If both balls lie in one *convex* set on which the class is constant, it is constant on
the convex hull of the union too; the hull is larger, and so are its l_p balls (Croce and Hein 2020,
Provable robustness against all adversarial l_p-perturbations for p >= 1).

**Condition for the hull.**  The intersection of a linear region with the half-spaces ``f_y > f_s``
of its affine map is such a convex set.  Certificates of other methods (relaxations, mixed-integer
programs, search through many regions) hold on their ball alone: then only the union is certified.

**The hull**, by duality.  The support function of the hull is the larger of the two balls',
``h(w) = max(e_1 ||w||_inf, e_inf ||w||_1)``, and the l_p ball of radius r is inside if and only if
``r ||w||_q <= h(w)`` for all w, with ``1/p + 1/q = 1``.  So

    1 / r  =  max { ||w||_q :  ||w||_inf <= 1 / e_1,  ||w||_1 <= 1 / e_inf }.

A convex function has its maximum at a vertex: as many entries ``1 / e_1`` as the l_1 norm allows,
k of them, and one entry with the rest.  With ``e_1 / e_inf = k + t``, k whole and ``0 <= t < 1``,

    r  =  e_1 / (k + t^q)^(1/q).

It decreases in ``e_1 / e_inf``.  A vector has d entries: a ratio of more than d, where the l_1 ball
contains the other, is replaced by d.  If ``e_1 < e_inf`` the l_inf ball contains the other, and
``e_1 = e_inf`` gives the same hull.

**The union.**  The smallest vector outside of both balls has one entry ``a >= e_inf`` and an l_1
norm of ``e_1``, the rest of which is spread evenly over the other entries:

    r^p  =  a^p + (d - 1) (rest / (d - 1))^p,
    a = max(e_inf, e_1 / d),   rest = max(e_1 - a, 0).
"""

from __future__ import annotations

import numpy as np

from refmmr.reference.rounding import rounding_factor

ROUNDINGS = 256
"""Roundings of a radius, at most: a few operations, and powers whose exponents have errors that
count up to ``log d < 60`` times.  Both formulas are well conditioned: errors of ``e_1`` and
``e_inf`` change a radius by no larger factor.
"""

SMALLEST = 1e-290
"""Smaller radii are rounded down to 0: subnormal numbers have larger relative errors."""


def hull_radius(e1: np.ndarray, e_inf: np.ndarray, p: float, d: int) -> np.ndarray:
    """The largest l_p ball in the convex hull of an l_1 and an l_inf ball, rounded down.

    Parameters
    ----------
    e1, e_inf : ndarray
        Radii of the two balls, 0 to infinity; they broadcast.
    p : float
        From 1 to infinity.
    d : int
        Dimension.

    Returns
    -------
    ndarray
        Radii; infinite where one of the balls is the whole space.
    """
    e1, e_inf = np.broadcast_arrays(np.asarray(e1, float), np.asarray(e_inf, float))
    finite = np.isfinite(e1) & np.isfinite(e_inf)
    inner = np.where(finite, e_inf, 0)
    outer = np.maximum(np.where(finite, e1, 0), inner)
    # The ratio is rounded up: the radius decreases in it.
    with np.errstate(over="ignore"):
        ratio = outer / np.where(inner > 0, inner, 1) * (1 + rounding_factor(4))
    ratio = np.where(inner > 0, np.minimum(ratio, d), d)
    whole = np.floor(ratio)
    # 1/q first: q itself is infinite for p = 1.
    inverse_q = 1 - 1 / p
    rest = (ratio - whole) ** (1 / inverse_q) if inverse_q > 0 else 0
    return _rounded_down(np.where(finite, outer / (whole + rest) ** inverse_q, np.inf))


def union_radius(e1: np.ndarray, e_inf: np.ndarray, p: float, d: int) -> np.ndarray:
    """The largest l_p ball in the union of an l_1 and an l_inf ball, rounded down.

    Parameters and result as for `hull_radius`.
    """
    e1, e_inf = np.broadcast_arrays(np.asarray(e1, float), np.asarray(e_inf, float))
    finite = np.isfinite(e1) & np.isfinite(e_inf)
    outer, inner = np.where(finite, e1, 0), np.where(finite, e_inf, 0)
    largest = np.maximum(inner, outer / d)
    rest = np.maximum(outer - largest, 0) / max(d - 1, 1)
    # Powers of a ratio, which is at most 1, do not overflow.
    share = np.minimum(rest / np.where(largest > 0, largest, 1), 1)
    with np.errstate(under="ignore"):
        radius = largest * (1 + (d - 1) * share**p) ** (1 / p)
    return _rounded_down(np.where(finite, radius, np.inf))


def _rounded_down(radius):
    """A radius that is at most the true one."""
    return np.where(radius > SMALLEST, radius * (1 - rounding_factor(ROUNDINGS)), 0)
