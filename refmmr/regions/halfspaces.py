"""The half-spaces of a linear region in floats, with tolerances for their rounding errors.

Coordinates u are shifted and scaled so that the domain is centred at 0 and its longest edge is
[-1, 1]: there all tolerances are absolute.  What they leave open is decided in exact arithmetic,
by `refmmr.regions.exact_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from refmmr.reference import enumeration, rounding
from refmmr.reference.enumeration import Domain
from refmmr.reference.network import Network, flat, unflat
from refmmr.regions.exact_rows import ExactDomain, ExactRows

__all__ = ["RegionPolytope", "ScaledDomain", "hidden_units"]

TINY = 1e-11
"""Distances below this count as 0."""

NOISE = 1e-13
"""If multipliers prove that a half-space cuts off less than this, exact arithmetic decides whether
it cuts off anything."""

PARALLEL = 1 - 1e-9
"""Smallest cosine of the angle between rows that are compared, to find equal ones."""


def hidden_units(layers: Sequence[np.ndarray], n: int = 1) -> np.ndarray:
    """Values of all hidden units, ``(n, *unit_shape)`` for each layer, as (n, N); N may be 0."""
    return flat([np.zeros((n, 0)), *layers])


class ScaledDomain:
    """A network on a domain, in scaled coordinates.

    Parameters
    ----------
    net : Network
    origin : ndarray, shape (*input_shape)
    directions : ndarray, shape (n, *input_shape)
        The input of z is ``origin + sum_k z_k directions_k``.
    lo, hi : ndarray, shape (n,)
        Bounds of z.

    Attributes
    ----------
    n : int
    center, scale : ndarray (n,), float
        ``z = center + scale u``.
    half_widths : ndarray, shape (n,)
        The domain is ``|u| <= half_widths``; the largest of them is 1.
    errors : ndarray, shape (N,)
        Bounds on the rounding errors of the values of all hidden units anywhere in the domain and,
        in l_1, of their rows V, for any activation pattern.
    face_errors : ndarray, shape (n,)
        Bounds on the errors of the faces of the domain, by the rounding of `center` and
        `half_widths`.
    exact : ExactDomain
        The same in exact arithmetic.
    """

    def __init__(
        self,
        net: Network,
        origin: np.ndarray,
        directions: np.ndarray,
        lo: np.ndarray,
        hi: np.ndarray,
    ) -> None:
        self.net, self.n = net, len(directions)
        self.scale = (hi - lo).max() / 2
        self.center = (lo + hi) / 2
        self.half_widths = (hi - lo) / (2 * self.scale)
        self.origin = origin + np.tensordot(self.center, directions, axes=1)
        self.directions = self.scale * directions
        domain = Domain(lo, hi, origin, directions)
        self.errors = hidden_units([e[None] for e in enumeration.value_errors(net, domain)[:-1]])[0]
        self.face_errors = rounding.rounding_factor(4) * (np.abs(lo) + np.abs(hi)) / self.scale
        self.exact = ExactDomain(net, domain)

    def maps(self, pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows V (N, n) and offsets a (N,) of all hidden units on the region of a pattern, (N,)."""
        masks = self._by_layer(pattern)
        V = self.net.forward(self.directions, masks, bias=False).outputs[:-1]
        a = self.net.forward(self.origin[None], masks).outputs[:-1]
        return hidden_units(V, self.n).T, hidden_units(a)[0]

    def patterns_beyond(
        self, U: np.ndarray, steps: np.ndarray, tolerance: np.ndarray
    ) -> np.ndarray:
        """Activation patterns at ``U + t steps`` for small t > 0.

        A unit whose value is within its tolerance of 0 is active if it grows along the step.

        Parameters
        ----------
        U, steps : ndarray, shape (m, n)
        tolerance : ndarray, shape (N,)

        Returns
        -------
        ndarray of bool, shape (m, N)
        """
        tolerances, errors = self._by_layer(tolerance), self._by_layer(self.errors)
        f = self.origin + np.tensordot(U, self.directions, axes=1)
        df = np.tensordot(steps, self.directions, axes=1)
        masks: list[np.ndarray] = []
        for k in range(len(self.net.unit_shapes)):
            for i in self.net.span(k):
                layer = self.net.layers[i]
                f, df = layer.apply(f), layer.linear(df)
            masks.append(np.where(np.abs(f) <= tolerances[k], df > errors[k], f > 0))
            f, df = f * masks[-1], df * masks[-1]
        return flat(masks) if masks else np.zeros((len(U), 0), bool)

    def _by_layer(self, units: np.ndarray) -> list[np.ndarray]:
        """One number per unit, (N,), as an array (1, *unit_shape) for each layer."""
        return unflat(units[None], self.net.unit_shapes)


class RegionPolytope:
    """A linear region as ``A u >= b``: rows of l_2 length 1, most of them redundant.

    Rows 0 to N - 1 belong to the hidden units, the 2 n others to the faces of the domain, where row
    ``N + i`` is labelled ``-1 - i`` (see `Facets.hyperplanes`).  A unit that is constant on the
    region, or whose hyperplane another row has too, is left out: its row is 0 and b is -inf.  Both
    are meant up to rounding errors.

    Attributes
    ----------
    A : ndarray, shape (m, n), m = N + 2 n
    b : ndarray, shape (m,)
    in_use : ndarray of bool, shape (m,)
        Rows that are not left out.
    clearance : ndarray, shape (m,)
        A point with more slack than this is strictly inside the half-space.
    zero : ndarray, shape (N,)
        A unit whose value at a point of a facet is within this of 0 is taken for 0 on the facet.
    stands_for : dict of int to list of int
        For a row that is kept: the rows equal to it that are left out.
    """

    def __init__(self, domain: ScaledDomain, pattern: np.ndarray) -> None:
        V, a = domain.maps(pattern)
        N, n = len(V), domain.n
        lengths = np.sqrt((V * V).sum(axis=1))
        # A row V within its own rounding error of 0 is taken for that of a constant.
        varies = lengths > domain.errors
        divisors = np.where(varies, lengths, 1)
        signs = np.where(pattern, 1, -1) / divisors
        errors = np.where(varies, domain.errors / divisors, 0)
        self.pattern, self.half_widths = pattern, domain.half_widths
        self._exact_domain = domain.exact
        self._constant = np.flatnonzero(~varies & (np.abs(a) <= 3 * domain.errors))
        self.A = np.zeros((N + 2 * n, n))
        self.A[:N] = V * (signs * varies)[:, None]
        self.A[N + np.arange(0, 2 * n, 2), np.arange(n)] = 1
        self.A[N + np.arange(1, 2 * n, 2), np.arange(n)] = -1
        self.b = np.append(np.where(varies, -a * signs, -np.inf), -np.repeat(self.half_widths, 2))
        self._errors = np.append(errors, np.repeat(domain.face_errors, 2))
        self.clearance = 2 * TINY + 3 * self._errors
        self.zero = 2 * domain.errors + TINY * lengths
        self.stands_for: dict[int, list[int]] = {}
        self._leave_out_equal_rows(TINY + self._errors, N)
        self.in_use = np.isfinite(self.b)
        b = np.where(self.in_use, self.b, 0)
        # Rounding errors of the rows on a box of twice the size, and those of sums over rows.
        gamma = rounding.rounding_factor(len(b) + 2 * n)
        self._sizes = self._errors + gamma * (np.abs(b) + 2 * self.half_widths.sum())
        self._table = np.column_stack([self.A, b, self._sizes])
        # A row that stands for others is redundant with them if it is by more than they differ.
        self._spread = np.zeros(len(self.b))
        self._spread[list(self.stands_for)] = 2 * (TINY + self._errors.max())

    def _leave_out_equal_rows(self, errors: np.ndarray, N: int) -> None:
        """Of equal rows keep that of the domain, or else the first."""
        parallel = self.A @ self.A.T > PARALLEL
        if parallel.sum() <= np.trace(parallel):  # each row only to itself, if it is not 0
            return
        for i, j in np.argwhere(np.triu(parallel, 1)):
            if not np.isfinite(self.b[[i, j]]).all():
                continue
            difference = np.abs(self.A[i] - self.A[j]).sum() + np.abs(self.b[i] - self.b[j])
            if difference <= errors[i] + errors[j]:
                kept, equal = (j, i) if j >= N else (i, j)
                self.A[equal], self.b[equal] = 0, -np.inf
                same = [equal, *self.stands_for.pop(equal, [])]
                self.stands_for[kept] = self.stands_for.get(kept, []) + same

    @cached_property
    def exact(self) -> ExactRows | None:
        """The rows in exact arithmetic, or None if that takes too long."""
        domain = self._exact_domain
        return domain.rows(self.pattern) if domain.affordable else None

    def count_uncertain(self, units: Sequence[int] | np.ndarray) -> int:
        """How many of some units may change sign inside the domain, on this map."""
        exact = self.exact if len(units) else None
        if exact is None:
            return len(units)
        return sum(not exact.keeps_sign(int(i), bool(self.pattern[i])) for i in units)

    def uncertain_constants(self) -> int:
        """Number of units that may not be constant on the region, though floats say so."""
        return self.count_uncertain(self._constant)

    def share_hyperplane(self, units: np.ndarray) -> bool:
        """Whether some units are surely 0 on one and the same hyperplane."""
        return len(units) == 1 or (self.exact is not None and self.exact.same_hyperplane(units))

    def slacks(self, U: np.ndarray) -> np.ndarray:
        """Distances of points (..., n) from all hyperplanes, positive inside: (..., m)."""
        return U @ self.A.T - self.b

    def are_redundant(self, rows: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Whether multipliers prove half-spaces redundant (Farkas' lemma).

        Row i is redundant if ``A_i = sum_k y_k A_k`` with y >= 0, y_i = 0 and ``sum_k y_k b_k >=
        b_i``.  Negative multipliers are set to 0, and the residual of the equation is bounded on a
        box of twice the size of the domain, and not on the domain itself, which would make its own
        faces redundant.  The part of space that a facet cuts off reaches into this box.

        The inequality must hold by more than all rounding errors; within them exact arithmetic
        decides.

        Parameters
        ----------
        rows : ndarray of int, shape (k,)
        Y : ndarray, shape (k, m)

        Returns
        -------
        ndarray of bool, shape (k,)
        """
        Y = np.maximum(Y, 0)
        Y[np.arange(len(rows)), rows] = 0
        sums = Y @ self._table
        residuals = np.abs(self.A[rows] - sums[:, :-2]) @ (2 * self.half_widths)
        gain = sums[:, -2] - residuals - self.b[rows]
        errors = 3 * (sums[:, -1] + self._sizes[rows])
        proved = gain > errors + self._spread[rows]
        close = ~proved & (gain >= -(NOISE + errors))
        if close.any():
            for i in np.flatnonzero(close).tolist():
                others = np.flatnonzero(Y[i] > TINY).tolist()
                proved[i] = self._is_exactly_redundant(int(rows[i]), others)
        return proved

    def _is_exactly_redundant(self, row: int, others: list[int]) -> bool:
        """Whether other rows imply a row and all those that it stands for."""
        if self.exact is None:
            return False
        all_of_them = [row, *self.stands_for.get(row, [])]
        return all(self.exact.is_redundant(i, others) for i in all_of_them)

    def scatter(self, Y: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Multipliers (k, len(others)) of some rows as multipliers of all rows, (k, m)."""
        full = np.zeros((len(Y), len(self.b)))
        full[:, others] = Y
        return full
