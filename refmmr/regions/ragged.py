"""Rows of different lengths, in one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

__all__ = ["Ragged"]


class Ragged(Sequence[np.ndarray]):
    """A sequence of arrays of different lengths, all views of one array.

    Parameters
    ----------
    starts : ndarray of int, shape (n + 1,)
        Where each row starts, and where the last one ends.
    flat : ndarray, shape (m, ...)
        All rows, concatenated.

    Examples
    --------
    >>> Ragged(np.array([0, 2, 3]), np.array([5, 6, 7]))[0]
    array([5, 6])
    """

    def __init__(self, starts: np.ndarray, flat: np.ndarray) -> None:
        self.starts, self.flat = starts, flat

    @property
    def sizes(self) -> np.ndarray:
        """Length of each row, (n,)."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        i = range(len(self))[i]
        return self.flat[self.starts[i] : self.starts[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.flat[a:b] for a, b in pairwise(self.starts.tolist()))

    def __repr__(self) -> str:
        return f"Ragged({len(self)} rows, {len(self.flat)} in all)"

    def owners(self) -> np.ndarray:
        """The row of each entry of `flat`, (m,)."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over each row of values (m, ...) of its entries, (n, ...); 0 where a row is empty.

        Examples
        --------
        >>> rows = Ragged(np.array([0, 2, 2, 3, 3]), np.array([5, 6, 7]))
        >>> rows.sums(np.array([1, 2, 4]))
        array([3, 0, 4, 0])
        """
        found = np.zeros((len(self), *values.shape[1:]), values.dtype)
        filled = self.sizes > 0
        if filled.any():
            found[filled] = np.add.reduceat(values, self.starts[:-1][filled])
        return found
