"""Distances, and MMR with its gradient: twins of `reference.distances` and `reference.mmr`.

Values come from the rows of V (`fronts`).  The gradient is low-rank: only walls whose hinge is
active have one, and for each of them, with G its gradient to the wall's row v in R^d, ``<G, v>`` is
what comes out at the wall's unit when the *direction* G is pushed through the frozen network.  So
it is an ordinary backprop of a batch of directions, one for each active wall; no array of shape
(n, d, units) is ever made.

Samples are dealt with in blocks that stay in cache, and the blocks spread over threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numba
import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba import boxes
from refmmr.backends._numba.fronts import make_front, some_windows, weights_through_masks
from refmmr.backends._numba.passes import Layout, Passes, Trail
from refmmr.reference import distances as reference_distances
from refmmr.reference import mmr as reference_mmr
from refmmr.reference.distances import Distances
from refmmr.reference.mmr import MMR
from refmmr.reference.network import Gradients, Network

_jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})

BLOCK = 32
"""Samples whose forward passes are kept at a time."""
CACHE = 2**20
"""Bytes of rows or directions that are handled at a time."""


@implements("numba", reference_distances.distances)
def distances(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None = None,
) -> Distances:
    """Twin of `refmmr.reference.distances.distances`."""
    job = _Job(net, X, p)
    result = Distances(
        np.empty((len(X), net.n_hidden), job.dtype), np.empty((len(X), net.n_classes), job.dtype)
    )
    if box is not None:
        sides = (np.broadcast_to(side, net.input_shape)[None] for side in box)
        box = tuple(job.layout.inputs(side)[0] for side in sides)  # type: ignore[assignment]

    def part(start: int, stop: int) -> None:
        worker = _Worker(job)
        for rows in _runs(start, stop, BLOCK):
            labels = y[rows]
            for here, walls in worker.walls(worker.look(X[rows], labels)):
                boundary, decision = (side[rows][here] for side in result)
                if box is None:
                    _distance(np.abs(walls.f), walls.f_norms, boundary)
                    _distance(walls.margin, walls.margin_norms, decision)
                else:
                    worker.in_box(walls, labels[here], box, boundary, decision)
                decision[np.arange(len(decision)), labels[here]] = np.inf

    threads.spread(part, len(X), least=4)
    return result


@implements("numba", reference_mmr.mmr)
def mmr(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> MMR:
    """Twin of `refmmr.reference.mmr.mmr`."""
    job = _Job(net, X, p)
    boundary, decision = np.zeros(len(X), job.dtype), np.zeros(len(X), job.dtype)

    def part(start: int, stop: int) -> None:
        worker = _Worker(job)
        for rows in _runs(start, stop, BLOCK):
            for here, walls in worker.walls(worker.look(X[rows], y[rows])):
                walls.pick(gamma_b, gamma_d, k_b, k_d, boundary[rows][here], decision[rows][here])

    threads.spread(part, len(X), least=4)
    return MMR(boundary + decision, boundary, decision)


@implements("numba", reference_mmr.mmr_gradient)
def mmr_gradient(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> tuple[float, Gradients]:
    """Twin of `refmmr.reference.mmr.mmr_gradient`."""
    job = _Job(net, X, p)
    values = np.zeros((2, len(X)), job.dtype)
    parts: dict[int, Gradients] = {}

    def part(start: int, stop: int) -> None:
        worker = _Worker(job)
        for rows in _runs(start, stop, BLOCK):
            worker.add_gradients(X[rows], y[rows], (gamma_b, gamma_d), (k_b, k_d), values[:, rows])
        parts[start] = worker.sums

    threads.spread(part, len(X), least=4)
    # In the order of the samples, so that the same threads give the same bits.
    first, *others = (parts[start] for start in sorted(parts))
    for other in others:
        for (sum_W, sum_b), (dW, db) in zip(first, other, strict=True):
            sum_W += dW
            sum_b += db
    for sum_W, sum_b in first:
        sum_W /= len(X)
        sum_b /= len(X)
    return float(values.sum(dtype=np.float64)) / len(X), job.layout.gradients(first)


class _Job:
    """What all threads share: the weights and the norms of the first layer's rows."""

    def __init__(self, net: Network, X: np.ndarray, p: float) -> None:
        self.dtype = np.result_type(X, *(W for W, _ in net.parameters))
        self.p = p
        self.layout = Layout(net, self.dtype)
        self.n_classes, self.n_hidden = net.n_classes, net.n_hidden
        self.depth = len(self.layout.layers)
        # User's order: all channels of a position lie apart, see `Layout.units`.
        sizes = [layer.outputs for layer in self.layout.layers[:-1]]
        self.ends = np.cumsum([0, *sizes], dtype=int)
        self.first_norms = np.zeros((1, 0), self.dtype)
        if sizes:
            rows = make_front(self.layout).patches(0)
            self.first_norms = self.layout.units(0, self.norms(0, rows).reshape(1, -1))

    def norms(self, k: int, rows: np.ndarray) -> np.ndarray:
        """Dual norms of the rows of hidden layer k: patches, or (c, N_k, d)."""
        return (column_norms if k < self.layout.n_convs else row_norms)(rows, self.p)


class _Block(NamedTuple):
    """The forward pass of a block of samples; units in the user's order."""

    y: np.ndarray  # (n,)
    trail: Trail
    f: np.ndarray  # (n, N)
    margin: np.ndarray  # (n, K)


class _Walls(NamedTuple):
    """The walls around some samples of a block; `rows` are in the layout of the passes."""

    f: np.ndarray  # (c, N)
    f_norms: np.ndarray  # (c, N)
    margin: np.ndarray  # (c, K)
    margin_norms: np.ndarray  # (c, K); 0 in the class's own column
    x: np.ndarray  # (c, d)
    rows: list[np.ndarray]  # per hidden layer behind the first: patches or (c, N_k, d)
    pairs: np.ndarray  # (c, K - 1, d): V_y - V_s for all rivals s in order

    def pick(self, gamma_b, gamma_d, k_b, k_d, boundary, decision):
        """The walls whose hinge is active, (c, N) and (c, K) bool; the terms go into the rest."""
        picked_f, picked_margin = (np.zeros(m.shape, bool) for m in (self.f, self.margin))
        _pick(np.abs(self.f), self.f_norms, gamma_b, k_b, picked_f, boundary)
        _pick(self.margin, self.margin_norms, gamma_d, k_d, picked_margin, decision)
        return picked_f, picked_margin


class _Directions(NamedTuple):
    """Active walls of one layer: their gradients to v, and whose they are."""

    G: np.ndarray  # (r, d or patch)
    samples: np.ndarray  # (r,)
    units: np.ndarray  # (r,), the unit; for pairs the class itself
    rivals: np.ndarray | None  # (r,), for pairs the other class
    positions: np.ndarray | None  # (r,), for units of a convolution


class _Worker:
    """What one thread needs: passes and memory of its own."""

    def __init__(self, job: _Job) -> None:
        self.job, self.layout = job, job.layout
        self.passes = job.layout.passes()
        self.front = make_front(job.layout)
        self.buffers = self.passes.buffers
        self.sums = job.layout.zeros()

    def look(self, X: np.ndarray, y: np.ndarray) -> _Block:
        """Forward pass of a block."""
        kept, trail = self.passes.pre_activations(self.layout.inputs(X))
        f = np.empty((len(X), self.job.n_hidden), self.job.dtype)
        for k, units in enumerate(kept):
            f[:, self.job.ends[k] : self.job.ends[k + 1]] = self.layout.units(k, units)
        logits = trail.logits
        return _Block(y, trail, f, logits[np.arange(len(y)), y][:, None] - logits)

    def walls(self, block: _Block) -> Iterator[tuple[slice, _Walls]]:
        """The walls around all samples of a block, a few samples at a time."""
        for here in _runs(0, len(block.y), self._samples_at_once()):
            masks = [mask[here] for mask in block.trail.masks]
            rows, pairs = self._rows(masks, block.y[here])
            n, norms = len(block.y[here]), [self.job.first_norms]
            for k, row in enumerate(rows, start=1):
                norms.append(self.layout.units(k, self.job.norms(k, row).reshape(n, -1)))
            f_norms = np.concatenate([np.broadcast_to(q, (n, q.shape[1])) for q in norms], axis=1)
            margin_norms = _among_rivals(row_norms(pairs, self.job.p), block.y[here])
            x = block.trail.inputs[0][here]
            yield (
                here,
                _Walls(block.f[here], f_norms, block.margin[here], margin_norms, x, rows, pairs),
            )

    def _samples_at_once(self) -> int:
        layers = self.layout.layers
        d = layers[0].inputs
        numbers = (self.job.n_classes - 1) * (d + layers[-1].inputs)
        for k in range(1, self.job.depth - 1):
            if k < self.layout.n_convs:
                numbers += self.front.patches(0)[0].size  # a lower bound; patches grow with k
            else:
                numbers += layers[k].outputs * (d + layers[k].inputs)
        return max(1, 2 * CACHE // (numbers * self.job.dtype.itemsize))

    def _rows(self, masks, y):
        """Rows of the hidden layers behind the first, and of all pairs of classes."""
        depth, front = self.job.depth, self.front
        n = len(y)
        rows = front.look(masks) if masks else []
        V = None
        for k in range(front.depth if masks else 1, depth - 1):
            W = self.layout.layers[k].W
            if V is None:
                V = front.through_masks(W, masks[k - 1], ("rows", k))
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
            _pairs(W, y, np.ones((n, W.shape[1]), bool), pairs)
            return rows, pairs
        _pairs(W, y, masks[-1], pairs)
        if V is None:
            return rows, front.multiply(pairs, "pair rows")
        out = self.buffers.take("pair rows", n, len(W) - 1, V.shape[2])
        return rows, np.matmul(pairs, V, out=out)

    def in_box(self, walls, y, box, boundary, decision):
        """Distances within a box, in the user's order."""
        p, lo, hi = self.job.p, *box
        n = len(walls.f)
        layers = [self.front.patches(0), *walls.rows] if self.job.n_hidden else []
        for k, rows in enumerate(layers):
            here = slice(self.job.ends[k], self.job.ends[k + 1])
            f = self.layout.units_back(k, walls.f[:, here])
            if k < self.layout.n_convs:
                field = self.front.fields[k][0]
                positions = np.tile(np.arange(field.positions), n)
                samples = np.repeat(np.arange(n), field.positions)
                x, low, high = (
                    some_windows(np.broadcast_to(side, walls.x.shape), samples, positions, field)
                    for side in (walls.x, lo, hi)
                )
                usual = np.argsort(self.front.pixels[k])
                rows = np.broadcast_to(rows, (n, *rows.shape[1:]))[:, :, usual]
                rows = rows.reshape(-1, *rows.shape[2:]).swapaxes(1, 2)
            else:
                rows = np.broadcast_to(rows, (n, *rows.shape[1:]))
                x, low, high = walls.x, *(np.broadcast_to(side, walls.x.shape) for side in box)
            found = boxes.distances(rows, x, f.reshape(len(x), -1), low, high, p)
            boundary[:, here] = np.abs(self.layout.units(k, found.reshape(n, -1)))
        rivals = _rivals(y, self.job.n_classes)
        margin = np.take_along_axis(walls.margin, rivals, axis=1)
        low, high = (np.broadcast_to(side, walls.x.shape) for side in box)
        found = boxes.distances(walls.pairs, walls.x, margin, low, high, p)
        np.put_along_axis(decision, rivals, found, axis=1)

    def add_gradients(self, X, y, gammas, counts, values):
        """Add the gradient of the sum over a block to `sums`; its terms go into `values`."""
        block = self.look(X, y)
        df, dmargin = np.zeros_like(block.f), np.zeros_like(block.margin)
        shared = np.zeros(self.job.ends[1] if self.job.n_hidden else 0, self.job.dtype)
        found: dict[int, list[_Directions]] = {}
        for here, walls in self.walls(block):
            picked_f, picked_margin = walls.pick(*gammas, *counts, *values[:, here])
            slopes = [1 / (gamma * k) for gamma, k in zip(gammas, counts, strict=True)]
            dnorm, dnorm_margin = np.zeros_like(walls.f), np.zeros_like(walls.margin)
            _slopes(walls.f, walls.f_norms, picked_f, slopes[0], False, df[here], dnorm)
            _slopes(
                walls.margin, walls.margin_norms, picked_margin, slopes[1], True,
                dmargin[here], dnorm_margin,
            )  # fmt: skip
            shared += dnorm[:, : len(shared)].sum(axis=0)
            for k, directions in self._directions(walls, dnorm, dnorm_margin, y[here], here.start):
                found.setdefault(k, []).append(directions)
        self._first_rows(shared)
        for k, parts in found.items():
            self._push(k, parts, block)
        direct = [
            self.layout.units_back(k, df[:, self.job.ends[k] : self.job.ends[k + 1]])
            for k in range(self.job.depth - 1)
        ]
        dlogits = reference_mmr._margins_to_logits(dmargin, y)
        deltas = self.passes.backward(dlogits, block.trail.masks, direct)
        self.passes.add_gradients(block.trail, deltas, self.sums)

    def _first_rows(self, shared):
        """The norms of the first layer's rows, which all samples share."""
        units = np.flatnonzero(shared)
        if not len(units):
            return
        dW = self.sums[0][0]
        G, channels, _ = self._norm_gradients(
            0, self.front.patches(0), np.zeros_like(units), units, shared[units]
        )
        _add_rows(dW, channels, G, 1)

    def _norm_gradients(self, k, rows, samples, units, weights):
        """``weight * grad ||v||_q`` of units of layer k, as rows; their channels and positions."""
        if k >= self.layout.n_convs:
            order = _channel_first(self.layout.images[0]) if self.layout.n_convs else None
            return norm_gradients(rows, samples, units, weights, self.job.p, order), units, None
        field = self.front.fields[k][0]
        channels, positions = units // field.positions, units % field.positions
        patches = rows[samples, positions, :, channels][:, None]
        # Numbers of the patch in the usual order.
        patches = patches[:, :, np.argsort(self.front.pixels[k])]
        order = _channel_first((field.kernel_height, field.kernel_width, field.channels))
        every, only = np.arange(len(units)), np.zeros_like(units)
        G = norm_gradients(patches, every, only, weights, self.job.p, order)
        return G, channels, positions

    def _directions(self, walls, dnorm, dnorm_margin, y, start):
        """The active walls behind the first layer, layer by layer."""
        for k, rows in enumerate(walls.rows, start=1):
            part = dnorm[:, self.job.ends[k] : self.job.ends[k + 1]]
            samples, units = np.nonzero(part)
            if len(units):
                weights = part[samples, units]
                G, units, positions = self._norm_gradients(k, rows, samples, units, weights)
                yield k, _Directions(G, samples + start, units, None, positions)
        samples, rivals = np.nonzero(dnorm_margin)
        if len(samples):
            last, label = self.job.depth - 1, y[samples]
            order = _channel_first(self.layout.images[0]) if self.layout.n_convs else None
            weights = dnorm_margin[samples, rivals]
            place = rivals - (rivals > label)
            G = norm_gradients(walls.pairs, samples, place, weights, self.job.p, order)
            yield last, _Directions(G, samples + start, label, rivals, None)

    def _push(self, k: int, parts: Sequence[_Directions], block: _Block) -> None:
        """Backprop of the directions whose walls are in layer k."""
        columns = [list(column) for column in zip(*parts, strict=True)]
        G, samples, units, rivals, positions = (
            None if column[0] is None else np.concatenate(column) for column in columns
        )
        passes = self.passes
        if positions is not None:
            passes = self.front.windows[k]
        widest = max(layer.numbers for layer in passes.layers[: max(1, k)])
        size = max(16, CACHE // (widest * self.job.dtype.itemsize))
        for here in _runs(0, len(G), size):
            masks = [
                block.trail.masks[j][samples[here]]
                if positions is None
                else some_windows(
                    block.trail.masks[j], samples[here], positions[here],
                    self.front.fields[k][j + 1],
                )
                for j in range(k)
            ]  # fmt: skip
            rival = None if rivals is None else rivals[here]
            self._push_some(passes, k, G[here], masks, units[here], rival)

    def _push_some(self, passes: Passes, k: int, G, masks, units, rivals) -> None:
        W, (dW, _) = self.layout.layers[k].W, self.sums[k]
        read, h = passes.directions(G, masks)
        _add_rows(dW, units, h, 1)
        if rivals is not None:
            _add_rows(dW, rivals, h, -1)
        if not masks:
            return
        coefficients = passes.buffers.take("unit weights", len(G), W.shape[1])
        _unit_weights(W, units, units if rivals is None else rivals, rivals is not None, masks[-1],
                      coefficients)  # fmt: skip
        passes.add_direction_gradients(read, passes.backward(coefficients, masks[:-1]), self.sums)


def _runs(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


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


def norm_gradients(
    rows: np.ndarray,
    groups: np.ndarray,
    units: np.ndarray,
    weights: np.ndarray,
    p: float,
    order: np.ndarray | None,
) -> np.ndarray:
    """``weight * grad ||v||_q`` for some rows ``v = rows[group, unit]``: (r, m).

    `order` says where each number stands in the user's order, which decides ties.
    """
    G = np.empty((len(groups), rows.shape[-1]), rows.dtype)
    if order is None:
        order = np.arange(rows.shape[-1])
    _norm_gradients(rows, groups, units, weights, p, order, G)
    return G


def _channel_first(image: tuple[int, int, int]) -> np.ndarray:
    """Where each number of a channel-last image stands in the channel-first one."""
    height, width, channels = image
    order = np.arange(height * width * channels).reshape(channels, height, width)
    return order.transpose(1, 2, 0).ravel()


@_jit
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


@_jit
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


@_jit
def _norm_gradients(rows, groups, units, weights, p, order, G):
    for r in range(len(groups)):
        v, g, weight = rows[groups[r], units[r]], G[r], weights[r]
        if p == 2:
            total = rows.dtype.type(0)
            for j in range(len(v)):
                total += v[j] * v[j]
            scale = weight / np.sqrt(total)
            for j in range(len(v)):
                g[j] = scale * v[j]
        elif p == 1:
            best = 0
            for j in range(len(v)):
                g[j] = 0
                size, largest = abs(v[j]), abs(v[best])
                if size > largest or (size == largest and order[j] < order[best]):
                    best = j
            g[best] = weight if v[best] > 0 else -weight
        else:
            for j in range(len(v)):
                g[j] = weight if v[j] > 0 else (-weight if v[j] < 0 else 0)


@_jit
def _pairs(W, y, masks, out):
    """out[i, t] = (W[y_i] - W[s]) * masks[i], s the t-th rival of y_i."""
    for i in range(len(masks)):
        own = W[y[i]]
        for t in range(len(W) - 1):
            other = W[t + (t >= y[i])]
            for j in range(W.shape[1]):
                out[i, t, j] = own[j] - other[j] if masks[i, j] else 0


@_jit
def _unit_weights(W, units, rivals, paired, masks, out):
    """out[r] = W[unit] * mask, or (W[unit] - W[rival]) * mask."""
    for r in range(len(units)):
        own, other = W[units[r]], W[rivals[r]]
        for j in range(W.shape[1]):
            weight = own[j] - other[j] if paired else own[j]
            out[r, j] = weight if masks[r, j] else 0


@_jit
def _add_rows(dW, units, rows, sign):
    """dW[unit] += sign * row."""
    for r in range(len(units)):
        target = dW[units[r]]
        for j in range(len(target)):
            target[j] += sign * rows[r, j]


@_jit
def _distance(values, norms, out):
    """Values / norms; where there is no wall, infinity on the side of the value."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if norms[i, j] > 0:
                out[i, j] = values[i, j] / norms[i, j]
            else:
                out[i, j] = -np.inf if values[i, j] < 0 else np.inf


@_jit
def _pick(values, norms, gamma, k, picked, terms):
    """The k nearest of the walls nearer than gamma, the first of equals; the mean of their hinges.

    Only a wall nearer than gamma can count, so the k nearest are looked for among those alone.
    """
    n, m = values.shape
    gamma = values.dtype.type(gamma)
    d = np.empty(m, values.dtype)
    near = np.empty(m, values.dtype)
    for i in range(n):
        count = 0
        for j in range(m):
            d[j] = values[i, j] / norms[i, j] if norms[i, j] > 0 else np.inf
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


@_jit
def _slopes(values, norms, picked, slope, signed, dvalues, dnorms):
    """Gradients of ``-slope * d`` to value and norm of the walls picked; a margin's d is signed."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if picked[i, j]:
                value, norm = values[i, j], norms[i, j]
                side = 1 if signed or value > 0 else (-1 if value < 0 else 0)
                dvalues[i, j] = -slope * side / norm
                dnorms[i, j] = slope * side * value / (norm * norm)
