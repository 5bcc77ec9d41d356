"""The nodes of an ONNX graph: the known operators, their numbers of inputs and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from refmmr.interop.onnx_tensors import quote, refuse

__all__ = ["OPERATORS", "Node", "parse"]

INSTEAD = "Gemm, MatMul, Conv, pooling, ReLU, LeakyRelu, Clip, Max and reshapes alone"
NOT_LINEAR = (
    "it is not piecewise linear; instead: train with ReLU, LeakyReLU, HardTanh or another "
    "piecewise linear activation in its place"
)
SUBGRAPH = (
    "it has graphs inside it; instead: export the model without branches and loops, such as with "
    "torch.onnx.export on an example input"
)
QUANTISED = "its numbers are rounded; instead: export the model before it is quantised"
REASONS = {
    **dict.fromkeys(
        ("Tanh", "Elu", "Celu", "Selu", "Gelu", "Softplus", "Softsign", "Mish", "Swish", "Erf",
         "Reciprocal", "ReduceProd", "Exp", "Log", "Pow", "Sqrt", "HardSwish", "Sin", "Cos", "Atan",
         "LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpPool", "LRN"),
        NOT_LINEAR,
    ),
    **dict.fromkeys(
        ("LSTM", "GRU", "RNN"),
        "it multiplies values that depend on the input; instead: a network of layers",
    ),
    "ConstantOfShape": (
        "its shape depends on the numbers of the input; instead: export the model with fixed shapes"
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), SUBGRAPH),
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
         "MatMulInteger", "DynamicQuantizeLinear"),
        QUANTISED,
    ),
    **dict.fromkeys(
        ("Floor", "Ceil", "Round", "Sign", "Where", "Equal", "Less", "Greater", "ThresholdedRelu"),
        "it is not continuous; instead: export the model without it, or with Max, Min or Clip",
    ),
}  # fmt: skip
"""Reasons for which some common operators are refused, and what to export in their place."""


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


_POOL = "auto_pad:STRING ceil_mode:INT dilations:INTS kernel_shape:INTS pads:INTS strides:INTS"
_CONV = "auto_pad:STRING dilations:INTS group:INT kernel_shape:INTS pads:INTS strides:INTS"
_REDUCE = "axes:INTS keepdims:INT noop_with_empty_axes:INT"
_TABLE = {
    # Name: smallest and largest number of inputs, attributes.
    "Abs": (1, 1, ""),
    "Add": (2, 2, ""),
    "ArgMax": (1, 1, "axis:INT keepdims:INT select_last_index:INT"),
    "AveragePool": (1, 1, _POOL + " count_include_pad:INT"),
    "BatchNormalization": (5, 5, "epsilon:FLOAT momentum:FLOAT training_mode:INT spatial:INT"),
    "Cast": (1, 1, "to:INT saturate:INT"),
    "Clip": (1, 3, "min:FLOAT max:FLOAT"),
    "Concat": (1, 1000, "axis:INT"),
    "Constant": (
        0, 0,
        "value:TENSOR value_float:FLOAT value_floats:FLOATS value_int:INT value_ints:INTS",
    ),
    "ConstantOfShape": (1, 1, "value:TENSOR"),
    "Conv": (2, 3, _CONV),
    "ConvTranspose": (2, 3, _CONV + " output_padding:INTS output_shape:INTS"),
    "Div": (2, 2, ""),
    "Dropout": (1, 3, "ratio:FLOAT seed:INT"),
    "Equal": (2, 2, ""),
    "Expand": (2, 2, ""),
    "Flatten": (1, 1, "axis:INT"),
    "Gather": (2, 2, "axis:INT"),
    "Gemm": (2, 3, "alpha:FLOAT beta:FLOAT transA:INT transB:INT"),
    "GlobalAveragePool": (1, 1, ""),
    "GlobalMaxPool": (1, 1, ""),
    "HardSigmoid": (1, 1, "alpha:FLOAT beta:FLOAT"),
    "Identity": (1, 1, ""),
    "LeakyRelu": (1, 1, "alpha:FLOAT"),
    "LogSoftmax": (1, 1, "axis:INT"),
    "MatMul": (2, 2, ""),
    "Max": (1, 1000, ""),
    "MaxPool": (1, 1, _POOL + " storage_order:INT"),
    "Mean": (1, 1000, ""),
    "Min": (1, 1000, ""),
    "Mul": (2, 2, ""),
    "Neg": (1, 1, ""),
    "PRelu": (2, 2, ""),
    "Pad": (1, 4, "mode:STRING pads:INTS value:FLOAT"),
    "Reciprocal": (1, 1, ""),
    "ReduceMax": (1, 2, _REDUCE),
    "ReduceMean": (1, 2, _REDUCE),
    "ReduceMin": (1, 2, _REDUCE),
    "ReduceProd": (1, 2, _REDUCE),
    "ReduceSum": (1, 2, _REDUCE),
    "Relu": (1, 1, ""),
    "Reshape": (2, 2, "allowzero:INT"),
    "Resize": (
        1, 4,
        "antialias:INT axes:INTS coordinate_transformation_mode:STRING cubic_coeff_a:FLOAT "
        "exclude_outside:INT extrapolation_value:FLOAT keep_aspect_ratio_policy:STRING "
        "mode:STRING nearest_mode:STRING",
    ),
    "Shape": (1, 1, "start:INT end:INT"),
    "Sigmoid": (1, 1, ""),
    "Slice": (1, 5, "axes:INTS ends:INTS starts:INTS"),
    "Softmax": (1, 1, "axis:INT"),
    "Split": (1, 2, "axis:INT num_outputs:INT split:INTS"),
    "Sqrt": (1, 1, ""),
    "Squeeze": (1, 2, "axes:INTS"),
    "Sub": (2, 2, ""),
    "Sum": (1, 1000, ""),
    "Transpose": (1, 1, "perm:INTS"),
    "Unsqueeze": (1, 2, "axes:INTS"),
    "Upsample": (1, 2, "mode:STRING scales:FLOATS"),
    "Where": (3, 3, ""),
}  # fmt: skip

OPERATORS = {
    name: _Operator((low, high), dict(part.split(":") for part in attributes.split()))
    for name, (low, high, attributes) in _TABLE.items()
}
"""Operators that are read, on values that depend on the input of the network or on constants; some
on constants alone."""

MANY_OUTPUTS = ("Dropout", "Split")
"""Operators whose further outputs may be named; nothing may read the mask of Dropout."""

OPTIONAL_INPUTS = {
    "Clip": 1, "Dropout": 1, "Pad": 2, "ReduceMean": 1, "ReduceSum": 1, "Resize": 1, "Slice": 1,
}  # fmt: skip
"""Operators that may leave inputs empty before others that they have, and how many they need."""


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
    if kind not in OPERATORS:
        refuse(source, where, reason(kind, text))
    operator = OPERATORS[kind]
    attributes = _attributes(proto, operator, source, where)
    node = Node(source, where, kind, list(proto.input), list(proto.output), attributes)
    low, high = operator.inputs
    while len(node.inputs) > low and not node.inputs[-1]:
        node.inputs.pop()
    needed = node.inputs[: OPTIONAL_INPUTS.get(kind, len(node.inputs))]
    if not low <= len(node.inputs) <= high or "" in needed:
        node.refuse(f"expected {low} to {high} inputs, got {len(node.inputs)}")
    if not node.outputs or not node.outputs[0]:
        node.refuse("expected an output, got none")
    if any(node.outputs[1:]) and kind not in MANY_OUTPUTS:
        node.refuse(f"expected one output, got {len(node.outputs)} (as for training?)")
    return node


def reason(kind: str, text: str) -> str:
    """Why an operator cannot be read, and what to export in its place."""
    why = REASONS.get(kind, "it is not known; instead: export the model with " + INSTEAD)
    return f"expected an operator that is affine or piecewise linear, got {text}: {why}"


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
