"""Attacks: adversarial examples, whose distances are upper bounds on the robustness of points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _boxes, _examples, _kernels, _minimal_attack, _scaling
from refmmr import _validate as check
from refmmr.network import Network
from refmmr.reference import pgd as reference
from refmmr.reference.loss import margins
from refmmr.reference.pgd import random_start

__all__ = ["minimal_attack", "pgd"]

STEPS, RESTARTS = 60, 5
"""Steps and runs of `minimal_attack`: more bring its examples hardly nearer."""


def pgd(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float | str = 2,
    *,
    eps: float,
    steps: int = 40,
    step_size: float | None = None,
    box: Any = (0, 1),
    scale: ArrayLike | None = None,
    restarts: int = 1,
    rng: int | np.random.Generator | None = 0,
    keep: str = "best",
) -> np.ndarray:
    """Projected gradient ascent on the cross-entropy within an l_p ball and a box.

    Each step is ``z <- project(z + step_size * u)``, with u the vector of l_p length 1 that
    maximises ``<gradient, u>`` and the projection onto ``||z - x||_p <= eps`` and the box.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    eps : float
        Radius of the ball, in units of the input.
    steps : int
        Number of gradient steps.
    step_size : float, optional
        l_p length of a step; ``2 * eps / steps`` if not given, as in the authors' training.
    box : (lo, hi) or None
        The adversarial examples stay in it; arrays of the shape of X give each point its own.
    scale : float or array_like, optional
        A unit for each coordinate, as in `refmmr.certify`: the ball is
        ``||(z - x) / scale||_p <= eps``.
    restarts : int
        Number of runs; the first starts at X, the others at random points of the ball.
    rng : int, numpy.random.Generator or None
        Source of the random starts: a seed or a generator; None for different starts each time.
    keep : {"best", "last"}
        The point of a run that is returned: the one with the smallest margin, or the last one.  Of
        several runs, the point with the smallest margin is returned.

    Returns
    -------
    ndarray, shape (n, *input_shape)
        Points of the ball; those on which the attack failed have class y, see ``net.predict``.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, unknown norms,
        eps or steps that are not positive.

    References
    ----------
    Madry et al. (2018); Croce, Andriushchenko, Hein (2019): the attack behind MMR+at and LB.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[1, 1], [-1, -1]], [-1, 1])], 2)
    >>> rm.pgd(net, [[0.75, 0.5]], [0], p=float("inf"), eps=0.25, steps=1, step_size=0.25)
    array([[0.5 , 0.25]])
    """
    X = check.check_inputs(net, X)
    check.check_classes(net)
    y = check.check_labels(y, len(X), net.n_classes)
    p = check.check_p(p)
    eps = check.check_number("eps", eps)
    steps = check.check_count("steps", steps, 1)
    restarts = check.check_count("restarts", restarts, 1)
    step_size = 2 * eps / steps if step_size is None else check.check_number("step_size", step_size)
    keep_last = check.check_choice("keep", keep, ("best", "last")) == "last"
    inner = check.inward(check.check_box(box, X, own=True), X.dtype)
    units = _scaling.check_scale(scale, net)
    rng = check.check_rng(rng)
    if units is None:
        return _best_of_runs(net, X, y, p, eps, steps, step_size, inner, keep_last, restarts, rng)
    units = check.beside(X, units.astype(X.dtype))
    scaled = _scaling.scaled_network(net, check.on_host(units))
    ends = None if inner is None else (inner[0] / units, inner[1] / units)
    U = _best_of_runs(
        scaled, X / units, y, p, eps, steps, step_size, ends, keep_last, restarts, rng
    )
    return U * units if inner is None else np.clip(U * units, *inner)


def _best_of_runs(net, X, y, p, eps, steps, step_size, box, keep_last, restarts, rng):
    """The first run starts at X, the others at random; the points of smallest margin."""
    # The compiled attacks know one box for all points.
    attack = reference.pgd if _boxes.is_own(box, X) else _kernels.pgd
    best = attack(net, X, y, p, eps, steps, step_size, box, X, keep_last)
    for _ in range(restarts - 1):
        start = _random_start(rng, X, p, eps, box)
        Z = attack(net, X, y, p, eps, steps, step_size, box, start, keep_last)
        better = check.beside(X, _margins(net, Z, y) < _margins(net, best, y))
        best = np.where(better.reshape(-1, *[1] * (X.ndim - 1)), Z, best)
    return best


def minimal_attack(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float | str = 2,
    *,
    box: Any = (0, 1),
    scale: ArrayLike | None = None,
    steps: int = STEPS,
    restarts: int = RESTARTS,
    rng: int | np.random.Generator | None = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Find near adversarial examples: their distances bound the minimal perturbations from above.

    Each step projects onto a decision boundary of the affine map around the current point, so that
    a run moves along the decision boundary towards x (FAB, Croce and Hein 2020).

    Parameters
    ----------
    net : Network
        Its weights are taken as exact real numbers; the computation is in float64.
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    box : (lo, hi) or None
        The adversarial examples stay in it; arrays of the shape of X give each point its own.
    scale : float or array_like, optional
        A unit for each coordinate, as in `refmmr.certify`: distances are
        ``||(z - x) / scale||_p``.
    steps : int
        Steps of each run.
    restarts : int
        Number of runs: the first starts at X and aims at the nearest of all other classes; each of
        the others starts at a random point and aims at one class, the nearest classes first.
    rng : int, numpy.random.Generator or None
        Source of the random starts: a seed or a generator; None for different starts each time.

    Returns
    -------
    X_adv : ndarray of float64, shape (n, *input_shape)
        Misclassified in real arithmetic, not only in floats, and inside the box; NaN where none was
        found; X itself where that is misclassified.
    distances : ndarray, shape (n,)
        Their l_p distances, rounded up; infinite where none was found.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, unknown norms,
        steps or restarts below 1.

    References
    ----------
    Croce, Hein (2020): Minimally distorted adversarial examples with a fast adaptive boundary
    attack.  Moosavi-Dezfooli et al. (2016): DeepFool.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[1, 1], [-1, -1]], [-1, 1])], 2)
    >>> X_adv, distances = rm.minimal_attack(net, [[0.75, 0.5]], [0], p=float("inf"))
    >>> X_adv.round(5), distances.round(5)
    (array([[0.625, 0.375]]), array([0.125]))
    """
    X = check.check_inputs(net, X, device=False).astype(np.float64)
    net = net.astype(np.float64)
    check.check_classes(net)
    y = check.check_labels(y, len(X), net.n_classes, device=False)
    p = check.check_p(p)
    steps = check.check_count("steps", steps, 1)
    restarts = check.check_count("restarts", restarts, 1)
    limits = check.check_box(box, X, own=True)
    units = _scaling.check_scale(scale, net)
    rng = check.check_rng(rng)
    return nearest_examples(net, X, y, p, limits, units, steps, restarts, rng)


def nearest_examples(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: _boxes.Box | None,
    scale: np.ndarray | None,
    steps: int,
    restarts: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """`minimal_attack` for checked arguments: examples and distances."""
    found, distances = np.full(X.shape, np.nan), np.full(len(X), np.inf)
    for rows, own in _boxes.shared(box, X):
        x, labels = X[rows], y[rows]
        if scale is None:
            found[rows], distances[rows] = _minimal_attack.minimal_attack(
                net, x, labels, p, own, steps, restarts, rng
            )
            continue
        points = _scaling.scaled_points(x, p, own, scale)
        U, _ = _minimal_attack.minimal_attack(
            _scaling.scaled_network(net, scale), points.u, labels, p, points.box, steps, restarts,
            rng,
        )  # fmt: skip
        distances[rows], found[rows] = _scaling.verified(net, x, U, labels, p, own, scale)
    if scale is not None:
        wrong = _examples.misclassified(net, X, y)
        found[wrong], distances[wrong] = X[wrong], 0
    return found, distances


def _margins(net, Z, y):
    """Margins on the host, of points that may be on a device."""
    return margins(check.on_host(_kernels.logits(net, Z)), check.on_host(y))


def _random_start(rng, X, p, eps, box):
    """A random point of the ball, drawn on the host."""
    limits = None if box is None else tuple(map(check.on_host, box))
    return check.beside(X, random_start(check.on_host(X), p, eps, limits, rng))
