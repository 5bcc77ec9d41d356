"""CROWN in l_inf as a careful user of PyTorch writes it: the library's rival in `certify.py`.

As in the library, only units that interval bounds leave unstable get a backward bound.  A dense
network is bounded in one batch, a convolutional one sample by sample, because each has unstable
units of its own.  The row of a unit of the second convolution is a patch: ``unfold`` gives the
slopes of its window, and one transposed convolution propagates all patches back.  Rows of dense
layers go back through transposed convolutions of whole images.

Nothing is subtracted for rounding errors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import refmmr as rm


class Crown:
    """Lower bounds of margins on balls of l_inf within the box [0, 1].

    Parameters
    ----------
    net : refmmr.Network
        Dense, or up to two convolutions in front of dense layers.
    dtype : torch.dtype
    """

    def __init__(self, net: rm.Network, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.classes = net.n_classes
        self.convs = []
        self.dense = []
        shapes = [net.input_shape, *(net.shapes[i + 1] for i in net.affine)]
        for layer, shape in zip(net.affine_layers, shapes[:-1], strict=True):
            W, b = (torch.from_numpy(array).to(dtype) for array in (layer.W, layer.b))
            if isinstance(layer, rm.Conv2d):
                (top, bottom), (left, right) = layer.pads(*shape[1:])
                if not top == bottom == left == right:
                    raise ValueError("padding: expected the same on all sides")
                self.convs.append((W, b, layer.stride, top, shape[1:]))
            else:
                self.dense.append((W, b))

    def margins(self, X: np.ndarray, y: np.ndarray, eps: float) -> np.ndarray:
        """``f_y - f_s`` for all classes s, (n, K); 0 in column y."""
        x, labels = torch.from_numpy(X).to(self.dtype), torch.from_numpy(y)
        with torch.inference_mode():
            if not self.convs:
                found = self._margins(x, labels, eps)
            else:
                found = torch.cat([self._margins(x[[i]], labels[[i]], eps) for i in range(len(x))])
        return found.numpy()

    def _margins(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        ends = low, high
        relaxations: list[tuple[Tensor, Tensor, Tensor]] = []
        for k in range(len(self.convs) + len(self.dense) - 1):
            low, high = self._intervals(k, low, high)
            if k > 0:
                low, high = self._tighter(k, low, high, relaxations, ends)
            relaxations.append(_relaxation(low, high))
            low, high = low.clamp(min=0), high.clamp(min=0)
        W, b = self.dense[-1]
        A, constant = W[y][:, None] - W, b[y][:, None] - b
        return self._back(len(relaxations), A, constant, relaxations, ends)

    def _intervals(self, k: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        center, radius = (low + high) / 2, (high - low) / 2
        if k < len(self.convs):
            W, b, stride, pad, _ = self.convs[k]
            middle = functional.conv2d(center, W, b, stride, pad)
            spread = functional.conv2d(radius, W.abs(), None, stride, pad)
        else:
            W, b = self.dense[k - len(self.convs)]
            middle = functional.linear(center.flatten(1), W, b)
            spread = functional.linear(radius.flatten(1), W.abs())
        return middle - spread, middle + spread

    def _tighter(self, k, low, high, relaxations, ends):
        """Backward bounds of the unstable units of layer k, from below and from above."""
        unstable = (low < 0) & (high > 0)
        if not unstable.any():
            return low, high
        if k < len(self.convs):
            units = unstable[0].nonzero()
            below = self._patches(units, 1, relaxations, ends)
            above = -self._patches(units, -1, relaxations, ends)
        else:
            units = unstable.any(dim=0).nonzero()[:, 0]
            W, b = (part[units] for part in self.dense[k - len(self.convs)])
            A, constant = W.expand(len(low), *W.shape), b.expand(len(low), -1)
            below = self._back(k, A, constant, relaxations, ends)
            above = -self._back(k, -A, -constant, relaxations, ends)
        low, high = low.clone(), high.clone()
        if k < len(self.convs):
            low[unstable] = torch.maximum(low[unstable], below)
            high[unstable] = torch.minimum(high[unstable], above)
        else:
            mine = unstable[:, units]
            low[:, units] = torch.where(mine, torch.maximum(low[:, units], below), low[:, units])
            high[:, units] = torch.where(mine, torch.minimum(high[:, units], above), high[:, units])
        return low, high

    def _patches(self, units, sign, relaxations, ends):
        """Lower bounds of units (channel, row, column) of the second convolution, by patches."""
        W, b, stride, pad, size = self.convs[1]
        first, first_b, first_stride, first_pad, _ = self.convs[0]
        channel, row, column = units.T
        columns = (size[1] + 2 * pad - W.shape[3]) // stride[1] + 1
        position = row * columns + column

        def windows(image: Tensor) -> Tensor:
            cut = functional.unfold(image, W.shape[2:], padding=pad, stride=stride)
            return cut[0].T[position].reshape(-1, *W.shape[1:])

        A, constant = sign * W[channel], sign * b[channel]
        lower, upper, intercept = (windows(part) for part in relaxations[0])
        constant = constant + (A.clamp(max=0) * intercept).sum(dim=(1, 2, 3))
        A = torch.where(A > 0, A * lower, A * upper)
        # Padding is 0: it has no unit, so no bias.
        inside = windows(torch.ones_like(relaxations[0][0]))
        constant = constant + ((A * inside).sum(dim=(2, 3)) * first_b).sum(dim=1)
        A = functional.conv_transpose2d(A, first, stride=first_stride)
        height, width = A.shape[2:]
        jump = (stride[0] * first_stride[0], stride[1] * first_stride[1])
        padding = pad * first_stride[0] + first_pad
        low, high = (
            functional.unfold(end, (height, width), padding=padding, stride=jump)[0].T[position]
            for end in ends
        )
        A = A.flatten(1)
        return constant + (A.clamp(min=0) * low + A.clamp(max=0) * high).sum(dim=1)

    def _back(self, k, A, constant, relaxations, ends):
        """Rows of dense layer k, (n, m, inputs): lower bounds, (n, m)."""
        for j in reversed(range(k)):
            lower, upper, intercept = (part.flatten(1)[:, None] for part in relaxations[j])
            constant = constant + torch.matmul(A.clamp(max=0), intercept.mT)[..., 0]
            A = torch.where(A > 0, A * lower, A * upper)
            if j >= len(self.convs):
                W, b = self.dense[j - len(self.convs)]
                constant = constant + A @ b
                A = A @ W
                continue
            W, b, stride, pad, size = self.convs[j]
            images = A.reshape(A.shape[0] * A.shape[1], len(W), *relaxations[j][0].shape[2:])
            constant = constant + (images.sum(dim=(2, 3)) @ b).reshape(A.shape[:2])
            extra = [
                size[i] - ((images.shape[2 + i] - 1) * stride[i] - 2 * pad + W.shape[2 + i])
                for i in (0, 1)
            ]
            images = functional.conv_transpose2d(images, W, None, stride, pad, extra)
            A = images.reshape(*A.shape[:2], -1)
        low, high = (end.flatten(1)[..., None] for end in ends)
        return constant + (A.clamp(min=0) @ low + A.clamp(max=0) @ high)[..., 0]


def _relaxation(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower slope, upper slope and intercept of each unit's ReLU."""
    unstable = (low < 0) & (high > 0)
    active = (low >= 0).to(low.dtype)
    upper = torch.where(unstable, high / (high - low).clamp(min=1e-300), active)
    lower = torch.where(unstable, (high > -low).to(low.dtype), active)
    return lower, upper, torch.where(unstable, -upper * low, 0.0)
