"""The gradient of MMR, one direction for each active hyperplane.

The gradient is low-rank: only hyperplanes whose hinge is active have one, and for each of them, with G
its gradient to the hyperplane's row v in R^d, ``<G, v>`` is what comes out at the hyperplane's unit when the
*direction* G is pushed through the frozen network.  So it is an ordinary backprop of a batch of
directions, one for each active hyperplane; no array of shape (n, d, units) is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.affine import ConvStem
from refmmr.backends._numba.distances import CACHE, Block, Hyperplanes, Job, Observer, pick
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Passes, apply_mask, some_windows
from refmmr.backends._numba.layout import runs
from refmmr.reference import mmr as reference_mmr


class Directions(NamedTuple):
    """Active hyperplanes of one layer: their gradients to v, and whose they are."""

    G: np.ndarray  # (r, d or patch)
    samples: np.ndarray  # (r,)
    units: np.ndarray  # (r,), the unit; for pairs the class itself
    rivals: np.ndarray | None  # (r,), for pairs the other class
    positions: np.ndarray | None  # (r,), for units of a convolution


class Worker(Observer):
    """An observer that adds up gradients."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.sums = job.layout.zeros()
        # A stem whose gradients go back through patches.
        stem = self.stem
        self.patched = stem if isinstance(stem, ConvStem) and stem.keeps_patches else None
        # What is behind the stem, for directions that come out of it.
        self.tail = Passes(job.layout.layers[job.stem.depth :], job.dtype)

    def add_gradients(
        self,
        X: np.ndarray,
        y: np.ndarray,
        gammas: tuple[float, float],
        counts: tuple[int, int],
        values: np.ndarray,
    ) -> None:
        """Add a block's share of the mean's gradient to `sums`; its terms go into `values`."""
        block = self.look(X, y)
        df, dmargin = np.zeros_like(block.f), np.zeros_like(block.margin)
        shared = np.zeros(self.job.ends[1] if self.job.n_hidden else 0, self.job.dtype)
        found: dict[int, list[Directions]] = {}
        for here, hyperplanes in self.hyperplanes(block):
            picked_f, picked_margin = pick(hyperplanes, gammas, counts, values[:, here])
            slopes = [
                1 / (gamma * k * self.job.count) for gamma, k in zip(gammas, counts, strict=True)
            ]
            dnorm, dnorm_margin = np.zeros_like(hyperplanes.f), np.zeros_like(hyperplanes.margin)
            _slopes(hyperplanes.f, hyperplanes.f_norms, picked_f, slopes[0], False, df[here], dnorm)
            _slopes(
                hyperplanes.margin, hyperplanes.margin_norms, picked_margin, slopes[1], True,
                dmargin[here], dnorm_margin,
            )  # fmt: skip
            shared += dnorm[:, : len(shared)].sum(axis=0)
            near = list(self._directions(hyperplanes, dnorm, dnorm_margin, y[here]))
            if self.patched is not None:
                self._push_patches(
                    self.patched, near, hyperplanes, [mask[here] for mask in block.cache.masks]
                )
                continue
            for k, directions in near:
                samples = directions.samples + here.start
                found.setdefault(k, []).append(directions._replace(samples=samples))
        self._first_rows(shared)
        for k, parts in found.items():
            self._push(k, parts, block)
        per_layer = [
            self.layout.units_back(k, df[:, self.job.ends[k] : self.job.ends[k + 1]])
            for k in range(self.job.depth - 1)
        ]
        dlogits = reference_mmr._margins_to_logits(dmargin, y)
        deltas = self.passes.backward(dlogits, block.cache.masks, per_layer)
        self.passes.add_gradients(block.cache, deltas, self.sums)

    def _first_rows(self, shared):
        """The norms of the first layer's rows, which all samples share."""
        units = np.flatnonzero(shared)
        if not len(units):
            return
        dW = self.sums[0][0]
        G, channels, _ = self._norm_gradients(
            0, self.stem.patches(0), np.zeros_like(units), units, shared[units]
        )
        _add_rows(dW, channels, G, 1)

    def _norm_gradients(self, k, rows, samples, units, weights):
        """``weight * grad ||v||_q`` of units of layer k, as rows; their channels and positions."""
        if k >= self.layout.n_convs:
            order = _channel_first(self.layout.images[0]) if self.layout.n_convs else None
            return norm_gradients(rows, samples, units, weights, self.job.p, order), units, None
        field = self.stem.fields[k][0]
        channels, positions = units // field.positions, units % field.positions
        patches = rows[samples, positions, :, channels][:, None]
        order = _channel_first((field.kernel_height, field.kernel_width, field.channels))
        order = order[self.stem.pixels[k]]
        every, only = np.arange(len(units)), np.zeros_like(units)
        G = norm_gradients(patches, every, only, weights, self.job.p, order)
        return G, channels, positions

    def _directions(self, hyperplanes, dnorm, dnorm_margin, y):
        """The active hyperplanes behind the first layer, layer by layer."""
        for k, rows in enumerate(hyperplanes.rows, start=1):
            part = dnorm[:, self.job.ends[k] : self.job.ends[k + 1]]
            samples, units = np.nonzero(part)
            if len(units):
                weights = part[samples, units]
                G, units, positions = self._norm_gradients(k, rows, samples, units, weights)
                yield k, Directions(G, samples, units, None, positions)
        samples, rivals = np.nonzero(dnorm_margin)
        if len(samples):
            last, label = self.job.depth - 1, y[samples]
            order = _channel_first(self.layout.images[0]) if self.layout.n_convs else None
            weights = dnorm_margin[samples, rivals]
            place = rivals - (rivals > label)
            G = norm_gradients(hyperplanes.pairs, samples, place, weights, self.job.p, order)
            yield last, Directions(G, samples, label, rivals, None)

    def finish(self) -> None:
        """Carry what patches have added up on to `sums`."""
        if self.patched is not None:
            self.patched.finish(self.sums)

    def _push_patches(
        self,
        stem: ConvStem,
        near: list[tuple[int, Directions]],
        hyperplanes: Hyperplanes,
        masks: list[np.ndarray],
    ) -> None:
        """Backprop of the directions around a few samples, through the patches of the stem."""
        drows = self.buffers.take("drows", *hyperplanes.rows[0].shape)
        drows[:] = 0
        for k, (G, samples, units, rivals, positions) in near:
            if positions is not None:
                _add_to_patches(drows, samples, positions, units, G)
                continue
            depth = stem.depth
            h, seen = stem.project(G, samples)
            mine = [mask[samples] for mask in masks[depth - 1 : k]]
            apply_mask(h, mine[0])
            coefficients = self._push_tail(k, h, mine, units, rivals)
            stem.add_patch_gradients(seen, coefficients, samples, drows)
        if near:
            stem.add_drows(drows)

    def _push_tail(self, k, h, masks, units, rivals):
        """From the stem's output to the hyperplane in layer k, and back: the stem's coefficients.

        `masks` are those of layer depth - 1 and on.
        """
        read, top = self.tail.directions(h, masks[1:])
        self._add_top(k, top, units, rivals)
        weights = self._top_weights(k, masks[-1], units, rivals)
        if not read:
            return weights
        deltas = self.tail.backward(weights, masks[1:-1])
        self.tail.add_direction_gradients(read, deltas, self.sums[self.stem.depth :])
        coefficients = self.tail.input_gradient(deltas[0])
        apply_mask(coefficients, masks[0])
        return coefficients

    def _push(self, k: int, parts: Sequence[Directions], block: Block) -> None:
        """Backprop of the directions whose hyperplanes are in layer k."""
        G, samples, units = (
            np.concatenate(column) for column in list(zip(*parts, strict=True))[:3]
        )
        # Either all of a layer's hyperplanes have them or none.
        others = [part.rivals for part in parts if part.rivals is not None]
        places = [part.positions for part in parts if part.positions is not None]
        rivals = np.concatenate(others) if others else None
        positions = np.concatenate(places) if places else None
        passes = self.passes if positions is None else self.stem.windows[k]
        if positions is not None:
            G = G[:, np.argsort(self.stem.pixels[k])]
        widest = max(layer.numbers for layer in passes.layers[: max(1, k)])
        most = max(16, CACHE // (widest * self.job.dtype.itemsize))
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
            self._push_some(passes, k, G[here], masks, units[here], rival)

    def _push_some(
        self,
        passes: Passes,
        k: int,
        G: np.ndarray,
        masks: list[np.ndarray],
        units: np.ndarray,
        rivals: np.ndarray | None,
    ) -> None:
        read, top = passes.directions(G, masks)
        self._add_top(k, top, units, rivals)
        if masks:
            weights = self._top_weights(k, masks[-1], units, rivals)
            passes.add_direction_gradients(read, passes.backward(weights, masks[:-1]), self.sums)

    def _add_top(self, k, top, units, rivals):
        """What reaches the hyperplanes' own layer k is the gradient to their weights there."""
        dW, _ = self.sums[k]
        _add_rows(dW, units, top, 1)
        if rivals is not None:
            _add_rows(dW, rivals, top, -1)

    def _top_weights(self, k, mask, units, rivals):
        """The hyperplanes' weights in their own layer k, through the mask before it."""
        W = self.layout.layers[k].W
        weights = self.buffers.take("unit weights", len(units), W.shape[1])
        others = units if rivals is None else rivals
        _unit_weights(W, units, others, rivals is not None, mask, weights)
        return weights


def _channel_first(image: tuple[int, int, int]) -> np.ndarray:
    """Where each number of a channel-last image stands in the channel-first one."""
    height, width, channels = image
    order = np.arange(height * width * channels).reshape(channels, height, width)
    return order.transpose(1, 2, 0).ravel()


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


@jit
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


@jit
def _unit_weights(W, units, rivals, paired, masks, out):
    """out[r] = W[unit] * mask, or (W[unit] - W[rival]) * mask."""
    for r in range(len(units)):
        own, other = W[units[r]], W[rivals[r]]
        for j in range(W.shape[1]):
            weight = own[j] - other[j] if paired else own[j]
            out[r, j] = weight if masks[r, j] else 0


@jit
def _add_to_patches(drows, samples, positions, channels, G):
    """drows[sample, position, :, channel] += G."""
    for r in range(len(G)):
        target = drows[samples[r], positions[r]]
        for j in range(G.shape[1]):
            target[j, channels[r]] += G[r, j]


@jit
def _add_rows(dW, units, rows, sign):
    """dW[unit] += sign * row."""
    for r in range(len(units)):
        target = dW[units[r]]
        for j in range(len(target)):
            target[j] += sign * rows[r, j]


@jit
def _slopes(values, norms, picked, slope, signed, dvalues, dnorms):
    """Gradients of ``-slope * d`` to value and norm of the hyperplanes picked; a margin's d is signed."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if picked[i, j]:
                value, norm = values[i, j], norms[i, j]
                side = 1 if signed or value > 0 else (-1 if value < 0 else 0)
                dvalues[i, j] = -slope * side / norm
                dnorms[i, j] = slope * side * (value / norm) / norm
