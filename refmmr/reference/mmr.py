"""The Maximum Margin Regularizer and its gradient, derived by hand.

For one sample (Croce, Andriushchenko, Hein 2019)

    MMR = 1/k_B sum_{j <= k_B} max(0, 1 - d_B^(j) / gamma_B)
        + 1/k_D sum_{j <= k_D} max(0, 1 - d_D^(j) / gamma_D),

with d^(j) the j-th smallest distance.  Minimised in training, it pushes the nearest region and
decision boundaries away until they are at distance gamma.

The gradient is the chain rule in three steps.

1. Hinge to distance: ``-1 / (k gamma)`` for the selected boundaries nearer than gamma, else 0.
2. Distance ``d = |f| / ||v||_q`` to the hyperplane: ``dd/df = sign(f) / ||v||`` and
   ``dd/dv = -|f| / ||v||^2 * grad ||v||``.
3. Hyperplane to weights: f is the pre-activation of the *sample*, and the entries of v are those of
   the *probes*.  So it is backpropagation twice: once over the sample, once over the probes.

The masks are treated as constants: they change only where some distance is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.affine import chunks
from refmmr.reference.distances import (
    Hyperplanes,
    Measured,
    distances,
    hyperplanes_around,
    measure,
)
from refmmr.reference.hyperplanes import divide, dual_norm_gradient
from refmmr.reference.network import Gradients, Network, add_mean, unflat, zero_gradients


class Regularizer(NamedTuple):
    """A term ``lam * MMR`` of a training objective, in one norm."""

    p: float  # the norm of the distances: 1, 2 or inf
    lam: float  # the weight
    gamma_b: float  # target distances
    gamma_d: float
    k_b: int  # boundaries in each mean
    k_d: int


class MMR(NamedTuple):
    """The regularizer of each sample and its two terms.

    Returned by `mmr`.

    Attributes
    ----------
    value : ndarray, shape (n,)
        The sum of the two terms.
    boundary_term, decision_term : ndarray, shape (n,)
        From the region boundaries, ``1/k_B sum_{j <= k_B} max(0, 1 - d_B^(j) / gamma_B)``, and from
        the decision boundaries.
    """

    value: np.ndarray
    boundary_term: np.ndarray
    decision_term: np.ndarray


def mmr(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> MMR:
    """Value of the regularizer for each sample.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
        True classes.
    p : {1, 2, inf}
        The norm that distances are measured in.
    gamma_b, gamma_d : float
        Target distances: a region boundary at least gamma_b away, or a decision boundary at least
        gamma_d away, contributes 0.
    k_b, k_d : int
        Number of nearest boundaries in each mean.  Class y itself counts as infinitely far.

    Returns
    -------
    MMR
    """
    d_B, d_D = distances(net, X, y, p)
    boundary_term, _ = _mean_hinge(d_B, select_nearest(d_B, k_b), gamma_b, k_b)
    decision_term, _ = _mean_hinge(d_D, select_nearest(d_D, k_d), gamma_d, k_d)
    return MMR(boundary_term + decision_term, boundary_term, decision_term)


def mmr_gradient(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> tuple[float, Gradients]:
    """Mean of the regularizer over the batch, and its gradient with respect to the weights.

    Parameters are those of `mmr`.

    Returns
    -------
    value : float
    gradients : list of (dW, db), one per affine layer
    """
    term = Regularizer(p, 1.0, gamma_b, gamma_d, k_b, k_d)
    value, gradients = 0.0, zero_gradients(net)
    for rows in chunks(net, len(X), X.itemsize):
        hyperplanes = hyperplanes_around(net, X[rows], y[rows])
        d = measure(hyperplanes, y[rows], p)
        values, df_sample, df_probes = partial_derivatives(
            net, hyperplanes, y[rows], term, d, select_nearest(d.boundary, k_b)
        )
        value += float(values.sum()) / len(X)
        add_mean(gradients, two_backprops(net, hyperplanes, df_sample, df_probes), len(X))
    return value, gradients


def partial_derivatives(
    net: Network,
    hyperplanes: Hyperplanes,
    y: np.ndarray,
    term: Regularizer,
    d: Measured,
    counted: np.ndarray,
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Values of ``lam * MMR``, (n,), and steps 1 and 2 of the gradient of their sum.

    `d` has the distances in the norm of the term; `counted`, (n, N) bool, says which region
    boundaries count: the k_B nearest of each sample.

    Returns
    -------
    values : ndarray, shape (n,)
    df_sample, df_probes : list of ndarray
        Gradients with respect to the pre-activations of the samples and of the probes, layer by
        layer.
    """
    p, lam, gamma_b, gamma_d, k_b, k_d = term
    value_B, slope_B = _mean_hinge(d.boundary, counted, gamma_b, k_b)
    value_D, slope_D = _mean_hinge(d.decision, select_nearest(d.decision, k_d), gamma_d, k_d)
    df, dV_norms = _distance_gradients(lam * slope_B, d.boundary, d.boundary_norms)
    dmargin, dR_norms = _distance_gradients(lam * slope_D, d.decision, d.decision_norms)
    dR = dR_norms[:, None, :] * dual_norm_gradient(hyperplanes.R, p, axis=1)

    df_sample = [
        *unflat(np.sign(hyperplanes.f) * df, net.unit_shapes),
        _margins_to_logits(dmargin, y),
    ]
    df_probes = [
        *_norms_to_rows(hyperplanes, p, dV_norms),
        _as_shared(_margins_to_logits(dR, y), hyperplanes.probes.outputs[-1]),
    ]
    return lam * (value_B + value_D), df_sample, df_probes


def _distance_gradients(slope, d, norms):
    """Step 2: gradients with respect to ``|f|`` and to the norm ``||v||`` of each hyperplane.

    ``d = |f| / ||v||``, so ``dd/d|f| = 1 / ||v||`` and ``dd/d||v|| = -d / ||v||``.  Where the slope
    of the hinge is 0, d may be infinite; it is replaced by 0, because 0 times infinity is NaN.
    """
    return divide(slope, norms), -divide(slope * np.where(slope != 0, d, 0), norms)


def _margins_to_logits(dmargin: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gradients with respect to the logits from those of the margins ``f_y - f_s``, (n, ..., K)."""
    dlogits = -dmargin
    dlogits[np.arange(len(y)), ..., y] += dmargin.sum(axis=-1)
    return dlogits


def _norms_to_rows(hyperplanes: Hyperplanes, p: float, dnorms: np.ndarray) -> list[np.ndarray]:
    """Gradient with respect to V of each hidden layer, (n or 1, d, N_k)."""
    per_layer = unflat(dnorms, [(v.shape[2],) for v in hyperplanes.V])
    return [
        _as_shared(dnorm, v)[:, None, :] * dual_norm_gradient(v, p, axis=1)
        for v, dnorm in zip(hyperplanes.V, per_layer, strict=True)
    ]


def two_backprops(
    net: Network,
    hyperplanes: Hyperplanes,
    df_sample: Sequence[np.ndarray],
    df_probes: Sequence[np.ndarray],
) -> Gradients:
    """Step 3: backpropagation over the samples, and over the probes; summed over the samples.

    The probes do not depend on the biases, so they contribute to dW alone.
    """
    sums = []
    for cache, df in ((hyperplanes.cache, df_sample), (hyperplanes.probes, df_probes)):
        shaped = [g.reshape(f.shape) for g, f in zip(df, cache.outputs, strict=True)]
        sums.append(net.weight_gradients(cache, net.backward(cache, shaped)))
    return [(dW + dW_probes, db) for (dW, db), (dW_probes, _) in zip(*sums, strict=True)]


def select_nearest(d: np.ndarray, k: int) -> np.ndarray:
    """Which are the k smallest distances of each row, the first ones of equals: (n, m) bool.

    A hyperplane that does not exist is infinitely far, with either sign.
    """
    order = np.argsort(np.where(d == -np.inf, np.inf, d), axis=1, kind="stable")
    selected = np.zeros(d.shape, bool)
    np.put_along_axis(selected, order[:, :k], True, axis=1)
    return selected


def _mean_hinge(
    d: np.ndarray, selected: np.ndarray, gamma: float, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """``1/k sum max(0, 1 - d / gamma)`` over the selected distances of each row.

    Returns
    -------
    value : ndarray, shape (n,)
    slope : ndarray, shape (n, m)
        Its derivative with respect to each distance: ``-1 / (k gamma)``, or 0 where the hinge is.
    """
    active = selected & (d < gamma) & (d > -np.inf)
    value = np.where(active, 1 - np.where(active, d, 0) / gamma, 0).sum(axis=1) / k
    return value, np.where(active, -1 / (k * gamma), 0).astype(d.dtype)


def _as_shared(g: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Sum over the samples where all of them read one shared array."""
    return g.sum(axis=0, keepdims=True) if len(shared) < len(g) else g
