"""The loss of Wong and Kolter (2018), a bound of the worst case, and its gradient by hand.

The loss ``log sum_c exp(-m_c)`` is the cross-entropy of lower bounds m_c of the margins
``f_y - f_c`` on the ball ``||z - x||_p <= eps``, with ``m_y = 0``.  It is at least the
cross-entropy of any point of the ball.  No box clips the ball.

**Forward** (also the bound of Fast-Lin, Weng et al. 2018).  Let ``l <= f <= u`` on the ball for
every hidden unit.  A stable unit (l >= 0 or u <= 0) multiplies by a slope s of 1 or 0; the ReLU of
an unstable unit has a linear relaxation with equal slopes,

    s f  <=  max(f, 0)  <=  s f + t,       s = u / (u - l),   t = -s l.

So the coefficients of a linear function ``A f_k`` are propagated to the input like a gradient, and
the intercepts t bound the difference.  For j = k, ..., 1, with ``A_k = A``,

    G_j = A_j W_j,     A_{j-1} = G_j diag(s_{j-1})

    center = sum_j A_j b_j + G_1 x                         reach = eps ||G_1||_q
    lower  = center - reach + sum_j min(G_j, 0) t_{j-1}    (the sums with t: j = 2, ..., k)
    upper  = center + reach + sum_j max(G_j, 0) t_{j-1}

With the identity for A these are the bounds l, u of layer k, which need those of the layers before
it; with the rows ``e_y - e_c`` for A and the logits for f_k they are the bounds of the margins.

**Backward** is the chain rule.  Let dv be the derivative of the loss with respect to v.  From dl
and du of the bounds of ``A f_k``, the formulas above give, the last one first,

    dcenter = dl + du,     dreach = du - dl,     dG_1 = dcenter x + eps dreach grad ||G_1||_q
    for j = 1, ..., k, with sums over the functions in dW, db, ds and dt:
        dW_j += A_j^T dG_j,       db_j += A_j^T dcenter,    dA_j = dG_j W_j^T + dcenter b_j
        ds_j += dA_j * G_{j+1},   dt_j += dl min(G_{j+1}, 0) + du max(G_{j+1}, 0)
        dG_{j+1} = dA_j * s_j + (dl 1[G_{j+1} < 0] + du 1[G_{j+1} > 0]) t_j

The last layer comes first: once all layers after layer k are done, ds_k and dt_k are complete and
give dl and du of the bounds of layer k.

In the code layers count from 0: ``A[j]`` and ``G[j]`` are coefficients of the output and of the
input of affine layer j.  Units are flat.  Arrays that all samples share (the identity, the weights
of the first layer) have a first axis of length 1, and their gradients are summed over samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.reference.affine import chunks
from refmmr.reference.hyperplanes import dual_norm, dual_norm_gradient
from refmmr.reference.loss import cross_entropy, cross_entropy_gradient
from refmmr.reference.network import Gradients, Network


class Bounds(NamedTuple):
    """Bounds of the units of a layer, or of other linear functions: arrays (n, m)."""

    lower: np.ndarray
    upper: np.ndarray


class Relaxation(NamedTuple):
    """``slope * f <= max(f, 0) <= slope * f + intercept`` for the units of a layer: (n, m)."""

    slope: np.ndarray
    intercept: np.ndarray


class Cache(NamedTuple):
    """What the forward pass keeps of layer k for the backward pass; m functions ``A f_k``."""

    A: list[np.ndarray]  # for j = 0, ..., k: (n or 1, m, outputs of layer j)
    G: list[np.ndarray]  # for j = 0, ..., k: (n or 1, m, inputs of layer j)
    bounds: Bounds  # (n, m); m is the number of units, or K for the margins


def robust_margins(net: Network, X: np.ndarray, y: np.ndarray, p: float, eps: float) -> np.ndarray:
    """Lower bounds of the margins ``f_y - f_c`` on the balls.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    p : {1, 2, inf}
    eps : float
        Radius of the balls.

    Returns
    -------
    ndarray, shape (n, K)
        0 in column y.  Rounding errors are not bounded here; `backward_bound` does that.
    """
    some = chunks(net, len(X), X.itemsize)
    parts = [forward(net, X[rows], y[rows], p, eps)[-1].bounds.lower for rows in some]
    return np.concatenate(parts)


def robust_loss_gradient(
    net: Network, X: np.ndarray, y: np.ndarray, p: float, eps: float
) -> tuple[float, float, Gradients]:
    """Mean of ``log sum_c exp(-m_c)`` over a batch, and its gradient with respect to the weights.

    Parameters are those of `robust_margins`.

    Returns
    -------
    value : float
    error : float
        Share of samples that are not certified: some margin bound m_c is not positive.
    gradients : list of (dW, db), one per affine layer
    """
    value, wrong = 0.0, 0
    gradients = [(np.zeros_like(W), np.zeros_like(b)) for W, b in net.parameters]
    for rows in chunks(net, len(X), X.itemsize):
        cache = forward(net, X[rows], y[rows], p, eps)
        logits, own = -cache[-1].bounds.lower, np.eye(net.n_classes, dtype=bool)[y[rows]]
        value += float(cross_entropy(logits, y[rows]).sum()) / len(X)
        wrong += int((np.where(own, -np.inf, logits).max(axis=1) >= 0).sum())
        dmargins = -cross_entropy_gradient(logits, y[rows]) / len(X)
        backward(net, X[rows], p, eps, cache, dmargins, gradients)
    return value, wrong / len(X), gradients


def parallel_relaxation(lower: np.ndarray, upper: np.ndarray) -> Relaxation:
    """``s = u / (u - l)`` and ``t = -s l`` for unstable units; s = 1 or 0 and t = 0 for others."""
    unstable = (lower < 0) & (upper > 0)
    slope = np.where(unstable, upper / np.where(unstable, upper - lower, 1), lower >= 0)
    return Relaxation(slope.astype(lower.dtype), np.where(unstable, -slope * lower, 0))


def parallel_relaxation_gradient(
    lower: np.ndarray, upper: np.ndarray, dslope: np.ndarray, dintercept: np.ndarray
) -> Bounds:
    """Gradient with respect to l and u; only unstable units have one.

    With ``w = u - l``:  ``ds/dl = u / w^2``, ``ds/du = -l / w^2``, ``dt/dl = -(u / w)^2`` and
    ``dt/du = (l / w)^2``.
    """
    unstable = (lower < 0) & (upper > 0)
    width = np.where(unstable, upper - lower, 1)
    above, below = (np.where(unstable, bound / width, 0) for bound in (upper, lower))
    dlower = dslope * above / width - dintercept * above**2
    dupper = -dslope * below / width + dintercept * below**2
    return Bounds(dlower, dupper)


def forward(net: Network, X: np.ndarray, y: np.ndarray, p: float, eps: float) -> list[Cache]:
    """Bounds of all layers, the margins last; parameters are those of `robust_margins`."""
    cache: list[Cache] = []
    for k, layer in enumerate(net.affine_layers):
        functions = np.eye(int(np.prod(net.shapes[net.affine[k] + 1])), dtype=layer.W.dtype)[None]
        if k == len(net.unit_shapes):
            functions = functions[0, y][:, None] - functions
        relaxations = [parallel_relaxation(*before.bounds) for before in cache]
        cache.append(_linear_bounds(net, X, p, eps, relaxations, functions))
    return cache


def backward(
    net: Network, X: np.ndarray, p: float, eps: float, cache: list[Cache],
    dmargins: np.ndarray, sums: Gradients,
) -> None:  # fmt: skip
    """Add the gradient with respect to the weights to `sums`, from that of the margins, (n, K)."""
    relaxations = [parallel_relaxation(*layer.bounds) for layer in cache[:-1]]
    drelaxations = [Relaxation(*map(np.zeros_like, pair)) for pair in relaxations]
    dbounds = Bounds(dmargins, np.zeros_like(dmargins))
    for k in reversed(range(len(cache))):
        if k < len(relaxations):
            dbounds = parallel_relaxation_gradient(*cache[k].bounds, *drelaxations[k])
        _linear_bounds_gradient(
            net, X, p, eps, cache[k], relaxations[:k], dbounds, drelaxations, sums
        )


def _linear_bounds(net, X, p, eps, relaxations, functions):
    """One layer forward: bounds of linear functions, (n or 1, m, units), of f_k (k from 0)."""
    A: list[np.ndarray] = [functions]
    G: list[np.ndarray] = []
    center = below = above = 0
    for j in reversed(range(len(relaxations) + 1)):
        center = center + A[0] @ _bias(net, j)
        G.insert(0, _times(net, j, A[0]))
        if j > 0:
            slope, intercept = relaxations[j - 1]
            below = below + _dot(np.minimum(G[0], 0), intercept)
            above = above + _dot(np.maximum(G[0], 0), intercept)
            A.insert(0, G[0] * slope[:, None])
    center = center + _dot(G[0], X.reshape(len(X), -1))
    reach = eps * dual_norm(G[0], p)
    return Cache(A, G, Bounds(center - reach + below, center + reach + above))


def _linear_bounds_gradient(net, X, p, eps, cache, relaxations, dbounds, drelaxations, sums):
    """One layer backward: add to the gradients of relaxations and weights."""
    (A, G, _), (dlower, dupper) = cache, dbounds
    dcenter, dreach = dlower + dupper, dupper - dlower
    dG = dcenter[..., None] * X.reshape(len(X), 1, -1)
    dG = dG + eps * dreach[..., None] * dual_norm_gradient(G[0], p, axis=2)
    for j in range(len(G)):
        dG = _summed(dG, G[j])
        dW, db = sums[j]
        dW += _weight_gradient(net, j, A[j], dG)
        units = _dot(A[j].swapaxes(1, 2), _summed(dcenter, A[j])).sum(axis=0)
        db += units.reshape(len(db), -1).sum(axis=1)
        if j == len(relaxations):
            break
        dA = _times_transposed(net, j, dG) + dcenter[..., None] * _bias(net, j)
        slope, intercept = (part[:, None] for part in relaxations[j])
        negative, positive = np.minimum(G[j + 1], 0), np.maximum(G[j + 1], 0)
        dslope, dintercept = drelaxations[j]
        dslope += (dA * G[j + 1]).sum(axis=1)
        dintercept += _dot(negative.swapaxes(1, 2), dlower) + _dot(positive.swapaxes(1, 2), dupper)
        dG = dA * slope
        dG += ((negative < 0) * dlower[..., None] + (positive > 0) * dupper[..., None]) * intercept


def _times(net, j, A):
    """``A_j W_j``, (n or 1, m, inputs of layer j)."""
    before, after = net.shapes[net.affine[j] :][:2]
    G = net.affine_layers[j].transpose(A.reshape(-1, *after), before)
    return G.reshape(*A.shape[:2], -1)


def _times_transposed(net, j, dG):
    """``dG_j W_j^T``, (n or 1, m, outputs of layer j)."""
    dA = net.affine_layers[j].linear(dG.reshape(-1, *net.shapes[net.affine[j]]))
    return dA.reshape(*dG.shape[:2], -1)


def _weight_gradient(net, j, A, dG):
    """``A_j^T dG_j`` in the shape of W_j, summed over samples."""
    before, after = net.shapes[net.affine[j] :][:2]
    return net.affine_layers[j].gradient(dG.reshape(-1, *before), A.reshape(-1, *after))[0]


def _bias(net, j):
    """b_j of each unit: the pixels of a channel share one."""
    b = net.affine_layers[j].b
    return np.repeat(b, int(np.prod(net.shapes[net.affine[j] + 1])) // len(b))


def _dot(rows, values):
    """(n or 1, m, units) and (n, units) to (n, m): each function on its sample's values."""
    return (rows @ values[..., None])[..., 0]


def _summed(gradient, like):
    """Sum a gradient over the samples if they share the array that it is with respect to."""
    return gradient.sum(axis=0, keepdims=True) if len(like) == 1 else gradient
