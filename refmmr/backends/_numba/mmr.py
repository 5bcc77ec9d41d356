"""The value of MMR, and which hyperplanes have a gradient: twins of `refmmr.reference.mmr`.

Blocks of samples spread over threads; the hyperplanes around them come from `distances`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.backends._numba.distances import Hyperplanes, Shared
from refmmr.backends._numba.jit import jit
from refmmr.backends._numba.layout import runs
from refmmr.backends._numba.nearest import NearestWorker, NearHyperplanes
from refmmr.backends._numba.network import BLOCK
from refmmr.reference import mmr as reference
from refmmr.reference.mmr import MMR, Regularizer
from refmmr.reference.network import Network


@implements("numba", reference.mmr)
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
    shared, terms = Shared(net, X, p), (Regularizer(p, 1.0, gamma_b, gamma_d, k_b, k_d),)
    values = np.zeros((2, len(X)), shared.dtype)

    def part(start: int, stop: int) -> None:
        worker = NearestWorker(shared)
        for rows in runs(start, stop, BLOCK):
            block = worker.forward(X[rows], y[rows])
            for here, hyperplanes in worker.hyperplanes_near(block, (gamma_b,), (k_b,)):
                apply_hinges(hyperplanes, terms, "each", values[:, rows][:, here])

    threads.spread(part, len(X), least=shared.samples_per_thread)
    boundary, decision = values
    return MMR(boundary + decision, boundary, decision)


def apply_hinges(
    hyperplanes: Hyperplanes | NearHyperplanes,
    terms: Sequence[Regularizer],
    nearest: str,
    values: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Add the regularizers of c samples to `values`, and find what has a gradient.

    Parameters
    ----------
    hyperplanes : Hyperplanes or NearHyperplanes
    terms : sequence of Regularizer
        One for each norm of the hyperplanes.
    nearest : {"each", "union"}
        See `refmmr.reference.regularizers`.
    values : ndarray, shape (2, c)
        The boundary and the decision term, each multiplied by its lambda, of all regularizers.

    Returns
    -------
    boundary : ndarray of bool, shape (norms, c, N)
        Among the k_b nearest, and nearer than gamma_b.
    decision : ndarray of bool, shape (norms, c, K)
    """
    f, margin = np.abs(hyperplanes.f), hyperplanes.margin
    f_norms, margin_norms = hyperplanes.f_norms, hyperplanes.margin_norms
    unknown = np.full((len(terms), len(f)), np.inf, f.dtype)
    limits = hyperplanes.limits if isinstance(hyperplanes, NearHyperplanes) else unknown
    boundary, decision = np.zeros(f_norms.shape, bool), np.zeros(margin_norms.shape, bool)
    found = np.empty((2, len(f)), f.dtype)
    union = np.zeros(f.shape, bool)
    if nearest == "union":
        for term, norms, limit in zip(terms, f_norms, limits, strict=True):
            _mean_hinge(f, norms, limit, np.inf, term.k_b, union, found[0])
    for t, term in enumerate(terms):
        if nearest == "union":
            _hinges_of(f, f_norms[t], union, term.gamma_b, term.k_b, boundary[t], found[0])
        else:
            _mean_hinge(f, f_norms[t], limits[t], term.gamma_b, term.k_b, boundary[t], found[0])
        _mean_hinge(
            margin, margin_norms[t], unknown[t], term.gamma_d, term.k_d, decision[t], found[1]
        )
        values += f.dtype.type(term.lam) * found
    return boundary, decision


@jit
def _mean_hinge(values, norms, limits, gamma, k, active, terms):
    """``1/k sum_{j <= k} max(0, 1 - d^(j) / gamma)`` of the distances ``values / norms``.

    Twin of `mmr._mean_hinge` and `mmr.select_nearest`: among hyperplanes at the same
    distance the first are selected.  Only those nearer than gamma contribute, so the k-th
    nearest is searched among them.  values, norms: (c, m).  limits: (c,), the k-th nearest is not
    farther away.  active: (c, m), set where a hyperplane is selected and nearer than gamma.  terms:
    (c,), the result.
    """
    n, m = values.shape
    gamma = values.dtype.type(gamma)
    d = np.empty(m, values.dtype)
    near = np.empty(m, values.dtype)
    for i in range(n):
        count = 0
        for j in range(m):
            d[j] = values[i, j] / norms[i, j] if norms[i, j] > 0 else np.inf
            if d[j] == -np.inf:
                d[j] = np.inf  # a negative margin over a norm near 0: no hyperplane
        for j in range(m):
            near[count] = d[j]
            count += (d[j] < gamma) & (d[j] <= limits[i])
        total = values.dtype.type(0)
        if count > 0:
            last = near[:count].max() if count <= k else np.partition(near[:count], k - 1)[k - 1]
            below = 0
            for j in range(m):
                below += d[j] < last
            ties = k - below
            for j in range(m):
                if d[j] < last or (d[j] == last and ties > 0):
                    ties -= d[j] == last
                    active[i, j] = True
                    total += max(0, 1 - d[j] / gamma)
        terms[i] = total / k


@jit
def _hinges_of(values, norms, selected, gamma, k, active, terms):
    """``1/k sum max(0, 1 - d / gamma)`` over selected hyperplanes.

    values, norms: (c, m).  selected: (c, m) bool.  active: (c, m), set where a selected one is
    nearer than gamma.  terms: (c,), the result.
    """
    gamma = values.dtype.type(gamma)
    for i in range(len(values)):
        total = values.dtype.type(0)
        for j in range(values.shape[1]):
            if selected[i, j] and norms[i, j] > 0:
                d = values[i, j] / norms[i, j]
                if d < gamma:
                    active[i, j] = True
                    total += 1 - d / gamma
        terms[i] = total / k
