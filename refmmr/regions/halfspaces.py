"""The half-spaces of a linear region in floats, with tolerances for their rounding errors.

Coordinates u are shifted and scaled so that the domain is centred at 0 and its longest edge is
[-1, 1]: there all tolerances are absolute.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr.reference import rounding
from refmmr.reference.network import Network, flat, unflat

__all__ = ["RegionPolytope", "ScaledDomain", "hidden_units"]

TINY = 1e-11
"""Distances below this count as 0."""

NOISE = 1e-13
"""A half-space is redundant if multipliers prove that it cuts off less than this."""

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
        largest = np.abs(self.origin) + np.abs(self.directions).sum(axis=0)
        self.errors = hidden_units(rounding.value_errors(net, largest[None])[:-1])[0]

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
    region, or whose hyperplane another row has too, is left out: its row is 0 and b is -inf.

    Attributes
    ----------
    A : ndarray, shape (m, n), m = N + 2 n
    b : ndarray, shape (m,)
    in_use : ndarray of bool, shape (m,)
        Rows that are not left out.
    clearance : ndarray, shape (m,)
        A point with more slack than this is strictly inside the half-space.
    zero : ndarray, shape (N,)
        A unit whose value at a point of a facet is within this of 0 is 0 on the whole facet.
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
        self.half_widths = domain.half_widths
        self.A = np.zeros((N + 2 * n, n))
        self.A[:N] = V * (signs * varies)[:, None]
        self.A[N + np.arange(0, 2 * n, 2), np.arange(n)] = 1
        self.A[N + np.arange(1, 2 * n, 2), np.arange(n)] = -1
        self.b = np.append(np.where(varies, -a * signs, -np.inf), -np.repeat(self.half_widths, 2))
        errors = np.append(errors, np.zeros(2 * n))
        self.clearance = 2 * TINY + 3 * errors
        self.zero = 2 * domain.errors + TINY * lengths
        self._noise = NOISE + errors
        self._leave_out_equal_rows(TINY + errors, N)
        self.in_use = np.isfinite(self.b)
        self._finite_b = np.where(self.in_use, self.b, 0)

    def _leave_out_equal_rows(self, errors: np.ndarray, N: int) -> None:
        """Of equal rows keep that of the domain, or else the first."""
        parallel = self.A @ self.A.T > PARALLEL
        if parallel.sum() <= len(parallel):  # each row only to itself
            return
        for i, j in np.argwhere(np.triu(parallel, 1)):
            if not np.isfinite(self.b[[i, j]]).all():
                continue
            difference = np.abs(self.A[i] - self.A[j]).sum() + np.abs(self.b[i] - self.b[j])
            if difference <= errors[i] + errors[j]:
                equal = i if j >= N else j
                self.A[equal], self.b[equal] = 0, -np.inf

    def slacks(self, U: np.ndarray) -> np.ndarray:
        """Distances of points (..., n) from all hyperplanes, positive inside: (..., m)."""
        return U @ self.A.T - self.b

    def are_redundant(self, rows: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Whether multipliers prove half-spaces redundant (Farkas' lemma).

        Row i is redundant if ``A_i = sum_k y_k A_k`` with y >= 0, y_i = 0 and ``sum_k y_k b_k >=
        b_i``.  Negative multipliers are set to 0, and the residual of the equation is bounded on a
        box of twice the size of the domain, and not on the domain itself, which would make its own
        faces redundant.  The part of space that a facet cuts off reaches into this box.

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
        residuals = np.abs(self.A[rows] - Y @ self.A) @ (2 * self.half_widths)
        return Y @ self._finite_b - residuals >= self.b[rows] - self._noise[rows]

    def scatter(self, Y: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Multipliers (k, len(others)) of some rows as multipliers of all rows, (k, m)."""
        full = np.zeros((len(Y), len(self.b)))
        full[:, others] = Y
        return full
