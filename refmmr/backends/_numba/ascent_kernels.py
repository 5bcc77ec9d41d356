"""The compiled loops of `refmmr.backends._numba.ascent` and `clipping`.

Arrays are float32 for gradient steps, float64 for clipped bounds.  Numbers are taken from arrays of
that type, so that no loop computes in another one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.reference import ball

SMALL = ball.SMALL  # compiled into the kernels: remove their caches when it changes

L1, L2, LINF = 1, 2, 3

LEVELS = 60
"""Steps to the level of an l_2 ball within a box, at most; few are needed."""

CLOSE = 1e-4
"""Stop clipping where the tangents leave less to gain than this share of the first bound."""


class Limits(NamedTuple):
    """A ball around one point within a box."""

    norm: int
    x: np.ndarray  # (d,)
    low: np.ndarray  # (d,) ends of each coordinate
    high: np.ndarray
    radius: float


class Lines(NamedTuple):
    """The relaxations of a hidden layer in n nodes, without their lower slopes; (n, units)."""

    lower: np.ndarray  # bounds
    upper: np.ndarray
    slope: np.ndarray  # of the upper relaxation: 1 for active units, 0 for inactive ones
    intercept: np.ndarray
    unstable: np.ndarray  # bool


@jit
def upper_lines(lines, slack, least):
    """Fill in the upper relaxations.  Twin of `relaxation.relu_relaxation`.

    `slack` and `least` are what it rounds the intercepts up by; 0 where no proof follows.
    """
    n, units = lines.lower.shape
    zero, one = lines.lower.dtype.type(0), lines.lower.dtype.type(1)
    for i in range(n):
        for j in range(units):
            low, high = lines.lower[i, j], lines.upper[i, j]
            unstable = low < zero and high > zero
            stable_slope = one if low >= zero else zero
            lines.unstable[i, j] = unstable
            slope = high / (high - low) if unstable else stable_slope
            lines.slope[i, j] = slope
            above = max(-slope * low, high - slope * high + slack * high)
            lines.intercept[i, j] = above * (one + slack) + least if unstable else zero


@jit
def relax_back(G, lines, slopes, fixed, betas, any_fixed, factors, A, constant):
    """The backward step through a ReLU.

    G, slopes, fixed, betas : (n, units).  Writes the slopes that G selects to `factors` and
    ``G * factors - fixed * beta`` to `A`, and adds the intercepts to `constant`, (n,).
    """
    n, units = G.shape
    zero = G.dtype.type(0)
    for i in range(n):
        total = zero
        for j in range(units):
            g = G[i, j]
            below = slopes[i, j] if lines.unstable[i, j] else lines.slope[i, j]
            factor = lines.slope[i, j] if g < zero else below
            factors[i, j] = factor
            A[i, j] = g * factor
            total += min(g, zero) * lines.intercept[i, j]
        if any_fixed:
            for j in range(units):
                if fixed[i, j] != 0:
                    A[i, j] -= betas[i, j] if fixed[i, j] > 0 else -betas[i, j]
        constant[i] += total


@jit
def minimize(C, limits, constant, values, points, better):
    """The smallest value of ``<C_i, z> + constant_i`` on the ball, and where; C : (n, d).

    `better` says where it is above `values`, which are raised.
    """
    n, d = C.shape
    for i in range(n):
        _minimizer(C[i], limits, points[i])
        value = constant[i]
        for j in range(d):
            value += C[i, j] * points[i, j]
        better[i] = value > values[i]
        if better[i]:
            values[i] = value


@jit
def _minimizer(w, limits, z):
    """Twin of `ball.minimizer` for one function w : (d,); writes z : (d,)."""
    d = len(w)
    x, low, high, radius = limits.x, limits.low, limits.high, limits.radius
    zero = w.dtype.type(0)
    if limits.norm == LINF:
        for j in range(d):
            z[j] = low[j] if w[j] > zero else high[j]
            if w[j] == zero:
                z[j] = x[j]
    elif limits.norm == L2:
        level = _level(w, limits)
        for j in range(d):
            z[j] = x[j] if w[j] == zero else min(max(x[j] - level * w[j], low[j]), high[j])
    else:
        order = np.argsort(-np.abs(w))
        left = radius
        for j in range(d):
            z[j] = x[j]
        for j in order:
            if not (left > zero and w[j] != zero):
                break
            room = x[j] - low[j] if w[j] > zero else high[j] - x[j]
            step = min(room, left)
            z[j] = x[j] - step if w[j] > zero else x[j] + step
            left -= step


@jit
def _level(w, limits):
    """The largest level for which ``min(reach, level |w|)`` is no longer than the radius.

    From below: a coordinate that has reached the box stays there.  Infinite where all have.
    """
    zero, infinite = w.dtype.type(0), w.dtype.type(np.inf)
    one_more = w.dtype.type(1.000001)
    level = zero
    for _ in range(LEVELS):
        filled, rate = zero, zero
        for j in range(len(w)):
            size = abs(w[j])
            reach = limits.x[j] - limits.low[j] if w[j] > zero else limits.high[j] - limits.x[j]
            if level * size >= reach:
                filled += reach * reach
            else:
                rate += size * size
        if not rate > zero:
            return infinite
        higher = np.sqrt(max(limits.radius * limits.radius - filled, zero) / rate)
        if not higher > level * one_more:
            level = max(level, higher)
            break
        level = higher
    return level


@jit
def keep(better, slopes, betas, best_slopes, best_betas):
    """Copy the parameters of better nodes: (n, units) each, better : (n,) bool."""
    for i in range(len(better)):
        if better[i]:
            best_slopes[i, :] = slopes[i, :]
            best_betas[i, :] = betas[i, :]


@jit
def step_forward(
    f, G, lines, factors, fixed, any_fixed, sizes, numbers, move, means, moments, slopes, betas, g
):
    """The forward step through a relaxed ReLU, and the ascent step of its slopes and multipliers.

    All (n, units) but sizes : (n,), the unit of multipliers; moments : (4, n, units); and
    numbers : (6,): weight, rate, two decays, two corrections.  Writes g, the relaxed activation.
    """
    n, units = f.shape
    zero, one = f.dtype.type(0), f.dtype.type(1)
    tiny = f.dtype.type(1e-30)
    weight, rate, d1, d2, c1, c2 = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5],
    )  # fmt: skip
    for i in range(n):
        for j in range(units):
            z, coefficient = f[i, j], G[i, j]
            means[i, j] += weight * z
            intercept = lines.intercept[i, j] if coefficient < zero else zero
            g[i, j] = factors[i, j] * z + intercept
        if not move:
            continue
        for j in range(units):
            free = lines.unstable[i, j] and G[i, j] > zero
            gradient = G[i, j] * f[i, j] if free else zero
            m = moments[0, i, j] + (one - d1) * (gradient - moments[0, i, j])
            v = moments[1, i, j] + (one - d2) * (gradient * gradient - moments[1, i, j])
            moments[0, i, j], moments[1, i, j] = m, v
            moved = slopes[i, j] + rate * (m * c1) / (np.sqrt(v * c2) + tiny)
            slopes[i, j] = min(max(moved, zero), one)
        if any_fixed:
            for j in range(units):
                if fixed[i, j] != 0:
                    gradient = -f[i, j] if fixed[i, j] > 0 else f[i, j]
                    m = moments[2, i, j] + (one - d1) * (gradient - moments[2, i, j])
                    v = moments[3, i, j] + (one - d2) * (gradient * gradient - moments[3, i, j])
                    moments[2, i, j], moments[3, i, j] = m, v
                    moved = rate * sizes[i] * (m * c1) / (np.sqrt(v * c2) + tiny)
                    betas[i, j] = max(betas[i, j] + moved, zero)


@jit
def score(G, means, share, lines, slopes, tie, scores):
    """Twin of `ascent.score`; arrays (n, units), ``share * means`` are averages."""
    n, units = G.shape
    zero, minus = G.dtype.type(0), G.dtype.type(-1)
    for i in range(n):
        for j in range(units):
            z = min(max(share * means[i, j], lines.lower[i, j]), lines.upper[i, j])
            relu = max(z, zero)
            if G[i, j] < zero:
                gap = lines.slope[i, j] * z + lines.intercept[i, j] - relu
            else:
                gap = relu - slopes[i, j] * z
            gap = abs(G[i, j]) * (gap + tie * lines.intercept[i, j])
            scores[i, j] = gap if lines.unstable[i, j] else minus


@jit
def _lagrangian(w, q, c, e, beta, limits, h, z):
    """The bound of `clipping.clip` for one beta in floats, and its derivative.

    w, c : (d,); h, z : (d,) are overwritten.  In l_inf, w and c are multiplied by half the widths
    of the ball within the box, and q and e are the values at its center.
    """
    value, slope = 0.0, 0.0
    if limits.norm == LINF:
        for j in range(len(w)):
            part = w[j] + beta * c[j]
            value -= abs(part)
            slope -= c[j] if part > 0.0 else -c[j]
        return value + q + beta * e, slope + e
    for j in range(len(w)):
        h[j] = w[j] + beta * c[j]
    _minimizer(h, limits, z)
    for j in range(len(w)):
        slope += c[j] * z[j]
    return _minimum(h, limits) + q + beta * e, slope + e


@jit
def _minimum(w, limits):
    """``min <w, z>`` over an l_1 or l_2 ball within a box: twin of `ball.largest_gain`.

    By weak duality the multiplier, however rounded, gives a lower bound.
    """
    x, low, high, radius = limits.x, limits.low, limits.high, limits.radius
    total, gain = 0.0, 0.0
    if limits.norm == L2:
        level = _level(w, limits)
        for j in range(len(w)):
            total += w[j] * x[j]
        t = 1.0 / level
        if not (radius > SMALL and t < 1.0 / SMALL):
            return np.nan
        gain = t * radius * radius / 2.0
        for j in range(len(w)):
            size = abs(w[j])
            reach = x[j] - low[j] if w[j] > 0.0 else high[j] - x[j]
            if size >= t * reach:
                gain += reach * (size - t * reach / 2.0)
            else:
                gain += size * size / (2.0 * t)
        return total - gain
    order = np.argsort(-np.abs(w))
    left, t = radius, 0.0
    for j in order:
        t = abs(w[j])
        left -= x[j] - low[j] if w[j] > 0.0 else high[j] - x[j]
        if not left > 0.0 or t == 0.0:
            break
    else:
        t = 0.0
    gain = t * radius
    for j in range(len(w)):
        total += w[j] * x[j]
        reach = x[j] - low[j] if w[j] > 0.0 else high[j] - x[j]
        gain += max(abs(w[j]) - t, 0.0) * reach if abs(w[j]) > t else 0.0
    return total - gain


@jit
def _rounded_down(value, size, cut_size, beta, error, allowance):
    """A bound with its rounding error subtracted, see `clipping._lagrangian`."""
    terms = 4.0 * (size + beta * cut_size)
    below = value - error * terms - allowance * (1.0 + beta)
    return below if -np.inf < below < np.inf else -np.inf


@jit
def clip(
    A,
    constant,
    sizes,
    norms,
    c,
    e,
    cut_sizes,
    cut_norms,
    wanted,
    limits,
    error,
    allowance,
    steps,
    values,
):
    """Twin of `clipping.clip_nodes`: A : (m, d), c : (n, d), wanted, values : (n, m)."""
    h, z = np.empty(A.shape[1]), np.empty(A.shape[1])
    for i in range(len(c)):
        for m in range(len(A)):
            if not wanted[i, m]:
                continue
            size, cut_size = sizes[m], cut_sizes[i]
            v0, s0 = _lagrangian(A[m], constant[m], c[i], e[i], 0.0, limits, h, z)
            best = _rounded_down(v0, size, cut_size, 0.0, error, allowance)
            first = abs(v0)
            b0, b1, v1, s1 = 0.0, np.inf, 0.0, 0.0
            beta = norms[m] / cut_norms[i]
            for _ in range(steps):
                if not (s0 > 0.0 and b0 < beta < b1):
                    break
                value, slope = _lagrangian(A[m], constant[m], c[i], e[i], beta, limits, h, z)
                best = max(best, _rounded_down(value, size, cut_size, beta, error, allowance))
                if slope > 0.0:
                    b0, v0, s0 = beta, value, slope
                else:
                    b1, v1, s1 = beta, value, slope
                if b1 < np.inf:
                    if not s0 > s1:
                        break
                    beta = (v1 - s1 * b1 - v0 + s0 * b0) / (s0 - s1)
                    if v0 + s0 * (beta - b0) - best < CLOSE * first:
                        break
                else:
                    beta = 4.0 * b0
            values[i, m] = best
