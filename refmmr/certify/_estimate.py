"""A warning before hours of work in the reference: how long it will take, measured at one point."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

from refmmr._backend import get_backend

LONG = 600.0
"""Seconds that a user waits without being warned."""

FEW = 64
"""Points, at most, that are not worth an estimate: it takes one of them twice."""


def warn_if_slow(one_point: Callable[[], object], method: str, points: int, jobs: int = 1) -> None:
    """Warn where the reference takes long and a compiled backend is installed.

    Parameters
    ----------
    one_point : callable
        Runs the method on one point.
    method : str
    points : int
        How many will be done.
    jobs : int
        Processes that share them.
    """
    if points <= FEW or get_backend() != "numpy" or find_spec("numba") is None:
        return
    begin = time.perf_counter()
    one_point()
    seconds = time.perf_counter() - begin
    whole = seconds * points / jobs
    if whole > LONG:
        warnings.warn(
            f"{method!r} took {seconds:.2g} s for one point with the backend 'numpy', the one to "
            f"read: {points} points take about {whole / 60:.0f} minutes.  Numba is installed: "
            "refmmr.set_backend('numba'), or --backend numba, runs the same method compiled",
            stacklevel=4,
        )
