"""Regions, distances and the regularizer: arguments checked, then handed to the current backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _kernels
from refmmr import _validate as check
from refmmr.network import Network
from refmmr.reference import affine as _affine
from refmmr.reference.affine import LinearRegion
from refmmr.reference.distances import Distances
from refmmr.reference.mmr import MMR
from refmmr.reference.network import Gradients

__all__ = ["MMR", "Distances", "LinearRegion", "distances", "linear_region", "mmr", "mmr_gradient"]


def linear_region(net: Network, x: ArrayLike) -> LinearRegion:
    """The linear region of a point: the polytope around it on which the network is affine.

    Parameters
    ----------
    net : Network
    x : array_like, shape (*input_shape)
        One input.

    Returns
    -------
    LinearRegion
        With ``.V`` and ``.a`` (one per layer with weights, ``f_k(z) = V_k z + a_k``), ``.pattern``,
        ``.halfspaces`` ``(A, b)`` such that the region is ``{ z : A z <= b }``, ``.contains(Z)``
        and ``.logits(Z)``.  Inputs are flat in V and A: an image is a vector of its d pixels.

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, NaN or infinite entries.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): the linear region Q(x).

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[1, 0], [0, 1]], [0, 0]), rm.Linear([[1, -1]], [0])], 2)
    >>> region = rm.linear_region(net, [1.0, -2.0])
    >>> region.pattern
    array([ True, False])
    >>> region.V[-1]
    array([[1., 0.]])
    """
    return _affine.linear_region(net, check.check_input(net, x))


def distances(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float = 2,
    box: Any = None,
) -> Distances:
    """Distances of points to the boundaries of their linear regions and to the decision boundaries.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        The class of each point, true or predicted.
    p : {1, 2, inf}
        The norm.
    box : (lo, hi) or None
        Measure within ``lo <= z <= hi`` (numbers, or arrays of the shape of an input), where hyperplanes
        are as far or farther; None: in the whole space.

    Returns
    -------
    Distances
        ``.boundary``, shape (n, N), to the hyperplane ``f_k(z)_i = 0`` of each hidden unit, taken as it
        continues from the point's own region; ``.decision``, shape (n, K), to the decision boundary
        with each class, negative on its wrong side, inf in the class's own column.  Infinite where
        there is no such hyperplane (or the box misses it).  In the units of the input, in l_p.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, unknown norms.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): d_B and d_D.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> d = rm.distances(net, [[1.0, 0.5]], [0], p=2)
    >>> d.boundary
    array([[1.]])
    >>> d.decision
    array([[inf, 0.8]])
    """
    X, y, p = _batch(net, X, y, p)
    return _kernels.distances(net, X, y, p, check.check_box(box, X))


def mmr(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float = 2,
    *,
    gamma_b: float,
    gamma_d: float,
    k_b: int | None = None,
    k_d: int | None = None,
) -> MMR:
    """The Maximum Margin Regularizer of each point.

    ``1/k_B sum_{j <= k_B} max(0, 1 - d_B^(j)/gamma_B) + 1/k_D sum_{j <= k_D} max(0, 1 -
    d_D^(j)/gamma_D)``, with d^(j) the j-th smallest distance of `distances`.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
        The norm that distances are measured in.
    gamma_b, gamma_d : float
        Distance from which on a region boundary, a decision boundary, costs nothing.
    k_b : int, optional
        How many region boundaries count, 1 to N; a tenth of the hidden units if not given, as at
        the start of the authors' training.
    k_d : int, optional
        How many decision boundaries count, 1 to K; K if not given.  The class itself counts among
        them, as infinitely far, as in the authors' training.

    Returns
    -------
    MMR
        ``.value``, ``.boundary_term`` and ``.decision_term``, each of shape (n,).  A hyperplane that does
        not exist costs nothing.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, unknown norms, gammas that are not
        positive, k larger than the number of units or classes.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): the Maximum Margin Regularizer.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> rm.mmr(net, [[1.0, 0.5]], [0], p=2, gamma_b=2, gamma_d=1).boundary_term
    array([0.5])
    """
    X, y, p = _batch(net, X, y, p)
    return _kernels.mmr(net, X, y, p, *_margins(net, gamma_b, gamma_d, k_b, k_d))


def mmr_gradient(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float = 2,
    *,
    gamma_b: float,
    gamma_d: float,
    k_b: int | None = None,
    k_d: int | None = None,
) -> tuple[float, Gradients]:
    """Mean of the regularizer over a batch, and its gradient to all weights, derived by hand.

    Parameters and errors are those of `mmr`.

    Returns
    -------
    value : float
        Mean of ``mmr(...).value``.
    gradients : list of (dW, db)
        One pair per layer with weights, of the shapes of its W and b.

    References
    ----------
    `refmmr.reference.mmr` tells the derivation.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> value, gradients = rm.mmr_gradient(net, [[1.0, 0.5]], [0], p=2, gamma_b=2, gamma_d=1)
    >>> [(dW.shape, db.shape) for dW, db in gradients]
    [((1, 2), (1,)), ((2, 1), (2,))]
    """
    X, y, p = _batch(net, X, y, p)
    return _kernels.mmr_gradient(net, X, y, p, *_margins(net, gamma_b, gamma_d, k_b, k_d))


def _batch(
    net: Network, X: ArrayLike, y: ArrayLike, p: Any
) -> tuple[np.ndarray, np.ndarray, float]:
    X = check.check_inputs(net, X)
    return X, check.check_labels(y, len(X), net.n_classes), check.check_p(p)


def _margins(
    net: Network, gamma_b: Any, gamma_d: Any, k_b: Any, k_d: Any
) -> tuple[float, float, int, int]:
    most = max(1, net.n_hidden)
    if k_b is None:
        k_b = max(1, round(0.1 * net.n_hidden))
    if k_d is None:
        k_d = net.n_classes
    return (
        check.check_number("gamma_b", gamma_b),
        check.check_number("gamma_d", gamma_d),
        check.check_count("k_b", k_b, 1, most, " (the number of hidden units)"),
        check.check_count("k_d", k_d, 1, net.n_classes, " (the number of classes)"),
    )
