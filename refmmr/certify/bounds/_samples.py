"""Methods that bound one sample after the other, each until its time is over."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from refmmr import _examples
from refmmr.certify.bounds import Bounds
from refmmr.reference.loss import margins
from refmmr.reference.network import Network

BoundOne = Callable[[int, float | None, np.ndarray | None, float], tuple[float, np.ndarray | None]]
"""From the number of a sample, its radius to decide about or None, a verified example or None, and
the time of `time.monotonic` at which to stop, to a lower bound and an example or None."""


def one_by_one(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    bound: BoundOne,
    goal: np.ndarray | None = None,
    *,
    max_seconds: float | None = None,
    upper: np.ndarray | None = None,
    adversarial: np.ndarray | None = None,
) -> Bounds:
    """Bounds of the samples that are classified right and not yet known to be attacked.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, 2, inf}
    bound : callable
        The method, for one sample: see `BoundOne`.
    goal : ndarray, shape (n,), optional
        Radii to decide about; a sample with a nearer example needs no decision.
    max_seconds : float, optional
        For each sample.
    upper, adversarial : ndarray, shapes (n,) and (n, *input_shape), optional
        Verified adversarial examples and their distances, infinite and NaN where none is known.

    Returns
    -------
    Bounds
        Lower bounds are 0 where the method was not asked.
    """
    lower = np.zeros(len(X))
    best = np.full(len(X), np.inf) if upper is None else upper.copy()
    found = np.full(X.shape, np.nan) if adversarial is None else adversarial.copy()
    wrong = _examples.misclassified(net, X, y)
    best[wrong], found[wrong] = 0, X[wrong]
    for i in np.flatnonzero((margins(net.logits(X), y) > 0) & ~wrong).tolist():
        deadline = np.inf if max_seconds is None else time.monotonic() + max_seconds
        if goal is not None and best[i] < goal[i]:
            continue
        known = None if np.isinf(best[i]) else found[i]
        lower[i], example = bound(i, None if goal is None else float(goal[i]), known, deadline)
        if example is not None and (length := distance(X[i], example, p)) < best[i]:
            best[i], found[i] = length, example
    return Bounds(np.minimum(lower, best), best, found)


def distance(x: np.ndarray, z: np.ndarray, p: float) -> float:
    """``||z - x||_p`` of two inputs, rounded up."""
    return float(_examples.distance_rounded_up(x[None], z[None], p)[0])
