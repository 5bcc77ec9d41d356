"""The modules of PyTorch as operations of a graph, each by the function for its class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from refmmr.interop.graph import Graph
from refmmr.interop.onnx_windows import grouped, spread
from refmmr.interop.pooling import Windows, average_pool, conv_transpose, max_pool
from refmmr.interop.torch_tracing import kind_of, place_of
from refmmr.interop.values import Value

__all__ = ["ENDS", "Step", "array_of", "check_kinds", "needed_input_shape", "read_module"]

LEFT_OUT = (
    "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout",
    "FeatureAlphaDropout",
)  # fmt: skip
"""Modules that are the identity in evaluation."""

ENDS = ("Softmax", "LogSoftmax", "Sigmoid")
"""Modules that are left out at the very end."""

INSTEAD = (
    "; instead: train with a piecewise linear one in its place, such as ReLU, LeakyReLU or Hardtanh"
)

EXPORTED = (
    "Conv1d", "ConvTranspose1d", "MaxPool1d", "AvgPool1d", "Upsample", "UpsamplingNearest2d",
)  # fmt: skip
"""Modules that are read from ONNX files alone."""

EXPORT = "; instead: export the module with torch.onnx.export, and read the file with refmmr.load"


class Step(NamedTuple):
    """Where an operation stands, and the graph that it becomes part of."""

    graph: Graph
    where: str
    dtype: np.dtype  # of the module: PyTorch rounds Python's numbers to it

    def numbers(self, x: Any) -> np.ndarray:
        """Numbers that PyTorch computes with: an array as it is, Python's numbers rounded."""
        return x if isinstance(x, np.ndarray) else np.asarray(x, self.dtype)

    def bound(self, x: Any) -> np.ndarray | None:
        """The same for a bound that may be missing."""
        return None if x is None else self.numbers(x)

    def refuse(self, expected: str, got: str) -> NoReturn:
        """Raise an error about the operation."""
        self.graph.refuse(self.where, f"expected {expected}, got {got}")


def check_kinds(nodes: Sequence[Any], modules: Mapping[str, Any]) -> None:
    """Refuse modules of classes that cannot be read."""
    for node in nodes:
        if node.op == "call_module":
            kind = kind_of(modules[node.target])
            if kind not in READ and kind not in LEFT_OUT and kind not in ENDS:
                known = ", ".join((*READ, *LEFT_OUT))
                where = place_of(node.target)
                more = "" if "." in kind else EXPORT if kind in EXPORTED else INSTEAD
                raise ValueError(f"module: {where}: expected {known}, got {kind}{more}")


def needed_input_shape(nodes: Sequence[Any], modules: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of an input, if the first layer with weights is a Linear; else a ValueError."""
    check_kinds(nodes, modules)
    for node in nodes:
        if node.op == "placeholder":
            continue
        kind = kind_of(modules[node.target]) if node.op == "call_module" else ""
        if kind == "Linear":
            return (modules[node.target].in_features,)
        if kind not in (*LEFT_OUT, "BatchNorm1d", "Flatten"):
            break
    raise ValueError(
        "input_shape: expected the shape of one input, such as (d,) or (channels, height, width), "
        "because the first layer with weights is no Linear; got none"
    )


def read_module(step: Step, module: Any, x: Value) -> Value:
    """The output of a module on a value."""
    kind = kind_of(module)
    return x if kind in LEFT_OUT else READ[kind](step, module, x)


def array_of(step: Step, tensor: Any) -> np.ndarray:
    """A copy in NumPy; floats narrower than float32 are widened, which changes no value."""
    if tensor.is_meta:
        step.refuse("weights", "none on the device meta")
    tensor = tensor.detach().cpu()
    if tensor.dtype.itemsize < 4 and tensor.is_floating_point():
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy().copy()
    return array


def _wide(step: Step, tensor: Any) -> np.ndarray:
    return array_of(step, tensor).astype(np.float64)


def _bias(step: Step, module: Any, n: int, W: np.ndarray) -> np.ndarray:
    return np.zeros(n, W.dtype) if module.bias is None else array_of(step, module.bias)


def pair(value: Any) -> tuple[int, int]:
    """A size for both axes, or one for each."""
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def _linear(step: Step, module: Any, x: Value) -> Value:
    W = array_of(step, module.weight)
    b = _bias(step, module, len(W), W)
    if x.shape[-1] == x.size:
        return step.graph.linear(x, W, b, step.where)
    return step.graph.scale(step.graph.matmul(x, W.T, step.where), np.float32(1), b, step.where)


def _refuse_text(step: Step) -> Callable[[str], NoReturn]:
    def refuse(message: str) -> NoReturn:
        step.graph.refuse(step.where, message)

    return refuse


def _conv2d(step: Step, module: Any, x: Value) -> Value:
    if module.padding_mode != "zeros":
        step.refuse("padding_mode='zeros'", f"padding_mode={module.padding_mode!r}")
    W = array_of(step, module.weight)
    refuse = _refuse_text(step)
    pads = _pads(module)
    W = grouped(W, module.groups, module.in_channels, refuse)
    W = spread(W, pair(module.dilation), refuse)
    b = _bias(step, module, len(W), W)
    return step.graph.conv(x, W, b, step.where, pair(module.stride), pads)


def _pads(module: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros around the image, ((top, bottom), (left, right)), of a convolution."""
    if module.padding == "valid":
        return (0, 0), (0, 0)
    if module.padding == "same":  # of stride 1: the output is as large as the image
        down, across = (
            (size - 1) * wide
            for size, wide in zip(pair(module.kernel_size), pair(module.dilation), strict=True)
        )
        return (down // 2, down - down // 2), (across // 2, across - across // 2)
    down, across = pair(module.padding)
    return (down, down), (across, across)


def _conv_transpose2d(step: Step, module: Any, x: Value) -> Value:
    W = array_of(step, module.weight)
    refuse = _refuse_text(step)
    image = step.graph.image(x, step.where, module.in_channels)
    W = grouped(W, module.groups, module.out_channels, refuse)
    W = spread(W, pair(module.dilation), refuse)
    b = _bias(step, module, module.out_channels, W)
    stride, pads, more = pair(module.stride), pair(module.padding), pair(module.output_padding)
    down, across = (
        stride[k] * (image[k + 1] - 1) + more[k] + W.shape[k + 2] - 2 * pads[k] for k in range(2)
    )
    sides = (pads[0], pads[0]), (pads[1], pads[1])
    return conv_transpose(step.graph, x, W, b, step.where, stride, sides, (down, across))


def _zero_pad2d(step: Step, module: Any, x: Value) -> Value:
    left, right, top, bottom = module.padding
    if min(module.padding) < 0:
        step.refuse("padding of at least 0", f"padding={module.padding}")
    return step.graph.pad(x, ((top, bottom), (left, right)), step.where)


def _relu(step: Step, module: Any, x: Value) -> Value:
    return step.graph.relu(x, step.where)


def _leaky_relu(step: Step, module: Any, x: Value) -> Value:
    return step.graph.leaky_relu(x, step.numbers(module.negative_slope), step.where)


def _prelu(step: Step, module: Any, x: Value) -> Value:
    slope = array_of(step, module.weight)
    if slope.size > 1:
        slope = slope.reshape(-1, *(1 for _ in x.shape[2:]))
    return step.graph.leaky_relu(x, slope, step.where, "PReLU")


def _relu6(step: Step, module: Any, x: Value) -> Value:
    return step.graph.clip(x, 0.0, 6.0, step.where, "ReLU6")


def _hardtanh(step: Step, module: Any, x: Value) -> Value:
    low, high = step.numbers(module.min_val), step.numbers(module.max_val)
    return step.graph.clip(x, low, high, step.where, "Hardtanh")


def _flatten(step: Step, module: Any, x: Value) -> Value:
    return flattened(step, x, module.start_dim, module.end_dim)


def flattened(step: Step, x: Value, start: int, end: int) -> Value:
    """The axes from one to another as one axis."""
    rank = len(x.shape)
    first, last = start % rank, end % rank
    if first < 1 or last < first:
        step.refuse("axes after that of the batch", f"start_dim={start}, end_dim={end}")
    middle = math.prod(x.shape[first : last + 1])
    return step.graph.reshape(x, (*x.shape[:first], middle, *x.shape[last + 1 :]), step.where)


def _unflatten(step: Step, module: Any, x: Value) -> Value:
    rank = len(x.shape)
    if not isinstance(module.dim, int) or module.dim % rank == 0:
        step.refuse("an axis after that of the batch", f"dim={module.dim!r}")
    axis = module.dim % rank
    sizes = [int(size) for size in module.unflattened_size]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = x.shape[axis] // -math.prod(sizes)
    return step.graph.reshape(x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]), step.where)


def _batch_norm1d(step: Step, module: Any, x: Value) -> Value:
    if len(x.shape) != 2:
        step.refuse("inputs of shape (features,)", str(x.shape[1:]))
    return _normalisation(step, module, x)


def _batch_norm2d(step: Step, module: Any, x: Value) -> Value:
    if len(x.shape) != 4:
        step.refuse("inputs of shape (channels, height, width)", str(x.shape[1:]))
    return _normalisation(step, module, x)


def _normalisation(step: Step, module: Any, x: Value) -> Value:
    if module.running_mean is None or module.running_var is None:
        step.refuse("running statistics", "track_running_stats=False")
    mean, variance = _wide(step, module.running_mean), _wide(step, module.running_var)
    if mean.shape != x.shape[1:2]:
        step.refuse(f"{x.shape[1]} features", str(len(mean)))
    if not (variance + module.eps > 0).all():
        step.refuse("variances above 0", f"{(variance + module.eps).min()}")
    factor = 1 / np.sqrt(variance + module.eps)
    if module.weight is not None:
        factor = _wide(step, module.weight) * factor
    shift = -mean * factor
    if module.bias is not None:
        shift = shift + _wide(step, module.bias)
    shape = (-1, *(1 for _ in x.shape[2:]))
    return step.graph.scale(x, factor.reshape(shape), shift.reshape(shape), step.where)


def windows(size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Windows:
    """The windows of a pooling, from PyTorch's arguments."""
    down, across = pair(padding)
    step = pair(size if stride is None or stride == [] else stride)
    return Windows(pair(size), step, ((down, down), (across, across)), pair(dilation), ceil)


def _max_pool2d(step: Step, module: Any, x: Value) -> Value:
    if module.return_indices:
        step.refuse("return_indices=False", "True")
    own = windows(
        module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
    )
    return max_pool(step.graph, x, own, step.where)


def _avg_pool2d(step: Step, module: Any, x: Value) -> Value:
    own = windows(module.kernel_size, module.stride, module.padding, 1, module.ceil_mode)
    return average_pool(
        step.graph, x, own, step.where, module.count_include_pad, module.divisor_override
    )


def adaptive(step: Step, x: Value, size: Any) -> Windows:
    """The windows of an adaptive pooling, if they are all of one size."""
    _, height, width = step.graph.image(x, step.where)
    wanted = size if isinstance(size, (tuple, list)) else (size, size)
    down, across = (n if out is None else int(out) for out, n in zip(wanted, (height, width),
                    strict=True))  # fmt: skip
    if height % down or width % across:
        step.refuse(f"an output size that divides {height} x {width}", f"{down} x {across}")
    own = height // down, width // across
    return Windows(own, own)


def _adaptive_avg_pool2d(step: Step, module: Any, x: Value) -> Value:
    return average_pool(step.graph, x, adaptive(step, x, module.output_size), step.where)


def _adaptive_max_pool2d(step: Step, module: Any, x: Value) -> Value:
    return max_pool(step.graph, x, adaptive(step, x, module.output_size), step.where)


READ: Mapping[str, Callable[[Step, Any, Value], Value]] = {
    "Linear": _linear,
    "Conv2d": _conv2d,
    "ConvTranspose2d": _conv_transpose2d,
    "ZeroPad2d": _zero_pad2d,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "PReLU": _prelu,
    "ReLU6": _relu6,
    "Hardtanh": _hardtanh,
    "Flatten": _flatten,
    "Unflatten": _unflatten,
    "BatchNorm1d": _batch_norm1d,
    "BatchNorm2d": _batch_norm2d,
    "MaxPool2d": _max_pool2d,
    "AvgPool2d": _avg_pool2d,
    "AdaptiveAvgPool2d": _adaptive_avg_pool2d,
    "AdaptiveMaxPool2d": _adaptive_max_pool2d,
}
"""Modules that are read, and how."""
