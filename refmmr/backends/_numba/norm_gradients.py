"""Gradients of dual norms, of rows and of columns: twins of `hyperplanes.dual_norm_gradient`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr.backends._numba.jit import jit


def norm_gradients(
    rows: np.ndarray,
    samples: np.ndarray,
    units: np.ndarray,
    weights: np.ndarray,
    ps: Sequence[float],
    order: np.ndarray | None,
) -> np.ndarray:
    """``sum weight * grad ||v||_q`` over norms for rows ``v = rows[sample, unit]``.

    Twin of `hyperplanes.dual_norm_gradient`.

    Parameters
    ----------
    rows : ndarray, shape (c, u, m)
    samples, units : ndarray of int, shape (r,)
    weights : ndarray, shape (norms, r)
    ps : sequence of float
        The p of each norm.
    order : ndarray of int, shape (m,), optional
        Index of each number in the user's order: for q = inf the first of the largest counts.

    Returns
    -------
    ndarray, shape (r, m)
    """
    parts = np.empty((len(ps), len(samples), rows.shape[-1]), rows.dtype)
    if order is None:
        order = np.arange(rows.shape[-1])
    for p, weight, G in zip(ps, weights, parts, strict=True):
        _norm_gradients(rows, samples, units, weight, p, order, G)
    return _sum(parts)


@jit
def _norm_gradients(rows, samples, units, weights, p, order, G):
    """The loop of `norm_gradients`, with its shapes; G: (r, m), the result."""
    for r in range(len(samples)):
        v, g, weight = rows[samples[r], units[r]], G[r], weights[r]
        if p == 2:
            total = rows.dtype.type(0)
            for j in range(len(v)):
                total += v[j] * v[j]
            scale = weight / np.sqrt(total)
            for j in range(len(v)):
                g[j] = scale * v[j]
        elif p == 1:
            best = 0
            for j in range(len(v)):
                g[j] = 0
                size, largest = abs(v[j]), abs(v[best])
                if size > largest or (size == largest and order[j] < order[best]):
                    best = j
            g[best] = weight if v[best] > 0 else -weight
        else:
            for j in range(len(v)):
                g[j] = weight if v[j] > 0 else (-weight if v[j] < 0 else 0)


def column_norm_gradients(
    columns: np.ndarray,
    here: np.ndarray,
    weights: np.ndarray,
    ps: Sequence[float],
    order: np.ndarray,
) -> np.ndarray:
    """``sum weight * grad ||v||_q`` over norms of some columns v: those numbered `here` of (d, m).

    Twin of `hyperplanes.dual_norm_gradient`; here (r,), weights (norms, r), order (d,): of each
    number its index in the user's order, for q = inf the first of the largest counts.  Returns
    (d, r).
    """
    parts = np.empty((len(ps), len(columns), len(here)), columns.dtype)
    for p, weight, G in zip(ps, weights, parts, strict=True):
        _column_norm_gradients(columns, here, weight, p, order, G)
    return _sum(parts)


def _sum(parts):
    """The sum along the first axis; of one part the part itself."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


@jit
def _column_norm_gradients(columns, here, weights, p, order, G):
    """The loop of `column_norm_gradients`, with its shapes; G: (d, r), the result."""
    d, r = G.shape
    if p == 1:
        G[:] = 0
        for u in range(r):
            best = 0
            for j in range(d):
                size, largest = abs(columns[j, here[u]]), abs(columns[best, here[u]])
                if size > largest or (size == largest and order[j] < order[best]):
                    best = j
            G[best, u] = weights[u] if columns[best, here[u]] > 0 else -weights[u]
        return
    scales = weights.copy()
    if p == 2:
        squares = np.zeros(r, columns.dtype)
        for j in range(d):
            for u in range(r):
                squares[u] += columns[j, here[u]] * columns[j, here[u]]
        for u in range(r):
            scales[u] = weights[u] / np.sqrt(squares[u])
    for j in range(d):
        row, g = columns[j], G[j]
        for u in range(r):
            g[u] = row[here[u]]
        for u in range(r):
            if p == 2:
                g[u] *= scales[u]
            else:
                g[u] = scales[u] if g[u] > 0 else (-scales[u] if g[u] < 0 else 0)
