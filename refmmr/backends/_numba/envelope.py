"""Least upper relaxations on a box: twin of `refmmr.reference.envelope`.

The slopes of the weights of a node, a few hundred kilobytes, stay in a core's cache: each thread
takes one node after the other (`envelope_kernels`).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba import envelope_kernels as kernels
from refmmr.reference import envelope as reference
from refmmr.reference.ascent import MOMENTS, Nodes, mean_size, step_length
from refmmr.reference.backward_bound import LinearBound
from refmmr.reference.network import Network


@implements("numba", reference.ascend)
def ascend(
    net: Network,
    layer: reference.Hidden,
    row: np.ndarray,
    nodes: Nodes,
    centers: np.ndarray,
    steps: int,
    seen: int = reference.SEEN,
) -> reference.EnvelopeAscent:
    """Twin of `refmmr.reference.envelope.ascend`."""
    (W, b), (V, c) = net.parameters
    g = row @ V
    (lower, upper), fixed = nodes.bounds[0], nodes.fixed[0]
    n, d = centers.shape
    # Units that are active in all nodes are one function; those that are inactive are left out.
    free = (fixed == 0).all(axis=0)
    active = (lower >= 0).all(axis=0) & free
    used = np.flatnonzero(~active & ~((upper <= 0).all(axis=0) & free))
    A, constant = g[active] @ W[active], row @ c + g[active] @ b[active]
    half, middle = (layer.high - layer.low) / 2, (layer.high + layer.low) / 2
    exact = kernels.Exact(
        np.ascontiguousarray(W), used, b[used], layer.low, layer.high, g[used], A, float(constant)
    )
    P = np.ascontiguousarray(layer.P[used], np.float32)
    parts = (layer.q[used], layer.upper[used], g[used], A * half, [constant + A @ middle])
    fast = kernels.Fast(P, np.abs(P), *(np.array(part, np.float32) for part in parts))
    negative = fast.g < 0
    index = np.cumsum(negative) - 1

    def own(values, dtype):
        return np.array(values[:, used], dtype=dtype, order="C")

    state = kernels.Nodes(
        own(lower, np.float64), own(upper, np.float64), own(fixed, np.int8),
        own(nodes.slopes[0], np.float32), own(nodes.multipliers[0], np.float32),
        np.array(centers, np.float32, order="C"),
    )  # fmt: skip
    found = kernels.Found(
        np.empty((n, d)), np.empty(n), np.empty((n, len(used)), np.float32), np.empty((n, d))
    )
    shares, numbers = _schedule(steps, seen)
    sizes = mean_size(np.broadcast_to(g, lower.shape), upper)
    size = sizes.astype(np.float32)

    def part(start, stop):
        some = slice(start, stop)
        kernels.ascend(
            fast, exact, kernels.Nodes(*(array[some] for array in state)), index,
            int(negative.sum()), shares, numbers, size[some],
            kernels.Found(*(array[some] for array in found)),
        )  # fmt: skip

    threads.spread(part, n)
    slopes, betas, scores = (
        np.array(field, np.float32)
        for field in (nodes.slopes[0], nodes.multipliers[0], 0 * lower - 1)
    )
    for whole, values in (
        (slopes, state.slopes),
        (betas, state.multipliers),
        (scores, found.scores),
    ):
        whole[:, used] = values
    error = reference.bound_errors(net, layer, row, betas.astype(np.float64))[:, None]
    bound = LinearBound(found.A[:, None], found.constant[:, None], error, [])
    return reference.EnvelopeAscent(slopes, betas, state.centers, scores, found.points, bound)


@cache
def _schedule(steps: int, seen: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the averages (steps + 1,), and the numbers (steps, 3) of `kernels._step`."""
    late = reference.LATE
    shares = [late / (late + step + seen) for step in range(steps + 1)]
    numbers = [
        (
            reference.FIRST_RATE * step_length(step, steps) / step_length(0, steps),
            *(1 / (1 - moment ** (step + 1)) for moment in MOMENTS),
        )
        for step in range(steps)
    ]
    return np.array(shares, np.float32), np.array(numbers, np.float32).reshape(-1, 3)
