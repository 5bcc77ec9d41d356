"""What a proof needs of a tree of branch and bound: the free parameters of all nodes."""

from __future__ import annotations

import numpy as np

from refmmr.reference.ascent import Nodes
from refmmr.reference.network import flat

MAX_BYTES = 2**29
"""Bytes of a record, at most: a larger one is dropped, and there is no certificate."""


class TreeRecord:
    """The nodes of a tree, in the order in which they were bounded.

    Attributes
    ----------
    wanted : bool
        Otherwise nothing is recorded.
    complete : bool
        Nothing was too large.
    nodes : list of (fixed, parameters)
        Of the nodes that were bounded together, arrays (n, N).
    rounds : list of list of ndarray
        Slopes of the bounds of units, for each time that these were bounded again, by layer.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted, self.complete = wanted, wanted
        self.nodes: list[tuple[np.ndarray, np.ndarray]] = []
        self.rounds: list[list[np.ndarray]] = []
        self._bytes = 0

    def add(self, nodes: Nodes) -> None:
        """Some nodes, as they are bounded."""
        if not self.complete:
            return
        fixed = flat([*nodes.fixed, np.zeros((1, 0), np.int8)])
        self.nodes.append((fixed, parameters(nodes, len(fixed))))
        self._bytes += sum(part.nbytes for part in self.nodes[-1])
        if self._bytes > MAX_BYTES:
            self.nodes, self.complete = [], False

    def add_slopes(self, slopes: np.ndarray | None) -> None:
        """Of the next layer in the last of the `rounds`."""
        if slopes is not None:
            self.rounds[-1].append(slopes)


def parameters(nodes: Nodes, n: int) -> np.ndarray:
    """The free parameters of n nodes as `refmmr.reference.proof.Proof` has them, (n, N)."""
    if not nodes.bounds:
        return np.zeros((n, 0))
    fixed, slopes, betas = (flat(field) for field in nodes[1:])
    lower, upper = (flat(side) for side in zip(*nodes.bounds, strict=True))
    # Also of stable units, in case that the checker's bounds are wider: 1 if active, 0 if inactive.
    slopes = np.where(lower >= 0, 1, np.where(upper <= 0, 0, slopes.clip(0, 1)))
    return np.nan_to_num(np.where((fixed != 0) & (betas > 0), -betas, slopes))
