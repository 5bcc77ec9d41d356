"""The operators of ONNX on shapes and indices, as operations of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refmmr.interop.graph import MAX_UNITS
from refmmr.interop.onnx_constants import axes_of, slices
from refmmr.interop.onnx_nodes import Node
from refmmr.interop.onnx_tensors import quote
from refmmr.interop.values import Value

if TYPE_CHECKING:
    from refmmr.interop.onnx_reader import Reader

__all__ = ["SHAPE_READERS"]


def _reshape(reader: Reader, node: Node) -> Value:
    x, target = reader.data(node), reader.constants.integers(node, 1)
    if target[:1] == [1]:
        reader.keep_batch(node, (0,))
    if not node.attributes.get("allowzero", 0):
        target = [
            x.shape[k] if size == 0 and k < len(x.shape) else size for k, size in enumerate(target)
        ]
    if reader.batch not in (None, 1) and target[:1] == [reader.batch]:
        target = [1, *target[1:]]
    known = math.prod(size for size in target if size != -1)
    if target.count(-1) == 1 and known > 0 and x.size % known == 0:
        target[target.index(-1)] = x.size // known
    if len(target) > 8 or min(target, default=1) < 1 or math.prod(target) != x.size:
        node.refuse(f"expected a shape of the {x.size} entries of {x.shape}, got {tuple(target)}")
    if target[:1] != [1]:
        reader.keep_batch(node, (0,))
    return reader.graph.reshape(x, tuple(target), node.where)


def _flatten(reader: Reader, node: Node) -> Value:
    x, axis = reader.data(node), node.attributes.get("axis", 1)
    rank = len(x.shape)
    if not -rank <= axis <= rank:
        node.refuse(f"expected an axis from {-rank} to {rank}, got {axis}")
    front = math.prod(x.shape[: axis + rank if axis < 0 else axis])
    if axis in (0, -rank):
        reader.keep_batch(node, (0,))
    return reader.graph.reshape(x, (front, x.size // front), node.where)


def _squeeze(reader: Reader, node: Node) -> Value:
    x, axes = reader.data(node), reader.constants.listed(node, "axes", 1)
    if axes is None:
        axes = [k for k, size in enumerate(x.shape) if size == 1]
    found = axes_of(node, axes, len(x.shape))
    reader.keep_batch(node, found)
    if any(x.shape[axis] != 1 for axis in found):
        node.refuse(f"expected axes of size 1, got {axes} of {x.shape}")
    shape = tuple(size for k, size in enumerate(x.shape) if k not in found)
    return reader.graph.reshape(x, shape, node.where)


def _unsqueeze(reader: Reader, node: Node) -> Value:
    x, axes = reader.data(node), reader.constants.listed(node, "axes", 1) or []
    rank = len(x.shape) + len(axes)
    found = axes_of(node, axes, rank)
    if rank > 8:
        node.refuse(f"expected at most 8 axes, got {rank}")
    reader.keep_batch(node, found)
    sizes = iter(x.shape)
    shape = tuple(1 if k in found else next(sizes) for k in range(rank))
    return reader.graph.reshape(x, shape, node.where)


def _transpose(reader: Reader, node: Node) -> Value:
    x = reader.data(node)
    rank = len(x.shape)
    perm = node.attributes.get("perm", list(range(rank))[::-1])
    if sorted(perm) != list(range(rank)):
        node.refuse(f"expected a permutation of {rank} axes, got {perm[:9]}")
    reader.keep_batch(node, perm[1:])
    return reader.graph.pick(x, reader.graph.indices(x).transpose(perm), node.where)


def _slice(reader: Reader, node: Node) -> Value:
    x = reader.data(node)
    where = slices(reader.constants, node, len(x.shape))
    if where[0] != slice(None):
        reader.keep_batch(node, (0,))
    return reader.graph.pick(x, reader.graph.indices(x)[where], node.where)


def _gather(reader: Reader, node: Node) -> Value:
    x, indices = reader.data(node), reader.constants.array(node, 1)
    [axis] = axes_of(node, [node.attributes.get("axis", 0)], len(x.shape))
    reader.keep_batch(node, (axis,))
    size = x.shape[axis]
    if indices.dtype != np.int64 or (indices < -size).any() or (indices >= size).any():
        node.refuse(f"expected indices of {size} entries, got others")
    if x.size // size * indices.size > MAX_UNITS:
        node.refuse(f"expected at most {MAX_UNITS} units, got more")
    return reader.graph.pick(x, np.take(reader.graph.indices(x), indices, axis), node.where)


def _split(reader: Reader, node: Node) -> list[Value]:
    x, sizes = reader.data(node), reader.constants.listed(node, "split", 1)
    [axis] = axes_of(node, [node.attributes.get("axis", 0)], len(x.shape))
    reader.keep_batch(node, (axis,))
    whole, n = x.shape[axis], len(node.outputs)
    if sizes is None:
        part = -(-whole // n)
        sizes = [max(0, min(part, whole - k * part)) for k in range(n)]
    if len(sizes) != n or sum(sizes) != whole or min(sizes) < 1:
        node.refuse(f"expected sizes above 0 that sum to {whole}, got {sizes[:9]}")
    parts = np.split(reader.graph.indices(x), np.cumsum(sizes)[:-1], axis)
    return [reader.graph.pick(x, part, node.where) for part in parts]


def _concat(reader: Reader, node: Node) -> Value:
    parts: list[Any] = [
        reader.values[name] if name in reader.values else reader.constant(node, k)
        for k, name in enumerate(node.inputs)
    ]
    rank = len(reader.values[next(n for n in node.inputs if n in reader.values)].shape)
    [axis] = axes_of(node, [node.attributes.get("axis", 0)], rank)
    reader.keep_batch(node, (axis,))
    parts = [
        part if isinstance(part, Value) else reader.for_one(node, part, rank) for part in parts
    ]
    return reader.graph.concat(parts, axis, node.where)


def _expand(reader: Reader, node: Node) -> Value:
    x, target = reader.data(node), reader.constants.integers(node, 1)
    if reader.batch not in (None, 1) and len(target) == len(x.shape) and target[0] == reader.batch:
        target = [1, *target[1:]]
    try:
        shape = np.broadcast_shapes(x.shape, tuple(target))
    except ValueError:
        node.refuse(f"expected a shape to which {x.shape} broadcasts, got {tuple(target[:9])}")
    if math.prod(shape) > MAX_UNITS:
        node.refuse(f"expected at most {MAX_UNITS} units, got shape {shape}")
    indices = np.broadcast_to(reader.graph.indices(x), shape)
    return reader.graph.pick(x, indices, node.where)


def _pad(reader: Reader, node: Node) -> Value:
    x, graph = reader.data(node), reader.graph
    pads = reader.constants.listed(node, "pads", 1)
    mode = node.attributes.get("mode", "constant")
    number = node.attributes.get("value", 0.0)
    if len(node.inputs) > 2 and node.inputs[2]:
        number = float(reader.constant(node, 2).reshape(-1)[0])
    rank = len(x.shape)
    axes = list(range(rank))
    if len(node.inputs) > 3:
        axes = list(axes_of(node, reader.constants.integers(node, 3), rank))
    if mode not in ("constant", "reflect", "edge") or pads is None or len(pads) != 2 * len(axes):
        node.refuse(f"expected two pads for each axis, constant, reflect or edge, got {mode}")
    pairs = [(0, 0)] * rank
    for k, axis in enumerate(axes):
        pairs[axis] = pads[k], pads[k + len(axes)]
    reader.keep_batch(node, [axis for axis, pair in enumerate(pairs) if any(pair)])
    if math.prod(size + max(sum(pair), 0) for size, pair in zip(x.shape, pairs, strict=True)) > (
        MAX_UNITS
    ) or any(max(pair) > MAX_UNITS for pair in pairs):
        node.refuse(f"expected at most {MAX_UNITS} units with pads, got more")
    inner = all(pair == (0, 0) for pair in pairs[:-2]) and min(map(min, pairs)) >= 0
    if mode == "constant" and number == 0 and inner and rank == 4:
        return graph.pad(x, (pairs[2], pairs[3]), node.where)
    more = [(max(a, 0), max(b, 0)) for a, b in pairs]
    if mode == "constant":
        indices = np.pad(graph.indices(x), more, constant_values=-1)
    else:
        indices = np.pad(graph.indices(x), more, mode=mode)
    sizes = zip(pairs, indices.shape, strict=True)
    cut = tuple(slice(-min(a, 0), size + min(b, 0)) for (a, b), size in sizes)
    indices = indices[cut]
    padded = graph.pick(x, indices, node.where)
    if number == 0 or (indices >= 0).all():
        return padded
    return graph.scale(padded, np.float32(1), np.where(indices < 0, number, 0.0), node.where)


REPEATS = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("tf_half_pixel_for_nn", "floor"),
}
"""Modes of Resize in which pixel i of an image that is s times larger is pixel ``i // s``, s whole:
its center (i + 1/2) / s, or its corner i / s, lies in that pixel."""

MULTIPLES = "instead: resize by whole factors, nearest, or with a ConvTranspose"


def _resize(reader: Reader, node: Node) -> Value:
    """Resize and Upsample to a multiple of the size, by repetition."""
    x, given = reader.data(node), node.attributes
    old = node.kind == "Upsample" or reader.opset < 11
    modes = (
        given.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel"),
        given.get("nearest_mode", "floor" if old else "round_prefer_floor"),
    )
    mode = given.get("mode", "nearest")
    if mode != "nearest" or modes not in REPEATS:
        got = ", ".join(map(quote, (mode, *modes)))
        node.refuse(
            "expected mode nearest, asymmetric with floor or half_pixel with rounding, got "
            f"{got}; {MULTIPLES}"
        )
    if "axes" in given or given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        node.refuse(f"expected scales or sizes of all axes as they are, got others; {MULTIPLES}")
    factors = _factors(reader, node, x.shape, 1 if old else 2)
    if len(factors) != len(x.shape) or min(factors) < 1 or any(f % 1 for f in factors):
        node.refuse(f"expected a whole number for each axis as factor, got {factors}; {MULTIPLES}")
    reader.keep_batch(node, [k for k, factor in enumerate(factors) if factor != 1])
    if x.size * math.prod(factors) > MAX_UNITS:
        node.refuse(f"expected at most {MAX_UNITS} units, got more")
    indices = reader.graph.indices(x)
    for axis, factor in enumerate(factors):
        indices = np.repeat(indices, int(factor), axis)
    return reader.graph.pick(x, indices, node.where)


def _factors(reader: Reader, node: Node, shape: tuple[int, ...], k: int) -> list[float]:
    """The factor of each axis, from input k, the scales, or from sizes in the input behind it."""
    if "scales" in node.attributes:
        return list(node.attributes["scales"])
    if len(node.inputs) > k + 1:  # then the scales are empty
        sizes = reader.constants.integers(node, k + 1)
        if reader.batch not in (None, 1) and sizes[:1] == [reader.batch]:
            sizes = [1, *sizes[1:]]
        return [size / own for size, own in zip(sizes, shape, strict=False)]
    if len(node.inputs) <= k:
        node.refuse("expected scales or sizes, got neither")
    scales = reader.constant(node, k)
    return list(scales.reshape(-1).tolist())


SHAPE_READERS: Mapping[str, Callable[[Any, Node], Value | list[Value]]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
"""The function for each operator."""
