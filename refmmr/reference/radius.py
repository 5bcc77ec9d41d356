"""From bounds at a given radius to a certified radius.

At a radius, `refmmr.reference.backward_bound` bounds the margins of a point on its ball from below;
where all of them are positive, the ball has one class.  The certified radius is the largest one
that a bracketing root finder reaches.  It is the end of the bracket at which the bounds *were*
positive, so the precision of the search never makes it wrong.

The smallest bound is a function of the radius that begins with the margin of the point, and an
evaluation takes a backward bound of the whole network.  The tangent at 0 is known: it is the margin
of the network's affine map at x.  The parabola with this tangent through a first value gives the
second radius, inverse quadratic interpolation (Brent 1973) those that follow.  For CROWN the
function has jumps, where lower slopes change from 0 to 1; there the bracket is halved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refmmr.reference.backward_bound import margin_bounds
from refmmr.reference.network import Network

PRECISION = 1e-6
"""Relative width of the last bracket: the radius is at most this far below the largest one that the
method proves, less than the digits that a table shows."""

NEAR = 0.05
"""Relative width of a bracket over which a secant may predict the root, in place of the evaluation
on its other side: the error of the secant is proportional to both distances from the root."""

SMALL = 1e-4
"""So may it only where the positive value is below this share of that at radius 0: not at jumps."""

EVALUATIONS = 200
"""Evaluations, at most: a start that is too large by a factor of ``2^60`` takes as many."""

STEEPEST = 1e3
"""Values below this multiple of the first one, negated, are lifted to it: far beyond the root only
the sign counts, and minus infinity cannot be interpolated."""


def margin_function(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None,
    method: str,
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`margin_bounds` as a function of radii (m,) and the numbers of m of the points.

    Arguments as there.  Twins compute once what does not depend on the radius.
    """

    def bounds(eps, rows):
        own = box if box is None or box[0].shape != X.shape else (box[0][rows], box[1][rows])
        return margin_bounds(net, X[rows], y[rows], p, eps, own, method)

    return bounds


def largest_radii(
    find: Callable[[np.ndarray, np.ndarray], np.ndarray],
    first: np.ndarray,
    tangent: np.ndarray,
    farthest: np.ndarray,
) -> np.ndarray:
    """The positive end of a bracket around the radius where a bound is 0, of n points together.

    Parameters
    ----------
    find : callable
        From radii (m,) and the numbers of m points to their bounds; NaN and minus infinity, which
        prove nothing, are negative.
    first : ndarray, shape (n,)
        The bounds at radius 0, positive.
    tangent : ndarray, shape (n,)
        The roots of their tangents there, positive; infinite if there is none.
    farthest : ndarray, shape (n,)
        Radii of the balls that hold the whole box, which are not exceeded.

    Returns
    -------
    ndarray, shape (n,)
        Radii at which the bound *was* positive; infinite where `farthest` was one.
    """
    n = len(first)
    safe, safe_value = np.zeros(n), first.copy()
    bad, bad_value = np.full(n, np.inf), np.full(n, np.nan)
    # The last three radii and their values, and the last three brackets, the newest first.
    radii, values, widths = np.zeros((3, n)), np.tile(first, (3, 1)), np.full((3, n), np.inf)
    eps = np.minimum(np.where(np.isfinite(tangent), tangent, 1), farthest)
    open_: np.ndarray = np.arange(n)
    for turn in range(EVALUATIONS):
        new, value = eps, np.nan_to_num(find(eps, open_), nan=-np.inf)
        value = np.maximum(value, -STEEPEST * first[open_])
        for end, its_value, own in ((safe, safe_value, value > 0), (bad, bad_value, ~(value > 0))):
            end[open_[own]], its_value[open_[own]] = new[own], value[own]
        for history, newest in ((radii, new), (values, value), (widths, (bad - safe)[open_])):
            history[1:, open_] = history[:-1, open_]
            history[0, open_] = newest
        a, b, u, v = (part[open_] for part in (safe, bad, safe_value, bad_value))
        with np.errstate(invalid="ignore", divide="ignore"):
            secant = a + (b - a) * (u / (u - v))
            near = (b - a <= NEAR * b) & (u <= SMALL * first[open_])
            near &= secant - a <= PRECISION * a
        narrow = np.isfinite(b) & (near | (b - a <= PRECISION * b))
        more = ~(narrow | (a >= farthest[open_]))
        open_, a, b, secant = (part[more] for part in (open_, a, b, secant))
        if not len(open_):
            break
        if turn == 0:
            aim = _parabola_root(first[open_], tangent[open_], radii[0, open_], values[0, open_])
        else:
            aim = _inverse_quadratic(radii[:, open_], values[:, open_])
        # Neither the bracket nor the value has become small in two evaluations: at a jump.
        stalled = widths[0, open_] > widths[2, open_] / 2
        stalled &= np.abs(values[0, open_]) > np.abs(values[2, open_]) / 4
        aim = np.where(stalled, (a + b) / 2, aim)
        eps = _inside(aim, secant, a, b, farthest[open_])
    return np.where(safe >= farthest, np.inf, safe)


def _inside(aim, secant, safe, bad, farthest):
    """The next radius: `aim`, within the bracket; the secant's root where it is not."""
    bracketed = np.isfinite(bad)
    with np.errstate(invalid="ignore"):
        tolerance = PRECISION * np.where(bracketed, bad, safe)
        aim = np.where((aim > safe) & (aim < bad), aim, np.where(bracketed, secant, np.inf))
        # A little to the safe side, where it ends the search.
        aim = aim - tolerance / 2
        inside = np.clip(aim, safe + tolerance / 2, bad - tolerance / 2)
        beyond = np.clip(aim, 1.25 * safe, 2 * safe)
    return np.minimum(np.where(bracketed, inside, beyond), farthest)


def _parabola_root(value, tangent, eps, other):
    """Root of the parabola through (0, value) and (eps, other), given its tangent's root."""
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = value / tangent
        bend = (other - value + slope * eps) / eps**2
        return 2 * value / (slope + np.sqrt(slope**2 - 4 * bend * value))


def _inverse_quadratic(radii, values):
    """The radius at value 0, if the radius is a quadratic function of the value: (3, m) to (m,)."""
    (a, b, c), (u, v, w) = radii, values
    with np.errstate(divide="ignore", invalid="ignore"):
        return (
            a * (v / (u - v)) * (w / (u - w))
            + b * (u / (v - u)) * (w / (v - w))
            + c * (u / (w - u)) * (v / (w - v))
        )
