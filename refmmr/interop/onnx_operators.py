"""The operators of ONNX on what depends on the input of the network, as operations of a graph.

Each takes the reader and the node, and gives a value, or a list of them; values have the shape that
the model computes for a batch of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refmmr.interop.graph import MAX_UNITS
from refmmr.interop.onnx_constants import axes_of
from refmmr.interop.onnx_nodes import Node, reason
from refmmr.interop.onnx_shapes import SHAPE_READERS
from refmmr.interop.onnx_windows import WINDOW_READERS
from refmmr.interop.pooling import mean
from refmmr.interop.values import Value

if TYPE_CHECKING:
    from refmmr.interop.onnx_reader import Reader

__all__ = ["READERS"]


# Affine maps with weights.


def _gemm(reader: Reader, node: Node) -> Value:
    given, graph = node.attributes, reader.graph
    left = node.inputs[0] not in reader.values
    x, W = reader.data(node, int(left)), reader.constant(node, int(not left))
    if W.ndim != 2 or len(x.shape) != 2:
        node.refuse(f"expected a matrix of weights and one of inputs, got {W.shape} and {x.shape}")
    if given.get("transA" if left else "transB", 0):
        W = W.T
    if given.get("transB" if left else "transA", 0):
        reader.keep_batch(node, (0,))
        x = graph.pick(x, graph.indices(x).T, node.where)
    W = _times(W, given.get("alpha", 1.0))
    C = np.zeros((), W.dtype)
    if len(node.inputs) == 3:
        C = reader.for_one(node, _times(reader.constant(node, 2), given.get("beta", 1.0)), 2)
    if left or x.shape[0] > 1:
        return graph.scale(graph.matmul(x, W, node.where, left), np.float32(1), C, node.where)
    if C.shape not in ((), (1,), (1, 1), W.shape[1:], (1, W.shape[1])):
        node.refuse(f"expected biases of shape ({W.shape[1]},), got {C.shape}")
    return graph.linear(x, W.T, np.broadcast_to(C.reshape(-1), W.shape[1:]), node.where)


def _times(array: np.ndarray, factor: float) -> np.ndarray:
    """The product in float64; the array itself for a factor of 1."""
    return array if factor == 1 else array.astype(np.float64) * factor


def _matmul(reader: Reader, node: Node) -> Value:
    left = node.inputs[0] not in reader.values
    x, M = reader.data(node, int(left)), reader.constant(node, int(not left))
    while M.ndim > 2 and M.shape[0] == 1:
        M = M[0]
    if left and len(x.shape) == 1:  # a vector is a column
        column = reader.graph.reshape(x, (x.size, 1), node.where)
        y = reader.graph.matmul(column, M, node.where, left)
        return reader.graph.reshape(y, (y.size,), node.where)
    return reader.graph.matmul(x, M, node.where, left)


def _batch_normalization(reader: Reader, node: Node) -> Value:
    x, given = reader.data(node), node.attributes
    for name, expected in (("training_mode", 0), ("spatial", 1)):
        if given.get(name, expected) != expected:
            node.refuse(f"expected {name} = {expected}, got {given[name]}")
    if len(x.shape) < 2:
        node.refuse(f"expected inputs with channels as the second axis, got shape {x.shape}")
    channels = x.shape[1]
    gamma, beta, average, variance = (
        reader.constant(node, k).astype(np.float64) for k in range(1, 5)
    )
    for array in (gamma, beta, average, variance):
        if array.shape != (channels,):
            node.refuse(f"expected constants of shape ({channels},), got {array.shape}")
    variance = variance + given.get("epsilon", 1e-5)
    if not (variance > 0).all():
        node.refuse("expected variances above 0, got others")
    factor = gamma / np.sqrt(variance)
    shape = (channels, *(1 for _ in x.shape[2:]))
    shift = beta - average * factor
    return reader.graph.scale(x, factor.reshape(shape), shift.reshape(shape), node.where)


# Elementwise affine maps.


def _beside(reader: Reader, node: Node) -> tuple[Value, np.ndarray, bool]:
    """The value and the constant of an operator of two inputs, and whether the value is first."""
    first = node.inputs[0] in reader.values
    x = reader.data(node, 0 if first else 1)
    constant = reader.constant(node, 1 if first else 0)
    return x, reader.for_one(node, constant, len(x.shape)).astype(np.float64), first


def _add(reader: Reader, node: Node, sign: float = 1.0) -> Value:
    graph = reader.graph
    if all(name in reader.values for name in node.inputs):
        return graph.add(reader.data(node), reader.data(node, 1), node.where, sign)
    x, constant, first = _beside(reader, node)
    if first:
        return graph.scale(x, 1.0, sign * constant, node.where)
    return graph.scale(x, sign, constant, node.where)


def _sub(reader: Reader, node: Node) -> Value:
    return _add(reader, node, -1.0)


def _mul(reader: Reader, node: Node) -> Value:
    if all(name in reader.values for name in node.inputs):
        node.refuse(
            "expected a constant factor, got two inputs that depend on the input of the network: "
            "their product is not piecewise linear"
        )
    x, constant, _ = _beside(reader, node)
    return reader.graph.scale(x, constant, 0.0, node.where)


def _div(reader: Reader, node: Node) -> Value:
    if node.inputs[1] in reader.values:
        node.refuse("expected a division by a constant, got one by what depends on the input")
    x, constant, _ = _beside(reader, node)
    if not constant.all():
        node.refuse("expected a division by numbers other than 0, got 0")
    return reader.graph.scale(x, 1 / constant, 0.0, node.where)


def _neg(reader: Reader, node: Node) -> Value:
    return reader.graph.scale(reader.data(node), -1.0, 0.0, node.where)


def _sum(reader: Reader, node: Node) -> Value:
    """Sum and Mean of several inputs, constants among them."""
    graph, total = reader.graph, None
    shift: np.ndarray = np.zeros((), np.float32)
    for k, name in enumerate(node.inputs):
        if name not in reader.values:
            shift = shift + reader.constant(node, k)
            continue
        x = reader.data(node, k)
        total = x if total is None else graph.add(total, x, node.where)
    assert total is not None
    part = 1.0 if node.kind == "Sum" else 1 / len(node.inputs)
    shift = reader.for_one(node, shift, len(total.shape))
    return graph.scale(total, part, part * shift.astype(np.float64), node.where)


def _where(reader: Reader, node: Node) -> Value:
    """A choice by a constant condition, which is affine, between values and constants."""
    if node.inputs[0] in reader.values:
        node.refuse(reason("Where", "Where by a condition that depends on the input"))
    graph, chosen = reader.graph, reader.constants.array(node, 0) != 0
    values = [reader.data(node, k) for k in (1, 2) if node.inputs[k] in reader.values]
    rank = len(values[0].shape)
    chosen, total = reader.for_one(node, chosen, rank), None
    shift: np.ndarray = np.zeros((), np.float32)
    for k, mask in ((1, chosen), (2, ~chosen)):
        if node.inputs[k] in reader.values:
            x = reader.data(node, k)
            part = graph.pick(x, _masked(node, mask, graph.indices(x), -1), node.where)
            total = part if total is None else graph.add(total, part, node.where)
        else:
            constant = reader.for_one(node, reader.constant(node, k), rank)
            shift = shift + _masked(node, mask, constant, 0)
    assert total is not None
    return graph.scale(total, 1.0, shift, node.where)


def _masked(node: Node, mask: np.ndarray, array: np.ndarray, other: int) -> np.ndarray:
    """The array where the mask is true, with shapes as in NumPy."""
    try:
        shape = np.broadcast_shapes(mask.shape, array.shape)
    except ValueError:
        node.refuse(f"expected shapes that fit, got {mask.shape} and {array.shape}")
    if math.prod(shape) > MAX_UNITS:
        node.refuse(f"expected at most {MAX_UNITS} units, got shape {shape}")
    return np.where(mask, array, np.array(other, array.dtype))


def _same(reader: Reader, node: Node) -> Value:
    return reader.data(node)


def _cast(reader: Reader, node: Node) -> Value:
    if node.attributes.get("to") not in (1, 11):
        node.refuse(
            f"expected a cast to float32 or float64, got type {node.attributes.get('to')}, which "
            "rounds"
        )
    return reader.data(node)


def _dropout(reader: Reader, node: Node) -> Value:
    if len(node.inputs) == 3 and reader.constants.array(node, 2).any():
        node.refuse("expected training_mode false, got true")
    return reader.data(node)


# Means, sums and extrema over axes.


def _reduce(reader: Reader, node: Node) -> Value:
    x, given = reader.data(node), node.attributes
    axes = reader.constants.listed(node, "axes", 1)
    if not axes:
        if given.get("noop_with_empty_axes", 0):
            return x
        axes = None
    found = axes_of(node, axes, len(x.shape))
    reader.keep_batch(node, found)
    keep = bool(given.get("keepdims", 1))
    if node.kind in ("ReduceMean", "ReduceSum"):
        return mean(reader.graph, x, found, keep, node.where, node.kind == "ReduceSum")
    indices = np.moveaxis(reader.graph.indices(x), found, range(len(found)))
    rest = indices.shape[len(found) :]
    kept = tuple(1 if k in found else size for k, size in enumerate(x.shape)) if keep else rest
    rows = indices.reshape(-1, *rest)
    parts = [reader.graph.pick(x, row.reshape(kept), node.where) for row in rows]
    largest = node.kind == "ReduceMax"
    return (reader.graph.maximum if largest else reader.graph.minimum)(parts, node.where)


# Piecewise linear operators.


def _relu(reader: Reader, node: Node) -> Value:
    return reader.graph.relu(reader.data(node), node.where)


def _leaky_relu(reader: Reader, node: Node) -> Value:
    slope = np.float32(node.attributes.get("alpha", 0.01))
    return reader.graph.leaky_relu(reader.data(node), slope, node.where)


def _prelu(reader: Reader, node: Node) -> Value:
    x = reader.data(node)
    slope = reader.for_one(node, reader.constant(node, 1), len(x.shape))
    return reader.graph.leaky_relu(x, slope, node.where, "PReLU")


def _abs(reader: Reader, node: Node) -> Value:
    return reader.graph.absolute(reader.data(node), node.where)


def _clip(reader: Reader, node: Node) -> Value:
    bounds = [node.attributes.get("min"), node.attributes.get("max")]
    for k in (1, 2):
        if len(node.inputs) > k and node.inputs[k]:
            number = reader.constant(node, k)
            if number.size != 1:
                node.refuse(f"expected numbers as bounds, got shape {number.shape}")
            bounds[k - 1] = float(number.reshape(()))
    # Older exporters write the largest float32 for no bound.
    low, high = (None if b is None or abs(b) > 3e38 else b for b in bounds)
    return reader.graph.clip(reader.data(node), low, high, node.where)


def _hard_sigmoid(reader: Reader, node: Node) -> Value:
    slope, shift = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    x = reader.graph.scale(reader.data(node), slope, shift, node.where)
    return reader.graph.clip(x, 0.0, 1.0, node.where, "HardSigmoid")


def _extremum(reader: Reader, node: Node) -> Value:
    """Max and Min of values and constants."""
    graph = reader.graph
    values, constants = [], []
    for k, name in enumerate(node.inputs):
        if name in reader.values:
            values.append(reader.data(node, k))
        else:
            constants.append(reader.constant(node, k))
    largest = node.kind == "Max"
    x = (graph.maximum if largest else graph.minimum)(values, node.where)
    for constant in constants:
        bound = reader.for_one(node, constant, len(x.shape))
        low, high = (bound, None) if largest else (None, bound)
        x = graph.clip(x, low, high, node.where, node.kind)
    return x


# Operators at the end.


def _softmax(reader: Reader, node: Node) -> Value:
    x = reader.data(node)
    axis = node.attributes.get("axis", 1 if reader.opset < 13 else -1)
    [axis] = axes_of(node, [axis], len(x.shape))
    if x.shape[axis] != x.size:
        node.refuse(f"expected the axis of the classes, got axis {axis} of shape {x.shape}")
    return x


def _argmax(reader: Reader, node: Node) -> Value:
    if node.attributes.get("select_last_index", 0):
        node.refuse("expected the first of equal classes, got select_last_index = 1")
    x = reader.data(node)
    [axis] = axes_of(node, [node.attributes.get("axis", 0)], len(x.shape))
    if x.shape[axis] != x.size:
        node.refuse(f"expected the axis of the classes, got axis {axis} of shape {x.shape}")
    return x


def _sigmoid(reader: Reader, node: Node) -> Value:
    """The logits before it; of one output z, which is the log-odds of class 1, (0, z)."""
    x = reader.data(node)
    if x.size > 1:
        return x
    flat = reader.graph.reshape(x, (1, 1), node.where)
    return reader.graph.linear(
        flat, np.array([[0], [1]], np.float32), np.zeros(2, np.float32), node.where
    )


READERS: Mapping[str, Callable[[Any, Node], Value | list[Value]]] = {
    "Abs": _abs,
    "Add": _add,
    "ArgMax": _argmax,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Div": _div,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Max": _extremum,
    "Mean": _sum,
    "Min": _extremum,
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _prelu,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "Softmax": _softmax,
    "Sub": _sub,
    "Sum": _sum,
    "Where": _where,
    **SHAPE_READERS,
    **WINDOW_READERS,
}
"""The function for each operator."""
