"""Enumerate all linear regions of a network in a domain."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from tqdm import tqdm

from refmmr import _kernels
from refmmr import _validate as check
from refmmr.exact import exact_network
from refmmr.network import Network
from refmmr.reference import enumeration
from refmmr.reference.enumeration import Domain
from refmmr.regions.budget import Budget, check_cost, first_regions
from refmmr.regions.complex import RegionComplex
from refmmr.regions.domains import AffineDomain
from refmmr.regions.graph import RegionGraph

__all__ = ["enumerate_regions"]


SPLIT_DIMENSIONS = 8
"""Largest dimension in which method "auto" splits; in higher ones walking is faster."""

VERTEX_DIMENSIONS = 16
"""Largest dimension n for method "split": the domain has 2^n vertices."""


def enumerate_regions(
    net: Network,
    domain: AffineDomain,
    *,
    method: str = "auto",
    exact: bool = False,
    max_regions: int | None = None,
    max_seconds: float | None = None,
    progress: bool | None = None,
) -> Any:
    """All linear regions of a network in a domain, exactly, without sampling.

    A region is the set of all points of the domain with one activation pattern, a convex polytope.

    Parameters
    ----------
    net : Network
    domain : Box, Slice or Segment
        A box of the input space, a rectangle of a plane through it, or a line.
    method : {"auto", "split", "walk"}
        "split" cuts polytopes layer by layer and computes all vertices, whose number grows
        exponentially with the dimension.  "walk" goes from region to region through facets, found
        by linear programs (HiGHS), and computes no vertices.  "auto" splits up to 8 dimensions.
    exact : bool
        Decide every sign in exact rational arithmetic, by the reference, whatever the backend; for
        small networks.  Otherwise signs are decided in float64 with a bound on the rounding error
        of each value; `RegionComplex.uncertain` marks vertices with a value within its bound.
    max_regions : int, optional
        Stop when there are more regions; the first `max_regions` are returned, as incomplete.
    max_seconds : float, optional
        Stop after this time; the result is incomplete.  Each hidden layer not begun by then gets a
        tenth of the time, so that the regions returned are those of the whole network.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    RegionComplex or RegionGraph
        A complex if the method is "split", a graph if it is "walk".

    Raises
    ------
    TypeError, ValueError
        For a domain of another kind, or of another input shape than the network's; without a
        budget, if there may be more than 10^9 regions; if values in the domain may be larger than
        floats, unless `exact` is True.

    Warns
    -----
    RuntimeWarning
        If Ctrl-C stopped the enumeration: the regions found so far are returned, as incomplete.

    References
    ----------
    Hanin, Rolnick (2019): Deep ReLU networks have surprisingly few activation patterns.
    Humayun, Balestriero, Balakrishnan, Baraniuk (2023): SplineCam, regions of a plane.
    Berzins (2023): edge subdivision, for "split".
    Xu, Vaughan, Chen, Zhang, Sudjianto (2021): traversal of the polytopes, for "walk".

    Examples
    --------
    >>> import refmmr as rm
    >>> hidden = rm.Linear([[1, 0], [0, 1], [1, 1]], [0, 0, 0])
    >>> net = rm.Network([hidden, rm.Linear([[1, 1, 1]], [0])], 2)
    >>> len(rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1])))
    6
    """
    check.check_network(net)
    _check_domain(net, domain)
    net = net.astype(np.float64)
    budget, arrays = Budget(max_regions, max_seconds), domain.arrays()
    if not exact:
        _check_range(net, arrays)
    check_cost(net, arrays, budget)
    disable = None if progress is None else not progress
    found: RegionComplex | RegionGraph
    if _choose(method, exact, domain) == "walk":
        found = _walk(net, domain, budget, disable)
    else:
        found = _split(net, domain, exact, budget, disable)
    if budget.interrupted:
        warnings.warn("interrupted: only the regions found so far are returned", stacklevel=2)
    return found


def _choose(method: str, exact: bool, domain: AffineDomain) -> str:
    """The method, chosen by the dimension of the domain for "auto"."""
    method = check.check_choice("method", method, ("auto", "split", "walk"))
    if exact and method == "walk":
        raise ValueError('method: expected "split" for exact=True, got "walk"')
    if method == "auto":
        return "split" if exact or domain.dimension <= SPLIT_DIMENSIONS else "walk"
    if method == "split" and domain.dimension > VERTEX_DIMENSIONS:
        raise ValueError(
            f"method: expected at most {VERTEX_DIMENSIONS} dimensions to split, got a domain of "
            f"{domain.dimension}, a box of 2^{domain.dimension} vertices; walk instead"
        )
    return method


def _split(
    net: Network, domain: AffineDomain, exact: bool, budget: Budget, disable: bool | None
) -> RegionComplex:
    """All regions, by splitting the domain layer by layer."""
    with budget.interruptible(), tqdm(unit=" cells", disable=disable) as bar:

        def proceed(layer: int, done: int, cells: int, pieces: int) -> bool:
            bar.set_description(f"regions, layer {layer} of {len(net.unit_shapes)}", refresh=False)
            bar.total = cells
            bar.set_postfix(pieces=pieces, refresh=False)
            bar.update(done - bar.n)
            return budget.allows(pieces)

        if exact:
            exactly = domain.arrays(exact=True)
            regions = enumeration.enumerate_regions(
                exact_network(net), exactly, proceed, budget.max_regions
            )
        else:
            regions = _kernels.enumerate_regions(net, domain.arrays(), proceed, budget.max_regions)
    if budget.max_regions is not None and len(regions.patterns) > budget.max_regions:
        regions = first_regions(regions, budget.max_regions)
    return RegionComplex(net, domain, regions)


def _walk(net: Network, domain: AffineDomain, budget: Budget, disable: bool | None) -> RegionGraph:
    """All regions, by walking from each to its neighbours."""
    from refmmr.regions.walk import walk  # imports HiGHS, which takes time

    with budget.interruptible(), tqdm(desc="regions", unit=" regions", disable=disable) as bar:

        def on_region(visited: int, pending: int) -> None:
            bar.set_postfix(pending=pending, refresh=False)
            bar.update(visited - bar.n)

        found = walk(
            net,
            domain.origin,
            domain.directions,
            *domain.rectangle,
            max_regions=budget.max_regions,
            stop=lambda: not budget.allows(0),
            on_region=on_region,
        )
    return RegionGraph(net, domain, found)


def _check_domain(net: Network, domain: AffineDomain) -> None:
    if not isinstance(domain, AffineDomain):
        raise TypeError(f"domain: expected a Box, Slice or Segment, got {type(domain).__name__}")
    if domain.input_shape != net.input_shape:
        raise ValueError(
            f"domain: expected inputs of shape {net.input_shape}, got a {type(domain).__name__} "
            f"of inputs of shape {domain.input_shape}"
        )


def _check_range(net: Network, domain: Domain) -> None:
    """Raise a ValueError if values in the domain may overflow: their signs would mean nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        errors = enumeration.value_errors(net, domain)
    for k, bound in enumerate(errors, 1):
        if not np.isfinite(bound).all():
            raise ValueError(
                f"net: expected values below 1.8e308 in the domain, got larger ones in layer {k} "
                f"of {len(errors)}; choose a smaller domain, scale the weights, or pass exact=True"
            )
