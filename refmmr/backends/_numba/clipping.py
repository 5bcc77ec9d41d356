"""Bounds on half-spaces: twin of `refmmr.reference.clipping`; its loops are in `ascent_kernels`."""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba import ascent_kernels as kernels
from refmmr.backends._numba.ascent import LEAST, limits_of
from refmmr.reference import clipping as reference
from refmmr.reference.ball import SMALL, Ball
from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor


@implements("numba", reference.clip_nodes)
def clip_nodes(
    ball: Ball,
    A: np.ndarray,
    constant: np.ndarray,
    c: np.ndarray,
    e: np.ndarray,
    wanted: np.ndarray,
    steps: int,
) -> np.ndarray:
    """Twin of `refmmr.reference.clipping.clip_nodes`."""
    values = np.full(wanted.shape, -np.inf)
    limits = limits_of(None, ball, np.dtype(np.float64))
    largest = np.maximum(np.abs(limits.low), np.abs(limits.high))
    error = rounding_factor(8 * A.shape[1] + 64)
    sizes, cut_sizes = np.abs(A) @ largest + np.abs(constant), np.abs(c) @ largest + np.abs(e)
    # Products that underflow; in l_2 squares do, too.
    smallest = SMALL if ball.p == 2 else SMALLEST_NORMAL
    allowance = A.shape[1] * smallest * (1 + largest.sum())
    norms = np.abs(A).sum(axis=1)
    cut_norms = np.abs(c).sum(axis=1)
    if ball.p == np.inf:
        # ``<w, z>`` lies within ``sum_j |w_j| half_j`` of its value at the center.
        center, half = (limits.low + limits.high) / 2, (limits.high - limits.low) / 2
        constant, e = A @ center + constant, c @ center + e
        A, c = A * half, c * half

    def part(start, stop):
        some = slice(start, stop)
        kernels.clip(
            A, constant, sizes, norms, c[some], e[some], cut_sizes[some], cut_norms[some],
            wanted[some], limits,
            error, allowance, steps, values[some],
        )  # fmt: skip

    threads.spread(part, len(c), least=LEAST)
    return values
