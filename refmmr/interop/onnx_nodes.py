"""The nodes of an ONNX graph: the known operators, their numbers of inputs and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from refmmr.interop.onnx_tensors import quote, refuse

__all__ = ["CONSTANTS", "OPERATORS", "Node", "parse"]

REASONS = {
    "MaxPool": "a maximum of units is no ReLU of them: the regions have other hyperplanes",
    "GlobalMaxPool": "a maximum of units is no ReLU of them: the regions have other hyperplanes",
    "Max": "a maximum of units is no ReLU of them: the regions have other hyperplanes",
    "Transpose": "images have to be (n, channels, height, width) from the input on",
    "If": "it has graphs inside it",
    "Loop": "it has graphs inside it",
    "Scan": "it has graphs inside it",
}
"""Reasons for which some common operators are refused."""


class Node(NamedTuple):
    """A node of a known operator, with a valid number of inputs."""

    source: str
    where: str
    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]

    def refuse(self, message: str) -> NoReturn:
        """Raise an error about this node."""
        refuse(self.source, self.where, message)


class _Operator(NamedTuple):
    """Inputs and attributes of an operator."""

    inputs: tuple[int, int]  # smallest and largest number
    attributes: Mapping[str, str]  # name to type, a name of AttributeProto.AttributeType


OPERATORS = {
    "Add": _Operator((2, 2), {}),
    "BatchNormalization": _Operator(
        (5, 5), {"epsilon": "FLOAT", "momentum": "FLOAT", "training_mode": "INT", "spatial": "INT"}
    ),
    "Conv": _Operator(
        (2, 3),
        {
            "auto_pad": "STRING",
            "dilations": "INTS",
            "group": "INT",
            "kernel_shape": "INTS",
            "pads": "INTS",
            "strides": "INTS",
        },
    ),
    "Div": _Operator((2, 2), {}),
    "Dropout": _Operator((1, 3), {"ratio": "FLOAT", "seed": "INT"}),
    "Flatten": _Operator((1, 1), {"axis": "INT"}),
    "Gemm": _Operator(
        (2, 3), {"alpha": "FLOAT", "beta": "FLOAT", "transA": "INT", "transB": "INT"}
    ),
    "Identity": _Operator((1, 1), {}),
    "LogSoftmax": _Operator((1, 1), {"axis": "INT"}),
    "MatMul": _Operator((2, 2), {}),
    "Mul": _Operator((2, 2), {}),
    "Relu": _Operator((1, 1), {}),
    "Reshape": _Operator((2, 2), {"allowzero": "INT"}),
    "Softmax": _Operator((1, 1), {"axis": "INT"}),
    "Sub": _Operator((2, 2), {}),
}
"""Operators on values that depend on the input of the network."""

CONSTANTS = {
    "Cast": _Operator((1, 1), {"to": "INT"}),
    "Concat": _Operator((1, 2**31), {"axis": "INT"}),
    "Constant": _Operator(
        (0, 0),
        {
            "value": "TENSOR",
            "value_float": "FLOAT",
            "value_floats": "FLOATS",
            "value_int": "INT",
            "value_ints": "INTS",
        },
    ),
    "Gather": _Operator((2, 2), {"axis": "INT"}),
    "Identity": _Operator((1, 1), {}),
    "Shape": _Operator((1, 1), {"start": "INT", "end": "INT"}),
    "Unsqueeze": _Operator((1, 2), {"axes": "INTS"}),
}
"""Operators that give constants: weights, and the shapes for Reshape."""


def parse(i: int, proto: Any, source: str) -> Node:
    """A node with its attributes, if it is of a known kind."""
    kind = proto.op_type
    text = kind if kind.isidentifier() and len(kind) < 60 else quote(kind)
    where = f"{text} node {quote(proto.name) if proto.name else i}"
    if proto.domain not in ("", "ai.onnx"):
        refuse(
            source,
            where,
            f"expected an operator of ONNX itself, got one of {quote(proto.domain)}",
        )
    if kind not in OPERATORS and kind not in CONSTANTS:
        reason = REASONS.get(kind)
        known = ", ".join(OPERATORS)
        refuse(
            source,
            where,
            f"expected one of {known}, got {text}" + (f": {reason}" if reason else ""),
        )
    operator = OPERATORS[kind] if kind in OPERATORS else CONSTANTS[kind]
    attributes = _attributes(proto, operator, source, where)
    node = Node(source, where, kind, list(proto.input), list(proto.output), attributes)
    low, high = operator.inputs
    while len(node.inputs) > low and not node.inputs[-1]:
        node.inputs.pop()
    # Dropout may have training_mode without ratio.
    needed = node.inputs[:low] if kind == "Dropout" else node.inputs
    if not low <= len(node.inputs) <= high or "" in needed:
        node.refuse(f"expected {low} to {high} inputs, got {len(node.inputs)}")
    if not node.outputs or not node.outputs[0]:
        node.refuse("expected an output, got none")
    # The second one of Dropout is the mask, all ones here; the chain does not read it.
    if any(node.outputs[1:]) and kind != "Dropout":
        node.refuse(f"expected one output, got {len(node.outputs)} (as for training?)")
    return node


def _attributes(proto: Any, operator: _Operator, source: str, where: str) -> dict[str, Any]:
    """Attributes of a node by name, of the types they should have."""
    from onnx import AttributeProto

    given: dict[str, Any] = {}
    for attribute in proto.attribute:
        name, kind = attribute.name, operator.attributes.get(attribute.name)
        if kind is None or name in given or attribute.ref_attr_name:
            refuse(source, where, f"expected no attribute {quote(name)}, or none twice, got it")
        if attribute.type != AttributeProto.AttributeType.Value(kind):
            refuse(source, where, f"expected {quote(name)} of type {kind}, got another type")
        if kind == "INTS" or kind == "FLOATS":
            given[name] = list(attribute.ints if kind == "INTS" else attribute.floats)
        elif kind == "STRING":
            given[name] = attribute.s.decode("latin-1")
        else:
            given[name] = getattr(attribute, {"INT": "i", "FLOAT": "f", "TENSOR": "t"}[kind])
    return given
