"""Networks from state dicts: weights by name, as PyTorch's ``state_dict()`` returns them.

A state dict holds the weights, not the operations between them.  These are assumed to be as in the
networks of the paper: a ReLU after every layer but the last (after its batch normalisation, where
there is one) and a flattening before the first dense layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from refmmr.interop.assembly import Assembly
from refmmr.network import Conv2d, Linear, Network
from refmmr.reference.layers import Flatten

__all__ = ["BATCHNORM_EPS", "Step", "each_convolution", "fitting_sides", "from_state_dict", "steps"]

BATCHNORM_EPS = 1e-5
"""Added to the variance: PyTorch's default, for a state dict does not hold it."""

MAX_IMAGE_SIDE = 1024
"""Without an input shape, square images of up to this side are tried."""

MAX_MODULES = 256
"""Modules of a state dict: the time of the search for their order grows with the square of this."""

MAX_TRIES = 2000
"""Steps of the search for the order of modules, which can take exponentially many."""

PARTS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


class _Weights(NamedTuple):
    """The entries of a state dict that belong to one module."""

    name: str
    parts: dict[str, np.ndarray]

    @property
    def normalises(self) -> bool:
        return "running_mean" in self.parts

    @property
    def W(self) -> np.ndarray:
        return self.parts["weight"]

    @property
    def b(self) -> np.ndarray:
        return self.parts.get("bias", np.zeros(len(self.W), self.W.dtype))

    def __str__(self) -> str:
        return f"{self.name!r} {self.W.shape}" if "weight" in self.parts else f"{self.name!r}"


def from_state_dict(
    tensors: Mapping[str, Any],
    source: str,
    input_shape: Sequence[int] | None = None,
    stride: Any = None,
    padding: Any = None,
    ordered: bool = True,
) -> Network:
    """The network of a state dict.

    Parameters
    ----------
    tensors : mapping of str to array
        ``<module>.weight`` of 2 axes (dense, (n_out, n_in)) or 4 (convolution, (n_out, n_in,
        height, width)), ``<module>.bias`` (zeros where there is none); and the entries of batch
        normalisations, which are folded into the layer before them (with PyTorch's default eps,
        1e-5).  Convolutions come before dense layers, and modules whose names differ in a number
        in the order of the numbers ("fc2" before "fc10").  What this leaves open is taken in the
        order of the mapping if that makes a network, else in the one order that does.
    source : str
        Name of the file, for errors.
    input_shape : tuple of int, optional
        ``(channels, height, width)``; needed with convolutions, unless a square image of one size
        alone fits the first dense layer.
    stride, padding : optional
        As in `refmmr.Conv2d`; a list has one for each convolution.  Needed with convolutions.
    ordered : bool
        Whether the mapping is in the order of the layers; a .safetensors file is not.

    Returns
    -------
    Network

    Raises
    ------
    ValueError
        For entries of other names, or that make no network, or more than one.
    """
    groups = _groups(tensors, source)
    chain = _chain(groups, source, ordered)
    _check_between(chain, source)
    return _assembled(chain, source, input_shape, stride, padding)


def _groups(tensors: Mapping[str, Any], source: str) -> list[_Weights]:
    """Entries by module, in the order of the mapping."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        name, _, part = str(key).rpartition(".")
        if not name or part not in PARTS:
            raise ValueError(
                f"{source}: expected a network of this library, or a state dict with entries "
                f"<module>.weight and <module>.bias, got an entry {key!r}"
            )
        groups.setdefault(name, {})[part] = np.asarray(value)
    if not groups:
        raise ValueError(f"{source}: expected weights, got an empty state dict")
    if len(groups) > MAX_MODULES:
        raise ValueError(
            f"{source}: expected at most {MAX_MODULES} modules in a row, got {len(groups)}"
        )
    found = [_Weights(name, parts) for name, parts in groups.items()]
    for group in found:
        if group.normalises:
            _check_normalisation(group, source)
        elif "weight" not in group.parts or group.W.ndim not in (2, 4) or 0 in group.W.shape:
            shapes = {part: array.shape for part, array in group.parts.items()}
            raise ValueError(
                f"{source}: {group.name}: expected a weight of 2 or 4 axes, got {shapes}"
            )
    return found


def _check_normalisation(group: _Weights, source: str) -> None:
    parts = {part: a for part, a in group.parts.items() if part != "num_batches_tracked"}
    shapes = {array.shape for array in parts.values()}
    numbers = all(array.dtype.kind == "f" for array in parts.values())
    if "running_var" not in parts or not numbers or len(shapes) != 1 or len(shapes.pop()) != 1:
        raise ValueError(
            f"{source}: {group.name}: expected running_mean and running_var, with weight and bias "
            f"or without, of one shape (channels,), got { {k: a.shape for k, a in parts.items()} }"
        )
    if not (parts["running_var"] >= 0).all():
        raise ValueError(f"{source}: {group.name}: expected variances of at least 0")


def _chain(groups: list[_Weights], source: str, ordered: bool) -> list[_Weights]:
    """The modules in the order of the network.

    Numbers in names give an order, words do not ("hidden" is not before "input").
    """
    order = _convolutions_first(groups)
    names = [_pieces(group.name) for group in order]
    later = any(_comes_before(b, a) for i, b in enumerate(names) for a in names[:i])
    if ordered and not later and _problem(order) is None:
        return order
    fits = list(islice(_orders(groups), 2))
    if len(fits) == 1:
        return fits[0]
    found = ", ".join(map(str, groups))
    if fits:
        raise ValueError(
            f"{source}: expected names with numbers that tell the order of the layers, got "
            f"{found}, which leave it open"
        )
    order = _convolutions_first(sorted(groups, key=_natural))
    problem = _problem(order) or "numbers and shapes tell different orders"
    raise ValueError(f"{source}: expected layers that fit together, got {found}: {problem}")


def _pieces(name: str) -> list[str | int]:
    """A name as an alternating list of words and numbers."""
    pieces = re.findall(r"\d{1,18}|\D+", name)  # Python refuses numbers of thousands of digits
    return [int(s) if s.isdecimal() else s for s in pieces]


def _comes_before(a: Sequence[str | int], b: Sequence[str | int]) -> bool:
    """Whether two names differ in a number first, and the first has the smaller one."""
    for one, other in zip(a, b, strict=False):
        if one != other:
            return isinstance(one, int) and isinstance(other, int) and one < other
    return False


def _natural(group: _Weights) -> list[tuple[bool, int, str]]:
    """Sort key by numbers and letters: "10" comes after "2"."""
    pieces = _pieces(group.name)
    return [(False, s, "") if isinstance(s, int) else (True, 0, s) for s in pieces]


def _convolutions_first(order: list[_Weights]) -> list[_Weights]:
    """The same order, with convolutions (and what normalises them) before dense layers."""
    owners: list[tuple[bool, _Weights]] = []
    dense = False
    for group in order:
        if not group.normalises:
            dense = group.W.ndim == 2
        owners.append((dense, group))
    return [group for _, group in sorted(owners, key=lambda owner: owner[0])]


def _orders(groups: list[_Weights]) -> Iterator[list[_Weights]]:
    """All orders that agree with the numbers in the names and with the shapes, by backtracking.

    A layer has one batch normalisation at most.  After `MAX_TRIES` steps the search gives two
    orders, which the caller takes for "not unique".
    """
    names = [_pieces(group.name) for group in groups]
    n = len(groups)
    waits = [{j for j in range(n) if _comes_before(names[j], names[i])} for i in range(n)]
    tries = 0
    chain: list[int] = []

    def follow(layer: _Weights | None, normalised: bool) -> Iterator[list[_Weights]]:
        nonlocal tries
        tries += 1
        if len(chain) == n:
            yield [groups[i] for i in chain]
            return
        used = set(chain)
        for i in range(n):
            group = groups[i]
            if tries > MAX_TRIES:
                return
            if i in used or not waits[i] <= used:
                continue
            if (normalised and group.normalises) or _misfit(layer, group) is not None:
                continue
            chain.append(i)
            yield from follow(layer if group.normalises else group, group.normalises)
            chain.pop()

    yield from follow(None, False)
    if tries > MAX_TRIES:
        yield groups
        yield groups


def _problem(chain: list[_Weights]) -> str | None:
    """Why the shapes of modules in this order do not fit, or None."""
    layer: _Weights | None = None
    for group in chain:
        problem = _misfit(layer, group)
        if problem is not None:
            return problem
        layer = layer if group.normalises else group
    return None


def _misfit(layer: _Weights | None, group: _Weights) -> str | None:
    """Why a module cannot follow a layer and its batch normalisation, or None if it can."""
    if group.normalises:
        n = len(group.parts["running_mean"])
        if layer is None:
            return f"no layer stands before the batch normalisation {group.name!r}"
        if n != len(layer.W):
            return f"the batch normalisation {group.name!r} of {n} does not fit {layer}"
        return None
    if layer is None:
        return None
    same, inputs = layer.W.ndim == group.W.ndim, group.W.shape[1]
    if layer.W.ndim < group.W.ndim or (inputs != len(layer.W) if same else inputs % len(layer.W)):
        return f"{group} does not fit behind {layer}"
    return None


def _check_between(chain: list[_Weights], source: str) -> None:
    """Raise a ValueError if the number of a batch normalisation does not follow that of its layer.

    There may be a ReLU between them, which a state dict does not hold.
    """
    before: _Weights | None = None
    for group in chain:
        if group.normalises and before is not None:
            one, other = _pieces(before.name), _pieces(group.name)
            gap = isinstance(one[-1], int) and [*one[:-1], one[-1] + 1] != other
            if gap and one[:-1] == other[:-1] and isinstance(other[-1], int):
                raise ValueError(
                    f"{source}: {group.name}: expected the batch normalisation next to its layer "
                    f"{before.name!r}, got another module between them, which may be a ReLU; pass "
                    "the module itself to refmmr.from_torch"
                )
        before = group


def _assembled(
    chain: list[_Weights], source: str, input_shape: Any, stride: Any, padding: Any
) -> Network:
    convolutions = [group for group in chain if not group.normalises and group.W.ndim == 4]
    geometry = _geometry(convolutions, source, stride, padding)
    shape = input_shape or _input_shape(chain, convolutions, geometry, source)
    parts = Assembly(source, shape)
    layers = [group for group in chain if not group.normalises]
    for group in chain:
        if group.normalises:
            parts.scale(*_normalisation(group.parts, len(parts.shape)), group.name)
            continue
        if group is not layers[0]:
            parts.relu(f"before {group.name}")
        if group.W.ndim == 2:
            parts.flatten(f"before {group.name}")
            parts.linear(group.W, group.b, group.name)
        else:
            parts.conv(group.W, group.b, group.name, *geometry[convolutions.index(group)])
    return parts.network()


def _normalisation(parts: Mapping[str, np.ndarray], axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift of a batch normalisation, in float64, of shape (n,) or (n, 1, 1)."""
    wide = {part: array.astype(np.float64) for part, array in parts.items()}
    factor = wide.get("weight", 1.0) / np.sqrt(wide["running_var"] + BATCHNORM_EPS)
    shift = wide.get("bias", 0.0) - wide["running_mean"] * factor
    shape = (-1,) if axes == 1 else (-1, 1, 1)
    return factor.reshape(shape), shift.reshape(shape)


def _geometry(
    convolutions: list[_Weights], source: str, stride: Any, padding: Any
) -> list[tuple[Any, Any]]:
    """Stride and padding of each convolution."""
    n, columns = len(convolutions), []
    for name, value in (("stride", stride), ("padding", padding)):
        if n == 0 and value is not None:
            raise ValueError(f"{name}: expected none for {source}, which has no convolution")
        if n and value is None:
            found = ", ".join(map(str, convolutions))
            raise ValueError(
                f"{name}: expected one for the convolutions of {source}, {found}, because a state "
                "dict does not hold it; got none"
            )
        columns.append(each_convolution(name, value, n, source))
    return list(zip(*columns, strict=True))


def each_convolution(name: str, value: Any, n: int, source: str) -> list[Any]:
    """An option for each of n convolutions: a list as it is, anything else for all of them."""
    values = value if isinstance(value, list) else [value] * n
    if len(values) != n:
        raise ValueError(
            f"{name}: expected a list of {n}, one for each convolution of {source}, "
            f"got {len(values)}"
        )
    return values


def _input_shape(
    chain: list[_Weights],
    convolutions: list[_Weights],
    geometry: list[tuple[Any, Any]],
    source: str,
) -> tuple[int, ...]:
    """The input shape that the weights determine, if they do."""
    first = chain[0].W
    if first.ndim == 2:
        return (first.shape[1],)
    layers = [
        Conv2d(np.zeros(group.W.shape), np.zeros(len(group.W)), *options)
        for group, options in zip(convolutions, geometry, strict=True)
    ]
    dense = next((g for g in chain if not g.normalises and g.W.ndim == 2), None)
    fits = [] if dense is None else fitting_sides(layers, dense.W.shape[1])
    if len(fits) != 1:
        sides = f"squares of sides {fits} fit" if fits else "no square image fits"
        raise ValueError(
            f"input_shape: expected ({first.shape[1]}, height, width) for {source}, got none, "
            f"and {sides}"
        )
    return first.shape[1], fits[0], fits[0]


def fitting_sides(layers: Sequence[Conv2d], n_outputs: int) -> list[int]:
    """Sides of the square images for which convolutions have this number of outputs."""
    fits = []
    for side in range(1, MAX_IMAGE_SIDE + 1):
        shape: tuple[int, ...] = (layers[0].W.shape[1], side, side)
        for layer in layers:
            shape = layer.output_shape(shape)
            if min(shape) < 1:
                break
        else:
            if math.prod(shape) == n_outputs:
                fits.append(side)
    return fits


class Step(NamedTuple):
    """A module of the ``Sequential`` that is the same function as a network."""

    kind: str  # "pad", "conv", "linear", "flatten" or "relu"
    layer: Any  # Linear, Conv2d, Flatten or None
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))


def steps(net: Network) -> Iterator[Step]:
    """The modules of a network, as PyTorch numbers them in a ``Sequential``.

    PyTorch pads all sides of one axis alike; other padding is a module of its own.
    """
    shape, last = net.input_shape, net.affine[-1]
    for i, layer in enumerate(net.layers):
        if isinstance(layer, Flatten):
            yield Step("flatten", layer)
        elif isinstance(layer, Linear):
            yield Step("linear", layer)
        elif isinstance(layer, Conv2d):
            pads = layer.pads(*shape[1:])
            if any(before != after for before, after in pads):
                yield Step("pad", None, pads)
                pads = (0, 0), (0, 0)
            yield Step("conv", layer, pads)
        if i in net.affine and i != last:
            yield Step("relu", None)
        shape = layer.output_shape(shape)
