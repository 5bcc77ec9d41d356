"""Linear maps between flattened arrays, each as the sparse matrix that it is.

A map keeps the form in which it was given (filters, a dense matrix, a choice of entries), because a
layer may be able to use it as it is; `matrix` writes it out for everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from refmmr.reference.layers import Conv2d

__all__ = ["MAX_ENTRIES", "Dense", "Filters", "Map", "Matrix", "Pick", "Same", "Times", "product"]

MAX_ENTRIES = 2**26
"""Nonzeros of a sparse matrix: with their columns 0.8 GiB."""

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Same:
    """The same numbers in the same order: a reshape."""

    def matrix(self, before: Shape, after: Shape) -> sparse.csr_array:
        """The identity, ``(n, n)``."""
        return sparse.eye_array(math.prod(before), format="csr")

    def entries(self, before: Shape, after: Shape) -> int:
        """Number of nonzeros of the matrix, at most."""
        return math.prod(before)

    @property
    def nonnegative(self) -> bool:
        """Whether no entry of the matrix is below 0."""
        return True


@dataclass(frozen=True, eq=False)
class Times:
    """``factor * x``, elementwise; the factor broadcasts to the shape of x."""

    factor: np.ndarray

    def matrix(self, before: Shape, after: Shape) -> sparse.csr_array:
        """A diagonal matrix, ``(n, n)``."""
        factor = np.broadcast_to(self.factor, before).astype(np.float64)
        return sparse.csr_array(sparse.diags_array(factor.reshape(-1)))

    def entries(self, before: Shape, after: Shape) -> int:
        """Number of nonzeros of the matrix, at most."""
        return math.prod(before)

    @property
    def nonnegative(self) -> bool:
        """Whether no entry of the matrix is below 0."""
        return bool((self.factor >= 0).all())


@dataclass(frozen=True, eq=False)
class Dense:
    """``W x`` for a vector x: W (n_out, n_in)."""

    W: np.ndarray

    def matrix(self, before: Shape, after: Shape) -> sparse.csr_array:
        """W without its zeros."""
        return sparse.csr_array(self.W.astype(np.float64))

    def entries(self, before: Shape, after: Shape) -> int:
        """Number of nonzeros of the matrix, at most."""
        return self.W.size

    @property
    def nonnegative(self) -> bool:
        """Whether no entry of the matrix is below 0."""
        return bool((self.W >= 0).all())


@dataclass(frozen=True, eq=False)
class Filters:
    """A convolution of an image, of the last three axes ``(channels, height, width)``."""

    layer: Conv2d

    def matrix(self, before: Shape, after: Shape) -> sparse.csr_array:
        """One row for each output pixel; each filter tap reads one pixel for each of them."""
        layer, image, outputs = self.layer, before[-3:], after[-3:]
        (top, _), (left, _) = layer.pads(*image[1:])
        rows = np.arange(math.prod(outputs)).reshape(outputs)
        pixels = np.arange(math.prod(image)).reshape(image)
        parts: list[Any] = []
        for i, j in np.ndindex(*layer.W.shape[2:]):
            y, row = inside(outputs[1], image[1], layer.stride[0], i - top)
            x, column = inside(outputs[2], image[2], layer.stride[1], j - left)
            W = layer.W[:, :, i, j, None, None].astype(np.float64)
            parts.append(
                np.broadcast_arrays(
                    rows[:, None, y[:, None], x], pixels[:, row[:, None], column], W
                )
            )
        return _assembled(parts, (rows.size, pixels.size))

    def entries(self, before: Shape, after: Shape) -> int:
        """Number of nonzeros of the matrix, at most."""
        return math.prod(after[-2:]) * self.layer.W.size

    @property
    def nonnegative(self) -> bool:
        """Whether no entry of the matrix is below 0."""
        return bool((self.layer.W >= 0).all())


@dataclass(frozen=True, eq=False)
class Pick:
    """Entries of the flattened array by their indices; 0 for an index of -1."""

    indices: np.ndarray

    def matrix(self, before: Shape, after: Shape) -> sparse.csr_array:
        """At most a single 1 in each row."""
        indices = self.indices.reshape(-1)
        rows = np.flatnonzero(indices >= 0)
        shape = len(indices), math.prod(before)
        return _assembled([(rows, indices[rows], np.ones(len(rows)))], shape)

    def entries(self, before: Shape, after: Shape) -> int:
        """Number of nonzeros of the matrix, at most."""
        return self.indices.size

    @property
    def nonnegative(self) -> bool:
        """Whether no entry of the matrix is below 0."""
        return True


@dataclass(frozen=True, eq=False)
class Matrix:
    """A sparse matrix."""

    M: sparse.csr_array

    def matrix(self, before: Shape, after: Shape) -> sparse.csr_array:
        """The matrix itself."""
        return self.M

    def entries(self, before: Shape, after: Shape) -> int:
        """Number of nonzeros of the matrix."""
        return int(self.M.nnz)

    @property
    def nonnegative(self) -> bool:
        """Whether no entry of the matrix is below 0."""
        return bool((self.M.data >= 0).all())


Map = Same | Times | Dense | Filters | Pick | Matrix


def product(A: sparse.csr_array, B: sparse.csr_array) -> sparse.csr_array:
    """``A B``; ValueError where it might have more than `MAX_ENTRIES` nonzeros."""
    bound = min(int(np.diff(B.indptr)[A.indices].sum()), A.shape[0] * B.shape[1])
    if bound > MAX_ENTRIES:
        raise ValueError(
            f"expected a product of affine maps with at most {MAX_ENTRIES} nonzeros, got up to "
            f"{bound}"
        )
    C = sparse.csr_array(A @ B)
    C.eliminate_zeros()
    return C


def inside(outputs: int, inputs: int, stride: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Outputs that read a pixel of the image along one axis, and the pixel that each reads."""
    output = np.arange(outputs)
    pixel = output * stride + offset
    valid = (pixel >= 0) & (pixel < inputs)
    return output[valid], pixel[valid]


def _assembled(parts: list[Any], shape: tuple[int, int]) -> sparse.csr_array:
    """The matrix of triples (rows, columns, values), arrays of one shape in each; without zeros."""
    if not parts:
        return sparse.csr_array(shape)
    rows, columns, values = (
        np.concatenate([array.reshape(-1) for array in arrays])
        for arrays in zip(*parts, strict=True)
    )
    M = sparse.csr_array((values, (rows, columns)), shape=shape)
    M.eliminate_zeros()
    return M
