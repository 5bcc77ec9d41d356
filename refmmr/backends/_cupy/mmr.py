"""Twins of `refmmr.reference.mmr`: the regularizer and its gradient.

The derivative ``G_r = dJ / dv_r`` with respect to the gradient v_r of a hyperplane is zero for all
but the few hyperplanes whose hinge is active.  ``<G_r, v_r>`` is the output of their unit (or pair
of classes) for the direction G_r, in the network with the masks of the sample.  So the gradient
with respect to the weights is ordinary backpropagation over a batch of directions, one per active
hyperplane.
"""

from __future__ import annotations

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.distances import distances
from refmmr.backends._cupy.hyperplanes import chunks, dense_end, hyperplanes_around, undo_dense_end
from refmmr.backends._cupy.network import by_layer, groups, one_hot, prefix
from refmmr.backends._cupy.receptive_fields import mask_windows, receptive_network
from refmmr.reference import mmr as reference
from refmmr.reference.hyperplanes import dual_norm_gradient, hyperplane_distance
from refmmr.reference.mmr import MMR, _distance_gradients
from refmmr.reference.network import Gradients, Network


@implements("cupy", reference.mmr)
@on_device
def mmr(
    net: Network,
    X: cupy.ndarray,
    y: cupy.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> MMR:
    """See `refmmr.reference.mmr.mmr`."""
    d = distances(net, X, y, p)
    boundary_term, _ = _hinge(d.boundary, gamma_b, k_b)
    decision_term, _ = _hinge(d.decision, gamma_d, k_d)
    return MMR(boundary_term + decision_term, boundary_term, decision_term)


@implements("cupy", reference.mmr_gradient)
@on_device
def mmr_gradient(
    net: Network,
    X: cupy.ndarray,
    y: cupy.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> tuple[float, Gradients]:
    """See `refmmr.reference.mmr.mmr_gradient`."""
    dense = dense_end(net)
    value = cupy.zeros((), X.dtype)
    sums = [(cupy.zeros_like(W), cupy.zeros_like(b)) for W, b in dense.parameters]
    for rows in chunks(dense, len(X), X.itemsize):
        value += _add_gradient(dense, X[rows], y[rows], p, gamma_b, gamma_d, k_b, k_d, sums)
    gradients = [(dW / len(X), db / len(X)) for dW, db in undo_dense_end(net, sums)]
    return float(value) / len(X), gradients


def _add_gradient(net, X, y, p, gamma_b, gamma_d, k_b, k_d, sums):
    """Sum of the values over the samples; the gradient of that sum is added to `sums`."""
    hyperplanes = hyperplanes_around(net, X, y)
    boundary_norms, decision_norms = hyperplanes.boundary_norms(p), hyperplanes.decision_norms(p)
    d_B = hyperplane_distance(cupy.abs(hyperplanes.f), boundary_norms)
    d_D = cupy.where(
        hyperplanes.own, cupy.inf, hyperplane_distance(hyperplanes.margin, decision_norms)
    )
    values_B, slope_B = _hinge(d_B, gamma_b, k_b)
    values_D, slope_D = _hinge(d_D, gamma_d, k_d)
    df, dV_norms = _distance_gradients(slope_B, d_B, boundary_norms)
    dmargin, dR_norms = _distance_gradients(slope_D, d_D, decision_norms)

    _add_samples(net, hyperplanes, cupy.sign(hyperplanes.f) * df, dmargin, sums)
    n_conv = len(hyperplanes.patches)
    for k, dnorms in enumerate(by_layer(net, dV_norms)):
        if k == 0:
            _add_first(hyperplanes, dnorms, p, sums)
        elif k < n_conv:
            _add_conv_hyperplanes(net, hyperplanes, k, dnorms, p, sums)
        else:
            _add_dense_hyperplanes(net, hyperplanes, k, hyperplanes.V[k - n_conv], dnorms, p, sums)
    _add_dense_hyperplanes(
        net, hyperplanes, len(net.unit_shapes), hyperplanes.R, dR_norms, p, sums, hyperplanes.own
    )
    return values_B.sum() + values_D.sum()


def _hinge(d, gamma, k):
    """``1/k sum_{j <= k} max(0, 1 - d^(j) / gamma)`` of each row, and its derivatives, (n, r).

    Of equal distances the first ones count among the k smallest: CuPy's sort is stable.
    """
    if d.shape[1] == 0:
        return cupy.zeros(len(d), d.dtype), d
    d = cupy.where(d == -cupy.inf, cupy.inf, d)
    order = cupy.argsort(d, axis=1)[:, :k]
    nearest = cupy.take_along_axis(d, order, axis=1)
    slope = cupy.zeros_like(d)
    slopes = cupy.where(nearest < gamma, -1 / (k * gamma), 0).astype(d.dtype)
    cupy.put_along_axis(slope, order, slopes, axis=1)
    return cupy.maximum(0, 1 - nearest / gamma).mean(axis=1), slope


def _add_samples(net, hyperplanes, df, dmargin, sums):
    """Backpropagation over the samples: from the values of the hyperplanes to the weights."""
    # A margin is f_y - f_s: +1 for the class itself, -1 for each rival.
    dlogits = hyperplanes.own * dmargin.sum(axis=1)[:, None] - dmargin
    deltas = net.backward(hyperplanes.cache, [*by_layer(net, df), dlogits])
    more = net.weight_gradients(hyperplanes.cache, deltas)
    for (sum_W, sum_b), (dW, db) in zip(sums, more, strict=True):
        sum_W += dW
        sum_b += db


def _add_first(hyperplanes, dnorms, p, sums):
    """The first layer: the gradients of its hyperplanes are its weights, for all samples."""
    dW, _ = sums[0]
    dnorms = dnorms.sum(axis=0)
    if not hyperplanes.patches:
        dW += dnorms.reshape(-1)[:, None] * dual_norm_gradient(hyperplanes.V[0][0], p, axis=1)
        return
    # Each unit of a convolution has its own copy of the filter, cut off at the border.
    patches = hyperplanes.patches[0][0]
    rows = patches.reshape(*patches.shape[:3], -1)
    G = dnorms.transpose(1, 2, 0)[..., None] * dual_norm_gradient(rows, p, axis=3)
    dW += G.sum(axis=(0, 1)).reshape(dW.shape)


def _add_conv_hyperplanes(net, hyperplanes, k, dnorms, p, sums):
    """Active hyperplanes of a later convolution: a batch of patches as directions."""
    small = receptive_network(net, k)
    samples, channels, rows, columns = dnorms.nonzero()
    for some in groups(small, len(samples), dnorms.itemsize):
        place = samples[some], channels[some], rows[some], columns[some]
        patches = hyperplanes.patches[k][place[0], place[2], place[3], place[1]]
        G = dual_norm_gradient(patches.reshape(len(patches), -1), p, axis=1)
        G = (dnorms[place][:, None] * G).reshape(patches.shape)
        end = one_hot(place[1], dnorms.shape[1])[..., None, None].astype(dnorms.dtype)
        masks = mask_windows(net, hyperplanes.cache.masks, k, *place)
        _add_directions(small, G, masks, end, sums)


def _add_dense_hyperplanes(net, hyperplanes, k, V, dnorms, p, sums, own=None):
    """Active hyperplanes of a dense layer: a batch of directions.

    With `own`, (n, K), units are classes s, and their hyperplanes those of the margins f_y - f_s.
    """
    front = prefix(net, k)
    samples, units = dnorms.nonzero()
    for some in groups(front, len(samples), dnorms.itemsize):
        sample, unit = samples[some], units[some]
        rows = V[sample if len(V) > 1 else 0, unit]
        G = dnorms[sample, unit][:, None] * dual_norm_gradient(rows, p, axis=1)
        end = one_hot(unit, dnorms.shape[1]).astype(dnorms.dtype)
        if own is not None:
            end = own[sample] - end
        masks = [mask[sample] for mask in hyperplanes.cache.masks[:k]]
        _add_directions(front, G.reshape(-1, *net.input_shape), masks, end, sums)


def _add_directions(net, directions, masks, end, sums):
    """Add the gradient of ``sum(end * outputs)`` of directions, on which biases have no effect."""
    cache = net.forward(directions, masks, bias=False)
    deltas = net.backward(cache, [*(None for _ in net.unit_shapes), end])
    more = net.weight_gradients(cache, deltas)
    for (sum_W, _), (dW, _) in zip(sums, more, strict=False):
        sum_W += dW
