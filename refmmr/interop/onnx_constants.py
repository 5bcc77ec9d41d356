"""Constants of an ONNX graph: weights, and the shapes that the graph computes for a Reshape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refmmr.interop.onnx_nodes import CONSTANTS, Node
from refmmr.interop.onnx_tensors import Tensors, quote

__all__ = ["Constants", "Sizes", "shape_text"]

MAX_SHAPE_LENGTH = 8
"""Numbers of a shape that a graph computes: without a limit they could double in every node."""


class Sizes(NamedTuple):
    """A shape that the graph computes, or one number of it; None is the size of the batch."""

    numbers: tuple[int | None, ...]
    scalar: bool = False


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
        # A TensorProto, an array of weights, or Sizes.
        self.values: dict[str, Any] = dict(initializers)

    def reals(self, node: Node, k: int) -> np.ndarray:
        """The weights that are input k of a node."""
        value = self.values[node.inputs[k]]
        if isinstance(value, Sizes):
            node.refuse(f"expected weights, got a computed shape, {quote(node.inputs[k])}")
        if isinstance(value, np.ndarray):
            return value
        return self.tensors.reals(value, self._place(node, k))

    def _place(self, node: Node, k: int) -> str:
        """Name of a constant, for errors."""
        return f"{node.where}: tensor {quote(node.inputs[k])}"

    def sizes(self, node: Node, k: int) -> Sizes:
        """The shape, or a number of one, that is input k of a node."""
        value = self.values[node.inputs[k]]
        if isinstance(value, Sizes):
            return value
        if (
            isinstance(value, np.ndarray)
            or len(value.dims) > 1
            or max(value.dims, default=0) > MAX_SHAPE_LENGTH
        ):
            node.refuse(
                f"expected at most {MAX_SHAPE_LENGTH} integers as shape or index, got another "
                f"constant, {quote(node.inputs[k])}",
            )
        numbers = self.tensors.integers(value, self._place(node, k))
        return Sizes(tuple(numbers.reshape(-1).tolist()), numbers.ndim == 0)

    def add(self, node: Node, shapes: Mapping[str, tuple[int, ...]], batch: int | None) -> None:
        """Add the output of a node that does not depend on the numbers of the input.

        Parameters
        ----------
        node : Node
        shapes : mapping of str to tuple of int
            Shapes of the values that depend on the input, of one sample.
        batch : int or None
            Size of the batch, where it is fixed.
        """
        if node.kind == "Shape":
            self.values[node.outputs[0]] = _shape_of(node, shapes.get(node.inputs[0]), batch)
        else:
            self.values[node.outputs[0]] = self._compute(node)

    def _compute(self, node: Node) -> Any:
        if node.kind not in CONSTANTS:
            node.refuse("expected one input that depends on the input of the network, got none")
        given = node.attributes
        if node.kind == "Constant":
            return _written(node)
        if node.kind == "Identity":
            return self.values[node.inputs[0]]
        if node.kind == "Cast":
            if given.get("to") not in (6, 7):
                node.refuse(f"expected a shape made int32 or int64, got {given.get('to')}")
            return self.sizes(node, 0)
        parts = [self.sizes(node, k) for k in range(len(node.inputs))]
        axis = given.get("axis", 0)
        if axis not in (0, -1):
            node.refuse(f"expected axis = 0 of a shape, got {axis}")
        if node.kind == "Concat":
            return _joined(node, parts)
        if node.kind == "Gather":
            return _gathered(node, *parts)
        axes = given.get("axes") if len(parts) == 1 else list(parts[1].numbers)
        if not parts[0].scalar or axes not in ([0], [-1]):
            node.refuse(f"expected axes [0] of a number, got {axes}")
        return Sizes(parts[0].numbers)


def _written(node: Node) -> Any:
    """The value of a Constant."""
    if len(node.attributes) != 1:
        node.refuse(f"expected one value, got {sorted(node.attributes)}")
    [(name, value)] = node.attributes.items()
    if name == "value":
        return value
    if name in ("value_float", "value_floats"):
        return np.array(value, dtype=np.float32)
    if name == "value_int":
        return Sizes((value,), scalar=True)
    if len(value) > MAX_SHAPE_LENGTH:
        node.refuse(f"expected at most {MAX_SHAPE_LENGTH} integers, got {len(value)}")
    return Sizes(tuple(value))


def _shape_of(node: Node, shape: tuple[int, ...] | None, batch: int | None) -> Sizes:
    if shape is None:
        node.refuse("expected what depends on the input of the network, got a constant")
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return Sizes((batch, *shape)[start:end])


def _joined(node: Node, parts: Sequence[Sizes]) -> Sizes:
    if any(part.scalar for part in parts) or sum(len(p.numbers) for p in parts) > MAX_SHAPE_LENGTH:
        node.refuse(f"expected shapes of at most {MAX_SHAPE_LENGTH} numbers together")
    return Sizes(tuple(number for part in parts for number in part.numbers))


def _gathered(node: Node, shape: Sizes, indices: Sizes) -> Sizes:
    length = len(shape.numbers)
    if shape.scalar or any(i is None or not -length <= i < length for i in indices.numbers):
        node.refuse(
            f"expected indices of a shape of {length} numbers, got {shape_text(indices.numbers)}",
        )
    picked = tuple(shape.numbers[i] for i in indices.numbers if i is not None)
    return Sizes(picked, indices.scalar)


def shape_text(sizes: Sequence[int | None]) -> str:
    """A shape, for an error."""
    return "(" + ", ".join("batch" if size is None else str(size) for size in sizes) + ")"
