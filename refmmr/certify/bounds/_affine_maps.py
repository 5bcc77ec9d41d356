"""The affine maps of a network for given activation patterns, and their rounding errors."""

from __future__ import annotations

import numpy as np

from refmmr.reference import rounding
from refmmr.reference.affine import basis
from refmmr.reference.network import Network


class AffineMaps:
    """V of all layers for an activation pattern, computed by probes (`refmmr.reference.affine`)."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.slices = net.unit_slices
        self.indicator = rounding.indicator(net)
        # V of the first layer is the same for all patterns.
        self.first = basis(net, np.dtype(np.float64))
        for layer in net.layers[: net.affine[0] + 1]:
            self.first = layer.linear(self.first)

    def masks(self, pattern: np.ndarray) -> list[np.ndarray]:
        """A pattern (N,) as masks (1, *unit_shape)."""
        shapes = zip(self.slices, self.net.unit_shapes, strict=True)
        return [pattern[units].reshape(1, *shape) for units, shape in shapes]

    def gradients(self, masks: list[np.ndarray]) -> list[np.ndarray]:
        """V of each layer, (N_k, d)."""
        g, net = self.first, self.net
        probes = [g]
        for i in range(net.affine[0] + 1, net.affine[-1] + 1):
            if i - 1 in net.affine:
                g = g * masks[len(probes) - 1]
            g = net.layers[i].linear(g)
            if i in net.affine:
                probes.append(g)
        return [probe.reshape(len(probe), -1).T for probe in probes]

    def constant(self, masks: list[np.ndarray]) -> np.ndarray:
        """Units to which no weight or bias leads, (N,) bool: 0 on the whole region, exactly."""
        paths = self.indicator.forward(np.ones((1, *self.net.input_shape)), masks).outputs[:-1]
        return np.concatenate([path.reshape(-1) == 0 for path in paths])


class PointErrors:
    """Bounds on the rounding errors at one point, valid for the affine maps of all patterns.

    Attributes
    ----------
    values, rows : ndarray, shape (N + K,)
        Of the values at x, and of the gradients in every l_q: hidden units, then margins.
    """

    def __init__(self, net: Network, x: np.ndarray, y: int) -> None:
        every = [np.ones((1, *shape), dtype=bool) for shape in net.unit_shapes]
        f = [error.reshape(-1) for error in rounding.value_errors(net, x, every)]
        V = [error.reshape(-1) for error in rounding.gradient_errors(net, every)]
        # The subtraction itself rounds too: at most as much again.
        self.values = np.concatenate([*f[:-1], 2 * (f[-1] + f[-1][y])])
        self.rows = np.concatenate([*V[:-1], 2 * (V[-1] + V[-1][y])])
