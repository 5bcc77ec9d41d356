"""The distances of a batch to the hyperplanes around it: d_B and d_D.

Around x the network is affine (`refmmr.reference.affine`), so each hidden unit has a hyperplane
there, where its pre-activation is 0, and each pair of classes one where their margin is 0.
`refmmr.reference.hyperplanes` computes how far a hyperplane is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refmmr.reference.affine import basis, chunks, probe
from refmmr.reference.hyperplanes import dual_norm, hyperplane_distance, shortest_step_in_box
from refmmr.reference.network import ForwardCache, Network, flat


class Distances(NamedTuple):
    """Distances of a batch of points to region and decision boundaries, in l_p.

    Returned by `distances`.

    Attributes
    ----------
    boundary : ndarray, shape (n, N)
        To the hyperplane of each hidden unit, ``|f_k(x)_i| / ||V_k[i]||_q``.
    decision : ndarray, shape (n, K)
        Signed, to the decision boundary with each class s, ``(f(x)_y - f(x)_s) / ||V[y] -
        V[s]||_q``; infinite in the column of y.
    """

    boundary: np.ndarray
    decision: np.ndarray


def distances(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None = None,
) -> Distances:
    """d_B and signed d_D of a batch.

    ``d_B[k, i] = |f_k(x)_i| / ||V_k[i]||_q`` for each hidden unit, and
    ``d_D[s] = (f(x)_y - f(x)_s) / ||V[y] - V[s]||_q`` for each class s: negative
    where s has the larger logit.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
        The class of each sample, whose decision boundaries are measured.
    p : {1, 2, inf}
    box : (lo, hi), optional
        Arrays that broadcast against an input: distances within the box.

    Returns
    -------
    Distances
        `boundary` (n, N); `decision` (n, K), infinite in column y.
    """
    parts = [_distances(net, X[rows], y[rows], p, box) for rows in chunks(net, len(X), X.itemsize)]
    return Distances(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _distances(net, X, y, p, box):
    hyperplanes = hyperplanes_around(net, X, y)
    if box is None:
        d = measure(hyperplanes, y, p)
        return Distances(d.boundary, d.decision)
    lo, hi = (np.broadcast_to(bound, net.input_shape).reshape(-1) for bound in box)
    lo, hi = lo.astype(X.dtype), hi.astype(X.dtype)
    x = X.reshape(len(X), 1, -1)
    boundary, _ = shortest_step_in_box(x, hyperplanes.boundary_gradients, hyperplanes.f, lo, hi, p)
    decision, _ = shortest_step_in_box(
        x, hyperplanes.R.swapaxes(1, 2), hyperplanes.margin, lo, hi, p
    )
    decision[np.arange(len(X)), y] = np.inf
    return Distances(np.abs(boundary), decision)


class Hyperplanes(NamedTuple):
    """The affine functions whose zeros are the hyperplanes around each sample."""

    f: np.ndarray  # (n, N), pre-activations of the hidden units
    V: list[np.ndarray]  # per hidden layer (n or 1, d, N_k): column i is the gradient of unit i
    margin: np.ndarray  # (n, K), f_y - f_s
    R: np.ndarray  # (n, d, K), V_y - V_s
    cache: ForwardCache  # the forward pass of the samples
    probes: ForwardCache  # the forward pass of the basis vectors

    @property
    def boundary_gradients(self) -> np.ndarray:
        """``V_k[i]`` of all hidden units as rows, (n, N, d)."""
        shared = [np.broadcast_to(v, (len(self.f), *v.shape[1:])) for v in self.V]
        return np.concatenate([*shared, self.R[:, :, :0]], axis=2).swapaxes(1, 2)

    def boundary_rows(self, samples: np.ndarray, units: np.ndarray) -> np.ndarray:
        """The gradients ``V_k[i]`` of some units, each at one sample: (m,), (m,) -> (m, d)."""
        rows = np.empty_like(self.R, shape=(len(units), self.R.shape[1]))
        first = 0
        for v in self.V:
            here = (first <= units) & (units < first + v.shape[2])
            rows[here] = v[samples[here] % len(v), :, units[here] - first]
            first += v.shape[2]
        return rows

    def boundary_norms(self, p: float) -> np.ndarray:
        """``||V_k[i]||_q`` of all hidden units, (n or 1, N)."""
        if not self.V:
            return np.zeros_like(self.f)
        return flat([dual_norm(v, p, axis=1) for v in self.V])


def hyperplanes_around(net: Network, X: np.ndarray, y: np.ndarray) -> Hyperplanes:
    """Values and gradients of all hidden units and margins at each sample."""
    cache = net.forward(X)
    probes = probe(net, cache.masks, basis(net, X.dtype))
    columns = probes.outputs
    n, rows = len(X), np.arange(len(X))
    logits = cache.outputs[-1].reshape(n, -1)
    V = np.broadcast_to(columns[-1], (n, *columns[-1].shape[1:])).reshape(n, X[0].size, -1)
    return Hyperplanes(
        f=flat(cache.outputs[:-1]) if net.n_hidden else logits[:, :0],
        V=[column.reshape(*column.shape[:2], -1) for column in columns[:-1]],
        margin=logits[rows, y][:, None] - logits,
        R=V[rows, :, y][:, :, None] - V,
        cache=cache,
        probes=probes,
    )


class Measured(NamedTuple):
    """Distances of a batch to its hyperplanes, and the dual norms of their gradients."""

    boundary: np.ndarray  # (n, N), d_B
    decision: np.ndarray  # (n, K), d_D
    boundary_norms: np.ndarray  # (n or 1, N)
    decision_norms: np.ndarray  # (n, K)


def measure(hyperplanes: Hyperplanes, y: np.ndarray, p: float) -> Measured:
    """d_B and d_D in the whole space."""
    boundary_norms = hyperplanes.boundary_norms(p)
    decision_norms = dual_norm(hyperplanes.R, p, axis=1)
    boundary = hyperplane_distance(np.abs(hyperplanes.f), boundary_norms)
    decision = hyperplane_distance(hyperplanes.margin, decision_norms)
    decision[np.arange(len(y)), y] = np.inf
    return Measured(boundary, decision, boundary_norms, decision_norms)
