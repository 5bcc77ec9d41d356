"""One call for all regions of a network in a domain."""

from __future__ import annotations

import warnings

import numpy as np
from tqdm import tqdm

from refmmr import _validate as check
from refmmr._backend import kernel
from refmmr.exact import exact_network
from refmmr.network import Network
from refmmr.reference import regions as _regions
from refmmr.regions.budget import Budget, check_cost, first_regions
from refmmr.regions.complex import RegionComplex
from refmmr.regions.domains import AffineDomain

__all__ = ["enumerate_regions"]

_enumerate = kernel(_regions.enumerate_regions)


def enumerate_regions(
    net: Network,
    domain: AffineDomain,
    *,
    exact: bool = False,
    max_regions: int | None = None,
    max_seconds: float | None = None,
    progress: bool | None = None,
) -> RegionComplex:
    """All linear regions of a network in a domain, exactly.

    Polytopes are split layer by layer; no sampling is involved.

    Parameters
    ----------
    net : Network
    domain : Box, Slice or Segment
        A box of the input space, a rectangle of a plane through it, or a line.
    exact : bool
        Decide every sign in exact rational arithmetic, by the reference, whatever the backend; for
        small networks.  Otherwise signs are decided in float64, up to the rounding error of each
        value, and `RegionComplex.uncertain` tells where that left a doubt.
    max_regions : int, optional
        Stop when there are more; so many are returned, marked as not complete.
    max_seconds : float, optional
        Stop after so many seconds, likewise; each hidden layer that was not begun by then gets a
        tenth of the time again, so that what is returned has been through all layers.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    RegionComplex

    Raises
    ------
    TypeError, ValueError
        For a domain of another kind, or of another input shape than the network's; for so many
        units that there may be more than 10^9 regions, unless there is a budget.

    Warns
    -----
    RuntimeWarning
        If Ctrl-C stopped it: the regions found so far are returned, marked as not complete.

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
    check_cost(net, arrays, budget)
    disable = None if progress is None else not progress
    with budget.interruptible(), tqdm(unit=" cells", disable=disable) as bar:

        def go_on(layer: int, done: int, cells: int, pieces: int) -> bool:
            bar.set_description(f"regions, layer {layer} of {len(net.unit_shapes)}", refresh=False)
            bar.total = cells
            bar.set_postfix(pieces=pieces, refresh=False)
            bar.update(done - bar.n)
            return budget.allows(pieces)

        if exact:
            exactly = domain.arrays(exact=True)
            regions = _regions.enumerate_regions(exact_network(net), exactly, go_on)
        else:
            regions = _enumerate(net, arrays, go_on)
    if budget.interrupted:
        warnings.warn("interrupted: only the regions found so far are returned", stacklevel=2)
    if max_regions is not None and len(regions.patterns) > max_regions:
        regions = first_regions(regions, max_regions)
    return RegionComplex(net, domain, regions)


def _check_domain(net: Network, domain: AffineDomain) -> None:
    if not isinstance(domain, AffineDomain):
        raise TypeError(f"domain: expected a Box, Slice or Segment, got {type(domain).__name__}")
    if domain.input_shape != net.input_shape:
        raise ValueError(
            f"domain: expected inputs of shape {net.input_shape}, got a {type(domain).__name__} "
            f"of inputs of shape {domain.input_shape}"
        )
