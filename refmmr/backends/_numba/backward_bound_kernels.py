"""The compiled loops of `refmmr.backends._numba.backward_bound`.

Each works on a block of `Rows`.  A row of a convolution's unit only touches a window of the image
before it, which may reach over the edge of the image: there is padding, 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.reference import ball, rounding

# Compiled into the kernels: remove their caches when these change.
SMALLEST_NORMAL = rounding.SMALLEST_NORMAL
SMALL = ball.SMALL


class Rows(NamedTuple):
    """T linear functions of the activations (or the inputs) of a layer, each of one sample.

    A vector is an image of one pixel.
    """

    owner: np.ndarray  # (T,), the sample
    origin: np.ndarray  # (T, 2), row and column of the window's first pixel, may be negative
    window: tuple[int, int, int]  # height, width, channels of a window
    image: tuple[int, int, int]  # and of the image that it is of
    A: np.ndarray  # (T, numbers of a window), coefficients
    constant: np.ndarray  # (T,)
    error: np.ndarray  # (T,)


class Relaxed(NamedTuple):
    """What the rows meet at a hidden layer: its relaxations and magnitudes on n balls."""

    lower_slope: np.ndarray  # (n, units), see `refmmr.reference.relaxation.Relaxation`
    upper_slope: np.ndarray
    intercept: np.ndarray
    terms: np.ndarray  # (n, units), see `refmmr.reference.rounding.Magnitude`
    inputs: np.ndarray  # (n,)


class Balls(NamedTuple):
    """Balls around n points within a box: the twin of `refmmr.reference.ball.Ball`."""

    x: np.ndarray  # (n, d)
    radius: np.ndarray  # (n,)
    l1: bool  # else l_2; boxes of l_inf are intervals
    boxed: bool
    lo: np.ndarray  # (n, d), or (1, d) for one box; infinite without a box
    hi: np.ndarray


@jit
def relax_units(low, high, crown, slack, relaxed):
    """Twin of `relaxation.relu_relaxation`, with the slopes of CROWN or Fast-Lin.

    Parameters
    ----------
    low, high : (n, units)
    crown : bool
    slack : float
        Of the intercept.
    relaxed : Relaxed
        Its slopes and intercepts are written.
    """
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            down, up = low[i, j], high[i, j]
            lower = upper = intercept = 0.0
            if down >= 0:
                lower = upper = 1.0
            elif up > 0:
                upper = up / (up - down)
                intercept = max(-upper * down, up - upper * up + slack * up) * (1 + slack)
                intercept += slack * SMALLEST_NORMAL
                lower = upper
                if crown:
                    lower = 1.0 if up > -down else 0.0
            elif not up <= 0:  # not a number
                lower = upper = intercept = np.nan
            relaxed.lower_slope[i, j] = lower
            relaxed.upper_slope[i, j] = upper
            relaxed.intercept[i, j] = intercept


@jit
def relax_rows(rows, relaxed, b, factor):
    """Replace activations by their relaxations, and add the layer's biases and rounding errors.

    A step of `backward_bound.backward_bound`: from ``G g_k`` to ``A f_k``.

    Parameters
    ----------
    rows : Rows
        G is overwritten by A; constant and error are added to.
    relaxed : Relaxed
        Of hidden layer k.
    b : (channels,)
        Biases of layer k.
    factor : float
        `rounding.backward_factor`.
    """
    height, width, channels = rows.window
    image_height, image_width, _ = rows.image
    A = rows.A
    for t in range(len(A)):
        i = rows.owner[t]
        gain = size = 0.0
        for y in range(height):
            for x in range(width):
                pixel = (y * width + x) * channels
                row, column = rows.origin[t, 0] + y, rows.origin[t, 1] + x
                if not (0 <= row < image_height and 0 <= column < image_width):
                    for c in range(channels):
                        A[t, pixel + c] = 0
                    continue
                unit = (row * image_width + column) * channels
                for c in range(channels):
                    a = A[t, pixel + c]
                    below = a < 0
                    gain += relaxed.intercept[i, unit + c] * (a if below else 0.0)
                    slope = relaxed.upper_slope[i, unit + c]
                    a *= slope if below else relaxed.lower_slope[i, unit + c]
                    gain += a * b[c]
                    size += abs(a) * relaxed.terms[i, unit + c]
                    A[t, pixel + c] = a
        rows.constant[t] += gain
        rows.error[t] += factor * (size + SMALLEST_NORMAL * (1 + relaxed.inputs[i]))


@jit
def fold_windows(products, height, width, kernel, run, down, across, stride, A):
    """Sum, for each row, what the pixels of its window contribute to the image before.

    The end of a convolution's ``A W_k`` (`layers.Conv2d.transpose`).  A pixel's products are
    `kernel` runs of `run` numbers, one for each line of the kernel.

    Parameters
    ----------
    products : (T * height * width, kernel * run)
        ``A W_k`` of each pixel.
    height, width : int
        Of the windows of the layer's output.
    kernel, run : int
        Height of the kernel; its width times the channels of the image before.
    down, across : int
        Lines between windows below each other, numbers between windows side by side.
    stride : int
        Numbers in a line of the windows of the image before.
    A : (T, numbers of a window of the image before)
        Is overwritten.
    """
    A[:] = 0
    for t in range(len(A)):
        for y in range(height):
            for x in range(width):
                pixel = (t * height + y) * width + x
                for k in range(kernel):
                    first = (y * down + k) * stride + x * across
                    for c in range(run):
                        A[t, first + c] += products[pixel, k * run + c]


@jit
def interval_minimum(rows, lowest, highest):
    """The smallest value of each row where every number lies between bounds (n, numbers): (T,).

    The margins of IBP, and the end of a backward bound in l_inf.
    """
    height, width, channels = rows.window
    image_height, image_width, _ = rows.image
    values = np.zeros(len(rows.A))
    for t in range(len(rows.A)):
        i = rows.owner[t]
        total = 0.0
        for y in range(height):
            for x in range(width):
                row, column = rows.origin[t, 0] + y, rows.origin[t, 1] + x
                if not (0 <= row < image_height and 0 <= column < image_width):
                    continue
                pixel, first = (y * width + x) * channels, (row * image_width + column) * channels
                for c in range(channels):
                    a = rows.A[t, pixel + c]
                    total += a * (lowest[i, first + c] if a > 0 else highest[i, first + c])
        values[t] = total
    return values


@jit
def ball_minimum(rows, balls):
    """The smallest value of each row on an l_1 or l_2 ball within the box: (T,).

    Twin of `backward_bound.LinearBound.minimum` and `ball.largest_gain`.
    """
    height, width, channels = rows.window
    image_height, image_width, _ = rows.image
    A, x = rows.A, balls.x
    values = np.zeros(len(A))
    slopes, reach = np.empty(A.shape[1]), np.empty(A.shape[1])
    for t in range(len(A)):
        i = rows.owner[t]
        own = i if len(balls.lo) > 1 else 0
        lo, hi = balls.lo[own], balls.hi[own]
        total = scale = 0.0
        count = 0
        for y in range(height):
            for z in range(width):
                row, column = rows.origin[t, 0] + y, rows.origin[t, 1] + z
                if not (0 <= row < image_height and 0 <= column < image_width):
                    continue
                pixel, first = (y * width + z) * channels, (row * image_width + column) * channels
                for c in range(channels):
                    a, center = A[t, pixel + c], x[i, first + c]
                    down, up = center - lo[first + c], hi[first + c] - center
                    total += a * center
                    scale += abs(a)
                    slopes[count + c] = abs(a)
                    reach[count + c] = down if a > 0 else up
                count += channels
        radius = balls.radius[i]
        if scale == 0 or radius == 0:
            gain = 0.0
        elif balls.l1:
            gain = _l1_gain(slopes, reach, count, radius, balls.boxed)
        else:
            gain = _l2_gain(slopes, reach, count, radius, scale, balls.boxed)
        values[t] = total - gain
    return values


@jit
def _l1_gain(slopes, reach, count, radius, boxed):
    """Twin of `ball._l1_gain`: find the multiplier by going down the slopes, without a sort.

    slopes, reach : (d,), the first `count` entries count.  Coordinates that cannot move are passed
    over.  Without a box the steepest one moves by the radius.
    """
    multiplier, length = np.inf, 0.0
    while length < radius:
        following = 0.0
        for j in range(count):
            if following < slopes[j] < multiplier and reach[j] > 0:
                following = slopes[j]
        multiplier = following
        if not multiplier > 0 or not boxed:
            break
        for j in range(count):
            if slopes[j] == multiplier:
                length += reach[j]
    gain = multiplier * radius
    if boxed:
        for j in range(count):
            if slopes[j] > multiplier:
                gain += (slopes[j] - multiplier) * reach[j]
    return gain


@jit
def _l2_gain(slopes, reach, count, radius, scale, boxed):
    """Twin of `ball._l2_gain`: raise the level ``1 / t`` until the length is the radius.

    slopes, reach : (d,), the first `count` entries count; the slopes are divided by `scale`, their
    sum, instead of the largest one: a sum is vectorised.  Coordinates that have reached the box
    stay there, so a few passes over them suffice.
    """
    gain = 0.0
    if boxed and not radius > SMALL:
        for j in range(count):
            gain += slopes[j] * min(reach[j], radius)
        return gain
    square = 0.0
    for j in range(count):
        slopes[j] /= scale
        square += slopes[j] * slopes[j]
    length = np.sqrt(square)
    if not boxed:
        return radius * (scale * length)
    level = radius / length
    multiplier = 1 / level
    while True:
        filled = rate = 0.0
        for j in range(count):
            w, end = slopes[j], reach[j]
            stopped = w * level >= end
            filled += end * end if stopped and w > 0 else 0.0
            rate += 0.0 if stopped else w * w
        if not rate > 0:
            multiplier = 1 / level if filled >= radius * radius else 0.0
            break
        raised = np.sqrt(max(radius * radius - filled, 0.0) / rate)
        if not raised > level:
            multiplier = 1 / level
            break
        level = raised
    for j in range(count):
        w, end = slopes[j], reach[j]
        own = w * w / (2 * multiplier)
        gain += end * (w - multiplier * end / 2) if w >= multiplier * end else own
    return scale * (gain + multiplier * radius * radius / 2 + SMALL * radius)
