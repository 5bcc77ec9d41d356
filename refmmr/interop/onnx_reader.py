"""Read an ONNX model into a graph of piecewise linear operations, and that into a network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refmmr.interop.chain import to_network
from refmmr.interop.graph import MAX_UNITS, Graph
from refmmr.interop.onnx_constants import Constants
from refmmr.interop.onnx_nodes import Node, parse, reason
from refmmr.interop.onnx_operators import READERS
from refmmr.interop.onnx_tensors import Tensors, quote, refuse
from refmmr.interop.values import Value
from refmmr.network import Network

__all__ = ["Model", "read_graph"]

MAX_NODES = 10_000
"""Largest number of nodes of a graph; a network has a few per layer."""
MIN_OPSET = 7
"""The first version in which elementwise operators broadcast as in NumPy."""

Shape = tuple[int, ...]


class Model(NamedTuple):
    """A network, and how it differs from the model that it was read from."""

    network: Network
    input_order: np.ndarray | None
    """Index in the network's flattened input of each entry of the model's, where the model has the
    channels last; None where they are the same."""
    left_out: str | None
    """The operator at the end, such as a Softmax, that the network does without."""
    input_shape: Shape
    """Shape of one input of the model."""


def read_graph(
    model: Any, tensors: Tensors, source: str, input_shape: Shape | None = None
) -> Model:
    """The network of a parsed model.

    Parameters
    ----------
    model : onnx.ModelProto
    tensors : Tensors
        Reads its weights.
    source : str
        Name of the file, for errors.
    input_shape : tuple of int, optional
        Shape of one input, where the model does not say.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        For a graph with other operators; the message names operator and node.
    """
    graph = model.graph
    opset = _check_model(model, source)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    if len(initializers) != len(graph.initializer) or "" in initializers:
        refuse(source, "graph", "expected initializers of different names, got one name twice")
    inputs = [value for value in graph.input if value.name not in initializers]
    for what, values in (("input", inputs), ("output", graph.output)):
        if len(values) != 1:
            names = ", ".join(quote(value.name) for value in values[:5])
            refuse(source, "graph", f"expected one {what}, got {len(values)} ({names})")
    shape, batch = _input_shape(inputs[0], graph.output[0], source, input_shape)
    reader = Reader(source, opset, inputs[0].name, shape, batch, Constants(tensors, initializers))
    for i, node in enumerate(graph.node):
        reader.add(i, node)
    return reader.model(graph.output[0].name)


def _check_model(model: Any, source: str) -> int:
    """Refuse a model that cannot be a chain of operators; return the version of the operators."""
    from onnx import defs

    graph = model.graph
    if not graph.node:
        refuse(source, "graph", "expected nodes, got none")
    if len(graph.node) > MAX_NODES:
        refuse(source, "graph", f"expected at most {MAX_NODES} nodes, got {len(graph.node)}")
    if graph.sparse_initializer:
        name = quote(graph.sparse_initializer[0].values.name)
        refuse(source, f"sparse initializer {name}", "expected dense weights, got sparse ones")
    if model.functions:
        name = quote(model.functions[0].name)
        refuse(
            source, f"function {name}", "expected operators of ONNX itself, got a local function"
        )
    versions = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    newest = defs.onnx_opset_version()
    if len(versions) != 1 or not MIN_OPSET <= min(versions) <= newest:
        refuse(
            source,
            "model",
            f"expected one operator set, of a version from {MIN_OPSET} to {newest}, got "
            f"{sorted(versions)}",
        )
    return int(min(versions))


def _input_shape(
    value: Any, output: Any, source: str, given: Shape | None
) -> tuple[Shape, int | None]:
    """Shape of the input with a batch of 1, and the size of the batch; None if there is no batch.

    The first axis is that of the batch if its size is open or 1, or if the output has one of the
    same size.
    """
    where = f"input {quote(value.name)}"
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        refuse(source, where, f"expected a tensor, got {kind}")
    tensor = value.type.tensor_type
    if tensor.elem_type not in (1, 10, 11, 16):
        refuse(
            source,
            where,
            f"expected float16, bfloat16, float32 or float64, got data type {tensor.elem_type}",
        )
    if not tensor.HasField("shape"):
        if given is None:
            refuse(source, where, "expected a shape, got none; pass input_shape")
        return _checked_shape((1, *given), source, where), 1
    sizes = _sizes(tensor)
    text = "(" + ", ".join("?" if size is None else str(size) for size in sizes[:9]) + ")"
    if not 1 <= len(sizes) <= 8:
        refuse(source, where, f"expected 1 to 8 axes, got {text}")
    batch: int | None = None
    if len(sizes) > 1:
        batch = sizes[0] or 1
        result = _sizes(output.type.tensor_type)
        if batch > 1 and (result[:1] != [batch] if result else len(sizes) not in (2, 4)):
            batch = None
    free = sizes if batch is None else sizes[1:]
    if given is None:
        given = tuple(size for size in free if size is not None)
        if len(given) < len(free):
            refuse(source, where, f"expected a known shape, got {text}; pass input_shape")
    elif len(given) != len(free) or any(
        size not in (None, side) for size, side in zip(free, given, strict=True)
    ):
        raise ValueError(f"input_shape: expected one that fits {text} in {source}, got {given}")
    shape = given if batch is None else (1, *given)
    return _checked_shape(shape, source, where), batch


def _sizes(tensor: Any) -> list[int | None]:
    """The axes of a tensor type; None where a size is open."""
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return [None if size in (None, -1, 0) else size for size in sizes]


def _checked_shape(shape: Shape, source: str, where: str) -> Shape:
    if min(shape, default=0) < 1 or math.prod(shape) > MAX_UNITS:
        refuse(source, where, f"expected sizes above 0, at most {MAX_UNITS} in all, got {shape}")
    return shape


class Reader:
    """Reads the nodes in order.

    Attributes
    ----------
    graph : Graph
    values : dict of str to Value
        What depends on the input; as the model computes it for a batch of 1.
    constants : Constants
    opset : int
        Version of the operators.
    batch : int or None
        Size of the batch in the model; None if it has none.
    """

    def __init__(
        self,
        source: str,
        opset: int,
        name: str,
        shape: Shape,
        batch: int | None,
        constants: Constants,
    ) -> None:
        self.graph = Graph(source, shape, shape if batch is None else shape[1:])
        self.opset = opset
        self.batch = batch
        self.constants = constants
        self.values: dict[str, Value] = {name: self.graph.input}
        self._names = {name, *constants.values}
        self._hidden: set[str] = set()  # further outputs, which nothing may read
        self._ends: dict[str, str] = {}  # values that stand for a Softmax or the like of them

    def add(self, i: int, proto: Any) -> None:
        """Read the next node."""
        node = parse(i, proto, self.graph.source)
        for name in filter(None, node.inputs):
            if name not in self.values and name not in self.constants.values:
                node.refuse(
                    f"expected inputs from the nodes before it, got {quote(name)}, which neither "
                    "they nor the initializers give (or the graph is not sorted, or has a cycle)",
                )
        data = [name for name in node.inputs if name in self.values]
        for name in filter(None, node.outputs):
            if name in self._names:
                node.refuse(f"expected an output with a new name, got {quote(name)} again")
            self._names.add(name)
        if not data or node.kind == "Shape":
            self.constants.add(node, self._shape(self.values[data[0]]) if data else None)
            return
        if node.kind not in READERS:
            node.refuse(reason(node.kind, node.kind))
        ended = next((self._ends[name] for name in data if name in self._ends), None)
        if ended is not None and node.kind not in AFTER_THE_END:
            node.refuse(f"expected nothing behind {ended}")
        made = READERS[node.kind](self, node)
        made = [made] if isinstance(made, Value) else made
        for name, value in zip(node.outputs, made, strict=False):
            if name:
                self.values[name] = value
                if node.kind in ENDS or ended is not None:
                    self._ends[name] = ended or node.where

    def model(self, output: str) -> Model:
        """The network of all nodes read."""
        if output not in self.values:
            refuse(
                self.graph.source,
                f"output {quote(output)}",
                "expected one that depends on the input, got none",
            )
        value, left_out = self.values[output], self._ends.get(output)
        if left_out is not None:
            warnings.warn(
                f"{self.graph.source}: {left_out} is left out: the network gives the logits before "
                "it, which are largest for the same class",
                stacklevel=2,
            )
        net, order = to_network(self.graph, value)
        return Model(net, order, left_out, self.graph.sample_shape)

    def data(self, node: Node, k: int = 0) -> Value:
        """The value that depends on the input, as input k of a node."""
        name = node.inputs[k]
        if name not in self.values:
            node.refuse(f"expected what depends on the input of the network, got {quote(name)}")
        return self.values[name]

    def constant(self, node: Node, k: int) -> np.ndarray:
        """The constant real numbers that are input k of a node, for a batch of 1."""
        if node.inputs[k] in self.values:
            node.refuse(
                f"expected constants beside its input, got {quote(node.inputs[k])}, which depends "
                "on the input of the network, too"
            )
        return self.constants.reals(node, k)

    def for_one(self, node: Node, array: np.ndarray, rank: int) -> np.ndarray:
        """A constant beside a batch, whose rows have to be equal, for a batch of 1."""
        if self.batch in (None, 1) or array.ndim != rank or len(array) != self.batch:
            return array
        if (array != array[:1]).any():
            node.refuse(f"expected equal rows for all {self.batch} inputs of the batch, got others")
        return array[:1]

    def _shape(self, value: Value) -> Shape:
        """The shape of a value as the model has it, with its batch."""
        return value.shape if self.batch in (None, 1) else (self.batch, *value.shape[1:])

    def keep_batch(self, node: Node, axes: Sequence[int]) -> None:
        """Refuse an operator on the axis of a batch of several."""
        if self.batch not in (None, 1) and 0 in axes:
            node.refuse(
                f"expected the first axis to be left alone, that of a batch of {self.batch}; "
                "instead: export the model for a batch of 1"
            )


ENDS = ("Softmax", "LogSoftmax", "Sigmoid", "ArgMax")
"""Operators at the very end that are left out: the class of their result is that of the logits."""
AFTER_THE_END = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that may come behind them."""
