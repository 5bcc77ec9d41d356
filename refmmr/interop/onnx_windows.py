"""The operators of ONNX with windows, convolutions and pooling, as operations of a graph.

Sequences (batch, channels, length) are images of one row.
"""

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


def _on_sequences(read: Callable[[Reader, Node, Value], Value]) -> Callable[[Any, Node], Value]:
    """An operator on images, for sequences too."""

    def read_both(reader: Reader, node: Node) -> Value:
        x = reader.data(node)
        if len(x.shape) != 3:
            return read(reader, node, x)
        row = reader.graph.reshape(x, (*x.shape[:2], 1, x.shape[2]), node.where)
        y = read(reader, _with_two_axes(node), row)
        return reader.graph.reshape(y, (*y.shape[:2], y.shape[3]), node.where)

    return read_both


def _with_two_axes(node: Node) -> Node:
    """The node with windows of height 1."""
    given = dict(node.attributes)
    ones = {"dilations": 1, "kernel_shape": 1, "output_padding": 0, "output_shape": 1, "strides": 1}
    for name in ones.keys() & given.keys():
        given[name] = [ones[name], *given[name]]
    if len(given.get("pads", [])) == 2:
        given["pads"] = [0, given["pads"][0], 0, given["pads"][1]]
    return node._replace(attributes=given)


def _image(node: Node, x: Value) -> tuple[int, ...]:
    """The ``(channels, height, width)`` of the input of an operator on images."""
    if len(x.shape) != 4 or x.shape[0] != 1:
        node.refuse(
            "expected images (batch, channels, height, width) or sequences (batch, channels, "
            f"length), got shape {x.shape}; instead: reshape it to an image before"
        )
    return x.shape[1:]


def _filters(reader: Reader, node: Node) -> np.ndarray:
    """The filters of a convolution, with 4 axes."""
    W = reader.constant(node, 1)
    rank = len(reader.data(node).shape)
    if W.ndim != rank:
        node.refuse(f"expected filters with {rank} axes, got shape {W.shape}")
    return W if rank == 4 else W[:, :, None]


def _conv(reader: Reader, node: Node, x: Value) -> Value:
    image = _image(node, x)
    W = _filters(reader, node)
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


def _conv_transpose(reader: Reader, node: Node, x: Value) -> Value:
    image = _image(node, x)
    given, W = node.attributes, _filters(reader, node)
    if len(W) != image[0]:
        node.refuse(f"expected filters of {image[0]} channels, got shape {W.shape}")
    groups = given.get("group", 1)
    if groups != 1:
        # Filters (n_in, n_out / groups): those of a convolution from the outputs to the inputs.
        W = grouped(W, groups, W.shape[1] * groups, node.refuse)
    by_size = "output_shape" in given or given.get("auto_pad", "").startswith("SAME")
    plain = {name: part for name, part in given.items() if name not in ("auto_pad", "pads")}
    bare = node._replace(attributes=plain) if by_size else node
    steps = _steps(bare, image[1:], W.shape[2:])
    W = spread(W, steps.dilation, node.refuse)
    b = reader.constant(node, 2) if len(node.inputs) == 3 else np.zeros(W.shape[1], W.dtype)
    more = given.get("output_padding", [0, 0])
    if b.shape != W.shape[1:2] or len(more) != 2:
        node.refuse(f"expected biases of shape {W.shape[1:2]}, got {b.shape}")
    whole = [
        step * (size - 1) + extra + width
        for step, size, extra, width in zip(steps.stride, image[1:], more, W.shape[2:], strict=True)
    ]
    pads = _cut(node, image, steps.stride, whole) if by_size else steps.pads
    assert not isinstance(pads, str)
    down, across = (size - sum(cut) for size, cut in zip(whole, pads, strict=True))
    return conv_transpose(reader.graph, x, W, b, node.where, steps.stride, pads, (down, across))


def _cut(node: Node, image: Sequence[int], stride: Pair, whole: Sequence[int]) -> tuple[Pair, Pair]:
    """What is cut off the whole output of a transposed convolution to give it a size.

    An odd number is cut more at the end for SAME_UPPER, otherwise at the beginning.
    """
    mode = node.attributes.get("auto_pad", "NOTSET")
    same = [step * size for step, size in zip(stride, image[1:], strict=True)]
    sizes = node.attributes.get("output_shape", same)
    cuts = [have - size for have, size in zip(whole, sizes, strict=False)]
    if len(sizes) != 2 or min(cuts) < 0 or mode == "VALID":
        node.refuse(
            f"expected the size {whole} or a smaller one, got {sizes} with auto_pad {quote(mode)}; "
            "instead: export with pads and output_padding"
        )
    first = [cut // 2 if mode == "SAME_UPPER" else cut - cut // 2 for cut in cuts]
    return (first[0], cuts[0] - first[0]), (first[1], cuts[1] - first[1])


def _windows(node: Node, image: Sequence[int]) -> Windows:
    kernel = node.attributes.get("kernel_shape", [])
    if len(kernel) != 2 or min(kernel) < 1:
        node.refuse(f"expected a kernel_shape of two sizes from 1 on, got {kernel}")
    steps = _steps(node, image[1:], kernel)
    assert not isinstance(steps.pads, str)
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return Windows((kernel[0], kernel[1]), steps.stride, steps.pads, steps.dilation, ceil)


def _max_pool(reader: Reader, node: Node, x: Value) -> Value:
    return max_pool(reader.graph, x, _windows(node, _image(node, x)), node.where)


def _average_pool(reader: Reader, node: Node, x: Value) -> Value:
    windows = _windows(node, _image(node, x))
    if windows.ceil:
        node.refuse("expected ceil_mode = 0, got 1, which runtimes compute in different ways")
    counted = bool(node.attributes.get("count_include_pad", 0))
    return average_pool(reader.graph, x, windows, node.where, counted)


def _global_max_pool(reader: Reader, node: Node, x: Value) -> Value:
    _, height, width = _image(node, x)
    return max_pool(reader.graph, x, Windows((height, width), (1, 1)), node.where)


def _global_average_pool(reader: Reader, node: Node, x: Value) -> Value:
    _image(node, x)
    return mean(reader.graph, x, (2, 3), True, node.where)


WINDOW_READERS: Mapping[str, Callable[[Any, Node], Value]] = {
    "AveragePool": _on_sequences(_average_pool),
    "Conv": _on_sequences(_conv),
    "ConvTranspose": _on_sequences(_conv_transpose),
    "GlobalAveragePool": _on_sequences(_global_average_pool),
    "GlobalMaxPool": _on_sequences(_global_max_pool),
    "MaxPool": _on_sequences(_max_pool),
}
"""The function for each operator."""
