"""Cuts of subproblems on a ball, for branch and bound (`refmmr.certify.bounds._subproblems`).

On a ball around x the backward bound (`refmmr.reference.backward_bound`) gives

    margin over c - sum beta_i f_i   >=   <w, z> + b      for every z of the ball,

where ``beta_i >= 0`` multiplies the constraint of a fixed unit, as in beta-CROWN (Wang et al.
2021).  An adversarial example of class c in the subproblem makes the left side at most 0, so it
lies in the half-space ``<w, z> + b <= 0``.  That is a *cut*.

**Lower bounds are proved** as those of regions are: any nonnegative combination of the cuts is one
half-space, and its distance from x is bounded with all rounding errors.  The solver of
`refmmr.certify.bounds._nearest` chooses the multipliers, and nothing relies on it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr import _kernels
from refmmr._examples import Box
from refmmr.certify.bounds._incumbent import Incumbent
from refmmr.certify.bounds._nearest import nearest_point
from refmmr.reference import rounding
from refmmr.reference.backward_bound import backward_bound
from refmmr.reference.ball import ball
from refmmr.reference.network import Network, unflat
from refmmr.reference.relaxation import lower_slope, relu_relaxation

MAX_REBOUND_UNITS = 600
"""Bound the units behind the first layer again in every subproblem if there are at most this many:
each of them takes two backward bounds."""


class Cut(NamedTuple):
    """A half-space ``value + <row, z - x> >= 0`` that holds all examples of a subproblem."""

    row: np.ndarray  # (d,)
    value: float
    error: float  # of the function above, anywhere on the ball


class Cuts:
    """Cuts of subproblems on a ball around a point.

    Attributes
    ----------
    radius : float
        Of the ball, on which all bounds hold.
    bounds : list of (lower, upper)
        Of all units, arrays (1, *unit_shape) a layer.
    magnitudes : list of Magnitude
        Of their rounding errors.
    """

    def __init__(
        self, net: Network, p: float, box: Box | None, point: Incumbent, radius: float
    ) -> None:
        self.net, self.p, self.point, self.radius = net, p, point, radius
        radii = np.array([radius])
        self.bounds = _kernels.layer_bounds(net, point.x, p, radii, box, "crown")[:-1]
        self._ball = ball(point.x, radii, p, box)
        self.magnitudes = rounding.layer_magnitudes(net, self._ball, self.bounds)

    def fix(self, fixed: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Bounds of all units in a subproblem, (1, *unit_shape) a layer, or None if it is empty.

        Those behind the first layer are computed again, with the units before them fixed.
        """
        bounds: list[tuple[np.ndarray, np.ndarray]] = []
        again = sum(low.size for low, _ in self.bounds[1:]) <= MAX_REBOUND_UNITS and fixed.any()
        signs = unflat(fixed[None], self.net.unit_shapes)
        for k, ((low, high), sign) in enumerate(zip(self.bounds, signs, strict=True)):
            if k and again:
                low, high = self._tighten(bounds, low, high)
            if ((sign > 0) & (high < 0) | (sign < 0) & (low > 0)).any():
                return None
            low = np.where(sign > 0, np.maximum(low, 0), low)
            bounds.append((low, np.where(sign < 0, np.minimum(high, 0), high)))
        return bounds

    def _tighten(self, bounds, low, high):
        """Better bounds of the unstable units of the layer behind those of `bounds`."""
        unstable = (low < 0) & (high > 0)
        units = np.flatnonzero(unstable)
        if not len(units):
            return low, high
        m = len(units)
        rows = np.zeros((1, 2 * m, low.size))
        rows[0, np.arange(m), units] = 1
        rows[0, m + np.arange(m), units] = -1
        slopes = [lower_slope(low, high, "crown") for low, high in bounds]
        rows = rows.reshape(1, 2 * m, *low.shape[1:])
        magnitudes = self.magnitudes[: len(bounds) + 1]
        bound = backward_bound(self.net, self._ball, rows, bounds, slopes, None, magnitudes)
        smallest = bound.minimum(self._ball)[0]
        low, high = low.copy(), high.copy()
        low[unstable] = np.maximum(low[unstable], smallest[:m])
        high[unstable] = np.minimum(high[unstable], -smallest[m:])
        return low, high

    def _outputs(self, step, bounds):
        """Pre-activations at a step, with the activations of fixed and stable units frozen."""
        net = self.net
        g = (self.point.flat + step).reshape(self.point.x.shape)
        outputs = []
        for i, layer in enumerate(net.layers):
            g = layer.apply(g)
            if i in net.affine:
                outputs.append(g)
                if i != net.affine[-1]:
                    low, high = bounds[len(outputs) - 1]
                    g = g * np.where(low >= 0, True, (high > 0) & (g > 0))
        return outputs

    def at(
        self,
        target: int,
        fixed: np.ndarray,
        bounds: list[tuple[np.ndarray, np.ndarray]],
        step: np.ndarray,
    ) -> tuple[list[Cut], np.ndarray]:
        """Cuts at a step from the point, (d,), and what each unit's upper relaxation costs there.

        Parameters
        ----------
        target : int
            The class of the subproblem.
        fixed : ndarray of int8, shape (N,)
            Its fixed units.
        bounds : list of (lower, upper)
            From `fix`.
        step : ndarray, shape (d,)

        Returns
        -------
        list of Cut
            Of the margin, and of each fixed unit whose constraint is violated at the step.
        ndarray, shape (N,)
            The costs.
        """
        net = self.net
        outputs = self._outputs(step, bounds)
        hidden = flat(outputs[:-1])
        violated = np.flatnonzero(fixed * hidden < 0)
        m = 1 + len(violated)
        rows = np.zeros((1, m, net.n_classes))
        rows[0, 0, [self.point.y, target]] = 1, -1
        multipliers = np.zeros((m, net.n_hidden))
        multipliers[1 + np.arange(len(violated)), violated] = -fixed[violated]
        bound = backward_bound(
            net, self._ball, rows.reshape(1, m, *net.logits_shape), bounds,
            [output > 0 for output in outputs[:-1]],
            [part[None] for part in unflat(multipliers, net.unit_shapes)], self.magnitudes,
        )  # fmt: skip
        A, constant, error = bound.A[0], bound.constant[0], bound.error[0]
        # By a power of two, which rounds nothing.
        _, exponent = np.frexp(np.abs(A).max(axis=1, initial=0))
        scale = np.ldexp(1.0, -exponent)
        values = scale * (A @ self.point.flat + constant)
        parts = zip(-scale[:, None] * A, (-values).tolist(), (scale * error).tolist(), strict=True)
        return [Cut(*part) for part in parts], self._scores(bounds, outputs, bound.coefficients)

    def _scores(self, bounds, outputs, coefficients):
        """What the upper relaxation of each open unit costs the margin at a step, (N,)."""
        costs = []
        for (low, high), f, G in zip(bounds, outputs[:-1], coefficients, strict=True):
            unstable = (low < 0) & (high > 0)
            relaxation = relu_relaxation(low, high, 0.0 * low)
            gap = relaxation.upper_slope * f + relaxation.intercept - np.maximum(f, 0)
            cost = np.maximum(-G[0, 0], 0) * np.maximum(gap[0], 0)
            costs.append(np.where(unstable, cost, 0))
        scores = flat(costs)
        # Smaller costs are rounding errors.
        return np.where(scores > 1e-9 * max(float(np.abs(outputs[-1]).max()), 1e-300), scores, 0)

    def nearest(
        self, cuts: list[Cut], v: np.ndarray, limit: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Multipliers of the cuts, and the nearest step that they allow."""
        rows = np.array([cut.row for cut in cuts])
        values = np.array([cut.value for cut in cuts])
        lo, hi = self.point.lo - self.point.flat, self.point.hi - self.point.flat
        return nearest_point(values, rows, lo, hi, self.p, v, limit)

    def prove(self, cuts: list[Cut], v: np.ndarray) -> float:
        """The proved distance of a combination of the cuts, with multipliers v; 0 for none."""
        v = np.where(np.isfinite(v), np.maximum(v, 0), 0)
        largest = v.max(initial=0)
        if not largest > 0:
            return 0.0
        use = np.flatnonzero(v)
        v = v[use] / largest
        rows = np.array([cuts[i].row for i in use])
        values = np.array([cuts[i].value for i in use])
        errors = np.array([cuts[i].error for i in use])
        gamma = rounding.rounding_factor(2 * len(use) + 16)
        value_error = v @ (errors + gamma * np.abs(values))
        w_error = v @ (gamma * np.abs(rows).sum(axis=1))
        value_error, w_error = (
            np.array([error * (1 + gamma) + rounding.SMALLEST_NORMAL])
            for error in (value_error, w_error)
        )
        w, value = -(v @ rows)[None], -np.array([v @ values])
        distance = float(self.point.distances(w, value, value_error, w_error)[0])
        return min(distance, self.radius)


def flat(layers: list[np.ndarray]) -> np.ndarray:
    """The units of all layers side by side: arrays (1, *unit_shape) to (N,)."""
    return np.concatenate([np.zeros(0), *(layer.reshape(-1) for layer in layers)])
