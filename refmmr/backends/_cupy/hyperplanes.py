"""The hyperplanes around a batch: values, gradients and norms, without the zeros of V.

- Units of a convolution: a patch each (`refmmr.backends._cupy.receptive_fields`).
- Units of a dense hidden layer: the rows ``V_{k+1} = W_{k+1} (s_k * V_k)``, a matrix product per
  sample.
- Pairs of classes, ``V_y - V_s``: the same with ``W_y - W_s`` for W; for a network with one hidden
  layer all pairs are one large matrix product with its first weights.

What all samples share (the first layer, before any mask) is computed and stored once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import cupy

from refmmr.backends._cupy.network import one_hot
from refmmr.backends._cupy.receptive_fields import conv_layers, patches, receptive_field
from refmmr.backends._cupy.windows import Grid, fold
from refmmr.reference.hyperplanes import dual_norm
from refmmr.reference.layers import Flatten, Linear
from refmmr.reference.network import ForwardCache, Gradients, Network, flat

CHUNK_BYTES = 2**29
"""Samples are processed in chunks whose gradients fit into this: 512 MB of the device."""


class Hyperplanes(NamedTuple):
    """The affine functions whose zeros are the hyperplanes around each sample of a batch."""

    f: cupy.ndarray  # (n, N), pre-activations of the hidden units
    margin: cupy.ndarray  # (n, K), f_y - f_s
    own: cupy.ndarray  # (n, K) bool, the class's own column
    patches: list[cupy.ndarray]  # per conv hidden layer, see `receptive_fields.patches`
    V: list[cupy.ndarray]  # per dense hidden layer (n or 1, N_k, d), row i the gradient of unit i
    R: cupy.ndarray  # (n, K, d), V_y - V_s
    cache: ForwardCache  # the forward pass of the samples

    def boundary_norms(self, p: float) -> cupy.ndarray:
        """``||V_k[i]||_q`` of all hidden units, (n or 1, N)."""
        norms = [
            dual_norm(patch.reshape(*patch.shape[:4], -1), p).transpose(0, 3, 1, 2)
            for patch in self.patches
        ]
        norms += [dual_norm(v, p) for v in self.V]
        return flat(norms) if norms else self.f

    def decision_norms(self, p: float) -> cupy.ndarray:
        """``||V_y - V_s||_q``, (n, K)."""
        return dual_norm(self.R, p)


def hyperplanes_around(net: Network, X: cupy.ndarray, y: cupy.ndarray) -> Hyperplanes:
    """Values and gradients of all hidden units and margins at each sample.

    The network's last layer must be dense (`dense_end`).
    """
    cache = net.forward(X)
    logits, own = cache.outputs[-1], one_hot(y, net.n_classes)
    layers, masks = net.affine_layers, cache.masks
    n_conv = len(conv_layers(net))
    of_convs = patches(net, masks, X.dtype) if n_conv else []
    V: list[cupy.ndarray] = []
    for k in range(n_conv, len(layers)):
        W = layers[k].W[None]
        if k == len(layers) - 1:
            W = layers[k].W[y][:, None] - W
        if k == 0:
            V.append(W)
        elif k == n_conv:
            V.append(_rows_behind_patches(net, W, of_convs[-1], masks[k - 1]))
        else:
            V.append(_rows(W, V[-1], masks[k - 1]))
    return Hyperplanes(
        f=flat(cache.outputs[:-1]) if masks else logits[:, :0],
        margin=cupy.take_along_axis(logits, y[:, None], axis=1) - logits,
        own=own,
        patches=of_convs,
        V=V[:-1],
        R=V[-1],
        cache=cache,
    )


def _rows(W, V, mask):
    """``W (s * V)`` of each sample: ``(n or 1, r, N_k), (n or 1, N_k, d), (n, N_k)``."""
    masked = W * mask[:, None]
    if len(V) > 1:
        return masked @ V
    # V is the same for all samples: one large product instead of many small ones.
    return (masked.reshape(-1, masked.shape[2]) @ V[0]).reshape(*masked.shape[:2], -1)


def _rows_behind_patches(net, W, patch, mask):
    """``W (s * V)`` where V are patches: a product for each pixel, then patches are added up."""
    n, n_out, rows, columns = mask.shape
    r = W.shape[1]
    W = W.reshape(len(W), r, n_out, rows * columns).transpose(0, 3, 1, 2)
    masked = patch * mask.transpose(0, 2, 3, 1)[..., None, None, None]
    windows = W @ masked.reshape(n, rows * columns, n_out, -1)
    colors, _, _ = patch.shape[4:]
    windows = windows.reshape(n, rows, columns, r * colors, *patch.shape[5:])
    _, height, width = net.input_shape
    grid = receptive_field(conv_layers(net), net.input_shape)
    return fold(windows, grid, (r * colors, height, width)).reshape(n, r, -1)


def dense_end(net: Network) -> Network:
    """The same function with a dense last layer, for a network that ends in a convolution."""
    last = net.affine_layers[-1]
    if isinstance(last, Linear):
        return net
    W = last.linear(_basis(net)).reshape(-1, net.n_classes).T
    b = cupy.repeat(last.b, net.n_classes // len(last.b))
    return Network([*net.layers[: net.affine[-1]], Flatten(), Linear(W, b)], net.input_shape)


def undo_dense_end(net: Network, gradients: Gradients) -> Gradients:
    """Gradients with respect to the weights of `net` from those of `dense_end(net)`.

    Column j of the dense weights is the convolution of basis vector j.
    """
    last = net.affine_layers[-1]
    if isinstance(last, Linear):
        return gradients
    dW, db = gradients[-1]
    shape = net.shapes[net.affine[-1] + 1]
    dW, _ = last.gradient(_basis(net), dW.T.reshape(-1, *shape))
    return [*gradients[:-1], (dW, db.reshape(shape).sum(axis=(1, 2)))]


def _basis(net):
    """The basis vectors of the input of the last layer."""
    shape = net.shapes[net.affine[-1]]
    return cupy.eye(math.prod(shape), dtype=net.affine_layers[-1].W.dtype).reshape(-1, *shape)


def chunks(net: Network, n: int, itemsize: int) -> Iterator[slice]:
    """Cut n samples into chunks, of one or more, whose gradients fit into `CHUNK_BYTES`."""
    d = math.prod(net.input_shape)
    convolutions = conv_layers(net)
    entries = sum(math.prod(shape) * d for shape in net.shapes[1:] if len(shape) == 1)
    for k, shape in enumerate(net.unit_shapes[: len(convolutions)]):
        grid = receptive_field(convolutions[: k + 1], net.input_shape)
        entries += math.prod(shape) * _pixels(net, grid)
    if convolutions:
        grid = receptive_field(convolutions, net.input_shape)
        rows = len(net.affine_layers[len(convolutions)].W)
        entries += rows * grid.rows * grid.columns * _pixels(net, grid)
    size = max(1, CHUNK_BYTES // (entries * itemsize))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _pixels(net: Network, grid: Grid) -> int:
    """Numbers in a patch: its pixels, of all colors."""
    return net.input_shape[0] * grid.height * grid.width
