"""Affine maps of a layer's units on all cells: the twin of `reference.enumeration.next_maps`.

The pieces of a cell are in the order of a depth-first search, so the patterns of two that follow
each other differ in few units.  For each unit j that differs, ``V_{k+1}`` changes by column j of
``W_{k+1}`` times row j of ``V_k``.  These updates of rank one take the place of a product of
matrices.  A column of a convolution has few entries that are not 0.

The maps of many cells do not fit in memory together.  They are computed in blocks, out of those of
the layer before, whenever they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from refmmr.backends import threads
from refmmr.backends._numba.jit import strict_jit
from refmmr.backends._numba.layers import Buffers
from refmmr.reference import enumeration
from refmmr.reference.layers import Linear
from refmmr.reference.network import Network

BLOCK = 2**18
"""Numbers in the maps that a thread computes together (2 MB), so that they stay in the L2 cache."""

LARGE = 2**23
"""Numbers in a block of maps (64 MB) that the maps of the next layer are computed from."""

STORED = 2**27
"""If a layer's maps have no more numbers than this (1 GB), they are stored, not computed again."""

LEAST = 64
"""Fewest cells per thread, so that the work outweighs handing it to a thread."""

Work = Callable[[int, np.ndarray], object]
"""Called with the number of the first cell of a block, and the maps of its cells."""


class Columns(NamedTuple):
    """The columns of a sparse weight matrix: column j has ``weights[starts[j]:starts[j + 1]]``."""

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
        The cell that each piece is a part of, in order.
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
        """Those of the first layer, (1, n + 1, N_1), on the domain."""
        first = cls(net, 0, None, np.zeros(1, int), np.zeros((1, 0), np.uint64))
        first.stored, first.rows = maps, maps.shape[1]
        return first

    def for_each(self, work: Work) -> None:
        """Call ``work(start, maps)`` for the maps of all cells, block by block, in several threads.

        Parameters
        ----------
        work : callable
            Gets the number of a block's first cell, and the maps of its cells, (cells, n + 1, N_k),
            in memory that is used again afterwards.
        """
        if self.stored is not None:
            maps = self.stored
            threads.spread(lambda a, b: work(a, maps[a:b]), len(maps), least=LEAST)
            return
        stored = np.empty((len(self.parents), self.rows, self.size)) if self._fits else None
        for first, maps, begin, end in self._from_below():
            out = None if stored is None else stored[begin:end]
            self._compute(maps, first, begin, end, out, work)
        if stored is not None:
            self.stored, self.below = stored, None

    def all(self) -> np.ndarray:
        """The maps of all cells, (R, n + 1, N_k)."""
        if self.stored is None:
            stored = np.empty((len(self.parents), self.rows, self.size))
            for first, maps, begin, end in self._from_below():
                self._compute(maps, first, begin, end, stored[begin:end])
            self.stored, self.below = stored, None
        return self.stored

    @property
    def _fits(self) -> bool:
        """Whether the maps are stored."""
        return len(self.parents) * self.rows * self.size <= STORED

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The first cell of each large block, and the maps of its cells, until the next block."""
        if self._fits or self.stored is not None:
            yield 0, self.all()
            return
        step = max(1, LARGE // (self.rows * self.size))
        block = np.empty((min(step, len(self.parents)), self.rows, self.size))
        for first, maps, begin, end in self._from_below():
            for start in range(begin, end, step):
                stop = min(start + step, end)
                self._compute(maps, first, start, stop, block[: stop - start])
                yield start, block[: stop - start]

    def _from_below(self) -> Iterator[tuple[int, np.ndarray, int, int]]:
        """Blocks of the maps before, from cell `first` on, and the run of the pieces of these."""
        assert self.below is not None
        for first, maps in self.below._blocks():
            begin, end = np.searchsorted(self.parents, [first, first + len(maps)]).tolist()
            yield first, maps, begin, end

    def _compute(
        self,
        maps: np.ndarray,
        first: int,
        begin: int,
        end: int,
        out: np.ndarray | None,
        work: Work = lambda start, maps: None,
    ) -> None:
        """Compute the maps of the cells ``begin, ..., end - 1`` in several threads.

        Parameters
        ----------
        maps : ndarray, shape (cells, n + 1, N_{k-1})
            Of the layer before, from cell `first` on.
        first, begin, end : int
        out : ndarray, shape (end - begin, n + 1, N_k), or None
            Is filled in, if given.
        work : callable
            See `for_each`.
        """
        step = max(1, BLOCK // (self.rows * max(self.size, maps.shape[2])))
        columns = self._columns

        def run(a: int, b: int) -> None:
            buffers = Buffers(np.dtype(np.float64))
            for start in range(begin + a, begin + b, step):
                stop = min(start + step, begin + b)
                if out is None:
                    block = buffers.take("maps", stop - start, self.rows, self.size)
                else:
                    block = out[start - begin : stop - begin]
                parents, active = self.parents[start:stop] - first, self.active[start:stop]
                self._fill(block, maps, parents, active, columns, buffers)
                work(start, block)

        threads.spread(run, end - begin, least=LEAST)

    @cached_property
    def _columns(self) -> Columns | np.ndarray:
        """The transposed weights, (N_{k-1}, N_k), of a dense layer; else the sparse columns."""
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

    def _fill(self, out, maps, parents, active, columns, buffers):
        """Compute the maps of some pieces, given those of their parents and the active units."""
        # An update rounds twice, a product and a sum; the error bounds allow for this many.
        fresh = find_fresh(parents, active, enumeration.EXTRA_ROUNDINGS // 2)
        masked = buffers.take("masked", len(fresh), *maps.shape[1:])
        _mask(maps, parents[fresh], active[fresh], masked)
        if isinstance(columns, Columns):
            out[fresh] = enumeration.next_maps(self.net, self.layer - 1, masked)
            _update_sparse(maps, parents, active, columns, fresh, out)
            return
        # One product of matrices for all fresh maps.
        product = buffers.take("product", len(fresh), self.rows, self.size)
        np.matmul(masked.reshape(-1, masked.shape[2]), columns, out=product.reshape(-1, self.size))
        bias = self.net.affine_layers[self.layer].b
        _update_dense(maps, parents, active, columns, fresh, product, bias, out)


@strict_jit
def find_fresh(parents, active, max_updates):
    """The pieces whose map is computed by a product of matrices.

    They are the first piece of each cell, and each one that more than `max_updates` updates since
    the last such piece lead to.

    Parameters
    ----------
    parents : ndarray of int, shape (R,)
    active : ndarray of uint64, shape (R, words)
    max_updates : int

    Returns
    -------
    ndarray of int
        Their positions, rising.
    """
    fresh = np.empty(len(parents), np.int64)
    count = updates = 0
    for i in range(len(parents)):
        if i > 0 and parents[i] == parents[i - 1]:
            for word in range(active.shape[1]):
                changed = active[i, word] ^ active[i - 1, word]
                while changed:
                    changed &= changed - np.uint64(1)
                    updates += 1
            if updates <= max_updates:
                continue
        fresh[count] = i
        count, updates = count + 1, 0
    return fresh[:count]


@strict_jit
def _mask(maps, parents, active, masked):
    """``masked[i] = maps[parents[i]]``, (n + 1, N_k), with 0 for the units that are not active."""
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


@strict_jit
def _update_dense(maps, parents, active, columns, fresh, product, bias, out):
    """Fill in the maps of all pieces: the product if it is fresh, else the updated map before.

    Parameters
    ----------
    maps : ndarray, shape (cells, n + 1, N_{k-1})
    parents, active
        As in `find_fresh`.
    columns : ndarray, shape (N_{k-1}, N_k)
    fresh : ndarray of int, shape (f,)
    product : ndarray, shape (f, n + 1, N_k)
        Of the masked maps and the weights, without the bias.
    bias : ndarray, shape (N_k,)
    out : ndarray, shape (R, n + 1, N_k)
    """
    place, last = 0, out.shape[1] - 1
    for i in range(len(parents)):
        if place < len(fresh) and fresh[place] == i:
            out[i] = product[place]
            for j in range(len(bias)):
                out[i, last, j] += bias[j]
            place += 1
            continue
        out[i] = out[i - 1]
        for word in range(active.shape[1]):
            changed, j = active[i, word] ^ active[i - 1, word], 64 * word
            while changed:
                if changed & np.uint64(1):
                    on = (active[i, word] >> np.uint64(j & 63)) & np.uint64(1)
                    for row in range(maps.shape[1]):
                        factor = maps[parents[i], row, j]
                        _add(out[i, row], columns[j], factor if on else -factor)
                changed >>= np.uint64(1)
                j += 1


@strict_jit
def _add(total, column, factor):
    """``total += factor * column``."""
    for j in range(len(total)):
        total[j] += factor * column[j]


@strict_jit
def _update_sparse(maps, parents, active, columns, fresh, out):
    """As `_update_dense`, for `Columns` and with the fresh maps in `out` already."""
    place = 0
    for i in range(len(parents)):
        if place < len(fresh) and fresh[place] == i:
            place += 1
            continue
        out[i] = out[i - 1]
        for word in range(active.shape[1]):
            changed, j = active[i, word] ^ active[i - 1, word], 64 * word
            while changed:
                if changed & np.uint64(1):
                    on = (active[i, word] >> np.uint64(j & 63)) & np.uint64(1)
                    for row in range(maps.shape[1]):
                        factor = maps[parents[i], row, j]
                        factor = factor if on else -factor
                        for e in range(columns.starts[j], columns.starts[j + 1]):
                            out[i, row, columns.units[e]] += factor * columns.weights[e]
                changed >>= np.uint64(1)
                j += 1
