"""The hyperplanes that can count in MMR: rows that cannot are not made.

A boundary counts in the regularizer only if it is among the k_B nearest and nearer than gamma_B.
Behind two convolutions the rows of dense units are the dearest; most of them need not be known:

1. The distances of all convolutional units are computed.  The k_B-th smallest of them bounds that
   of all units; ``limit`` is the smaller of it and gamma_B.
2. A row is a sum of patches times coefficients, ``v = sum_i c_i v_i``, so the triangle inequality
   gives an upper bound U of its norm.  A unit with ``|f| > limit * U`` is farther away than the
   limit: it neither counts nor ties with a unit that does.  Its norm is given as 0, as that of a
   unit without a hyperplane, so that its distance is infinite.
3. The rows of the other units, and those of all pairs of classes, are made for each sample.  They
   are columns here, (d, r): places in the image times rows, so that loops over the few rows of a
   sample are vectorised.

Values, selection and gradients are those of all hyperplanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.affine import ConvStem
from refmmr.backends._numba.distances import Block, Hyperplanes, HyperplaneWorker, Shared
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layout import runs
from refmmr.backends._numba.network import Passes

PATCH_BYTES = 2**23
"""Bytes of patches that are made at a time, 13 samples of the paper's network in float32.

From 2**22 to 2**24 the time is the same, up to a tenth; with fewer the tables of `patches` are read
more often, and with 2**21 it is an eighth more.
"""


class NearRows(NamedTuple):
    """Rows of units behind the convolutions and of pairs of classes: r of them, sample by sample.

    The arrays of a sample with m rows are a part of `coefficients` and of `columns`, see `of`.
    """

    samples: np.ndarray  # (r,), in order
    layers: np.ndarray  # (r,): of the unit; the last one for a pair
    units: np.ndarray  # (r,): units of this layer; for a pair the rival of class y
    indices: np.ndarray  # (r,): among all N hidden units, and N + rival
    ends: list[int]  # (c + 1,): sample i has the rows ends[i], ..., ends[i + 1] - 1
    coefficients: np.ndarray  # (m, of the units of the last convolution), flat
    columns: np.ndarray  # flat

    def of(self, i: int, flat: np.ndarray) -> np.ndarray:
        """The part of sample i with m rows in one of the flat arrays: (numbers of a row, m)."""
        start, stop, length = self.ends[i], self.ends[i + 1], len(flat) // max(1, self.ends[-1])
        return flat[start * length : stop * length].reshape(length, stop - start)


class NearHyperplanes(NamedTuple):
    """`Hyperplanes` around c samples; the norms of those that cannot count are 0."""

    f: np.ndarray  # (c, N)
    f_norms: np.ndarray  # (norms, c, N)
    margin: np.ndarray  # (c, K)
    margin_norms: np.ndarray  # (norms, c, K)
    limits: np.ndarray  # (norms, c): no unit that counts is farther away
    stem: ConvStem
    patches: np.ndarray  # of the second convolution, (c, positions, patch, channels)
    rows: NearRows


class NearestWorker(HyperplaneWorker):
    """Computes the hyperplanes that can count, with the memory of one thread."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        stem = self.stem
        self.patch_stem: ConvStem | None = None
        if isinstance(stem, ConvStem) and stem.back_through_patches:
            self.patch_stem = stem
            self._groups, self._n_groups = disjoint_groups(stem)
        # The layers behind the stem.
        self.tail = Passes(shared.layout.layers[stem.depth :], shared.dtype)

    def hyperplanes_near(
        self, block: Block, gammas: Sequence[float], ks: Sequence[int]
    ) -> Iterator[tuple[slice, Hyperplanes | NearHyperplanes]]:
        """The hyperplanes around all samples of a block, a few samples at a time.

        With two convolutions without those that are in no norm among its k nearest and nearer than
        its gamma.  The next ones overwrite the rows.
        """
        if self.patch_stem is None:
            yield from self.hyperplanes_around(block)
            return
        patch_bytes = self.patch_stem.places.size * len(self.patch_stem.convs[-1].W)
        at_once = max(1, PATCH_BYTES // (patch_bytes * self.shared.dtype.itemsize))
        for here in runs(0, len(block.y), at_once):
            masks = [mask[here] for mask in block.cache.masks]
            yield here, self._near(self.patch_stem, block, here, masks, gammas, ks)

    def _near(self, stem, block, here, masks, gammas, ks):
        """The hyperplanes around the samples `here`, whose masks are given."""
        f, margin, y = block.f[here], block.margin[here], block.y[here]
        (patches,) = stem.compute_rows(masks)
        norms = self.shared.norms(1, patches)
        ps, N = self.shared.ps, self.shared.n_hidden
        first, second, *tail = self.shared.unit_slices
        all_norms = np.zeros((len(ps), len(y), N + self.shared.n_classes), f.dtype)
        all_norms[:, :, first] = self.shared.first_norms
        all_norms[:, :, second] = self.shared.unit_norms(1, norms)
        limits = np.empty((len(ps), len(y)), f.dtype)
        can_count = [np.zeros((len(y), units.stop - units.start), bool) for units in tail]
        for t, p in enumerate(ps):
            _limits(f, all_norms[t], second.stop, gammas[t], ks[t], limits[t])
            for units, bounds, found in zip(
                tail, self._row_bounds(stem, norms[t], masks, p), can_count, strict=True
            ):
                _can_count(f, units.start, bounds, limits[t], found)
        rows = self._make_rows(stem, masks, y, [np.nonzero(found) for found in can_count])
        for p, every in zip(ps, all_norms, strict=True):
            some = np.empty(len(rows.samples), f.dtype)
            _column_norms(rows.columns, np.array(rows.ends), p, some)
            every[rows.samples, rows.indices] = some
        f_norms, margin_norms = (
            np.ascontiguousarray(part) for part in np.split(all_norms, [N], axis=2)
        )
        return NearHyperplanes(f, f_norms, margin, margin_norms, limits, stem, patches, rows)

    def _row_bounds(self, stem, norms, masks, p):
        """Upper bounds of the norms of all rows of each hidden layer behind the stem, (c, N_k).

        norms: (c, positions, channels), of the patches.  They hold in floating-point arithmetic:
        the rounding errors of sums of n terms are at most n eps times the sum of their sizes.
        """
        layers = self.tail.layers[:-1]
        terms = stem.convs[0].inputs + sum(layer.inputs for layer in layers)
        info = np.finfo(norms.dtype)
        bounds: list[np.ndarray] = []
        for k, layer in enumerate(layers, start=stem.depth):
            if not bounds:
                bound = np.zeros((len(norms), layer.outputs), norms.dtype)
                _first_row_bounds(
                    stem.columns, norms, masks[k - 1], self._groups, self._n_groups,
                    p, bound,
                )  # fmt: skip
            else:
                bound = np.matmul(masks[k - 1] * bounds[-1], np.abs(layer.W).T)
            bounds.append(bound * norms.dtype.type(1 + 8 * terms * info.eps) + info.tiny)
        return bounds

    def _make_rows(
        self,
        stem: ConvStem,
        masks: Sequence[np.ndarray],
        y: np.ndarray,
        kept: Sequence[tuple[np.ndarray, ...]],
    ) -> NearRows:
        """Rows of the (samples, units) of each hidden layer behind the stem, and of all pairs."""
        rivals = np.arange(self.shared.n_classes - 1)[None]
        rivals = rivals + (rivals >= y[:, None])
        pairs = np.repeat(np.arange(len(y)), rivals.shape[1]), rivals.ravel()
        parts = [*kept, pairs]
        samples, units = (np.concatenate(part) for part in zip(*parts, strict=True))
        layers = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
        starts = [units.start for units in self.shared.unit_slices[stem.depth :]]
        indices = units + np.array([*starts, self.shared.n_hidden])[layers]
        order = np.argsort(samples, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        ends = np.searchsorted(samples[order], np.arange(len(y) + 1))
        N, d = stem.convs[-1].outputs, stem.convs[0].inputs
        coefficients = self.buffers.take("coefficients", len(order) * N)
        start = 0
        for k, (at, of) in enumerate(parts, start=stem.depth):
            here = slice(start, start + len(at))
            if len(at):
                columns, numbers = self._coefficients(stem, k, at, of, y, masks)
                _take_masked(
                    columns, numbers, masks[stem.depth - 1], at, place[here], ends, coefficients
                )
            start = here.stop
        rows = NearRows(
            samples[order], stem.depth + layers[order], units[order], indices[order],
            ends.tolist(), coefficients, self.buffers.take("row columns", len(order) * d),
        )  # fmt: skip
        shape = stem.convs[-1].geometry.positions, len(stem.convs[-1].W), -1
        for i, (first, last) in enumerate(zip(rows.ends, rows.ends[1:], strict=False)):
            if last > first:
                stem.combine_columns(
                    i, rows.of(i, coefficients).reshape(shape), rows.of(i, rows.columns)
                )
        return rows

    def _coefficients(self, stem, k, samples, units, y, masks):
        """Coefficients of rows of layer k over those of the stem's last layer, without its mask.

        They are columns `numbers`, (r,), of an array (units of the stem, m).
        """
        depth = stem.depth
        if k == depth and k < self.shared.depth - 1:
            return stem.columns, units
        behind = [mask[samples] for mask in masks[depth - 1 : k]]
        rivals = None if k < self.shared.depth - 1 else units
        weights = self.own_weights(k, behind[-1], units if rivals is None else y[samples], rivals)
        if k > depth:
            weights = self.tail.input_gradient(self.tail.backward(weights, behind[1:-1])[0])
        return weights.T, np.arange(len(units))

    def own_weights(
        self, k: int, mask: np.ndarray, units: np.ndarray, rivals: np.ndarray | None
    ) -> np.ndarray:
        """The gradient with respect to f_{k-1} of units, or of differences between unit and rival.

        Their weights in layer k where the mask, (r, m), of layer k - 1 is 1: (r, m).
        """
        W = self.layout.layers[k].W
        weights = self.buffers.take("unit weights", len(units), W.shape[1])
        others = units if rivals is None else rivals
        _unit_weights(W, units, others, rivals is not None, mask, weights)
        return weights


def disjoint_groups(stem: ConvStem) -> tuple[np.ndarray, int]:
    """Groups of positions whose patches have no pixel in common: of each position, and how many."""
    field = stem.fields[-1][0]
    across = -(-field.kernel_width // field.across)
    rows, columns = np.divmod(np.arange(field.positions), field.columns)
    down = -(-field.kernel_height // field.down)
    return rows % down * across + columns % across, down * across


@jit
def _limits(f, norms, m, gamma, k, limits):
    """The k-th smallest distance of the first m units, or gamma if that is smaller.

    f, norms: (c, units).  limits: (c,), the result.  Few units are nearer than twice the limit of
    the sample before; if they are k at least, they are enough.
    """
    gamma = f.dtype.type(gamma)
    d, near = np.empty(m, f.dtype), np.empty(m, f.dtype)
    guess = gamma
    for i in range(len(f)):
        for j in range(m):
            d[j] = abs(f[i, j]) / norms[i, j] if norms[i, j] > 0 else np.inf
        count = _nearer(d, guess, near)
        if count < k and guess < gamma:
            count = _nearer(d, gamma, near)
        limits[i] = gamma if count < k else np.partition(near[:count], k - 1)[k - 1]
        guess = min(gamma, 2 * limits[i])


@jit
def _nearer(d, limit, near):
    """Copy the distances below the limit: d, near (m,); returns how many."""
    count = 0
    for j in range(len(d)):
        near[count] = d[j]
        count += d[j] < limit
    return count


@jit
def _can_count(f, start, bounds, limits, can_count):
    """Whether units may be as near as the limit: f (c, N), of which units start, ... are compared.

    bounds, of the norms: (c, m).  limits: (c,).  can_count: (c, m), set where they may; also where
    f is NaN or the bound infinite.
    """
    for i in range(len(bounds)):
        for u in range(bounds.shape[1]):
            if not abs(f[i, start + u]) > limits[i] * bounds[i, u]:
                can_count[i, u] = True


@jit
def _first_row_bounds(columns, norms, masks, groups, n_groups, p, bounds):
    """Bounds of the norms of the rows ``W diag(mask) V`` from those of the rows of V.

    The triangle inequality holds among the rows of a position, and among groups of positions.
    Within a group they have no pixel in common: their norms add as the numbers in a norm do.

    columns: (positions * channels, units), the weights.  norms: (c, positions, channels).  masks:
    (c, positions * channels).  groups: (positions,).  bounds: (c, units), 0 before; the result.
    """
    units = columns.shape[1]
    part = np.empty(units, norms.dtype)
    for i in range(len(norms)):
        sums = np.zeros((n_groups, units), norms.dtype)
        for q in range(norms.shape[1]):
            part[:] = 0
            for o in range(norms.shape[2]):
                if masks[i, q * norms.shape[2] + o]:
                    column, norm = columns[q * norms.shape[2] + o], norms[i, q, o]
                    for u in range(units):
                        part[u] += norm * abs(column[u])
            total = sums[groups[q]]
            for u in range(units):
                if p == 2:
                    total[u] += part[u] * part[u]
                elif p == 1:
                    total[u] = max(total[u], part[u])
                else:
                    total[u] += part[u]
        for g in range(n_groups):
            for u in range(units):
                bounds[i, u] += np.sqrt(sums[g, u]) if p == 2 else sums[g, u]


@jit
def _take_masked(columns, numbers, masks, samples, places, ends, out):
    """Masked coefficients of rows into the flat array of `NearRows`.

    columns: (N, m), of which `numbers` (r,) are taken.  masks: (c, N).  samples: (r,), in order.
    places: (r,), the place among the rows of all samples; those of a sample follow each other.
    ends: (c + 1,).  out: flat, the result.
    """
    N, stop = len(columns), 0
    while stop < len(samples):
        start, i = stop, samples[stop]
        while stop < len(samples) and samples[stop] == i:
            stop += 1
        first, step, mask = ends[i] * N + places[start] - ends[i], ends[i + 1] - ends[i], masks[i]
        for j in range(N):
            target = out[first + j * step : first + j * step + stop - start]
            if mask[j]:
                for r in range(len(target)):
                    target[r] = columns[j, numbers[start + r]]
            else:
                target[:] = 0


@jit
def _column_norms(columns, ends, p, norms):
    """Dual norms of the columns of each sample.

    columns: flat, those of sample i with m columns are (d, m).  ends: (c + 1,).  norms: (r,).
    """
    norms[:] = 0
    d = len(columns) // max(1, len(norms))
    for i in range(len(ends) - 1):
        norm, start = norms[ends[i] : ends[i + 1]], ends[i] * d
        m = len(norm)
        for j in range(d):
            row = columns[start + j * m : start + (j + 1) * m]
            if p == 2:
                for u in range(m):
                    norm[u] += row[u] * row[u]
            elif p == 1:
                for u in range(m):
                    norm[u] = max(norm[u], abs(row[u]))
            else:
                for u in range(m):
                    norm[u] += abs(row[u])
        if p == 2:
            for u in range(m):
                norm[u] = np.sqrt(norm[u])


@jit
def _unit_weights(W, units, rivals, paired, masks, out):
    """``W[unit] * mask``, or ``(W[unit] - W[rival]) * mask`` if paired.

    W: (outputs, m).  units, rivals: (r,).  masks: (r, m).  out: (r, m), the result.
    """
    for r in range(len(units)):
        own, other = W[units[r]], W[rivals[r]]
        for j in range(W.shape[1]):
            weight = own[j] - other[j] if paired else own[j]
            out[r, j] = weight if masks[r, j] else 0
