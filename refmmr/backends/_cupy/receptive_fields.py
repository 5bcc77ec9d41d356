"""Receptive fields: the gradient of a convolution's unit is zero outside a small patch.

A unit of the first convolution depends on the pixels of its window, and its gradient there is the
filter; a unit of the next one depends on the union of the windows of the units in its own window;
and so on.  So V of a convolution is kept as one patch per unit, on its receptive field (a window of
the image, given by a `Grid`), and never as a dense row over all pixels.  Where a patch reaches
outside of the image, or a filter outside of the layer before, the gradient is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import cupy
import numpy as np

from refmmr.backends._cupy.kernels import launch
from refmmr.backends._cupy.network import DeviceConv2d
from refmmr.backends._cupy.windows import Grid
from refmmr.reference.layers import Layer
from refmmr.reference.network import Network


def receptive_field(layers: Sequence[DeviceConv2d], input_shape: tuple[int, ...]) -> Grid:
    """The windows of the image that the outputs of some convolutions, one after another, read."""
    _, rows, columns = input_shape
    # Without a convolution the field of a pixel is the pixel itself.
    field = Grid(rows, columns, 1, 1, 1, 1, 0, 0)
    shape = input_shape
    for layer in layers:
        window = layer.grid(shape)
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
        shape = layer.output_shape(shape)
    return field


def patches(net: Network, masks: Sequence[cupy.ndarray], dtype: np.dtype) -> list[cupy.ndarray]:
    """V of the leading convolutions of a network, as patches.

    Parameters
    ----------
    net : Network
        On the device.
    masks : sequence of ndarray of bool, shapes (n, *unit_shape)
    dtype : numpy.dtype

    Returns
    -------
    list of ndarray, shape (n or 1, rows, columns, n_out, c, height, width)
        One per convolution: gradients of its units with respect to the pixels of their receptive
        fields.  All samples share those of the first.
    """
    colors, height, width = net.input_shape
    before = cupy.broadcast_to(
        cupy.eye(colors, dtype=dtype), (1, height, width, colors, colors)
    ).reshape(1, height, width, colors, colors, 1, 1)
    active = cupy.ones((1, *net.input_shape), bool)
    found: list[cupy.ndarray] = []
    shape, convolutions = net.input_shape, conv_layers(net)
    for k, layer in enumerate(convolutions):
        old, new = (receptive_field(convolutions[:j], net.input_shape) for j in (k, k + 1))
        n_out = len(layer.W)
        after = cupy.empty(
            (len(active), new.rows, new.columns, n_out, colors, new.height, new.width), dtype
        )
        launch(
            "extend_patches", dtype, after.size, cupy.ascontiguousarray(before),
            cupy.ascontiguousarray(active), cupy.ascontiguousarray(layer.W), after,
            len(before) == 1, *shape, old.height, old.width, old.down, old.across, n_out,
            *layer.grid(shape), colors, new.height, new.width,
        )  # fmt: skip
        found.append(after)
        before, active, shape = after, masks[k], layer.output_shape(shape)
    return found


def conv_layers(net: Network) -> list[DeviceConv2d]:
    """The leading convolutions."""
    return [layer for layer in net.affine_layers if isinstance(layer, DeviceConv2d)]


def receptive_network(net: Network, k: int) -> Network:
    """The network from the receptive field of a unit of convolution k to the unit: no padding."""
    layers: list[Layer] = [
        DeviceConv2d(layer.W, layer.b, layer.stride) for layer in conv_layers(net)[: k + 1]
    ]
    grid = receptive_field(conv_layers(net)[: k + 1], net.input_shape)
    return Network(layers, (net.input_shape[0], grid.height, grid.width))


def mask_windows(
    net: Network,
    masks: Sequence[cupy.ndarray],
    k: int,
    samples: cupy.ndarray,
    channels: cupy.ndarray,
    rows: cupy.ndarray,
    columns: cupy.ndarray,
) -> list[cupy.ndarray]:
    """The masks of the `receptive_network` of some units of convolution k.

    Parameters
    ----------
    net : Network
        On the device.
    masks : sequence of ndarray of bool, shapes (n, *unit_shape)
    k : int
        Convolution, counted from 0.
    samples, channels, rows, columns : ndarray of int, shape (m,)
        The units: of which sample, which channel and pixel.

    Returns
    -------
    list of ndarray of bool, shape (m, n_out, height, width)
        One per convolution before k; False outside the image.
    """
    convolutions = conv_layers(net)
    windows = []
    for j, mask in enumerate(masks[:k]):
        grid = receptive_field(convolutions[j + 1 : k + 1], net.unit_shapes[j])
        _, n_out, height, width = mask.shape
        y = (rows * grid.down - grid.top)[:, None] + cupy.arange(grid.height)
        x = (columns * grid.across - grid.left)[:, None] + cupy.arange(grid.width)
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        window = mask[
            samples[:, None, None, None],
            cupy.arange(n_out)[:, None, None],
            cupy.clip(y, 0, height - 1)[:, None, :, None],
            cupy.clip(x, 0, width - 1)[:, None, None, :],
        ]
        windows.append(window & inside[:, None])
    return windows
