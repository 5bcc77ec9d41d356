"""Twins of `refmmr.reference.mmr`: the regularizer and its gradient."""

from __future__ import annotations

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.distances import distances
from refmmr.backends._cupy.kernels import launch
from refmmr.backends._cupy.objective import objective
from refmmr.reference import mmr as reference
from refmmr.reference.mmr import MMR, Regularizer
from refmmr.reference.network import Gradients, Network


@implements("cupy", reference.mmr)
@on_device
def mmr(
    net: Network,
    X: cupy.ndarray,
    y: cupy.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> MMR:
    """See `refmmr.reference.mmr.mmr`."""
    d = distances(net, X, y, p)
    boundary_term, decision_term = (
        _mean_hinge(d.boundary, gamma_b, k_b), _mean_hinge(d.decision, gamma_d, k_d)
    )  # fmt: skip
    return MMR(boundary_term + decision_term, boundary_term, decision_term)


@implements("cupy", reference.mmr_gradient)
@on_device
def mmr_gradient(
    net: Network,
    X: cupy.ndarray,
    y: cupy.ndarray,
    p: float,
    gamma_b: float,
    gamma_d: float,
    k_b: int,
    k_d: int,
) -> tuple[float, Gradients]:
    """See `refmmr.reference.mmr.mmr_gradient`."""
    term = Regularizer(p, 1.0, gamma_b, gamma_d, k_b, k_d)
    found = objective(net, X, y, [term], with_cross_entropy=False)
    return float(found.mmr), found.gradients


def _mean_hinge(d, gamma, k):
    """``1/k sum_{j <= k} max(0, 1 - d^(j) / gamma)`` of each row."""
    d = cupy.ascontiguousarray(cupy.where(d == -cupy.inf, cupy.inf, d))
    hinges, slopes = cupy.zeros_like(d), cupy.empty_like(d)
    args = (d, hinges, slopes, d.shape[1], k, float(gamma), 1.0)
    launch("nearest", d.dtype, d.size, *args)
    return hinges.sum(axis=1)
