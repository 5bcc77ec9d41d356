"""Check the invariants of a complex of regions against the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refmmr.reference.enumeration import value_errors
from refmmr.reference.network import unflat
from refmmr.regions.halfspaces import hidden_units

if TYPE_CHECKING:
    from refmmr.regions.complex import RegionComplex

__all__ = ["Verification", "verify"]

CHUNK = 1024
"""Number of regions, or facets, whose hidden units are in memory at once."""

SLACK = 1e-9
"""Tolerance for positions, relative to the diameter of the domain, and for the sum of volumes."""

TINY = 1e-300
"""Added to slopes, so that a unit that is constant on a region passes the test of its value."""

COUNTABLE = 2000
"""Largest number of regions whose faces are counted for n > 2, at some milliseconds per region."""


class Verification(NamedTuple):
    """What `RegionComplex.verify` found.

    Attributes
    ----------
    problems : list of str
        One sentence for each invariant that fails.
    volume_defect : float
        Sum of all volumes, divided by that of the domain, minus 1; NaN if the complex is not
        complete.
    euler_characteristic : int or None
        1 for a subdivision of a box; None if the faces were not counted, or if rounding errors
        spoiled some, which is a problem.
    uncertain_vertices : int
        Number of vertices where the value of some unit was within its rounding error and was
        replaced by 0.
    thin_regions : int
        Number of regions so thin that the sign of some unit at their centre is within its rounding
        error.
    """

    problems: list[str]
    volume_defect: float
    euler_characteristic: int | None
    uncertain_vertices: int
    thin_regions: int

    @property
    def ok(self) -> bool:
        """Whether all invariants hold."""
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
    # In exact mode the values themselves may be larger than floats.
    with np.errstate(over="ignore", invalid="ignore"):
        return _verify(cx)


def _verify(cx: RegionComplex) -> Verification:
    problems = []
    distinct = len(np.unique(cx.packed_patterns, axis=0))
    if distinct < len(cx):
        problems.append(f"{len(cx) - distinct} patterns occur twice")
    wrong, thin = _centres(cx)
    if wrong:
        problems.append(f"{wrong} regions have another pattern at their centre")
    problems += _facet_problems(cx)
    defect, euler = np.nan, None
    if cx.complete:
        lo, hi = cx.domain.rectangle
        defect = float(cx.volumes.sum() / np.prod(hi - lo) - 1)
        if abs(defect) > SLACK:
            problems.append(f"volumes add up to {1 + defect} times the domain's")
        if cx.dimension <= 2 or len(cx) <= COUNTABLE:
            euler = cx.euler_characteristic()
            if euler is None:
                problems.append(
                    f"faces of thin regions are lost in the rounding errors of the signs at "
                    f"{int(cx.uncertain.sum())} vertices; exact=True decides them"
                )
            elif euler != 1:
                problems.append(f"the Euler characteristic is {euler}, not 1")
    return Verification(problems, defect, euler, int(cx.uncertain.sum()), thin)


def _centres(cx):
    """Numbers of regions with a unit of the wrong sign, and of an undecided sign, at the centre."""
    bounds = value_errors(cx.net, cx.domain.arrays())[:-1]
    errors = hidden_units([bound[None] for bound in bounds])
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
    """One sentence for each invariant of the facets that fails."""
    facets = cx.facets
    if cx.complete and cx.unmatched_facets:
        yield f"{cx.unmatched_facets} facets have no region, or more than one, on the other side"
    same = off = 0
    # Rounding errors can leave a facet of a thin region without vertices.
    empty = facets.vertices.sizes == 0
    if empty.any():
        yield f"{int(empty.sum())} facets have no vertices"
    inner = np.flatnonzero((facets.cells[:, 1] >= 0) & ~empty)
    size = float(np.linalg.norm(cx.domain.rectangle[1] - cx.domain.rectangle[0]))
    middles = facets.vertices.sums(cx.points[facets.vertices.flat])
    middles /= np.maximum(facets.vertices.sizes, 1)[:, None]
    for start in range(0, len(inner), CHUNK):
        some = inner[start : start + CHUNK]
        one, other = (cx.patterns_of(cells) for cells in facets.cells[some].T)
        flipped = one ^ other
        same += int((~flipped[np.arange(len(some)), facets.hyperplanes[some]]).sum())
        values = _values(cx, middles[some], one)
        largest = SLACK * size * _steepness(cx, one)
        off += int((flipped & (np.abs(values) > largest)).any(axis=1).sum())
    if same:
        yield f"{same} facets have their unit active on both sides, or on neither"
    if off:
        yield f"{off} facets lie off the hyperplane of a unit that changes sign there"


def _values(cx, points, active):
    """Pre-activations of all hidden units at points, by the maps of some patterns, (m, N)."""
    masks = unflat(active, cx.net.unit_shapes)
    outputs = cx.net.forward(cx.domain.embed(points), masks).outputs[:-1]
    return hidden_units(outputs, len(points))


def _steepness(cx, active):
    """l_1 norms of the gradients of hidden units in the domain's coordinates, (m, N)."""
    masks = [mask[:, None] for mask in unflat(active, cx.net.unit_shapes)]
    slopes = cx.net.forward(cx.domain.directions[None], masks, bias=False).outputs[:-1]
    return hidden_units([np.abs(V).sum(axis=1) for V in slopes], len(active)) + TINY
