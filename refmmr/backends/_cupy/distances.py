"""Twin of `refmmr.reference.distances`: d_B and d_D of a batch."""

from __future__ import annotations

import cupy

from refmmr._backend import implements
from refmmr.backends._cupy.dispatch import on_device
from refmmr.backends._cupy.hyperplanes import dense_end, hyperplanes_around, in_chunks
from refmmr.backends._cupy.network import by_layer
from refmmr.backends._cupy.receptive_fields import conv_layers, receptive_field
from refmmr.backends._cupy.windows import unfold
from refmmr.reference import distances as reference
from refmmr.reference.distances import Distances
from refmmr.reference.hyperplanes import hyperplane_distance, shortest_step_in_box
from refmmr.reference.network import Network, flat

BOX_COPIES = 16
"""Arrays of the size of V that `shortest_step_in_box` needs; chunks are smaller by this factor."""


@implements("cupy", reference.distances)
@on_device
def distances(
    net: Network,
    X: cupy.ndarray,
    y: cupy.ndarray,
    p: float,
    box: tuple[cupy.ndarray, cupy.ndarray] | None = None,
) -> Distances:
    """See `refmmr.reference.distances.distances`."""
    net = dense_end(net)
    copies = 1 if box is None else BOX_COPIES

    def part(rows: slice) -> Distances:
        return _distances(net, X[rows], y[rows], p, box)

    parts = in_chunks(part, net, len(X), X.itemsize * copies)
    return Distances(*(cupy.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _distances(net, X, y, p, box):
    hyperplanes = hyperplanes_around(net, X, y)
    if box is None:
        boundary = hyperplane_distance(hyperplanes.f, hyperplanes.boundary_norms(p))
        decision = hyperplane_distance(hyperplanes.margin, hyperplanes.decision_norms(p))
    else:
        lo, hi = (cupy.broadcast_to(bound, net.input_shape)[None] for bound in box)
        boundary = _boundary_in_box(net, hyperplanes, X, lo, hi, p)
        x, lo, hi = (points.reshape(len(points), 1, -1) for points in (X, lo, hi))
        decision, _ = shortest_step_in_box(x, hyperplanes.R, hyperplanes.margin, lo, hi, p)
    decision = cupy.where(hyperplanes.own, cupy.inf, decision)
    return Distances(*(d.astype(X.dtype, copy=False) for d in (cupy.abs(boundary), decision)))


def _boundary_in_box(net, hyperplanes, X, lo, hi, p):
    """Distances within a box to the hyperplanes of all hidden units, (n, N).

    A unit of a convolution only moves the pixels of its receptive field.
    """
    convolutions = conv_layers(net)
    per_layer = by_layer(net, hyperplanes.f)
    found = []
    for k, patches in enumerate(hyperplanes.patches):
        grid = receptive_field(convolutions[: k + 1], net.input_shape)
        f = per_layer[k].transpose(0, 2, 3, 1)
        x, low, high = (
            unfold(points, grid).reshape(len(points), *f.shape[1:3], 1, -1)
            for points in (X, lo, hi)
        )
        moved, _ = shortest_step_in_box(x, patches.reshape(*patches.shape[:4], -1), f, low, high, p)
        found.append(moved.transpose(0, 3, 1, 2))
    x, low, high = (points.reshape(len(points), 1, -1) for points in (X, lo, hi))
    for v, f in zip(hyperplanes.V, per_layer[len(hyperplanes.patches) :], strict=True):
        found.append(shortest_step_in_box(x, v, f, low, high, p)[0])
    return flat(found) if found else hyperplanes.f
