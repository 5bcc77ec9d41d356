"""Who wins: linear regions cut by the class that has the largest logit.

On a region the difference of two logits is affine, so two classes tie on a hyperplane.  The part
where a class wins is what is left when the region is cut along its ties with all the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.enumeration import (
    Cell,
    Domain,
    Regions,
    VertexTable,
    region_cell,
    value_errors,
)
from refmmr.reference.network import Network


class ClassPiece(NamedTuple):
    """The part of a linear region where one class has the largest logit."""

    region: int
    winner: int
    cell: Cell  # its hyperplanes: those of the region, or `tie` of the two classes


def tie(n_hidden: int, n_classes: int, first: int, second: int) -> int:
    """The hyperplane between two classes, the smaller first; it follows those of all hidden units."""
    return n_hidden + first * n_classes + second


def class_pieces(
    net: Network, regions: Regions, domain: Domain, which: Sequence[int]
) -> tuple[list[ClassPiece], np.ndarray]:
    """Cut linear regions by the class that wins; logits are affine on each.

    Parameters
    ----------
    net : Network
    regions : Regions
    domain : Domain
    which : sequence of int
        The regions to cut.

    Returns
    -------
    pieces : list of ClassPiece
    points : ndarray, shape (V', n)
        Those of the regions, then those made by the cuts.
    """
    n_classes = net.n_classes
    first, second = np.triu_indices(n_classes, k=1)
    logit_errors = value_errors(net, domain)[-1]
    errors = 2 * (logit_errors[first] + logit_errors[second])
    table = VertexTable(regions.points)
    cells = [region_cell(regions, i) for i in which]
    table.evaluate(
        cells, regions.maps[which][..., first] - regions.maps[which][..., second], errors
    )
    pieces = []
    for region, cell in zip(which, cells, strict=True):
        for winner in range(n_classes):
            won = _won_by(cell, table, winner, net.n_hidden, n_classes)
            if won is not None:
                pieces.append(ClassPiece(region, winner, won))
    return pieces, np.array(table.points)


def _won_by(cell, table, winner, n_hidden, n_classes):
    """The part of a cell where a class wins (the first of equals), or None."""
    first, second = np.triu_indices(n_classes, k=1)
    duels = [pair for pair in range(len(first)) if winner in (first[pair], second[pair])]
    values = table.values_at(cell.vertices)
    for pair in duels:
        leads = 1 if winner == first[pair] else -1
        margin = values[:, pair] * leads
        if not (margin > 0).any() and ((margin < 0).any() or leads < 0):
            return None
    for pair in duels:
        leads = 1 if winner == first[pair] else -1
        margin = table.values_at(cell.vertices)[:, pair] * leads
        if (margin > 0).any() and (margin < 0).any():
            hyperplane = tie(n_hidden, n_classes, int(first[pair]), int(second[pair]))
            positive, negative = cell.split(table, pair, np.array(duels), hyperplane)
            cell = positive if leads > 0 else negative
        elif not (margin > 0).any() and ((margin < 0).any() or leads < 0):
            return None
    return cell
