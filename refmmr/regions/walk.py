"""Linear regions in a box of any dimension: a walk from region to region, through their facets.

On a linear region all units are affine, ``f_j(z) = <V_j, z> + a_j``, and the region is the polytope
where each has its sign.  A row of it is a *facet* if it cannot be left out; behind a facet lies
another region.  So from one region all others can be reached, without any vertex of the
arrangement being listed: what a region costs are a few dozen linear programs.

No program is trusted.  What the simplex method returns is a suggestion, and either of two
certificates, checked with NumPy, decides about a row ``<A_i, z> >= b_i``:

* a *point* of the facet where all other rows are slack by more than rounding errors: it is a facet;
* *multipliers* ``y >= 0`` of other rows with ``A_i = sum_k y_k A_k`` and ``sum_k y_k b_k >= b_i``
  (Farkas): it is none.

Rows that have neither are counted, as are regions too thin to hold a ball.

Points come cheap.  From the centre of the region shoot a ray: the row that it meets first is a
facet, and the point where it does so is the certificate.  Good directions are those to a vertex
where exactly n rows meet, a little beyond one of them, and along the n edges from there a little
beyond the row where they end: one program finds 2 n facets.

Inside, coordinates u are shifted and scaled so that the largest side of the box is [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import highspy
import numpy as np

from refmmr.reference import rounding
from refmmr.reference.network import Network

TINY = 1e-11
"""Distances below it, in a box of sides [-1, 1], are not told from 0."""

NOISE = 1e-13
"""A row that at best cuts off less than this only touches the region."""

REACH = 1.0
"""How far a row is moved to see what it cuts off."""

PASSES = 10.0 ** np.arange(-10, -5)
"""Steps through a region that is too thin."""

OPTIONS: dict[str, bool | int | float | str] = {
    "output_flag": False,
    "presolve": "off",
    "solver": "simplex",
    "simplex_strategy": 4,  # primal: all programs about a region but the first start feasible
    "simplex_scale_strategy": 0,  # rows have length 1
    "parallel": "off",
    "threads": 1,
    "primal_feasibility_tolerance": 1e-10,
    "dual_feasibility_tolerance": 1e-10,
    "small_matrix_value": 1e-12,
}
"""For HiGHS."""


class Walk(NamedTuple):
    """The regions in a box, and how they meet."""

    patterns: np.ndarray  # (R, N) bool
    centers: np.ndarray  # (R, n): centre of the largest l_2 ball inside each region
    radii: np.ndarray  # (R,): its radius
    hyperplanes: (
        np.ndarray
    )  # (F,) int: unit of each facet; the box: -1 - 2 axis below, -2 - 2 axis above
    cells: np.ndarray  # (F, 2) int: regions on both sides; -1 outside the box, or not visited
    undecided: int  # facets and regions that are thinner than can be told
    complete: bool  # all that can be reached was visited


def walk(
    net: Network,
    origin: np.ndarray,
    directions: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    *,
    start: np.ndarray | None = None,
    max_regions: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_region: Callable[[int, int], object] = lambda count, waiting: None,
) -> Walk:
    """All linear regions of a network in a box, and all facets between them.

    Regions are visited breadth-first: neighbours, neighbours of neighbours, and so on.

    Parameters
    ----------
    net : Network
        Of float64.
    origin : ndarray, shape (*input_shape)
    directions : ndarray, shape (n, *input_shape)
        The point z of the box is the input ``origin + sum_k z_k directions_k``.
    lo, hi : ndarray, shape (n,)
        Vertices of the box, ``lo < hi``.
    start : ndarray, shape (n,), optional
        A point of the first region; if not given, the centre of the box.
    max_regions : int, optional
        Visit no more than these.
    stop : callable, optional
        Asked before each region; True ends the walk.
    on_region : callable, optional
        Told after each region: how many were visited and how many are known that were not.

    Returns
    -------
    Walk
        Where several units share a hyperplane it is named after the first of them.  Of a facet that
        leads to a region not visited, or too thin, the second cell is -1.
    """
    space = _Space(net, origin, directions, lo, hi)
    survey = _Survey(space)
    survey.begin(space.middle if start is None else start)
    complete = False
    while not complete:
        if (max_regions is not None and survey.count >= max_regions) or stop():
            break
        if survey.waiting:
            survey.visit()
            on_region(survey.count, survey.waiting)
        complete = not survey.waiting
    return survey.result(complete)


class _Space:
    """The network on the box, in scaled coordinates."""

    def __init__(
        self,
        net: Network,
        origin: np.ndarray,
        directions: np.ndarray,
        lo: np.ndarray,
        hi: np.ndarray,
    ) -> None:
        self.net = net
        self.n = len(directions)
        self.scale = (hi - lo).max() / 2
        self.middle = (lo + hi) / 2
        self.half = (hi - lo) / (2 * self.scale)
        self.origin = origin + np.tensordot(self.middle, directions, axes=1)
        self.directions = self.scale * directions
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in net.unit_shapes)]).tolist()
        self._layers = [
            (slice(start, end), (1, *shape))
            for start, end, shape in zip(ends[:-1], ends[1:], net.unit_shapes, strict=True)
        ]
        # Bounds on the rounding errors of all f_j and, in l_1, of all V_j, for any pattern.
        size = np.abs(self.origin) + np.abs(self.directions).sum(axis=0)
        self.errors = _side_by_side(rounding.value_errors(net, size[None])[:-1])[0]

    def affine(self, pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows V (N, n) and offsets a (N,) of all units on the region of a pattern, (N,)."""
        masks = self._by_layer(pattern)
        V = _side_by_side(self.net.forward(self.directions, masks, bias=False).outputs[:-1])
        a = _side_by_side(self.net.forward(self.origin[None], masks).outputs[:-1])
        return V.T, a[0]

    def beyond(self, U: np.ndarray, steps: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
        """Patterns just beyond points U (m, n), one step (m, n) further: (m, N) bool.

        A unit whose value is within the tolerance (N,) of 0 is active if it grows along the step.
        """
        zeros, errors = self._by_layer(tolerance), self._by_layer(self.errors)
        f = self.origin + np.tensordot(U, self.directions, axes=1)
        df = np.tensordot(steps, self.directions, axes=1)
        masks: list[np.ndarray] = []
        for i, layer in enumerate(self.net.layers[: self.net.affine[-1]]):
            f, df = layer.apply(f), layer.linear(df)
            if i in self.net.affine:
                zero, error = zeros[len(masks)], errors[len(masks)]
                masks.append(np.where(np.abs(f) <= zero, df > error, f > 0))
                f, df = f * masks[-1], df * masks[-1]
        return _side_by_side(masks) if masks else np.zeros((len(U), 0), bool)

    def _by_layer(self, units: np.ndarray) -> list[np.ndarray]:
        """One number a unit, (N,), as an array (1, *unit_shape) for each layer."""
        return [units[part].reshape(shape) for part, shape in self._layers]


class _Polytope:
    """A region: ``A u >= b``, m = N + 2 n rows of length 1; b is -inf where there is no hyperplane.

    Rows 0 to N - 1 are the units', the others the faces of the box in the order of their labels.
    """

    def __init__(self, space: _Space, pattern: np.ndarray) -> None:
        V, a = space.affine(pattern)
        N, n = len(V), space.n
        lengths = np.sqrt((V * V).sum(axis=1))
        # A row within its own rounding error of 0 is that of a constant.
        hyperplanes = lengths > space.errors
        signs = np.where(pattern, 1, -1) / np.where(hyperplanes, lengths, 1)
        errors = np.where(hyperplanes, space.errors / np.where(hyperplanes, lengths, 1), 0)
        self.half = space.half
        self.A = np.zeros((N + 2 * n, n))
        self.A[:N] = V * (signs * hyperplanes)[:, None]
        self.A[N + np.arange(0, 2 * n, 2), np.arange(n)] = 1
        self.A[N + np.arange(1, 2 * n, 2), np.arange(n)] = -1
        self.b = np.append(np.where(hyperplanes, -a * signs, -np.inf), -np.repeat(space.half, 2))
        # Two hyperplanes closer than this are one; a point farther than this from a hyperplane is beside it.
        self.twin = np.append(TINY + errors, np.full(2 * n, TINY))
        self.blur = np.append(2 * TINY + 3 * errors, np.full(2 * n, 2 * TINY))
        self.noise = np.append(NOISE + errors, np.full(2 * n, NOISE))
        # How near to 0 a unit's value must be at a point of a facet to be 0 on all of it.
        self.zero = 2 * space.errors + TINY * lengths
        self._drop_twins(N)
        self.hyperplanes = np.isfinite(self.b)
        self.floor = np.where(self.hyperplanes, self.b, 0)

    def _drop_twins(self, units: int) -> None:
        """Of rows that are equal keep the box's, or else the first."""
        close = self.A @ self.A.T > 1 - 1e-9
        if close.sum() <= len(close):  # only each to itself
            return
        for i, j in np.argwhere(np.triu(close, 1)):
            if not np.isfinite(self.b[[i, j]]).all():
                continue
            apart = np.abs(self.A[i] - self.A[j]).sum() + np.abs(self.b[i] - self.b[j])
            if apart <= self.twin[i] + self.twin[j]:
                twin = i if j >= units else j
                self.A[twin], self.b[twin] = 0, -np.inf

    def slacks(self, U: np.ndarray) -> np.ndarray:
        """How far inside of each row points (..., n) are: (..., m)."""
        return U @ self.A.T - self.b

    def implied(self, rows: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Whether multipliers Y of all rows, (k, m), prove that each of k rows cuts nothing off.

        Negative multipliers do not count, and residuals are paid for with a box of twice the size:
        the box itself would prove its own faces away.  (A row that cuts something off the other
        rows does so within the larger box, too.)
        """
        Y = np.maximum(Y, 0)
        Y[np.arange(len(rows)), rows] = 0
        residuals = np.abs(self.A[rows] - Y @ self.A) @ (2 * self.half)
        return Y @ self.floor - residuals >= self.b[rows] - self.noise[rows]

    def spread(self, Y: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Multipliers (k, len(others)) of some rows as those of all, (k, m)."""
        full = np.zeros((len(Y), len(self.b)))
        full[:, others] = Y
        return full


class _Proofs(NamedTuple):
    """Multipliers that showed that rows are no facets, without their zeros.

    A neighbour shares most rows with the region where they were found, so they are tried there.
    """

    rows: np.ndarray  # (k,) int
    places: tuple[np.ndarray, np.ndarray]  # where Y, (k, m), is not 0
    values: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, Y: np.ndarray) -> _Proofs:
        """From rows (k,) and multipliers (k, m)."""
        first, second = np.nonzero(Y)
        return cls(rows, (first.astype(np.int32), second.astype(np.int32)), Y[first, second])

    def multipliers(self, m: int) -> np.ndarray:
        """Y, (k, m)."""
        Y = np.zeros((len(self.rows), m))
        Y[self.places] = self.values
        return Y


class _Programs:
    """Linear programs over one polytope after the other, all in one model of HiGHS.

    Columns are u and t.  All rows are ``<A_i, u> - t >= b_i``: as t grows, the polytope shrinks.
    Every program starts from the basis of the one before.
    """

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m
        self.highs = highspy.Highs()
        for option, value in OPTIONS.items():
            self.highs.setOptionValue(option, value)
        self._columns = np.arange(n, dtype=np.int32)
        self._starts = np.arange(0, m * (n + 1), n + 1, dtype=np.int32)
        self._indices = np.tile(np.arange(n + 1, dtype=np.int32), m)
        self._continuous = np.zeros(n + 1, dtype=np.int32)
        self._free = np.full(n + 1, np.inf)
        self._above = np.full(m, np.inf)
        self._shrink = np.append(np.zeros(n), -1.0)

    def ball(
        self, P: _Polytope, basis: highspy.HighsBasis | None = None, facet: int | None = None
    ) -> np.ndarray | None:
        """Centre of the largest ball inside, (n,); or of what is left of a facet when P shrinks."""
        A = np.column_stack([P.A, np.full(self.m, -1.0)])
        above = self._above
        if facet is not None:
            A[facet, -1] = 0
            above = above.copy()
            above[facet] = P.b[facet]
        rowwise, minimize = int(highspy.MatrixFormat.kRowwise), int(highspy.ObjSense.kMinimize)
        self.highs.passModel(
            *(self.n + 1, self.m, A.size, rowwise, minimize, 0.0),
            *(self._shrink, -self._free, self._free, P.b, above),
            *(self._starts, self._indices, A.ravel(), self._continuous),
        )
        if basis is not None:
            self.highs.setBasis(basis)
        solution = self._solve()
        return None if solution is None else np.array(solution.col_value[: self.n])

    def fix(self) -> None:
        """No more shrinking: the programs that follow are over the polytope itself."""
        self.highs.changeColCost(self.n, 0.0)
        self.highs.changeColBounds(self.n, 0.0, 0.0)

    def lowest(self, P: _Polytope, row: int, reach: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Where ``<A_row, u>`` is smallest, (n,), and multipliers (m,) that prove it; or None.

        The row itself is moved out by `reach`.
        """
        self.highs.changeColsCost(self.n, self._columns, P.A[row])
        if reach:
            self.highs.changeRowBounds(row, P.b[row] - reach, np.inf)
        solution = self._solve()
        if reach:
            self.highs.changeRowBounds(row, P.b[row], np.inf)
        if solution is None:
            return None
        return np.array(solution.col_value[: self.n]), np.array(solution.row_dual)

    def _solve(self) -> highspy.HighsSolution | None:
        self.highs.run()
        if self.highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            self.highs.clearSolver()
            self.highs.run()
            if self.highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
                return None
        return self.highs.getSolution()


class _Facets:
    """Which rows of a polytope are facets, with a point on each."""

    def __init__(
        self, P: _Polytope, center: np.ndarray, known: list[int], proofs: list[_Proofs]
    ) -> None:
        self.P, self.center = P, center
        self.depths = P.slacks(center)
        self.points = np.zeros_like(P.A)
        self.real = np.zeros(len(P.b), dtype=bool)
        self.open = P.hyperplanes.copy()
        self.undecided = 0
        self._old_proofs = proofs
        self._proofs: list[tuple[np.ndarray, np.ndarray]] = []
        self.real[known] = True
        self.open[known] = False

    def find(self, programs: _Programs) -> None:
        """Decide about all rows."""
        P = self.P
        self.shoot(-P.A[P.hyperplanes])
        for proofs in self._old_proofs:
            self._close(proofs.rows, proofs.multipliers(len(P.b)))
        self._inside_simplex()
        programs.fix()
        doubtful = []
        order = np.argsort(self.depths)
        for row in order.tolist():
            if self.open[row] and not self._decide(programs, row):
                doubtful.append(row)
                self.open[row] = False
        for row in doubtful:
            point = programs.ball(P, facet=row)
            if point is not None:
                self.shoot(point[None] - self.center)
            self.undecided += not self.real[row]

    def proofs(self) -> _Proofs | None:
        """What showed that rows are no facets."""
        if not self._proofs:
            return None
        rows, Y = zip(*self._proofs, strict=True)
        return _Proofs.of(np.concatenate(rows), np.concatenate(Y))

    def _close(self, rows: np.ndarray, Y: np.ndarray, keep: bool = True) -> None:
        """Close the open ones of some rows, (k,), about which multipliers (k, m) are a proof."""
        sure = self.P.implied(rows, Y) & self.open[rows]
        self.open[rows[sure]] = False
        if keep and sure.any():
            self._proofs.append((rows[sure], Y[sure]))

    def shoot(self, directions: np.ndarray) -> None:
        """Send rays from the centre, (k, n): what each meets first is a facet."""
        P = self.P
        rates = directions @ P.A.T
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.where(rates < 0, self.depths / -rates, np.inf)
        first = times.argmin(axis=1)
        rays = np.arange(len(first))
        times = times[rays, first]
        points = self.center + np.where(np.isfinite(times), times, 0)[:, None] * directions
        points -= P.A[first] * (P.slacks(points)[rays, first])[:, None]
        spare = P.slacks(points) - P.blur
        spare[rays, first] = np.inf
        sure = np.isfinite(times) & (spare.min(axis=1) > 0)
        self.points[first[sure]] = points[sure]
        self.real[first[sure]] = True
        self.open[first[sure]] = False

    def _decide(self, programs: _Programs, row: int) -> bool:
        """Whether a row is a facet, by a program or two; False if that remains open."""
        P = self.P
        for reach in (0.0, REACH):
            optimum = programs.lowest(P, row, reach)
            if optimum is None:
                continue
            vertex, multipliers = optimum
            multipliers[row] = 0
            if reach:  # what only touches the region is told from what does not by all digits
                others = np.flatnonzero(multipliers)
                Y = np.linalg.lstsq(P.A[others].T, P.A[row])[0]
                multipliers[others] = Y
            self._close(np.array([row]), multipliers[None])
            if not self.open[row]:
                return True
            if reach:
                self.shoot((vertex - self.center)[None])
            else:
                self._around(vertex)
            if not self.open[row]:
                return True
        return False

    def _around(self, vertex: np.ndarray) -> None:
        """All facets at a vertex and those where its edges end, if just n rows meet there."""
        P = self.P
        slacks = P.slacks(vertex)
        at = np.flatnonzero(slacks <= 1e-9)
        if len(at) != P.A.shape[1]:
            return
        try:
            edges = np.linalg.inv(P.A[at])
        except np.linalg.LinAlgError:
            return
        rates = P.A @ edges
        slacks[at] = np.inf
        with np.errstate(divide="ignore", invalid="ignore"):
            back = np.where(rates > 0, slacks[:, None] / rates, np.inf).min(axis=0)
            ahead = np.where(rates < 0, slacks[:, None] / -rates, np.inf)
        ahead = np.partition(ahead, 1, axis=0)[:2]
        ahead[1] = np.minimum(ahead[1], ahead[0] + 1)
        targets = np.concatenate([-np.minimum(back, 1) * edges, ahead[1] * edges], axis=1).T
        self.shoot(vertex + targets[np.isfinite(targets).all(axis=1)] - self.center)
        rows = np.flatnonzero(self.open)
        self._close(rows, P.spread(rates[rows], at))

    def _inside_simplex(self) -> None:
        """Close the rows that miss the simplex of the n + 1 rows that touch the ball."""
        P, n = self.P, self.P.A.shape[1]
        near = np.argsort(self.depths)[: n + 1]
        rows = np.flatnonzero(self.open)
        sides = np.column_stack([P.A[near], self.depths[near]])
        wanted = np.column_stack([P.A[rows], 0.999 * self.depths[rows]])
        try:
            Y = np.linalg.solve(sides.T, wanted.T).T
        except np.linalg.LinAlgError:
            return
        self._close(rows, P.spread(Y, near), keep=False)


class _Place(NamedTuple):
    """A region that was seen from others but not visited, and what they know about it."""

    pattern: np.ndarray  # (N,) bool
    door: tuple[np.ndarray, np.ndarray]  # a point, (n,), where it begins, and the step into it
    basis: highspy.HighsBasis | None  # where the program of the neighbour that saw it first ended
    entries: list[int]  # units of its facets that are known
    proofs: list[_Proofs]  # of its neighbours


class _Survey:
    """What the walk knows so far.

    Places are numbered as they are seen; they are visited in this order.
    """

    def __init__(self, space: _Space) -> None:
        self.space = space
        self.N = space.net.n_hidden
        self.programs = _Programs(space.n, self.N + 2 * space.n)
        self.numbers: dict[bytes, int] = {}
        self.places: list[_Place | None] = []  # None: visited
        self.regions: list[tuple[np.ndarray, np.ndarray, float] | None] = []  # None: too thin
        self.facets: list[tuple[int, int, int]] = []  # hyperplane and both places
        self.count = 0
        self.undecided = 0

    @property
    def waiting(self) -> int:
        """How many places were seen but not visited."""
        return len(self.places) - len(self.regions)

    def begin(self, z: np.ndarray) -> None:
        """See the region at a point of the box, (n,), or beside it if that is on a hyperplane."""
        space = self.space
        u = (z - space.middle) / space.scale
        step = np.random.default_rng(0).uniform(-space.half, space.half) - u
        step /= np.sqrt((step * step).sum())
        self._see(space.beyond(u[None], step[None], 2 * space.errors)[0], (u, step))

    def _see(
        self,
        pattern: np.ndarray,
        door: tuple[np.ndarray, np.ndarray],
        basis: highspy.HighsBasis | None = None,
    ) -> int:
        """The number of the place of a pattern."""
        new = len(self.numbers)
        number = self.numbers.setdefault(np.packbits(pattern).tobytes(), new)
        if number == new:
            self.places.append(_Place(pattern, door, basis, [], []))
        return number

    def visit(self) -> None:
        """Look at the next place: its ball, its facets, its neighbours."""
        here = len(self.regions)
        place = self.places[here]
        assert place is not None
        P = _Polytope(self.space, place.pattern)
        center = self.programs.ball(P, place.basis)
        slacks = None if center is None else P.slacks(center)
        if center is None or slacks is None or (slacks <= P.blur).any():
            self.regions.append(None)
            self.places[here] = None
            self.undecided += 1
            self._pass(*place.door)
            return
        basis = self.programs.highs.getBasis()
        known = [unit for unit in place.entries if P.hyperplanes[unit]]
        facets = _Facets(P, center, known, place.proofs)
        facets.find(self.programs)
        self.places[here] = None
        self.count += 1
        self.undecided += facets.undecided + len(place.entries) - len(known)
        self.regions.append((place.pattern, center, float(slacks.min())))
        facets.real[known] = False
        self._cross(place.pattern, P, facets, basis)

    def _cross(
        self, pattern: np.ndarray, P: _Polytope, facets: _Facets, basis: highspy.HighsBasis
    ) -> None:
        """Note the new facets of the region visited last, and see what lies behind them."""
        here = len(self.regions) - 1
        faces = np.flatnonzero(facets.real[self.N :])
        self.facets += [(-1 - face, here, -1) for face in faces.tolist()]
        rows = np.flatnonzero(facets.real[: self.N])
        if not len(rows):
            return
        points, steps, proofs = facets.points[rows], -P.A[rows], facets.proofs()
        behind = self.space.beyond(points, steps, P.zero)
        for row, point, step, other in zip(rows.tolist(), points, steps, behind, strict=True):
            differ = other != pattern
            if not differ[row] or differ.argmax() != row:
                self.undecided += 1
                continue
            there = self._see(other, (point, step), basis)
            self.facets.append((row, here, there))
            place = self.places[there]
            if place is None:  # visited before, it should have had this facet
                self.undecided += 1
                continue
            place.entries.append(row)
            if proofs is not None:
                place.proofs.append(proofs)

    def _pass(self, point: np.ndarray, step: np.ndarray) -> None:
        """See what lies behind a place that is too thin."""
        for far in PASSES:
            there = point + far * step
            if (np.abs(there) <= self.space.half).all():
                pattern = self.space.beyond(there[None], step[None], 2 * self.space.errors)[0]
                self._see(pattern, (there, step))

    def result(self, complete: bool) -> Walk:
        """Regions and facets, thin places left out."""
        space = self.space
        regions = [region for region in self.regions if region is not None]
        number = np.full(len(self.numbers) + 1, -1)  # the last, -1, is outside
        number[[i for i, region in enumerate(self.regions) if region]] = np.arange(len(regions))
        facets = np.array(self.facets, dtype=int).reshape(-1, 3)
        patterns, centers, radii = zip(*regions, strict=True) if regions else ((), (), ())
        return Walk(
            np.array(patterns, bool).reshape(len(radii), self.N),
            space.middle + space.scale * np.array(centers).reshape(-1, space.n),
            space.scale * np.array(radii),
            facets[:, 0],
            number[facets[:, 1:]],
            self.undecided,
            complete,
        )


def _side_by_side(layers: list[np.ndarray]) -> np.ndarray:
    """Units of all layers, (m, *unit_shape) each, in one (m, N)."""
    if not layers:
        return np.zeros((1, 0))
    return np.concatenate([layer.reshape(len(layer), -1) for layer in layers], axis=1)
