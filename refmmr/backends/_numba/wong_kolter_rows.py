"""The bound of Wong and Kolter for networks with at most one hidden layer.

The rows ``A = W_y - W_c`` of the margins of many samples are one matrix, and the first layer, which
all samples share, takes it to the input and its gradient back in one product each.  The steps
are those of `reference.wong_kolter`, on blocks of rows that stay in cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers
from refmmr.backends._numba.layout import runs
from refmmr.backends._numba.wong_kolter_first import FirstLayer
from refmmr.reference.loss import cross_entropy, cross_entropy_gradient
from refmmr.reference.network import Gradients
from refmmr.reference.wong_kolter import parallel_relaxation, parallel_relaxation_gradient

NUMBERS = 2**18
"""Numbers in the widest array of a block of rows: 1 MB in float32, to stay in a core's cache."""


class Relaxed(NamedTuple):
    """The hidden layer of n samples, (n, units); without one the inputs, with slope 1."""

    center: np.ndarray  # f at the center of the ball
    slope: np.ndarray
    intercept: np.ndarray


class RowWorker:
    """A thread's own sums and memory."""

    def __init__(self, first: FirstLayer, eps: float, total: int) -> None:
        self.first, self.eps, self.total = first, eps, total
        self.layers, self.dtype = first.layout.layers, first.layout.dtype
        self.hidden = len(self.layers) > 1
        self.buffers = Buffers(self.dtype)
        self.sums = first.layout.zeros()
        self.dnorms = np.zeros_like(first.norms)
        self.value, self.wrong = 0.0, 0
        classes = np.arange(self.layers[-1].outputs)
        self.rivals = np.array([classes[classes != own] for own in classes])

    def gradients(self) -> Gradients:
        """Gradients in the order of the layout."""
        return self.sums

    def add(self, X: np.ndarray, y: np.ndarray) -> None:
        """Add the loss of some samples and its gradients: twin of `forward` and `backward`."""
        x, first, eps = self.first.layout.inputs(X), self.layers[0], self.eps
        if self.hidden:
            operand = first.operand(x, self.buffers, "operand of x")
            center = self.first.centers(operand, len(x))
            bounds = center - eps * self.first.norms, center + eps * self.first.norms
            relaxed = Relaxed(center, *parallel_relaxation(*bounds))
        else:
            relaxed = Relaxed(x, np.ones_like(x), np.zeros_like(x))
        drelaxed = Relaxed(*(np.zeros_like(x) for x in relaxed))
        widest = max(first.inputs, first.outputs, first.buffer_size)
        most = max(1, NUMBERS // (widest * len(self.rivals)))
        for here in runs(0, len(y), -(-len(y) // -(-len(y) // most))):
            self._add_rows(
                y[here], *(Relaxed(*(x[here] for x in record)) for record in (relaxed, drelaxed))
            )
        if self.hidden:
            dlower, dupper = parallel_relaxation_gradient(
                *bounds, drelaxed.slope, drelaxed.intercept
            )
            dcenter = drelaxed.center + dlower + dupper
            first.add_gradient(operand, dcenter, *self.sums[0])
            self.dnorms += eps * (dupper - dlower).sum(axis=0)

    def _add_rows(self, y, relaxed, drelaxed):
        """Add the loss of a block of samples, its gradients, and those of the relaxation."""
        first, last, each = self.layers[0], self.layers[-1], self.rivals.shape[1]
        own, rivals = np.repeat(y, each), self.rivals[y].ravel()
        G = self.buffers.take("G", len(own), last.inputs)
        np.subtract(last.W[own], last.W[rivals], out=G)
        A = self.buffers.take("A", *G.shape)
        center, below, norms = np.zeros((3, len(own)), self.dtype)
        relax(G, relaxed, A, center, below)
        rows = A
        if self.hidden:
            rows = self.buffers.take("rows", len(own), first.inputs)
            first.transpose(A, rows, self.buffers)
        row_norms(rows, self.first.p, norms)
        lower = center + last.b[own] - last.b[rivals] - self.eps * norms + below

        logits = np.zeros((len(y), last.outputs), self.dtype)
        entries = np.repeat(np.arange(len(y)), each), rivals
        logits[entries] = -lower
        self.value += float(cross_entropy(logits, y).sum()) / self.total
        dlower = -(cross_entropy_gradient(logits, y) / self.total)[entries]
        logits[np.arange(len(y)), y] = -np.inf
        self.wrong += int((logits.max(axis=1) >= 0).sum())

        row_norms_gradient(rows, self.first.p, self.first.input_channels, norms, -self.eps * dlower)
        if self.hidden:
            operand = first.operand(rows, self.buffers, "operand")
            rows = self.buffers.take("dA", *A.shape)
            first.linear(operand, rows)
            first.add_gradient(operand, A, self.sums[0][0], None)
        relax_gradient(rows, G, A, relaxed, dlower, drelaxed)
        dW, db = self.sums[-1]
        for sign, targets in ((1, own), (-1, rivals)):
            add_rows(rows, targets, sign, dW)
            db += sign * np.bincount(targets, dlower, len(db)).astype(db.dtype)


# ---- T rows, several for each of n samples, one sample's after the other's.


@jit
def relax(G, relaxed, A, center, below):
    """From G behind the ReLUs to ``A = G s``, ``center = A c`` and ``below = min(G, 0) t``.

    G: (T, units).  A: (T, units), the result, as center and below, (T,).
    """
    each, zero = len(G) // len(relaxed.center), G.dtype.type(0)
    for t in range(len(G)):
        g, a, n = G[t], A[t], t // each
        slope, intercept, f = relaxed.slope[n], relaxed.intercept[n], relaxed.center[n]
        product = least = zero
        for j in range(len(g)):
            a[j] = g[j] * slope[j]
        for j in range(len(g)):
            product += a[j] * f[j]
            least += min(g[j], zero) * intercept[j]
        center[t], below[t] = product, least


@jit
def relax_gradient(dA, G, A, relaxed, dlower, drelaxed):
    """The chain rule of `relax`, from dA to dG.

    Twin of ``dA += dl c``, ``ds += dA G``, ``dt += dl min(G, 0)``, ``dG = dA s + dl 1[G < 0] t`` in
    `reference.wong_kolter`.  dA: (T, units), then dG.  G, A: (T, units).  dlower: (T,).
    """
    each, zero = len(G) // len(relaxed.center), G.dtype.type(0)
    for t in range(len(G)):
        d, g, a, n, dl = dA[t], G[t], A[t], t // each, dlower[t]
        slope, intercept, f = relaxed.slope[n], relaxed.intercept[n], relaxed.center[n]
        dslope, dintercept, df = drelaxed.slope[n], drelaxed.intercept[n], drelaxed.center[n]
        for j in range(len(g)):
            d[j] += dl * f[j]
        for j in range(len(g)):
            dslope[j] += d[j] * g[j]
        for j in range(len(g)):
            dintercept[j] += dl * min(g[j], zero)
        for j in range(len(g)):
            df[j] += dl * a[j]
        for j in range(len(g)):
            d[j] = d[j] * slope[j] + (dl if g[j] < 0 else zero) * intercept[j]


@jit
def row_norms(rows, p, norms):
    """``||row||_q``.  rows: (T, d).  norms: (T,), the result."""
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        row, size = rows[t], zero
        if p == 1:
            for j in range(len(row)):
                size = max(size, abs(row[j]))
        elif p == 2:
            for j in range(len(row)):
                size += row[j] * row[j]
        else:
            for j in range(len(row)):
                size += abs(row[j])
        norms[t] = np.sqrt(size) if p == 2 else size


@jit
def row_norms_gradient(rows, p, channels, norms, dnorms):
    """From rows to ``dnorm grad ||row||_q``.  rows: (T, d), changed in place.  norms: (T,)."""
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        row, dnorm = rows[t], dnorms[t]
        if p == 2:
            scale = dnorm / norms[t] if norms[t] > 0 else zero
            for j in range(len(row)):
                row[j] *= scale
        elif p == 1:
            largest = _first_largest(row, channels, norms[t])
            sign = 1 if row[largest] > 0 else (-1 if row[largest] < 0 else 0)
            row[:] = 0
            row[largest] = sign * dnorm
        else:
            for j in range(len(row)):
                row[j] = dnorm if row[j] > 0 else (-dnorm if row[j] < 0 else zero)


@jit
def _first_largest(row, channels, largest):
    """Position of the first of the largest coefficients in the user's order, channel by channel.

    row: (d,).  largest: their absolute value.
    """
    found, best = 0, len(row)
    for j in range(len(row)):
        if abs(row[j]) == largest:
            rank = (j % channels) * (len(row) // channels) + j // channels
            if rank < best:
                found, best = j, rank
    return found


@jit
def add_rows(rows, targets, sign, dW):
    """``dW[target] += sign * row`` of each row: the gradient of taking rows from the weights.

    rows: (T, units).  targets: (T,).  dW: (outputs, units), added to.
    """
    for t in range(len(rows)):
        target, row = dW[targets[t]], rows[t]
        for j in range(len(row)):
            target[j] += sign * row[j]
