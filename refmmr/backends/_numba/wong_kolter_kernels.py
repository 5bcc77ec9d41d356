"""Compiled steps of the twin of `refmmr.reference.wong_kolter`, on blocks of rows.

A *row* holds the coefficients of one linear function of one sample with respect to the input of
some layer, an image ``(height, width, channels)``; a vector is an image of one pixel.  A unit of a
convolution depends on a window of that image only, its receptive field, and the row is that
window.  A window may reach outside of the image: those coefficients are set to 0 once
(`clear_padding`), and every other kernel skips them.

The kernels go through a row line by line, by several short loops over slices that stay in cache:
one loop over many arrays would not be vectorised, as any two of them might overlap.  All records
that they read are defined here, see `jit`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit


class Windows(NamedTuple):
    """Where T rows lie in the input of a layer."""

    owner: np.ndarray  # (T,), the sample of each row
    place: np.ndarray  # (T,), the output pixel of each row's unit
    origins: np.ndarray  # (places, 2), line and column of the first pixel of a place's window
    height: int  # of the windows
    width: int
    channels: int
    image_height: int
    image_width: int


class Relaxed(NamedTuple):
    """A hidden layer of n samples with relaxed ReLUs, and the gradients to add to."""

    slope: np.ndarray  # (n, units)
    intercept: np.ndarray  # (n, units)
    bias: np.ndarray  # (units,)
    dslope: np.ndarray  # (n, units)
    dintercept: np.ndarray  # (n, units)


class Terms(NamedTuple):
    """``lower = center - eps norm + below`` and ``upper = center + eps norm + above``, (T,) each.

    The gradients with respect to the terms are kept in a record of the same kind.
    """

    center: np.ndarray
    norm: np.ndarray
    below: np.ndarray
    above: np.ndarray


@jit
def _inside(windows, t):
    """The part of row t inside of the image.

    Lines [first, last) of the window, numbers [begin, end) of each line, and the position in the
    image of the window's first number, which may be negative.
    """
    run, image_run = windows.width * windows.channels, windows.image_width * windows.channels
    origin = windows.origins[windows.place[t]]
    top, left = origin[0], origin[1] * windows.channels
    first, begin = min(windows.height, max(0, -top)), min(run, max(0, -left))
    last = max(first, min(windows.height, windows.image_height - top))
    end = max(begin, min(run, image_run - left))
    return first, last, begin, end, top * image_run + left


@jit
def _line(windows, i, begin, end, start):
    """Line i of a row as slices: of the row, and of the image."""
    run, image_run = windows.width * windows.channels, windows.image_width * windows.channels
    inside = slice(i * run + begin, i * run + end)
    return inside, slice(start + i * image_run + begin, start + i * image_run + end)


@jit
def clear_padding(rows, windows):
    """Set the coefficients outside of the image to 0: padding has no pixels.

    rows: (T, numbers of a window), changed in place.
    """
    run = windows.width * windows.channels
    for t in range(len(rows)):
        first, last, begin, end, _ = _inside(windows, t)
        row = rows[t]
        row[: first * run] = 0
        row[last * run :] = 0
        for i in range(first, last):
            row[i * run : i * run + begin] = 0
            row[i * run + end : (i + 1) * run] = 0


@jit
def relax(rows, windows, layer, terms):
    """From G behind a ReLU to A before it, with the layer's part of the terms.

    Twin of ``A = G s``, ``center += A b``, ``below += min(G, 0) t`` and ``above += max(G, 0) t`` in
    `reference.wong_kolter._linear_bounds`.

    rows: (T, numbers of a window), G, then A.  layer: Relaxed.  terms: Terms, added to.
    """
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        n = windows.owner[t]
        center = below = above = zero
        first, last, begin, end, start = _inside(windows, t)
        for i in range(first, last):
            line, pixels = _line(windows, i, begin, end, start)
            g = rows[t, line]
            slope = layer.slope[n, pixels]
            intercept = layer.intercept[n, pixels]
            bias = layer.bias[pixels]
            for c in range(len(g)):
                a = g[c]
                below += min(a, zero) * intercept[c]
                above += max(a, zero) * intercept[c]
                a *= slope[c]
                center += a * bias[c]
                g[c] = a
        terms.center[t] += center
        terms.below[t] += below
        terms.above[t] += above


@jit
def relax_gradient(drows, rows, windows, layer, dterms):
    """The chain rule of `relax`, from dA to dG.

    Twin of ``dA += dcenter b``, ``ds += dA G``, ``dt += dl min(G, 0) + du max(G, 0)`` and
    ``dG = dA s + (dl 1[G < 0] + du 1[G > 0]) t`` in `reference.wong_kolter`.

    drows: (T, numbers of a window), dA without the biases' part, then dG.  rows: the same shape, G,
    then A.  layer: Relaxed, whose gradients are added to.  dterms: Terms.
    """
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        n = windows.owner[t]
        dcenter, dbelow, dabove = dterms.center[t], dterms.below[t], dterms.above[t]
        first, last, begin, end, start = _inside(windows, t)
        for i in range(first, last):
            line, pixels = _line(windows, i, begin, end, start)
            d, g = drows[t, line], rows[t, line]
            slope = layer.slope[n, pixels]
            intercept = layer.intercept[n, pixels]
            dslope = layer.dslope[n, pixels]
            dintercept = layer.dintercept[n, pixels]
            bias = layer.bias[pixels]
            for c in range(len(g)):
                dintercept[c] += dbelow * min(g[c], zero) + dabove * max(g[c], zero)
            for c in range(len(g)):
                d[c] += dcenter * bias[c]
            for c in range(len(g)):
                dslope[c] += d[c] * g[c]
            for c in range(len(g)):
                dterm = dbelow if g[c] < 0 else (dabove if g[c] > 0 else zero)
                d[c] = d[c] * slope[c] + dterm * intercept[c]
            for c in range(len(g)):
                g[c] *= slope[c]


@jit
def input_terms(rows, windows, x, p, center, norm):
    """At the input of the network: ``center += G x`` and ``norm = ||G||_q``.

    rows: (T, numbers of a window), G of the first layer.  x: (n, d).  p: float.  center, norm:
    (T,), added to and set.
    """
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        product = size = zero
        first, last, begin, end, start = _inside(windows, t)
        for i in range(first, last):
            line, pixels = _line(windows, i, begin, end, start)
            g = rows[t, line]
            z = x[windows.owner[t], pixels]
            for c in range(len(g)):
                product += g[c] * z[c]
            if p == 1:
                for c in range(len(g)):
                    size = max(size, abs(g[c]))
            elif p == 2:
                for c in range(len(g)):
                    size += g[c] * g[c]
            else:
                for c in range(len(g)):
                    size += abs(g[c])
        center[t] += product
        norm[t] = np.sqrt(size) if p == 2 else size


@jit
def input_terms_gradient(rows, windows, x, p, norm, dcenter, dnorm):
    """``dG = dcenter x + dnorm grad ||G||_q``: the chain rule of `input_terms`.

    rows: (T, numbers of a window), G, then dG.  x: (n, d).  p: float.  norm, dcenter, dnorm: (T,).
    """
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        row = rows[t]
        largest, dlargest = 0, zero
        if p == 1 and norm[t] > 0:
            largest = _first_largest(row, windows.channels, norm[t])
            dlargest = dnorm[t] if row[largest] > 0 else -dnorm[t]
        scale = dnorm[t] / norm[t] if norm[t] > 0 else zero
        first, last, begin, end, start = _inside(windows, t)
        for i in range(first, last):
            line, pixels = _line(windows, i, begin, end, start)
            g = row[line]
            z = x[windows.owner[t], pixels]
            if p == 1:
                for c in range(len(g)):
                    g[c] = dcenter[t] * z[c]
            elif p == 2:
                for c in range(len(g)):
                    g[c] = dcenter[t] * z[c] + scale * g[c]
            else:
                for c in range(len(g)):
                    sign = dnorm[t] if g[c] > 0 else (-dnorm[t] if g[c] < 0 else zero)
                    g[c] = dcenter[t] * z[c] + sign
        row[largest] += dlargest


@jit
def _first_largest(row, channels, largest):
    """Position of the first of the largest coefficients in the user's order, channel by channel.

    row: (numbers of a window,).  largest: their absolute value, > 0.
    """
    found, best = 0, len(row)
    for j in range(len(row)):
        if abs(row[j]) == largest:
            rank = (j % channels) * (len(row) // channels) + j // channels
            if rank < best:
                found, best = j, rank
    return found


@jit
def add_rows(rows, targets, sign, dW):
    """``dW[target] += sign * row`` of each row: the gradient of taking rows from the weights.

    rows: (T, inputs).  targets: (T,).  dW: (outputs, inputs), added to.
    """
    for t in range(len(rows)):
        target, row = dW[targets[t]], rows[t]
        for j in range(len(row)):
            target[j] += sign * row[j]
