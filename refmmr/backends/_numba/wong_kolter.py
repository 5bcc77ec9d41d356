"""Training on the bound of Wong and Kolter: the twin of `refmmr.reference.wong_kolter`.

A thread takes `SAMPLES` samples at a time through all layers, to the bounds and back to the
gradients, and keeps only their bounds and relaxations.  The coefficients ``G_j`` of the reference
are made in blocks of *rows* that stay in cache (`wong_kolter_kernels`): a step through a layer is
one matrix product of the block, a step through a ReLU one compiled loop.

- First layer: its rows are its weights, the same for all samples.  Their norms are computed once,
  and their gradients are summed over the samples before they are propagated.
- Margins: their gradient is known as soon as they are, so their rows are propagated once, block by
  block: bounds, loss, gradient.
- Hidden layers between: the rows are propagated twice, for the bounds and again for the gradient,
  where only those of unstable units have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.layers import Buffers, Conv, Dense, Geometry, Layer
from refmmr.backends._numba.layout import PRODUCTS_PER_THREAD, Layout, add_up, runs
from refmmr.backends._numba.wong_kolter_kernels import (
    Relaxed,
    Terms,
    Windows,
    add_rows,
    clear_padding,
    input_terms,
    input_terms_gradient,
    relax,
    relax_gradient,
)
from refmmr.reference import wong_kolter as reference
from refmmr.reference.loss import cross_entropy, cross_entropy_gradient
from refmmr.reference.network import Gradients, Network
from refmmr.reference.wong_kolter import Bounds

NUMBERS = 2**18
"""Numbers in the widest array of a block of rows: 1 MB in float32, to stay in a core's cache."""

SAMPLES = 32
"""Samples that pass all layers together: this many bounds and relaxations are kept at a time."""


@implements("numba", reference.robust_loss_gradient)
def robust_loss_gradient(
    net: Network, X: np.ndarray, y: np.ndarray, p: float, eps: float
) -> tuple[float, float, Gradients]:
    """Twin of `refmmr.reference.wong_kolter.robust_loss_gradient`."""
    plan = _Plan(net, X, p, eps)
    workers: dict[int, _Worker] = {}

    def part(start: int, stop: int) -> None:
        workers[start] = worker = _Worker(plan, len(X))
        for here in runs(start, stop, SAMPLES):
            worker.add(X[here], y[here])

    threads.spread(part, len(X), least=plan.samples_per_thread)
    ordered = [workers[start] for start in sorted(workers)]
    sums = add_up({start: worker.sums for start, worker in workers.items()})
    if plan.hidden:
        plan.add_first_rows(np.sum([worker.dfirst_norms for worker in ordered], axis=0), sums)
    value = sum(worker.value for worker in ordered)
    wrong = sum(worker.wrong for worker in ordered)
    return value, wrong / len(X), plan.layout.gradients(sums)


class _Functions(NamedTuple):
    """T linear functions: ``f_k[unit]``, or ``f_k[unit] - f_k[rival]`` with rivals."""

    k: int
    owner: np.ndarray  # (T,), the sample of each
    units: np.ndarray  # (T,)
    rivals: np.ndarray | None  # (T,)


class _Batch(NamedTuple):
    """Some samples, and for each hidden layer their bounds and relaxations."""

    x: np.ndarray  # (n, d)
    y: np.ndarray  # (n,)
    bounds: list[Bounds]
    layers: list[Relaxed]


class _ReceptiveFields:
    """The windows that the units of layer k depend on, at the input of each layer j <= k.

    Attributes
    ----------
    units : int
        Units of layer k.
    units_per_place : int
        Units that have the same windows: the channels of an output pixel, or all units.
    shapes : list of (height, width, channels), one per j
    origins : list of ndarray of int, shape (places, 2), one per j
        Line and column of the first pixel of each window; it may lie outside of the image.
    steps : list of Dense and Conv, one per j < k
        From the windows at the input of layer j to those at the input of layer j + 1.
    widest : int
        Numbers in the largest array that a row needs.
    products : int
        Multiplications to propagate a row to the input.
    """

    def __init__(self, layout: Layout, images: Sequence[tuple[int, int, int]], k: int) -> None:
        layer = layout.layers[k]
        self.units = layer.outputs
        self.steps: list[Layer] = []
        if isinstance(layer, Dense):
            self.units_per_place = self.units
            self.steps = list(layout.layers[:k])
            self.shapes = list(images[: k + 1])
            self.origins = [np.zeros((1, 2), dtype=np.int64)] * (k + 1)
        else:
            self.units_per_place = len(layer.W)
            g = layer.geometry
            self.shapes = [(g.kernel_height, g.kernel_width, g.channels)]
            row, column = np.divmod(np.arange(g.positions), g.columns)
            self.origins = [np.column_stack([row * g.down - g.top, column * g.across - g.left])]
            for before in reversed(layout.layers[:k]):
                assert isinstance(before, Conv)  # dense layers come last
                self.steps.insert(0, self._grow(before))
        sizes = [height * width * channels for height, width, channels in self.shapes]
        self.widest = max([*sizes, *(step.buffer_size for step in self.steps)])
        self.products = sum(step.products for step in self.steps)

    def _grow(self, layer: Conv) -> Conv:
        """Add the windows at the input of the layer before: those that the first ones depend on.

        Returns that convolution on one window, without padding: a window includes the pixels
        outside of the image.
        """
        g, origins = layer.geometry, self.origins[0]
        rows, columns, _ = self.shapes[0]
        height = (rows - 1) * g.down + g.kernel_height
        width = (columns - 1) * g.across + g.kernel_width
        self.shapes.insert(0, (height, width, g.channels))
        self.origins.insert(0, origins * (g.down, g.across) - (g.top, g.left))
        window = Geometry(
            height, width, g.channels, rows, columns, g.kernel_height, g.kernel_width, g.down,
            g.across, 0, 0,
        )  # fmt: skip
        return Conv(layer.W, layer.b, window)


class _Plan:
    """What all threads share: the layout, the receptive fields, the norms of the first layer."""

    def __init__(self, net: Network, X: np.ndarray, p: float, eps: float) -> None:
        self.layout = layout = Layout(net, X)
        self.layers, self.dtype = layout.layers, layout.dtype
        self.p, self.eps = float(p), float(eps)
        self.hidden = len(self.layers) - 1
        self.classes = self.layers[-1].outputs
        self.images = [
            layout.images[k] if k <= layout.n_convs and layout.images else (1, 1, layer.inputs)
            for k, layer in enumerate(self.layers)
        ]
        self.fields = [_ReceptiveFields(layout, self.images, k) for k in range(len(self.layers))]
        # A convolution has one bias for all pixels of a channel.
        self.bias = [np.tile(layer.b, layer.outputs // len(layer.b)) for layer in self.layers]
        products = sum(fields.units * (fields.products + 1) for fields in self.fields)
        # Three passes: to the bounds, again, and the gradient.
        self.samples_per_thread = max(1, PRODUCTS_PER_THREAD // (3 * products))
        classes = np.arange(self.classes)
        self.rivals = np.array([classes[classes != own] for own in classes])
        if self.hidden:
            self.first_norms = np.empty(self.layers[0].outputs, self.dtype)
            for here, rows, _, windows in self._first_rows():
                center = np.empty_like(rows[:, 0])
                input_terms(rows, windows, self._origin(), self.p, center, self.first_norms[here])

    def windows(self, functions: _Functions, j: int) -> Windows:
        """Where the rows of some functions lie at the input of layer j."""
        fields = self.fields[functions.k]
        place = functions.units // fields.units_per_place
        image = self.images[j][:2]
        return Windows(functions.owner, place, fields.origins[j], *fields.shapes[j], *image)

    def add_first_rows(self, dnorms: np.ndarray, sums: Gradients) -> None:
        """Add the gradient of the norms of the first layer's rows, (units,), to its weights."""
        for here, rows, channels, windows in self._first_rows():
            norms, zeros = self.first_norms[here], np.zeros_like(dnorms[here])
            input_terms_gradient(rows, windows, self._origin(), self.p, norms, zeros, dnorms[here])
            add_rows(rows, channels, 1, sums[0][0])

    def _first_rows(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, Windows]]:
        """Blocks of rows of the first layer: its units, the rows, their channels and windows."""
        fields, W = self.fields[0], self.layers[0].W
        for here in runs(0, fields.units, max(1, NUMBERS // fields.widest)):
            units = np.arange(here.start, here.stop)
            channels = units % len(W)
            rows = W[channels]
            windows = self.windows(_Functions(0, np.zeros_like(units), units, None), 0)
            clear_padding(rows, windows)
            yield here, rows, channels, windows

    def _origin(self) -> np.ndarray:
        """One sample of zeros, (1, d), where only norms are asked for."""
        return np.zeros((1, self.layers[0].inputs), self.dtype)


class _Worker:
    """A thread's own sums and memory."""

    def __init__(self, plan: _Plan, total: int) -> None:
        self.plan, self.total = plan, total
        self.buffers = Buffers(plan.dtype)
        self.sums = plan.layout.zeros()
        self.dfirst_norms = np.zeros(plan.layers[0].outputs, plan.dtype)
        self.value, self.wrong = 0.0, 0

    def add(self, X: np.ndarray, y: np.ndarray) -> None:
        """Add the loss of some samples and its gradients: twin of `forward` and `backward`."""
        plan = self.plan
        batch = _Batch(plan.layout.inputs(X), y, [], [])
        for k in range(plan.hidden):
            bounds = self._bounds(k, batch) if k else self._first_bounds(batch)
            relaxation = reference.parallel_relaxation(*bounds)
            zeros = (np.zeros_like(bounds.lower) for _ in relaxation)
            batch.bounds.append(bounds)
            batch.layers.append(Relaxed(*relaxation, plan.bias[k], *zeros))
        self._add_margins(batch)
        for k in reversed(range(plan.hidden)):
            *_, dslope, dintercept = batch.layers[k]
            dbounds = reference.parallel_relaxation_gradient(*batch.bounds[k], dslope, dintercept)
            if k:
                self._add_gradient(k, batch, dbounds)
            else:
                self._add_first_gradient(batch, dbounds)

    # ---- Layer by layer.

    def _first_bounds(self, batch):
        """``W x + b -+ eps ||W||_q``, (n, units) each."""
        plan, layer = self.plan, self.plan.layers[0]
        center = np.empty((len(batch.x), layer.outputs), plan.dtype)
        layer.linear(layer.operand(batch.x, self.buffers, "operand"), center)
        center += plan.bias[0]
        reach = plan.eps * plan.first_norms
        return Bounds(center - reach, center + reach)

    def _add_first_gradient(self, batch, dbounds):
        """From the bounds of the first layer to its weights, and to the norms of its rows."""
        layer, (dlower, dupper) = self.plan.layers[0], dbounds
        operand = layer.operand(batch.x, self.buffers, "operand")
        layer.add_gradient(operand, dlower + dupper, *self.sums[0])
        self.dfirst_norms += self.plan.eps * (dupper - dlower).sum(axis=0)

    def _bounds(self, k, batch):
        """Bounds of all units of a later hidden layer, (n, units) each."""
        units = self.plan.fields[k].units
        flat = np.empty((2, len(batch.x) * units), self.plan.dtype)
        for here in self._blocks(k, flat.shape[1]):
            functions = _Functions(k, *np.divmod(np.arange(here.start, here.stop), units), None)
            terms, _ = self._linear_bounds(batch, functions, keep=False)
            flat[:, here] = self._lower_and_upper(terms)
        return Bounds(*flat.reshape(2, -1, units))

    def _add_gradient(self, k, batch, dbounds):
        """From the bounds of a later hidden layer, (n, units) each, to relaxations and weights."""
        dlower, dupper = dbounds
        owners, units = np.nonzero((dlower != 0) | (dupper != 0))
        for here in self._blocks(k, len(owners)):
            functions = _Functions(k, owners[here], units[here], None)
            terms, G = self._linear_bounds(batch, functions, keep=True)
            some = owners[here], units[here]
            self._linear_bounds_gradient(batch, functions, terms, G, dlower[some], dupper[some])

    def _add_margins(self, batch):
        """Add the loss of the margins, and its gradients of relaxations and weights."""
        plan, k = self.plan, self.plan.hidden
        rivals = plan.rivals[batch.y]
        each = rivals.shape[1]
        for here in self._blocks(k, len(rivals), plan.classes):
            y = batch.y[here]
            owner, rival = np.repeat(np.arange(here.start, here.stop), each), rivals[here].ravel()
            functions = _Functions(k, owner, np.repeat(y, each), rival)
            terms, G = self._linear_bounds(batch, functions, keep=True)
            logits = np.zeros((len(y), plan.classes), plan.dtype)
            entries = owner - here.start, rival
            logits[entries] = -self._lower_and_upper(terms)[0]
            self.value += float(cross_entropy(logits, y).sum()) / self.total
            dlower = -(cross_entropy_gradient(logits, y) / self.total)[entries]
            logits[np.arange(len(y)), y] = -np.inf
            self.wrong += int((logits.max(axis=1) >= 0).sum())
            dupper = np.zeros_like(dlower)
            self._linear_bounds_gradient(batch, functions, terms, G, dlower, dupper)

    def _lower_and_upper(self, terms):
        reach = self.plan.eps * terms.norm
        return terms.center - reach + terms.below, terms.center + reach + terms.above

    def _blocks(self, k, count, rows=1):
        """Cut `count` groups of `rows` rows of layer k into runs of about equal length."""
        if not count:
            return iter(())
        most = max(1, NUMBERS // (rows * self.plan.fields[k].widest))
        return runs(0, count, -(-count // -(-count // most)))

    # ---- A block of rows.

    def _linear_bounds(self, batch, functions, keep):
        """Terms of the bounds of T functions, and G: twin of the reference's `_linear_bounds`.

        ``G[j]``, in buffers, is (T, numbers of a window at the input of layer j).  Without `keep`
        those of later layers are overwritten by A.
        """
        plan, (k, owner, units, rivals) = self.plan, functions
        fields, layer = plan.fields[k], plan.layers[k]
        channels = units % len(layer.W)
        rows = self.buffers.take(("G", k), len(owner), layer.W.shape[1])
        center = layer.b[channels]
        if rivals is None:
            np.take(layer.W, channels, axis=0, out=rows)
        else:
            np.subtract(layer.W[units], layer.W[rivals], out=rows)
            center = center - layer.b[rivals]
        terms = Terms(center, *np.zeros((3, len(owner)), plan.dtype))
        G = [rows]
        for j in reversed(range(k)):
            windows = plan.windows(functions, j + 1)
            clear_padding(rows, windows)
            if keep:
                rows = self.buffers.take("A", *rows.shape)
                rows[:] = G[0]
            relax(rows, windows, batch.layers[j], terms)
            height, width, numbers = fields.shapes[j]
            before = self.buffers.take(("G", j), len(owner), height * width * numbers)
            fields.steps[j].transpose(rows, before, self.buffers)
            rows = before
            G.insert(0, rows)
        windows = plan.windows(functions, 0)
        clear_padding(rows, windows)
        input_terms(rows, windows, batch.x, plan.p, terms.center, terms.norm)
        return terms, G

    def _linear_bounds_gradient(self, batch, functions, terms, G, dlower, dupper):
        """Add to the gradients of relaxations and weights: twin of `_linear_bounds_gradient`.

        dlower, dupper: (T,).  Overwrites G.
        """
        plan, (k, _, units, rivals) = self.plan, functions
        dterms = Terms(dlower + dupper, plan.eps * (dupper - dlower), dlower, dupper)
        rows, windows = G[0], plan.windows(functions, 0)
        input_terms_gradient(rows, windows, batch.x, plan.p, terms.norm, dterms.center, dterms.norm)
        for j, step in enumerate(plan.fields[k].steps):
            A, (dW, db) = G[j + 1], self.sums[j]
            operand = step.operand(rows, self.buffers, "operand")
            rows = self.buffers.take(("dG", j + 1), *A.shape)
            step.linear(operand, rows)
            windows = plan.windows(functions, j + 1)
            clear_padding(rows, windows)
            relax_gradient(rows, A, windows, batch.layers[j], dterms)
            step.add_gradient(operand, A, dW, None)
            db += (dterms.center @ A).reshape(-1, len(db)).sum(axis=0)
        dW, db = self.sums[k]
        channels = units % len(db)
        for sign, targets in ((1, channels), (-1, rivals)):
            if targets is not None:
                add_rows(rows, targets, sign, dW)
                db += sign * np.bincount(targets, dterms.center, len(db)).astype(db.dtype)
