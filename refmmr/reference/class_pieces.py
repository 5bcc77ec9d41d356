"""Linear regions cut by the class that has the largest logit.

On a linear region the difference of two logits is affine, so two classes tie on a hyperplane.  The
part of the region where a class has the largest logit is cut out by its ties with the others, as
regions are cut by hidden units (`refmmr.reference.cells`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.cells import Cell
from refmmr.reference.enumeration import Domain, Regions, value_errors
from refmmr.reference.network import Network
from refmmr.reference.vertices import VertexTable


class ClassPiece(NamedTuple):
    """The part of a linear region where one class has the largest logit."""

    region: int
    winner: int
    cell: Cell  # labels of its facets: those of the region, or `tie_label` of the two classes


def tie_label(n_hidden: int, n_classes: int, first: int, second: int) -> int:
    """Label of the hyperplane where two classes tie, the smaller first; larger than any unit's."""
    return n_hidden + first * n_classes + second


def class_pieces(
    net: Network, regions: Regions, domain: Domain, which: Sequence[int]
) -> tuple[list[ClassPiece], np.ndarray]:
    """Cut linear regions by the class that has the largest logit.

    Parameters
    ----------
    net : Network
    regions : Regions
    domain : Domain
    which : sequence of int
        Numbers of the regions to cut.

    Returns
    -------
    pieces : list of ClassPiece
    points : ndarray, shape (V', n)
        The vertices of the regions, then those that the cuts make.
    """
    first, second = np.triu_indices(net.n_classes, k=1)
    logit_errors = value_errors(net, domain)[-1]
    # Twice, to cover the rounding of the differences of logits and of maps.
    errors = 2 * (logit_errors[first] + logit_errors[second])
    maps = regions.maps[which]
    table = VertexTable(regions.points)
    cells = [regions.cell(i) for i in which]
    vertices = [cell.vertices for cell in cells]
    table.evaluate(vertices, maps[..., first] - maps[..., second], errors)
    pieces = []
    for region, cell in zip(which, cells, strict=True):
        for winner in range(net.n_classes):
            part = _part_of_class(cell, table, winner, net.n_hidden, net.n_classes)
            if part is not None:
                pieces.append(ClassPiece(region, winner, part))
    return pieces, np.array(table.points)


def _part_of_class(cell, table, winner, n_hidden, n_classes):
    """The part of a cell where a class has the largest logit (the first of equals), or None.

    The "units" of the table are the differences of the logits of all pairs of classes.
    """
    pairs = list(zip(*np.triu_indices(n_classes, k=1), strict=True))
    rivals = [i for i, pair in enumerate(pairs) if winner in pair]
    values = table.values_at(cell.vertices)
    # The first pass makes no cut: in most cases some rival has the larger logit on the whole cell.
    for cut in (False, True):
        for i in rivals:
            first, second = map(int, pairs[i])
            sign = 1 if winner == first else -1
            margin = values[:, i] * sign
            ahead, behind = (margin > 0).any(), (margin < 0).any()
            if not ahead and (behind or winner == second):
                return None
            if cut and ahead and behind:
                label = tie_label(n_hidden, n_classes, first, second)
                positive, negative = cell.split(table, i, np.array(rivals), label)
                cell = positive if sign > 0 else negative
                values = table.values_at(cell.vertices)
    return cell
