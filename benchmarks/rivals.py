"""The method in PyTorch: what the library's backends are compared with.

Three ways to write the value and the gradient of MMR with autograd, and the attack and the training
around them.

(a) ``graph``
    As in the authors' released TensorFlow graph: V_k is a dense array of d rows for every sample,
    pushed through all layers (a convolution has d images a sample), all K rows of the last layer
    are there before differences are taken, and autograd goes back through everything.

(b) ``careful``
    What a careful user of PyTorch writes: one graph from the weights to the loss, and autograd.
    Masks are folded into the weights, only differences of classes are pushed, from the logits
    *back* to the input (K - 1 rows and not d columns).  A unit of the second convolution is a small
    patch of pixels, and a row of the dense layer behind it a sum of such patches.  The order of the
    products and the size of the chunks of samples are the quickest of those that were tried.

(c) ``expert``
    As fast as plain PyTorch operations allow, by knowing where the gradient is zero.  Distances
    come first, by the operations of (b) but without a graph; then the hyperplanes that the hinge
    selects, and no others, are computed once more, with one.  What all samples share is taken out
    of the graphs of the chunks and backpropagated once.

All compute what `refmmr.mmr_gradient` computes: masks are constant, ``|f|`` and the norm have
derivative 0 at 0, a hyperplane without a gradient is infinitely far, rows of units at the border of
a padded image are truncated.  ``tests/optional/test_rivals.py`` holds them against it.

Without a gradient (b) and (c) are the same, so there is one of them for distances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import refmmr as rm

CHUNK = 8
"""Samples of a convolutional network that are treated at a time."""


class Options(NamedTuple):
    """What is asked of the regularizer; the loss is ``weight * cross-entropy + lam * MMR``."""

    p: float
    gamma_b: float
    gamma_d: float
    k_b: int
    k_d: int
    lam: float = 1.0
    weight: float = 0.0  # of the cross-entropy


class Model:
    """A network of the library with its weights as leaves of autograd.

    Parameters
    ----------
    net : refmmr.Network
        Its weights are copied.
    """

    def __init__(self, net: rm.Network) -> None:
        self.net = net
        self.layers = net.affine_layers
        self.parameters = [(_leaf(W), _leaf(b)) for W, b in net.parameters]
        # Image sizes in front of the convolutions; Flatten commutes with a ReLU.
        self.sizes = [net.shapes[i][1:] for i in net.affine]
        # Where the units of each hidden layer start and end among all of them.
        counts = [int(np.prod(shape)) for shape in net.unit_shapes]
        self.ends = [sum(counts[:k]) for k in range(len(counts) + 1)]

    @property
    def leaves(self) -> list[Tensor]:
        """All weights and biases, W before b."""
        return [leaf for pair in self.parameters for leaf in pair]

    def forward(self, x: Tensor, frozen: bool = False) -> list[Tensor]:
        """Pre-activations ``f_1, ..., f_{L+1}``, images where the layer is a convolution.

        Frozen weights take no gradient.
        """
        outputs: list[Tensor] = []
        for k, (W, b) in enumerate(self.parameters):
            W, b = (W.detach(), b.detach()) if frozen else (W, b)
            x = torch.relu(outputs[-1]) if outputs else x
            outputs.append(self.apply(k, x, W, b))
        return outputs

    def apply(self, k: int, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Layer k of points, or of directions where there is no bias."""
        layer = self.layers[k]
        if isinstance(layer, rm.Linear):
            return functional.linear(x.flatten(1), W, b)
        (top, bottom), (left, right) = layer.pads(*self.sizes[k])
        if top == bottom and left == right:
            return functional.conv2d(x, W, b, layer.stride, (top, left))
        x = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(x, W, b, layer.stride)

    def transpose(self, k: int, g: Tensor) -> Tensor:
        """Transposed layer k, of rows that are flat or images."""
        layer, (W, _) = self.layers[k], self.parameters[k]
        if isinstance(layer, rm.Linear):
            return g @ W
        (top, _), (left, _) = layer.pads(*self.sizes[k])
        padded = functional.conv_transpose2d(g, W, stride=layer.stride)
        return _crop(padded, top, left, self.sizes[k])

    def gradients(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """What autograd left in the leaves, one ``(dW, db)`` per layer; zero where nothing."""
        arrays = [
            (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).numpy()
            for leaf in self.leaves
        ]
        return list(zip(arrays[::2], arrays[1::2], strict=True))

    def clear(self) -> None:
        """Delete the gradients."""
        for leaf in self.leaves:
            leaf.grad = None


def _leaf(array: np.ndarray) -> Tensor:
    return torch.tensor(array, requires_grad=True)


def _crop(padded: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    """The image of this size that starts at (top, left); zeros where there is nothing."""
    height, width = padded.shape[-2:]
    right, bottom = size[1] + left - width, size[0] + top - height
    if top == left == right == bottom == 0:
        return padded
    return functional.pad(padded, (-left, right, -top, bottom))


# The pieces of the formula that all share.


def dual_norm(rows: Tensor, p: float, dim: int = -1) -> Tensor:
    """``||w||_q`` along an axis; autograd takes 0 for its derivative at 0."""
    if p == 1:
        return rows.abs().max(dim=dim).values
    return torch.linalg.vector_norm(rows, ord=2 if p == 2 else 1, dim=dim)


def hyperplane_distance(value: Tensor, norm: Tensor) -> Tensor:
    """``value / norm``, infinite where there is no hyperplane."""
    hyperplane = norm > 0
    return torch.where(hyperplane, value / torch.where(hyperplane, norm, 1), torch.inf)


def mean_hinge(d: Tensor, gamma: float, k: int) -> Tensor:
    """Sum over the samples of ``1/k sum_{j <= k} max(0, 1 - d^(j)/gamma)``."""
    nearest = d.topk(min(k, d.shape[1]), dim=1, largest=False, sorted=False).values
    return torch.relu(1 - nearest / gamma).sum() / k


def total_loss(logits: Tensor, y: Tensor, d_B: Tensor, d_D: Tensor, o: Options) -> Tensor:
    """Sum over the samples, of all their hyperplanes."""
    loss = o.lam * (mean_hinge(d_B, o.gamma_b, o.k_b) + mean_hinge(d_D, o.gamma_d, o.k_d))
    return loss + o.weight * cross_entropy(logits, y) if o.weight else loss


def selected(d: Tensor, gamma: float, k: int) -> tuple[Tensor, Tensor]:
    """Sample and index of the active hyperplanes: among the k nearest, and nearer than gamma."""
    nearest = d.topk(min(k, d.shape[1]), dim=1, largest=False, sorted=False)
    sample, place = (nearest.values < gamma).nonzero(as_tuple=True)
    return sample, nearest.indices[sample, place]


def other_classes(y: Tensor, n_classes: int) -> Tensor:
    """The classes but the sample's own, (n, K - 1)."""
    s = torch.arange(n_classes - 1)
    return s + (s >= y[:, None])


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Sum over the samples."""
    return functional.cross_entropy(logits, y, reduction="sum")


# (a) The authors' graph.


def graph_backward(model: Model, X: Tensor, y: Tensor, o: Options) -> float:
    """Value of the loss; its gradient is left in the leaves.

    A convolutional network takes the batch in chunks: whole it would need gigabytes.
    """
    size = CHUNK if isinstance(model.layers[0], rm.Conv2d) else len(X)
    value = 0.0
    for some_X, some_y in zip(X.split(size), y.split(size), strict=True):
        loss = graph_loss(model, some_X, some_y, o) / len(X)
        if loss.requires_grad:  # not where no hyperplane exists
            loss.backward()
        value += loss.item()
    return value


def graph_loss(model: Model, X: Tensor, y: Tensor, o: Options) -> Tensor:
    """Sum over the samples, with V dense for every sample."""
    f = model.forward(X)
    return total_loss(f[-1], y, *graph_distances(model, f, y, o.p), o)


def graph_distances(model: Model, f: list[Tensor], y: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """d_B and d_D (n, K), infinite in the class's own column, from the dense V."""
    n, rows = len(y), torch.arange(len(y))
    V = dense_columns(model, f)
    norms = [dual_norm(v, p, dim=1).expand(n, -1) for v in V[:-1]]
    d_B = [hyperplane_distance(g.flatten(1).abs(), norm) for g, norm in zip(f, norms, strict=False)]
    W = V[-1].expand(n, -1, -1)
    margins = f[-1][rows, y][:, None] - f[-1]
    d_D = hyperplane_distance(margins, dual_norm(W[rows, :, y][:, :, None] - W, p, dim=1))
    return torch.cat([*d_B, margins[:, :0]], dim=1), d_D


@torch.no_grad()
def all_graph_distances(model: Model, X: Tensor, y: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """d_B and d_D of `graph_distances` without a graph, by chunks as in `graph_backward`."""
    size = CHUNK if isinstance(model.layers[0], rm.Conv2d) else len(X)
    parts = []
    for some_X, some_y in zip(X.split(size), y.split(size), strict=True):
        d_B, d_D = graph_distances(model, model.forward(some_X), some_y, p)
        parts.append((d_B, d_D.scatter_(1, some_y[:, None], torch.inf)))
    d_B, d_D = (torch.cat(arrays) for arrays in zip(*parts, strict=True))
    return d_B, d_D


def dense_columns(model: Model, f: list[Tensor]) -> list[Tensor]:
    """``V_k`` of every layer, (n, d, N_k): the d basis vectors through the frozen network."""
    shape = model.net.input_shape
    g = torch.eye(int(np.prod(shape)), dtype=f[0].dtype).view(-1, *shape)
    d, columns = len(g), []
    for k, (W, _) in enumerate(model.parameters):
        out = model.apply(k, g, W, None)
        out = out.view(-1, d, *out.shape[1:])
        columns.append(out.flatten(2))
        if k < len(f) - 1:
            g = (out * (f[k] > 0)[:, None]).flatten(0, 1)
    return columns


# (b) Careful PyTorch.


def careful_backward(model: Model, X: Tensor, y: Tensor, o: Options) -> float:
    """Value of the loss; its gradient is left in the leaves."""
    method = _fitting(model, _CarefulDense, _CarefulConvolutional)
    return _backward(method(model, o.p), X, y, o)


@torch.no_grad()
def careful_distances(model: Model, X: Tensor, y: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """d_B (n, N) and d_D (n, K), infinite in the class's own column."""
    method = _fitting(model, _CarefulDense, _CarefulConvolutional)(model, p)
    method.share()
    parts = []
    for rows in method.chunks(len(X)):
        f = model.forward(X[rows])
        d_B, d_D = method.distances(f, y[rows])
        full = torch.full_like(f[-1], torch.inf)
        parts.append((d_B, full.scatter_(1, other_classes(y[rows], full.shape[1]), d_D)))
    d_B, d_D = (torch.cat(arrays) for arrays in zip(*parts, strict=True))
    return d_B, d_D


def _fitting(model: Model, dense: type, convolutional: type) -> type:
    """The class for the layers of the model."""
    convolutions = [isinstance(layer, rm.Conv2d) for layer in model.layers]
    if not any(convolutions):
        return dense
    if convolutions[:2] == [True, True] and not any(convolutions[2:]) and len(convolutions) >= 4:
        return convolutional
    raise ValueError("careful: dense layers alone, or two convolutions and two dense layers")


def _backward(method: _Careful, X: Tensor, y: Tensor, o: Options) -> float:
    value = 0.0
    for rows in method.chunks(len(X)):
        loss = method.loss(X[rows], y[rows], o) / len(X)
        if loss.requires_grad:  # not where no hyperplane is selected
            loss.backward()
        value += loss.item()
    method.finish()
    return value


class _Careful:
    """Distances to all hyperplanes, and the loss by one graph through all of them."""

    def __init__(self, model: Model, p: float) -> None:
        self.model, self.p = model, p

    def share(self) -> None:
        """Compute what all samples share: the norms of the first layer."""
        self.norms = dual_norm(self.first_rows(), self.p, dim=1).flatten()

    def loss(self, X: Tensor, y: Tensor, o: Options) -> Tensor:
        """Sum over the samples."""
        self.share()  # autograd frees the graph of each chunk
        f = self.model.forward(X)
        return total_loss(f[-1], y, *self.distances(f, y), o)

    def finish(self) -> None:
        """Nothing is left to do: autograd has computed all gradients."""

    def signs(self, y: Tensor) -> Tensor:
        """A margin is this times the logits: +1 for the class, -1 for the rival; (n, K - 1, K)."""
        n_classes = self.model.net.n_classes
        own, others = one_hot(y, n_classes, self.norms), other_classes(y, n_classes)
        return own[:, None] - one_hot(others, n_classes, self.norms)


class _CarefulDense(_Careful):
    """Dense layers: all rows that are needed in one product for each layer that they cross."""

    def chunks(self, n: int) -> Iterator[slice]:
        """With one hidden layer the whole batch: its rows are K - 1 a sample."""
        size = n if len(self.model.layers) <= 2 else CHUNK
        return (slice(i, i + size) for i in range(0, n, size))

    def first_rows(self) -> Tensor:
        """Rows of the first layer, (N_1, d)."""
        return self.model.parameters[0][0]

    def distances(self, f: list[Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
        """d_B (n, N) and d_D (n, K - 1), to the other classes."""
        self.masks = [(g > 0).to(g.dtype) for g in f[:-1]]
        n = len(y)
        norms = [self.norms.expand(n, -1)][: len(self.masks)]
        for k, (W, _) in enumerate(self.model.parameters[1:-1], start=1):
            norms.append(dual_norm(self.all_back(W.expand(n, -1, -1), k - 1), self.p))
        signs = self.signs(y)
        self.R = self.all_back(signs @ self.model.parameters[-1][0], len(self.masks) - 1)
        margins = (signs @ f[-1][:, :, None])[:, :, 0]
        values = [g.abs() for g in f[:-1]] or [margins[:, :0]]
        d_B = hyperplane_distance(torch.cat(values, 1), torch.cat(norms or values, 1))
        return d_B, hyperplane_distance(margins, dual_norm(self.R, self.p))

    def all_back(self, rows: Tensor, k: int) -> Tensor:
        """All rows (n, m, N_k) of all samples, back from hidden layer k to the input."""
        for j in reversed(range(k + 1)):
            rows = (rows * self.masks[j][:, None]) @ self.model.parameters[j][0]
        return rows


class _CarefulConvolutional(_Careful):
    """Two convolutions, then dense layers.

    The row of a unit of the second convolution is zero outside a patch of the image.  The patch is
    the mask in the unit's window, times a matrix that is the same for all windows: the patches of
    all units of all samples are one product.
    """

    def __init__(self, model: Model, p: float) -> None:
        super().__init__(model, p)
        first, second = model.layers[:2]
        self.stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
        outer, inner = (
            layer.pads(*size) for layer, size in zip(model.layers[:2], model.sizes[:2], strict=True)
        )
        self.vertex = tuple(
            a[0] + step * b[0] for a, b, step in zip(outer, inner, first.stride, strict=True)
        )
        self.patch = (
            model.net.input_shape[0],
            *(
                (k2 - 1) * step + k1
                for k1, k2, step in zip(
                    first.W.shape[2:], second.W.shape[2:], first.stride, strict=True
                )
            ),
        )
        self.d = int(np.prod(model.net.input_shape))
        self.pixels = self.pixels_of_patches()
        dtype = model.leaves[0].dtype
        self.inside = (self.pixels < self.d).to(dtype)
        self.window_inside = self.windows(0, torch.ones(1, *model.net.input_shape, dtype=dtype))

    def chunks(self, n: int) -> Iterator[slice]:
        """Chunks that fit into the cache."""
        return (slice(i, i + CHUNK) for i in range(0, n, CHUNK))

    def share(self) -> None:
        """Besides the norms of the first layer: the patch of each tap, for each channel."""
        super().share()
        W1, W2 = (W for W, _ in self.model.parameters[:2])
        taps = W2[0].numel()
        windows = torch.eye(taps, dtype=W1.dtype).view(taps, *W2.shape[1:])
        stride = self.model.layers[0].stride
        self.patches = functional.conv_transpose2d(windows, W1, stride=stride).flatten(1)
        self.wide = (W2.flatten(1).T[:, :, None] * self.patches[:, None]).flatten(1)

    def first_rows(self) -> Tensor:
        """Rows of the first convolution, without what hangs over the border: (c, taps, pixels)."""
        return self.model.parameters[0][0].flatten(1)[:, :, None] * self.window_inside

    def windows(self, k: int, image: Tensor) -> Tensor:
        """The window of each position of convolution k: (n, taps, positions)."""
        layer = self.model.layers[k]
        (top, bottom), (left, right) = layer.pads(*self.model.sizes[k])
        image = functional.pad(image, (left, right, top, bottom))
        return functional.unfold(image, layer.W.shape[2:], stride=layer.stride)

    def pixels_of_patches(self) -> Tensor:
        """Index in the flat image of the pixels of each patch, (positions, pixels); d outside."""
        channels, height, width = self.model.net.input_shape
        down, across = (
            torch.arange(count)[:, None] * step + torch.arange(size) - start
            for count, step, size, start in zip(
                self.model.net.unit_shapes[1][1:],
                self.stride,
                self.patch[1:],
                self.vertex,
                strict=True,
            )
        )
        down, across = down[:, None, None, :, None], across[None, :, None, None, :]
        inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
        channel = torch.arange(channels)[:, None, None]
        pixels = torch.where(inside, (channel * height + down) * width + across, self.d)
        return pixels.flatten(2).flatten(0, 1)

    def distances(self, f: list[Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
        """d_B (n, N) and d_D (n, K - 1), to the other classes."""
        self.masks = [(g > 0).to(g.dtype) for g in f[:-1]]
        n, p = len(y), self.p
        self.seen = self.windows(1, self.masks[0]).transpose(1, 2).contiguous()
        rows = self.seen.flatten(0, 1) @ self.wide
        rows = rows.view(n, len(self.pixels), -1, self.pixels.shape[1]) * self.inside[:, None]
        norms = [self.norms.expand(n, -1), dual_norm(rows, p).transpose(1, 2).flatten(1)]
        V = self.dense_rows(rows)
        for k in range(2, len(f) - 1):
            norms.append(dual_norm(V, p, dim=1))
            if k < len(f) - 2:
                V = (V * self.masks[k][:, None]) @ self.model.parameters[k + 1][0].T
        d_B = hyperplane_distance(
            torch.cat([g.flatten(1).abs() for g in f[:-1]], 1), torch.cat(norms, 1)
        )
        signs = self.signs(y)
        R = ((signs @ self.model.parameters[-1][0]) * self.masks[-1][:, None]) @ V.transpose(1, 2)
        return d_B, hyperplane_distance((signs @ f[-1][:, :, None])[:, :, 0], dual_norm(R, p))

    def dense_rows(self, rows: Tensor) -> Tensor:
        """Columns of the dense layer behind the convolutions, (n, d, N_3): sums of patches."""
        n, positions, channels, _ = rows.shape
        W = self.model.parameters[2][0].view(-1, channels, positions).permute(2, 1, 0)
        weights = W.contiguous() * self.masks[1].flatten(2).transpose(1, 2)[:, :, :, None]
        parts = (rows.transpose(2, 3) @ weights).flatten(1, 2)  # (n, positions * pixels, N_3)
        # What hangs over the border goes to a last row that is dropped.
        image = parts.new_zeros(n, self.d + 1, parts.shape[2])
        return image.index_add(1, self.pixels.flatten(), parts)[:, :-1]


# (c) Expert PyTorch.


def expert_backward(model: Model, X: Tensor, y: Tensor, o: Options) -> float:
    """Value of the loss; its gradient is left in the leaves."""
    method = _fitting(model, _ExpertDense, _ExpertConvolutional)
    return _backward(method(model, o.p), X, y, o)


class _Expert(_Careful):
    """Distances to all hyperplanes without a graph, then the loss of the selected ones with it.

    What all samples share is cut from the graph: the chunks add up its gradient, and `finish`
    backpropagates the sum to the weights once.
    """

    def __init__(self, model: Model, p: float) -> None:
        super().__init__(model, p)
        self.cuts: list[tuple[Tensor, Tensor]] = []
        self.share()

    def share(self) -> None:
        """Once for all chunks."""
        super().share()
        self.norms = self.cut(self.norms)

    def cut(self, tensor: Tensor) -> Tensor:
        """A leaf in the place of a tensor."""
        leaf = tensor.detach().requires_grad_()
        self.cuts.append((tensor, leaf))
        return leaf

    def finish(self) -> None:
        """Backpropagate the gradients of the cuts."""
        for tensor, leaf in self.cuts:
            if leaf.grad is not None:
                tensor.backward(leaf.grad)

    def loss(self, X: Tensor, y: Tensor, o: Options) -> Tensor:
        """Sum over the samples."""
        f = self.model.forward(X)
        with torch.no_grad():
            d_B, d_D = self.distances(f, y)
        loss = o.weight * cross_entropy(f[-1], y) if o.weight else f[-1].new_zeros(())
        sample, unit = selected(d_B, o.gamma_b, o.k_b)
        for k, (first, last) in enumerate(pairwise(self.model.ends)):
            here = ((first <= unit) & (unit < last)).nonzero()[:, 0]
            if len(here):
                i, j = sample[here], unit[here] - first
                d = pick(f[k].flatten(1), i, j).abs() / self.unit_norms(k, i, j)
                loss = loss + o.lam / o.k_b * (1 - d / o.gamma_b).sum()
        sample, rival = selected(d_D, o.gamma_d, o.k_d)
        if len(sample):
            signs = self.signs(y)[sample, rival]
            margins = (signs * f[-1][sample]).sum(dim=1)
            d = margins / dual_norm(self.margin_rows(signs, sample, rival), self.p)
            loss = loss + o.lam / o.k_d * (1 - d / o.gamma_d).sum()
        return loss

    def unit_norms(self, k: int, sample: Tensor, unit: Tensor) -> Tensor:
        """Norms of the rows of some units of layer k, each at one sample."""
        if k == 0:
            return self.norms.index_select(0, unit)
        W, _ = self.model.parameters[k]
        return dual_norm(self.push_back(W[unit], k - 1, sample), self.p)

    def margin_rows(self, signs: Tensor, sample: Tensor, rival: Tensor) -> Tensor:
        """``V_y - V_s``, of some margins, each at one sample."""
        W, _ = self.model.parameters[-1]
        return self.push_back(signs @ W, len(self.masks) - 1, sample)

    def push_back(self, rows: Tensor, k: int, sample: Tensor) -> Tensor:
        """Rows that act on the activations of hidden layer k, as rows that act on the input."""
        for j in reversed(range(k + 1)):
            rows = rows.view(-1, *self.model.net.unit_shapes[j]) * self.masks[j][sample]
            rows = self.model.transpose(j, rows)
        return rows.flatten(1)


class _ExpertDense(_Expert, _CarefulDense):
    """Dense layers; with one hidden layer the rows of `distances` need no second product."""

    def margin_rows(self, signs: Tensor, sample: Tensor, rival: Tensor) -> Tensor:
        """With one hidden layer the rows are one product, and `distances` has done it."""
        if len(self.masks) != 1:
            return super().margin_rows(signs, sample, rival)
        W, V = self.model.parameters[1][0], self.model.parameters[0][0]
        return _KnownProduct.apply((signs @ W) * self.masks[0][sample], V, self.R[sample, rival])


class _KnownProduct(torch.autograd.Function):
    """``a @ b`` where the product is known, but autograd has not seen it."""

    @staticmethod
    def forward(ctx, a, b, product):
        ctx.save_for_backward(a, b)
        return product.view_as(product)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g @ b.T, a.T @ g, None


class _ExpertConvolutional(_Expert, _CarefulConvolutional):
    """Two convolutions, then dense layers; a selected unit of the second one is a patch."""

    def share(self) -> None:
        """The patches are cut too; what is made of them needs no graph."""
        super().share()
        self.patches, self.wide = self.cut(self.patches), self.wide.detach()

    def unit_norms(self, k: int, sample: Tensor, unit: Tensor) -> Tensor:
        """Norms of the rows of some units of layer k, each at one sample."""
        if k != 1:
            return super().unit_norms(k, sample, unit)
        positions = len(self.pixels)
        channel, position = unit // positions, unit % positions
        W = self.model.parameters[1][0].flatten(1)
        windows = (one_hot(channel, len(W), W) @ W) * self.seen[sample, position]
        return dual_norm((windows @ self.patches) * self.inside[position], self.p)


def pick(values: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """``values[row, column]``; the gradient of a flat index_select is quicker."""
    return values.flatten().index_select(0, row * values.shape[1] + column)


def one_hot(index: Tensor, size: int, like: Tensor) -> Tensor:
    """Rows of the unit matrix; a product with them picks rows, and so does its gradient."""
    return functional.one_hot(index, size).to(like.dtype)


# Distances within a box.


@torch.no_grad()
def box_distances(
    model: Model, X: Tensor, y: Tensor, p: float, lo: float = 0, hi: float = 1
) -> tuple[Tensor, Tensor]:
    """d_B (n, N) and d_D (n, K) within ``lo <= z <= hi``, for l_2 and l_inf; sample by sample."""
    d_B, d_D = [], []
    for x, c in zip(X, y, strict=True):
        f = model.forward(x[None])
        V = [v[0].T for v in dense_columns(model, f)]
        margins, R = f[-1][0, c] - f[-1][0], V[-1][c] - V[-1]
        near = [
            box_distance(x.flatten(), v, g.flatten(), p, lo, hi).abs()
            for v, g in zip(V[:-1], f[:-1], strict=True)
        ]
        d_B.append(torch.cat([*near, margins[:0]]))
        d_D.append(box_distance(x.flatten(), R, margins, p, lo, hi))
        d_D[-1][c] = torch.inf
    return torch.stack(d_B), torch.stack(d_D)


def box_distance(x: Tensor, w: Tensor, value: Tensor, p: float, lo: float, hi: float) -> Tensor:
    """Signed l_p distance of one point to many hyperplanes within a box, by water-filling.

    Coordinates move by ``min(reach, level * pace)``.  The change of the affine function is linear
    between two of the levels at which a coordinate stops, which are sorted.
    """
    speed, need = w.abs(), value.abs()[:, None]
    up = (w < 0) == (value >= 0)[:, None]
    reach = torch.where(up, hi - x, x - lo)
    pace = speed if p == 2 else (speed > 0).to(speed.dtype)
    stop, order = torch.where(speed > 0, reach / torch.where(speed > 0, pace, 1), 0).sort(dim=1)
    gain = (speed * reach).gather(1, order).cumsum(1)
    rate = (speed * pace).gather(1, order).flip(1).cumsum(1).flip(1)
    before = gain.roll(1, dims=1)
    before[:, 0] = 0
    enough = before + rate * stop >= need
    piece = enough.int().argmax(dim=1, keepdim=True)
    rate, before = rate.gather(1, piece), before.gather(1, piece)
    level = (need - before) / torch.where(rate > 0, rate, 1)
    moves = torch.minimum(reach, level * pace) * (speed > 0)
    distance = torch.linalg.vector_norm(moves, ord=p, dim=1)
    reached = enough.any(dim=1) & (speed > 0).any(dim=1)
    return torch.where(reached, distance, torch.inf) * torch.where(value < 0, -1, 1)


# The attack and the training.


def pgd(
    model: Model,
    X: Tensor,
    y: Tensor,
    p: float,
    eps: float,
    steps: int = 40,
    box: tuple[float, float] | None = (0, 1),
) -> Tensor:
    """The last point of projected gradient ascent on the log-odds, for l_2 and l_inf.

    Steps of ``2 * eps / steps`` from X on; a coordinate that would leave the box takes no part.
    """
    Z, step = X, 2 * eps / steps
    for _ in range(steps):
        Z = Z + step * steepest(inward(odds_gradient(model, Z, y), Z, box), p)
        Z = X + into_ball(Z - X, p, eps)
        Z = Z if box is None else Z.clamp_(*box)
    return Z


def odds_gradient(model: Model, Z: Tensor, y: Tensor) -> Tensor:
    """Gradient of ``log sum_{s != y} exp(f_s) - f_y`` of each sample to its input."""
    Z = Z.detach().requires_grad_()
    logits = model.forward(Z, frozen=True)[-1]
    own = functional.one_hot(y, logits.shape[1]).bool()
    odds = logits.masked_fill(own, -torch.inf).logsumexp(1).sum() - logits[own].sum()
    return torch.autograd.grad(odds, Z)[0]


def inward(g: Tensor, Z: Tensor, box: tuple[float, float] | None) -> Tensor:
    """The gradient, 0 in the coordinates whose step would leave the box."""
    if box is None:
        return g
    return g.masked_fill_(((box[0] >= Z) & (g < 0)) | ((box[1] <= Z) & (g > 0)), 0)


def steepest(g: Tensor, p: float) -> Tensor:
    """The direction of steepest ascent, of l_p length 1; 0 for a zero gradient."""
    if p == np.inf:
        return g.sign_()
    length = torch.linalg.vector_norm(g.flatten(1), dim=1).clamp_min(torch.finfo(g.dtype).tiny)
    return g / length.view(-1, *[1] * (g.ndim - 1))


def into_ball(delta: Tensor, p: float, eps: float) -> Tensor:
    """The projection of a step onto the l_p ball of radius eps."""
    if p == np.inf:
        return delta.clamp_(-eps, eps)
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return delta * (eps / length).clamp_max(1).view(-1, *[1] * (delta.ndim - 1))


class Attack(NamedTuple):
    """The adversarial examples that replace the first half of each batch."""

    eps: float
    steps: int = 40


def epoch(
    model: Model,
    X: Tensor,
    y: Tensor,
    batches: Iterable[np.ndarray],
    o: Options,
    lr: float,
    attack: Attack | None = None,
    backward: Callable[[Model, Tensor, Tensor, Options], float] = careful_backward,
) -> float:
    """Train through some batches with Adam; returns the mean loss."""
    adam = torch.optim.Adam(model.leaves, lr=lr, fused=True)
    values = []
    for step, rows in enumerate(batches, start=1):
        # TensorFlow's Adam, and the library's, add 1e-8 before the correction for the start.
        adam.param_groups[0]["eps"] = 1e-8 / (1 - 0.999**step) ** 0.5
        some = torch.from_numpy(rows)
        batch_X, batch_y = X[some], y[some]
        if attack is not None:
            half = (len(batch_X) + 1) // 2
            batch_X[:half] = pgd(model, batch_X[:half], batch_y[:half], o.p, *attack)
        adam.zero_grad()
        values.append(backward(model, batch_X, batch_y, o))
        adam.step()
    return float(np.mean(values))
