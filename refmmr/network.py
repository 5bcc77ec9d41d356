"""The public network and layers: classes of the reference with checked arguments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from refmmr import _kernels
from refmmr import _validate as check
from refmmr.reference import layers as _layers
from refmmr.reference import network as _network
from refmmr.reference.layers import Flatten

__all__ = ["Conv2d", "Flatten", "Linear", "Network"]


def _parameters(W: ArrayLike, b: ArrayLike, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Checked copies of weights and biases, of one dtype."""
    W, b = check.check_array("W", W, axes), check.check_array("b", b, 1)
    if 0 in W.shape:
        raise ValueError(f"W: expected at least one weight, got shape {W.shape}")
    if len(b) != len(W):
        raise ValueError(f"b: expected shape ({len(W)},) to go with W {W.shape}, got {b.shape}")
    dtype = np.result_type(W, b)
    return W.astype(dtype), b.astype(dtype)


class Linear(_layers.Linear):
    """A dense layer ``y = W x + b``.

    Parameters
    ----------
    W : array_like, shape (n_out, n_in)
        Weights.
    b : array_like, shape (n_out,)
        Biases.

    Raises
    ------
    ValueError
        For shapes that do not fit, NaN or infinite entries.

    Examples
    --------
    >>> Linear([[1.0, -1.0]], [0.5])
    Linear(2 -> 1)
    """

    def __init__(self, W: ArrayLike, b: ArrayLike) -> None:
        super().__init__(*_parameters(W, b, axes=2))

    def __repr__(self) -> str:
        return f"Linear({self.W.shape[1]} -> {self.W.shape[0]})"


class Conv2d(_layers.Conv2d):
    """A convolution of images, NCHW (a cross-correlation, as in every deep learning library).

    Parameters
    ----------
    W : array_like, shape (n_out, n_in, kernel_height, kernel_width)
        Filters.
    b : array_like, shape (n_out,)
        Biases, one per output channel.
    stride : int or (int, int)
        Step between windows, (down, across).
    padding : int, (int, int), ((int, int), (int, int)), "same" or "valid"
        Zeros around the image: the same on all sides, (down, across), or
        ((top, bottom), (left, right)).  "same" is TensorFlow's "SAME": ``ceil(size / stride)``
        output pixels; of an odd number of zeros, one more is at the bottom or right.

    Raises
    ------
    ValueError
        For shapes that do not fit, NaN or infinite entries, impossible strides or padding.

    Examples
    --------
    >>> conv = Conv2d(np.ones((1, 1, 3, 3)), [0], stride=2, padding="same")
    >>> conv.apply(np.ones((1, 1, 8, 8))).shape
    (1, 1, 4, 4)
    """

    def __init__(
        self,
        W: ArrayLike,
        b: ArrayLike,
        stride: int | tuple[int, int] = 1,
        padding: Any = 0,
    ) -> None:
        down, across = _pair("stride", stride, low=1)
        super().__init__(*_parameters(W, b, axes=4), (down, across), _padding(padding))

    def __repr__(self) -> str:
        n_out, n_in, *kernel = self.W.shape
        size = "x".join(map(str, kernel))
        return f"Conv2d({n_in} -> {n_out}, {size}, stride={self.stride}, padding={self.padding!r})"


def _pair(name: str, value: object, low: int) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    if len(value) != 2:
        raise ValueError(f"{name}: expected an integer or a pair of them, got {value!r}")
    down, across = (check.check_count(name, side, low) for side in value)
    return down, across


def _padding(padding: object) -> _layers.Pads | Literal["same"]:
    if isinstance(padding, str) and padding == "same":
        return "same"
    if isinstance(padding, str) and padding == "valid":
        padding = 0
    if isinstance(padding, str) or (isinstance(padding, (tuple, list)) and len(padding) != 2):
        raise ValueError(
            'padding: expected an integer, a pair, a pair of pairs, "same" or "valid", '
            f"got {padding!r}"
        )
    if not isinstance(padding, (tuple, list)):
        padding = (padding, padding)
    vertical, horizontal = (_pair("padding", side, low=0) for side in padding)
    return vertical, horizontal


class Network(_network.Network):
    """A ReLU network: affine layers with a ReLU after each but the last.

    ``f_k = W_k g_{k-1} + b_k`` and ``g_k = max(f_k, 0)``, with ``g_0 = x`` and the logits
    ``f_{L+1}``, which a call of the network on a batch of inputs returns.

    Parameters
    ----------
    layers : sequence of Linear, Conv2d and Flatten
        The last layer with weights gives the logits.
    input_shape : tuple of int
        Shape of one input: ``(d,)``, or ``(channels, height, width)`` for images.

    Attributes
    ----------
    layers : list
    input_shape : tuple of int
    n_hidden : int
        Number of hidden units, N.
    n_classes : int
        Number of logits, K.
    dtype : numpy.dtype
        float32 or float64, of all weights.

    Raises
    ------
    TypeError, ValueError
        If an element of `layers` is not a layer, if layers do not fit together, or if none has
        weights.

    Examples
    --------
    >>> net = Network.mlp([2, 16, 16, 3], rng=0)
    >>> net
    Network((2,): Linear(2 -> 16), ReLU, Linear(16 -> 16), ReLU, Linear(16 -> 3))
    >>> net(np.zeros((5, 2))).shape
    (5, 3)
    """

    def __init__(self, layers: Sequence[_layers.Layer], input_shape: int | Sequence[int]) -> None:
        if isinstance(input_shape, (int, np.integer)):
            input_shape = (int(input_shape),)
        if not isinstance(input_shape, (tuple, list)):
            raise TypeError(f"input_shape: expected integers, got {input_shape!r}")
        shape = tuple(check.check_count("input_shape", size, 1) for size in input_shape)
        if len(shape) not in (1, 3):
            raise ValueError(
                f"input_shape: expected (d,) or (channels, height, width), got {shape}"
            )
        given = check.check_sequence("layers", layers, "a sequence of layers")
        layers = [_checked(i, layer) for i, layer in enumerate(given)]
        _check_chain(layers, shape)
        dtype = np.result_type(*(layer.W for layer in layers if hasattr(layer, "W")))
        super().__init__([_cast(layer, dtype) for layer in layers], shape)
        self.dtype = dtype

    @classmethod
    def mlp(cls, sizes: Sequence[int], rng: int | np.random.Generator | None = 0) -> Self:
        """A dense network with He initialisation (He et al. 2015).

        Parameters
        ----------
        sizes : sequence of int
            Inputs, units of each hidden layer, classes: ``[784, 1024, 10]`` is the paper's FC1.
        rng : int, numpy.random.Generator or None
            Source of the weights: a seed or a generator; None for different weights each time.

        Returns
        -------
        Network
            Weights from a normal distribution of standard deviation ``sqrt(2 / n_in)``, cut off at
            two standard deviations; biases 0: as in the authors' code.
        """
        sizes = check.check_sequence("sizes", sizes, "a sequence of integers")
        sizes = [check.check_count("sizes", size, 1) for size in sizes]
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected inputs and classes at least, got {sizes}")
        rng = check.check_rng(rng)
        layers = [Linear(_he(rng, (m, n)), np.zeros(m)) for n, m in pairwise(sizes)]
        return cls(layers, (sizes[0],))

    @classmethod
    def lenet_small(
        cls,
        input_shape: tuple[int, int, int] = (1, 28, 28),
        n_classes: int = 10,
        rng: int | np.random.Generator | None = 0,
    ) -> Self:
        """The paper's convolutional network, with He initialisation.

        Two 4x4 convolutions of stride 2 with TensorFlow's "SAME" padding (16 and 32 filters), a
        dense layer of 100 units, and one of the logits.

        Parameters
        ----------
        input_shape : (channels, height, width)
        n_classes : int
        rng : int, numpy.random.Generator or None
            Source of the weights: a seed or a generator; None for different weights each time.

        Returns
        -------
        Network
            Weights and biases as in `mlp`.
        """
        if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3:
            raise ValueError(
                f"input_shape: expected (channels, height, width), got {input_shape!r}"
            )
        channels, height, width = (check.check_count("input_shape", s, 1) for s in input_shape)
        n_classes = check.check_count("n_classes", n_classes, 1)
        rng = check.check_rng(rng)
        pixels = -(-height // 4) * -(-width // 4)
        return cls(
            [
                Conv2d(_he(rng, (16, channels, 4, 4)), np.zeros(16), stride=2, padding="same"),
                Conv2d(_he(rng, (32, 16, 4, 4)), np.zeros(32), stride=2, padding="same"),
                Flatten(),
                Linear(_he(rng, (100, 32 * pixels)), np.zeros(100)),
                Linear(_he(rng, (n_classes, 100)), np.zeros(n_classes)),
            ],
            (channels, height, width),
        )

    def __call__(self, X: ArrayLike) -> np.ndarray:
        """Logits: ``(n, *input_shape) -> (n, K)``."""
        return _kernels.logits(self, check.check_inputs(self, X))

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Class of the largest logit (the first of equals): ``(n, *input_shape) -> (n,)``."""
        return self(X).argmax(axis=1)

    def activation_pattern(self, X: ArrayLike) -> np.ndarray:
        """Which hidden units are active, ``f_k(x) > 0``: ``(n, *input_shape) -> (n, N)`` bool.

        Units are laid out layer by layer; in a convolutional layer channel by channel, row by row.
        """
        return _kernels.activation_pattern(self, check.check_inputs(self, X))

    def astype(self, dtype: DTypeLike) -> Self:
        """The same network with weights of another dtype, float32 or float64."""
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"dtype: expected float32 or float64, got {np.dtype(dtype)}")
        return self.with_parameters(
            [(W.astype(dtype), b.astype(dtype)) for W, b in self.parameters]
        )

    def with_parameters(self, parameters: Sequence[tuple[ArrayLike, ArrayLike]]) -> Self:
        """The same architecture with other weights: one ``(W, b)`` per layer with weights."""
        parameters = check.check_sequence("parameters", parameters, "pairs (W, b)")
        if len(parameters) != len(self.affine):
            raise ValueError(
                f"parameters: expected {len(self.affine)} pairs (W, b), got {len(parameters)}"
            )
        layers = list(self.layers)
        for i, layer, (W, b) in zip(self.affine, self.affine_layers, parameters, strict=True):
            if np.shape(W) != layer.W.shape:
                raise ValueError(
                    f"parameters: expected W of shape {layer.W.shape} for layer {i}, "
                    f"got {np.shape(W)}"
                )
            layers[i] = layer.with_weights(np.asarray(W), np.asarray(b))
        return type(self)(layers, self.input_shape)

    def __repr__(self) -> str:
        names = []
        for i, layer in enumerate(self.layers):
            names.append(repr(layer))
            if i in self.affine[:-1]:
                names.append("ReLU")
        return f"Network({self.input_shape}: {', '.join(names)})"

    def _repr_html_(self) -> str:
        from refmmr.display import html

        return html.network(self)


def _he(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Truncated normal weights of standard deviation ``sqrt(2 / fan_in)`` before the truncation."""
    z = rng.standard_normal(shape)
    while (outside := np.abs(z) > 2).any():
        z[outside] = rng.standard_normal(outside.sum())
    return z * np.sqrt(2 / np.prod(shape[1:]))


def _checked(i: int, layer: object) -> _layers.Layer:
    """The layer as one of this module, whose arguments are checked; TypeError for anything else."""
    if isinstance(layer, (Linear, Conv2d, Flatten)):
        return layer
    if isinstance(layer, _layers.Conv2d):
        return Conv2d(layer.W, layer.b, layer.stride, layer.padding)
    if isinstance(layer, _layers.Linear):
        return Linear(layer.W, layer.b)
    raise TypeError(f"layers[{i}]: expected Linear, Conv2d or Flatten, got {type(layer).__name__}")


def _cast(layer: _layers.Layer, dtype: np.dtype) -> _layers.Layer:
    if isinstance(layer, Flatten) or layer.W.dtype == dtype:
        return layer
    return layer.with_weights(layer.W.astype(dtype), layer.b.astype(dtype))


def _check_chain(layers: Sequence[_layers.Layer], shape: tuple[int, ...]) -> None:
    """Check that every layer takes the output shape of the one before."""
    for i, layer in enumerate(layers):
        name = f"layers[{i}]"
        if isinstance(layer, _layers.Linear):
            expected: tuple[int | str, ...] = (layer.W.shape[1],)
            fits = shape == expected
        elif isinstance(layer, _layers.Conv2d):
            expected = (layer.W.shape[1], "height", "width")
            fits = len(shape) == 3 and shape[0] == expected[0]
        else:
            expected = ("channels", "height", "width")
            fits = len(shape) == 3
        if not fits:
            text = "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"
            hint = " (put a Flatten before it)" if len(shape) > len(expected) else ""
            raise ValueError(f"{name}: {layer!r} expects inputs of shape {text}, got {shape}{hint}")
        shape = layer.output_shape(shape)
        if min(shape) < 1:
            raise ValueError(f"{name}: {layer!r} leaves no output, shape {shape}")
    if not any(isinstance(layer, (_layers.Linear, _layers.Conv2d)) for layer in layers):
        raise ValueError("layers: expected at least one layer with weights, got none")
