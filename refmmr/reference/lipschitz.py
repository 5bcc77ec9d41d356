"""Local Lipschitz constants: how fast the logits can change on a ball.

On each linear region the Jacobian of the logits is ``W_{L+1} diag(s_L) W_L ... diag(s_1) W_1``.  If
bounds of the pre-activations are known on a ball, each ``s`` is known where its unit is stable, and
between 0 and 1 elsewhere.  So intervals go back through the layers: with entries within ``radius``
of ``center``,

    A W   lies within   radius |W|   of   center W,
    A s   lies between   min(A, 0)   and   max(A, 0)   for an unstable unit.

Along a segment in the ball the logits are piecewise linear, and Hoelder's inequality bounds each
slope:  ``|f_k(z) - f_k(z')| <= max ||J_k||_q ||z - z'||_p``  with ``1/p + 1/q = 1`` (Weng et al.
2018, Fast-Lip; Zhang, Zhang, Hsieh 2019, RecurJac).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr.reference.hyperplanes import dual_norm
from refmmr.reference.intervals import Bounds
from refmmr.reference.layers import Flatten
from refmmr.reference.network import Network
from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor


def lipschitz_constants(net: Network, bounds: Sequence[Bounds], p: float) -> np.ndarray:
    """Lipschitz constants of the logits in l_p where the units stay within bounds.

    Parameters
    ----------
    net : Network
        With float64 weights.
    bounds : sequence of (lower, upper), one per hidden layer
        Of the pre-activations on n convex sets, arrays (n, *unit_shape).
    p : {1, 2, inf}

    Returns
    -------
    ndarray, shape (n, K)
        At least the constants in real arithmetic; infinite where a float overflowed.
    """
    lower, upper = jacobian_bounds(net, bounds)
    largest = np.maximum(np.abs(lower), np.abs(upper))
    constants = dual_norm(largest, p) * (1 + rounding_factor(4 * largest.shape[-1] + 8))
    return np.where(np.isfinite(constants), constants + SMALLEST_NORMAL, np.inf)


def jacobian_bounds(net: Network, bounds: Sequence[Bounds]) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of the entries of the Jacobian, (n or 1, K, d) each; see `lipschitz_constants`."""
    rows = np.eye(net.n_classes).reshape(1, net.n_classes, *net.logits_shape)
    lower = upper = rows
    for k in reversed(range(len(net.affine))):
        if k < len(bounds):
            low, high = (end[:, None] for end in bounds[k])
            # A stable unit has s = 1 or s = 0; an unstable one both, and all between.
            smallest, largest = (low >= 0) * 1.0, (high > 0) * 1.0
            lower, upper = (
                np.where(lower < 0, lower * largest, lower * smallest),
                np.where(upper > 0, upper * largest, upper * smallest),
            )
        lower, upper = _through(net, k, lower, upper)
    flat = (*lower.shape[:2], -1)
    return lower.reshape(flat), upper.reshape(flat)


def _through(net, k, lower, upper):
    """Intervals of ``A W_k`` from those of A, rounded outwards."""
    for i in reversed(net.span(k)):
        layer, shape = net.layers[i], net.shapes[i]
        if isinstance(layer, Flatten):
            lower, upper = layer.transpose(lower, shape), layer.transpose(upper, shape)
            continue
        size = layer.map(np.abs)
        middle = layer.transpose(lower + upper, shape) / 2
        spread = size.transpose(upper - lower, shape) / 2
        terms = size.transpose(np.maximum(np.abs(lower), np.abs(upper)), shape)
        # Sums over the outputs of the layer, and a few roundings of terms no larger than these.
        count = int(np.prod(net.shapes[i + 1]))
        slack = rounding_factor(2 * count + 32) * (terms + SMALLEST_NORMAL)
        lower, upper = middle - spread - slack, middle + spread + slack
    return lower, upper
