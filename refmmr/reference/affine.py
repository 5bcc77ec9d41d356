"""The linear region of a point, a polytope, and the affine map of the network on it.

With the masks of x frozen the network is affine: ``f_k(z) = V_k z + a_k`` for every z in the
polytope

    Q(x) = { z : (2 s_k - 1) (V_k z + a_k) >= 0  for every hidden layer k }.

V need not be computed as a product of matrices.  Column j of ``V_k`` is the value at layer k of the
basis vector ``e_j``, propagated through the network with frozen masks and without biases: e_j is a
**probe**.  That holds for any layer that can be applied to a direction, convolutions included.  And
a probe is an ordinary forward pass, so the gradient of anything that reads V is an ordinary
backward pass over the probes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.network import ForwardCache, Network, flat

CHUNK_BYTES = 2**26
"""Limit on the size of one array of probes: samples are processed in groups that respect it."""


class LinearRegion(NamedTuple):
    """The linear region of one point, a polytope with the affine map that holds on it.

    With the masks ``s_k = 1[f_k(x) > 0]`` of the point frozen, ``f_k(z) = V_k z + a_k`` for every z
    of the region, where ``V_1 = W_1``, ``a_1 = b_1``, ``V_{k+1} = W_{k+1} diag(s_k) V_k`` and
    ``a_{k+1} = W_{k+1} diag(s_k) a_k + b_{k+1}``.  Inputs are flat here: an image is the vector of
    its d pixels.  Returned by `linear_region`.

    Attributes
    ----------
    x : ndarray, shape (d,)
        The point.
    pattern : ndarray of bool, shape (N,)
        The activation pattern of all hidden units.
    V : list of ndarray, shapes (N_k, d)
        One for each affine layer.
    a : list of ndarray, shapes (N_k,)
    """

    x: np.ndarray
    pattern: np.ndarray
    V: list[np.ndarray]
    a: list[np.ndarray]

    @property
    def halfspaces(self) -> tuple[np.ndarray, np.ndarray]:
        """``(A, b)``, shapes (N, d) and (N,), ``Q(x) = { z : A z <= b }``, one row per unit."""
        sign = np.where(self.pattern, 1.0, -1.0).astype(self.x.dtype)
        A = -sign[:, None] * np.concatenate([*self.V[:-1], self.V[-1][:0]])
        b = sign * np.concatenate([*self.a[:-1], self.a[-1][:0]])
        return A, b

    def contains(self, Z: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
        """Which points lie in the region: ``(n, *input_shape) -> (n,)`` bool.

        The region is closed.  `tolerance` is the largest l_2 distance of a point
        beyond the hyperplane of a unit.
        """
        A, b = self.halfspaces
        Z = self._flat(Z)
        return (Z @ A.T - b <= tolerance * np.linalg.norm(A, axis=1)).all(axis=1)

    def logits(self, Z: np.ndarray) -> np.ndarray:
        """The affine map of the region, at any points: ``(n, *input_shape) -> (n, K)``."""
        return self._flat(Z) @ self.V[-1].T + self.a[-1]

    def _flat(self, Z):
        if np.ndim(Z) < 2 or np.prod(np.shape(Z)[1:]) != self.x.size:
            raise ValueError(f"Z: expected points of {self.x.size} numbers, got {np.shape(Z)}")
        return np.reshape(Z, (len(Z), self.x.size))


def linear_region(net: Network, x: np.ndarray) -> LinearRegion:
    """The linear region of one point, shape ``input_shape``, with V, a of every layer."""
    masks = net.forward(x[None]).masks
    columns = probe(net, masks, basis(net, x.dtype)).outputs
    offsets = net.forward(np.zeros_like(x[None]), masks).outputs
    return LinearRegion(
        x=x.reshape(-1),
        pattern=flat(masks)[0] if masks else np.zeros(0, dtype=bool),
        V=[column.reshape(x.size, -1).T for column in columns],
        a=[offset.reshape(-1) for offset in offsets],
    )


def basis(net: Network, dtype: np.dtype) -> np.ndarray:
    """The d basis vectors of the input space, shape (d, *input_shape)."""
    d = int(np.prod(net.input_shape))
    return np.eye(d, dtype=dtype).reshape(d, *net.input_shape)


def probe(net: Network, masks: Sequence[np.ndarray], directions: np.ndarray) -> ForwardCache:
    """Propagate directions through the network with the masks of each sample.

    Parameters
    ----------
    net : Network
    masks : sequence of ndarray, shapes (n, *unit_shape)
        Activation patterns of n samples.
    directions : ndarray, shape (m, *input_shape)
        The same for all samples; `basis` gives all of V.

    Returns
    -------
    ForwardCache
        ``outputs[k]`` has shape (n, m, *unit_shape): ``V_k`` of each sample times each direction.
        The first layer comes before the first mask, so it is the same for all samples: shape
        (1, m, ...).
    """
    return net.forward(directions[None], [mask[:, None] for mask in masks], bias=False)


def chunks(net: Network, n: int, itemsize: int = 8) -> Iterator[slice]:
    """Split n samples into groups whose probes fit into `CHUNK_BYTES`, at least one sample each."""
    widest = max(int(np.prod(shape)) for shape in net.shapes[1:])
    size = max(1, CHUNK_BYTES // (int(np.prod(net.input_shape)) * widest * itemsize))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
