"""Norms with a unit for each coordinate: ``||(z - x) / s||_p`` for a scale s > 0.

With ``u = z / s`` this is the plain norm, for the network ``f'(u) = f(s u)`` whose first weights
are ``W_1 diag(s)``.  So every method works for it.  But in floats these products, and ``x / s``,
are rounded, and what is proved for f' must hold for f:

- The rounding of ``W_1 diag(s)`` moves the first pre-activations by at most
  ``e = u |W_1 diag(s)| max|u|``, and the logits by at most ``eta = |W_{L+1}| ... |W_2| e``.  So the
  bias of the true class is lowered by the eta of both logits of a margin: what is proved for that
  network holds for f.
- The center is ``x / s`` up to ``delta = u ||x / s||_p``, so a radius r proves ``r - delta``.
- The box is divided and rounded outwards.

Adversarial examples are moved back and verified for f, within the box (`refmmr._examples`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refmmr import _boxes, _examples
from refmmr import _validate as check
from refmmr._boxes import Box
from refmmr.network import Network
from refmmr.reference.hyperplanes import norm
from refmmr.reference.layers import Conv2d, Flatten
from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor


def check_scale(scale: Any, net: Network) -> np.ndarray | None:
    """None, or a unit for each coordinate, of the shape of an input, that the weights can take."""
    units = check.check_scale(scale, net.input_shape)
    if units is not None:
        _check_weights(net, units)
    return units


def _check_weights(net: Network, scale: np.ndarray) -> None:
    if isinstance(net.affine_layers[0], Conv2d):
        channels = scale.reshape(len(scale), -1)
        if (channels != channels[:, :1]).any():
            raise ValueError(
                "scale: expected one number for each channel, as the network begins with a "
                "convolution, got different ones for its pixels; pass shape (channels, 1, 1)"
            )
    if isinstance(net.affine_layers[-1], Conv2d):
        raise ValueError(
            "scale: expected a network whose last layer is dense, got one that ends with a "
            "convolution; write it as a Linear layer behind a Flatten"
        )


def scaled_network(net: Network, scale: np.ndarray) -> Network:
    """``f'(u) = f(s u)``, its first weights rounded."""
    (W, b), *others = net.parameters
    units = scale[:, :1, :1] if W.ndim == 4 else scale.reshape(-1)
    return net.with_parameters([((W * units).astype(W.dtype), b), *others])


def logit_errors(scaled: Network, largest: np.ndarray) -> np.ndarray:
    """By how much the logits of f and `scaled` differ at most, (K,), rounded up.

    Parameters
    ----------
    scaled : Network
        By `scaled_network`.
    largest : ndarray, shape (*input_shape)
        Bounds of ``|u|``.
    """
    size = largest[None]
    g = size
    for i, layer in enumerate(scaled.layers):
        if isinstance(layer, Flatten):
            g = layer.apply(g)
            continue
        g = layer.map(np.abs).linear(g) + SMALLEST_NORMAL  # of products that underflow
        if i == scaled.affine[0]:
            # A product of two floats is wrong by u of itself, or by less than the smallest normal
            # number; another u covers the quotient by its rounded size.
            g = rounding_factor(2) * g + SMALLEST_NORMAL * (1 + size.sum())
    # Sums of absolute values are rounded, too: by far less than they are.
    return 2 * g.reshape(-1)


def with_lower_class(net: Network, y: int, by: float) -> Network:
    """The network with logit y lowered by at least this much."""
    *others, (W, b) = net.parameters
    b = b.copy()
    b[y] = np.nextafter(b[y] - by, -np.inf)
    return net.with_parameters([*others, (W, b)])


class Scaled(NamedTuple):
    """Points in units of the scale."""

    u: np.ndarray  # (n, *input_shape), x / s, rounded
    delta: np.ndarray  # (n,) at least ||x / s - u||_p
    box: Box | None  # holds that of the points, divided by s


def scaled_points(X: np.ndarray, p: float, box: Box | None, scale: np.ndarray) -> Scaled:
    """Points X (n, *input_shape) and their box, of the shape of an input, divided by the scale."""
    u = X / scale
    sizes = norm(u.reshape(len(X), -1), p)
    d = scale.size
    delta = rounding_factor(4 * d + 8) * sizes + d * SMALLEST_NORMAL
    outer = None
    if box is not None:
        outer = np.nextafter(box[0] / scale, -np.inf), np.nextafter(box[1] / scale, np.inf)
    return Scaled(u, delta, outer)


def distance_rounded_up(X: np.ndarray, Z: np.ndarray, p: float, scale: np.ndarray) -> np.ndarray:
    """``||(z - x) / s||_p`` for each pair of points (n, *input_shape), at least the true one."""
    delta = (Z - X) / scale
    distance = _examples.distance_rounded_up(np.zeros_like(delta), delta, p)
    return distance * (1 + rounding_factor(8))


def verified(
    net: Network,
    X: np.ndarray,
    U: np.ndarray,
    y: np.ndarray,
    p: float,
    box: Box | None,
    scale: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Examples of f from examples U of f': distances (n,), infinite for none, and points.

    Those that are not misclassified are moved away from x a little (`_examples.OVERSHOOTS`).
    """
    distances, best = np.full(len(X), np.inf), np.full(X.shape, np.nan)
    for overshoot in (0.0, *_examples.OVERSHOOTS):
        rows = np.flatnonzero(np.isinf(distances) & np.isfinite(U).reshape(len(X), -1).all(axis=1))
        if not len(rows):
            break
        x, own = X[rows], _boxes.take(box, X, rows)
        Z = _examples.clip(x + (1 + overshoot) * (U[rows] * scale - x), own)
        # Distances in the plain norm say whether an example is verified, not how far it is.
        found = np.isfinite(_examples.verified_distances(net, x, Z, y[rows], p, own))
        if found.any():
            rows, Z = rows[found], Z[found]
            best[rows], distances[rows] = Z, distance_rounded_up(X[rows], Z, p, scale)
    return distances, best
