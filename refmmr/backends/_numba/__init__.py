"""Numba twins of the hot paths, threaded on the cores that there are."""

from refmmr.backends._numba import (
    attacks,
    mmr,
    regions,
    relaxations,
    training,
    volumes,
    wong_kolter,
)

__all__ = ["attacks", "mmr", "regions", "relaxations", "training", "volumes", "wong_kolter"]
