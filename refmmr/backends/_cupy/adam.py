"""Twin of `refmmr.reference.adam`."""

from __future__ import annotations

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.kernels import launch
from refmmr.reference import adam as reference


@implements("cupy", reference.update)
def update(
    arrays: list[cupy.ndarray],
    means: list[cupy.ndarray],
    squares: list[cupy.ndarray],
    gradients: list[cupy.ndarray],
    scale: float,
) -> None:
    """See `refmmr.reference.adam.update`; all arrays are on the device and contiguous."""
    first, second = reference.BETAS
    for array, mean, square, gradient in zip(arrays, means, squares, gradients, strict=True):
        launch(
            "adam", array.dtype, array.size, array, mean, square,
            cupy.ascontiguousarray(gradient.astype(array.dtype, copy=False)),
            1 - first, 1 - second, scale, reference.EPSILON,
        )  # fmt: skip
