"""Constants of an ONNX graph: weights, and what the graph computes from them and from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refmmr.interop.onnx_nodes import Node
from refmmr.interop.onnx_tensors import KINDS, Tensors, quote

__all__ = ["Constants", "axes_of", "slices"]

MAX_LIST = 10_000
"""Largest number of integers in a list of axes, indices or sizes."""
TYPES = {1: np.float32, 6: np.int64, 7: np.int64, 9: np.int64, 11: np.float64}
"""Types that a constant may be cast to, by the numbers of TensorProto.DataType; integers are int64
here, which holds all of them."""


class Constants:
    """The values that do not depend on the input of the network, by name.

    Parameters
    ----------
    tensors : Tensors
        Reads the weights.
    initializers : mapping of str to onnx.TensorProto
    """

    def __init__(self, tensors: Tensors, initializers: Mapping[str, Any]) -> None:
        self.tensors = tensors
        # A TensorProto, which is read where it is used, or an array that was computed.
        self.values: dict[str, Any] = dict(initializers)

    def array(self, node: Node, k: int) -> np.ndarray:
        """The constant that is input k of a node: float32, float64 or int64."""
        value = self.values[node.inputs[k]]
        if isinstance(value, np.ndarray):
            return value
        where = f"{node.where}: tensor {quote(node.inputs[k])}"
        kind = KINDS.get(value.data_type)
        if kind is None or kind.real:
            return self.tensors.reals(value, where)
        return self.tensors.integers(value, where)

    def reals(self, node: Node, k: int) -> np.ndarray:
        """The weights that are input k of a node."""
        array = self.array(node, k)
        if array.dtype == np.int64:
            node.refuse(f"expected real numbers, got the integers {quote(node.inputs[k])}")
        return array

    def integers(self, node: Node, k: int) -> list[int]:
        """The integers (axes, sizes) that are input k of a node."""
        array = self.array(node, k)
        if array.dtype != np.int64 or array.ndim > 1 or array.size > MAX_LIST:
            node.refuse(
                f"expected at most {MAX_LIST} integers, got another constant, "
                f"{quote(node.inputs[k])}",
            )
        return [int(number) for number in array.reshape(-1).tolist()]

    def listed(self, node: Node, name: str, k: int) -> list[int] | None:
        """Integers that are an attribute, or, in newer versions, input k; None if neither is."""
        if name in node.attributes:
            return list(node.attributes[name])
        has_input = len(node.inputs) > k and node.inputs[k]
        return self.integers(node, k) if has_input else None

    def add(self, node: Node, shape: tuple[int, ...] | None) -> None:
        """Add the output of a node that does not depend on the numbers of the input.

        Parameters
        ----------
        node : Node
        shape : tuple of int or None
            For Shape, that of a value that depends on the input.
        """
        if node.kind == "Shape":
            shape = self.array(node, 0).shape if shape is None else shape
            start, end = node.attributes.get("start", 0), node.attributes.get("end")
            self.values[node.outputs[0]] = np.array(shape[start:end], dtype=np.int64)
            return
        if node.kind == "Identity":
            self.values[node.outputs[0]] = self.values[node.inputs[0]]
            return
        if node.kind not in COMPUTED:
            node.refuse("expected an input that depends on the input of the network, got constants")
        try:
            result = COMPUTED[node.kind](self, node)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            if str(error).startswith(node.source):
                raise
            node.refuse(f"expected constants that fit, got {str(error).splitlines()[0][:200]}")
        parts = result if isinstance(result, list) else [result]
        self.values.update(zip(node.outputs, map(np.asarray, parts), strict=False))

    def take(self, shape: tuple[int, ...], node: Node) -> None:
        """Count the memory of an array that is about to be made."""
        self.tensors.take(8 * math.prod(shape), node.where)


def axes_of(node: Node, axes: list[int] | None, rank: int) -> tuple[int, ...]:
    """Axes from 0 on, each once; all if there are none."""
    axes = list(range(rank)) if axes is None else axes
    found = tuple(axis + rank if axis < 0 else axis for axis in axes)
    if any(not 0 <= axis < rank for axis in found) or len(set(found)) < len(found):
        node.refuse(f"expected different axes from {-rank} to {rank - 1}, got {axes[:9]}")
    return found


def slices(constants: Constants, node: Node, rank: int) -> tuple[slice, ...]:
    """What a Slice takes of an array."""
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (constants.listed(node, n, k) for k, n in enumerate(names, 1))
    if starts is None or ends is None:
        node.refuse("expected starts and ends, got none")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        node.refuse(f"expected lists of one length, and steps other than 0, got steps {steps[:9]}")
    found = [slice(None)] * rank
    for axis, start, end, step in zip(axes_of(node, axes, rank), starts, ends, steps, strict=True):
        # Behind the end of a negative step lies everything, which NumPy writes as None.
        low = None if step < 0 and end < -(2**31) else end
        found[axis] = slice(start, low, step)
    return tuple(found)


def _written(constants: Constants, node: Node) -> Any:
    """The value of a Constant."""
    if len(node.attributes) != 1:
        node.refuse(f"expected one value, got {sorted(node.attributes)}")
    [(name, value)] = node.attributes.items()
    if name == "value":
        where = f"{node.where}: value"
        kind = KINDS.get(value.data_type)
        real = kind is None or kind.real
        return constants.tensors.reals(value, where) if real else constants.tensors.integers(
            value, where
        )  # fmt: skip
    return np.array(value, np.float32 if "float" in name else np.int64)


def _filled(constants: Constants, node: Node) -> np.ndarray:
    """The value of a ConstantOfShape."""
    shape = tuple(constants.integers(node, 0))
    if any(size < 0 for size in shape):
        node.refuse(f"expected sizes of at least 0, got {shape[:9]}")
    constants.take(shape, node)
    if "value" not in node.attributes:
        return np.zeros(shape, np.float32)
    value = _written(constants, node).reshape(-1)
    return np.full(shape, value[0], value.dtype)


def _cast(constants: Constants, node: Node) -> np.ndarray:
    to = node.attributes.get("to")
    if to not in TYPES:
        node.refuse(f"expected a cast to float32, float64, int32, int64 or bool, got type {to}")
    array = constants.array(node, 0)
    return array != 0 if to == 9 else array.astype(TYPES[to])


def _expanded(constants: Constants, node: Node) -> np.ndarray:
    array, target = constants.array(node, 0), tuple(constants.integers(node, 1))
    shape = np.broadcast_shapes(array.shape, target)
    constants.take(shape, node)
    return np.broadcast_to(array, shape).copy()


def _reshaped(constants: Constants, node: Node) -> np.ndarray:
    array, target = constants.array(node, 0), constants.integers(node, 1)
    if not node.attributes.get("allowzero", 0):
        target = [
            array.shape[k] if size == 0 and k < array.ndim else size
            for k, size in enumerate(target)
        ]
    return array.reshape(target)


def _taken(constants: Constants, node: Node) -> np.ndarray:
    array, indices = constants.array(node, 0), constants.array(node, 1)
    if indices.dtype != np.int64:
        node.refuse("expected integers as indices, got other numbers")
    constants.take((indices.size, array.size // max(1, array.shape[0] if array.ndim else 1)), node)
    return np.take(array, indices, axis=node.attributes.get("axis", 0))


def _concatenated(constants: Constants, node: Node) -> np.ndarray:
    arrays = [constants.array(node, k) for k in range(len(node.inputs))]
    constants.take((sum(array.size for array in arrays),), node)
    return np.concatenate(arrays, axis=node.attributes.get("axis", 0))


def _unsqueezed(constants: Constants, node: Node) -> np.ndarray:
    array, axes = constants.array(node, 0), constants.listed(node, "axes", 1)
    return np.expand_dims(array, axes_of(node, axes or [], array.ndim + len(axes or [])))


def _squeezed(constants: Constants, node: Node) -> np.ndarray:
    array, axes = constants.array(node, 0), constants.listed(node, "axes", 1)
    return array.squeeze(None if axes is None else axes_of(node, axes, array.ndim))


def _split(constants: Constants, node: Node) -> list[np.ndarray]:
    array, sizes = constants.array(node, 0), constants.listed(node, "split", 1)
    [axis] = axes_of(node, [node.attributes.get("axis", 0)], array.ndim)
    if sizes is None:
        part = -(-array.shape[axis] // len(node.outputs))
        sizes = [part] * (len(node.outputs) - 1)
        sizes.append(array.shape[axis] - sum(sizes))
    if len(sizes) != len(node.outputs) or sum(sizes) != array.shape[axis] or min(sizes) < 0:
        node.refuse(f"expected sizes that sum to {array.shape[axis]}, got {sizes[:9]}")
    return np.split(array, np.cumsum(sizes)[:-1], axis)


def _product(constants: Constants, node: Node) -> np.ndarray:
    array, axes = constants.array(node, 0), constants.listed(node, "axes", 1)
    keep = bool(node.attributes.get("keepdims", 1))
    return array.prod(axis=axes_of(node, axes or None, array.ndim), keepdims=keep)


def _chosen(constants: Constants, node: Node) -> np.ndarray:
    which, a, b = (constants.array(node, k) for k in range(3))
    constants.take(np.broadcast_shapes(which.shape, a.shape, b.shape), node)
    return np.where(which != 0, a, b)


def _elementwise(f: Callable[..., Any]) -> Callable[[Constants, Node], np.ndarray]:
    def computed(constants: Constants, node: Node) -> np.ndarray:
        arrays = [constants.array(node, k) for k in range(len(node.inputs))]
        if len({array.dtype for array in arrays}) > 1:
            node.refuse("expected numbers of one type, got several")
        constants.take(np.broadcast_shapes(*(array.shape for array in arrays)), node)
        return np.asarray(f(*arrays))

    return computed


def _quotient(a: np.ndarray, b: np.ndarray) -> Any:
    """``a / b``; for integers rounded to 0, as in C."""
    if not b.all():
        raise ValueError("a division by 0")
    if a.dtype != np.int64:
        return a / b
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


COMPUTED: Mapping[str, Callable[[Constants, Node], Any]] = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": _concatenated,
    "Constant": _written,
    "ConstantOfShape": _filled,
    "Div": _elementwise(_quotient),
    "Equal": _elementwise(lambda a, b: (a == b).astype(np.int64)),
    "Expand": _expanded,
    "Gather": _taken,
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Reciprocal": _elementwise(np.reciprocal),
    "ReduceProd": _product,
    "Reshape": _reshaped,
    "Slice": lambda c, n: c.array(n, 0)[slices(c, n, c.array(n, 0).ndim)],
    "Split": _split,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": _squeezed,
    "Sub": _elementwise(np.subtract),
    "Transpose": lambda c, n: c.array(n, 0).transpose(n.attributes.get("perm")),
    "Unsqueeze": _unsqueezed,
    "Where": _chosen,
}
"""Operators on constants."""
