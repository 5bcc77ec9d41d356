"""Distances, and MMR with its gradient: twins of `reference.distances` and `reference.mmr`.

Samples are dealt with in blocks that stay in cache, and the blocks spread over threads.  The hyperplanes
come from `hyperplanes`, gradients from `gradients`.
"""

from __future__ import annotations

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.distances import Job, Observer, pick
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layout import add_up, runs
from refmmr.backends._numba.mmr_gradient import Worker
from refmmr.reference import distances as reference_distances
from refmmr.reference import mmr as reference_mmr
from refmmr.reference.distances import Distances
from refmmr.reference.mmr import MMR
from refmmr.reference.network import Gradients, Network

BLOCK = 64
"""Samples whose forward passes are kept at a time."""


@implements("numba", reference_distances.distances)
def distances(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None = None,
) -> Distances:
    """Twin of `refmmr.reference.distances.distances`."""
    job = Job(net, X, p)
    result = Distances(
        np.empty((len(X), net.n_hidden), job.dtype), np.empty((len(X), net.n_classes), job.dtype)
    )
    sides = None
    if box is not None:
        lo, hi = (
            job.layout.inputs(np.broadcast_to(side, net.input_shape)[None])[0] for side in box
        )
        sides = lo, hi

    def part(start: int, stop: int) -> None:
        observer = Observer(job)
        for rows in runs(start, stop, BLOCK):
            labels = y[rows]
            for here, hyperplanes in observer.hyperplanes(observer.look(X[rows], labels)):
                boundary, decision = (side[rows][here] for side in result)
                if sides is None:
                    _distance(np.abs(hyperplanes.f), hyperplanes.f_norms, boundary)
                    _distance(hyperplanes.margin, hyperplanes.margin_norms, decision)
                else:
                    boundary[:], decision[:] = observer.in_box(hyperplanes, labels[here], sides)
                decision[np.arange(len(decision)), labels[here]] = np.inf

    threads.spread(part, len(X), least=job.least)
    return result


@implements("numba", reference_mmr.mmr)
def mmr(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> MMR:
    """Twin of `refmmr.reference.mmr.mmr`."""
    job = Job(net, X, p)
    terms = np.zeros((2, len(X)), job.dtype)

    def part(start: int, stop: int) -> None:
        observer = Observer(job)
        for rows in runs(start, stop, BLOCK):
            for here, hyperplanes in observer.hyperplanes(observer.look(X[rows], y[rows])):
                pick(hyperplanes, (gamma_b, gamma_d), (k_b, k_d), terms[:, rows][:, here])

    threads.spread(part, len(X), least=job.least)
    boundary, decision = terms
    return MMR(boundary + decision, boundary, decision)


@implements("numba", reference_mmr.mmr_gradient)
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
    job = Job(net, X, p)
    values = np.zeros((2, len(X)), job.dtype)
    parts: dict[int, Gradients] = {}

    def part(start: int, stop: int) -> None:
        worker = Worker(job)
        for rows in runs(start, stop, BLOCK):
            worker.add_gradients(X[rows], y[rows], (gamma_b, gamma_d), (k_b, k_d), values[:, rows])
        worker.finish()
        parts[start] = worker.sums

    threads.spread(part, len(X), least=job.least)
    return float(values.sum(dtype=np.float64)) / len(X), job.layout.gradients(add_up(parts))


@jit
def _distance(values, norms, out):
    """Values / norms; where there is no hyperplane, infinity on the side of the value."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if norms[i, j] > 0:
                out[i, j] = values[i, j] / norms[i, j]
            else:
                out[i, j] = -np.inf if values[i, j] < 0 else np.inf
