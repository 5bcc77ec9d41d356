"""The gradient of MMR: the twin of `refmmr.reference.mmr.mmr_gradient`.

Steps 1 and 2 (hinge to distance, distance to f and to the norm of the row v) are those of the
reference.  Step 3, from the rows to the weights, is done for the *active* hyperplanes alone: those
among the k nearest, and nearer than gamma.  With

    G = dJ/dv = dJ/d||v|| * grad ||v||_q,    a direction in R^d,

``<G, v>`` is the value at the hyperplane's unit when G is pushed through the frozen network of the
sample.  So the gradient through all rows v is that of ``sum_r <G_r, v_r>``: a batch of directions,
one for each active hyperplane, is pushed forward as far as its layer, and backpropagated.  No array
of shape (n, d, units) is formed.

With two convolutions the rows are made of patches (`affine`), if they can count (`nearest`), and so
is their gradient: G of a unit of the second convolution is added to the gradient with respect to
its patch; other directions are pushed through the patches of their sample.  The sum over all
samples goes back to the filters of both convolutions once for each thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.distances import Block, Hyperplanes, Shared
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import some_windows
from refmmr.backends._numba.layout import add_up, runs
from refmmr.backends._numba.mmr import apply_hinges
from refmmr.backends._numba.nearest import NearestWorker, NearHyperplanes
from refmmr.backends._numba.network import BLOCK, apply_mask
from refmmr.backends._numba.norm_gradients import column_norm_gradients, norm_gradients
from refmmr.reference import mmr as reference
from refmmr.reference.mmr import Regularizer
from refmmr.reference.network import Gradients, Network

DIRECTION_BYTES = 2**21
"""Bytes of the widest array of directions that are pushed at a time.

An array of this size is still in the cache of a core when the backward pass reads it; from 2**19 to
2**24 the time is the same, up to a tenth.
"""
MIN_DIRECTIONS = 16
"""Directions in a product at least: of fewer rows it is slow."""


@implements("numba", reference.mmr_gradient)
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
    shared, terms = Shared(net, X, p), (Regularizer(p, 1.0, gamma_b, gamma_d, k_b, k_d),)
    values = np.zeros((2, len(X)), shared.dtype)
    parts: dict[int, Gradients] = {}

    def part(start: int, stop: int) -> None:
        worker = GradientWorker(shared, terms)
        for rows in runs(start, stop, BLOCK):
            worker.add_gradients(X[rows], y[rows], values[:, rows])
        parts[start] = worker.finish()

    threads.spread(part, len(X), least=shared.samples_per_thread)
    return float(values.sum(dtype=np.float64)) / len(X), shared.layout.gradients(add_up(parts))


class Active(NamedTuple):
    """The active hyperplanes of one layer, r of them."""

    G: np.ndarray  # (r, d), or (r, patch) for units of a convolution: dJ/dv
    samples: np.ndarray  # (r,), in order
    units: np.ndarray  # (r,): units of a dense layer, channels of a convolution, classes y of pairs
    rivals: np.ndarray | None  # (r,), of pairs: the other class
    positions: np.ndarray | None  # (r,), for a convolution: the output pixel


class GradientWorker(NearestWorker):
    """Adds up the gradient of the regularizers' mean, with the memory of one thread.

    The rows are made once for all terms; the directions G of a row are added up before they are
    pushed.
    """

    def __init__(self, shared: Shared, terms: Sequence[Regularizer], nearest: str = "each") -> None:
        super().__init__(shared)
        self.terms, self.nearest = terms, nearest
        self.sums = shared.layout.zeros()

    def add_gradients(self, X: np.ndarray, y: np.ndarray, values: np.ndarray) -> None:
        """Add the gradient of a block's share of the mean; its values go into `values`, (2, n)."""
        block = self.forward(X, y)
        df, dmargin = np.zeros_like(block.f), np.zeros_like(block.margin)
        dfirst = np.zeros_like(self.shared.first_norms[:, 0])
        by_layer: dict[int, list[Active]] = {}
        # A unit of the union may count in one norm by its distance in the other.
        gammas = [np.inf if self.nearest == "union" else term.gamma_b for term in self.terms]
        for here, hyperplanes in self.hyperplanes_near(block, gammas, [t.k_b for t in self.terms]):
            dnorm, dnorm_margin = self._distance_gradients(
                hyperplanes, values[:, here], df[here], dmargin[here]
            )
            dfirst += dnorm[:, :, : dfirst.shape[1]].sum(axis=1)
            if isinstance(hyperplanes, NearHyperplanes):
                dnorms = np.concatenate([dnorm, dnorm_margin], axis=2)
                masks = [mask[here] for mask in block.cache.masks]
                self._backpropagate_patches(hyperplanes, dnorms, masks, y[here])
                continue
            for k, active in self._active(hyperplanes, dnorm, dnorm_margin, y[here]):
                active = active._replace(samples=active.samples + here.start)
                by_layer.setdefault(k, []).append(active)
        self._add_first_layer(dfirst)
        for k, parts in by_layer.items():
            self._backpropagate_rows(k, parts, block)
        self._backpropagate_samples(block, df, dmargin)

    def finish(self) -> Gradients:
        """The sum of all blocks' gradients, in the order of `Layout`."""
        if self.patch_stem is not None:
            self.patch_stem.finish(self.sums)
        return self.sums

    def _distance_gradients(
        self,
        hyperplanes: Hyperplanes | NearHyperplanes,
        values: np.ndarray,
        df: np.ndarray,
        dmargin: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps 1 and 2; gradients with respect to f and margin are added to `df`, `dmargin`.

        Returns those with respect to their norms, (norms, c, N) and (norms, c, K).
        """
        boundary, decision = apply_hinges(hyperplanes, self.terms, self.nearest, values)
        f, f_norms, margin, margin_norms = hyperplanes[:4]
        dnorm, dnorm_margin = np.zeros_like(f_norms), np.zeros_like(margin_norms)
        for t, (_, lam, gamma_b, gamma_d, k_b, k_d) in enumerate(self.terms):
            slope_b = lam / (gamma_b * k_b * self.shared.n_samples)
            slope_d = lam / (gamma_d * k_d * self.shared.n_samples)
            _distance_gradients(f, f_norms[t], boundary[t], slope_b, False, df, dnorm[t])
            _distance_gradients(
                margin, margin_norms[t], decision[t], slope_d, True, dmargin, dnorm_margin[t]
            )
        return dnorm, dnorm_margin

    def _backpropagate_samples(self, block, df, dmargin):
        """Step 3 for f: backpropagation of the samples, df (n, N) and dmargin (n, K)."""
        hidden = [
            self.layout.units_back(k, df[:, units])
            for k, units in enumerate(self.shared.unit_slices)
        ]
        dlogits = self.logit_gradient(block, dmargin)
        deltas = self.passes.backward(dlogits, block.cache.masks, hidden)
        self.passes.add_gradients(block.cache, deltas, self.sums)

    def logit_gradient(self, block: Block, dmargin: np.ndarray) -> np.ndarray:
        """Gradient with respect to the logits, from that with respect to the margins, (n, K)."""
        return reference._margins_to_logits(dmargin, block.y)

    def _add_first_layer(self, dnorm):
        """Step 3 for the rows of the first layer, which all samples share: dnorm (norms, N_1)."""
        units = np.flatnonzero(dnorm.any(axis=0))
        if len(units):
            rows, samples = self.shared.first_rows, np.zeros_like(units)
            G, channels, _ = self._row_gradients(0, rows, samples, units, dnorm[:, units])
            _add_rows(self.sums[0][0], channels, G, 1)

    def _active(
        self, hyperplanes: Hyperplanes, dnorm: np.ndarray, dnorm_margin: np.ndarray, y: np.ndarray
    ) -> Iterator[tuple[int, Active]]:
        """The active hyperplanes behind the first layer, layer by layer."""
        for k, rows in enumerate(hyperplanes.rows, start=1):
            part = dnorm[:, :, self.shared.unit_slices[k]]
            samples, units = np.nonzero(part.any(axis=0))
            if len(units):
                weights = part[:, samples, units]
                G, units, positions = self._row_gradients(k, rows, samples, units, weights)
                yield k, Active(G, samples, units, None, positions)
        samples, rivals = np.nonzero(dnorm_margin.any(axis=0))
        if len(samples):
            labels, weights = y[samples], dnorm_margin[:, samples, rivals]
            pairs = rivals - (rivals > labels)
            G = norm_gradients(
                hyperplanes.pairs, samples, pairs, weights, self.shared.ps, self._input_order()
            )
            yield self.shared.depth - 1, Active(G, samples, labels, rivals, None)

    def _row_gradients(self, k, rows, samples, units, weights):
        """``G = sum weight * grad ||v||_q`` over norms, for units; channels, positions."""
        ps = self.shared.ps
        if k >= self.layout.n_convs:
            order = self._input_order()
            return norm_gradients(rows, samples, units, weights, ps, order), units, None
        field = self.stem.fields[k][0]
        channels, positions = units // field.positions, units % field.positions
        patches = rows[samples, positions, :, channels][:, None]
        order = _channel_first((field.kernel_height, field.kernel_width, field.channels))
        order = order[self.stem.orders[k]]
        each, only = np.arange(len(units)), np.zeros_like(units)
        return norm_gradients(patches, each, only, weights, ps, order), channels, positions

    def _input_order(self):
        """The user's order of the inputs, None if it is that of the rows."""
        return _channel_first(self.layout.images[0]) if self.layout.n_convs else None

    def _backpropagate_rows(self, k: int, parts: Sequence[Active], block: Block) -> None:
        """Step 3 for the rows of layer k: push the directions, and backpropagate."""
        columns = list(zip(*parts, strict=True))
        G, samples, units = (np.concatenate(column) for column in columns[:3])
        # Either all parts have rivals, or positions, or none has.
        rivals, positions = (
            None if column[0] is None else np.concatenate(column) for column in columns[3:]
        )
        passes = self.passes
        if positions is not None:
            passes, G = self.stem.windows[k], G[:, np.argsort(self.stem.orders[k])]
        widest = max(layer.buffer_size for layer in passes.layers[: max(1, k)])
        most = max(MIN_DIRECTIONS, DIRECTION_BYTES // (widest * self.shared.dtype.itemsize))
        # Runs of about the same length: a short rest would cost as much as a long one.
        size = -(-len(samples) // -(-len(samples) // most))
        for here in runs(0, len(samples), size):
            masks = [
                mask[samples[here]]
                if positions is None
                else some_windows(mask, samples[here], positions[here], self.stem.fields[k][j])
                for j, mask in enumerate(block.cache.masks[:k], start=1)
            ]
            rival = None if rivals is None else rivals[here]
            operands, h = passes.push_directions(G[here], masks)
            self._add_own_layer(k, h, units[here], rival)
            if masks:
                weights = self.own_weights(k, masks[-1], units[here], rival)
                deltas = passes.backward(weights, masks[:-1])
                passes.add_direction_gradients(operands, deltas, self.sums)

    def _backpropagate_patches(
        self,
        near: NearHyperplanes,
        dnorms: np.ndarray,
        masks: list[np.ndarray],
        y: np.ndarray,
    ) -> None:
        """Step 3 for the rows around a few samples, through their patches, which are overwritten.

        dnorms: (norms, c, N + K), with respect to the norms of all units and pairs.
        """
        stem = near.stem
        part = dnorms[:, :, self.shared.unit_slices[1]]
        samples, units = np.nonzero(part.any(axis=0))
        G, channels, positions = self._row_gradients(
            1, near.patches, samples, units, part[:, samples, units]
        )
        weights = dnorms[:, near.rows.samples, near.rows.indices]
        active = np.flatnonzero(weights.any(axis=0))
        if len(G) == len(active) == 0:
            return
        h = self._push_rows(near, active, weights[:, active])
        at, layers, units = (array[active] for array in near.rows[:3])
        behind = [mask[at] for mask in masks[stem.depth - 1 :]]
        apply_mask(h, behind[0])
        for k in np.unique(layers):
            here = np.flatnonzero(layers == k)
            rivals = None if k < self.shared.depth - 1 else units[here]
            own = units[here] if rivals is None else y[at[here]]
            some = [mask[here] for mask in behind[: k - stem.depth + 1]]
            self._backpropagate_tail(k, h[here], some, own, rivals)
        _add_to_patches(near.patches, samples, positions, channels, G)
        stem.add_patch_gradients(masks[0], near.patches)

    def _push_rows(self, near, active, weights):
        """Push the directions of active rows through the patches, and their gradient into these.

        active: (r,), numbers of the rows in order.  weights: (norms, r), dJ/d||v||.  Returns what
        comes out of the stem, (r, units of its last layer).
        """
        rows, stem, ps, order = near.rows, near.stem, self.shared.ps, self._input_order()
        h = self.buffers.take("pushed", len(active), stem.convs[-1].outputs)
        shape = stem.convs[-1].geometry.positions, len(stem.convs[-1].W)
        ends = np.searchsorted(active, rows.ends)
        for i, (start, stop) in enumerate(pairwise(ends.tolist())):
            if start == stop:
                near.patches[i] = 0
                continue
            here = active[start:stop] - rows.ends[i]
            G = column_norm_gradients(
                rows.of(i, rows.columns), here, weights[:, start:stop], ps, order
            )
            coefficients = rows.of(i, rows.coefficients)
            if len(here) < coefficients.shape[1]:
                coefficients = coefficients.take(here, axis=1)
            stem.push_through(
                i, G, coefficients.reshape(*shape, -1), h[start:stop].reshape(-1, *shape)
            )
        return h

    def _backpropagate_tail(self, k, h, masks, units, rivals):
        """From the stem's output h, (r, N), to the hyperplanes in layer k, and back to the stem.

        `masks`, (r, units) each, are those of the stem's last layer and of all up to layer k - 1.
        """
        operands, h = self.tail.push_directions(h, masks[1:])
        self._add_own_layer(k, h, units, rivals)
        if operands:
            weights = self.own_weights(k, masks[-1], units, rivals)
            deltas = self.tail.backward(weights, masks[1:-1])
            self.tail.add_direction_gradients(operands, deltas, self.sums[self.stem.depth :])

    def _add_own_layer(self, k, h, units, rivals):
        """``d<G, v> / dW_k``: h, the input of the hyperplanes' own layer, in their units' rows."""
        dW, _ = self.sums[k]
        _add_rows(dW, units, h, 1)
        if rivals is not None:
            _add_rows(dW, rivals, h, -1)


def _channel_first(image: tuple[int, int, int]) -> np.ndarray:
    """The index of each number of a channel-last image in the channel-first one."""
    height, width, channels = image
    order = np.arange(height * width * channels).reshape(channels, height, width)
    return order.transpose(1, 2, 0).ravel()


@jit
def _distance_gradients(values, norms, active, slope, signed, dvalues, dnorms):
    """Gradients of ``-slope * d`` with respect to value and norm; twin of `_distance_gradients`.

    values, norms, active: (c, m).  signed: whether d has the sign of the value (a margin), or is
    ``|f| / norm``.  dvalues: (c, m), added to.  dnorms: (c, m), set where a hyperplane is active.
    """
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if active[i, j]:
                value, norm = values[i, j], norms[i, j]
                sign = 1 if signed or value > 0 else (-1 if value < 0 else 0)
                dvalues[i, j] -= slope * sign / norm
                dnorms[i, j] = slope * sign * (value / norm) / norm


@jit
def _add_to_patches(dpatches, samples, positions, channels, G):
    """``dpatches[sample, position, :, channel] += G``.

    dpatches: (c, positions, patch, channels).  samples, positions, channels: (r,).  G: (r, patch).
    """
    for r in range(len(G)):
        target = dpatches[samples[r], positions[r]]
        for j in range(G.shape[1]):
            target[j, channels[r]] += G[r, j]


@jit
def _add_rows(dW, units, rows, sign):
    """``dW[unit] += sign * row``: dW (outputs, m), units (r,), rows (r, m)."""
    for r in range(len(units)):
        target = dW[units[r]]
        for j in range(len(target)):
            target[j] += sign * rows[r, j]
