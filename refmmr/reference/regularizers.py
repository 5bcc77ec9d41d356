"""Several regularizers at once, as in MMR-Universal.

MMR in one norm makes the regions around the data large in that norm alone.  MMR-Universal (Croce,
Hein 2020, "Provable robustness against all adversarial l_p-perturbations for p >= 1") adds those of
l_1 and l_inf, with their own weights and target distances:

    R = sum_{p in {1, inf}} lam_p [ 1/k_B sum_{j <= k_B} h(d_B^(p,j) / gamma_p)
                                  + 1/K sum_s h(d_D^(p,s) / gamma_p) ],
    h(t) = max(0, 1 - t),

with ``d_B^(p,j)`` the j-th smallest of the distances in l_p.  A region that contains an l_1 ball
and an l_inf ball contains their convex hull, and so an l_p ball for every p between
(`refmmr.reference.universal`).

The k_B nearest boundaries in l_1 are not those in l_inf.  In the paper's formula each norm counts
its own; in the authors' code both norms count the union of the two sets, still divided by k_B.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr.reference.distances import Hyperplanes, measure
from refmmr.reference.mmr import Regularizer, partial_derivatives, select_nearest
from refmmr.reference.network import Network


def regularizer_derivatives(
    net: Network,
    hyperplanes: Hyperplanes,
    y: np.ndarray,
    terms: Sequence[Regularizer],
    nearest: str,
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """The sum over all terms of what `mmr.partial_derivatives` gives for one.

    Parameters
    ----------
    net : Network
    hyperplanes : Hyperplanes
    y : ndarray of int, shape (n,)
    terms : sequence of Regularizer
        At least one.
    nearest : {"each", "union"}
        The region boundaries that count in a term: its own k_B nearest, or those of all terms.

    Returns
    -------
    values : ndarray, shape (n,)
    df_sample, df_probes : list of ndarray
    """
    measured = [measure(hyperplanes, y, term.p) for term in terms]
    sets = [select_nearest(d.boundary, term.k_b) for d, term in zip(measured, terms, strict=True)]
    if nearest == "union":
        sets = [np.logical_or.reduce(sets)] * len(terms)
    parts = [
        partial_derivatives(net, hyperplanes, y, *one)
        for one in zip(terms, measured, sets, strict=True)
    ]
    values, df_sample, df_probes = zip(*parts, strict=True)
    return np.sum(values, axis=0), _add_layers(df_sample), _add_layers(df_probes)


def _add_layers(parts):
    """The sum of lists of arrays, one array a layer."""
    return [np.sum(layer, axis=0) for layer in zip(*parts, strict=True)]
