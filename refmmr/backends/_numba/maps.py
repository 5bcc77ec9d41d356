"""Affine maps of a layer's units on all cells, compiled: each made out of that of the cell before.

Pieces of one cell follow each other in the order of a depth-first search, so few units switch from
one to the next.  Where unit j does, the map of the next layer changes by column j of its weights
times row j of the map of this layer, a product of rank one, instead of a product of matrices.  A
column of a convolution has few entries that are not 0.

Maps of many cells would fill the memory; they are made again whenever they are gone through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from refmmr.backends import threads
from refmmr.reference import enumeration
from refmmr.reference.layers import Linear
from refmmr.reference.network import Network

# Without fastmath no product and sum are fused: each rounds as in NumPy.
_jit = njit(cache=True, nogil=True, error_model="numpy")

BLOCK = 2**18
"""Numbers in the maps that are made together: so few that they stay in the cache."""

LARGE = 2**23
"""Numbers in those that are in memory for the layer above."""

STORED = 2**27
"""So many numbers are kept instead of made again."""

LEAST = 64
"""Cells that are worth a thread."""

Work = Callable[[int, np.ndarray], object]


class Columns(NamedTuple):
    """Weights of a layer by input unit: column j has ``weights[starts[j]:starts[j + 1]]``."""

    starts: np.ndarray  # (N_k + 1,) int
    units: np.ndarray  # (entries,) int: the output unit of each weight
    weights: np.ndarray  # (entries,)


class Maps:
    """The maps of a layer's pre-activations on its cells.

    Parameters
    ----------
    net : Network
    layer : int
        Position of the layer among those with weights.
    below : Maps
        Those of the layer before, on the cells that were cut.
    parents : ndarray of int, shape (R,)
        The cell that each piece is of; not falling.
    active : ndarray of uint64, shape (R, words)
        Bit j says that unit j of the layer before is active on the piece.
    """

    def __init__(
        self, net: Network, layer: int, below: Maps | None, parents: np.ndarray, active: np.ndarray
    ) -> None:
        self.net, self.layer, self.below = net, layer, below
        self.parents, self.active = parents, active
        self.size = int(np.prod((*net.unit_shapes, net.shapes[-1])[layer]))
        self.rows: int = 0 if below is None else below.rows
        self.stored: np.ndarray | None = None

    @classmethod
    def first(cls, net: Network, maps: np.ndarray) -> Maps:
        """Those of the first layer, (1, n + 1, N_1)."""
        made = cls(net, 0, None, np.zeros(1, int), np.zeros((1, 0), np.uint64))
        made.stored, made.rows = maps, maps.shape[1]
        return made

    def for_each(self, work: Work = lambda start, maps: None) -> None:
        """Call ``work(start, maps)`` for the maps of all cells, block by block, in several threads.

        `start` is the number of the block's first cell, `maps` (cells, n + 1, N_k) are void after.
        """
        if self.stored is not None:
            stored = self.stored
            threads.spread(lambda a, b: work(a, stored[a:b]), len(stored), least=LEAST)
            return
        keep = self._kept
        kept = np.empty((len(self.parents), self.rows, self.size)) if keep else None
        for first, maps, begin, end in self._from_below():
            made = None if kept is None else kept[begin:end]
            self._make(maps, first, begin, end, made, work)
        if kept is not None:
            self.stored, self.below = kept, None

    def all(self) -> np.ndarray:
        """The maps of all cells, (R, n + 1, N_k)."""
        if self.stored is None:
            made = np.empty((len(self.parents), self.rows, self.size))
            for first, maps, begin, end in self._from_below():
                self._make(maps, first, begin, end, made[begin:end])
            self.stored, self.below = made, None
        return self.stored

    @property
    def _kept(self) -> bool:
        """Whether there are few enough to be kept."""
        return len(self.parents) * self.rows * self.size <= STORED

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The first cell of each large block, and the maps of its cells, void at the next block."""
        if self._kept or self.stored is not None:
            yield 0, self.all()
            return
        step = max(1, LARGE // (self.rows * self.size))
        made = np.empty((min(step, len(self.parents)), self.rows, self.size))
        for first, maps, begin, end in self._from_below():
            for start in range(begin, end, step):
                stop = min(start + step, end)
                self._make(maps, first, start, stop, made[: stop - start])
                yield start, made[: stop - start]

    def _from_below(self) -> Iterator[tuple[int, np.ndarray, int, int]]:
        """Maps of runs of parents, from cell `first` on, and the run of their pieces."""
        assert self.below is not None
        for first, maps in self.below._blocks():
            begin, end = np.searchsorted(self.parents, [first, first + len(maps)]).tolist()
            yield first, maps, begin, end

    def _make(
        self,
        maps: np.ndarray,
        first: int,
        begin: int,
        end: int,
        made: np.ndarray | None,
        work: Work = lambda start, maps: None,
    ) -> None:
        """Make the maps of the cells ``begin, ..., end - 1``, in `made` or in memory used again."""
        step = max(1, BLOCK // (self.rows * max(self.size, maps.shape[2])))
        columns = self._columns

        def run(a: int, b: int) -> None:
            spare = Spare()
            for start in range(begin + a, begin + b, step):
                stop = min(start + step, begin + b)
                if made is None:
                    block = spare.array("maps", (stop - start, self.rows, self.size))
                else:
                    block = made[start - begin : stop - begin]
                parents, active = self.parents[start:stop] - first, self.active[start:stop]
                self._fill(block, maps, parents, active, columns, spare)
                work(start, block)

        threads.spread(run, end - begin, least=LEAST)

    @cached_property
    def _columns(self) -> Columns | np.ndarray:
        """The layer's weights by input unit: a matrix if it is dense."""
        *_, layer = self.net.layers[: self.net.affine[self.layer] + 1]
        if isinstance(layer, Linear):
            return np.ascontiguousarray(layer.W.T)
        shape = self.net.unit_shapes[self.layer - 1]
        n_units = int(np.prod(shape))
        counts, units, weights = [np.zeros(1, int)], [], []
        for first in range(0, n_units, 256):
            basis = np.eye(min(256, n_units - first), n_units, first)
            rows = layer.linear(basis.reshape(-1, *shape)).reshape(len(basis), -1)
            counts.append((rows != 0).sum(axis=1))
            units.append(np.nonzero(rows)[1])
            weights.append(rows[rows != 0])
        starts = np.cumsum(np.concatenate(counts))
        return Columns(starts, np.concatenate(units), np.concatenate(weights))

    def _fill(self, made, maps, parents, active, columns, spare):
        """Make the maps of some cells, given those of their parents and which units are active."""
        # A map may be updated so often before the bounds on rounding errors are void.
        fresh = _fresh(parents, active, enumeration.EXTRA_ROUNDINGS // 2)
        masked = spare.array("masked", (len(fresh), *maps.shape[1:]))
        _mask(maps, parents[fresh], active[fresh], masked)
        if isinstance(columns, Columns):
            made[fresh] = enumeration.next_maps(self.net, self.layer - 1, masked)
            _update_few(maps, parents, active, columns, fresh, made)
            return
        # One product of matrices, not one for each cell.
        product = spare.array("product", (len(fresh), self.rows, self.size))
        np.matmul(masked.reshape(-1, masked.shape[2]), columns, out=product.reshape(-1, self.size))
        bias = self.net.affine_layers[self.layer].b
        _update(maps, parents, active, columns, fresh, product, bias, made)


class Spare:
    """Memory that is used again, so that it need not be asked for and cleared each time."""

    def __init__(self) -> None:
        self.memory: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array of a shape, with anything in it; void when the name is asked for again."""
        size = math.prod(shape)
        if name not in self.memory or len(self.memory[name]) < size:
            self.memory[name] = np.empty(size)
        return self.memory[name][:size].reshape(shape)


@_jit
def _fresh(parents, active, most):
    """Pieces whose map is made from nothing: the first of a cell, and then after `most` updates."""
    found = np.empty(len(parents), np.int64)
    count = updates = 0
    for i in range(len(parents)):
        if i > 0 and parents[i] == parents[i - 1]:
            for word in range(active.shape[1]):
                changed = active[i, word] ^ active[i - 1, word]
                while changed:
                    changed &= changed - np.uint64(1)
                    updates += 1
            if updates <= most:
                continue
        found[count] = i
        count, updates = count + 1, 0
    return found[:count]


@_jit
def _mask(maps, parents, active, masked):
    """Maps of cells, with 0 for the units that are not active."""
    n_units = maps.shape[2]
    mask = np.empty(n_units)
    for i in range(len(parents)):
        for word in range(active.shape[1]):
            bits = active[i, word]
            for j in range(64 * word, min(64 * word + 64, n_units)):
                mask[j] = np.float64((bits >> np.uint64(j & 63)) & np.uint64(1))
        for row in range(maps.shape[1]):
            source, target = maps[parents[i], row], masked[i, row]
            for j in range(n_units):
                target[j] = source[j] * mask[j]


@_jit
def _update(maps, parents, active, columns, fresh, product, bias, made):
    """Fill in the maps of all pieces: a product if they are fresh, else by the piece before."""
    place, last = 0, made.shape[1] - 1
    for i in range(len(parents)):
        if place < len(fresh) and fresh[place] == i:
            made[i] = product[place]
            for j in range(len(bias)):
                made[i, last, j] += bias[j]
            place += 1
            continue
        made[i] = made[i - 1]
        for word in range(active.shape[1]):
            changed, j = active[i, word] ^ active[i - 1, word], 64 * word
            while changed:
                if changed & np.uint64(1):
                    on = (active[i, word] >> np.uint64(j & 63)) & np.uint64(1)
                    for row in range(maps.shape[1]):
                        factor = maps[parents[i], row, j]
                        _add(made[i, row], columns[j], factor if on else -factor)
                changed >>= np.uint64(1)
                j += 1


@_jit
def _add(total, column, factor):
    for j in range(len(total)):
        total[j] += factor * column[j]


@_jit
def _update_few(maps, parents, active, columns, fresh, made):
    """Fill in the maps of all pieces that are not fresh, where columns have few entries."""
    place = 0
    for i in range(len(parents)):
        if place < len(fresh) and fresh[place] == i:
            place += 1
            continue
        made[i] = made[i - 1]
        for word in range(active.shape[1]):
            changed, j = active[i, word] ^ active[i - 1, word], 64 * word
            while changed:
                if changed & np.uint64(1):
                    on = (active[i, word] >> np.uint64(j & 63)) & np.uint64(1)
                    for row in range(maps.shape[1]):
                        factor = maps[parents[i], row, j]
                        factor = factor if on else -factor
                        for e in range(columns.starts[j], columns.starts[j + 1]):
                            made[i, row, columns.units[e]] += factor * columns.weights[e]
                changed >>= np.uint64(1)
                j += 1
