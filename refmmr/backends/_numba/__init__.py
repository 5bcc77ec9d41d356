"""Numba twins of the hot paths, threaded on the cores that there are."""

from refmmr.backends._numba import mmr

__all__ = ["mmr"]
from refmmr.backends._numba import regions  # noqa: F401
