"""Balls within a box, and the largest change of a linear function on them.

Hoelder's inequality is tight on the whole ball: ``max { <w, delta> : ||delta||_p <= r }`` is
``r ||w||_q``.  Within a box coordinate j can move by at most ``reach_j`` in the direction that
increases the function, and the problem becomes

    maximise  sum_j |w_j| m_j    over    0 <= m_j <= reach_j,   ||m||_p <= r.

In l_inf every coordinate moves by ``min(reach_j, r)``.  In l_1 and l_2 the constraint on the norm
gets a Lagrange multiplier: by weak duality *any* ``t >= 0`` gives an upper bound,

    l_1:   gain  <=  t r      +  sum_j max(|w_j| - t, 0) reach_j
    l_2:   gain  <=  t r^2/2  +  sum_j max_{0 <= m <= reach_j} (|w_j| m - t m^2 / 2),

and the best t, found by one sort, makes it an equality.  So the result is an upper bound however
t was rounded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.reference.hyperplanes import divide, dual_norm, norm

SMALL = 2.0**-500
"""Squares of l_2 lengths above this do not underflow.  An l_2 ball of a smaller radius is replaced
by the l_inf ball that contains it.  And `SMALL` times the radius and the largest coefficient is
more than the error of all squares of tiny coefficients."""


class Ball(NamedTuple):
    """Balls around n points, within a box."""

    x: np.ndarray  # (n, d), the centers
    radius: np.ndarray  # (n,)
    p: float
    box: tuple[np.ndarray, np.ndarray] | None  # (lo, hi), each (d,), or (n, d) for one each

    def take(self, rows: slice) -> Ball:
        """Some of the balls."""
        box = self.box
        if box is not None and box[0].ndim == 2:
            box = box[0][rows], box[1][rows]
        return Ball(self.x[rows], self.radius[rows], self.p, box)

    @property
    def lowest(self) -> np.ndarray:
        """The smallest value of each coordinate, (n, d)."""
        low = self.x - self.radius[:, None]
        return low if self.box is None else np.maximum(low, self.box[0])

    @property
    def highest(self) -> np.ndarray:
        """The largest value of each coordinate, (n, d)."""
        high = self.x + self.radius[:, None]
        return high if self.box is None else np.minimum(high, self.box[1])


def ball(
    X: np.ndarray, radius: np.ndarray, p: float, box: tuple[np.ndarray, np.ndarray] | None
) -> Ball:
    """Balls around inputs of any shape: X (n, *input_shape), radius (n,).

    The ends of the box have the shape of an input, or of X: then each point has its own.
    """
    d = X[0].size
    flat_box = None
    if box is not None:
        lo, hi = (end.reshape((-1, d) if end.shape == X.shape else d) for end in box)
        flat_box = lo, hi
    return Ball(X.reshape(len(X), d), radius, p, flat_box)


def largest_gain(ball: Ball, w: np.ndarray) -> np.ndarray:
    """``max { <w, z - x> }`` over the ball within the box.

    Parameters
    ----------
    ball : Ball
        Around n points.
    w : ndarray, shape (n or 1, m, d)
        m linear functions for each point, or the same for all.

    Returns
    -------
    ndarray, shape (n, m)
        At least the true maximum, up to the rounding of this sum.
    """
    radius = ball.radius[:, None]
    if ball.box is None:
        return radius * (norm(w, 2) if ball.p == 2 else dual_norm(w, ball.p))
    lo, hi = (end if end.ndim == 1 else end[:, None] for end in ball.box)
    x = ball.x[:, None, :]
    reach = np.where(w > 0, hi - x, x - lo)
    slopes = np.broadcast_to(np.abs(w), reach.shape)
    if ball.p == np.inf:
        return _linf_gain(slopes, reach, radius)
    return _l1_gain(slopes, reach, radius) if ball.p == 1 else _l2_gain(slopes, reach, radius)


def minimizer(ball: Ball, w: np.ndarray) -> np.ndarray:
    """A point of each ball, within the box, at which ``<w, z>`` is smallest, up to rounding.

    Parameters
    ----------
    ball : Ball
        Around n points.
    w : ndarray, shape (n, m, d)
        m linear functions for each point.

    Returns
    -------
    ndarray, shape (n, m, d)
        ``x - sign(w) m``, with the m at which `largest_gain` is reached.
    """
    slopes, radius = np.abs(w), ball.radius[:, None, None]
    reach = np.full_like(slopes, np.inf)
    if ball.box is not None:
        lo, hi = (end if end.ndim == 1 else end[:, None] for end in ball.box)
        reach = np.where(w > 0, ball.x[:, None] - lo, hi - ball.x[:, None])
    if ball.p == np.inf:
        move = np.minimum(reach, radius)
    elif ball.p == 1:
        order = np.argsort(-slopes, axis=-1)
        sorted_reach = np.minimum(np.take_along_axis(reach, order, -1), radius)
        before = np.cumsum(sorted_reach, axis=-1) - sorted_reach
        move = np.empty_like(reach)
        np.put_along_axis(move, order, np.clip(radius - before, 0, sorted_reach), -1)
    elif ball.box is None:
        move = radius * divide(slopes, norm(slopes, 2)[..., None])
    else:
        unit = divide(slopes, slopes.max(axis=-1, keepdims=True))
        t = _l2_multiplier(unit, reach, radius[..., 0])
        move = np.where(unit > t * reach, reach, divide(unit, t))
    return ball.x[:, None] - np.sign(w) * move


def _linf_gain(slopes, reach, radius):
    """l_inf: ``m_j = min(reach_j, r)``."""
    return (slopes * np.minimum(reach, radius[..., None])).sum(axis=-1)


def _l1_gain(slopes, reach, radius):
    """l_1: the steepest coordinates move first; t is the slope of the last one that moves."""
    order = np.argsort(-slopes, axis=-1)
    length = np.cumsum(np.take_along_axis(reach, order, -1), axis=-1)
    last = (length < radius[..., None]).sum(axis=-1, keepdims=True)
    # Where the box ends before the radius does, the constraint on the norm is slack: t = 0.
    candidates = np.concatenate([np.take_along_axis(slopes, order, -1), 0 * slopes[..., :1]], -1)
    t = np.take_along_axis(candidates, last, -1)
    return t[..., 0] * radius + (np.maximum(slopes - t, 0) * reach).sum(axis=-1)


def _l2_gain(slopes, reach, radius):
    """l_2: ``m_j = min(reach_j, |w_j| / t)``, with t such that ``||m||_2 = r``."""
    largest = slopes.max(axis=-1, keepdims=True)
    w = slopes / np.where(largest > 0, largest, 1)
    t = _l2_multiplier(w, reach, radius)
    stopped = w >= t * reach
    own = np.where(stopped, reach * (w - t * reach / 2), w**2 / (2 * np.where(t > 0, t, 1)))
    gain = t[..., 0] * radius**2 / 2 + own.sum(axis=-1) + SMALL * radius
    gain = largest[..., 0] * gain
    if (radius > SMALL).all():
        return gain
    return np.where(radius > SMALL, gain, _linf_gain(slopes, reach, radius))


def _l2_multiplier(w, reach, radius):
    """The t of slopes (n, m, d) of which the largest is 1; (n, m, 1).

    Sort the coordinates by the level ``1 / t`` at which they reach the box; before the i-th does,
    the length squared is that of those before it plus ``(level * |w_j|)^2`` of the others.
    """
    moving = w > 0
    stop = np.where(moving, reach / np.where(moving, w, 1), 0)
    order = np.argsort(stop, axis=-1)
    stop = np.take_along_axis(stop, order, -1)
    lengths = np.take_along_axis(np.where(moving, reach, 0) ** 2, order, -1)
    rates = np.take_along_axis(w**2, order, -1)
    rate = np.flip(np.cumsum(np.flip(rates, -1), axis=-1), -1)
    filled = np.cumsum(lengths, axis=-1) - lengths
    enough = filled + rate * stop**2 >= radius[..., None] ** 2
    piece = enough.argmax(axis=-1)[..., None]
    rest = radius[..., None] ** 2 - np.take_along_axis(filled, piece, -1)
    rate = np.take_along_axis(rate, piece, -1)
    level = np.sqrt(np.maximum(rest, 0) / np.where(rate > 0, rate, 1))
    # Where the box ends before the radius does, the constraint on the norm is slack: t = 0.
    binding = enough.any(axis=-1, keepdims=True) & (level > 0)
    return np.where(binding, 1 / np.where(binding, level, 1), 0)
