"""Adversarial examples, verified in real arithmetic.

A point z is a *verified example* for a point x of class y if

* ``lo <= z <= hi``, a comparison of floats, which is exact;
* its margin ``f_y - max_{s != y} f_s`` is negative in real arithmetic: the computed margin is
  less than minus a bound on its rounding error (`surely_misclassified`).

Whether x itself is misclassified is decided exactly (`misclassified`), with integers where floats
leave it open.

Its distance is rounded up (`distance_rounded_up`), so it is an upper bound on the minimal
perturbation.  Nothing else about z is trusted: neither the solver nor the attack that proposes it.

Most proposals are projections.  Around any z the network is affine, so the decision boundary with
the largest other logit is a hyperplane there (`linear_margin`).  x is projected onto it and moved
beyond it by a small step (`OVERSHOOTS`): a point on the boundary is not surely misclassified.
"""

from __future__ import annotations

import numpy as np

from refmmr.exact import exact_classes
from refmmr.reference import rounding
from refmmr.reference.hyperplanes import norm, shortest_step, shortest_step_in_box
from refmmr.reference.loss import margins
from refmmr.reference.network import Network

Box = tuple[np.ndarray, np.ndarray]

OVERSHOOTS = (1e-12, 1e-9, 3e-7)
"""Distances beyond a decision boundary, relative to the distance from x, tried in this order.

The first is enough where the margin loses few digits to rounding; the last is still below the
relative tolerance 1e-6 at which a lower and an upper bound count as equal."""

PROJECTIONS = 10
"""Largest number of projections in `bring_nearer`: the region of the example rarely changes more
often."""


def distance_rounded_up(X: np.ndarray, Z: np.ndarray, p: float) -> np.ndarray:
    """``||z - x||_p`` for each pair, at least the distance in real arithmetic.

    Differences, powers and a sum of d terms take fewer than ``2 d + 4`` roundings; twice as many
    are allowed for, which covers the rounding of this product.  A distance that is no normal number
    has fewer digits: the smallest normal number is added.

    Parameters
    ----------
    X : ndarray, shape (n or 1, *input_shape)
    Z : ndarray, shape (n, *input_shape)
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (n,)
    """
    delta = (Z - X).reshape(len(Z), -1)
    distance = norm(delta, p) * (1 + rounding.rounding_factor(4 * delta.shape[1] + 8))
    return np.where(distance > 0, distance + rounding.SMALLEST_NORMAL, 0)


def classes(net: Network, X: np.ndarray) -> np.ndarray:
    """The class of each point in real arithmetic: of the largest logit, the first of equals; (n,).

    Where two logits are nearer to each other than their rounding errors, integers decide
    (`refmmr.exact.exact_classes`).
    """
    labels: np.ndarray = net.logits(X).argmax(axis=1)
    others = misclassified(net, X, labels)
    labels[others] = exact_classes(net, X[others])
    return labels


def misclassified(net: Network, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points whose class in real arithmetic is not y, shape (n,) bool; see `classes`."""
    with np.errstate(over="ignore", invalid="ignore"):
        margin = margins(net.logits(X), y)
        error = rounding.value_errors(net, X)[-1].reshape(len(X), -1).max(axis=1)
    wrong: np.ndarray = margin < 0
    unsure = np.flatnonzero(~(np.abs(margin) > 4 * error))
    wrong[unsure] = exact_classes(net, X[unsure]) != y[unsure]
    return wrong


def surely_misclassified(net: Network, Z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points whose margin is negative in real arithmetic, not only in floats, shape (n,) bool.

    The errors of two logits and of their difference are at most four times the largest error of a
    logit.
    """
    margin = margins(net.logits(Z), y)
    sure = margin < 0
    if sure.any():
        some = Z[sure]
        error = rounding.value_errors(net, some)[-1].reshape(len(some), -1).max(axis=1)
        sure[sure] = margin[sure] < -4 * error
    return sure


def verified_distances(
    net: Network,
    X: np.ndarray,
    Z: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    below: np.ndarray | float = np.inf,
) -> np.ndarray:
    """Distances of the points that are verified examples, infinite for all others.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n or 1, *input_shape)
    Z : ndarray, shape (n, *input_shape)
        The proposed examples.
    y : ndarray of int, shape (n,)
        Classes of X.
    p : {1, 2, inf}
    box : (lo, hi) or None
    below : float or ndarray, shape (n,)
        Only nearer examples count; others are not verified, which saves time.

    Returns
    -------
    ndarray, shape (n,)
        ``||z - x||_p``, rounded up.
    """
    distances = distance_rounded_up(X, Z, p)
    candidates = distances < below
    if box is not None:
        inside = (box[0] <= Z) & (box[1] >= Z)
        candidates &= inside.reshape(len(Z), -1).all(axis=1)
    rows = np.flatnonzero(candidates)
    found = np.full(len(Z), np.inf)
    if len(rows):
        rows = rows[surely_misclassified(net, Z[rows], y[rows])]
        found[rows] = distances[rows]
    return found


def clip(Z: np.ndarray, box: Box | None) -> np.ndarray:
    """The nearest points of the box."""
    return Z if box is None else np.clip(Z, *box)


def projection_steps(
    x: np.ndarray, w: np.ndarray, value: np.ndarray, p: float, box: Box | None
) -> np.ndarray:
    """The shortest steps from x onto the hyperplanes ``value + <w, delta> = 0``.

    Parameters
    ----------
    x, w : ndarray, shape (..., d)
    value : ndarray, shape (...)
        The affine functions at x.
    p : {1, 2, inf}
    box : (lo, hi) or None
        In which x + delta must lie; arrays of any shape with d elements.

    Returns
    -------
    ndarray, shape (..., d)
        Zero where no point of the hyperplane is in the box, and where w = 0.
    """
    if box is not None:
        lo, hi = (end.reshape(-1) for end in box)
        return shortest_step_in_box(x, w, value, lo, hi, p)[1]
    hyperplane = (w != 0).any(axis=-1)[..., None]
    return np.where(hyperplane, shortest_step(np.where(hyperplane, w, 1), value, p), 0)


def linear_margin(
    net: Network, X: np.ndarray, Z: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The margin over the largest other logit at z, extended to x by the affine map around z.

    Parameters
    ----------
    net : Network
    X, Z : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)

    Returns
    -------
    value : ndarray, shape (n,)
        At x: ``m(z) + <w, x - z>``.
    w : ndarray, shape (n, d)
        The gradient of the margin at z.
    """
    n, rows = len(Z), np.arange(len(Z))
    cache = net.forward(Z)
    logits = cache.outputs[-1].reshape(n, -1)
    others = logits.copy()
    others[rows, y] = -np.inf
    rival = others.argmax(axis=1)
    df = np.zeros_like(logits)
    df[rows, y], df[rows, rival] = 1, -1
    deltas = net.backward(cache, net.at_logits(df))
    w = net.input_gradient(deltas).reshape(n, -1)
    value = logits[rows, y] - logits[rows, rival] + (w * (X - Z).reshape(n, -1)).sum(axis=1)
    return value, w


def bring_nearer(
    net: Network, x: np.ndarray, z: np.ndarray, y: int, p: float, box: Box | None
) -> tuple[np.ndarray | None, float]:
    """Project x onto the decision boundary around an example, while this reduces the distance.

    Parameters
    ----------
    net : Network
    x, z : ndarray, shape (*input_shape)
        z need not be an example; it is clipped to the box.
    y : int
    p : {1, 2, inf}
    box : (lo, hi) or None

    Returns
    -------
    adversarial : ndarray of the shape of x, or None
        The nearest verified example, or None.
    distance : float
        Its distance, rounded up, or infinity.
    """
    X, Z, label = x[None], clip(z[None], box), np.full(1, y)
    upper = float(verified_distances(net, X, Z, label, p, box)[0])
    best = Z[0] if upper < np.inf else None
    for _ in range(PROJECTIONS):
        value, w = linear_margin(net, X, Z, label)
        if not value[0] > 0 or not w.any():
            break
        for overshoot in OVERSHOOTS:
            step = projection_steps(X.reshape(1, -1), w, value * (1 + overshoot), p, box)
            nearer = clip(X + step.reshape(X.shape), box)
            distance = float(verified_distances(net, X, nearer, label, p, box, upper)[0])
            if distance < upper:
                Z, best, upper = nearer, nearer[0], distance
                break
        else:
            break
    return best, upper
