"""The linear relaxation of a ReLU.

On a ball around x every hidden unit lies between bounds, ``l <= f <= u``.  If l >= 0 its ReLU is
the identity, if u <= 0 it is zero: such a unit is *stable*, and its relaxation is exact.  The ReLU
of an unstable unit lies above linear functions through the origin, and below the chord from
``(l, 0)`` to ``(u, u)``, the longest side of the triangle of Ehlers (2017):

    lower_slope * f   <=   max(f, 0)   <=   u / (u - l) * (f - l),      0 <= lower_slope <= 1.

The lower slope is a free parameter, in which the methods differ:

=========== ============================================= =====================================
"fast-lin"  ``u / (u - l)``, parallel to the upper one    Wong & Kolter 2018, Weng et al. 2018
"crown"     1 if ``u > -l``, else 0: the smaller area     Zhang et al. 2018
"ibp"       none: intervals instead of linear functions   Gowal et al. 2018, Mirman et al. 2018
=========== ============================================= =====================================

The best slopes follow from the dual of a linear program (`refmmr.certify.bounds.lp`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor

METHODS = ("ibp", "fast-lin", "crown")


class Relaxation(NamedTuple):
    """Linear bounds of the ReLU of each unit of a layer, arrays (n, *unit_shape)."""

    lower_slope: np.ndarray  # the lower bound passes through the origin
    upper_slope: np.ndarray
    intercept: np.ndarray  # of the upper bound, >= 0


def lower_slope(lower: np.ndarray, upper: np.ndarray, method: str) -> np.ndarray:
    """The lower slope of unstable units by "fast-lin" or "crown", for bounds (n, *unit_shape)."""
    if method == "crown":
        return (upper > -lower) * 1.0
    return _upper_slope(lower, upper, (lower < 0) & (upper > 0))


def relu_relaxation(lower: np.ndarray, upper: np.ndarray, slope: np.ndarray) -> Relaxation:
    """The relaxation of units between bounds (n, *unit_shape).

    `slope` is the lower slope of unstable units, between 0 and 1; that of stable units is not read.
    """
    active = (lower >= 0) * 1.0
    unstable = (lower < 0) & (upper > 0)
    upper_slope = np.where(unstable, _upper_slope(lower, upper, unstable), active)
    # The upper bound must pass above (l, 0) and (u, u), however the slope was rounded.
    slack = rounding_factor(8)
    above = np.maximum(-upper_slope * lower, upper - upper_slope * upper + slack * upper)
    intercept = np.where(unstable, above * (1 + slack) + slack * SMALLEST_NORMAL, 0)
    return Relaxation(np.where(unstable, slope, active), upper_slope, intercept)


def _upper_slope(lower, upper, unstable):
    """``u / (u - l)`` of unstable units; any number of others."""
    return upper / np.where(unstable, upper - lower, 1)
