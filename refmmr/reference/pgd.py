"""Projected gradient descent, an attack (Madry et al. 2018): an upper bound on robustness."""

from __future__ import annotations

import numpy as np

from refmmr.reference.hyperplanes import norm
from refmmr.reference.loss import input_gradient, margins, odds_gradient
from refmmr.reference.network import Network


def pgd(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    eps: float,
    steps: int,
    step_size: float,
    box: tuple[np.ndarray, np.ndarray] | None,
    start: np.ndarray,
    keep_last: bool = False,
) -> np.ndarray:
    """Increase the cross-entropy within ``||z - x||_p <= eps`` and the box.

    One step is ``z <- project(z + step_size * u)``, with u the direction of steepest ascent in l_p.
    It does not depend on the length of the gradient, so any increasing function of the
    cross-entropy gives the same steps.  The gradient of the log-odds is used: it does not vanish
    where the margin is large.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
        True classes.
    p : {1, 2, inf}
    eps, step_size : float
    steps : int
    box : (lo, hi) or None
        Arrays that broadcast against an input.
    start : ndarray, shape (n, *input_shape)
        First iterates, in the ball and the box.
    keep_last : bool
        Return the last iterates instead of those of smallest margin.

    Returns
    -------
    ndarray, shape (n, *input_shape)
    """
    Z = start
    best, best_margin = Z, np.full(len(X), np.inf, dtype=X.dtype)
    for _ in range(steps):
        logits, gradient = input_gradient(net, Z, y, odds_gradient)
        best, best_margin = _better(best, best_margin, Z, margins(logits, y))
        Z = project(X, Z + step_size * steepest(_inward(gradient, Z, box), p), p, eps, box)
    if keep_last:
        return Z
    return _better(best, best_margin, Z, margins(net.logits(Z), y))[0]


def steepest(gradient: np.ndarray, p: float) -> np.ndarray:
    """The direction of steepest ascent, of l_p length 1; 0 for a zero gradient.

    l_inf: the sign.  l_2: the gradient itself.  l_1: the largest coordinate alone; coordinates that
    share the largest size share the step.
    """
    g = gradient.reshape(len(gradient), -1)
    largest = np.abs(g).max(axis=1, keepdims=True)
    g = g / np.where(largest > 0, largest, 1)  # no square of it can underflow
    if p == np.inf:
        direction = np.sign(g)
    elif p == 2:
        length = norm(g, 2)[:, None]
        direction = g / np.where(length > 0, length, 1)
    else:
        direction = np.sign(g) * (np.abs(g) == 1)
        direction = direction / np.maximum(norm(direction, 1), 1)[:, None]
    return direction.reshape(gradient.shape)


def project(
    X: np.ndarray,
    Z: np.ndarray,
    p: float,
    eps: float,
    box: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """Project Z onto the ball around X, then clip it to the box.

    X is in the box, so clipping moves every coordinate towards X, and the point stays in the ball.
    """
    delta = (Z - X).reshape(len(X), -1)
    if p == np.inf:
        delta = np.clip(delta, -eps, eps)
    elif p == 2:
        length = norm(delta, 2)[:, None]
        delta = delta * np.minimum(1, eps / np.where(length > 0, length, 1))
    else:
        delta = _onto_l1_ball(delta, eps)
    Z = X + delta.reshape(X.shape)
    return Z if box is None else np.clip(Z, *box)


def random_start(
    X: np.ndarray,
    p: float,
    eps: float,
    box: tuple[np.ndarray, np.ndarray] | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """A random point of each ball within the box: `random_displacement`, clipped."""
    return displaced(X, random_displacement(X.shape, p, eps, rng, X.dtype), box)


def random_displacement(
    shape: tuple[int, ...], p: float, eps: float, rng: np.random.Generator, dtype: np.dtype
) -> np.ndarray:
    """A random point of the ball around 0 for each sample, of a shape (n, *input_shape).

    l_inf: uniform in the ball.  l_1 and l_2: from a normal distribution, projected onto the ball.
    """
    if p == np.inf:
        return (2 * rng.random(shape, dtype) - 1) * eps
    delta = rng.standard_normal(shape, dtype)
    return project(np.zeros_like(delta), delta, p, eps, None)


def displaced(
    X: np.ndarray, delta: np.ndarray, box: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """``X + delta`` within the box."""
    return X + delta if box is None else np.clip(X + delta, *box)


def _onto_l1_ball(delta: np.ndarray, eps: float) -> np.ndarray:
    """The nearest point (l_2) of the l_1 ball, by soft thresholding (Duchi et al. 2008).

    Sort the absolute values in descending order.  If i of them exceed the threshold, it is ``(sum
    of the first i - eps) / i``; i is the largest number for which the i-th value exceeds it.
    """
    size = np.abs(delta)
    descending = -np.sort(-size, axis=1)
    counts = np.arange(1, delta.shape[1] + 1, dtype=delta.dtype)
    thresholds = (np.cumsum(descending, axis=1) - eps) / counts
    last = np.maximum((descending > thresholds).sum(axis=1) - 1, 0)
    threshold = np.maximum(thresholds[np.arange(len(delta)), last], 0)[:, None]
    return np.sign(delta) * np.maximum(size - threshold, 0)


def _inward(gradient, Z, box):
    """The gradient, with 0 in the coordinates in which Z is at the box and could only leave it."""
    if box is None:
        return gradient
    lo, hi = box
    blocked = ((lo >= Z) & (gradient < 0)) | ((hi <= Z) & (gradient > 0))
    return np.where(blocked, 0, gradient)


def _better(best, best_margin, Z, margin):
    """Keep, for each sample, the point with the smaller margin."""
    better = margin < best_margin
    keep = better.reshape(-1, *[1] * (Z.ndim - 1))
    return np.where(keep, Z, best), np.where(better, margin, best_margin)
