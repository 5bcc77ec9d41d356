"""The operators of ONNX with windows, convolutions and pooling, as operations of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refmmr.interop.graph import MAX_UNITS
from refmmr.interop.onnx_nodes import Node
from refmmr.interop.onnx_tensors import quote
from refmmr.interop.pooling import Windows, average_pool, conv_transpose, max_pool, mean
from refmmr.interop.values import Value
from refmmr.reference.layers import same_padding

if TYPE_CHECKING:
    from refmmr.interop.onnx_reader import Reader

__all__ = ["WINDOW_READERS", "grouped", "spread"]

Pair = tuple[int, int]


class _Steps(NamedTuple):
    """The attributes that all operators with windows have."""

    stride: Pair
    dilation: Pair
    pads: tuple[Pair, Pair] | str  # "same" for TensorFlow's


def _steps(node: Node, image: Sequence[int], kernel: Sequence[int]) -> _Steps:
    given = node.attributes
    stride, dilation = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    if len(stride) != 2 or len(dilation) != 2 or min(*stride, *dilation) < 1:
        node.refuse(f"expected two strides and dilations from 1 on, got {stride} and {dilation}")
    if max(*stride, *dilation, *kernel) > MAX_UNITS:
        node.refuse(f"expected strides, dilations and windows up to {MAX_UNITS}, got larger ones")
    mode = given.get("auto_pad", "NOTSET")
    pads = given.get("pads", [0, 0, 0, 0])
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        node.refuse(f"expected auto_pad NOTSET, VALID, SAME_UPPER or SAME_LOWER, got {quote(mode)}")
    if len(pads) != 4 or min(pads) < 0 or max(pads) > MAX_UNITS:
        node.refuse(f"expected four pads of at least 0, at most {MAX_UNITS}, got {pads}")
    if mode != "NOTSET" and any(pads):
        node.refuse(f"expected no pads beside auto_pad {mode}, got {pads}")
    two = (stride[0], stride[1]), (dilation[0], dilation[1])
    if mode == "SAME_UPPER" and dilation == [1, 1] and node.kind == "Conv":
        return _Steps(*two, "same")
    if mode.startswith("SAME"):
        sides = [
            same_padding(size, (width - 1) * wide + 1, step)
            for size, width, wide, step in zip(image, kernel, dilation, stride, strict=True)
        ]
        low = [side if mode == "SAME_UPPER" else side[::-1] for side in sides]
        return _Steps(*two, ((low[0][0], low[0][1]), (low[1][0], low[1][1])))
    top, left, bottom, right = pads
    return _Steps(*two, ((top, bottom), (left, right)))


def _image(reader: Reader, node: Node) -> tuple[Value, tuple[int, ...]]:
    """The input of an operator on images, and its ``(channels, height, width)``."""
    x = reader.data(node)
    if len(x.shape) != 4 or x.shape[0] != 1:
        node.refuse(f"expected images (batch, channels, height, width), got shape {x.shape}")
    return x, x.shape[1:]


def _conv(reader: Reader, node: Node) -> Value:
    x, image = _image(reader, node)
    W = reader.constant(node, 1)
    if W.ndim != 4:
        node.refuse(f"expected filters with 4 axes, got shape {W.shape}")
    b = reader.constant(node, 2) if len(node.inputs) == 3 else np.zeros(len(W), W.dtype)
    kernel = list(W.shape[2:])
    if node.attributes.get("kernel_shape", kernel) != kernel:
        node.refuse(f"expected kernel_shape = {kernel}, got {node.attributes['kernel_shape']}")
    steps = _steps(node, image[1:], kernel)
    W = grouped(W, node.attributes.get("group", 1), image[0], node.refuse)
    W = spread(W, steps.dilation, node.refuse)
    return reader.graph.conv(x, W, b, node.where, steps.stride, steps.pads)


def grouped(W: np.ndarray, groups: int, channels: int, refuse: Callable[[str], Any]) -> np.ndarray:
    """Filters of groups of channels as filters of all of them, with zeros."""
    if groups == 1:
        return W
    if groups < 1 or len(W) % groups or W.shape[1] * groups != channels:
        refuse(f"expected groups that fit, got group = {groups} for filters {W.shape}")
    if W.size * groups > MAX_UNITS:
        refuse(f"expected filters of at most {MAX_UNITS} weights, got {W.size * groups}")
    whole = np.zeros((len(W), channels, *W.shape[2:]), W.dtype)
    outputs, inputs = len(W) // groups, W.shape[1]
    for k in range(groups):
        out, into = slice(k * outputs, (k + 1) * outputs), slice(k * inputs, (k + 1) * inputs)
        whole[out, into] = W[out]
    return whole


def spread(W: np.ndarray, dilation: Pair, refuse: Callable[[str], Any]) -> np.ndarray:
    """Filters with dilations as filters without, with zeros between."""
    if tuple(dilation) == (1, 1):
        return W
    sizes = [(n - 1) * d + 1 for n, d in zip(W.shape[2:], dilation, strict=True)]
    if math.prod(W.shape[:2]) * math.prod(sizes) > MAX_UNITS:
        refuse(f"expected filters of at most {MAX_UNITS} weights, with their zeros, got more")
    whole = np.zeros((*W.shape[:2], *sizes), W.dtype)
    whole[:, :, :: dilation[0], :: dilation[1]] = W
    return whole


def _conv_transpose(reader: Reader, node: Node) -> Value:
    x, image = _image(reader, node)
    given, W = node.attributes, reader.constant(node, 1)
    if W.ndim != 4 or len(W) != image[0]:
        node.refuse(f"expected filters of {image[0]} channels, got shape {W.shape}")
    if given.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in given:
        node.refuse("expected pads, got auto_pad or output_shape; instead: export with pads")
    groups = given.get("group", 1)
    if groups != 1:
        # Filters (n_in, n_out / groups): those of a convolution from the outputs to the inputs.
        W = grouped(W, groups, W.shape[1] * groups, node.refuse)
    steps = _steps(node, image[1:], W.shape[2:])
    W = spread(W, steps.dilation, node.refuse)
    b = reader.constant(node, 2) if len(node.inputs) == 3 else np.zeros(W.shape[1], W.dtype)
    assert not isinstance(steps.pads, str)
    more = given.get("output_padding", [0, 0])
    if b.shape != W.shape[1:2] or len(more) != 2:
        node.refuse(f"expected biases of shape {W.shape[1:2]}, got {b.shape}")
    down, across = (
        step * (size - 1) + extra + width - sum(pads)
        for step, size, extra, width, pads in zip(
            steps.stride, image[1:], more, W.shape[2:], steps.pads, strict=True
        )
    )
    return conv_transpose(
        reader.graph, x, W, b, node.where, steps.stride, steps.pads, (down, across)
    )


def _windows(node: Node, image: Sequence[int]) -> Windows:
    kernel = node.attributes.get("kernel_shape", [])
    if len(kernel) != 2 or min(kernel) < 1:
        node.refuse(f"expected a kernel_shape of two sizes from 1 on, got {kernel}")
    steps = _steps(node, image[1:], kernel)
    assert not isinstance(steps.pads, str)
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return Windows((kernel[0], kernel[1]), steps.stride, steps.pads, steps.dilation, ceil)


def _max_pool(reader: Reader, node: Node) -> Value:
    x, image = _image(reader, node)
    return max_pool(reader.graph, x, _windows(node, image), node.where)


def _average_pool(reader: Reader, node: Node) -> Value:
    x, image = _image(reader, node)
    windows = _windows(node, image)
    if windows.ceil:
        node.refuse("expected ceil_mode = 0, got 1, which runtimes compute in different ways")
    counted = bool(node.attributes.get("count_include_pad", 0))
    return average_pool(reader.graph, x, windows, node.where, counted)


def _global_max_pool(reader: Reader, node: Node) -> Value:
    x, image = _image(reader, node)
    return max_pool(reader.graph, x, Windows((image[1], image[2]), (1, 1)), node.where)


def _global_average_pool(reader: Reader, node: Node) -> Value:
    x, _ = _image(reader, node)
    return mean(reader.graph, x, (2, 3), True, node.where)


WINDOW_READERS: Mapping[str, Callable[[Any, Node], Value]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "MaxPool": _max_pool,
}
"""The function for each operator."""
