"""Piecewise linear networks as graphs: what the readers of other libraries' networks build.

A value of the graph is the input, an affine map of other values, or a ReLU of one.  Everything else
is made of these when it is added, exactly:

    max(a, b) = b + ReLU(a - b)             leaky_relu(x) = ReLU(x) - slope ReLU(-x)
    min(a, b) = a - ReLU(a - b)             |x| = ReLU(x) + ReLU(-x)
    clip(x, lo, hi) = lo + ReLU(x - lo) - ReLU(x - hi)

`refmmr.interop.chain` makes a network of the graph, a chain of layers with a ReLU between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from refmmr._validate import check_array
from refmmr.interop.linear_maps import MAX_ENTRIES, Dense, Filters, Map, Matrix, Pick, Same, Times
from refmmr.interop.values import Affine, Input, Relu, Value
from refmmr.network import Conv2d
from refmmr.reference.layers import Pads

__all__ = ["MAX_HIDDEN", "MAX_UNITS", "Graph"]

MAX_UNITS = 2**24
"""Largest number of entries of a value, with padding: 128 MiB in float64."""
MAX_HIDDEN = 2**21
"""Largest number of units of the ReLUs that stand for other operators, in all: those of a ResNet-18
on images of 32 x 32 are half a million."""

Shape = tuple[int, ...]


class Graph:
    """Builds a graph, one operation after the other.

    Shapes are those of one sample; axes of size 1 in front, such as that of a batch, may be there
    or not.  Every method takes values and gives one; `where` names the operation in errors.

    Parameters
    ----------
    source : str
        Name of the file or object, for errors.
    input_shape : tuple of int
    sample_shape : tuple of int, optional
        Without an axis of the batch, where two or four axes do not tell.

    Examples
    --------
    >>> from refmmr.interop.chain import to_network
    >>> graph = Graph("an example", (2,))
    >>> hidden = graph.linear(graph.input, [[1.0, 1], [1, -1]], [0.0, 0], "first")
    >>> bent = graph.relu(hidden, "relu")
    >>> to_network(graph, graph.linear(bent, [[1.0, 1]], [0.0], "logits")).network
    Network((2,): Linear(2 -> 2), ReLU, Linear(2 -> 1))
    """

    def __init__(self, source: str, input_shape: Shape, sample_shape: Shape | None = None) -> None:
        self.source = source
        self.sample_shape = sample(input_shape) if sample_shape is None else tuple(sample_shape)
        self.dtype = np.dtype(np.float32)  # of all weights given
        self.rewritten: dict[str, None] = {}  # kinds of operators that were made of ReLUs
        self._count = 0
        self._relus: dict[tuple[int, bool], Relu] = {}
        self._entries = MAX_ENTRIES
        self._hidden = MAX_HIDDEN
        self.input = Input(tuple(input_shape), self.next_number(), 0, False, "input")

    # Affine maps.

    def affine(
        self, parts: Sequence[tuple[Value, Map]], shape: Shape, where: str, offset: Any = 0.0
    ) -> Affine:
        """``sum_i A_i u_i + offset`` of any maps, reshaped."""
        if math.prod(shape) > MAX_UNITS:
            self.refuse(where, f"expected at most {MAX_UNITS} units, got shape {shape}")
        for _, map_ in parts:
            if isinstance(map_, (Pick, Matrix)):
                self._entries -= map_.entries(shape, shape)
        if self._entries < 0:
            self.refuse(where, f"expected at most {MAX_ENTRIES} entries of maps in all, got more")
        offset = self.numbers(offset, where)
        return Affine(
            tuple(shape),
            self.next_number(),
            max(value.level for value, _ in parts),
            bool((offset >= 0).all())
            and all(value.nonnegative and map_.nonnegative for value, map_ in parts),
            where,
            tuple(parts),
            offset,
        )

    def linear(self, x: Value, W: ArrayLike, b: ArrayLike, where: str) -> Affine:
        """``W x + b`` of a vector: W (n_out, n_in), b (n_out,)."""
        W, b = self._weights(W, where), self.numbers(b, where, "b")
        if x.shape[-1] != x.size or W.ndim != 2 or W.shape[1] != x.size:
            self.refuse(where, f"expected inputs of shape ({W.shape[-1]},), got {sample(x.shape)}")
        return self.affine([(x, Dense(W))], (*x.shape[:-1], len(W)), where, b)

    def matmul(self, x: Value, M: ArrayLike, where: str, left: bool = False) -> Affine:
        """``x M``, or ``M x`` where `left`, of matrices: products as in `numpy.matmul`."""
        M = self._weights(M, where)
        n = x.shape[-1]
        if M.ndim == 2 and not left and n == x.size and len(M) == n:
            return self.linear(x, M.T, np.zeros(M.shape[1], M.dtype), where)
        if M.ndim != 2 or len(x.shape) < 2 or (n if not left else x.shape[-2]) != M.shape[left]:
            self.refuse(where, f"expected matrices that fit, got shapes {x.shape} and {M.shape}")
        *front, rows, columns = x.shape
        self._check_entries(M.size * x.size // M.shape[left], where)
        side = sparse.csr_array(M.astype(np.float64) if left else M.T.astype(np.float64))
        one = (
            sparse.kron(side, sparse.eye_array(columns))
            if left
            else sparse.kron(sparse.eye_array(rows), side)
        )
        whole = sparse.csr_array(sparse.kron(sparse.eye_array(math.prod(front)), one))
        shape = (*front, len(M), columns) if left else (*front, rows, M.shape[1])
        return self.affine([(x, Matrix(whole))], shape, where)

    def conv(
        self, x: Value, W: ArrayLike, b: ArrayLike, where: str, stride: Any = 1, padding: Any = 0
    ) -> Affine:
        """A convolution of an image: W (n_out, n_in, kernel_height, kernel_width), b (n_out,)."""
        W, b = self._weights(W, where), self.numbers(b, where, "b")
        try:
            layer = Conv2d(W, b, stride, padding)
            if isinstance(x, Affine) and x.padded and layer.padding != "same":
                x, pads = x.padded
                sums = [
                    (one[0] + two[0], one[1] + two[1])
                    for one, two in zip(layer.padding, pads, strict=True)
                ]
                layer = Conv2d(W, b, stride, sums)
        except (TypeError, ValueError) as error:
            self.refuse(where, str(error))
        image = self.image(x, where, W.shape[1])
        (top, bottom), (left, right) = layer.pads(*image[1:])
        padded = image[0] * (top + image[1] + bottom) * (left + image[2] + right)
        if padded > MAX_UNITS:
            self.refuse(where, f"expected at most {MAX_UNITS} units with pads, got {padded}")
        shape = layer.output_shape(image)
        if min(shape) < 1:
            self.refuse(where, f"expected an image larger than the filters, got {image}")
        return self.affine(
            [(x, Filters(layer))], (*x.shape[:-3], *shape), where, layer.b[:, None, None]
        )

    def scale(self, x: Value, factor: ArrayLike, shift: ArrayLike, where: str) -> Affine:
        """``factor * x + shift``, elementwise, with shapes as in NumPy."""
        factor, shift = self.numbers(factor, where), self.numbers(shift, where)
        try:
            shape = np.broadcast_shapes(x.shape, factor.shape, shift.shape)
        except ValueError:
            shape = ()
        if math.prod(shape) != x.size:
            wrong = factor if factor.ndim and factor.size > 1 else shift
            self.refuse(
                where,
                f"expected numbers that broadcast to shape {sample(x.shape)}, got shape "
                f"{wrong.shape}",
            )
        # A broadcast that adds axes of size 1 is a reshape.
        return self.affine([(self.reshape(x, shape, where), Times(factor))], shape, where, shift)

    def reshape(self, x: Value, shape: Shape, where: str) -> Value:
        """The same entries in the same order."""
        if tuple(shape) == x.shape:
            return x
        if math.prod(shape) != x.size:
            self.refuse(where, f"expected a shape of {x.size} entries, got {shape}")
        return self.affine([(x, Same())], shape, where)

    def pick(self, x: Value, indices: np.ndarray, where: str) -> Value:
        """Entries of the flattened x by their indices, in the shape of `indices`; 0 for -1."""
        if indices.size == 0:
            self.refuse(where, f"expected entries, got none of shape {indices.shape}")
        if indices.size == x.size and (indices.reshape(-1) == np.arange(x.size)).all():
            return self.reshape(x, indices.shape, where)
        return self.affine([(x, Pick(indices.astype(np.int32)))], indices.shape, where)

    def pad(self, x: Value, pads: Pads, where: str) -> Value:
        """Zeros around an image, ((top, bottom), (left, right)); a convolution takes them up."""
        if not any(side for pair in pads for side in pair):
            return x
        channels, height, width = self.image(x, where)
        (top, bottom), (left, right) = pads
        if channels * (top + height + bottom) * (left + width + right) > MAX_UNITS:
            self.refuse(where, f"expected at most {MAX_UNITS} units with pads, got more")
        front = [(0, 0)] * (len(x.shape) - 2)
        padded = self.pick(x, np.pad(self.indices(x), [*front, *pads], constant_values=-1), where)
        assert isinstance(padded, Affine)
        padded.padded = x, pads
        return padded

    def indices(self, x: Value) -> np.ndarray:
        """The index of each entry of x, in its shape: to slice, turn or repeat, for `pick`."""
        return np.arange(x.size, dtype=np.int32).reshape(x.shape)

    def add(self, x: Value, y: Value, where: str, sign: float = 1.0) -> Value:
        """``x + sign y`` for values, with shapes as in NumPy."""
        try:
            shape = np.broadcast_shapes(x.shape, y.shape)
        except ValueError:
            self.refuse(where, f"expected shapes that fit, got {x.shape} and {y.shape}")
        if math.prod(shape) > MAX_UNITS:
            self.refuse(where, f"expected at most {MAX_UNITS} units, got shape {shape}")
        x, y = (
            self.pick(v, np.broadcast_to(self.indices(v), shape), where)
            if v.size != math.prod(shape)
            else self.reshape(v, shape, where)
            for v in (x, y)
        )
        return self.affine([(x, Same()), (y, Times(np.array(sign, np.float32)))], shape, where)

    def concat(self, values: Sequence[Value | np.ndarray], axis: int, where: str) -> Value:
        """Values and constant arrays one after the other along an axis."""
        arrays = []
        for i, value in enumerate(values):
            # Entry j of value i has the number i MAX_UNITS + j.
            shape = value.shape
            arrays.append(i * MAX_UNITS + np.arange(math.prod(shape)).reshape(shape))
        try:
            numbers = np.concatenate(arrays, axis=axis)
        except ValueError:
            shapes = ", ".join(str(value.shape) for value in values[:4])
            self.refuse(where, f"expected shapes that fit along axis {axis}, got {shapes}")
        which, entry = np.divmod(numbers, MAX_UNITS)
        offset: Any = 0.0
        parts: list[tuple[Value, Map]] = []
        for i, value in enumerate(values):
            own = np.where(which == i, entry, -1)
            if isinstance(value, Value):
                parts.append((value, Pick(own.astype(np.int32))))
            else:
                array = self.numbers(value, where).reshape(-1)
                offset = offset + np.where(which == i, array[own], 0)
        return self.affine(parts, numbers.shape, where, offset)

    # ReLUs, and what is made of them.

    def relu(self, x: Value, where: str, negative: bool = False) -> Value:
        """``max(x, 0)``, or ``max(-x, 0)`` where `negative`."""
        if x.nonnegative and not negative:
            return x
        if isinstance(x, Affine) and x.maximum_of and not negative:
            # The maximum of what is at least 0 needs fewer units.
            return self.maximum([self.relu(v, where) for v in x.maximum_of], where)
        return self._half(x, where, negative)

    def halves(self, x: Value) -> tuple[Relu, Relu]:
        """``max(x, 0)`` and ``max(-x, 0)``, whose difference is x."""
        return self._half(x, x.where, False), self._half(x, x.where, True)

    def _half(self, x: Value, where: str, negative: bool) -> Relu:
        key = x.number, negative
        if key not in self._relus:
            argument = self.scale(x, -1.0, 0.0, where) if negative else x
            self._relus[key] = self.carry(argument, where)
        return self._relus[key]

    def carry(self, x: Value, where: str) -> Relu:
        """A ReLU of x, even if x is at least 0 anyway: a layer of units that carry it through."""
        return Relu(x.shape, self.next_number(), x.level + 1, True, where, x)

    def leaky_relu(self, x: Value, slope: ArrayLike, where: str, kind: str = "LeakyReLU") -> Value:
        """``max(x, 0) - slope max(-x, 0)``: x where it is above 0, ``slope x`` where it is not."""
        if x.nonnegative:
            return x
        self._rewrite(kind, 2 * x.size, where)
        below = self.scale(self.relu(x, where, negative=True), slope, 0.0, where)
        return self.add(self.relu(x, where), below, where, -1.0)

    def absolute(self, x: Value, where: str) -> Value:
        """``|x|``."""
        return x if x.nonnegative else self.leaky_relu(x, -1.0, where, "Abs")

    def clip(self, x: Value, low: Any, high: Any, where: str, kind: str = "Clip") -> Value:
        """``min(max(x, low), high)`` with numbers or None."""
        if low is not None and x.nonnegative and np.all(np.asarray(low) <= 0):
            low = None
        if low is None and high is None:
            return x
        self._rewrite(kind, x.size * ((low is not None) + (high is not None)), where)
        if low is None:
            under = self.relu(self.scale(x, -1.0, high, where), where)
            return self._known(
                self.scale(under, -1.0, high, where), x.nonnegative and np.all(high >= 0)
            )
        y = self.scale(self.relu(self.scale(x, 1.0, np.negative(low), where), where), 1.0, low,
                       where)  # fmt: skip
        if high is None:
            return y
        if not np.all(np.asarray(high) >= low):
            self.refuse(where, f"expected a lower bound up to the upper one, got {low} and {high}")
        above = self.relu(self.scale(x, 1.0, np.negative(high), where), where)
        return self._known(self.add(y, above, where, -1.0), np.all(np.asarray(low) >= 0))

    def maximum(self, values: Sequence[Value], where: str, kind: str = "Max") -> Value:
        """The largest of values, pair by pair: 2 n units for each pair of n."""
        values = list(dict.fromkeys(values))
        if len(values) == 1:
            return values[0]
        given = tuple(values)
        self._rewrite(kind, 0, where)
        while len(values) > 1:
            both = zip(values[::2], values[1::2], strict=False)
            pairs = [self._larger(a, b, where, kind) for a, b in both]
            values = pairs + values[2 * len(pairs) :]
        largest = values[0]
        assert isinstance(largest, Affine)
        if len({v.shape for v in given}) == 1:
            largest.maximum_of = given
        return largest

    def minimum(self, values: Sequence[Value], where: str) -> Value:
        """The smallest of values."""
        values = list(dict.fromkeys(values))
        smallest = values[0]
        for value in values[1:]:
            self._rewrite("Min", smallest.size, where)
            over = self.relu(self.add(smallest, value, where, -1.0), where)
            known = smallest.nonnegative and value.nonnegative
            smallest = self._known(self.add(smallest, over, where, -1.0), known)
        return smallest

    def _larger(self, a: Value, b: Value, where: str, kind: str) -> Value:
        if a.nonnegative and not b.nonnegative:
            a, b = b, a
        self._rewrite(kind, 2 * a.size, where)
        over = self.relu(self.add(a, b, where, -1.0), where)
        return self._known(self.add(b, over, where), a.nonnegative or b.nonnegative)

    def _known(self, x: Value, nonnegative: Any) -> Value:
        """The value, which is at least 0 where so; its parts do not show it."""
        x.nonnegative = x.nonnegative or bool(nonnegative)
        return x

    def _rewrite(self, kind: str, units: int, where: str) -> None:
        self.rewritten[kind] = None
        self._hidden -= units
        if self._hidden < 0:
            self.refuse(
                where,
                f"expected at most {MAX_HIDDEN} units of ReLUs that stand for other operators, "
                f"got {MAX_HIDDEN - self._hidden} or more; instead: a smaller image, or a "
                "convolution with a stride",
            )

    # Checks.

    def image(self, x: Value, where: str, channels: int | None = None) -> Shape:
        """``(channels, height, width)`` of a value that is an image."""
        shape = x.shape[-3:]
        if len(x.shape) < 3 or math.prod(shape) != x.size or channels not in (None, shape[0]):
            first = "channels" if channels is None else channels
            self.refuse(
                where, f"expected inputs of shape ({first}, height, width), got {sample(x.shape)}"
            )
        return shape

    def numbers(self, array: ArrayLike, where: str, name: str = "constant") -> np.ndarray:
        """An array of finite numbers, float32 or float64."""
        try:
            checked: np.ndarray = check_array(name, at_least_float32(array))
        except (TypeError, ValueError) as error:
            self.refuse(where, str(error))
        return checked

    def _weights(self, array: ArrayLike, where: str, name: str = "W") -> np.ndarray:
        """Weights of a layer, whose type counts for that of the network."""
        W = self.numbers(array, where, name)
        self.dtype = np.result_type(self.dtype, W.dtype)
        return W

    def refuse(self, where: str, message: str) -> NoReturn:
        """Raise an error about an operation."""
        raise ValueError(f"{self.source}: {where}: {message}")

    def _check_entries(self, entries: int, where: str) -> None:
        if entries > MAX_ENTRIES:
            self.refuse(where, f"expected at most {MAX_ENTRIES} entries of a map, got {entries}")

    def next_number(self) -> int:
        """The number of the next value."""
        self._count += 1
        return self._count


def sample(shape: Shape) -> Shape:
    """A shape without an axis of the batch, for errors."""
    return shape[1:] if len(shape) in (2, 4) and shape[0] == 1 else shape


def at_least_float32(array: ArrayLike) -> np.ndarray:
    """The array, with half precision widened, which changes no value."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype == np.float16 else array
