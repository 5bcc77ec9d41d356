"""Branch and bound along the inputs, for networks of few inputs.

A box on which the bounds leave a clause open is halved along the coordinate that moves the open row
most, by its gradient at the center times the width; the halves are bounded again (Wang et al. 2018,
ReluVal).  With few inputs this converges faster than splits of units: the relaxations of all units
get better together.
"""

from __future__ import annotations

import time

import numpy as np

from refmmr import _kernels
from refmmr.certify._clauses import Rows
from refmmr.certify._counterexamples import Examples
from refmmr.network import Network

BATCH = 512
"""Boxes that are bounded together."""

MAX_INPUTS = 12
"""Coordinates that move: with more, each halving tightens the bounds too little."""


def split_inputs(
    net: Network,
    rows: Rows,
    n_clauses: int,
    box: tuple[np.ndarray, np.ndarray],
    f_size: np.ndarray,
    examples: Examples,
    deadline: float,
) -> bool:
    """Whether no clause has a counterexample in the box; False if one is found or time is over.

    Parameters
    ----------
    net : Network
    rows : Rows
        Of the clauses.
    n_clauses : int
    box : (lo, hi), each (d,)
    f_size : ndarray, shape (K,)
        Bounds of the absolute outputs on the box.
    examples : Examples
        Is called with centers of boxes.
    deadline : float
        Time of `time.monotonic`.

    Returns
    -------
    bool
    """
    # Boxes wait on a stack, and the newest come first: so it stays short.
    stack = [(box[0][None], box[1][None], np.ones((1, n_clauses), dtype=bool))]
    while stack:
        if time.monotonic() > deadline:
            return False
        lo, hi, waiting = _pop(stack)
        lower = lower_bounds(net, rows, lo, hi, f_size)
        left = waiting & rows.open_clauses(lower, n_clauses)
        some = left.any(axis=1)
        if not some.any():
            continue
        lo, hi, left, lower = lo[some], hi[some], left[some], lower[some]
        middle = lo + (hi - lo) / 2
        if examples(middle):
            return False
        halves = _halve(net, rows, lo, hi, middle, left, lower)
        if halves is None:
            return False
        stack.append(halves)
    return True


def lower_bounds(
    net: Network, rows: Rows, lo: np.ndarray, hi: np.ndarray, f_size: np.ndarray
) -> np.ndarray:
    """Lower bounds of all rows on boxes (n, d), in real arithmetic: (n, M)."""
    shape = (-1, *net.input_shape)
    middle = np.clip(lo + (hi - lo) / 2, lo, hi)
    # A ball around the center that holds the box, whatever was rounded.
    radius = 2 * (hi - lo).max(axis=1)
    box = lo.reshape(shape), hi.reshape(shape)
    with np.errstate(over="ignore", invalid="ignore"):
        below = _kernels.row_bounds(
            net, middle.reshape(shape), rows.C[None], np.inf, radius, box, "crown"
        )
        return rows.lower(below, lo, hi, f_size)


def _pop(stack):
    """The newest boxes."""
    taken, count = [], 0
    while stack and count < BATCH:
        taken.append(stack.pop())
        count += len(taken[-1][0])
    parts = [np.concatenate(columns) for columns in zip(*taken, strict=True)]
    if count > BATCH:
        stack.append(tuple(part[BATCH:] for part in parts))
    return (part[:BATCH] for part in parts)


def _halve(net, rows, lo, hi, middle, left, lower):
    """Both halves of each box; None if a box is too small to be halved."""
    n = np.arange(len(lo))
    # Of the open clauses, the row that is nearest to being proved: its clause needs no other.
    nearest = np.where(left[:, rows.clause], lower, -np.inf).argmax(axis=1)
    cache = net.forward(middle.reshape(-1, *net.input_shape))
    deltas = net.backward(cache, net.at_logits(rows.C[nearest]))
    gradient = net.input_gradient(deltas).reshape(len(lo), -1) + rows.D[nearest]
    width = hi - lo
    score = np.abs(gradient) * width
    # Where the gradient vanishes, which it does not in all of the box, the widest side counts.
    score = score + 1e-3 * score.max(axis=1, keepdims=True) * width / width.max(
        axis=1, keepdims=True, initial=np.finfo(float).tiny
    )
    score = np.where(score.max(axis=1, keepdims=True) > 0, score, width)
    inside = (lo < middle) & (middle < hi)
    if not inside.any(axis=1).all():
        return None
    split = np.where(inside, score, -1).argmax(axis=1)
    upper_lo, lower_hi = lo.copy(), hi.copy()
    upper_lo[n, split] = lower_hi[n, split] = middle[n, split]
    return (
        np.concatenate([lo, upper_lo]), np.concatenate([lower_hi, hi]),
        np.concatenate([left, left]),
    )  # fmt: skip
