"""Twin of `refmmr.reference.pgd`: projected gradient descent.

An attack is a fixed sequence of kernels on fixed buffers (`Attack`).  The first time it is run
kernel by kernel.  The attack of the next batch has the same shapes and numbers, so it is captured
into a CUDA graph, and from then on the host sends all steps at once: in a training the host is
slower than the GPU by far.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.kernels import prepared
from refmmr.backends._cupy.passes import Passes, architecture
from refmmr.reference import pgd as reference
from refmmr.reference.network import Network
from refmmr.reference.pgd import _inward, steepest

GROUP = 1024
"""Samples that are attacked together; more would not be faster, and buffers grow with them."""
SEGMENTS = 32
"""Threads that share the pixels of a sample where its length is needed."""
KEPT = 2
"""Attacks whose buffers are kept: those of the full batches of a training and of the last one."""


@implements("cupy", reference.pgd)
@on_device
def pgd(
    net: Network,
    X: cupy.ndarray,
    y: cupy.ndarray,
    p: float,
    eps: float,
    steps: int,
    step_size: float,
    box: tuple[cupy.ndarray, cupy.ndarray] | None,
    start: cupy.ndarray,
    keep_last: bool = False,
) -> cupy.ndarray:
    """See `refmmr.reference.pgd.pgd`."""
    found = cupy.empty(X.shape, X.dtype)
    for first in range(0, len(X), GROUP):
        rows = slice(first, min(first + GROUP, len(X)))
        args = (p, float(eps), steps, float(step_size), box is not None, bool(keep_last))
        with _lock:
            attack = _attack(net, rows.stop - first, *args)
            attack.run(net, X[rows], y[rows], box, start[rows], found[rows])
    return found


_lock = threading.Lock()
_attacks: dict[tuple[object, ...], Attack] = {}


def _attack(net, n, *args):
    """An attack with these shapes and numbers; one that was run before if it is still kept."""
    key = (architecture(net), n, *args, cupy.cuda.get_current_stream().ptr)
    attack = _attacks.pop(key, None) or Attack(net, n, *args)
    _attacks[key] = attack
    while len(_attacks) > KEPT:
        del _attacks[next(iter(_attacks))]
    return attack


class Attack:
    """PGD on n samples as a sequence of kernels, for networks of one architecture.

    Parameters
    ----------
    net : Network
        On the device; its weights are not used yet.
    n : int
    p, eps, steps, step_size, keep_last
        See `refmmr.reference.pgd.pgd`.
    boxed : bool
        Whether there is a box.
    """

    def __init__(
        self,
        net: Network,
        n: int,
        p: float,
        eps: float,
        steps: int,
        step_size: float,
        boxed: bool,
        keep_last: bool,
    ) -> None:
        self.passes = Passes(net, n)
        self.p, self.eps, self.steps, self.step_size = p, eps, steps, step_size
        self.boxed, self.keep_last = boxed, keep_last
        self.dtype = self.passes.dtype
        self.Z, self.gradient = self.passes.inputs, self.passes.input_gradient
        self.X, self.best = (cupy.empty_like(self.Z) for _ in range(2))
        self.lo, self.hi = (cupy.empty(net.input_shape, self.dtype) for _ in range(2))
        self.y = cupy.empty(n, "i8")
        self.margins, self.better = cupy.empty(n, self.dtype), cupy.empty(n, bool)
        compare = [] if keep_last else self._compare(n)
        self.step = [*self.passes.forward, *compare, *self._gradient(n), *self._step(n)]
        self.end = [] if keep_last else [*self.passes.forward, *compare]
        # A step of the l_1 attack sorts, and needs memory: that cannot be captured.
        self.capturable, self.runs = p != 1, 0
        self.graph: Any = None

    def run(self, net, X, y, box, start, out):
        """Attack samples; all arguments are arrays on the device, the last is the result."""
        self.passes.load(net)
        self.X[...], self.y[...], self.Z[...] = X, y, start
        if self.boxed:
            self.lo[...], self.hi[...] = box
        if not self.keep_last:
            self.best[...], self.margins[...] = start, cupy.inf
        if self.runs == 1 and self.capturable:
            self._capture()
        if self.graph is None:
            self._launch()
        else:
            self.graph.launch()
        self.runs += 1
        out[...] = self.Z if self.keep_last else self.best

    def _launch(self):
        for launch in [*self.step * self.steps, *self.end]:
            launch()

    def _capture(self):
        """Make a graph of all launches; without one they are run as before."""
        stream = cupy.cuda.Stream(non_blocking=True)
        try:
            with stream:
                stream.begin_capture()
                try:
                    self._launch()
                finally:
                    graph = stream.end_capture()
            self.graph = graph
        except RuntimeError:  # a driver that refuses it: CuPy's errors are of this kind
            self.graph = None

    def _gradient(self, n):
        """The gradient of the log-odds, as in the reference."""
        passes = self.passes
        args = (passes.logits, self.y, passes.logit_gradient, passes.logits.shape[1])
        return [prepared("odds", self.dtype, n, *args), *passes.backward]

    def _compare(self, n):
        """Keep the point of smallest margin of each sample."""
        logits, Z = self.passes.logits, self.Z
        args = (logits, self.y, self.margins, self.better, logits.shape[1])
        return [
            prepared("smaller_margin", self.dtype, n, *args),
            prepared("keep_better", self.dtype, Z.size, self.better, Z, self.best, Z.size // n),
        ]

    def _step(self, n):
        """Along the direction of steepest ascent, then back into the ball and into the box."""
        X, Z, gradient, box = self.X, self.Z, self.gradient, (self.lo, self.hi)
        pixels = math.prod(Z.shape[1:])
        if self.p == 1:
            return [self._step_1]
        if self.p == cupy.inf:
            args = (X, gradient, *box, Z, self.boxed, pixels, self.step_size, self.eps)
            return [prepared("ascend_inf", self.dtype, Z.size, *args)]
        largest, sums, largest_step = (cupy.empty((n, SEGMENTS), self.dtype) for _ in range(3))
        sizes = (pixels, SEGMENTS)
        steps: list[tuple[Any, ...]] = [
            ("inward", gradient, Z, *box, largest, self.boxed, *sizes),
            ("squares", gradient, largest, sums, *sizes),
            ("ascend_2", X, gradient, largest, sums, Z, largest_step, *sizes, self.step_size),
            ("squares", Z, largest_step, sums, *sizes),
        ]
        launches = [prepared(name, self.dtype, n * SEGMENTS, *args) for name, *args in steps]
        end = (X, largest_step, sums, *box, Z, self.boxed, *sizes, self.eps)
        return [*launches, prepared("into_ball", self.dtype, Z.size, *end)]

    def _step_1(self):
        """The same for l_1: the largest component alone moves."""
        box = (self.lo, self.hi) if self.boxed else None
        direction = steepest(_inward(self.gradient, self.Z, box), 1)
        delta = (self.Z + self.step_size * direction - self.X).reshape(len(self.X), -1)
        Z = self.X + _onto_l1_ball(delta, self.eps).reshape(self.X.shape)
        self.Z[...] = Z if box is None else cupy.clip(Z, *box)


def _onto_l1_ball(delta, eps):
    """Project each row onto the l_1 ball of radius eps; see `refmmr.reference.pgd`."""
    size = cupy.abs(delta)
    descending = -cupy.sort(-size, axis=1)
    counts = cupy.arange(1, delta.shape[1] + 1, dtype=delta.dtype)
    thresholds = (cupy.cumsum(descending, axis=1) - eps) / counts
    last = cupy.maximum((descending > thresholds).sum(axis=1) - 1, 0)
    threshold = cupy.maximum(cupy.take_along_axis(thresholds, last[:, None], axis=1), 0)
    return cupy.sign(delta) * cupy.maximum(size - threshold, 0)
