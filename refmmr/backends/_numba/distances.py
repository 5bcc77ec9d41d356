"""The hyperplanes around each sample and their distances: twins of `refmmr.reference.distances`.

Around x, unit i of layer k is the affine function ``f + <v, z - x>`` with v row i of V_k; its zeros
are the unit's hyperplane, at distance ``|f| / ||v||_q``.  All f come from one forward pass of a
block of samples.  The rows are larger, d numbers for each unit and sample.  So they are computed
for a few samples at a time (`ROW_BYTES`), reduced to their norms while they are in the cache, and
overwritten by those of the next samples:

- layers of the stem: see `affine`;
- layers behind it: ``V_k = (W_k diag(s_{k-1})) V_{k-1}``, a product for each sample;
- the last layer: only the rows of the pairs of classes, ``V_y - V_s``, are needed.  The weights of
  the pairs, ``(W_y - W_s) diag(s_L)``, of shape (samples * (K - 1), units), are multiplied by the
  rows of the layer before: behind a dense stem one product for all pairs of all samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.affine import make_stem, mask_rows
from refmmr.backends._numba.hyperplanes import distances_in_box
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import some_windows
from refmmr.backends._numba.layout import Layout, runs
from refmmr.backends._numba.network import BLOCK, ForwardCache, Passes
from refmmr.reference import distances as reference
from refmmr.reference.distances import Distances
from refmmr.reference.network import Network

ROW_BYTES = 2**23
"""Bytes of rows that are computed at a time.

With fewer than 2**21 the products have too few rows; more than 2**23 saves no time (measured on FC1
and on the convolutional network of the paper, with 1 MB of L2 cache a core).
"""
MIN_SAMPLES = 4
"""Samples of a thread at least: fewer do not pay for its memory."""


@implements("numba", reference.distances)
def distances(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None = None,
) -> Distances:
    """Twin of `refmmr.reference.distances.distances`."""
    shared = Shared(net, X, p)
    dtype, bounds = shared.dtype, None if box is None else shared.layout.input_bounds(box)
    result = Distances(
        np.empty((len(X), net.n_hidden), dtype), np.empty((len(X), net.n_classes), dtype)
    )

    def part(start: int, stop: int) -> None:
        worker = HyperplaneWorker(shared)
        for rows in runs(start, stop, BLOCK):
            labels = y[rows]
            for here, hyperplanes in worker.hyperplanes_around(worker.forward(X[rows], labels)):
                boundary, decision = (array[rows][here] for array in result)
                if bounds is None:
                    _divide(np.abs(hyperplanes.f), hyperplanes.f_norms[0], boundary)
                    _divide(hyperplanes.margin, hyperplanes.margin_norms[0], decision)
                else:
                    boundary[:], decision[:] = worker.in_box(hyperplanes, labels[here], bounds)
                decision[np.arange(len(decision)), labels[here]] = np.inf

    threads.spread(part, len(X), least=shared.samples_per_thread)
    return result


class Shared:
    """What all threads read: the network, and the rows of its first layer.

    Distances are measured in one norm or in several, from the same rows.

    Attributes
    ----------
    ps : tuple of float
        The p of each norm.
    first_rows : ndarray
        Rows of the first layer; for the border rule "full-filter" its full filters, so that the
        positions at the border are as those inside (`refmmr.reference.border`).
    first_norms : ndarray, shape (norms, 1, N_1)
        Their dual norms.
    """

    def __init__(self, net: Network, X: np.ndarray, *ps: float, border: str = "exact") -> None:
        self.ps, self.n_samples = ps, len(X)
        self.n_classes, self.n_hidden = net.n_classes, net.n_hidden
        self.unit_slices = net.unit_slices
        self.layout = Layout(net, X)
        self.dtype = self.layout.dtype
        self.depth = len(self.layout.layers)
        self.stem = make_stem(self.layout)
        # The row of a pair of classes costs about a forward pass, its gradient a backward pass.
        passes = 2 * net.n_classes
        self.samples_per_thread = max(MIN_SAMPLES, self.layout.samples_per_thread(passes))
        self.first_norms = np.zeros((len(ps), 1, 0), self.dtype)
        if net.n_hidden:
            self.first_rows = self.stem.first_rows()
            if border == "full-filter" and self.layout.n_convs:
                filters = self.layout.layers[0].W.T
                self.first_rows = np.broadcast_to(filters, self.first_rows.shape).copy()
            self.first_norms = self.unit_norms(0, self.norms(0, self.first_rows))

    def norms(self, k: int, rows: np.ndarray) -> np.ndarray:
        """Dual norms of the rows of hidden layer k: patches, or (c, N_k, d); (norms, c, ...)."""
        measure = column_norms if k < self.layout.n_convs else row_norms
        return np.stack([measure(rows, p) for p in self.ps])

    def unit_norms(self, k: int, norms: np.ndarray) -> np.ndarray:
        """The result of `norms` in the user's order of the units, (norms, c, N_k)."""
        flat = norms.reshape(norms.shape[0] * norms.shape[1], -1)
        return self.layout.units(k, flat).reshape(*norms.shape[:2], -1)


class Block(NamedTuple):
    """The forward pass of a block of samples; units in the user's order."""

    y: np.ndarray  # (n,)
    cache: ForwardCache
    f: np.ndarray  # (n, N)
    margin: np.ndarray  # (n, K)


class Hyperplanes(NamedTuple):
    """The hyperplanes around c samples of a block; f and norms in the user's order.

    Twin of `reference.distances.Hyperplanes`.
    """

    f: np.ndarray  # (c, N)
    f_norms: np.ndarray  # (norms, c, N)
    margin: np.ndarray  # (c, K)
    margin_norms: np.ndarray  # (norms, c, K); 0 in the class's own column
    x: np.ndarray  # (c, d)
    rows: list[np.ndarray]  # per hidden layer behind the first: patches, or (c, N_k, d)
    pairs: np.ndarray  # (c, K - 1, d): V_y - V_s for all rivals s in order


class HyperplaneWorker:
    """Computes hyperplanes, with the memory of one thread."""

    def __init__(self, shared: Shared) -> None:
        self.shared, self.layout = shared, shared.layout
        self.passes = Passes(shared.layout.layers, shared.dtype)
        self.stem = shared.stem.copy()
        self.buffers = self.passes.buffers

    def forward(self, X: np.ndarray, y: np.ndarray) -> Block:
        """The forward pass of a block, in the user's shape (n, *input_shape)."""
        cache = self.passes.forward(self.layout.inputs(X), pre_activations=True)
        f = np.empty((len(X), self.shared.n_hidden), self.shared.dtype)
        for k, units in enumerate(self.shared.unit_slices):
            f[:, units] = self.layout.units(k, cache.pre_activations[k])
        margin = cache.logits[np.arange(len(y)), y][:, None] - cache.logits
        return Block(y, cache, f, margin)

    def hyperplanes_around(self, block: Block) -> Iterator[tuple[slice, Hyperplanes]]:
        """The hyperplanes around all samples of a block, a few samples at a time.

        Twin of `reference.distances.hyperplanes_around`.  The next ones overwrite the rows.
        """
        for here in runs(0, len(block.y), self._samples_at_once()):
            y, f = block.y[here], block.f[here]
            rows, pairs = self._rows([mask[here] for mask in block.cache.masks], y)
            f_norms = np.empty((len(self.shared.ps), *f.shape), f.dtype)
            for k, units in enumerate(self.shared.unit_slices):
                f_norms[:, :, units] = self.shared.first_norms if k == 0 else (
                    self.shared.unit_norms(k, self.shared.norms(k, rows[k - 1]))
                )  # fmt: skip
            margin_norms = np.stack([_to_columns(row_norms(pairs, p), y) for p in self.shared.ps])
            x, margin = block.cache.inputs[0][here], block.margin[here]
            yield here, Hyperplanes(f, f_norms, margin, margin_norms, x, rows, pairs)

    def _samples_at_once(self) -> int:
        """Samples whose rows are within `ROW_BYTES`, coefficients included."""
        layers = self.layout.layers
        d = layers[0].inputs
        numbers = (self.shared.n_classes - 1) * (d + layers[-1].inputs)
        for k in range(1, self.shared.depth - 1):
            if k < self.layout.n_convs:
                numbers += layers[k].outputs * len(self.stem.orders[k])
            else:
                numbers += layers[k].outputs * (d + layers[k].inputs)
        return max(1, ROW_BYTES // (max(1, numbers) * self.shared.dtype.itemsize))

    def _rows(self, masks, y):
        """Rows of the hidden layers behind the first, and (c, K - 1, d) of the pairs of classes."""
        stem, n = self.stem, len(y)
        W = self.layout.layers[-1].W
        pairs = self.buffers.take("pairs", n, len(W) - 1, W.shape[1])
        if not masks:  # without hidden layers the weights are the rows
            _pair_weights(W, y, np.ones((n, W.shape[1]), bool), pairs)
            return [], pairs
        rows, V = stem.compute_rows(masks), None
        for k in range(stem.depth, self.shared.depth - 1):
            if V is None:
                V = stem.next_rows(masks[k - 1], ("rows", k))
            else:
                W_k = self.layout.layers[k].W
                coefficients = self.buffers.take(("coefficients", k), n, *W_k.shape)
                mask_rows(W_k, masks[k - 1], coefficients)
                out = self.buffers.take(("rows", k), n, len(W_k), V.shape[2])
                V = np.matmul(coefficients, V, out=out)
            rows.append(V)
        _pair_weights(W, y, masks[-1], pairs)
        if V is None:
            return rows, stem.combine(pairs, "pair rows")
        out = self.buffers.take("pair rows", n, len(W) - 1, V.shape[2])
        return rows, np.matmul(pairs, V, out=out)

    def in_box(
        self, hyperplanes: Hyperplanes, y: np.ndarray, box: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distances in a box, (d,) each: (c, N) of the units in the user's order, and (c, K).

        The latter have the sign of the margin, and 0 in the class's own column.
        """
        (p,), x = self.shared.ps, hyperplanes.x
        points = [x, *(np.broadcast_to(bound, x.shape) for bound in box)]
        boundary = np.empty_like(hyperplanes.f)
        layers = [self.stem.first_rows(), *hyperplanes.rows] if self.shared.n_hidden else []
        for k, (rows, units) in enumerate(zip(layers, self.shared.unit_slices, strict=True)):
            f = self.layout.units_back(k, hyperplanes.f[:, units])
            rows, x, lo, hi = self._rows_and_inputs(k, rows, points)
            found = distances_in_box(rows, x, f.reshape(len(x), -1), lo, hi, p)
            boundary[:, units] = np.abs(self.layout.units(k, found.reshape(len(f), -1)))
        margin = np.take_along_axis(hyperplanes.margin, _rivals(y, self.shared.n_classes), axis=1)
        x, lo, hi = points
        return boundary, _to_columns(distances_in_box(hyperplanes.pairs, x, margin, lo, hi, p), y)

    def _rows_and_inputs(self, k, rows, points):
        """Rows of layer k, (q, u, m), and the inputs that they read of all points, (q, m) each.

        For a convolution q counts samples and positions, u channels, and m is its receptive field.
        """
        n = len(points[0])
        rows = np.broadcast_to(rows, (n, *rows.shape[1:]))
        if k >= self.layout.n_convs:
            return rows, *points
        field = self.stem.fields[k][0]
        positions = np.tile(np.arange(field.positions), n)
        samples = np.repeat(np.arange(n), field.positions)
        rows = rows[:, :, np.argsort(self.stem.orders[k])]
        rows = rows.reshape(-1, *rows.shape[2:]).swapaxes(1, 2)
        return rows, *(some_windows(point, samples, positions, field) for point in points)


def _rivals(y: np.ndarray, n_classes: int) -> np.ndarray:
    """The other classes of each sample, (n, K - 1)."""
    rivals = np.arange(n_classes - 1)[None]
    return rivals + (rivals >= y[:, None])


def _to_columns(values: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of the rivals, (n, K - 1), in their columns of (n, K); 0 in the class's own."""
    full = np.zeros((len(y), values.shape[1] + 1), values.dtype)
    np.put_along_axis(full, _rivals(y, full.shape[1]), values, axis=1)
    return full


def row_norms(rows: np.ndarray, p: float) -> np.ndarray:
    """Dual norms of rows: (..., m) to (...)."""
    norms, flat = np.empty(rows.shape[:-1], rows.dtype), np.ascontiguousarray(rows)
    _row_norms(flat.reshape(-1, rows.shape[-1]), p, _smallest(rows), norms.reshape(-1))
    return norms


def column_norms(columns: np.ndarray, p: float) -> np.ndarray:
    """Dual norms of columns: (..., m, u) to (..., u)."""
    norms = np.zeros((*columns.shape[:-2], columns.shape[-1]), columns.dtype)
    flat = columns.reshape(-1, *columns.shape[-2:])
    _column_norms(flat, p, _smallest(columns), norms.reshape(-1, norms.shape[-1]))
    return norms


def _smallest(array: np.ndarray) -> np.floating:
    """The smallest length whose square is far above squares that underflow."""
    number = np.finfo(array.dtype)
    return np.sqrt(number.tiny) / number.eps


@jit
def _length(row, length, smallest):
    """``||row||_2``; `length` is the plain value, kept unless squares underflow or overflow."""
    if smallest <= length < np.inf:
        return length
    largest = row.dtype.type(0)
    for j in range(len(row)):
        largest = max(largest, abs(row[j]))
    if not 0 < largest < np.inf:
        return length
    total = row.dtype.type(0)
    for j in range(len(row)):
        total += (row[j] / largest) * (row[j] / largest)
    return largest * np.sqrt(total)


@jit
def _row_norms(rows, p, smallest, norms):
    """Twin of `hyperplanes.dual_norm` along the last axis: rows (r, m), norms (r,), the result.

    smallest: a number, see `_smallest`.
    """
    for r in range(len(rows)):
        row = rows[r]
        total = rows.dtype.type(0)
        if p == 2:
            for j in range(len(row)):
                total += row[j] * row[j]
            total = _length(row, np.sqrt(total), smallest)
        elif p == 1:
            for j in range(len(row)):
                total = max(total, abs(row[j]))
        else:
            for j in range(len(row)):
                total += abs(row[j])
        norms[r] = total


@jit
def _column_norms(columns, p, smallest, norms):
    """The same along the last axis but one: columns (r, m, u), norms (r, u), 0 before."""
    for n in range(len(columns)):
        norm = norms[n]
        for j in range(columns.shape[1]):
            row = columns[n, j]
            if p == 2:
                for u in range(len(row)):
                    norm[u] += row[u] * row[u]
            elif p == 1:
                for u in range(len(row)):
                    norm[u] = max(norm[u], abs(row[u]))
            else:
                for u in range(len(row)):
                    norm[u] += abs(row[u])
        if p == 2:
            for u in range(len(norm)):
                norm[u] = _length(columns[n, :, u], np.sqrt(norm[u]), smallest)


@jit
def _pair_weights(W, y, masks, out):
    """``(W[y] - W[s]) diag(mask)`` for each sample and rival s, the first step back of a margin.

    W: (K, m), of the last layer.  y: (c,).  masks: (c, m), before it.  out: (c, K - 1, m), the
    result.
    """
    for i in range(len(masks)):
        own = W[y[i]]
        for t in range(len(W) - 1):
            other = W[t + (t >= y[i])]
            for j in range(W.shape[1]):
                out[i, t, j] = own[j] - other[j] if masks[i, j] else 0


@jit
def _divide(values, norms, out):
    """Twin of `hyperplanes.hyperplane_distance`: all arrays are (n, m), out the result."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if norms[i, j] > 0:
                out[i, j] = values[i, j] / norms[i, j]
            else:
                out[i, j] = -np.inf if values[i, j] < 0 else np.inf
