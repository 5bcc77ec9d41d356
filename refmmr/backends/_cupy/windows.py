"""Windows of images: the geometry of convolutions and of receptive fields."""

from __future__ import annotations

from typing import NamedTuple

import cupy

from refmmr.backends._cupy.kernels import launch, repeated


class Grid(NamedTuple):
    """Windows of an image.

    Window (i, j) starts at pixel ``(i * down - top, j * across - left)``.  It may reach outside of
    the image, where there are zeros.
    """

    rows: int  # how many windows there are
    columns: int
    height: int  # of a window
    width: int
    down: int  # strides
    across: int
    top: int  # padding
    left: int


def unfold(images: cupy.ndarray, grid: Grid, mask: bool = False) -> cupy.ndarray:
    """All windows: ``(n, c, h, w) -> (n, rows, columns, c, grid.height, grid.width)``.

    With `mask`, those of the mask ``images > 0``.
    """
    n, channels, height, width = images.shape
    shape = (n, grid.rows, grid.columns, channels, grid.height, grid.width)
    windows = cupy.empty(shape, images.dtype)
    images = cupy.ascontiguousarray(images)
    args = (images, windows, n, channels, height, width, *grid, mask)
    launch("unfold", images.dtype, repeated(windows), *args)
    return windows


def fold(windows: cupy.ndarray, grid: Grid, image_shape: tuple[int, int, int]) -> cupy.ndarray:
    """The transpose of `unfold`: add all windows to their places in the image."""
    images = cupy.empty((len(windows), *image_shape), windows.dtype)
    windows = cupy.ascontiguousarray(windows)
    launch("fold", windows.dtype, images.size, windows, images, *image_shape, *grid)
    return images
