"""One call for all regions of a network in a domain."""

from __future__ import annotations

import time

import numpy as np
from tqdm import tqdm

from refmmr import _validate as check
from refmmr._backend import kernel
from refmmr.exact import exact_network
from refmmr.network import Network
from refmmr.reference import regions as _regions
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
        Stop when there are so many; what was found is returned, marked as not complete.
    max_seconds : float, optional
        Stop soon after so many seconds, likewise.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    RegionComplex

    Raises
    ------
    TypeError, ValueError
        For a domain of another kind, or of another input shape than the network's.

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
    budget = Budget(max_regions, max_seconds)
    net = net.astype(np.float64)
    with tqdm(unit=" cells", disable=None if progress is None else not progress) as bar:

        def go_on(layer: int, done: int, cells: int, pieces: int) -> bool:
            bar.set_description(f"regions, layer {layer} of {len(net.unit_shapes)}")
            bar.total = cells
            bar.n = done
            bar.set_postfix(pieces=pieces, refresh=False)
            bar.update(0)
            return budget.allows(pieces)

        if exact:
            regions = _regions.enumerate_regions(exact_network(net), domain.arrays(True), go_on)
        else:
            regions = _enumerate(net, domain.arrays(), go_on)
    return RegionComplex(net, domain, regions, exact)


class Budget:
    """How many regions, and how much time, there may be."""

    def __init__(self, max_regions: int | None, max_seconds: float | None) -> None:
        if max_regions is not None:
            max_regions = check.check_count("max_regions", max_regions, 1)
        if max_seconds is not None:
            max_seconds = check.check_number("max_seconds", max_seconds)
        self.max_regions = np.inf if max_regions is None else max_regions
        self.end = np.inf if max_seconds is None else time.monotonic() + max_seconds

    def allows(self, regions: int) -> bool:
        """Whether there may be more regions than so many, and more time."""
        return regions < self.max_regions and time.monotonic() < self.end


def _check_domain(net: Network, domain: AffineDomain) -> None:
    if not isinstance(domain, AffineDomain):
        raise TypeError(f"domain: expected a Box, Slice or Segment, got {type(domain).__name__}")
    if domain.input_shape != net.input_shape:
        raise ValueError(
            f"domain: expected inputs of shape {net.input_shape}, got a {type(domain).__name__} "
            f"of inputs of shape {domain.input_shape}"
        )
