"""Twin of `refmmr.reference.objective`: cross-entropy, errors and MMR from one forward pass.

The steps are those of `refmmr.reference.mmr`: hinge to distance, distance to the value and the norm
of each hyperplane, and from there to the weights, once through the samples and once through the
gradients of the units (`refmmr.backends._cupy.unit_gradients`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import cupy

from refmmr import _kernels
from refmmr._backend import implements
from refmmr._validate import is_device
from refmmr.backends._cupy.dispatch import on_device, on_host
from refmmr.backends._cupy.hyperplanes import dense_end, in_chunks, undo_dense_end
from refmmr.backends._cupy.kernels import launch, repeated
from refmmr.backends._cupy.network import DeviceConv2d, total, unit_starts
from refmmr.backends._cupy.passes import conv_sizes, conv_threads
from refmmr.backends._cupy.unit_gradients import add_back, unit_gradients
from refmmr.backends._cupy.windows import unfold
from refmmr.reference import objective as reference
from refmmr.reference.layers import Flatten
from refmmr.reference.mmr import Regularizer
from refmmr.reference.network import Network, flat
from refmmr.reference.objective import Objective

Sums = list[list[Any]]
"""Derivatives so far, [dW, db] per layer; None is zero."""


class Part(NamedTuple):
    """What a chunk of a batch contributes to the objective; single numbers are on the device."""

    cross_entropy: cupy.ndarray
    mmr: cupy.ndarray
    wrong: cupy.ndarray
    sums: Sums


class Pass(NamedTuple):
    """A forward pass."""

    inputs: list[cupy.ndarray]  # of each affine layer
    f: list[cupy.ndarray]  # pre-activations of the hidden layers, (n, *unit_shape)
    logits: cupy.ndarray  # (n, K)


@implements("cupy", reference.objective_gradient)
def objective_gradient(
    net: Network,
    X: cupy.ndarray,
    y: cupy.ndarray,
    terms: Sequence[Regularizer] = (),
    border: str = "exact",
    nearest: str = "each",
) -> Objective:
    """See `refmmr.reference.objective.objective_gradient`.

    With arrays on the device its numbers stay there too, as arrays without axes: a training fetches
    them when it likes, and does not wait for the device after each batch.  The union of the nearest
    boundaries is computed on the host.
    """
    if terms and nearest != "each":
        on_the_host = on_host(_kernels.objective_gradient.fallback())
        return on_the_host(net, X, y, tuple(terms), border, nearest)
    found = on_device(objective)(net, X, y, terms, border=border)
    if is_device(found.cross_entropy):
        return found
    cross_entropy, mmr, wrong, gradients = found
    return Objective(float(cross_entropy), float(mmr), int(wrong), gradients)


def objective(
    net: Network,
    X: cupy.ndarray,
    y: cupy.ndarray,
    terms: Sequence[Regularizer],
    with_cross_entropy: bool = True,
    border: str = "exact",
) -> Objective:
    """The objective on the device; its cross-entropy may be left out."""
    dense, y = (dense_end(net) if terms else net), y.astype("i8", copy=False)

    def part(rows: slice) -> Part:
        return _part(dense, X[rows], y[rows], terms, with_cross_entropy, border, len(X))

    # Without terms nothing is as large as V.
    parts = [*in_chunks(part, dense, len(X), X.itemsize if terms else 0)]
    sums = parts[0].sums
    for other in parts[1:]:
        for own, more in zip(sums, other.sums, strict=True):
            own[:] = [a + b for a, b in zip(own, more, strict=True)]
    gradients = [(dW, db) for dW, db in sums]
    if terms:
        gradients = undo_dense_end(net, gradients)
    cross_entropy, mmr, wrong = (functools.reduce(operator.add, part) for part in zip(
        *(part[:3] for part in parts), strict=True))  # fmt: skip
    return Objective(cross_entropy, mmr, wrong, gradients)


def _part(net, X, y, terms, with_cross_entropy, border, n):
    """The part of the samples X of a batch of n."""
    run = forward(net, X)
    dtype, K = X.dtype, run.logits.shape[1]
    losses, wrong = (cupy.empty(len(X), dtype) for _ in range(2))
    dlogits = cupy.empty((len(X), K), dtype)
    args = (run.logits, y, losses, wrong, dlogits, K, 1 / n)
    launch("cross_entropy", dtype, len(X), *args)
    if not with_cross_entropy:
        dlogits[...] = 0
    sums: Sums = [[None, None] for _ in net.affine_layers]
    mmr, df = cupy.zeros((), dtype), None
    if terms:
        mmr, df = _add_terms(net, run, y, terms, border, 1 / n, dlogits, sums)
    _add_samples(net, run, dlogits, df, sums)
    return Part(losses.sum(), mmr, wrong.sum(), sums)


def forward(net: Network, X: cupy.ndarray) -> Pass:
    """Propagate samples through a network on the device."""
    inputs, f = [], []
    g = cupy.ascontiguousarray(X)
    for i, layer in enumerate(net.layers):
        if isinstance(layer, Flatten):
            g = g.reshape(len(g), -1)
            continue
        inputs.append(g)
        g = _convolve(layer, g) if isinstance(layer, DeviceConv2d) else g @ layer.W.T + layer.b
        f.append(g)
        if i != net.affine[-1]:
            g = cupy.maximum(g, 0)
    *hidden, logits = f
    return Pass(inputs, hidden, logits.reshape(len(X), -1))


def _convolve(layer, x):
    out = cupy.empty((len(x), *layer.output_shape(x.shape[1:])), x.dtype)
    args = (x, layer.W, layer.b, out, *conv_sizes(layer, x.shape[1:]), False)
    launch("convolve", x.dtype, conv_threads(out), *args)
    return out


# ------------------------------------------------------------------------------------ regularizers


class Norms(NamedTuple):
    """Norms of the rows of V for a term, and the derivatives with respect to them."""

    q: int  # 1, 2, or 0 for q = inf
    norms: cupy.ndarray  # (n, units)
    largest: cupy.ndarray  # (n, units) of int32, the place of the largest entry, for q = inf
    dnorms: cupy.ndarray  # (n, units)


def _add_terms(net, run, y, terms, border, scale, dlogits, sums):
    """Values, and derivatives with respect to f; the rest is added to `dlogits` and `sums`."""
    (n, K), dtype = dlogits.shape, dlogits.dtype
    f = flat(run.f) if run.f else cupy.empty((n, 0), dtype)
    margins = cupy.empty((n, K), dtype)
    launch("margins", dtype, margins.size, run.logits, y, margins, K)
    found = unit_gradients(net, run.f)
    rows, starts, last = found.rows, unit_starts(net), found.V[-1]
    if border == "full-filter" and found.patches:
        filters = net.affine_layers[0].W
        rows[0] = cupy.broadcast_to(filters.reshape(len(filters), -1), rows[0].shape)
    R = cupy.empty((n, *last.shape[1:]), dtype)
    launch("class_differences", dtype, R.size, last, y, R, *last.shape[1:], len(last) == 1)

    df, dmargins = cupy.zeros_like(f), cupy.zeros_like(margins)
    hinges_B, hinges_D = cupy.zeros_like(f), cupy.zeros_like(margins)
    boundary = [
        _norms(f, rows[:-1], net, term.p, term.gamma_b, term.k_b, scale * term.lam,
               df, hinges_B, True) for term in terms
    ]  # fmt: skip
    decision = [
        _norms(margins, [R[:, None]], net, term.p, term.gamma_d, term.k_d, scale * term.lam,
               dmargins, hinges_D, False) for term in terms
    ]  # fmt: skip
    launch("margins_back", dtype, n, dmargins, y, dlogits, K)

    D = cupy.zeros_like(R)
    _add_norms_back(R[:, None], decision, 0, D)
    dlast = cupy.empty_like(D)
    launch("class_differences_back", dtype, D.size, D, y, dlast, *D.shape[1:])

    def add_direct(k: int, D: cupy.ndarray) -> None:
        _add_norms_back(rows[k], boundary, starts[k], D)

    def add_weights(k: int, dW: cupy.ndarray) -> None:
        _add(sums[k], 0, dW)

    add_back(net, run.f, found, dlast, add_direct, add_weights)
    return hinges_B.sum() + hinges_D.sum(), df


def _norms(values, layers, net, p, gamma, k, weight, dvalues, hinges, boundary):
    """Norms of the rows of some layers, hinges of the distances, and derivatives of these.

    Those with respect to the values, and the hinges, are added to what is there.
    """
    dtype, units = values.dtype, values.shape[1]
    q = {1: 0, 2: 2}.get(p, 1)
    norms, d, slopes, dnorms = (cupy.empty_like(values) for _ in range(4))
    largest = cupy.empty(values.shape if q == 0 else (1, 1), "i4")
    starts = unit_starts(net) if boundary else [0]
    for rows, start in zip(layers, starts, strict=True):
        m, pixels, outputs, size = rows.shape
        sizes = (size, pixels, outputs, start, units, q)
        rows = cupy.ascontiguousarray(rows)
        launch("row_norms", dtype, m * pixels * outputs, rows, norms, largest, *sizes)
        if m < len(values):  # all samples share them
            end = start + pixels * outputs
            norms[1:, start:end] = norms[:1, start:end]
    launch("plane_distances", dtype, d.size, values, norms, d, boundary)
    launch("nearest", dtype, d.size, d, hinges, slopes, units, k, float(gamma), float(weight))
    launch(
        "distance_gradients", dtype, d.size, slopes, d, values, norms, dvalues, dnorms, boundary
    )  # fmt: skip
    return Norms(q, norms, largest, dnorms)


def _add_norms_back(rows, terms, start, D):
    """Add the gradient with respect to the rows of a layer, of all terms, to D."""
    m, pixels, outputs, size = rows.shape
    rows, threads = cupy.ascontiguousarray(rows), repeated(rows)
    for q, norms, largest, dnorms in terms:
        units = dnorms.shape[1]
        if m < len(dnorms):
            dnorms = total(dnorms)
        sizes = (size, pixels, outputs, start, units, q)
        args = (rows, norms, largest, dnorms, D, m, *sizes)
        launch("row_norms_back", D.dtype, threads, *args)


# ----------------------------------------------------------------------------- through the samples


def _add_samples(net, run, dlogits, df, sums):
    """Backpropagation over the samples, from the logits and (if any) from all pre-activations."""
    delta = dlogits.reshape(len(dlogits), *net.logits_shape)
    starts, units = unit_starts(net), 0 if df is None else df.shape[1]
    for k in reversed(range(len(net.affine))):
        layer, x = net.affine_layers[k], run.inputs[k]
        dW, db = _weight_gradients(layer, x, delta)
        _add(sums[k], 0, dW)
        _add(sums[k], 1, db)
        if k == 0:
            return
        f = run.f[k - 1]
        delta = _transpose(layer, delta, x)
        args = (f, delta if df is None else df, delta, f.size // len(f), starts[k - 1], units)
        launch("through_relu", delta.dtype, delta.size, *args, df is not None)
        delta = delta.reshape(f.shape)


def _weight_gradients(layer, x, delta):
    if not isinstance(layer, DeviceConv2d):
        return delta.T @ x, total(delta)
    windows = unfold(x, layer.grid(x.shape[1:]))
    delta = cupy.ascontiguousarray(delta.transpose(0, 2, 3, 1)).reshape(-1, len(layer.b))
    return (delta.T @ windows.reshape(len(delta), -1)).reshape(layer.W.shape), total(delta)


def _transpose(layer, delta, x):
    """Gradients with respect to the input x of a layer, before its ReLU."""
    if not isinstance(layer, DeviceConv2d):
        return delta @ layer.W
    dx = cupy.empty_like(x)
    args = (cupy.ascontiguousarray(delta), layer.W, x, dx, *conv_sizes(layer, x.shape[1:]), False)
    launch("convolve_back", delta.dtype, conv_threads(dx), *args)
    return dx


def _add(sums: list[Any], i: int, more: cupy.ndarray) -> None:
    sums[i] = more if sums[i] is None else sums[i] + more
