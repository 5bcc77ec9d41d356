"""Receptive fields: the gradient of a convolution's unit is zero outside a small patch.

A unit of the first convolution sees the pixels of its window, and its gradient there is the filter;
a unit of the next one sees the union of the windows of the units in its own window; and so on.  So
V of a convolution is kept as one patch per unit (a window of the image, as a `Grid` says where)
and never as a dense row over all pixels.  Where a patch sticks out of the image, or a filter out of
the layer before, there is nothing to see: zeros.
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


def field(layers: Sequence[DeviceConv2d], input_shape: tuple[int, ...]) -> Grid:
    """What the units behind some convolutions see of the image in front of them."""
    _, height, width = input_shape
    # A pixel sees itself.
    seen = Grid(height, width, 1, 1, 1, 1, 0, 0)
    shape = input_shape
    for layer in layers:
        window = layer.grid(shape)
        seen = Grid(
            window.rows,
            window.columns,
            seen.tall + (window.tall - 1) * seen.down,
            seen.wide + (window.wide - 1) * seen.across,
            seen.down * window.down,
            seen.across * window.across,
            seen.top + window.top * seen.down,
            seen.left + window.left * seen.across,
        )
        shape = layer.output_shape(shape)
    return seen


def patches(net: Network, masks: Sequence[cupy.ndarray], dtype: np.dtype) -> list[cupy.ndarray]:
    """V of all convolutions in front of a network, as patches.

    Parameters
    ----------
    net : Network
        On the device.
    masks : sequence of ndarray of bool, shapes (n, *unit_shape)
    dtype : numpy.dtype

    Returns
    -------
    list of ndarray, shape (n or 1, rows, columns, n_out, c, tall, wide)
        One per convolution: gradients of its units to the pixels of their fields.  All samples
        share those of the first.
    """
    colors, height, width = net.input_shape
    last = cupy.broadcast_to(
        cupy.eye(colors, dtype=dtype), (1, height, width, colors, colors)
    ).reshape(1, height, width, colors, colors, 1, 1)
    active = cupy.ones((1, *net.input_shape), bool)
    found: list[cupy.ndarray] = []
    shape, convolutions = net.input_shape, conv_layers(net)
    for k, layer in enumerate(convolutions):
        before, after = (field(convolutions[:j], net.input_shape) for j in (k, k + 1))
        window = layer.grid(shape)
        outputs = len(layer.W)
        grown = cupy.empty(
            (len(active), after.rows, after.columns, outputs, colors, after.tall, after.wide), dtype
        )
        launch(
            "grow", dtype, grown.size, cupy.ascontiguousarray(last), cupy.ascontiguousarray(active),
            cupy.ascontiguousarray(layer.W), grown, len(last) == 1, *shape, before.tall,
            before.wide, before.down, before.across, outputs, *window, colors, after.tall,
            after.wide,
        )  # fmt: skip
        found.append(grown)
        last, active, shape = grown, masks[k], layer.output_shape(shape)
    return found


def conv_layers(net: Network) -> list[DeviceConv2d]:
    """The convolutions in front."""
    return [layer for layer in net.affine_layers if isinstance(layer, DeviceConv2d)]


def cone(net: Network, k: int) -> Network:
    """All that one unit of convolution k hears of, as a network on its field: no padding."""
    layers: list[Layer] = [
        DeviceConv2d(layer.W, layer.b, layer.stride) for layer in conv_layers(net)[: k + 1]
    ]
    grid = field(conv_layers(net)[: k + 1], net.input_shape)
    return Network(layers, (net.input_shape[0], grid.tall, grid.wide))


def look(
    net: Network,
    masks: Sequence[cupy.ndarray],
    k: int,
    samples: cupy.ndarray,
    channels: cupy.ndarray,
    rows: cupy.ndarray,
    columns: cupy.ndarray,
) -> list[cupy.ndarray]:
    """The masks in the cones of some units of convolution k: windows of the samples' masks.

    Parameters
    ----------
    net : Network
        On the device.
    masks : sequence of ndarray of bool, shapes (n, *unit_shape)
    k : int
        Convolution, counted from 0.
    samples, channels, rows, columns : ndarray of int, shape (m,)
        Which unit of which sample.

    Returns
    -------
    list of ndarray of bool, shape (m, n_out, tall, wide)
        One per convolution before k, False outside the image.
    """
    convolutions = conv_layers(net)
    windows = []
    for j, mask in enumerate(masks[:k]):
        grid = field(convolutions[j + 1 : k + 1], net.unit_shapes[j])
        _, n_out, height, width = mask.shape
        y = (rows * grid.down - grid.top)[:, None] + cupy.arange(grid.tall)
        x = (columns * grid.across - grid.left)[:, None] + cupy.arange(grid.wide)
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        window = mask[
            samples[:, None, None, None],
            cupy.arange(n_out)[:, None, None],
            cupy.clip(y, 0, height - 1)[:, None, :, None],
            cupy.clip(x, 0, width - 1)[:, None, None, :],
        ]
        windows.append(window & inside[:, None])
    return windows
