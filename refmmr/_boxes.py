"""Boxes that the attacker stays in: one for all points, or one for each.

A box is a pair (lo, hi) of arrays of the shape of an input, or of the batch; None is the whole
space.  Methods bound points that share a box; here points are grouped by their boxes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Box = tuple[np.ndarray, np.ndarray]


def is_own(box: Box | None, X: np.ndarray) -> bool:
    """Whether each point of a batch has its own box."""
    return box is not None and box[0].ndim == X.ndim


def take(box: Box | None, X: np.ndarray, rows: slice | np.ndarray) -> Box | None:
    """The box of some points of a batch X."""
    if box is None or not is_own(box, X):
        return box
    return box[0][rows], box[1][rows]


def shared(box: Box | None, X: np.ndarray) -> Iterator[tuple[np.ndarray, Box | None]]:
    """Points of a batch X that share a box: their numbers, and the box, of the shape of an input.

    Examples
    --------
    >>> X = np.zeros((3, 1))
    >>> lo, hi = np.array([[0.0], [-1.0], [0.0]]), np.ones((3, 1))
    >>> [(rows.tolist(), box[0].tolist()) for rows, box in shared((lo, hi), X)]
    [([0, 2], [0.0]), ([1], [-1.0])]
    """
    if box is None or not is_own(box, X):
        yield np.arange(len(X)), box
        return
    lo, hi = box
    groups: dict[bytes, list[int]] = {}
    for i in range(len(X)):
        groups.setdefault(lo[i].tobytes() + hi[i].tobytes(), []).append(i)
    for rows in groups.values():
        yield np.array(rows), (lo[rows[0]], hi[rows[0]])
