"""Gradients of all units at each sample, V of the reference, and the way back from them.

- Units of a convolution have a patch each: the gradient is zero outside their receptive field
  (`refmmr.backends._cupy.receptive_fields`).  Those of the first convolution are its filters, cut
  off at the border, for all samples.  Those of the second are the mask of a unit's window times a
  matrix that all units and samples share (`patch_block`): one matrix product.
- Units of a dense layer have a row each, ``V_{k+1} = W_{k+1} (s_k * V_k)``.

The derivatives of the regularizer with respect to V (``D``) go back the same way, step by step
transposed: matrix products again, whatever number of hyperplanes is active.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cupy

from refmmr.backends._cupy.kernels import launch, repeated
from refmmr.backends._cupy.network import DeviceConv2d, per_network, total
from refmmr.backends._cupy.receptive_fields import conv_layers, receptive_field
from refmmr.backends._cupy.windows import fold, unfold
from refmmr.reference.network import Network


class UnitGradients(NamedTuple):
    """V of a network that ends in a dense layer."""

    patches: list[cupy.ndarray]
    """Per convolution, (n or 1, rows, columns, n_out, c, height, width)."""
    V: list[cupy.ndarray]
    """Per dense layer, that of the logits included, (n or 1, N_k, d)."""
    kept: list[cupy.ndarray | None]
    """What the way back needs again, per layer: windows of masks, or what W was multiplied with."""

    @property
    def rows(self) -> list[cupy.ndarray]:
        """Per layer (n or 1, pixels, outputs, size): a row for each unit; dense: one pixel."""
        of_convs = [patch.reshape(len(patch), -1, patch.shape[3], _size(patch, 4))
                    for patch in self.patches]  # fmt: skip
        return [*of_convs, *(v[:, None] for v in self.V)]


def unit_gradients(net: Network, f: Sequence[cupy.ndarray]) -> UnitGradients:
    """Gradients of the units of all layers.

    Parameters
    ----------
    net : Network
        On the device; its last layer is dense.
    f : sequence of cupy.ndarray, shapes (n, *unit_shape)
        The samples' pre-activations of the hidden layers.
    """
    found = UnitGradients([], [], [])
    n_conv = len(conv_layers(net))
    for k, layer in enumerate(net.affine_layers):
        if k < n_conv:
            rows, kept = _patches(net, k, f, found)
            found.patches.append(rows)
        elif k == 0:
            rows, kept = layer.W[None], None
        elif k == n_conv:
            rows, kept = _behind_patches(net, layer.W, found.patches[-1], f[k - 1])
        else:
            rows, kept = _dense(layer.W, found.V[-1], f[k - 1])
        if k >= n_conv:
            found.V.append(rows)
        found.kept.append(kept)
    return found


def add_back(
    net: Network,
    f: Sequence[cupy.ndarray],
    found: UnitGradients,
    D: cupy.ndarray,
    add_direct: Callable[[int, cupy.ndarray], None],
    add_weights: Callable[[int, cupy.ndarray], None],
) -> None:
    """From derivatives with respect to V to derivatives with respect to the weights.

    Parameters
    ----------
    net, f
        As given to `unit_gradients`.
    found : UnitGradients
    D : cupy.ndarray, shape (n or 1, K, d)
        With respect to the gradients of the logits.
    add_direct : callable
        ``add_direct(k, D)`` adds to D the part that reads layer k's V directly.
    add_weights : callable
        ``add_weights(k, dW)`` takes derivatives with respect to the weights of layer k.
    """
    n_conv = len(conv_layers(net))
    for k in reversed(range(1, len(net.affine))):
        if k > n_conv:
            dW, D = _dense_back(found.V[k - 1 - n_conv], found.kept[k], f[k - 1], D)
        elif k == n_conv:
            dW, D = _behind_patches_back(
                net, net.affine_layers[k].W, found.patches[-1], found.kept[k], f[k - 1], D
            )
        elif k == 1:
            dW, dfirst = _second_patches_back(net, found.kept[1], D)
            add_weights(0, dfirst.reshape(net.affine_layers[0].W.shape))
            D = cupy.zeros_like(found.patches[0])
        else:
            dW, D = _later_patches_back(net, k, f, found.patches[k - 1], D)
        add_weights(k, dW)
        add_direct(k - 1, D)
    if n_conv:  # each unit has its own copy of the filter, cut off at the border
        D = total(D.reshape(-1, _size(D, 3)))
    elif len(D) > 1:  # no hidden layer: all samples share V, but each has its own D
        D = total(D.reshape(len(D), -1))
    add_weights(0, D.reshape(net.affine_layers[0].W.shape))


# ------------------------------------------------------------------------------------ dense layers


def _dense(W, V, f):
    """``W (s * V)`` of each sample: ``(r, N), (n or 1, N, d), (n, N)``; also ``W * s``."""
    masked = cupy.empty((len(f), *W.shape), V.dtype)
    launch("mask_weights", V.dtype, masked.size, W, f, masked, *W.shape)
    if len(V) > 1:
        return masked @ V, masked
    # V is the same for all samples: one large product instead of many small ones.
    return (masked.reshape(-1, W.shape[1]) @ V[0]).reshape(*masked.shape[:2], -1), masked


def _dense_back(V, masked, f, D):
    n, r, inner = masked.shape
    if len(V) > 1:
        dmasked, dV = D @ V.transpose(0, 2, 1), masked.transpose(0, 2, 1) @ D
    else:
        masked, D = masked.reshape(-1, inner), D.reshape(n * r, -1)
        dmasked, dV = D @ V[0].T, (masked.T @ D)[None]
    dW = cupy.empty((r, inner), D.dtype)
    launch("mask_weights_back", D.dtype, dW.size, cupy.ascontiguousarray(dmasked), f, dW, n, inner)
    return dW, dV


def _behind_patches(net, W, patch, f):
    """``W (s * V)`` where V are patches: a product for each pixel, then patches are added up."""
    n, n_out, rows, columns = f.shape
    size = _size(patch, 4)
    masked = cupy.empty((n, rows * columns, n_out, size), patch.dtype)
    args = (n, size, rows * columns, n_out, len(patch) == 1)
    launch("mask_patches", patch.dtype, repeated(masked), patch, f, masked, *args)
    windows = _by_pixel(W, f) @ masked
    colors, *window = patch.shape[4:]
    windows = windows.reshape(n, rows, columns, len(W) * colors, *window)
    images = fold(windows, _field(net), (len(W) * colors, *net.input_shape[1:]))
    return images.reshape(n, len(W), -1), masked


def _behind_patches_back(net, W, patch, masked, f, D):
    n, n_out, rows, columns = f.shape
    r, pixels, size = len(W), rows * columns, masked.shape[3]
    images = D.reshape(n, r * patch.shape[4], *net.input_shape[1:])
    D = unfold(images, _field(net)).reshape(n, pixels, r, size)
    dmasked = cupy.ascontiguousarray(_by_pixel(W, f).transpose(0, 1, 3, 2) @ D)
    args = (dmasked, f, dmasked, n, size, pixels, n_out, False)
    launch("mask_patches", D.dtype, repeated(dmasked), *args)
    dW = total((D @ masked.transpose(0, 1, 3, 2)).reshape(n, -1))
    dW = dW.reshape(pixels, r, n_out).transpose(1, 2, 0).reshape(W.shape)
    if len(patch) == 1:
        dmasked = total(dmasked.reshape(n, -1))
    return dW, dmasked.reshape(patch.shape)


def _by_pixel(W, f):
    """Weights behind a convolution, ``(r, n_out * pixels) -> (1, pixels, r, n_out)``."""
    _, n_out, rows, columns = f.shape
    W = W.reshape(len(W), n_out, rows * columns).transpose(2, 0, 1)
    return cupy.ascontiguousarray(W)[None]


# ----------------------------------------------------------------------------------------- patches


def _patches(net, k, f, found):
    """V of convolution k from that of the one before; also what `_second_patches_back` needs."""
    layer, dtype = net.affine_layers[k], net.affine_layers[0].W.dtype
    grid = receptive_field(conv_layers(net)[: k + 1], net.input_shape)
    n = 1 if k == 0 else len(f[k - 1])
    colors = net.input_shape[0]
    shape = (n, grid.rows, grid.columns, len(layer.W), colors, grid.height, grid.width)
    if k == 1:
        return _second_patches(net, f[0], grid, shape)
    if k == 0:
        before, active = _pixels(net.input_shape, dtype.name)
    else:
        before, active = found.patches[k - 1], f[k - 1] > 0
    after = cupy.empty(shape, dtype)
    args = (before, active, layer.W, after, k == 0)
    launch("extend_patches", dtype, after.size, *args, *_geometry(net, k))
    return after, None


@functools.lru_cache(maxsize=8)
def _pixels(input_shape, dtype):
    """Pixels as units: a patch of one number each, and all of them are active."""
    colors, height, width = input_shape
    eye = cupy.broadcast_to(cupy.eye(colors, dtype=dtype), (1, height, width, colors, colors))
    patches = cupy.ascontiguousarray(eye).reshape(1, height, width, colors, colors, 1, 1)
    return patches, cupy.ones((1, *input_shape), bool)


def _second_patches(net, f, grid, shape):
    """One product with the block, then the border is cut off; also the windows of the masks."""
    window = net.affine_layers[1].grid(net.unit_shapes[0])
    windows = unfold(f, window, mask=True)
    windows = windows.reshape(-1, _size(windows, 3))
    block = cupy.empty((windows.shape[1], math.prod(shape[3:])), f.dtype)
    before, filters = (layer.W for layer in net.affine_layers[:2])
    launch("patch_block", f.dtype, block.size, filters, before, block, *_block_sizes(net))
    after = windows @ block
    sizes = (shape[3] * shape[4], *net.input_shape[1:])
    launch("crop_patches", f.dtype, after.size // grid.width, after, *sizes, *grid)
    return after.reshape(shape), windows


def _second_patches_back(net, windows, D):
    """Derivatives with respect to the filters of the second and of the first convolution."""
    dtype = D.dtype
    dblock = cupy.ascontiguousarray(windows.T @ D.reshape(len(windows), -1))
    before, filters = (layer.W for layer in net.affine_layers[:2])
    dfilters = cupy.empty_like(filters)
    dbefore = cupy.empty((len(filters), before.size), dtype)
    sizes = _block_sizes(net)
    launch("patch_block_filters", dtype, dfilters.size, dblock, before, dfilters, *sizes)
    launch("patch_block_before", dtype, dbefore.size, dblock, filters, dbefore, *sizes)
    return dfilters, total(dbefore)


@per_network
def _block_sizes(net):
    """Sizes that the kernels of the block take."""
    second = net.affine_layers[1]
    old, new = (receptive_field(conv_layers(net)[:j], net.input_shape) for j in (1, 2))
    n_out, n_in, *window = second.W.shape
    sizes = (n_in, n_out, *window, old.down, old.across, net.input_shape[0], old.height, old.width)
    return (*sizes, new.height, new.width)


def _later_patches_back(net, k, f, before, D):
    """Derivatives with respect to the filters of convolution k, and to the patches before it."""
    W, active = net.affine_layers[k].W, f[k - 1] > 0
    D, sizes = cupy.ascontiguousarray(D), _geometry(net, k)
    dbefore, dW = cupy.empty_like(before), cupy.empty((len(D), *W.shape), D.dtype)
    launch("extend_patches_back", D.dtype, dbefore.size, D, active, W, dbefore, *sizes)
    launch("extend_patches_filters", D.dtype, dW.size, before, active, D, dW, *sizes)
    return total(dW.reshape(len(D), -1)).reshape(W.shape), dbefore


@per_network
def _geometry(net, k):
    """Sizes that the kernels of patches take: from convolution k - 1, or the pixels, to k."""
    convolutions: list[DeviceConv2d] = conv_layers(net)
    shape = net.unit_shapes[k - 1] if k else net.input_shape
    old, new = (receptive_field(convolutions[:j], net.input_shape) for j in (k, k + 1))
    return (
        *shape, old.height, old.width, old.down, old.across, len(convolutions[k].W),
        *convolutions[k].grid(shape), net.input_shape[0], new.height, new.width,
    )  # fmt: skip


@per_network
def _field(net):
    """The receptive fields of the last convolution."""
    return receptive_field(conv_layers(net), net.input_shape)


def _size(array, axis):
    """Numbers in an entry of the axes from `axis` on."""
    return math.prod(array.shape[axis:])
