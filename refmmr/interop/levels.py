"""Put a graph in layers: each value is computed from units of one layer alone.

A value that a later layer reads is carried there, exactly: a value that is at least 0 by a ReLU,
``ReLU(v) = v``, a unit for each entry and layer; any other by two, ``v = ReLU(v) - ReLU(-v)``, and
from then on by these two ReLUs; or by its own arguments, where they need fewer units.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import NamedTuple

from refmmr.interop.graph import MAX_HIDDEN, Graph
from refmmr.interop.values import Affine, Input, Relu, Value

__all__ = ["Levels", "levelled"]


MAX_CARRIED = 50_000
"""Values that are carried, once for each layer: a graph of 10,000 nodes could need millions."""


class Levels(NamedTuple):
    """A graph in layers."""

    layers: list[list[Relu]]  # the ReLUs of each hidden layer
    output: Value
    carriers: int  # units that carry values through


def levelled(graph: Graph, output: Value) -> Levels:
    """Rebuild the values that an output needs, each in all layers in which it is read."""
    split = _Split(graph, output)
    layers: list[list[Relu]] = []
    made: dict[Value, Value] = {}
    carriers = 0
    for level, (units, others) in enumerate(split.needed()):
        before, made = made, {}
        layer = []
        for value in units:
            argument = _argument_in(value, level)
            layer.append(graph.carry(before[argument], value.where))
            carriers += value.size if argument is value else 0
        made.update(zip(units, layer, strict=True))
        if level:
            layers.append(layer)
        for value in others:
            made[value] = split.rebuilt(value, level, made)
    return Levels(layers, made[output], carriers)


def _argument_in(unit: Value, level: int) -> Value:
    """What the ReLU reads that gives a value in a layer: the value itself if it is carried."""
    return unit.argument if isinstance(unit, Relu) and unit.level == level else unit


class _Split:
    """Decides in which layers each value is needed, and as what."""

    def __init__(self, graph: Graph, output: Value) -> None:
        self.graph = graph
        self.output = output
        self.costs: dict[Value, int] = {}  # units in a layer that carries the value
        self.by_arguments: set[Value] = set()
        for value in _reachable(output):
            cost = value.size if value.nonnegative else 2 * value.size
            if isinstance(value, Affine):
                parts = sum(self.costs[u] for u in {u for u, _ in value.parts})
                if parts <= cost:
                    self.by_arguments.add(value)
                    cost = parts
            self.costs[value] = cost

    def needed(self) -> list[tuple[list[Value], list[Value]]]:
        """For each layer, from the input on: its units, and the affine maps of them; in order."""
        layers = []
        hidden = carriers = carried = 0
        wanted = {self.output}
        for level in range(self.output.level, -1, -1):
            units: list[Value] = []
            others: list[Value] = []
            queue = [(-value.number, value) for value in wanted]
            heapq.heapify(queue)
            wanted, seen = set(), set(wanted)
            while queue:
                _, value = heapq.heappop(queue)
                if self._is_unit(value, level):
                    units.append(value)
                    argument = _argument_in(value, level)
                    wanted.add(argument)
                    hidden += value.size
                    carriers += value.size if argument is value else 0
                    carried += argument is value
                    continue
                others.append(value)
                for argument in self._read(value, level):
                    if argument not in seen:
                        seen.add(argument)
                        heapq.heappush(queue, (-argument.number, argument))
            if carriers and (hidden > MAX_HIDDEN or carried > MAX_CARRIED):
                self.graph.refuse(
                    "output",
                    f"expected at most {MAX_HIDDEN} hidden units, got {hidden} or more, of which "
                    f"{carriers} carry values through layers; instead: fewer or smaller skip "
                    "connections",
                )
            layers.append((units[::-1], sorted(others, key=lambda v: v.number)))
        return layers[::-1]

    def rebuilt(self, value: Value, level: int, made: dict[Value, Value]) -> Value:
        """The value as an affine map of the units of a layer."""
        if isinstance(value, Input) and level == 0:
            return value
        if level > value.level and value not in self.by_arguments:
            plus, minus = self.graph.halves(value)
            return self.graph.add(made[plus], made[minus], value.where, -1.0)
        assert isinstance(value, Affine)
        parts = [(made[u], map_) for u, map_ in value.parts]
        return replace(value, number=self.graph.next_number(), level=level, parts=tuple(parts))

    def _is_unit(self, value: Value, level: int) -> bool:
        """Whether a layer has units for a value as it is: new ones, or carriers."""
        if level == value.level:
            return isinstance(value, Relu)
        return value.nonnegative and value not in self.by_arguments

    def _read(self, value: Value, level: int) -> list[Value]:
        """The values that an affine map reads in a layer."""
        if level > value.level and value not in self.by_arguments:
            return list(self.graph.halves(value))
        return [u for u, _ in value.parts] if isinstance(value, Affine) else []


def _reachable(output: Value) -> list[Value]:
    """All values that an output depends on, arguments first."""
    found = {output}
    stack = [output]
    while stack:
        value = stack.pop()
        arguments = [value.argument] if isinstance(value, Relu) else []
        if isinstance(value, Affine):
            arguments = [u for u, _ in value.parts]
        for argument in arguments:
            if argument not in found:
                found.add(argument)
                stack.append(argument)
    return sorted(found, key=lambda value: value.number)
