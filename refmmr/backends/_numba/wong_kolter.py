"""Training on the bound of Wong and Kolter: the twin of `reference.wong_kolter`.

A thread takes some samples at a time and goes with them through all layers, to the bounds and back
to the gradient; all it has to remember are their bounds and lines.

What is carried back are *rows*, each the coefficients of one linear function for one sample, in
blocks that stay in cache: a step through a layer is one product for the block, a step through a
ReLU one run over each row.  The row of a unit of a convolution only touches a window of the layer
before, and then of the image; it is kept as that window.  A dense layer's row is a window too, of
the size of the whole image (a vector is an image of one pixel).

Rows of the first layer are its weights, the same for all samples: their norms are found once, and
what is felt of these is added up over all samples.  The rows of the margins are carried back once:
their gradient is known at once.  Those of the layers between are carried back a second time, but
only the rows of unstable units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layers import Buffers, Conv, Dense, Geometry, Layer
from refmmr.backends._numba.layout import PRODUCTS_PER_THREAD, Layout, add_up, runs
from refmmr.reference import wong_kolter as reference
from refmmr.reference.loss import cross_entropy, cross_entropy_gradient
from refmmr.reference.network import Gradients, Network
from refmmr.reference.wong_kolter import parallel_relaxation, parallel_relaxation_gradient

NUMBERS = 2**18
"""Numbers of the widest array of a block of rows: what a core keeps near."""

SAMPLES = 32
"""Samples that go through all layers together."""


@implements("numba", reference.robust_loss_gradient)
def robust_loss_gradient(
    net: Network, X: np.ndarray, y: np.ndarray, p: float, eps: float
) -> tuple[float, float, Gradients]:
    """Twin of `refmmr.reference.wong_kolter.robust_loss_gradient`."""
    job = _Job(net, X, p, eps)
    workers: dict[int, _Worker] = {}

    def part(start: int, stop: int) -> None:
        workers[start] = worker = _Worker(job, len(X))
        for here in runs(start, stop, SAMPLES):
            worker.add(X[here], y[here])

    threads.spread(part, len(X), least=job.least)
    ordered = [workers[start] for start in sorted(workers)]
    sums = add_up({start: worker.sums for start, worker in workers.items()})
    if job.hidden:
        job.add_first_rows(np.sum([worker.first_reach for worker in ordered], axis=0), sums)
    value = sum(worker.value for worker in ordered)
    wrong = sum(worker.wrong for worker in ordered)
    return value, wrong / len(X), job.layout.gradients(sums)


class _Way(NamedTuple):
    """Where rows are at the input of some layer."""

    owner: np.ndarray  # (T,), the sample of each row
    place: np.ndarray  # (T,)
    vertices: np.ndarray  # (places, 2), may lie outside of the image
    window: tuple[int, int, int]  # height, width, channels
    image: tuple[int, int, int]


class _Chain:
    """The way of the rows of a layer's units back to the input.

    The input of layer j is entered by windows of shape ``windows[j]``, whose vertices, for each
    place of a unit, are ``vertices[j]``; they may lie outside of the image.  ``steps[j]`` leads from
    the window of layer j + 1 to that of layer j.
    """

    def __init__(self, layout: Layout, images: Sequence[tuple[int, int, int]], k: int) -> None:
        layer = layout.layers[k]
        self.units = layer.outputs
        self.steps: list[Layer] = []
        if isinstance(layer, Dense):
            self.shared = self.units  # units that share a place
            self.steps = list(layout.layers[:k])
            self.windows = list(images[: k + 1])
            self.vertices = [np.zeros((1, 2), dtype=np.int64)] * (k + 1)
        else:
            self.shared = len(layer.W)
            g = layer.geometry
            self.windows = [(g.kernel_height, g.kernel_width, g.channels)]
            row, column = np.divmod(np.arange(g.positions), g.columns)
            self.vertices = [np.column_stack([row * g.down - g.top, column * g.across - g.left])]
            for before in reversed(layout.layers[:k]):
                assert isinstance(before, Conv)  # dense layers come last
                self.steps.insert(0, self._grow(before))
        sizes = [window[0] * window[1] * window[2] for window in self.windows]
        self.widest = max([*sizes, *(step.numbers for step in self.steps)])
        self.products = sum(step.products for step in self.steps)

    def _grow(self, layer: Conv) -> Conv:
        """Add the window that a convolution looks at to see the first one so far.

        The layer is the same without its padding: pixels outside of the image are in the window.
        """
        g, vertices = layer.geometry, self.vertices[0]
        rows, columns, _ = self.windows[0]
        height = (rows - 1) * g.down + g.kernel_height
        width = (columns - 1) * g.across + g.kernel_width
        self.windows.insert(0, (height, width, g.channels))
        self.vertices.insert(0, vertices * (g.down, g.across) - (g.top, g.left))
        window = Geometry(
            height, width, g.channels, rows, columns, g.kernel_height, g.kernel_width, g.down,
            g.across, 0, 0,
        )  # fmt: skip
        return Conv(layer.W, layer.b, window)


class _Job:
    """What all threads share."""

    def __init__(self, net: Network, X: np.ndarray, p: float, eps: float) -> None:
        self.layout = layout = Layout(net, X)
        self.layers, self.dtype = layout.layers, layout.dtype
        self.p, self.eps = float(p), float(eps)
        self.hidden = len(self.layers) - 1
        self.classes = self.layers[-1].outputs
        images = [
            layout.images[k] if k <= layout.n_convs and layout.images else (1, 1, layer.inputs)
            for k, layer in enumerate(self.layers)
        ]
        self.images = images
        self.chains = [_Chain(layout, images, k) for k in range(len(self.layers))]
        # A convolution has one number for all pixels of a channel.
        self.bias = [np.tile(layer.b, layer.outputs // len(layer.b)) for layer in self.layers]
        products = sum(chain.units * (chain.products + 1) for chain in self.chains)
        self.least = max(1, PRODUCTS_PER_THREAD // (3 * products))
        classes = np.arange(self.classes)
        self.rivals = np.array([classes[classes != own] for own in classes])
        if self.hidden:
            self.first_norms = np.empty(self.layers[0].outputs, self.dtype)
            origin = np.zeros((1, self.layers[0].inputs), self.dtype)
            for here in self._first_units():
                rows, _, way = self._first_rows(here)
                _ends(rows, *way, origin, self.p, np.empty_like(rows[:, 0]), self.first_norms[here])

    def way(self, k: int, j: int, owner: np.ndarray, units: np.ndarray) -> _Way:
        """Where rows of layer k are at the input of layer j."""
        chain = self.chains[k]
        place = units // chain.shared
        return _Way(owner, place, chain.vertices[j], chain.windows[j], self.images[j])

    def add_first_rows(self, dreach: np.ndarray, sums: Gradients) -> None:
        """What the norms of the first layer's rows tell its weights."""
        origin = np.zeros((1, self.layers[0].inputs), self.dtype)
        for here in self._first_units():
            rows, channels, way = self._first_rows(here)
            _ends_gradient(
                rows, *way, origin, self.p, self.eps, self.first_norms[here],
                np.zeros_like(dreach[here]), dreach[here],
            )  # fmt: skip
            _add_rows(rows, channels, 1, sums[0][0])

    def _first_units(self) -> Iterator[slice]:
        chain = self.chains[0]
        return runs(0, chain.units, max(1, NUMBERS // chain.widest))

    def _first_rows(self, here: slice) -> tuple[np.ndarray, np.ndarray, _Way]:
        """The rows of some units, their channels, and where they are."""
        units = np.arange(here.start, here.stop)
        channels = units % len(self.layers[0].W)
        rows, way = self.layers[0].W[channels], self.way(0, 0, np.zeros_like(units), units)
        _clear_padding(rows, *way)
        return rows, channels, way


class _Samples(NamedTuple):
    """Some samples: bounds and lines of each hidden layer, and what is felt of the lines."""

    x: np.ndarray  # (n, d)
    y: np.ndarray  # (n,)
    lower: list[np.ndarray]  # (n, units)
    upper: list[np.ndarray]
    slopes: list[np.ndarray]
    intercepts: list[np.ndarray]
    dslopes: list[np.ndarray]
    dintercepts: list[np.ndarray]


class _Ends(NamedTuple):
    """The bounds of rows are ``center - reach + below`` and ``center + reach + above``, (T,)."""

    center: np.ndarray
    norm: np.ndarray  # reach = eps * norm
    below: np.ndarray
    above: np.ndarray


class _Worker:
    """A thread's own sums and memory."""

    def __init__(self, job: _Job, total: int) -> None:
        self.job, self.total = job, total
        self.buffers = Buffers(job.dtype)
        self.sums = job.layout.zeros()
        self.first_reach = np.zeros(job.layers[0].outputs, job.dtype)
        self.value, self.wrong = 0.0, 0

    def add(self, X: np.ndarray, y: np.ndarray) -> None:
        """Add the loss of some samples and its gradient."""
        samples = _Samples(self.job.layout.inputs(X), y, *([] for _ in _Samples._fields[2:]))
        for k in range(self.job.hidden):
            bounds = self._bounds(k, samples) if k else self._first_bounds(samples)
            lines = parallel_relaxation(*bounds)
            for column, array in zip(samples[2:6], (*bounds, *lines), strict=True):
                column.append(array)
            samples.dslopes.append(np.zeros_like(bounds[0]))
            samples.dintercepts.append(np.zeros_like(bounds[0]))
        self._margins(samples)
        for k in reversed(range(self.job.hidden)):
            felt = parallel_relaxation_gradient(
                *(column[k] for column in (samples[2:4] + samples[6:8]))
            )
            if k:
                self._add_gradient(k, samples, *felt)
            else:
                self._add_first_gradient(samples, *felt)

    # ---- Layer by layer.

    def _first_bounds(self, samples):
        job, layer = self.job, self.job.layers[0]
        center = np.empty((len(samples.x), layer.outputs), job.dtype)
        layer.linear(layer.read(samples.x, self.buffers, "read"), center)
        center += job.bias[0]
        reach = job.eps * job.first_norms
        return center - reach, center + reach

    def _add_first_gradient(self, samples, dlower, dupper):
        layer = self.job.layers[0]
        layer.add_gradient(
            layer.read(samples.x, self.buffers, "read"), dlower + dupper, *self.sums[0]
        )
        self.first_reach += (dupper - dlower).sum(axis=0)

    def _bounds(self, k, samples):
        """Bounds of all units of a hidden layer, (n, units)."""
        units = self.job.chains[k].units
        sides = np.empty((2, len(samples.x) * units), self.job.dtype)
        for here in self._blocks(k, sides.shape[1]):
            owner, unit = np.divmod(np.arange(here.start, here.stop), units)
            ends, _ = self._carry_back(k, samples, owner, unit, None, keep=False)
            sides[:, here] = self._sides(ends)
        return sides.reshape(2, -1, units)

    def _add_gradient(self, k, samples, dlower, dupper):
        """What is felt of the bounds of a hidden layer, (n, units), goes to lines and weights."""
        owners, units = np.nonzero((dlower != 0) | (dupper != 0))
        for here in self._blocks(k, len(owners)):
            owner, unit = owners[here], units[here]
            ends, carried = self._carry_back(k, samples, owner, unit, None, keep=True)
            felt = dlower[owner, unit], dupper[owner, unit]
            self._carry_forward(k, samples, owner, unit, None, ends, carried, *felt)

    def _margins(self, samples):
        """The loss, and what it says to the lines and weights behind the margins."""
        job, k = self.job, self.job.hidden
        rivals = job.rivals[samples.y]
        each = rivals.shape[1]
        for here in self._blocks(k, len(rivals), job.classes):
            y = samples.y[here]
            owner = np.repeat(np.arange(here.start, here.stop), each)
            own, rival = np.repeat(y, each), rivals[here].ravel()
            ends, carried = self._carry_back(k, samples, owner, own, rival, keep=True)
            logits = np.zeros((len(y), job.classes), job.dtype)
            place = owner - here.start, rival
            logits[place] = -self._sides(ends)[0]
            self.value += float(cross_entropy(logits, y).sum()) / self.total
            dlower = -(cross_entropy_gradient(logits, y) / self.total)[place]
            logits[np.arange(len(y)), y] = -np.inf
            self.wrong += int((logits.max(axis=1) >= 0).sum())
            felt = dlower, np.zeros_like(dlower)
            self._carry_forward(k, samples, owner, own, rival, ends, carried, *felt)

    def _sides(self, ends):
        reach = self.job.eps * ends.norm
        return ends.center - reach + ends.below, ends.center + reach + ends.above

    def _blocks(self, k, count, width=1):
        """Runs of rows, or of groups of `width` rows, of about the same length."""
        if not count:
            return iter(())
        most = max(1, NUMBERS // (width * self.job.chains[k].widest))
        return runs(0, count, -(-count // -(-count // most)))

    # ---- A block of rows.

    def _carry_back(self, k, samples, owner, units, rivals, keep):
        """Bounds of ``f_k[unit]``, or of ``f_k[unit] - f_k[rival]``.

        `carried` are the coefficients ``G_j`` of the input of each layer j, in buffers.  Without
        `keep` those behind a ReLU are used up on the way.
        """
        job, chain, dtype = self.job, self.job.chains[k], self.job.dtype
        layer = job.layers[k]
        channels = units % len(layer.W)
        rows = self.buffers.take(("G", k), len(owner), layer.W.shape[1])
        center = layer.b[channels]
        if rivals is None:
            np.take(layer.W, channels, axis=0, out=rows)
        else:
            np.subtract(layer.W[units], layer.W[rivals], out=rows)
            center = center - layer.b[rivals]
        ends = _Ends(center, *np.zeros((3, len(owner)), dtype))
        carried = [rows]
        for j in reversed(range(k)):
            way = job.way(k, j + 1, owner, units)
            _clear_padding(rows, *way)
            if keep:
                kept, rows = rows, self.buffers.take("A", *rows.shape)
                rows[:] = kept
            _relax(
                rows, *way, samples.slopes[j], samples.intercepts[j], job.bias[j], ends.center,
                ends.below, ends.above,
            )  # fmt: skip
            height, width, numbers = chain.windows[j]
            out = self.buffers.take(("G", j), len(owner), height * width * numbers)
            chain.steps[j].transpose(rows, out, self.buffers)
            rows = out
            carried.insert(0, rows)
        way = job.way(k, 0, owner, units)
        _clear_padding(rows, *way)
        _ends(rows, *way, samples.x, job.p, ends.center, ends.norm)
        return ends, carried

    def _carry_forward(self, k, samples, owner, units, rivals, ends, carried, dlower, dupper):
        """What is felt of the bounds goes to lines and weights on the way; uses up `carried`."""
        job, chain = self.job, self.job.chains[k]
        dcenter, dreach = dlower + dupper, dupper - dlower
        rows = carried[0]
        _ends_gradient(
            rows, *job.way(k, 0, owner, units), samples.x, job.p, job.eps, ends.norm, dcenter,
            dreach,
        )  # fmt: skip
        for j in range(k):
            step, A = chain.steps[j], carried[j + 1]
            dW, db = self.sums[j]
            read = step.read(rows, self.buffers, "read")
            rows = self.buffers.take(("dG", j + 1), *A.shape)
            step.linear(read, rows)
            way = job.way(k, j + 1, owner, units)
            _clear_padding(rows, *way)
            _relax_gradient(
                rows, A, *way, samples.slopes[j], samples.intercepts[j], job.bias[j], dcenter,
                dlower, dupper, samples.dslopes[j], samples.dintercepts[j],
            )  # fmt: skip
            step.add_gradient(read, A, dW, None)
            db += (dcenter @ A).reshape(-1, len(db)).sum(axis=0)
        dW, db = self.sums[k]
        channels = units % len(db)
        for sign, those in ((1, channels), (-1, rivals)):
            if those is not None:
                _add_rows(rows, those, sign, dW)
                db += sign * np.bincount(those, dcenter, len(db)).astype(db.dtype)


# A window is lines of `run` numbers, of which [begin, end) are inside of the image.  What is
# outside, padding, is set to 0 once and let alone.  Several short loops over what is in cache are
# quicker than one over many arrays, any of which might overlap.


@jit
def _clear_padding(rows, owner, place, vertices, window, image):
    run, line = window[1] * window[2], image[1] * image[2]
    for t in range(len(rows)):
        top, left = vertices[place[t], 0], vertices[place[t], 1] * image[2]
        begin = min(run, max(0, -left))
        end = max(begin, min(run, line - left))
        for y in range(window[0]):
            g = rows[t, y * run : (y + 1) * run]
            if 0 <= top + y < image[0]:
                g[:begin] = 0
                g[end:] = 0
            else:
                g[:] = 0


@jit
def _relax(
    rows, owner, place, vertices, window, image, slopes, intercepts, bias, center, below, above
):
    """Through a ReLU, in place, and take the intercepts and the layer's biases on board."""
    run, line = window[1] * window[2], image[1] * image[2]
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        i = owner[t]
        top, left = vertices[place[t], 0], vertices[place[t], 1] * image[2]
        begin = min(run, max(0, -left))
        end = max(begin, min(run, line - left))
        middle = low = high = zero
        for y in range(window[0]):
            if not 0 <= top + y < image[0]:
                continue
            g = rows[t, y * run + begin : y * run + end]
            start = (top + y) * line + left
            slope = slopes[i, start + begin : start + end]
            intercept = intercepts[i, start + begin : start + end]
            b = bias[start + begin : start + end]
            for c in range(len(g)):
                a = g[c]
                low += min(a, zero) * intercept[c]
                high += max(a, zero) * intercept[c]
                a *= slope[c]
                middle += a * b[c]
                g[c] = a
        center[t] += middle
        below[t] += low
        above[t] += high


@jit
def _relax_gradient(
    rows, carried, owner, place, vertices, window, image, slopes, intercepts, bias, dcenter, dlower,
    dupper, dslopes, dintercepts,
):  # fmt: skip
    """From the gradient to A to that to G, in place; and A instead of G in `carried`."""
    run, line = window[1] * window[2], image[1] * image[2]
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        i = owner[t]
        top, left = vertices[place[t], 0], vertices[place[t], 1] * image[2]
        begin = min(run, max(0, -left))
        end = max(begin, min(run, line - left))
        middle, low, high = dcenter[t], dlower[t], dupper[t]
        for y in range(window[0]):
            if not 0 <= top + y < image[0]:
                continue
            inside = slice(y * run + begin, y * run + end)
            d, g = rows[t, inside], carried[t, inside]
            start = (top + y) * line + left
            slope = slopes[i, start + begin : start + end]
            intercept = intercepts[i, start + begin : start + end]
            dslope = dslopes[i, start + begin : start + end]
            dintercept = dintercepts[i, start + begin : start + end]
            b = bias[start + begin : start + end]
            for c in range(len(g)):
                dintercept[c] += low * min(g[c], zero) + high * max(g[c], zero)
            for c in range(len(g)):
                d[c] += middle * b[c]
            for c in range(len(g)):
                dslope[c] += d[c] * g[c]
            for c in range(len(g)):
                side = low if g[c] < 0 else (high if g[c] > 0 else zero)
                d[c] = d[c] * slope[c] + side * intercept[c]
            for c in range(len(g)):
                g[c] *= slope[c]


@jit
def _ends(rows, owner, place, vertices, window, image, x, p, center, norm):
    """At the input: add ``<row, x>`` to the center, and find the dual norm."""
    run, line = window[1] * window[2], image[1] * image[2]
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        top, left = vertices[place[t], 0], vertices[place[t], 1] * image[2]
        begin = min(run, max(0, -left))
        end = max(begin, min(run, line - left))
        middle = size = zero
        for y in range(window[0]):
            if not 0 <= top + y < image[0]:
                continue
            g = rows[t, y * run + begin : y * run + end]
            start = (top + y) * line + left
            here = x[owner[t], start + begin : start + end]
            for c in range(len(g)):
                middle += g[c] * here[c]
            if p == 1:
                for c in range(len(g)):
                    size = max(size, abs(g[c]))
            elif p == 2:
                for c in range(len(g)):
                    size += g[c] * g[c]
            else:
                for c in range(len(g)):
                    size += abs(g[c])
        center[t] += middle
        norm[t] = np.sqrt(size) if p == 2 else size


@jit
def _ends_gradient(rows, owner, place, vertices, window, image, x, p, eps, norm, dcenter, dreach):
    """The gradient to the rows, in place of the rows."""
    width, channels = window[1], window[2]
    run, line = width * channels, image[1] * image[2]
    zero = rows.dtype.type(0)
    for t in range(len(rows)):
        top, left = vertices[place[t], 0], vertices[place[t], 1] * image[2]
        begin = min(run, max(0, -left))
        end = max(begin, min(run, line - left))
        middle, reach = dcenter[t], rows.dtype.type(eps * dreach[t])
        row = rows[t]
        largest, largest_sign = 0, zero
        if p == 1:
            # Of several largest ones the first in the user's order, channel by channel.
            best = -1
            for j in range(len(row)):
                if norm[t] > 0 and abs(row[j]) == norm[t]:
                    rank = (j % channels) * (len(row) // channels) + j // channels
                    if best < 0 or rank < best:
                        best, largest = rank, j
            if best >= 0:
                largest_sign = reach if row[largest] > 0 else -reach
        share = reach / norm[t] if norm[t] > 0 else zero
        for y in range(window[0]):
            if not 0 <= top + y < image[0]:
                continue
            g = row[y * run + begin : y * run + end]
            start = (top + y) * line + left
            here = x[owner[t], start + begin : start + end]
            if p == 1:
                for c in range(len(g)):
                    g[c] = middle * here[c]
            elif p == 2:
                for c in range(len(g)):
                    g[c] = middle * here[c] + share * g[c]
            else:
                for c in range(len(g)):
                    sign = reach if g[c] > 0 else (-reach if g[c] < 0 else zero)
                    g[c] = middle * here[c] + sign
        if p == 1:
            row[largest] += largest_sign


@jit
def _add_rows(rows, targets, sign, dW):
    """dW[target] += sign * row."""
    for t in range(len(rows)):
        target, row = dW[targets[t]], rows[t]
        for j in range(len(row)):
            target[j] += sign * row[j]
