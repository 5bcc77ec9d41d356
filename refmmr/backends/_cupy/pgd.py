"""Twin of `refmmr.reference.pgd`: projected gradient descent."""

from __future__ import annotations

import math

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.kernels import launch
from refmmr.backends._cupy.loss import backward
from refmmr.backends._cupy.network import one_hot
from refmmr.reference import pgd as reference
from refmmr.reference.loss import softmax
from refmmr.reference.network import Network
from refmmr.reference.pgd import _better, _inward, steepest


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
    own = one_hot(y, net.n_classes)
    step = _step_inf if p == cupy.inf else _step
    Z = best = start
    best_margin = cupy.full(len(X), cupy.inf, X.dtype)
    for _ in range(steps):
        cache = net.forward(Z)
        logits = cache.outputs[-1].reshape(len(X), -1)
        best, best_margin = _better(best, best_margin, Z, _margins(logits, own))
        # The gradient of the log-odds, as in the reference.
        dlogits = cupy.where(own, -1, softmax(cupy.where(own, -cupy.inf, logits)))
        gradient = net.input_gradient(backward(net, cache, dlogits))
        Z = step(X, Z, gradient, p, eps, step_size, box)
    if keep_last:
        return Z
    return _better(best, best_margin, Z, _margins(net.logits(Z), own))[0]


def _margins(logits, own):
    """``f_y - max_{s != y} f_s`` of each sample, shape (n,)."""
    rivals = cupy.where(own, -cupy.inf, logits).max(axis=1)
    return cupy.where(own, logits, 0).sum(axis=1) - rivals


def _step(X, Z, gradient, p, eps, step_size, box):
    """A step of l_p length `step_size`, then back into the ball and into the box."""
    Z = Z + step_size * steepest(_inward(gradient, Z, box), p)
    if p == 2:
        return reference.project(X, Z, p, eps, box)
    delta = _onto_l1_ball((Z - X).reshape(len(X), -1), eps)
    Z = X + delta.reshape(X.shape)
    return Z if box is None else cupy.clip(Z, *box)


def _step_inf(X, Z, gradient, p, eps, step_size, box):
    """The same for l_inf, in one kernel."""
    lo, hi = (X, X) if box is None else _bounds(box, X)
    Z = Z.copy()
    launch(
        "ascend_inf", X.dtype, X.size, cupy.ascontiguousarray(X),
        cupy.ascontiguousarray(gradient), lo, hi, Z, box is not None, math.prod(X.shape[1:]),
        float(step_size), float(eps),
    )  # fmt: skip
    return Z


def _bounds(box, X):
    """The box as two contiguous arrays of the shape of an input."""
    return (cupy.ascontiguousarray(cupy.broadcast_to(bound, X.shape[1:])) for bound in box)


def _onto_l1_ball(delta, eps):
    """Project each row onto the l_1 ball of radius eps; see `refmmr.reference.pgd`."""
    size = cupy.abs(delta)
    descending = -cupy.sort(-size, axis=1)
    counts = cupy.arange(1, delta.shape[1] + 1, dtype=delta.dtype)
    thresholds = (cupy.cumsum(descending, axis=1) - eps) / counts
    last = cupy.maximum((descending > thresholds).sum(axis=1) - 1, 0)
    threshold = cupy.maximum(cupy.take_along_axis(thresholds, last[:, None], axis=1), 0)
    return cupy.sign(delta) * cupy.maximum(size - threshold, 0)
