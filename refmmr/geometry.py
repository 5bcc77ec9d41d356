"""Linear regions, distances and the regularizer, on the current backend."""

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

    ``Q(x) = { z : (2 s_k - 1) (V_k z + a_k) >= 0 for every hidden layer k }``, with the activation
    pattern ``s_k = 1[f_k(x) > 0]``; on it ``f_k(z) = V_k z + a_k``.

    Parameters
    ----------
    net : Network
    x : array_like, shape (*input_shape)
        One input.

    Returns
    -------
    LinearRegion
        With ``.V`` and ``.a`` (one per layer with weights, (N_k, d) and (N_k,)), ``.pattern`` (N,),
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
    >>> hidden, last = rm.Linear([[1, 0], [0, 1]], [0, 0]), rm.Linear([[1, -1]], [0])
    >>> net = rm.Network([hidden, last], 2)
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
    p: float | str = 2,
    box: Any = None,
) -> Distances:
    """Distances of points to the hyperplanes of all hidden units and to the decision boundaries.

    ``boundary[k, i] = |f_k(x)_i| / ||V_k[i]||_q`` and ``decision[s] = (f(x)_y - f(x)_s) / ||V[y] -
    V[s]||_q``, with ``1/p + 1/q = 1``, ``V_k`` the rows of the affine map of layer k on the linear
    region of x, and ``V`` those of the logits.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        The class of each point, true or predicted.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    box : (lo, hi) or None
        Measure to the part of each hyperplane within ``lo <= z <= hi`` (numbers, or arrays of the
        shape of an input): a distance that is equal or larger.  None, the default, measures in the
        whole space, as the regularizer does (the default of `refmmr.certify` is ``(0, 1)``).

    Returns
    -------
    Distances
        ``.boundary``, shape (n, N): to the hyperplane ``V_k[i] z + a_k[i] = 0`` of each hidden
        unit; ``.decision``, shape (n, K): to the decision boundary with each class, negative where
        the other class has the larger logit, inf in the class's own column.  Infinite where there
        is no such hyperplane (``V_k[i] = 0``), or none within the box.  In units of the input.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, unknown norms.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): the distances d_B and d_D.

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
    p: float | str = 2,
    *,
    gamma_b: float | None = None,
    gamma_d: float | None = None,
    gamma: float | tuple[float, float] | None = None,
    k_b: int | None = None,
    k_d: int | None = None,
) -> MMR:
    """The Maximum Margin Regularizer (MMR) of each point.

    ``1/k_B sum_{j <= k_B} max(0, 1 - d_B^(j)/gamma_B) + 1/k_D sum_{j <= k_D} max(0, 1 -
    d_D^(j)/gamma_D)``, with d^(j) the j-th smallest distance of `distances`.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
        The norm of the distances; "l1", "l2" and "linf" are understood too.
    gamma_b, gamma_d : float
        Target distances: a region boundary at least gamma_b away, a decision boundary at least
        gamma_d away, adds nothing.
    gamma : float or (gamma_b, gamma_d)
        Both in one argument, as `refmmr.fit` takes them; instead of gamma_b and gamma_d.
    k_b : int, optional
        Number of region boundaries that count, the nearest ones, 1 to N; a tenth of the hidden
        units if not given, as at the start of the authors' training.
    k_d : int, optional
        Number of decision boundaries that count, 1 to K; K if not given.  The class itself is among
        them, at an infinite distance, as in the authors' training.

    Returns
    -------
    MMR
        ``.value``, ``.boundary_term`` and ``.decision_term``, each of shape (n,).  A hyperplane
        that does not exist adds nothing.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, unknown norms, gammas that are not
        positive or given twice, k larger than the number of units or classes.

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
    return _kernels.mmr(net, X, y, p, *_targets(net, gamma_b, gamma_d, gamma, k_b, k_d))


def mmr_gradient(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float | str = 2,
    *,
    gamma_b: float | None = None,
    gamma_d: float | None = None,
    gamma: float | tuple[float, float] | None = None,
    k_b: int | None = None,
    k_d: int | None = None,
) -> tuple[float, Gradients]:
    """Mean of the regularizer over a batch, and its gradient with respect to all weights.

    Parameters and errors are those of `mmr`.

    Returns
    -------
    value : float
        Mean of ``mmr(...).value``.
    gradients : list of (dW, db)
        One pair per layer with weights, of the shapes of its W and b.

    References
    ----------
    Derived by hand in `refmmr.reference.mmr`.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> value, gradients = rm.mmr_gradient(
    ...     net, [[1.0, 0.5]], [0], p=2, gamma_b=2, gamma_d=1
    ... )
    >>> [(dW.shape, db.shape) for dW, db in gradients]
    [((1, 2), (1,)), ((2, 1), (2,))]
    """
    X, y, p = _batch(net, X, y, p)
    return _kernels.mmr_gradient(net, X, y, p, *_targets(net, gamma_b, gamma_d, gamma, k_b, k_d))


def _batch(
    net: Network, X: ArrayLike, y: ArrayLike, p: Any
) -> tuple[np.ndarray, np.ndarray, float]:
    X = check.check_inputs(net, X)
    return X, check.check_labels(y, len(X), net.n_classes), check.check_p(p)


def _targets(
    net: Network, gamma_b: Any, gamma_d: Any, gamma: Any, k_b: Any, k_d: Any
) -> tuple[float, float, int, int]:
    """The checked gamma_B, gamma_D, k_B and k_D of the regularizer."""
    names = "gamma_b", "gamma_d"
    if gamma is not None:
        if gamma_b is not None or gamma_d is not None:
            raise TypeError("gamma: expected either gamma or gamma_b and gamma_d, got both")
        gamma_b, gamma_d = check.check_gammas(gamma)
        names = "gamma", "gamma"
    if k_b is None:
        k_b = max(1, round(0.1 * net.n_hidden))
    if k_d is None:
        k_d = net.n_classes
    return (
        check.check_number(names[0], gamma_b),
        check.check_number(names[1], gamma_d),
        check.check_count("k_b", k_b, 1, max(1, net.n_hidden), " (the number of hidden units)"),
        check.check_count("k_d", k_d, 1, net.n_classes, " (the number of classes)"),
    )
