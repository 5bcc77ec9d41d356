"""Limits of an enumeration: number of regions, time, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import comb
from types import FrameType

import numpy as np

from refmmr import _validate as check
from refmmr.network import Network
from refmmr.reference import enumeration
from refmmr.reference.enumeration import Domain, Regions

__all__ = ["Budget", "first_layer_regions", "first_regions"]

TOO_MANY = 10**9
"""An enumeration that may find more regions than this needs a budget to start."""


class Budget:
    """Limits of the number of regions and of the time, and whether the user pressed Ctrl-C.

    Parameters
    ----------
    max_regions : int or None
    max_seconds : float or None
        Counted from the construction of the budget.
    """

    def __init__(self, max_regions: int | None, max_seconds: float | None) -> None:
        if max_regions is not None:
            max_regions = check.check_count("max_regions", max_regions, 1)
        if max_seconds is not None:
            max_seconds = check.check_number("max_seconds", max_seconds)
        self.max_regions = max_regions
        self.max_seconds = max_seconds
        self.end = None if max_seconds is None else time.monotonic() + max_seconds
        self.interrupted = False

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.max_regions is not None or self.end is not None

    def allows(self, regions: int) -> bool:
        """Whether an enumeration that has found `regions` regions may go on."""
        if self.interrupted or (self.max_regions is not None and regions > self.max_regions):
            return False
        if self.end is None or self.max_seconds is None or time.monotonic() < self.end:
            return True
        # The pieces found so far still have to pass the later layers: a tenth of the time for each.
        self.end = time.monotonic() + self.max_seconds / 10
        return False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Stop the enumeration at the first Ctrl-C; the second one raises as usual.

        Only the main thread receives signals; in others this does nothing.
        """
        before = signal.getsignal(signal.SIGINT)
        ours = threading.current_thread() is threading.main_thread() and callable(before)

        def stop(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        if ours:
            signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            if ours:
                signal.signal(signal.SIGINT, before)


def check_cost(net: Network, domain: Domain, budget: Budget) -> None:
    """Raise a ValueError if there may be too many regions and no budget stops the enumeration."""
    bound, crossing = first_layer_regions(net, domain)
    if bound > TOO_MANY and not budget.is_limited:
        raise ValueError(
            f"net: {crossing} units of the first layer change sign in the domain of "
            f"{len(domain.lo)} dimensions, which may make {bound:.1e} regions; pass max_regions or "
            "max_seconds to see some of them, or choose a smaller domain"
        )


def first_layer_regions(net: Network, domain: Domain) -> tuple[int, int]:
    """Upper bound on the regions of the first layer, and the number of its units that change sign.

    m hyperplanes cut n dimensions into at most ``C(m, 0) + ... + C(m, n)`` regions (Zaslavsky
    1975).
    """
    if not net.unit_shapes:
        return 1, 0
    rows = enumeration.first_map(net, domain)[0]
    middle, half = (domain.lo + domain.hi) / 2, (domain.hi - domain.lo) / 2
    values, reach = middle @ rows[:-1] + rows[-1], half @ np.abs(rows[:-1])
    crossing = int((np.abs(values) < reach).sum())
    return sum(comb(crossing, i) for i in range(len(domain.lo) + 1)), crossing


def first_regions(regions: Regions, count: int) -> Regions:
    """The first `count` regions with their vertices, marked as not complete."""
    end, facet_end = regions.vertex_starts[count], regions.facet_starts[count]
    kept, vertices = np.unique(regions.vertices[:end], return_inverse=True)
    return Regions(
        points=regions.points[kept],
        uncertain=regions.uncertain[kept],
        vertex_starts=regions.vertex_starts[: count + 1],
        vertices=vertices,
        touches=regions.touches[:end],
        facet_starts=regions.facet_starts[: count + 1],
        hyperplanes=regions.hyperplanes[:facet_end],
        patterns=regions.patterns[:count],
        maps=regions.maps[:count],
        complete=False,
    )
