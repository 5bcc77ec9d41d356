"""The incumbent of a search: the nearest verified example of one point, found so far.

Both parts of the search (`refmmr.certify.bounds.search`) propose examples to it, and bound the
distances of half-spaces with it.
"""

from __future__ import annotations

import numpy as np

from refmmr import _examples
from refmmr._examples import OVERSHOOTS, Box
from refmmr.certify.bounds import region
from refmmr.reference import rounding
from refmmr.reference.hyperplanes import dual_norm, norm
from refmmr.reference.network import Network

MIN_GAIN = 1e-9
"""A new example replaces the incumbent if it is nearer by this share: less is rounding."""

FOLLOW_UPS = 4
"""Projections from a point that was proposed: each needs a forward and a backward pass."""

ROUNDED_UP = 1 + 1e-9
"""Factor that covers the rounding of the distance to the farthest point of the box."""


class Incumbent:
    """A point, and the nearest verified example so far.

    Parameters
    ----------
    net : Network
    p : {1, 2, inf}
    box : (lo, hi) or None
    x : ndarray, shape (*input_shape)
    y : int
    goal : float
        Larger distances need not be known.

    Attributes
    ----------
    x : ndarray, shape (1, *input_shape)
    flat : ndarray, shape (d,)
    lo, hi : ndarray, shape (d,)
        The box; infinite without one.
    farthest : float
        At least the distance of every point of the box.
    upper : float
        Distance of the example, rounded up; infinite without one.
    adversarial : ndarray, shape (d,)
        The example; NaN without one.
    """

    def __init__(
        self, net: Network, p: float, box: Box | None, x: np.ndarray, y: int, goal: float
    ) -> None:
        self.net, self.p, self.box, self.y, self.goal = net, p, box, y, goal
        self.x, self.flat = x[None], x.reshape(-1)
        whole = np.full_like(x, -np.inf), np.full_like(x, np.inf)
        self.lo, self.hi = (end.reshape(-1) for end in box or whole)
        self.farthest = ROUNDED_UP * float(
            norm(np.maximum(self.hi - self.flat, self.flat - self.lo), p)
        )
        self.upper, self.adversarial = np.inf, np.full(x.size, np.nan)

    @property
    def limit(self) -> float:
        """The distance beyond which nothing need be known."""
        return min(self.upper, self.goal, self.farthest)

    def propose(self, steps: np.ndarray, overshoots: tuple[float, ...] = OVERSHOOTS) -> None:
        """Keep the nearest verified example a little beyond steps (m, d), if it is nearer."""
        steps = steps[steps.any(axis=1)]
        if not len(steps):
            return
        longer = (1 + np.array(overshoots))[:, None, None] * steps
        Z = np.clip(self.flat + longer.reshape(-1, self.flat.size), self.lo, self.hi)
        distances = _examples.verified_distances(
            self.net, self.x, Z.reshape(-1, *self.x.shape[1:]), np.full(len(Z), self.y),
            self.p, self.box, self.upper * (1 - MIN_GAIN),
        )  # fmt: skip
        best = distances.argmin()
        if distances[best] < self.upper:
            self.upper, self.adversarial = float(distances[best]), Z[best]

    def attempt(self, step: np.ndarray) -> None:
        """Propose a step (d,), then projections onto the decision boundary where it leads."""
        self.propose(step[None])
        labels = np.full(1, self.y)
        for _ in range(FOLLOW_UPS):
            before = self.upper
            z = np.clip(self.flat + step, self.lo, self.hi).reshape(self.x.shape)
            value, w = _examples.linear_margin(self.net, self.x, z, labels)
            if not value[0] > 0 or not w.any():
                break
            step = self.projection_steps(w, value)[0]
            self.propose(step[None])
            if self.upper == before < np.inf:
                break

    def projection_steps(self, w: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Shortest steps onto hyperplanes: gradients (m, d), values at x (m,) -> (m, d)."""
        return _examples.projection_steps(self.flat[None], w, value, self.p, self.box)

    def distances(
        self,
        w: np.ndarray,
        value: np.ndarray,
        value_error: np.ndarray,
        w_error: np.ndarray,
        in_box: bool = True,
    ) -> np.ndarray:
        """Lower bounds on the distances of half-spaces ``value + <w, delta> <= 0``.

        Parameters
        ----------
        w : ndarray, shape (m, d)
        value, value_error, w_error : ndarray, shape (m,)
            With bounds on the errors of value and, in l_q, of w.
        in_box : bool
            Whether the step must stay in the box; without it the bounds are quicker and smaller.

        Returns
        -------
        ndarray, shape (m,)
            0 where nothing is proved.
        """
        if in_box and self.box is not None:
            found = region.hyperplane_in_box(
                self.flat, w, value, value_error, w_error, self.lo, self.hi, self.p
            )
        else:
            slack = 1 - rounding.rounding_factor(4 * w.shape[1] + 32)
            rest = value - value_error
            slope = dual_norm(w, self.p) / slack + w_error
            # Infinite where the function is constant; a slope that overflowed proves nothing.
            found = np.where(slope > 0, rest / np.where(slope > 0, slope, 1), 0) * slack
            found = np.where(rest > 0, np.where(slope == 0, np.inf, found), 0)
        return np.where(found >= rounding.SMALLEST_NORMAL, found, 0)  # not NaN, nor of few digits
