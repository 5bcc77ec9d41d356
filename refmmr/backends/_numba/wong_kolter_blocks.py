"""The bound of Wong and Kolter for networks with several hidden layers: records of the kernels.

`BlockPlan` lays the network out for `wong_kolter_kernels`, `BlockWorker` calls them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# The compiled products call this BLAS: loaded here, `threads` finds it and gives it one thread.
import scipy.linalg.cython_blas  # noqa: F401

from refmmr.backends._numba.layers import Buffers, Conv
from refmmr.backends._numba.wong_kolter_first import FirstLayer, pixels
from refmmr.backends._numba.wong_kolter_gradient import add_samples
from refmmr.backends._numba.wong_kolter_kernels import Blocks, Memory, Sums
from refmmr.reference.network import Gradients


class BlockPlan:
    """What all threads share."""

    def __init__(self, first: FirstLayer, eps: float) -> None:
        layout, self.first, inputs = first.layout, first, first.layer.inputs
        later = layout.layers[1:]
        empty = np.zeros(0, layout.dtype)
        sources = [np.zeros((1, 0), np.int32)]
        for k, layer in enumerate(later, start=1):
            if isinstance(layer, Conv):
                sources.append(pixels(layer))
            else:
                height, width, _ = layout.images[k] if k <= layout.n_convs else (1, 1, 0)
                sources.append(np.arange(height * width, dtype=np.int32)[None])
        self.weights = [
            layer.W.reshape(len(layer.W), found.shape[1], -1).transpose(1, 2, 0)
            for layer, found in zip(later, sources[1:], strict=True)
        ]
        channels = np.array([len(layer.b) for layer in layout.layers])
        places = np.array([len(first.inputs), *(len(found) for found in sources[1:])])
        taps = np.array([found.shape[1] for found in sources])
        self.first_unit = 1 + inputs + _starts(channels * places)
        self.blocks = Blocks(
            first.p, eps, inputs, first.input_channels, channels, places, taps,
            _starts(places)[:-1], self.first_unit[:-1], *_flat(sources),
            *_flat([empty, *self.weights]), *_flat([empty, *(layer.b for layer in later)]),
            first.inputs, np.ascontiguousarray(first.layer.W.T), first.norms,
        )  # fmt: skip
        self._set_sizes(sources)

    def _set_sizes(self, sources: Sequence[np.ndarray]) -> None:
        """Numbers that a thread's memory has to hold when all units are unstable."""
        channels = self.blocks.channels
        rows = [1 + (self.first.inputs > 0).sum(axis=1)]
        self.scratch = 0
        for k in range(1, len(sources)):
            before, after = int(channels[k - 1]), int(channels[k])
            each = np.append(rows[-1] + before, 0)  # the last one for padding, source -1
            rows.append(np.minimum(1 + each[sources[k]].sum(axis=1), self.first_unit[k]))
            most = int(rows[k - 1].max())
            self.scratch = max(self.scratch, most * after, most * before, before * after)
        self.rows = np.concatenate(rows)
        self.values = sum(int(n.sum() * c) for n, c in zip(rows, channels, strict=True))

    def memory(self) -> Memory:
        """Memory of a thread.  Most of it is never touched, and so never taken."""
        dtype, units = self.first.layout.dtype, int(self.first_unit[-1])
        starts = _starts(self.rows)

        def counts(n: int = len(self.rows)) -> np.ndarray:
            return np.zeros(n, np.int64)

        def floats(*shape: int) -> np.ndarray:
            return np.empty(shape, dtype)

        margins = self.weights[-1].size
        return Memory(
            rows=counts(), columns=counts(), unstable=counts(), variable_start=starts[:-1],
            value_start=counts(), variables=np.zeros(starts[-1], np.int32),
            values=floats(self.values), dvalues=floats(self.values), lower=floats(units),
            upper=floats(units), norm=floats(units), slope=floats(units), intercept=floats(units),
            dslope=floats(units), dintercept=floats(units), kept=counts(units),
            unstable_channels=counts(units), row_of=np.full(units, -1, np.int32),
            margin_weights=floats(margins), dmargin_weights=floats(margins),
            scratch=floats(3, self.scratch),
        )  # fmt: skip


class BlockWorker:
    """A thread's own sums and memory."""

    def __init__(self, plan: BlockPlan, total: int) -> None:
        self.plan, self.total = plan, total
        blocks, layer = plan.blocks, plan.first.layer
        self.buffers, self.memory = Buffers(plan.first.layout.dtype), plan.memory()
        likes = (blocks.weights, blocks.biases, blocks.first_weights, blocks.first_norms)
        self.sums = Sums(*(np.zeros_like(like) for like in likes))
        self.dfirst = np.zeros_like(layer.W), np.zeros_like(layer.b)
        self.dnorms = self.sums.first_norms
        self.value, self.wrong = 0.0, 0

    def add(self, X: np.ndarray, y: np.ndarray) -> None:
        """Add the loss of some samples and its gradients: twin of `forward` and `backward`."""
        first = self.plan.first
        operand = first.layer.operand(first.layout.inputs(X), self.buffers, "operand")
        centers = first.centers(operand, len(X))
        dcenters = np.empty_like(centers)
        value, wrong = add_samples(
            self.plan.blocks, self.memory, self.sums, centers, y, self.total, dcenters
        )
        self.value += value
        self.wrong += wrong
        first.layer.add_gradient(operand, dcenters, *self.dfirst)

    def gradients(self) -> Gradients:
        """Gradients in the order of the layout."""
        blocks, (dW, db) = self.plan.blocks, self.dfirst
        found = [(dW + self.sums.first_weights.T, db)]
        weights = np.split(self.sums.weights, blocks.weight_start[2:])
        biases = np.split(self.sums.biases, blocks.bias_start[2:])
        for W, dW, db in zip(self.plan.weights, weights, biases, strict=True):
            dW = dW.reshape(W.shape).transpose(2, 0, 1).reshape(W.shape[2], -1)
            found.append((np.ascontiguousarray(dW), db))
        return found


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of some runs begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(counts)])


def _flat(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays one after the other, and where each begins."""
    starts = _starts([array.size for array in arrays])
    return np.concatenate([array.ravel() for array in arrays]), starts[:-1]
