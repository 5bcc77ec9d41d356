"""The hyperplanes around each sample: values and norms of all hidden units and margins, and their rows.

The fast `refmmr.reference.distances.hyperplanes_around`.  Rows of V come from the *stem* (`affine`), and
are held for a few samples at a time only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refmmr.backends._numba import hyperplanes as in_box
from refmmr.backends._numba.affine import make_stem, weights_through_masks
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Trail, some_windows
from refmmr.backends._numba.layout import Layout, runs
from refmmr.reference.network import Network

CACHE = 2**21
"""Bytes of directions that are handled at a time; four times as many of rows."""


class Job:
    """What all threads share: the weights and the norms of the first layer's rows."""

    def __init__(self, net: Network, X: np.ndarray, p: float) -> None:
        self.p, self.count = p, len(X)
        self.layout = Layout(net, X)
        self.dtype = self.layout.dtype
        self.stem = make_stem(self.layout)
        self.n_classes, self.n_hidden = net.n_classes, net.n_hidden
        self.depth = len(self.layout.layers)
        # User's order: all channels of a position lie apart, see `Layout.units`.
        sizes = [layer.outputs for layer in self.layout.layers[:-1]]
        self.ends = np.cumsum([0, *sizes], dtype=int)
        # A row of V is worth a pass; so is each class's way back.
        self.least = max(4, self.layout.least(2 * net.n_classes))
        self.first_norms = np.zeros((1, 0), self.dtype)
        if sizes:
            rows = self.stem.patches(0)
            self.first_norms = self.layout.units(0, self.norms(0, rows).reshape(1, -1))

    def norms(self, k: int, rows: np.ndarray) -> np.ndarray:
        """Dual norms of the rows of hidden layer k: patches, or (c, N_k, d)."""
        return (column_norms if k < self.layout.n_convs else row_norms)(rows, self.p)


class Block(NamedTuple):
    """The forward pass of a block of samples; units in the user's order."""

    y: np.ndarray  # (n,)
    cache: Trail
    f: np.ndarray  # (n, N)
    margin: np.ndarray  # (n, K)


class Hyperplanes(NamedTuple):
    """The hyperplanes around some samples of a block; `rows` are in the layout of the passes."""

    f: np.ndarray  # (c, N)
    f_norms: np.ndarray  # (c, N)
    margin: np.ndarray  # (c, K)
    margin_norms: np.ndarray  # (c, K); 0 in the class's own column
    x: np.ndarray  # (c, d)
    rows: list[np.ndarray]  # per hidden layer behind the first: patches or (c, N_k, d)
    pairs: np.ndarray  # (c, K - 1, d): V_y - V_s for all rivals s in order


class Observer:
    """What one thread needs to look at hyperplanes: passes and memory of its own."""

    def __init__(self, job: Job) -> None:
        self.job, self.layout = job, job.layout
        self.passes = job.layout.passes()
        self.stem = job.stem.copy()
        self.buffers = self.passes.buffers

    def look(self, X: np.ndarray, y: np.ndarray) -> Block:
        """Forward pass of a block."""
        kept, cache = self.passes.pre_activations(self.layout.inputs(X))
        f = np.empty((len(X), self.job.n_hidden), self.job.dtype)
        for k, units in enumerate(kept):
            f[:, self.job.ends[k] : self.job.ends[k + 1]] = self.layout.units(k, units)
        logits = cache.logits
        return Block(y, cache, f, logits[np.arange(len(y)), y][:, None] - logits)

    def hyperplanes(self, block: Block) -> Iterator[tuple[slice, Hyperplanes]]:
        """The hyperplanes around all samples of a block, a few samples at a time."""
        for here in runs(0, len(block.y), self._samples_at_once()):
            masks = [mask[here] for mask in block.cache.masks]
            rows, pairs = self._rows(masks, block.y[here])
            n, norms = len(block.y[here]), [self.job.first_norms]
            for k, row in enumerate(rows, start=1):
                norms.append(self.layout.units(k, self.job.norms(k, row).reshape(n, -1)))
            f_norms = np.concatenate([np.broadcast_to(q, (n, q.shape[1])) for q in norms], axis=1)
            margin_norms = _among_rivals(row_norms(pairs, self.job.p), block.y[here])
            x = block.cache.inputs[0][here]
            yield (
                here,
                Hyperplanes(
                    block.f[here], f_norms, block.margin[here], margin_norms, x, rows, pairs
                ),
            )

    def _samples_at_once(self) -> int:
        """As many as fit into the cache with their rows; convolutions' rows weigh most."""
        layers = self.layout.layers
        d = layers[0].inputs
        numbers = (self.job.n_classes - 1) * (d + layers[-1].inputs)
        for k in range(1, self.job.depth - 1):
            if k < self.layout.n_convs:
                numbers += layers[k].outputs * len(self.stem.pixels[k])
            else:
                numbers += layers[k].outputs * (d + layers[k].inputs)
        return max(1, 4 * CACHE // (max(1, numbers) * self.job.dtype.itemsize))

    def _rows(self, masks, y):
        """Rows of the hidden layers behind the first, and of all pairs of classes."""
        depth, stem = self.job.depth, self.stem
        n = len(y)
        rows = stem.linearize(masks) if masks else []
        V = None
        for k in range(stem.depth if masks else 1, depth - 1):
            W = self.layout.layers[k].W
            if V is None:
                V = stem.through_masks(masks[k - 1], ("rows", k))
            else:
                coefficients = self.buffers.take(("coefficients", k), n, *W.shape)
                weights_through_masks(W, masks[k - 1], coefficients)
                V = np.matmul(
                    coefficients, V, out=self.buffers.take(("rows", k), n, len(W), V.shape[2])
                )
            rows.append(V)
        W = self.layout.layers[-1].W
        pairs = self.buffers.take("pairs", n, len(W) - 1, W.shape[1])
        if not masks:  # no hidden layer: the weights are the rows
            _pair_weights(W, y, np.ones((n, W.shape[1]), bool), pairs)
            return rows, pairs
        _pair_weights(W, y, masks[-1], pairs)
        if V is None:
            return rows, stem.multiply(pairs, "pair rows")
        out = self.buffers.take("pair rows", n, len(W) - 1, V.shape[2])
        return rows, np.matmul(pairs, V, out=out)

    def in_box(
        self, hyperplanes: Hyperplanes, y: np.ndarray, box: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distances within a box of shapes (d,): to units (c, N), in the user's order, and rivals.

        Those to the rivals are (c, K), 0 in the class's own column.
        """
        p = self.job.p
        sides = [hyperplanes.x, *(np.broadcast_to(side, hyperplanes.x.shape) for side in box)]
        boundary = np.empty_like(hyperplanes.f)
        layers = [self.stem.patches(0), *hyperplanes.rows] if self.job.n_hidden else []
        for k, rows in enumerate(layers):
            here = slice(self.job.ends[k], self.job.ends[k + 1])
            f = self.layout.units_back(k, hyperplanes.f[:, here])
            rows, x, lo, hi = self._in_view(k, rows, sides)
            found = in_box.distances(rows, x, f.reshape(len(x), -1), lo, hi, p)
            boundary[:, here] = np.abs(self.layout.units(k, found.reshape(len(f), -1)))
        margin = np.take_along_axis(hyperplanes.margin, _rivals(y, self.job.n_classes), axis=1)
        x, lo, hi = sides
        return boundary, _among_rivals(in_box.distances(hyperplanes.pairs, x, margin, lo, hi, p), y)

    def _in_view(self, k, rows, sides):
        """Rows of a layer (q, u, m), and the numbers of points and box that they read, (q, m)."""
        n = len(sides[0])
        rows = np.broadcast_to(rows, (n, *rows.shape[1:]))
        if k >= self.layout.n_convs:
            return rows, *sides
        field = self.stem.fields[k][0]
        positions = np.tile(np.arange(field.positions), n)
        samples = np.repeat(np.arange(n), field.positions)
        usual = np.argsort(self.stem.pixels[k])
        rows = rows[:, :, usual].reshape(-1, *rows.shape[2:]).swapaxes(1, 2)
        return rows, *(some_windows(side, samples, positions, field) for side in sides)


def _rivals(y: np.ndarray, n_classes: int) -> np.ndarray:
    """The other classes of each sample, (n, K - 1)."""
    rivals = np.arange(n_classes - 1)[None]
    return rivals + (rivals >= y[:, None])


def _among_rivals(values: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of the rivals (n, K - 1) in their columns, 0 in the class's own: (n, K)."""
    full = np.zeros((len(y), values.shape[1] + 1), values.dtype)
    np.put_along_axis(full, _rivals(y, full.shape[1]), values, axis=1)
    return full


def row_norms(rows: np.ndarray, p: float) -> np.ndarray:
    """Dual norms of rows, (..., m) to (...)."""
    norms = np.empty(rows.shape[:-1], rows.dtype)
    _row_norms(np.ascontiguousarray(rows).reshape(-1, rows.shape[-1]), p, norms.reshape(-1))
    return norms


def column_norms(columns: np.ndarray, p: float) -> np.ndarray:
    """Dual norms of columns, (..., m, u) to (..., u)."""
    norms = np.zeros((*columns.shape[:-2], columns.shape[-1]), columns.dtype)
    _column_norms(columns.reshape(-1, *columns.shape[-2:]), p, norms.reshape(-1, norms.shape[-1]))
    return norms


def pick(
    hyperplanes: Hyperplanes,
    gammas: tuple[float, float],
    counts: tuple[int, int],
    values: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The hyperplanes whose hinge is active, (c, N) and (c, K) bool; the two terms go into `values`."""
    boundary, decision = (np.zeros(m.shape, bool) for m in (hyperplanes.f, hyperplanes.margin))
    _nearest(np.abs(hyperplanes.f), hyperplanes.f_norms, gammas[0], counts[0], boundary, values[0])
    _nearest(
        hyperplanes.margin, hyperplanes.margin_norms, gammas[1], counts[1], decision, values[1]
    )
    return boundary, decision


@jit
def _row_norms(rows, p, norms):
    for r in range(len(rows)):
        row = rows[r]
        total = rows.dtype.type(0)
        if p == 2:
            for j in range(len(row)):
                total += row[j] * row[j]
            total = np.sqrt(total)
        elif p == 1:
            for j in range(len(row)):
                total = max(total, abs(row[j]))
        else:
            for j in range(len(row)):
                total += abs(row[j])
        norms[r] = total


@jit
def _column_norms(columns, p, norms):
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
                norm[u] = np.sqrt(norm[u])


@jit
def _pair_weights(W, y, masks, out):
    """out[i, t] = (W[y_i] - W[s]) * masks[i], s the t-th rival of y_i."""
    for i in range(len(masks)):
        own = W[y[i]]
        for t in range(len(W) - 1):
            other = W[t + (t >= y[i])]
            for j in range(W.shape[1]):
                out[i, t, j] = own[j] - other[j] if masks[i, j] else 0


@jit
def _nearest(values, norms, gamma, k, picked, terms):
    """The k nearest of the hyperplanes nearer than gamma, the first of equals; the mean of their hinges.

    Only a hyperplane nearer than gamma can count, so the k nearest are looked for among those alone.
    """
    n, m = values.shape
    gamma = values.dtype.type(gamma)
    d = np.empty(m, values.dtype)
    near = np.empty(m, values.dtype)
    for i in range(n):
        count = 0
        for j in range(m):
            d[j] = values[i, j] / norms[i, j] if norms[i, j] > 0 else np.inf
            if d[j] == -np.inf:
                d[j] = np.inf  # so far on the wrong side that there is no hyperplane
            near[count] = d[j]
            count += d[j] < gamma
        total = values.dtype.type(0)
        if count > 0:
            last = near[:count].max() if count <= k else np.partition(near[:count], k - 1)[k - 1]
            below = 0
            for j in range(m):
                below += d[j] < last
            equals = k - below
            for j in range(m):
                if d[j] < last or (d[j] == last and equals > 0):
                    equals -= d[j] == last
                    picked[i, j] = True
                    total += max(0, 1 - d[j] / gamma)
        terms[i] = total / k
