"""Training on a bound of the worst case (Wong and Kolter 2018), its gradient derived by hand.

Adversarial training shows the network *some* points of the ball ``||z - x||_p <= eps``.  Wong and
Kolter train on a bound over *all* of them: a lower bound m_c of each margin ``f_y - f_c`` on the
ball goes into the cross-entropy,

    loss = log sum_c exp(-m_c),      with m_y = 0,

which is at least the cross-entropy of any point of the ball.  The ball is whole: no box cuts it.

**The bound** (also known as Fast-Lin).  Say every hidden unit has bounds ``l <= f <= u``.  A stable
unit (l >= 0 or u <= 0) multiplies by a slope s of 1 or 0; around the ReLU of an unstable one run
two parallel lines,

    s f  <=  max(f, 0)  <=  s f + t,       s = u / (u - l),   t = -u l / (u - l).

As the slopes of both lines are the same, a linear function ``A f_k`` goes back to the input like a
gradient goes back, and the intercepts are all that is unknown:

    G_j = A_j W_j,     A_{j-1} = G_j diag(s_{j-1}),       j = k, ..., 1,   A_k = A

    A f_k  >=  G_1 x + sum_j A_j b_j  -  eps ||G_1||_q  +  sum_j min(G_{j+1}, 0) t_j
    A f_k  <=  G_1 x + sum_j A_j b_j  +  eps ||G_1||_q  +  sum_j max(G_{j+1}, 0) t_j.

With the identity for A these are the bounds of layer k, for which only those of layers before k
are needed; with the rows ``e_y - e_c`` they are the bounds of the margins.

**The gradient** takes the same steps the other way round, last layer first.  What the loss feels of
the bounds of ``A f_k`` goes *forward* through the layers from ``G_1`` to A, and on the way each
layer tells its weights (``G_j = A_j W_j`` is linear in both), its slopes and its intercepts.  When
all layers behind layer k have spoken, the slopes and intercepts of layer k tell its bounds l and u,
and these are the next ``A f_k``, A the identity.

In the code affine layers are counted from 0, so ``G_j`` belongs to the input of ``layers[j]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refmmr.reference.hyperplanes import dual_norm
from refmmr.reference.loss import cross_entropy, cross_entropy_gradient
from refmmr.reference.mmr import dual_norm_gradient
from refmmr.reference.network import Gradients, Network

CHUNK_BYTES = 2**25
"""Rows are carried back in groups so that no array of them is larger than this, if one row fits."""


class Balls(NamedTuple):
    """Where the attacker may go: ``||z - x||_p <= eps`` for each of n points."""

    x: np.ndarray  # (n, d)
    p: float
    eps: float


class Bounds(NamedTuple):
    """Of each unit of a layer, or of other linear functions: arrays (n, m)."""

    lower: np.ndarray
    upper: np.ndarray


class Lines(NamedTuple):
    """Two parallel lines around the ReLU of each unit of a layer: arrays (n, *unit_shape)."""

    slope: np.ndarray
    intercept: np.ndarray  # of the upper line; the lower one passes through the origin


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
        0 in the class's own column.  Up to rounding: a certificate is made in `relaxations`.
    """
    margins = np.empty_like(X, shape=(len(X), net.n_classes))
    for some in _samples(net, X):
        margins[some] = _all_bounds(net, _balls(X[some], p, eps), y[some])[0][-1].lower
    return margins


def robust_loss_gradient(
    net: Network, X: np.ndarray, y: np.ndarray, p: float, eps: float
) -> tuple[float, float, Gradients]:
    """Mean cross-entropy of the worst-case margins of a batch, and its gradient to the weights.

    Parameters are those of `robust_margins`.

    Returns
    -------
    value : float
    error : float
        Share of samples that the bound does not prove right on the whole ball.
    gradients : list of (dW, db), one per affine layer
    """
    value, wrong = 0.0, 0
    gradients = [(np.zeros_like(W), np.zeros_like(b)) for W, b in net.parameters]
    for some in _samples(net, X):
        balls, classes = _balls(X[some], p, eps), y[some]
        bounds, lines = _all_bounds(net, balls, classes)
        logits = -bounds[-1].lower
        value += float(cross_entropy(logits, classes).sum()) / len(X)
        rivals = logits.copy()
        rivals[np.arange(len(classes)), classes] = -np.inf
        wrong += int((rivals.max(axis=1) >= 0).sum())
        dmargins = -cross_entropy_gradient(logits, classes) / len(X)
        _all_bounds_gradient(net, balls, classes, bounds, lines, dmargins, gradients)
    return value, wrong / len(X), gradients


# ---- The lines around a ReLU.


def parallel_lines(lower: np.ndarray, upper: np.ndarray) -> Lines:
    """``s = u / (u - l)`` and ``t = -s l`` for unstable units; s = 1 or 0 and t = 0 for others."""
    unstable = (lower < 0) & (upper > 0)
    slope = np.where(unstable, upper / np.where(unstable, upper - lower, 1), lower >= 0)
    return Lines(slope.astype(lower.dtype), np.where(unstable, -slope * lower, 0))


def parallel_lines_gradient(
    lower: np.ndarray, upper: np.ndarray, dslope: np.ndarray, dintercept: np.ndarray
) -> Bounds:
    """Gradient to l and u; only unstable units have one.

    With ``w = u - l``:  ``ds/dl = u / w^2``, ``ds/du = -l / w^2``, ``dt/dl = -(u / w)^2`` and
    ``dt/du = (l / w)^2``.
    """
    unstable = (lower < 0) & (upper > 0)
    width = np.where(unstable, upper - lower, 1)
    above, below = (np.where(unstable, side / width, 0) for side in (upper, lower))
    return Bounds(
        dslope * above / width - dintercept * above**2,
        -dslope * below / width + dintercept * below**2,
    )


# ---- All layers.


def _all_bounds(net: Network, balls: Balls, y: np.ndarray) -> tuple[list[Bounds], list[Lines]]:
    """Bounds of every hidden layer and of the margins, and the lines around every ReLU."""
    bounds: list[Bounds] = []
    lines: list[Lines] = []
    for k in range(len(net.affine)):
        units = int(np.prod(net.shapes[net.affine[k] + 1]))
        sides = np.empty_like(balls.x, shape=(2, len(y), units))
        for some in _groups(net, balls, np.arange(units)):
            _, sides[:, :, some] = _carry_back(net, balls, lines, k, _rows(net, k, some, y))
        bounds.append(Bounds(*sides))
        if k < len(net.unit_shapes):
            shape = (len(y), *net.unit_shapes[k])
            lines.append(parallel_lines(*(side.reshape(shape) for side in sides)))
    return bounds, lines


def _all_bounds_gradient(net, balls, y, bounds, lines, dmargins, gradients):
    """Add to the gradients of all weights, from the last layer to the first."""
    dlines = [Lines(*(np.zeros_like(part) for part in pair)) for pair in lines]
    dbounds = Bounds(dmargins, np.zeros_like(dmargins))
    for k in reversed(range(len(net.affine))):
        if k < len(lines):
            flat = (part.reshape(len(y), -1) for part in dlines[k])
            dbounds = parallel_lines_gradient(*bounds[k], *flat)
        felt = np.flatnonzero(((dbounds.lower != 0) | (dbounds.upper != 0)).any(axis=0))
        for some in _groups(net, balls, felt):
            rows = _rows(net, k, some, y)
            carried, _ = _carry_back(net, balls, lines, k, rows)
            part = Bounds(dbounds.lower[:, some], dbounds.upper[:, some])
            _carry_back_gradient(net, balls, lines, k, rows, carried, part, dlines, gradients)


# ---- One layer.


def _carry_back(net, balls, lines, k, rows):
    """Bounds of linear functions of ``f_k``.

    Parameters
    ----------
    rows : ndarray, shape (n or 1, m, *shape of f_k)
        The coefficients A of m functions, for each point or the same for all.

    Returns
    -------
    carried : list of ndarray, shapes (n or 1, m, *shape of the input of layer j)
        The coefficients ``G_j`` for j = 0, ..., k.
    bounds : Bounds
    """
    carried: list[np.ndarray] = []
    center = below = above = np.zeros_like(balls.x, shape=(1, 1))
    for j in reversed(range(k + 1)):
        center = center + _dot(rows, _bias(net, j))
        G = _through_transpose(net, j, rows)
        carried.insert(0, G)
        if j > 0:
            slope, intercept = lines[j - 1]
            below = below + _dot(np.minimum(G, 0), intercept)
            above = above + _dot(np.maximum(G, 0), intercept)
            rows = G * slope[:, None]
    center = center + _dot(carried[0], balls.x)
    reach = balls.eps * dual_norm(carried[0].reshape(*carried[0].shape[:2], -1), balls.p)
    return carried, Bounds(center - reach + below, center + reach + above)


def _carry_back_gradient(net, balls, lines, k, rows, carried, dbounds, dlines, gradients):
    """Add to the gradients of lines and weights what the bounds of ``A f_k`` give them."""
    dlower, dupper = dbounds
    dcenter, dreach = dlower + dupper, dupper - dlower
    G = carried[0]
    normal = dual_norm_gradient(G.reshape(*G.shape[:2], -1), balls.p, axis=2)
    normal = normal.reshape(G.shape)
    dG = _outer(dcenter, balls.x, G) + _unflat(balls.eps * _as_shared(dreach, G), G) * normal
    for j in range(k + 1):
        # G_j = A_j W_j, and A_j b_j is a part of the center.
        A = rows if j == k else carried[j + 1] * lines[j].slope[:, None]
        x, dA = _through(net, j, dG)
        dW, db = gradients[j]
        dW += net.affine_layers[j].gradient(x, A)[0]
        db += _sum_pixels((_as_shared(dcenter, A)[..., None] * _flat(A)).sum(axis=(0, 1)), A)
        if j == k:
            break
        # A_j = G_{j+1} diag(s_j), and the intercepts t_j meet the negative or the positive part.
        dA = dA + _unflat(dcenter, A) * _bias(net, j)[:, None]
        G, (slope, intercept) = carried[j + 1], lines[j]
        dlines[j].slope[...] += (dA * G).sum(axis=1)
        for side, part in ((dlower, np.minimum(G, 0)), (dupper, np.maximum(G, 0))):
            dlines[j].intercept[...] += _combine(side, part)
        dG = _as_shared(dA * slope[:, None], G)
        dG += (G < 0) * _outer(dlower, intercept, G) + (G > 0) * _outer(dupper, intercept, G)


def _rows(net, k, some, y):
    """The functions whose bounds layer k is asked for: its units, or the margins.

    Shape (n or 1, m, *shape of f_k).
    """
    shape = net.shapes[net.affine[k] + 1]
    units = np.arange(int(np.prod(shape)))
    dtype = net.affine_layers[k].W.dtype
    rows = (some[:, None] == units).astype(dtype)[None]
    if k == len(net.affine) - 1:
        rows = (y[:, None] == units).astype(dtype)[:, None] - rows
    return rows.reshape(*rows.shape[:2], *shape)


def _through_transpose(net, k, rows):
    """``A W_k``, also through what lays out the input of layer k."""
    g = rows.reshape(-1, *rows.shape[2:])
    for i in reversed(_span(net, k)):
        g = net.layers[i].transpose(g, net.shapes[i])
    return g.reshape(*rows.shape[:2], *g.shape[1:])


def _through(net, k, directions):
    """The other way: the input that layer k itself gets, and ``W_k`` times it."""
    g = directions.reshape(-1, *directions.shape[2:])
    for i in _span(net, k):
        x, g = g, net.layers[i].linear(g)
    return x, g.reshape(*directions.shape[:2], *g.shape[1:])


def _span(net: Network, k: int) -> range:
    """Positions of the layers from one ReLU to the next."""
    return range(net.affine[k - 1] + 1 if k else 0, net.affine[k] + 1)


def _bias(net: Network, k: int) -> np.ndarray:
    """What layer k adds to each of its units, (1, *shape of f_k)."""
    b = net.affine_layers[k].b
    shape = net.shapes[net.affine[k] + 1]
    return np.broadcast_to(b.reshape(-1, *(1,) * (len(shape) - 1)), shape)[None]


# ---- Sums over arrays whose first axis is n, or 1 where all samples share them.


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(*rows.shape[:2], -1)


def _unflat(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n, m) so that it broadcasts against (n, m, *shape)."""
    return values.reshape(*values.shape, *(1,) * (rows.ndim - 2))


def _dot(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n or 1, m, *shape) times (n or 1, *shape) to (n or 1, m)."""
    rows, values = _flat(rows), values.reshape(len(values), -1)
    if len(rows) == 1:
        return values @ rows[0].T
    return (rows @ values[..., None])[..., 0]


def _combine(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n, m) times (n or 1, m, *shape) to (n, *shape)."""
    flat = _flat(rows)
    sums = weights @ flat[0] if len(rows) == 1 else (weights[:, None] @ flat)[:, 0]
    return sums.reshape(len(weights), *rows.shape[2:])


def _outer(weights: np.ndarray, values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(n, m) and (n, ...) to the shape of (n, m, *shape), or added up to that of (1, m, *shape)."""
    values = values.reshape(len(values), -1)
    if len(like) < len(values):
        return (weights.T @ values).reshape(like.shape)
    return (weights[..., None] * values[:, None]).reshape(like.shape)


def _as_shared(g: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Add up over the samples where they all read one shared array."""
    return g.sum(axis=0, keepdims=True) if len(shared) < len(g) else g


def _sum_pixels(units: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Gradient to the biases of a layer: the pixels of a channel share one."""
    return units.reshape(rows.shape[2], -1).sum(axis=1)


# ---- Groups that fit into memory.


def _balls(X: np.ndarray, p: float, eps: float) -> Balls:
    return Balls(X.reshape(len(X), -1), p, eps)


def _row_bytes(net: Network, itemsize: int) -> int:
    return itemsize * max(int(np.prod(shape)) for shape in net.shapes)


def _samples(net: Network, X: np.ndarray) -> Iterator[slice]:
    """Groups of samples: few enough that many rows of each fit."""
    size = max(1, CHUNK_BYTES // (16 * _row_bytes(net, X.itemsize)))
    return (slice(i, i + size) for i in range(0, len(X), size))


def _groups(net: Network, balls: Balls, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of rows, for all samples at once."""
    x = balls.x
    size = max(1, CHUNK_BYTES // (len(x) * _row_bytes(net, x.itemsize)))
    return (rows[i : i + size] for i in range(0, len(rows), size))
