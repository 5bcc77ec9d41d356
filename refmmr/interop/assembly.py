"""Build a network from the operations of another library's network.

In this library a network is a chain of affine layers with a ReLU after each but the last.  Other
libraries have normalised inputs, batch normalisation, separate biases, and affine layers without a
ReLU between them.  All of these are affine maps, so they are folded into an adjacent layer.
A product rounds, and a certificate is about the network that was loaded, so folded layers are in
float64, unless their weights are float32 numbers anyway.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from refmmr._validate import check_array
from refmmr.interop.linear_maps import Filters
from refmmr.network import Conv2d, Flatten, Linear, Network
from refmmr.reference.layers import Layer

__all__ = ["Assembly"]

MAX_WEIGHTS = 2**27
"""Entries of a dense matrix in place of a convolution or a product of layers: 1 GiB in float64."""


class Assembly:
    """Builds a network from a sequence of operations.

    Every method but `network` appends an operation; `where` names it in errors.  `shape` is the
    shape of the output so far, of one sample.

    Parameters
    ----------
    source : str
        Name of the file or object, for errors.
    input_shape : sequence of int
        ``(d,)`` or ``(channels, height, width)``.

    Examples
    --------
    >>> assembly = Assembly("an example", (2,))
    >>> assembly.scale(0.5, 0.0, "halve")
    >>> assembly.linear([[1.0, 1.0]], [0.0], "first")
    >>> assembly.relu("relu")
    >>> assembly.linear([[1.0], [-1.0]], [0.0, 0.0], "logits")
    >>> assembly.network().parameters[0][0]
    array([[0.5, 0.5]])
    """

    def __init__(self, source: str, input_shape: Any) -> None:
        self.source = source
        self.input_shape = tuple(int(size) for size in input_shape)
        if len(self.input_shape) not in (1, 3) or min(self.input_shape) < 1:
            self._refuse(
                "input", f"expected shape (d,) or (channels, height, width), got {input_shape}"
            )
        self.shape: tuple[int, ...] = self.input_shape
        self._layers: list[Layer] = []
        self._dtype: np.dtype = np.dtype(np.float32)  # of all weights that were given
        # The affine map since the last ReLU: elementwise, or a layer with all others folded in.
        self._factors: tuple[np.ndarray, np.ndarray] | None = None
        self._layer: Linear | Conv2d | None = None
        self._shape_before = self.shape
        # Whether the finished layers give a vector, and whether a Flatten follows the open layer.
        self._flat = len(self.input_shape) == 1
        self._flatten_after = False

    @property
    def image(self) -> tuple[int, int, int] | None:
        """Shape of the image that the layers so far give; None for a vector."""
        if self._flat or self._flatten_after or len(self.shape) != 3:
            return None
        channels, height, width = self.shape
        return channels, height, width

    def linear(self, W: ArrayLike, b: ArrayLike, where: str) -> None:
        """Add ``W x + b``: W (n_out, n_in), b (n_out,)."""
        layer = self._checked(where, Linear, W, b)
        self._dtype = np.result_type(self._dtype, layer.W)
        n_in = layer.W.shape[1]
        if self.shape != (n_in,):
            self._refuse(where, f"expected inputs of shape ({n_in},), got {self.shape}")
        self._attach(layer, where)
        self.shape = (len(layer.b),)

    def conv(
        self, W: ArrayLike, b: ArrayLike, where: str, stride: Any = 1, padding: Any = 0
    ) -> None:
        """Add a convolution: W (n_out, n_in, kernel_height, kernel_width), b (n_out,), NCHW."""
        layer = self._checked(where, Conv2d, W, b, stride, padding)
        self._dtype = np.result_type(self._dtype, layer.W)
        channels = layer.W.shape[1]
        if len(self.shape) != 3 or self.shape[0] != channels:
            self._refuse(
                where, f"expected inputs of shape ({channels}, height, width), got {self.shape}"
            )
        shape = layer.output_shape(self.shape)
        if min(shape) < 1:
            self._refuse(where, f"expected an image larger than the filters, got {self.shape}")
        self._attach(layer, where)
        self.shape = shape

    def scale(self, factor: ArrayLike, shift: ArrayLike, where: str) -> None:
        """Add ``factor * x + shift``, elementwise; both broadcast to `shape`."""
        factor, shift = (self._elementwise(value, where) for value in (factor, shift))
        if self._layer is not None:
            self._scale_layer(factor, shift, where)
        elif self._factors is None:
            self._factors = factor, shift
        else:
            first, then = self._factors
            self._factors = factor * first, factor * then + shift

    def relu(self, where: str) -> None:
        """Add a ReLU."""
        if self._layer is None and self._factors is None:
            if not any(isinstance(layer, (Linear, Conv2d)) for layer in self._layers):
                self._refuse(where, "expected a layer with weights before the first ReLU, got none")
            return  # a ReLU of a ReLU
        self._close(where)

    def flatten(self, where: str) -> None:
        """Add a flattening, channel by channel and row by row; a vector stays as it is."""
        if self._layer is not None:
            self._flatten_after = True
        elif not self._flat:
            self._make_flat()
        self.shape = (math.prod(self.shape),)
        if self._factors is not None:
            factor, shift = self._factors
            self._factors = factor.reshape(-1), shift.reshape(-1)

    def network(self) -> Network:
        """Build the network, once all operations are added; the last one gives the logits."""
        if self._layer is None and self._factors is None:
            self._refuse("output", "expected a layer with weights at the end, for the logits")
        if len(self.shape) != 1:
            self._refuse("output", f"expected logits of shape (classes,), got {self.shape}")
        self._close("output")
        try:
            return Network(self._layers, self.input_shape)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.source}: {error}") from error

    def _attach(self, layer: Linear | Conv2d, where: str) -> None:
        """Make a layer the open one: later affine maps are folded into it until a ReLU closes it.

        The affine map since the last ReLU is folded into it first.
        """
        if self._layer is not None:
            before = self._dense(self._layer, self._shape_before, where)
            after = self._dense(layer, self.shape, where)
            self._check_matrix(len(after.b), before.W.shape[1], where)
            W, b = before.W.astype(np.float64), before.b.astype(np.float64)
            self._layer = self._folded(where, Linear, after.W @ W, after.W @ b + after.b)
            return
        self._shape_before = self.shape
        if self._flat and isinstance(layer, Conv2d):
            layer = self._dense(layer, self.shape, where)
        if self._factors is not None:
            factor, shift = self._factors
            self._factors = None
            if isinstance(layer, Conv2d):
                layer = self._scaled_before(layer, factor, shift, where)
            else:
                W = layer.W * factor.reshape(-1)
                b = layer.b + layer.W.astype(np.float64) @ shift.reshape(-1)
                layer = self._folded(where, Linear, W, b)
        self._layer = layer

    def _scaled_before(
        self, layer: Conv2d, factor: np.ndarray, shift: np.ndarray, where: str
    ) -> Linear | Conv2d:
        """``layer(factor * x + shift)`` as one layer."""
        padded = any(side for axis in layer.pads(*self.shape[1:]) for side in axis)
        if _by_channel(factor) and _by_channel(shift) and not (padded and shift.any()):
            factor, shift = factor[:, 0, 0], shift[:, 0, 0]
            W = layer.W * factor[:, None, None]
            b = layer.b + layer.W.astype(np.float64).sum(axis=(2, 3)) @ shift
            return self._folded(where, Conv2d, W, b, layer.stride, layer.padding)
        # The zeros around the image are added after the shift, so the bias at the border differs
        # from that inside, which a convolution cannot express.
        dense = self._dense(layer, self.shape, where)
        W = dense.W * factor.reshape(-1)
        return self._folded(where, Linear, W, dense.b + dense.W @ shift.reshape(-1))

    def _scale_layer(self, factor: np.ndarray, shift: np.ndarray, where: str) -> None:
        """Fold an elementwise map of its outputs into the open layer."""
        layer = self._layer
        assert layer is not None
        if isinstance(layer, Conv2d):
            shape = layer.output_shape(self._shape_before)
            factor, shift = factor.reshape(shape), shift.reshape(shape)
            if _by_channel(factor) and _by_channel(shift):
                factor, shift = factor[:, 0, 0], shift[:, 0, 0]
                W = layer.W * factor[:, None, None, None]
                b = layer.b * factor + shift
                self._layer = self._folded(where, Conv2d, W, b, layer.stride, layer.padding)
                return
            layer = self._dense(layer, self._shape_before, where)
        factor, shift = factor.reshape(-1), shift.reshape(-1)
        W, b = layer.W * factor[:, None], layer.b * factor + shift
        self._layer = self._folded(where, Linear, W, b)

    def _close(self, where: str) -> None:
        """Finish the open layer: a ReLU or the end of the network follows."""
        if self._layer is None:
            channels = self.shape[0]
            if self._flat:
                n = math.prod(self.shape)
                self._check_matrix(n, n, where)
                self._attach(Linear(np.eye(n), np.zeros(n)), where)
            else:
                self._check_matrix(channels, channels, where)
                one = np.eye(channels)[:, :, None, None]
                self._attach(Conv2d(one, np.zeros(channels)), where)
        layer = self._layer
        assert layer is not None
        if isinstance(layer, Linear) and not self._flat:
            self._make_flat()
        self._layers.append(layer)
        if self._flatten_after and not self._flat:
            self._make_flat()
        self._layer, self._flatten_after = None, False

    def _make_flat(self) -> None:
        self._layers.append(Flatten())
        self._flat = True

    def _dense(self, layer: Linear | Conv2d, shape: tuple[int, ...], where: str) -> Linear:
        """The same map on flattened images, as a matrix in float64."""
        if isinstance(layer, Linear):
            return layer
        inputs, outputs = math.prod(shape), math.prod(layer.output_shape(shape))
        if inputs * outputs > MAX_WEIGHTS:
            self._refuse(
                where,
                f"expected a convolution that can be written as a matrix of at most {MAX_WEIGHTS} "
                f"entries, got {inputs} x {outputs}; it must be one, because a shift of the inputs "
                "meets zero padding, or because no ReLU stands between two layers",
            )
        warnings.warn(
            f"{self.source}: {where}: convolution written as a matrix of {outputs} x {inputs}, "
            "because a shift of the inputs meets zero padding, or because no ReLU stands between "
            "two layers; it is the same network, but slower",
            stacklevel=2,
        )
        W = Filters(layer).matrix(shape, layer.output_shape(shape)).toarray()
        return Linear(W, np.repeat(layer.b.astype(np.float64), outputs // len(layer.b)))

    def _check_matrix(self, rows: int, columns: int, where: str) -> None:
        """Raise a ValueError for a product of layers that is too large, whatever its factors."""
        if rows * columns > MAX_WEIGHTS:
            self._refuse(
                where,
                f"expected layers whose product has at most {MAX_WEIGHTS} entries, because no "
                f"ReLU stands between them, got {rows} x {columns}",
            )

    def _elementwise(self, value: ArrayLike, where: str) -> np.ndarray:
        try:
            numbers = check_array("factor or shift", _at_least_float32(value)).astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.source}: {where}: {error}") from error
        try:
            return np.broadcast_to(numbers, self.shape)
        except ValueError:
            self._refuse(
                where,
                f"expected numbers that broadcast to shape {self.shape}, got shape {numbers.shape}",
            )

    def _folded(self, where: str, kind: Any, W: np.ndarray, b: np.ndarray, *options: Any) -> Any:
        """A folded layer: float32 if its numbers and all given weights are, else float64."""
        with np.errstate(over="ignore"):
            narrow = W.astype(np.float32), b.astype(np.float32)
        exact = (narrow[0] == W).all() and (narrow[1] == b).all()
        if exact and self._dtype == np.float32:
            W, b = narrow
        return self._checked(where, kind, W, b, *options)

    def _checked(self, where: str, kind: Any, W: ArrayLike, b: ArrayLike, *options: Any) -> Any:
        try:
            return kind(_at_least_float32(W), _at_least_float32(b), *options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.source}: {where}: {error}") from error

    def _refuse(self, where: str, message: str) -> NoReturn:
        raise ValueError(f"{self.source}: {where}: {message}")


def _at_least_float32(array: ArrayLike) -> ArrayLike:
    """The array, with half precision widened, which changes no value."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _by_channel(image: np.ndarray) -> bool:
    """Whether an image has one value per channel."""
    return bool((image == image[:, :1, :1]).all())
