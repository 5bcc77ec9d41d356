"""Read the graph of an ONNX model, one chain of operators, into an `Assembly`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refmmr.interop.assembly import Assembly
from refmmr.interop.onnx_constants import Constants, shape_text
from refmmr.interop.onnx_nodes import OPERATORS, Node, parse
from refmmr.interop.onnx_tensors import Tensors, quote, refuse
from refmmr.network import Network

__all__ = ["read_graph"]

MAX_NODES = 10_000
"""Largest number of nodes of a graph; a network has a few per layer."""
MAX_UNITS = 2**24
"""Largest size of an input and of every layer, with padding: 128 MiB in float64."""
MIN_OPSET = 7
"""The first version in which elementwise operators broadcast as in NumPy."""

Shape = tuple[int, ...]


def read_graph(
    model: Any, tensors: Tensors, source: str, input_shape: Shape | None = None
) -> Network:
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
    Network

    Raises
    ------
    ValueError
        For a graph that is not a chain of known operators; the message names operator and node.
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
    shape, batch = _input_shape(inputs[0], source, input_shape)
    chain = _Chain(source, tensors, opset, inputs[0].name, shape, batch, initializers)
    for i, node in enumerate(graph.node):
        chain.add(i, node)
    return chain.network(graph.output[0].name)


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
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = defs.onnx_opset_version()
    if len(versions) != 1 or not MIN_OPSET <= versions[0] <= newest:
        refuse(
            source,
            "model",
            f"expected one operator set, of a version from {MIN_OPSET} to {newest}, got {versions}",
        )
    return int(versions[0])


def _input_shape(value: Any, source: str, given: Shape | None) -> tuple[Shape, int | None]:
    """Shape of one sample, and the size of the batch where it is fixed."""
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
        return _checked_shape(given, source, where), None
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    text = "(" + ", ".join("?" if size is None else str(size) for size in sizes[:9]) + ")"
    if len(sizes) not in (2, 4):
        refuse(
            source,
            where,
            f"expected shape (n, d) or (n, channels, height, width), got {text}; "
            "the first axis has to be that of the batch",
        )
    batch, *sample = sizes
    if batch not in (None, -1, 1):
        refuse(source, where, f"expected a batch of any size or 1, got {text}; export the model so")
    free = [None if size in (None, -1, 0) else size for size in sample]
    if given is None:
        given = tuple(size for size in free if size is not None)
        if len(given) < len(free):
            refuse(source, where, f"expected a known shape, got {text}; pass input_shape")
    elif len(given) != len(free) or any(
        size not in (None, side) for size, side in zip(free, given, strict=True)
    ):
        raise ValueError(f"input_shape: expected one that fits {text} in {source}, got {given}")
    return _checked_shape(given, source, where), 1 if batch == 1 else None


def _checked_shape(shape: Shape, source: str, where: str) -> Shape:
    if min(shape, default=0) < 1 or math.prod(shape) > MAX_UNITS:
        refuse(source, where, f"expected sizes above 0, at most {MAX_UNITS} in all, got {shape}")
    return shape


class _Chain:
    """Reads the nodes in order."""

    def __init__(
        self,
        source: str,
        tensors: Tensors,
        opset: int,
        name: str,
        shape: Shape,
        batch: int | None,
        initializers: Mapping[str, Any],
    ) -> None:
        self.source = source
        self.opset = opset
        self.batch = batch
        self.assembly = Assembly(source, shape)
        self.current = name
        # What depends on the input: its shape, and the node that reads it.
        self.shapes: dict[str, Shape] = {name: shape}
        self.readers: dict[str, str] = {}
        self.constants = Constants(tensors, initializers)
        self.names = {name, *initializers}
        self.last: str | None = None

    def add(self, i: int, proto: Any) -> None:
        """Read the next node."""
        node = parse(i, proto, self.source)
        for name in filter(None, node.inputs):
            if name not in self.shapes and name not in self.constants.values:
                node.refuse(
                    f"expected inputs from the nodes before it, got {quote(name)}, which neither "
                    "they nor the initializers give (or the graph is not sorted, or has a cycle)",
                )
        data = [name for name in node.inputs if name in self.shapes]
        if not data or node.kind == "Shape":
            self._name(node)
            self.constants.add(node, self.shapes, self.batch)
            return
        self._check_data(node, data)
        getattr(self, "_" + node.kind.lower())(node)
        if math.prod(self.assembly.shape) > MAX_UNITS:
            node.refuse(f"expected at most {MAX_UNITS} units, got shape {self.assembly.shape}")
        self._name(node)
        self.readers[self.current] = node.where
        self.current = node.outputs[0]
        self.shapes[self.current] = self.assembly.shape

    def network(self, output: str) -> Network:
        """The network of all nodes read."""
        if output != self.current:
            refuse(
                self.source,
                f"output {quote(output)}",
                f"expected the end of the chain, which is {quote(self.current)}",
            )
        return self.assembly.network()

    def _name(self, node: Node) -> None:
        """Register the names of a node's outputs."""
        for name in filter(None, node.outputs):
            if name in self.names:
                node.refuse(f"expected an output with a new name, got {quote(name)} again")
            self.names.add(name)

    def _check_data(self, node: Node, data: Sequence[str]) -> None:
        """Check that one input depends on the network's input, and that no other node reads it."""
        if len(data) > 1:
            node.refuse(
                "expected one input that depends on the input of the network and constants, got "
                f"{quote(data[0])} and {quote(data[1])}; branches and residual connections are "
                "not supported",
            )
        if data[0] != self.current:
            node.refuse(
                f"expected a chain, got a branch: {self.readers[data[0]]} reads {quote(data[0])}, "
                "too",
            )
        if node.kind not in OPERATORS:
            node.refuse("expected constants, got what depends on the input of the network")
        if data[0] != node.inputs[0] and node.kind not in ("Add", "Sub", "Mul", "Div"):
            node.refuse(f"expected {quote(data[0])} as its first input, the others constant")
        if self.last is not None:
            node.refuse(f"expected nothing behind {self.last}")

    # Operators on what depends on the input, by their names in lower case.

    def _gemm(self, node: Node) -> None:
        given = node.attributes
        if given.get("transA", 0):
            node.refuse("expected transA = 0, got 1: the batch would be the second axis")
        W = self.constants.reals(node, 1)
        if W.ndim != 2:
            node.refuse(f"expected a matrix of weights, got shape {W.shape}")
        W = _times(W if given.get("transB", 0) else W.T, given.get("alpha", 1.0))
        b = np.zeros(len(W), W.dtype)
        if len(node.inputs) == 3:
            C = _times(self.constants.reals(node, 2), given.get("beta", 1.0))
            if (
                C.shape[-1:] not in ((), (1,), b.shape)
                or C.ndim > 2
                or C.shape[:-1] not in ((), (1,))
            ):
                node.refuse(f"expected biases of shape {b.shape}, got {C.shape}")
            b = np.broadcast_to(C.reshape(-1), b.shape)
        self.assembly.linear(W, b, node.where)

    def _matmul(self, node: Node) -> None:
        W = self.constants.reals(node, 1)
        if W.ndim != 2:
            node.refuse(f"expected a matrix of weights, got shape {W.shape}")
        self.assembly.linear(W.T, np.zeros(W.shape[1], W.dtype), node.where)

    def _conv(self, node: Node) -> None:
        given, shape = node.attributes, self.assembly.shape
        W = self.constants.reals(node, 1)
        if W.ndim != 4 or len(shape) != 3:
            node.refuse(
                "expected images (channels, height, width) and filters with 4 axes, got shapes "
                f"{shape} and {W.shape}",
            )
        b = self.constants.reals(node, 2) if len(node.inputs) == 3 else np.zeros(len(W), W.dtype)
        for name, expected in (
            ("group", 1),
            ("dilations", [1, 1]),
            ("kernel_shape", [*W.shape[2:]]),
        ):
            if given.get(name, expected) != expected:
                node.refuse(f"expected {name} = {expected}, got {given[name]}")
        strides = given.get("strides", [1, 1])
        if len(strides) != 2:
            node.refuse(f"expected two strides, got {strides}")
        self.assembly.conv(W, b, node.where, tuple(strides), self._padding(node))

    def _padding(self, node: Node) -> Any:
        """Padding of a convolution, as `Conv2d` has it."""
        mode = node.attributes.get("auto_pad", "NOTSET")
        pads = node.attributes.get("pads", [0, 0, 0, 0])
        if mode not in ("NOTSET", "VALID", "SAME_UPPER"):
            node.refuse(f"expected auto_pad NOTSET, VALID or SAME_UPPER, got {quote(mode)}")
        if len(pads) != 4 or min(pads) < 0:
            node.refuse(f"expected four pads of at least 0, got {pads}")
        if mode != "NOTSET" and any(pads):
            node.refuse(f"expected no pads beside auto_pad {mode}, got {pads}")
        if mode == "SAME_UPPER":
            return "same"
        top, left, bottom, right = pads
        channels, height, width = self.assembly.shape
        padded = channels * (top + height + bottom) * (left + width + right)
        if padded > MAX_UNITS:
            node.refuse(f"expected at most {MAX_UNITS} units with pads, got {padded}")
        return (top, bottom), (left, right)

    def _batchnormalization(self, node: Node) -> None:
        given = node.attributes
        for name, expected in (("training_mode", 0), ("spatial", 1)):
            if given.get(name, expected) != expected:
                node.refuse(f"expected {name} = {expected}, got {given[name]}")
        channels, *others = self.assembly.shape
        gamma, beta, mean, variance = (
            self.constants.reals(node, k).astype(np.float64) for k in range(1, 5)
        )
        for array in (gamma, beta, mean, variance):
            if array.shape != (channels,):
                node.refuse(f"expected constants of shape ({channels},), got {array.shape}")
        variance = variance + given.get("epsilon", 1e-5)
        if not (variance > 0).all():
            node.refuse("expected variances above 0, got others")
        factor = gamma / np.sqrt(variance)
        shape = (channels, *(1 for _ in others))
        shift = beta - mean * factor
        self.assembly.scale(factor.reshape(shape), shift.reshape(shape), node.where)

    def _relu(self, node: Node) -> None:
        self.assembly.relu(node.where)

    def _identity(self, node: Node) -> None:
        pass

    def _dropout(self, node: Node) -> None:
        if len(node.inputs) == 3 and self.constants.sizes(node, 2).numbers != (0,):
            node.refuse("expected training_mode false, got true")

    def _flatten(self, node: Node) -> None:
        axis, rank = node.attributes.get("axis", 1), 1 + len(self.assembly.shape)
        if axis not in (1, 1 - rank):
            node.refuse(f"expected axis = 1, which keeps the batch, got {axis}")
        self.assembly.flatten(node.where)

    def _reshape(self, node: Node) -> None:
        shape = self.assembly.shape
        target = self.constants.sizes(node, 1).numbers
        if 0 in target and node.attributes.get("allowzero", 0):
            node.refuse(f"expected no axis of size 0, got {shape_text(target)}")
        after = _resolved(target, self.batch, shape)
        if after == [self.batch, math.prod(shape)]:
            self.assembly.flatten(node.where)
        elif after != [self.batch, *shape]:
            node.refuse(
                f"expected a flattening of (batch, {', '.join(map(str, shape))}) to (batch, "
                f"{math.prod(shape)}), got {shape_text(target)}",
            )

    def _softmax(self, node: Node) -> None:
        axis = node.attributes.get("axis", 1 if self.opset < 13 else -1)
        if len(self.assembly.shape) != 1 or axis not in (1, -1):
            node.refuse(
                f"expected the classes of (batch, classes), the last axis, got axis {axis} of "
                f"(batch, {', '.join(map(str, self.assembly.shape))})",
            )
        self.last = node.where

    _logsoftmax = _softmax

    def _add(self, node: Node) -> None:
        self.assembly.scale(1.0, self._constant_beside(node), node.where)

    def _sub(self, node: Node) -> None:
        constant = self._constant_beside(node)
        if node.inputs[0] == self.current:
            self.assembly.scale(1.0, -constant, node.where)
        else:
            self.assembly.scale(-1.0, constant, node.where)

    def _mul(self, node: Node) -> None:
        self.assembly.scale(self._constant_beside(node), 0.0, node.where)

    def _div(self, node: Node) -> None:
        constant = self._constant_beside(node)
        if node.inputs[0] != self.current:
            node.refuse("expected a division by a constant, got one of a constant")
        if not constant.all():
            node.refuse("expected a division by numbers other than 0, got 0")
        self.assembly.scale(1 / constant, 0.0, node.where)

    def _constant_beside(self, node: Node) -> np.ndarray:
        """The constant of an elementwise operator, broadcast to one sample, in float64."""
        constant = self.constants.reals(node, 1 if node.inputs[0] == self.current else 0)
        shape = self.assembly.shape
        if constant.ndim == 1 + len(shape) and len(constant) == 1:
            constant = constant[0]
        sides = zip(constant.shape[::-1], shape[::-1], strict=False)
        if constant.ndim > len(shape) or any(side not in (1, full) for side, full in sides):
            node.refuse(
                f"expected a constant that broadcasts to (batch, {', '.join(map(str, shape))}), "
                f"got shape {constant.shape}",
            )
        return constant.astype(np.float64)


def _times(array: np.ndarray, factor: float) -> np.ndarray:
    """The product in float64; the array itself for a factor of 1."""
    return array if factor == 1 else array.astype(np.float64) * factor


def _resolved(target: Sequence[int | None], batch: int | None, shape: Shape) -> list[int | None]:
    """The output shape of a Reshape; in its target 0 keeps a size, and -1 is inferred."""
    before = [batch, *shape]
    after = [before[k] if size == 0 and k < len(before) else size for k, size in enumerate(target)]
    if after.count(-1) != 1:
        return after
    if after[0] == -1:
        return [batch, *after[1:]]
    known = math.prod(size for size in after[1:] if size not in (None, -1))
    if after[0] == batch and known:
        after[after.index(-1)] = math.prod(shape) // known
    return after
