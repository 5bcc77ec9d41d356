"""The functions and methods of PyTorch in a traced forward, as operations of a graph."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from refmmr.interop.graph import Graph
from refmmr.interop.onnx_windows import grouped, spread
from refmmr.interop.pooling import average_pool, max_pool, mean
from refmmr.interop.torch_modules import (
    ENDS,
    LEFT_OUT,
    Step,
    adaptive,
    array_of,
    check_kinds,
    flattened,
    pair,
    read_module,
    windows,
)
from refmmr.interop.torch_tracing import kind_of, place_of
from refmmr.interop.values import Value

__all__ = ["read_graph"]

AT_END = ("softmax", "log_softmax", "sigmoid")


def read_graph(
    torch: Any, nodes: Sequence[Any], modules: Mapping[str, Any], graph: Graph, start: Value
) -> tuple[Value, str | None]:
    """The output of a traced module, and the operation at its end that is left out.

    Parameters
    ----------
    torch : module
    nodes : sequence of torch.fx.Node
    modules : mapping of str to torch.nn.Module
    graph : Graph
    start : Value
        What the module is called with, with a batch of 1.
    """
    check_kinds(nodes, modules)
    wide = any(part.dtype == torch.float64 for part in modules[""].parameters())
    dtype = np.dtype(np.float64 if wide else np.float32)
    made: dict[Any, Any] = {}
    ended: dict[Any, str] = {}
    for node in nodes:
        step = Step(graph, _place(node), dtype)
        arguments, named = _resolved(torch, node.args, made), _resolved(torch, node.kwargs, made)
        before = next((ended[own] for own in node.all_input_nodes if own in ended), None)
        if node.op == "placeholder":
            if made:
                step.refuse("a forward with one argument", "another one, " + node.name)
            made[node] = start
        elif node.op == "output":
            value = arguments[0]
            if not isinstance(value, Value):
                step.refuse("one output that depends on the input", type(value).__name__)
            return value, before
        elif node.op == "get_attr":
            made[node] = array_of(step, _attribute(modules[""], node.target))
        else:
            if before is not None:
                step.refuse("nothing behind " + before, "an operation")
            made[node], name = _applied(torch, node, modules, step, arguments, named)
            if name in ENDS or name in AT_END:
                ended[node] = f"{name} at {step.where}"
    raise ValueError("module: expected an output, got none")


def _applied(
    torch: Any, node: Any, modules: Mapping[str, Any], step: Step, arguments: Any, named: Any
) -> tuple[Any, str]:
    """The result of a module, function or method, and its name."""
    if node.op == "call_module":
        module = modules[node.target]
        kind = kind_of(module)
        if getattr(module, "inplace", False) and not kind.endswith("Dropout"):
            _check_in_place(torch, node, modules, step)
        x = arguments[0] if arguments else None
        if not isinstance(x, Value) or len(arguments) > 1 or named:
            step.refuse("one argument that depends on the input", "others")
        return (_end(step, x) if kind in ENDS else read_module(step, module, x)), kind
    name = node.target if node.op == "call_method" else _function_name(torch, node.target)
    plain = name.removesuffix("_")
    if (name.endswith("_") and not name.startswith("_")) or named.get("inplace") or (
        name in ("iadd", "isub", "imul", "itruediv")
    ):  # fmt: skip
        _check_in_place(torch, node, modules, step)
    if plain in AT_END:
        return _end(step, arguments[0]), plain
    if plain not in FUNCTIONS:
        step.refuse(
            "an operation that is affine or piecewise linear", f"{name}; instead: export the "
            "module with torch.onnx.export, and read the file with refmmr.load"
        )  # fmt: skip
    try:
        return FUNCTIONS[plain](step, *arguments, **named), plain
    except TypeError as error:
        step.refuse(f"arguments of {name} that are known", str(error).splitlines()[0])


def _end(step: Step, x: Any) -> Value:
    if not isinstance(x, Value) or max(x.shape) != x.size or x.size < 2:
        step.refuse("the logits of several classes before it", "others")
    return x


def _place(node: Any) -> str:
    return place_of(node.target) if node.op == "call_module" else str(node.name)


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _resolved(torch: Any, argument: Any, made: Mapping[Any, Any]) -> Any:
    """Arguments with values in place of nodes, and arrays in place of tensors."""
    if isinstance(argument, torch.fx.Node):
        return made[argument]
    if isinstance(argument, (tuple, list)):
        return type(argument)(_resolved(torch, part, made) for part in argument)
    if isinstance(argument, slice):
        ends = (argument.start, argument.stop, argument.step)
        return slice(*(_resolved(torch, end, made) for end in ends))
    if isinstance(argument, dict):
        return {name: _resolved(torch, part, made) for name, part in argument.items()}
    if isinstance(argument, torch.Tensor):
        return argument.detach().cpu().numpy().copy()
    return argument


def _function_name(torch: Any, function: Any) -> str:
    """Name of a function of PyTorch or Python; of another one, what it is."""
    name = getattr(function, "__name__", "")
    for room in (torch, torch.nn.functional, operator, builtins):
        if getattr(room, name, None) is function:
            return "getattribute" if room is builtins else str(name)
    return f"{getattr(function, '__module__', '')}.{name}"


ALIASES = (
    "chunk", "contiguous", "detach", "dropout", "dropout2d", "flatten", "getitem", "permute",
    "reshape", "squeeze", "transpose", "unsqueeze", "view", "Flatten", "Unflatten", *LEFT_OUT,
)  # fmt: skip
"""Operations whose result can be the memory of their argument."""


def _check_in_place(torch: Any, node: Any, modules: Mapping[str, Any], step: Step) -> None:
    """Refuse an operation in place on memory that something else reads."""
    own = node.args[0] if node.args else None
    while isinstance(own, torch.fx.Node):
        if len(own.users) > 1:
            step.refuse(
                "an operation in place on a value that nothing else reads",
                f"one that changes {own.name} for all its readers; instead: inplace=False",
            )
        if own.op == "call_module":
            name = kind_of(modules[own.target])
        else:
            name = _function_name(torch, own.target) if own.op == "call_function" else own.target
        if own.op not in ("call_module", "call_function", "call_method") or (
            name not in ALIASES and not str(name).endswith("_")
        ):
            return
        own = own.args[0] if own.args else None


# Elementwise operations.


def _add(step: Step, a: Any, b: Any, *, alpha: float = 1, sign: float = 1) -> Any:
    factor = alpha * sign
    if isinstance(a, Value) and isinstance(b, Value):
        return step.graph.add(a, b, step.where, factor)
    if isinstance(a, Value):
        return step.graph.scale(a, 1.0, factor * step.numbers(b), step.where)
    if isinstance(b, Value):
        return step.graph.scale(b, factor, step.numbers(a), step.where)
    return a + factor * b


def _sub(step: Step, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _add(step, a, b, alpha=alpha, sign=-1)


def _mul(step: Step, a: Any, b: Any) -> Any:
    if isinstance(a, Value) and isinstance(b, Value):
        step.refuse("a constant factor", "the product of two values, not piecewise linear")
    if not isinstance(a, Value) and not isinstance(b, Value):
        return a * b
    x, factor = (a, b) if isinstance(a, Value) else (b, a)
    return step.graph.scale(x, step.numbers(factor), 0.0, step.where)


def _div(step: Step, a: Any, b: Any) -> Any:
    if isinstance(b, Value):
        step.refuse("a division by a constant", "one by what depends on the input")
    if not np.all(b):
        step.refuse("a division by numbers other than 0", "0")
    if not isinstance(a, Value):
        return a / b
    return step.graph.scale(a, 1 / step.numbers(b).astype(np.float64), 0.0, step.where)


def _clamp(step: Step, x: Value, min: Any = None, max: Any = None) -> Value:
    return step.graph.clip(x, step.bound(min), step.bound(max), step.where, "clamp")


def _extremum(step: Step, a: Any, b: Any, largest: bool) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        both = step.graph.maximum if largest else step.graph.minimum
        return both([a, b], step.where)
    x, bound = (a, b) if isinstance(a, Value) else (b, a)
    low, high = (step.bound(bound), None) if largest else (None, step.bound(bound))
    return step.graph.clip(x, low, high, step.where, "maximum" if largest else "minimum")


# Shapes.


def _reshape(step: Step, x: Value, *shape: Any) -> Value:
    sizes = list(shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)
    known = math.prod(int(size) for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and x.size % known == 0:
        sizes[sizes.index(-1)] = x.size // known
    if -1 in sizes:
        step.refuse(f"a shape of {x.size} entries", str(tuple(shape)))
    return step.graph.reshape(x, tuple(int(size) for size in sizes), step.where)


def _permute(step: Step, x: Value, *axes: Any) -> Value:
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    return step.graph.pick(x, step.graph.indices(x).transpose(order), step.where)


def _transpose(step: Step, x: Value, dim0: int, dim1: int) -> Value:
    return step.graph.pick(x, step.graph.indices(x).swapaxes(dim0, dim1), step.where)


def _unsqueeze(step: Step, x: Value, dim: int) -> Value:
    return step.graph.reshape(x, np.expand_dims(step.graph.indices(x), dim).shape, step.where)


def _squeeze(step: Step, x: Value, dim: Any = None) -> Value:
    if dim is None:
        step.refuse("a squeeze of named axes, as the batch has size 1 here", "one of all")
    axes = [axis for axis in (dim if isinstance(dim, (tuple, list)) else (dim,))
            if x.shape[axis] == 1]  # fmt: skip
    shape = step.graph.indices(x).squeeze(tuple(axes)).shape
    return step.graph.reshape(x, shape, step.where)


def _getitem(step: Step, x: Any, index: Any) -> Any:
    if not isinstance(x, Value):
        return x[index]
    found = step.graph.indices(x)[index]
    if not isinstance(found, np.ndarray):
        step.refuse("an index that keeps the axis of the batch", repr(index))
    return step.graph.pick(x, found, step.where)


def _size(step: Step, x: Value, dim: int | None = None) -> Any:
    return x.shape if dim is None else x.shape[dim]


def _getattribute(step: Step, x: Any, name: str) -> Any:
    if name != "shape" or not isinstance(x, Value):
        step.refuse("shape", name)
    return x.shape


def _cat(step: Step, tensors: Any, dim: int = 0) -> Value:
    return step.graph.concat(list(tensors), dim, step.where)


def _chunk(step: Step, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    size = -(-x.shape[dim] // chunks)
    starts = list(range(size, x.shape[dim], size))
    parts = np.split(step.graph.indices(x), starts, dim)
    return [step.graph.pick(x, part, step.where) for part in parts]


def _mean(step: Step, x: Value, dim: Any = None, keepdim: bool = False, total: bool = False) -> Any:
    if dim is None:
        step.refuse("a mean over named axes, as the batch has size 1 here", "one over all")
    axes = tuple(
        axis % len(x.shape) for axis in (dim if isinstance(dim, (tuple, list)) else (dim,))
    )
    return mean(step.graph, x, axes, keepdim, step.where, total)


# Layers as functions.


def _linear(step: Step, x: Value, weight: Any, bias: Any = None) -> Value:
    b = np.zeros(len(weight), weight.dtype) if bias is None else bias
    if x.shape[-1] == x.size:
        return step.graph.linear(x, weight, b, step.where)
    product = step.graph.matmul(x, weight.T, step.where)
    return step.graph.scale(product, np.float32(1), b, step.where)


def _conv2d(
    step: Step, x: Value, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    if isinstance(padding, str):
        step.refuse("padding in numbers", repr(padding))

    def refuse(message: str) -> None:
        step.graph.refuse(step.where, message)

    W = spread(grouped(weight, groups, x.shape[1], refuse), pair(dilation), refuse)
    b = np.zeros(len(W), W.dtype) if bias is None else bias
    return step.graph.conv(x, W, b, step.where, pair(stride), pair(padding))


def _max_pool2d(
    step: Step, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Value:  # fmt: skip
    if return_indices:
        step.refuse("return_indices=False", "True")
    own = windows(kernel_size, stride, padding, dilation, ceil_mode)
    return max_pool(step.graph, x, own, step.where)


def _avg_pool2d(
    step: Step, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
) -> Value:  # fmt: skip
    own = windows(kernel_size, stride, padding, 1, ceil_mode)
    return average_pool(step.graph, x, own, step.where, count_include_pad, divisor_override)


def _adaptive_avg_pool2d(step: Step, x: Value, output_size: Any) -> Value:
    return average_pool(step.graph, x, adaptive(step, x, output_size), step.where)


def _leaky_relu(step: Step, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return step.graph.leaky_relu(x, step.numbers(negative_slope), step.where)


def _hardtanh(
    step: Step, x: Value, min_val: float = -1, max_val: float = 1, inplace: bool = False
) -> Value:
    return step.graph.clip(x, step.bound(min_val), step.bound(max_val), step.where, "hardtanh")


def _same(step: Step, x: Value, *_: Any, **__: Any) -> Value:
    return x


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": lambda step, x: step.graph.absolute(x, step.where),
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "add": _add,
    "avg_pool2d": _avg_pool2d,
    "cat": _cat,
    "chunk": _chunk,
    "clamp": _clamp,
    "clip": _clamp,
    "contiguous": _same,
    "conv2d": _conv2d,
    "detach": _same,
    "div": _div,
    "dropout": _same,
    "dropout2d": _same,
    "flatten": lambda step, x, start_dim=0, end_dim=-1: flattened(step, x, start_dim, end_dim),
    "getattribute": _getattribute,
    "getitem": _getitem,
    "hardtanh": _hardtanh,
    "iadd": _add,
    "imul": _mul,
    "isub": _sub,
    "itruediv": _div,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "max_pool2d": _max_pool2d,
    "maximum": lambda step, a, b: _extremum(step, a, b, True),
    "mean": _mean,
    "minimum": lambda step, a, b: _extremum(step, a, b, False),
    "mul": _mul,
    "neg": lambda step, x: step.graph.scale(x, -1.0, 0.0, step.where),
    "permute": _permute,
    "relu": lambda step, x, inplace=False: step.graph.relu(x, step.where),
    "relu6": lambda step, x, inplace=False: step.graph.clip(x, 0.0, 6.0, step.where, "ReLU6"),
    "reshape": _reshape,
    "size": _size,
    "squeeze": _squeeze,
    "sub": _sub,
    "sum": lambda step, x, dim=None, keepdim=False: _mean(step, x, dim, keepdim, True),
    "transpose": _transpose,
    "truediv": _div,
    "unsqueeze": _unsqueeze,
    "view": _reshape,
}
"""Functions and methods that are read, by their names."""
