"""Windows of images: the one geometry behind convolutions and receptive fields."""

from __future__ import annotations

from typing import NamedTuple

import cupy

from refmmr.backends._cupy.kernels import launch


class Grid(NamedTuple):
    """Windows on an image.

    Window (i, j) starts at pixel ``(i * down - top, j * across - left)``; it may stick out of the
    image, where there are zeros.
    """

    rows: int
    columns: int
    tall: int
    wide: int
    down: int
    across: int
    top: int
    left: int


def unfold(images: cupy.ndarray, grid: Grid) -> cupy.ndarray:
    """What all windows show: ``(n, c, h, w) -> (n, rows, columns, c, tall, wide)``."""
    n, channels, height, width = images.shape
    shape = (n, grid.rows, grid.columns, channels, grid.tall, grid.wide)
    windows = cupy.empty(shape, images.dtype)
    images = cupy.ascontiguousarray(images)
    launch(
        "unfold", images.dtype, windows.size, images, windows, channels, height, width, *grid
    )  # fmt: skip
    return windows


def fold(windows: cupy.ndarray, grid: Grid, image_shape: tuple[int, int, int]) -> cupy.ndarray:
    """The transpose of `unfold`: ``(n, rows, columns, c, tall, wide) -> (n, c, h, w)``."""
    images = cupy.empty((len(windows), *image_shape), windows.dtype)
    windows = cupy.ascontiguousarray(windows)
    launch("fold", windows.dtype, images.size, windows, images, *image_shape, *grid)
    return images
