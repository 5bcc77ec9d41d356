"""The values of a graph: the input, affine maps of other values, and ReLUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from refmmr.interop.linear_maps import Map
from refmmr.reference.layers import Pads

__all__ = ["Affine", "Input", "Relu", "Value"]

Shape = tuple[int, ...]


@dataclass(eq=False)
class Value:
    """An array that depends on the input of the network."""

    shape: Shape
    number: int  # in the order in which values were made: arguments come before
    level: int  # ReLUs on the longest path from the input
    nonnegative: bool  # for every input; False where that is not known
    where: str  # the operation, for errors

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(eq=False)
class Input(Value):
    """The input."""


@dataclass(eq=False)
class Affine(Value):
    """``sum_i A_i u_i + offset`` of values u_i; the offset broadcasts to the shape."""

    parts: tuple[tuple[Value, Map], ...] = ()
    offset: np.ndarray = field(default_factory=lambda: np.zeros((), np.float32))
    maximum_of: tuple[Value, ...] = ()  # the values whose maximum this is
    padded: tuple[Value, Pads] | None = None  # the image that this is, with zeros around it


@dataclass(eq=False)
class Relu(Value):
    """``max(u, 0)`` of a value u."""

    argument: Value = None  # type: ignore[assignment]
