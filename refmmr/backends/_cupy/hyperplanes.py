"""The hyperplanes around a batch: values, gradients and norms, without the zeros of V.

The gradients of units are those of `refmmr.backends._cupy.unit_gradients`; those of margins are
differences of the rows of two classes, ``V_y - V_s``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import cupy

from refmmr.backends._cupy.kernels import launch
from refmmr.backends._cupy.network import one_hot, per_network
from refmmr.backends._cupy.receptive_fields import conv_layers, receptive_field
from refmmr.backends._cupy.unit_gradients import unit_gradients
from refmmr.backends._cupy.windows import Grid
from refmmr.reference.layers import Flatten, Linear
from refmmr.reference.network import Gradients, Network, flat

CHUNK_BYTES = 2**30
"""Samples are processed in chunks whose gradients fit into this: 1 GB, and thrice that with what is
made of them; a smaller device halves the chunks."""

T = TypeVar("T")


def dual_norm(w: cupy.ndarray, p: float) -> cupy.ndarray:
    """``||w||_q`` along the last axis: `refmmr.reference.hyperplanes.dual_norm`, but for one thing.

    Lengths whose squares underflow are not computed again: to look for them would wait for the
    device.
    """
    if p == 2:
        return cupy.sqrt((w * w).sum(axis=-1))
    return abs(w).max(axis=-1) if p == 1 else abs(w).sum(axis=-1)


class Hyperplanes(NamedTuple):
    """The affine functions whose zeros are the hyperplanes around each sample of a batch."""

    f: cupy.ndarray  # (n, N), pre-activations of the hidden units
    margin: cupy.ndarray  # (n, K), f_y - f_s
    own: cupy.ndarray  # (n, K) bool, the class's own column
    patches: list[cupy.ndarray]  # per conv hidden layer, see `receptive_fields.patches`
    V: list[cupy.ndarray]  # per dense hidden layer (n or 1, N_k, d), row i the gradient of unit i
    R: cupy.ndarray  # (n, K, d), V_y - V_s

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
    logits = cache.outputs[-1]
    f = [cupy.ascontiguousarray(values) for values in cache.outputs[:-1]]
    found = unit_gradients(net, f)
    last = found.V[-1]
    R = cupy.empty((len(X), *last.shape[1:]), X.dtype)
    y = y.astype("i8", copy=False)
    launch("class_differences", X.dtype, R.size, last, y, R, *last.shape[1:], len(last) == 1)
    return Hyperplanes(
        f=flat(f) if f else logits[:, :0],
        margin=cupy.take_along_axis(logits, y[:, None], axis=1) - logits,
        own=one_hot(y, net.n_classes),
        patches=found.patches,
        V=found.V[:-1],
        R=R,
    )


def dense_end(net: Network) -> Network:
    """The same function with a dense last layer, for a network that ends in a convolution."""
    last = net.affine_layers[-1]
    if isinstance(last, Linear):
        return net
    W = cupy.ascontiguousarray(last.linear(_basis(net)).reshape(-1, net.n_classes).T)
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


def in_chunks(function: Callable[[slice], T], net: Network, n: int, itemsize: int) -> Iterator[T]:
    """Run a function of some samples on n of them, in chunks.

    The gradients of a chunk fit into `CHUNK_BYTES`.  If the device has less memory than that needs,
    what the pool keeps is freed, and chunks are halved.
    """
    size, start = _chunk_size(net, itemsize) if itemsize else max(n, 1), 0
    while start < n or start == 0:
        rows = slice(start, min(start + size, n))
        try:
            found = function(rows)
        except cupy.cuda.memory.OutOfMemoryError:
            if size == 1:
                raise
            found = None
        if found is None:  # only now no exception holds the arrays of the call any more
            cupy.get_default_memory_pool().free_all_blocks()
            size = (min(size, n) + 1) // 2
            continue
        yield found
        start = max(rows.stop, 1)


def _chunk_size(net: Network, itemsize: int) -> int:
    """Samples whose gradients fit into `CHUNK_BYTES`, at least 1."""
    return max(1, CHUNK_BYTES // (_entries(net) * itemsize))


@per_network
def _entries(net: Network) -> int:
    """Numbers in the gradients of a sample."""
    d = math.prod(net.input_shape)
    convolutions = conv_layers(net)
    entries = sum(len(layer.b) for layer in net.affine_layers[len(convolutions) :]) * d
    for k, shape in enumerate(net.unit_shapes[: len(convolutions)]):
        grid = receptive_field(convolutions[: k + 1], net.input_shape)
        entries += math.prod(shape) * _pixels(net, grid)
    if convolutions:
        grid = receptive_field(convolutions, net.input_shape)
        rows = len(net.affine_layers[len(convolutions)].W)
        entries += rows * grid.rows * grid.columns * _pixels(net, grid)
    return entries


def _pixels(net: Network, grid: Grid) -> int:
    """Numbers in a patch: its pixels, of all colors."""
    return net.input_shape[0] * grid.height * grid.width
