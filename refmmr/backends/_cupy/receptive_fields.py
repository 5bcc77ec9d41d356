"""Receptive fields: the gradient of a convolution's unit is zero outside a small patch.

A unit of the first convolution depends on the pixels of its window, and its gradient there is the
filter; a unit of the next one depends on the union of the windows of the units in its own window;
and so on.  So V of a convolution is kept as one patch per unit, on its receptive field (a window of
the image, given by a `Grid`), and never as a dense row over all pixels.  Where a patch reaches
outside of the image, or a filter outside of the layer before, the gradient is zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from refmmr.backends._cupy.network import DeviceConv2d, per_network
from refmmr.backends._cupy.windows import Grid
from refmmr.reference.network import Network


def receptive_field(layers: Sequence[DeviceConv2d], input_shape: tuple[int, ...]) -> Grid:
    """The windows of the image that the outputs of some convolutions, one after another, read."""
    windows: list[Grid] = []
    shape = tuple(input_shape)
    for layer in layers:
        windows.append(layer.grid(shape))
        shape = (len(layer.b), *windows[-1][:2])
    return _composed(tuple(windows), *input_shape[1:])


@functools.lru_cache(maxsize=128)
def _composed(windows: tuple[Grid, ...], rows: int, columns: int) -> Grid:
    """Windows of windows, as windows of the image."""
    # Without a convolution the field of a pixel is the pixel itself.
    field = Grid(rows, columns, 1, 1, 1, 1, 0, 0)
    for window in windows:
        field = Grid(
            window.rows,
            window.columns,
            field.height + (window.height - 1) * field.down,
            field.width + (window.width - 1) * field.across,
            field.down * window.down,
            field.across * window.across,
            field.top + window.top * field.down,
            field.left + window.left * field.across,
        )
    return field


@per_network
def conv_layers(net: Network) -> list[DeviceConv2d]:
    """The leading convolutions."""
    return [layer for layer in net.affine_layers if isinstance(layer, DeviceConv2d)]
