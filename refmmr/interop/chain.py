"""A network of a graph: a chain of layers, with a ReLU after each but the last.

The values of the graph are put in layers first (`refmmr.interop.levels`).  A layer that is a
plain one, a convolution with a batch normalisation behind it, is given to the `Assembly` as it is.
Any other is written as a sparse matrix, from the units of the layer before to its own, which is a
convolution where it is recognised as one, else a dense layer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from refmmr.interop.assembly import Assembly
from refmmr.interop.graph import Graph
from refmmr.interop.levels import levelled
from refmmr.interop.linear_maps import (
    MAX_ENTRIES,
    Dense,
    Filters,
    Map,
    Same,
    Times,
    product,
)
from refmmr.interop.recognition import MAX_WEIGHTS, Rows, recognise
from refmmr.interop.values import Affine, Value
from refmmr.network import Network

__all__ = ["Chain", "to_network"]

Shape = tuple[int, ...]


class Chain(NamedTuple):
    """A network, and how its input is that of the graph."""

    network: Network
    input_order: np.ndarray | None
    """Index in the flattened input of the network of each entry of the graph's; None: the same."""


class _Layout(NamedTuple):
    """Where the units of a layer are in its flattened output."""

    places: dict[Value, np.ndarray]  # of each value's entries
    plain: Value | None  # the only value, if its entries are in their own order


def to_network(graph: Graph, output: Value) -> Chain:
    """The network that computes an output of a graph.

    Parameters
    ----------
    graph : Graph
    output : Value
        The logits, one axis longer than 1 at most.

    Returns
    -------
    Chain
        In float32 if all weights of the graph are and no number had to be rounded, else in float64.

    Raises
    ------
    ValueError
        For a network that is too large; the message names the operation.
    """
    if max(output.shape, default=1) != output.size:
        graph.refuse("output", f"expected logits of shape (classes,), got {output.shape}")
    levels = levelled(graph, output)
    targets: list[list[Value]] = [[u.argument for u in layer] for layer in levels.layers]
    targets.append([levels.output])
    owners: list[Sequence[Value]] = [*levels.layers, [levels.output]]
    chain, input_order = _first_layer(graph, targets[0], owners[0])
    for wanted, own in zip(targets[1:], owners[1:], strict=True):
        chain.assembly.relu(own[0].where)
        if not chain.plain_layer(wanted, own):
            chain.matrix_layer(wanted, own)
    if len(chain.assembly.shape) > 1:
        chain.assembly.flatten("output")
    net = chain.assembly.network()
    if graph.rewritten or levels.carriers:
        kinds = ", ".join(sorted(graph.rewritten)) or "skip connections"
        warnings.warn(
            f"{graph.source}: {kinds} written as ReLUs: {net.n_hidden} hidden units, "
            f"{levels.carriers} of them to carry values through; it is the same network",
            stacklevel=2,
        )
    return Chain(net, input_order)


def _first_layer(
    graph: Graph, wanted: Sequence[Value], own: Sequence[Value]
) -> tuple[_Builder, np.ndarray | None]:
    """The first layer, on the input in the layout that makes it a convolution, or as it is."""
    layouts = list(_layouts(graph, wanted))
    for shape, places in layouts:
        builder = _Builder(graph, shape, places)
        order = None if (places == np.arange(len(places))).all() else places
        if builder.plain_layer(wanted, own) or (
            len(shape) == 3 and builder.matrix_layer(wanted, own, dense=False)
        ):
            return builder, order
    builder = _Builder(graph, *layouts[0])
    builder.matrix_layer(wanted, own)
    return builder, None


def _layouts(graph: Graph, wanted: Sequence[Value]) -> list[tuple[Shape, np.ndarray]]:
    """Shapes that the network's input may have, and where the entries of the graph's are in it.

    The graph's own comes first, then images that it is reshaped to, and the same images with the
    channels as the last axis; not where all three sizes are equal, as the shape would not show it.
    """
    x = graph.input
    shapes = [graph.sample_shape]
    shapes += [
        _sample(value.shape)
        for value in _affine_values(wanted)
        if any(u is x and isinstance(map_, Same) for u, map_ in value.parts)
    ]
    own = shapes[0] if len(shapes[0]) in (1, 3) else (x.size,)
    images = dict.fromkeys(shape for shape in shapes if len(shape) == 3)
    numbers = np.arange(x.size)
    layouts = [(own, numbers)] + [(shape, numbers) for shape in images if shape != own]
    for height, width, channels in images:
        if (channels, height, width) in images:
            continue
        places = numbers.reshape(channels, height, width).transpose(1, 2, 0).reshape(-1)
        layouts.append(((channels, height, width), places))
    return layouts


def _sample(shape: Shape) -> Shape:
    """A shape without axes of size 1 in front: (d,) or (channels, height, width), or longer."""
    image = shape[-3:]
    if len(image) == 3 and len(shape) > 3 and math.prod(image) == math.prod(shape):
        return image
    if len(shape) == 2 and shape[0] == 1:
        return shape[1:]
    return shape


class _Builder:
    """Adds layers to an assembly."""

    def __init__(self, graph: Graph, shape: Shape, places: np.ndarray) -> None:
        self.graph = graph
        self.assembly = Assembly(graph.source, shape)
        plain = (places == np.arange(len(places))).all()
        self.layout = _Layout({graph.input: places}, graph.input if plain else None)

    def plain_layer(self, wanted: Sequence[Value], own: Sequence[Value]) -> bool:
        """Add the layer operation by operation, if it is a chain of a few known ones."""
        if len(wanted) > 1 or self.layout.plain is None:
            return False
        steps = _steps(wanted[0], self.layout.plain, self.assembly.shape)
        if steps is None:
            return False
        for value, map_ in steps:
            self._add(value, map_)
        self.layout = _Layout({own[0]: np.arange(own[0].size)}, own[0])
        return True

    def _add(self, value: Affine, map_: Map) -> None:
        assembly, where = self.assembly, value.where
        if isinstance(map_, Dense):
            if len(assembly.shape) > 1:
                assembly.flatten(where)
            b = np.broadcast_to(value.offset, value.shape).reshape(-1)
            assembly.linear(map_.W, b, where)
        elif isinstance(map_, Filters):
            layer = map_.layer
            assembly.conv(layer.W, layer.b, where, layer.stride, layer.padding)
        elif isinstance(map_, Times) or value.offset.any():
            factor = map_.factor if isinstance(map_, Times) else np.ones((), np.float32)
            factor, shift = (
                _fitting(array, value.shape, assembly.shape) for array in (factor, value.offset)
            )
            assembly.scale(factor, shift, where)

    def matrix_layer(
        self, wanted: Sequence[Value], own: Sequence[Value], dense: bool = True
    ) -> bool:
        """Add the layer as a convolution that its matrix is, or as the matrix, where `dense`."""
        where = wanted[0].where
        try:
            rows = self._rows(wanted)
        except ValueError as error:
            self.graph.refuse(where, str(error))
        image = self.assembly.image
        found = recognise(rows, image) if image else None
        # Units may be in any order, logits may not.
        logits = wanted[0] is own[0]
        if found and not (logits and (found.places[0] != np.arange(own[0].size)).any()):
            W, b = self._narrow(found.W, found.b)
            self.assembly.conv(W, b, where, found.stride, found.padding)
            self.layout = _Layout(dict(zip(own, found.places, strict=True)), None)
            return True
        if not dense:
            return False
        self._add_dense(rows, where, any(len(value.shape) > 2 for value in wanted))
        starts = np.cumsum([0, *(value.size for value in own)]).tolist()
        places = [start + np.arange(v.size) for start, v in zip(starts, own, strict=False)]
        plain = own[0] if len(own) == 1 else None
        self.layout = _Layout(dict(zip(own, places, strict=True)), plain)
        return True

    def _add_dense(self, rows: Sequence[Rows], where: str, image: bool) -> None:
        shape = sum(len(part.offset) for part in rows), math.prod(self.assembly.shape)
        if math.prod(shape) > MAX_WEIGHTS:
            self.graph.refuse(
                where,
                f"expected a layer that is a convolution, or a matrix of at most {MAX_WEIGHTS} "
                f"entries, got {shape[0]} x {shape[1]}",
            )
        if image and math.prod(shape) > 10_000:
            warnings.warn(
                f"{self.graph.source}: {where}: convolution written as a matrix of {shape[0]} x "
                f"{shape[1]}, because not all that its layer computes is a convolution; it is the "
                "same network, but slower",
                stacklevel=2,
            )
        if len(self.assembly.shape) > 1:
            self.assembly.flatten(where)
        W = sparse.vstack([part.M for part in rows]).toarray()
        self.assembly.linear(*self._narrow(W, np.concatenate([p.offset for p in rows])), where)

    def _rows(self, wanted: Sequence[Value]) -> list[Rows]:
        """The affine maps from the flattened output of the layer before to each value."""
        n = math.prod(self.assembly.shape)
        left = MAX_ENTRIES
        made: dict[Value, tuple[sparse.csr_array, np.ndarray]] = {}
        for value, places in self.layout.places.items():
            entries = np.ones(len(places)), (np.arange(len(places)), places)
            made[value] = sparse.csr_array(entries, (len(places), n)), np.zeros(len(places))
        for value in _affine_values(wanted):
            M = sparse.csr_array((value.size, n))
            c = np.broadcast_to(value.offset, value.shape).astype(np.float64).reshape(-1)
            for u, map_ in value.parts:
                before, offset = made[u]
                own = map_.matrix(u.shape, value.shape)
                M = sparse.csr_array(M + product(own, before))
                c = c + own @ offset
            made[value] = M, c
            left -= M.nnz + len(c)
            if left < 0:
                raise ValueError(
                    f"expected maps of at most {MAX_ENTRIES} nonzeros between two ReLUs, got more"
                )
        rows = []
        for value in wanted:
            M, c = made[value]
            M.eliminate_zeros()
            rows.append(Rows(M, c, _shape_before_reshapes(value)))
        return rows

    def _narrow(self, W: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights in float32, if those of the graph are and these are such numbers, too."""
        with np.errstate(over="ignore"):
            pair = W.astype(np.float32), b.astype(np.float32)
        if self.graph.dtype == np.float32 and (pair[0] == W).all() and (pair[1] == b).all():
            return pair
        return W, b


def _steps(value: Value, start: Value, shape: Shape) -> list[tuple[Affine, Map]] | None:
    """The operations from one value to another, if they are those of an `Assembly`.

    These are elementwise maps around a single convolution, or around dense layers; the shape is
    that of the units, (n,) or (channels, height, width).
    """
    steps: list[tuple[Affine, Map]] = []
    while value is not start:
        if not isinstance(value, Affine) or len(value.parts) > 1:
            return None
        argument, map_ = value.parts[0]
        if not isinstance(map_, (Dense, Filters, Same, Times)):
            return None
        steps.append((value, map_))
        if isinstance(map_, Filters) and _sample(argument.shape) != shape:
            return None
        value = argument
    steps.reverse()
    kinds = [type(map_) for _, map_ in steps]
    if all(kind is Same for kind in kinds) or (Filters in kinds and len({
        k for k, kind in enumerate(kinds) if kind in (Dense, Filters)}) > 1):  # fmt: skip
        return None
    return steps


def _shape_before_reshapes(value: Value) -> Shape:
    """The shape of what a value is a reshape of, such as an image that is flattened."""
    while isinstance(value, Affine) and len(value.parts) == 1 and not value.offset.any():
        argument, map_ = value.parts[0]
        if not isinstance(map_, Same):
            break
        value = argument
    return value.shape


def _affine_values(wanted: Sequence[Value]) -> list[Affine]:
    """The affine maps of one layer that values are made of, arguments first."""
    found = {value for value in wanted if isinstance(value, Affine)}
    stack = list(found)
    while stack:
        for argument, _ in stack.pop().parts:
            if isinstance(argument, Affine) and argument not in found:
                found.add(argument)
                stack.append(argument)
    return sorted(found, key=lambda value: value.number)


def _fitting(array: np.ndarray, shape: Shape, after: Shape) -> np.ndarray:
    """Numbers that broadcast to one shape, so that they broadcast to another of the same size."""
    if array.size == 1:
        return array.reshape(())
    whole = np.broadcast_to(array, shape)
    if _sample(shape) == after:
        return array.reshape(array.shape[-len(after) :]) if array.ndim > len(after) else array
    return whole.reshape(after)
