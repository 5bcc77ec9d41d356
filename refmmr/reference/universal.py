"""From l_1 and l_inf to every l_p: what two certified balls prove about all norms between.

Say that nothing changes in the l_1 ball of radius ``e_1`` around x in R^d, and nothing in the l_inf
ball of radius ``e_inf``.  Then nothing changes in their union, and each l_p ball inside the union
is certified.  If the two certificates come from one *convex* set without another class, nothing
changes in the convex hull of the union either; it is larger, and so are its l_p balls (Croce, Hein:
Provable robustness against all adversarial l_p-perturbations for p >= 1, ICLR 2020).

**When the hull may be taken.**  A linear region, cut by the half-spaces ``f_y > f_s`` of its affine
classifier, is such a convex set.  Certificates of other kinds (relaxations, mixed-integer programs,
searches through many regions) prove their ball and nothing more: the union is all that follows.

**The hull**, by duality.  The support function of the hull is the larger of the two balls',
``h(w) = max(e_1 ||w||_inf, e_inf ||w||_1)``, and the l_p ball of radius r is inside if and only if
``r ||w||_q <= h(w)`` for all w, with ``1/p + 1/q = 1``.  So

    1 / r  =  max { ||w||_q :  ||w||_inf <= 1 / e_1,  ||w||_1 <= 1 / e_inf }.

A convex function is largest at a vertex: as many entries ``1 / e_1`` as the l_1 norm allows, that
is k of them, and one with what is left.  With ``e_1 / e_inf = k + t``, k whole and ``0 <= t < 1``,

    r  =  e_1 / (k + t^q)^(1/q).

It falls as ``e_1 / e_inf`` grows.  Only d entries can be filled: a ratio of more than d, where the
l_1 ball contains the other, counts as d.  And where ``e_1 < e_inf`` the l_inf ball contains the
other, and ``e_1 = e_inf`` gives the same hull.

**The union.**  The smallest vector outside of both balls has one entry ``a >= e_inf`` and an l_1
norm of ``e_1``, the rest of it spread evenly over the other entries:

    r^p  =  a^p + (d - 1) (rest / (d - 1))^p,    a = max(e_inf, e_1 / d),   rest = max(e_1 - a, 0).
"""

from __future__ import annotations

import numpy as np

from refmmr.reference.rounding import rounding_factor

ROUNDINGS = 256
"""More than a radius loses: some operations, and exponents whose errors count ``log d < 60`` fold.

Both formulas are well conditioned: no radius changes by a larger factor than ``e_1`` and ``e_inf``.
"""

SMALLEST = 1e-290
"""Smaller radii count as 0: near the end of the floats relative errors are no longer small."""


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
    # The ratio rounded up: the radius falls with it.
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
    """A radius that is not above the true one."""
    return np.where(radius > SMALLEST, radius * (1 - rounding_factor(ROUNDINGS)), 0)
