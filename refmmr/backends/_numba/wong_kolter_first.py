"""The first layer in the bound of Wong and Kolter: ``W x + b -+ eps ||W||_q``.

Its rows are its weights, the same for all samples: their norms are computed once, and the gradients
of the norms are summed over the samples before they are propagated.
"""

from __future__ import annotations

import numpy as np

from refmmr.backends._numba.layers import Conv, Dense
from refmmr.backends._numba.layout import Layout


class FirstLayer:
    """The first layer and the norms of its rows.

    Attributes
    ----------
    inputs : ndarray of int, shape (places, taps)
        Numbers of the inputs, from 1, that an output pixel reads; 0 for padding.  A dense layer has
        one place.
    input_channels : int
    norms : ndarray, shape (units,)
        ``||W||_q`` of each unit, without the weights that meet padding.
    """

    def __init__(self, layout: Layout, p: float) -> None:
        self.layout, self.p, self.layer = layout, p, layout.layers[0]
        self.inputs = _inputs(self.layer)
        self.input_channels = layout.images[0][2] if layout.n_convs else 1
        W, inside = self.layer.W, (self.inputs > 0).astype(layout.dtype)
        if p == np.inf:
            self.norms = (inside @ np.abs(W.T)).ravel()
        elif p == 2:
            self.norms = np.sqrt(inside @ (W.T * W.T)).ravel()
        else:
            self.norms = np.max(np.abs(W) * inside[:, None], axis=2).ravel()

    def centers(self, operand: np.ndarray, n: int) -> np.ndarray:
        """``W x + b``, (n, units), from the operand of x, see `layers`."""
        layer = self.layer
        centers = np.empty((n, layer.outputs), self.layout.dtype)
        layer.linear(operand, centers)
        centers.reshape(-1, len(layer.b))[:] += layer.b
        return centers

    def norms_gradient(self, dnorms: np.ndarray) -> np.ndarray:
        """Gradient with respect to W, from that of the norms, (units,)."""
        W, inside = self.layer.W, (self.inputs > 0).astype(self.layout.dtype)
        dnorms, norms = (array.reshape(len(inside), -1) for array in (dnorms, self.norms))
        if self.p == np.inf:
            return np.sign(W) * (dnorms.T @ inside)
        if self.p == 2:
            scale = np.divide(dnorms, norms, out=np.zeros_like(norms), where=norms > 0)
            return W * (scale.T @ inside)
        # The first of equally large weights in the user's order, channel by channel.
        taps = np.arange(W.shape[1])
        order = taps.reshape(-1, self.input_channels).T.ravel()
        largest = order[np.argmax(np.abs(W[:, order]) * inside[:, None, order], axis=2)]
        dW, channel = np.zeros_like(W), np.arange(len(W))
        for tap, dnorm, shown in zip(largest, dnorms, inside, strict=True):
            dW[channel, tap] += np.sign(W[channel, tap]) * shown[tap] * dnorm
        return dW


def _inputs(layer: Conv | Dense) -> np.ndarray:
    if not isinstance(layer, Conv):
        return np.arange(1, layer.inputs + 1, dtype=np.int32)[None]
    found = pixels(layer)[..., None]
    channels = layer.geometry.channels
    inputs = np.where(found < 0, 0, found * channels + 1 + np.arange(channels))
    return inputs.reshape(len(inputs), -1).astype(np.int32)


def pixels(layer: Conv) -> np.ndarray:
    """Pixels in the window of each output pixel, (positions, pixels); -1 outside of the image."""
    g = layer.geometry
    row, column = np.divmod(np.arange(g.positions), g.columns)
    row = row[:, None] * g.down - g.top + np.arange(g.kernel_height)
    column = column[:, None] * g.across - g.left + np.arange(g.kernel_width)
    row, column = row[:, :, None], column[:, None]
    inside = (row >= 0) & (row < g.height) & (column >= 0) & (column < g.width)
    found = np.where(inside, row * g.width + column, -1)
    return found.reshape(g.positions, -1).astype(np.int32)
