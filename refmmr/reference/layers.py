"""The layers: each an affine map, with its transpose and its weight gradient beside it.

A layer is affine, ``y = W x + b``.  The rest of the book uses four operations of it:

==================== ============================= ==============================================
``apply(x)``         ``W x + b``                   the forward pass of a point
``linear(x)``        ``W x``                       the forward pass of a *direction* (no bias)
``transpose(g, s)``  ``W^T g``                     the backward pass to the input, of shape ``s``
``gradient(x, g)``   ``(g x^T, g)`` summed         the backward pass to the weights ``(dW, db)``
==================== ============================= ==============================================

Arrays may have any number of leading axes (samples, probes, ...): a `Linear` layer acts on the last
axis, an image layer on the last three, ``(channels, height, width)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Map = Callable[[np.ndarray], np.ndarray]

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Numbers of zeros around an image, ((top, bottom), (left, right))."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A dense layer ``y = W x + b``.

    Parameters
    ----------
    W : ndarray, shape (n_out, n_in)
        Weights.
    b : ndarray, shape (n_out,)
        Biases.
    """

    W: np.ndarray
    b: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Map points: ``(..., n_in) -> (..., n_out)``."""
        return self.linear(x) + self.b

    def linear(self, x: np.ndarray) -> np.ndarray:
        """Map directions, without the bias: ``(..., n_in) -> (..., n_out)``."""
        return _product(x, self.W.T)

    def transpose(self, g: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
        """Propagate gradients to the input: ``(..., n_out) -> (..., n_in)``."""
        return _product(g, self.W)

    def gradient(self, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient of ``sum(g * apply(x))`` to ``W`` and to ``b``, summed over leading axes."""
        x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        return g.T @ x, g.sum(axis=0)

    def with_weights(self, W: np.ndarray, b: np.ndarray) -> Self:
        """The same layer with other weights."""
        return replace(self, W=W, b=b)

    def map(self, f: Map) -> Linear:
        """The same layer on ``f(W)`` and ``f(b)``."""
        return Linear(f(self.W), f(self.b))

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one output, ``(n_out,)``."""
        return (len(self.b),)


@dataclass(frozen=True, eq=False)
class Conv2d:
    """A convolution (cross-correlation, as in every deep learning library), NCHW.

    Parameters
    ----------
    W : ndarray, shape (n_out, n_in, kernel_height, kernel_width)
        Filters.
    b : ndarray, shape (n_out,)
        Biases, one per output channel.
    stride : (int, int)
        Step between windows, (down, across).
    padding : ((int, int), (int, int)) or "same"
        Zeros around the image, ((top, bottom), (left, right)).  "same" is TensorFlow's: the output
        has ``ceil(size / stride)`` pixels; of an odd number of zeros, one more is at the bottom or
        right.
    """

    W: np.ndarray
    b: np.ndarray
    stride: tuple[int, int] = (1, 1)
    padding: Pads | Literal["same"] = ((0, 0), (0, 0))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Map images: ``(..., n_in, h, w) -> (..., n_out, h', w')``."""
        return self.linear(x) + self.b[:, None, None]

    def linear(self, x: np.ndarray) -> np.ndarray:
        """Map directions, without the bias: ``(..., n_in, h, w) -> (..., n_out, h', w')``."""
        y = np.tensordot(self._windows(x), self.W, axes=([-5, -2, -1], [1, 2, 3]))
        return np.moveaxis(y, -1, -3)

    def transpose(self, g: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
        """Propagate gradients to the input: ``(..., n_out, h', w') -> (..., n_in, h, w)``.

        In `linear`, filter tap ``(i, j)`` reads a strided grid of pixels; here it adds to it.
        """
        _, height, width = input_shape
        (top, bottom), (left, right) = self.pads(height, width)
        down, across = self.stride
        rows, columns = g.shape[-2:]
        padded = np.zeros_like(
            g, shape=(*g.shape[:-3], self.W.shape[1], top + height + bottom, left + width + right)
        )
        for i, j in np.ndindex(*self.W.shape[2:]):
            tap = np.moveaxis(np.tensordot(g, self.W[:, :, i, j], axes=([-3], [0])), -1, -3)
            padded[..., i : i + down * rows : down, j : j + across * columns : across] += tap
        return padded[..., top : top + height, left : left + width]

    def gradient(self, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient of ``sum(g * apply(x))`` to ``W`` and to ``b``, summed over leading axes."""
        windows = self._windows(x)
        windows = windows.reshape(-1, *windows.shape[-5:])
        g = g.reshape(-1, *g.shape[-3:])
        dW = np.tensordot(g, windows, axes=([0, 2, 3], [0, 2, 3]))
        return dW, g.sum(axis=(0, 2, 3))

    def with_weights(self, W: np.ndarray, b: np.ndarray) -> Self:
        """The same layer with other weights."""
        return replace(self, W=W, b=b)

    def map(self, f: Map) -> Conv2d:
        """The same layer on ``f(W)`` and ``f(b)``."""
        return Conv2d(f(self.W), f(self.b), self.stride, self.padding)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one output image, ``(n_out, h', w')``."""
        _, height, width = input_shape
        (top, bottom), (left, right) = self.pads(height, width)
        down, across = self.stride
        kernel_height, kernel_width = self.W.shape[2:]
        return (
            len(self.b),
            (top + height + bottom - kernel_height) // down + 1,
            (left + width + right - kernel_width) // across + 1,
        )

    def pads(self, height: int, width: int) -> Pads:
        """Zeros around an image of this size: ((top, bottom), (left, right))."""
        if self.padding != "same":
            return self.padding
        (kernel_height, kernel_width), (down, across) = self.W.shape[2:], self.stride
        return same_padding(height, kernel_height, down), same_padding(width, kernel_width, across)

    def _windows(self, x: np.ndarray) -> np.ndarray:
        """The window of each output pixel: ``(..., n_in, h', w', kernel_height, kernel_width)``."""
        *front, height, width = x.shape
        (top, bottom), (left, right) = self.pads(height, width)
        # Not np.pad: among exact numbers, Python's integers, its zeros would be int64.
        padded = np.zeros((*front, top + height + bottom, left + width + right), x.dtype)
        padded[..., top : top + height, left : left + width] = x
        windows = sliding_window_view(padded, self.W.shape[2:], axis=(-2, -1))
        down, across = self.stride
        return windows[..., ::down, ::across, :, :]


@dataclass(frozen=True, eq=False)
class Flatten:
    """Reshape an image to a vector, channel by channel and row by row.

    Examples
    --------
    >>> Flatten().output_shape((3, 4, 4))
    (48,)
    """

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Flatten: ``(..., c, h, w) -> (..., c h w)``."""
        return x.reshape(*x.shape[:-3], -1)

    linear = apply

    def transpose(self, g: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
        """Reshape gradients to images: ``(..., c h w) -> (..., c, h, w)``."""
        return g.reshape(*g.shape[:-1], *input_shape)

    def map(self, f: Map) -> Flatten:
        """The layer itself: it has no weights."""
        return self

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the vector, ``(c h w,)``."""
        return (int(np.prod(input_shape)),)


Layer = Linear | Conv2d | Flatten


def _product(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    """``x @ W`` as one product: with many leading axes NumPy makes one of each matrix."""
    return x @ W if x.ndim <= 2 else (x.reshape(-1, len(W)) @ W).reshape(*x.shape[:-1], W.shape[1])


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros (before, after) of TensorFlow's "SAME": ``ceil(size / stride)`` windows fit."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
