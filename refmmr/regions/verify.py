"""Is a complex what it says it is?  Its invariants, each checked from the network afresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refmmr.reference.enumeration import value_errors
from refmmr.reference.network import flat, unflat
from refmmr.regions.faces import face_counts

if TYPE_CHECKING:
    from refmmr.regions.complex import RegionComplex

__all__ = ["Verification", "verify"]

CHUNK = 1024
"""Regions, or facets, whose units are in memory together."""

SLACK = 1e-9
"""How far a vertex may be off, as a share of the domain's size."""

COUNTABLE = 2000
"""So many regions of more than two dimensions have their faces counted."""


class Verification(NamedTuple):
    """What `RegionComplex.verify` found.

    Attributes
    ----------
    problems : list of str
        One sentence each; empty if all is well.
    volume_defect : float
        Sum of all volumes over the domain's, minus 1; NaN if the complex is not complete.
    euler_characteristic : int or None
        1 for a box that is cut into cells; None if it was not counted.
    uncertain_vertices : int
        Vertices where a sign was within its rounding error, and was taken for 0.
    thin_regions : int
        Regions so thin that floats cannot tell on which side of some hyperplane their centre is.
    """

    problems: list[str]
    volume_defect: float
    euler_characteristic: int | None
    uncertain_vertices: int
    thin_regions: int

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __str__(self) -> str:
        text = "all invariants hold" if self.ok else "; ".join(self.problems)
        return (
            f"{text} (volumes add up to 1 {self.volume_defect:+.1e}, Euler characteristic "
            f"{self.euler_characteristic}, {self.uncertain_vertices} uncertain vertices, "
            f"{self.thin_regions} thin regions)"
        )


def verify(cx: RegionComplex) -> Verification:
    """See `RegionComplex.verify`."""
    problems = []
    distinct = len(np.unique(cx.packed_patterns, axis=0))
    if distinct < len(cx):
        problems.append(f"{len(cx) - distinct} patterns are there twice")
    wrong, thin = _centres(cx)
    if wrong:
        problems.append(f"{wrong} regions have a centre of another pattern")
    problems += _facet_problems(cx)
    defect, euler = np.nan, None
    if cx.complete:
        lo, hi = cx.domain.rectangle
        defect = float(cx.volumes.sum() / np.prod(hi - lo) - 1)
        if abs(defect) > SLACK:
            problems.append(f"volumes add up to {1 + defect} times the domain's")
        if cx.dimension <= 2 or len(cx) <= COUNTABLE:
            signs = (-1) ** np.arange(cx.dimension + 1)
            euler = int((signs * face_counts(cx)).sum())
            if euler != 1:
                problems.append(f"the Euler characteristic is {euler}, not 1")
    return Verification(problems, defect, euler, int(cx.uncertain.sum()), thin)


def _centres(cx):
    """Regions whose centre is on the wrong side of a hyperplane; and on neither, in floats."""
    bounds = value_errors(cx.net, cx.domain.arrays())[:-1]
    errors = flat([np.zeros((1, 0)), *(bound[None] for bound in bounds)])
    wrong = thin = 0
    for start in range(0, len(cx), CHUNK):
        some = slice(start, start + CHUNK)
        active = cx.patterns_of(some)
        values = _values(cx, cx.centers[some], active)
        against = np.where(active, values < 0, values > 0)
        wrong += int((against & (np.abs(values) > errors)).any(axis=1).sum())
        thin += int((np.abs(values) <= errors).any(axis=1).sum())
    return wrong, thin


def _facet_problems(cx):
    """Sentences about facets that do not fit between their regions."""
    facets = cx.facets
    if cx.complete and cx.unmatched_facets:
        yield f"{cx.unmatched_facets} facets have no region, or more than one, on the other side"
    same = off = 0
    inner = np.flatnonzero(facets.cells[:, 1] >= 0)
    size = float(np.linalg.norm(cx.domain.rectangle[1] - cx.domain.rectangle[0]))
    middles = np.add.reduceat(cx.points[facets.vertices.flat], facets.vertices.starts[:-1])
    middles /= facets.vertices.sizes[:, None]
    for start in range(0, len(inner), CHUNK):
        some = inner[start : start + CHUNK]
        one, other = (cx.patterns_of(side) for side in facets.cells[some].T)
        flipped = one ^ other
        same += int((~flipped[np.arange(len(some)), facets.hyperplanes[some]]).sum())
        values = _values(cx, middles[some], one)
        largest = SLACK * size * _steepness(cx, one)
        off += int((flipped & (np.abs(values) > largest)).any(axis=1).sum())
    if same:
        yield f"{same} facets have their unit active, or not, on both sides"
    if off:
        yield f"{off} facets are not where the units are 0 that change sign there"


def _values(cx, points, active):
    """Pre-activations of all hidden units at points, by the maps of some patterns, (m, N)."""
    masks = unflat(active, cx.net.unit_shapes)
    return flat(
        [np.zeros((len(points), 0)), *cx.net.forward(cx.domain.embed(points), masks).outputs[:-1]]
    )


def _steepness(cx, active):
    """Bounds on how fast hidden units change along the domain, (m, N)."""
    masks = [mask[:, None] for mask in unflat(active, cx.net.unit_shapes)]
    slopes = cx.net.forward(cx.domain.directions[None], masks, bias=False).outputs[:-1]
    return flat([np.zeros((len(active), 0)), *(np.abs(V).sum(axis=1) for V in slopes)]) + 1e-300
