"""The half-spaces of a linear region in exact arithmetic, for what rounding errors leave open.

In floats two hyperplanes that agree up to rounding errors cannot be told from equal ones, nor a
half-space that touches a region from one that cuts off a sliver.  In integers they can: every float
is an integer times a power of two, so with each layer multiplied by a large enough power the
weights of a network are integers, and so are its affine maps.  Python's integers do not overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import gcd, prod

import numpy as np

from refmmr.reference import enumeration
from refmmr.reference.enumeration import Domain
from refmmr.reference.layers import Flatten, Layer
from refmmr.reference.network import Network

__all__ = ["ExactDomain", "ExactRows"]

MAX_PRODUCTS = 10**6
"""Products of integers for the rows of one region, at most: a tenth of a second.  Beyond it what
floats leave open stays undecided."""

MANTISSA = 53
"""Bits of a float64."""


class ExactDomain:
    """A network on a domain, in integers.

    Parameters
    ----------
    net : Network
        With float64 weights.
    domain : Domain
        In float64.
    """

    def __init__(self, net: Network, domain: Domain) -> None:
        self._net, self._domain = net, domain
        layers = zip(net.affine_layers, net.affine, strict=True)
        products = [prod(net.shapes[i + 1]) * prod(layer.W.shape[1:]) for layer, i in layers]
        self.affordable = (len(domain.lo) + 1) * sum(products[:-1]) <= MAX_PRODUCTS
        """Whether the rows of a region take at most `MAX_PRODUCTS` products."""

    @cached_property
    def _shift(self) -> int:
        """Every number of the network and of the domain is an integer times 2^-shift."""
        arrays = [array.ravel() for pair in self._net.parameters for array in pair]
        numbers = np.concatenate([*arrays, *(array.ravel() for array in self._domain)])
        _, exponents = np.frexp(numbers)
        return MANTISSA - min(0, int(exponents.min()))

    @cached_property
    def _integer_net(self) -> Network:
        """The network times ``2^shift`` a layer, for inputs times ``2^shift``."""
        layers: list[Layer] = []
        scale = 1
        for layer in self._net.map(self._integers).layers:
            if not isinstance(layer, Flatten):
                scale *= 2**self._shift
                layer = layer.with_weights(layer.W, layer.b * scale)
            layers.append(layer)
        return Network(layers, self._net.input_shape)

    @cached_property
    def _integer_domain(self) -> Domain:
        return Domain(*(self._integers(array) for array in self._domain))

    @cached_property
    def _first_map(self) -> np.ndarray:
        """The first hidden layer, (1, n + 1, N_1), the same in all regions."""
        return enumeration.first_map(self._integer_net, self._integer_domain)

    def _integers(self, array: np.ndarray) -> np.ndarray:
        mantissas, exponents = np.frexp(array)
        shifts = exponents.astype(int) - MANTISSA + self._shift
        integers = (mantissas * 2.0**MANTISSA).astype(np.int64).astype(object)
        return integers * 2 ** shifts.astype(object)

    def rows(self, pattern: np.ndarray) -> ExactRows:
        """The half-spaces of the region of a pattern, (N,), in the order of `RegionPolytope`."""
        lo, hi, *_ = self._integer_domain
        n, net = len(lo), self._integer_net
        found, maps = [np.zeros((0, n + 1), dtype=object)], self._first_map
        for k, units in enumerate(net.unit_slices):
            if k:
                maps = enumeration.next_maps(net, k - 1, maps * pattern[net.unit_slices[k - 1]])
            found.append(np.where(pattern[units], 1, -1)[:, None] * maps[0].T)
        faces = np.zeros((2 * n, n + 1), dtype=object)
        axes = np.arange(n)
        faces[2 * axes, axes], faces[2 * axes, n] = 2**self._shift, -lo
        faces[2 * axes + 1, axes], faces[2 * axes + 1, n] = -(2**self._shift), hi
        return ExactRows(np.concatenate([*found, faces]), lo, hi, self._shift)


class ExactRows:
    """The rows ``<A_i, z> + a_i >= 0`` of a region, in integers times a positive factor for each.

    Parameters
    ----------
    rows : ndarray of int objects, shape (m, n + 1)
        ``(A_i, a_i)``, those of all N hidden units first.
    lo, hi : ndarray of int objects, shape (n,)
        Bounds of the domain, times ``2^shift``.
    shift : int
    """

    def __init__(self, rows: np.ndarray, lo: np.ndarray, hi: np.ndarray, shift: int) -> None:
        divisors = np.array([gcd(*row) or 1 for row in rows.tolist()], dtype=object)
        self._rows = rows // divisors[:, None]
        self._lo, self._hi, self._shift = lo, hi, shift

    def same_hyperplane(self, units: Sequence[int] | np.ndarray) -> bool:
        """Whether all rows that are not 0 are multiples of each other."""
        rows = [row for row in self._rows[list(units)] if row.any()]
        return all((row == rows[0]).all() or (row == -rows[0]).all() for row in rows)

    def keeps_sign(self, unit: int, active: bool) -> bool:
        """Whether the affine map of a unit on this region has one sign on the whole domain.

        It may be 0 on a face of the domain; on all of it only if the unit is inactive.
        """
        row = self._rows[unit]
        smallest = np.minimum(row[:-1] * self._lo, row[:-1] * self._hi).sum()
        return smallest + row[-1] * 2**self._shift >= 0 and (row.any() or not active)

    def is_redundant(self, row: int, others: list[int]) -> bool:
        """Whether other rows imply a row: ``A_row = sum_k y_k A_k`` and ``a_row >= sum_k y_k a_k``.

        The y are unique if the others are independent, as those of a vertex are.  Otherwise one
        solution is tried.
        """
        # Fraction-free elimination (Bareiss 1968): all divisions by the last pivot are exact.
        # Lists, because a system is small and arrays of objects are slow.
        goal, chosen = self._rows[row].tolist(), [self._rows[k].tolist() for k in others]
        system = [list(equation) for equation in zip(*chosen, goal, strict=True)]
        *system, offsets = system
        last, free, y = 1, list(range(len(system))), dict[int, int]()
        for column in range(len(chosen)):
            pivot = next((i for i in free if system[i][column]), None)
            if pivot is None:
                continue
            kept, value = system[pivot], system[pivot][column]
            for i, equation in enumerate(system):
                factor = equation[column]
                if i != pivot:
                    pairs = zip(equation, kept, strict=True)
                    system[i] = [(value * a - factor * b) // last for a, b in pairs]
            last = value
            free.remove(pivot)
            y[column] = pivot
        if any(system[i][-1] for i in free):
            return False
        sign = 1 if last > 0 else -1
        scaled = {column: sign * system[pivot][-1] for column, pivot in y.items()}  # |last| y
        implied = sum(value * offsets[column] for column, value in scaled.items())
        return min(scaled.values(), default=0) >= 0 and abs(last) * offsets[-1] >= implied
