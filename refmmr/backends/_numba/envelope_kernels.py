"""The compiled loops of `refmmr.backends._numba.envelope`.

Gradient steps are in float32, in coordinates of the box; the bound of the best step is then
computed in float64 (`_exact_bound`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.reference import ascent, envelope

# Compiled into the kernels: remove their caches when one of them changes.
SHARPNESS = np.float32(envelope.SHARPNESS)
TIE = np.float32(ascent.TIE)
FIRST, SECOND = (np.float32(moment) for moment in ascent.MOMENTS)

LEVELS = 8
"""Newton steps to the level of a unit, at most; it starts from that of the step before."""

CLOSE = np.float32(1e-2)
"""Relative error of the sum at which they stop: any slopes give a valid relaxation."""

INACTIVE, ACTIVE, BELOW, ABOVE = 0, 1, 2, 3
"""Of a unit: its relaxation is exact, or the lower or upper one is used."""


class Fast(NamedTuple):
    """The used units in float32, in coordinates of the box."""

    P: np.ndarray  # (units, d)
    sizes: np.ndarray  # (units, d), |P|
    q: np.ndarray  # (units,)
    upper: np.ndarray  # (units,)
    g: np.ndarray  # (units,), coefficients of their activations
    A: np.ndarray  # (d,), coefficients of the units that are active everywhere
    constant: np.ndarray  # (1,)


class Exact(NamedTuple):
    """The same in float64, in coordinates of the input."""

    W: np.ndarray  # (all units, d)
    used: np.ndarray  # (units,), their numbers
    b: np.ndarray  # (units,)
    low: np.ndarray  # (d,)
    high: np.ndarray
    g: np.ndarray  # (units,)
    A: np.ndarray  # (d,)
    constant: float


class Nodes(NamedTuple):
    """n nodes, arrays (n, units); slopes, multipliers and centers are overwritten."""

    lower: np.ndarray  # float64
    upper: np.ndarray
    fixed: np.ndarray  # int8
    slopes: np.ndarray  # float32
    multipliers: np.ndarray
    centers: np.ndarray  # (n, d)


class Found(NamedTuple):
    """What is written for n nodes."""

    A: np.ndarray  # (n, d) float64
    constant: np.ndarray  # (n,)
    scores: np.ndarray  # (n, units) float32
    points: np.ndarray  # (n, d) float64


class Work(NamedTuple):
    """The state of one node; arrays of units but for t, A, v, (d,), and S."""

    kind: np.ndarray
    slope: np.ndarray  # of the chord
    intercept: np.ndarray
    level: np.ndarray
    weight: np.ndarray  # (2, units), of the slopes S: now, and of the best step
    S: np.ndarray  # (2, units above, d)
    place: np.ndarray  # of a unit in S
    best: np.ndarray  # (2, units), slopes and multipliers
    moments: np.ndarray  # (4, units)
    t: np.ndarray
    A: np.ndarray
    v: np.ndarray


@jit
def _level(sizes, t, upper, level):
    """The level of `envelope.upper_slopes`, by Newton's method between bounds."""
    zero, half, one, two = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
    low, high = -half / SHARPNESS, one + half / SHARPNESS
    for _ in range(LEVELS):
        if not low < level < high:
            level = half * (low + high)
        total, rate = zero, zero
        for i in range(len(t)):
            slope = half + SHARPNESS * (level - t[i])
            total += sizes[i] * min(max(slope, zero), one)
            rate += sizes[i] if zero < slope < one else zero
        excess = total + total - upper
        if abs(excess) <= CLOSE * upper:
            break
        if excess < zero:
            low = level
        else:
            high = level
        level = level - excess / (two * SHARPNESS * rate) if rate > zero else low - one
    return level


@jit
def _mix(fast, work, j, center, share, source, target):
    """Move the upper relaxation of unit j towards that of the center, from one S to another."""
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    P, sizes, t = fast.P[j], fast.sizes[j], work.t
    old, new = work.S[source, work.place[j]], work.S[target, work.place[j]]
    f = fast.q[j]
    for i in range(len(t)):
        f += P[i] * center[i]
        t[i] = half * ((one + center[i]) if P[i] > zero else (one - center[i]))
    work.level[j] = _level(sizes, t, fast.upper[j], work.level[j])
    level = work.level[j]
    value, total, keep = zero, zero, one - share
    for i in range(len(t)):
        slope = min(max(half + SHARPNESS * (level - t[i]), zero), one)
        part = sizes[i] * slope
        value += part * t[i]
        total += part
        t[i] = slope
    value = value + value + max(fast.upper[j] - total - total, zero)
    better = share if value < work.slope[j] * f + work.intercept[j] else zero
    for i in range(len(t)):
        new[i] = keep * old[i] + better * t[i]
    work.weight[target, j] = keep * work.weight[source, j] + better


@jit
def _value(fast, work, slopes, fixed, betas, now):
    """Write A of the bound in coordinates of the box; its constant."""
    zero, one = np.float32(0), np.float32(1)
    A = work.A
    A[:] = fast.A
    constant = fast.constant[0]
    for j in range(len(fast.q)):
        kind, g = work.kind[j], fast.g[j]
        factor = zero
        if kind == ACTIVE:
            factor = g
        elif kind == BELOW:
            factor = g * slopes[j]
        elif kind == ABOVE:
            rest = g * (one - work.weight[now, j])
            factor = rest * work.slope[j]
            constant += rest * work.intercept[j]
        if fixed[j] != 0:
            factor -= betas[j] if fixed[j] > 0 else -betas[j]
        constant += factor * fast.q[j]
        P = fast.P[j]
        if kind == ABOVE:
            S, sizes, total = work.S[now, work.place[j]], fast.sizes[j], zero
            for i in range(len(A)):
                A[i] += (factor + g * S[i]) * P[i]
                total += sizes[i] * S[i]
            constant += g * (total + max(work.weight[now, j] * fast.upper[j] - total - total, zero))
        elif factor != zero:
            for i in range(len(A)):
                A[i] += factor * P[i]
    return constant


@jit
def _step(fast, work, f, j, numbers, size, slopes, fixed, betas):
    """A gradient step of unit j at its pre-activation f: twin of the end of a step of `ascend`.

    numbers : (3,), the length of the step and the corrections of both moments.
    """
    zero, one, tiny = np.float32(0), np.float32(1), np.float32(1e-30)
    rate, c1, c2 = numbers[0], numbers[1], numbers[2]
    m = work.moments
    if work.kind[j] == BELOW:
        gradient = fast.g[j] * f
        m[0, j] += (one - FIRST) * (gradient - m[0, j])
        m[1, j] += (one - SECOND) * (gradient * gradient - m[1, j])
        moved = slopes[j] + rate * (m[0, j] * c1) / (np.sqrt(m[1, j] * c2) + tiny)
        slopes[j] = min(max(moved, zero), one)
    if fixed[j] != 0:
        gradient = -f if fixed[j] > 0 else f
        m[2, j] += (one - FIRST) * (gradient - m[2, j])
        m[3, j] += (one - SECOND) * (gradient * gradient - m[3, j])
        moved = betas[j] + rate * size * (m[2, j] * c1) / (np.sqrt(m[3, j] * c2) + tiny)
        betas[j] = max(moved, zero)


@jit
def _exact_bound(exact, work, lower, upper, fixed, slopes, betas, now, A):
    """The bound in float64: writes A, and returns the constant."""
    A[:] = exact.A
    constant = exact.constant
    low, high = exact.low, exact.high
    for j in range(len(exact.b)):
        kind, g = work.kind[j], exact.g[j]
        factor = 0.0
        if kind == ACTIVE:
            factor = g
        elif kind == BELOW:
            factor = g * slopes[j]
        if fixed[j] != 0:
            factor -= betas[j] if fixed[j] > 0 else -betas[j]
        W = exact.W[exact.used[j]]
        if kind == ABOVE:
            weight = np.float64(work.weight[now, j])
            slope = upper[j] / (upper[j] - lower[j])
            intercept = max(-slope * lower[j], upper[j] - slope * upper[j])
            own, S = factor + g * (1.0 - weight) * slope, work.S[now, work.place[j]]
            least, rest = 0.0, weight * exact.b[j]
            for i in range(len(A)):
                s = min(np.float64(S[i]), weight)
                a, b = W[i] * low[i], W[i] * high[i]
                A[i] += (own + g * s) * W[i]
                least -= s * min(a, b)
                rest += (weight - s) * max(a, b)
            constant += own * exact.b[j] + g * ((1.0 - weight) * intercept + max(least, rest))
        elif factor != 0.0:
            constant += factor * exact.b[j]
            for i in range(len(A)):
                A[i] += factor * W[i]
    return constant


@jit
def _begin(fast, work, nodes, x):
    """Kinds of the units of node x, chords and parameters; the mean size of coefficients."""
    zero, one = np.float32(0), np.float32(1)
    lower, upper, slopes, betas = (
        nodes.lower[x],
        nodes.upper[x],
        nodes.slopes[x],
        nodes.multipliers[x],
    )
    for j in range(len(fast.q)):
        low, high = lower[j], upper[j]
        if low >= 0.0:
            work.kind[j] = ACTIVE
        elif not high > 0.0 or fast.g[j] == zero:
            work.kind[j] = INACTIVE
        else:
            work.kind[j] = BELOW if fast.g[j] > zero else ABOVE
        work.slope[j] = np.float32(high / (high - low)) if work.kind[j] >= BELOW else zero
        work.intercept[j] = -work.slope[j] * np.float32(low)
        if not (zero <= slopes[j] <= one):
            slopes[j] = zero
        if not (zero <= betas[j] < np.float32(np.inf)):
            betas[j] = zero
    work.moments[:] = zero
    work.level[:] = np.float32(0.5)
    center = nodes.centers[x]
    for i in range(len(center)):
        if not (-one <= center[i] <= one):
            center[i] = zero


@jit
def _score(fast, work, nodes, x, now, scores):
    """Twin of the scores of `envelope.ascend`, at the center of node x."""
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    center = nodes.centers[x]
    for j in range(len(fast.q)):
        scores[j] = -one
        if work.kind[j] < BELOW:
            continue
        P, f = fast.P[j], fast.q[j]
        for i in range(len(center)):
            f += P[i] * center[i]
        z = min(max(f, np.float32(nodes.lower[x, j])), np.float32(nodes.upper[x, j]))
        line = nodes.slopes[x, j] * z
        if work.kind[j] == ABOVE:
            S, sizes, total = work.S[now, work.place[j]], fast.sizes[j], zero
            weight = work.weight[now, j]
            line = (one - weight) * (work.slope[j] * z + work.intercept[j])
            for i in range(len(center)):
                line += S[i] * P[i] * center[i]
                total += S[i] * sizes[i]
            line += total + max(weight * fast.upper[j] - two * total, zero)
        gap = abs(line - max(z, zero)) + TIE * work.intercept[j]
        scores[j] = abs(fast.g[j]) * gap


@jit
def ascend(fast, exact, nodes, index, above, shares, numbers, size, found):
    """Twin of `envelope.ascend` for the used units of n nodes.

    index : (units,), of a unit in the arrays of units with g < 0, of which there are `above`;
    shares : (steps + 1,); numbers : (steps, 3), see `_step`; size : the mean coefficient.
    """
    n, units = nodes.lower.shape
    d, steps = fast.P.shape[1], len(numbers)
    f32 = np.float32
    zero, one = f32(0), f32(1)
    work = Work(
        np.empty(units, np.int8), np.empty(units, f32), np.empty(units, f32), np.empty(units, f32),
        np.zeros((2, units), f32), np.empty((2, above, d), f32), index, np.empty((2, units), f32),
        np.empty((4, units), f32), np.empty(d, f32), np.empty(d, f32), np.empty(d, f32),
    )  # fmt: skip
    for x in range(n):
        _begin(fast, work, nodes, x)
        slopes, betas, fixed = nodes.slopes[x], nodes.multipliers[x], nodes.fixed[x]
        center, v = nodes.centers[x], work.v
        best, now, kept = f32(-np.inf), 0, -1
        work.best[0], work.best[1] = slopes, betas
        for step in range(steps + 1):
            # The slopes of the best step are kept: the next ones are written beside them.
            target = 1 - kept if kept >= 0 else now
            if step == 0:
                work.S[target] = zero
                work.weight[target] = zero
            for j in range(units):
                if work.kind[j] == ABOVE:
                    share = one if step == 0 else shares[step]
                    _mix(fast, work, j, center, share, now, target)
            now = target
            value = _value(fast, work, slopes, fixed, betas, now)
            for i in range(d):
                value -= abs(work.A[i])
                v[i] = -one if work.A[i] > zero else one
            if value > best:
                best, kept = value, now
                work.best[0], work.best[1] = slopes, betas
            for i in range(d):
                center[i] += shares[step] * (v[i] - center[i])
            if step == steps:
                break
            for j in range(units):
                if work.kind[j] == BELOW or fixed[j] != 0:
                    P, f = fast.P[j], fast.q[j]
                    for i in range(d):
                        f += P[i] * v[i]
                    _step(fast, work, f, j, numbers[step], size[x], slopes, fixed, betas)
        _score(fast, work, nodes, x, now, found.scores[x])
        slopes[:], betas[:] = work.best[0], work.best[1]
        found.constant[x] = _exact_bound(
            exact, work, nodes.lower[x], nodes.upper[x], fixed, slopes, betas,
            kept if kept >= 0 else now, found.A[x],
        )  # fmt: skip
        for i in range(d):
            found.points[x, i] = exact.high[i] if v[i] > zero else exact.low[i]
