"""Numba twins of the hot paths, threaded on the cores that there are."""

from refmmr.backends._numba import (
    backward_bound,
    enumeration,
    mmr,
    pgd,
    training,
    volumes,
    wong_kolter,
)

__all__ = [
    "backward_bound",
    "enumeration",
    "mmr",
    "pgd",
    "training",
    "volumes",
    "wong_kolter",
]
