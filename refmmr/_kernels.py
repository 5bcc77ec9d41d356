"""Every dispatched function, one per line, with the backends that have a twin of it.

A kernel runs the twin of the backend in use, or its fallback (`refmmr._backend`).  The
table of `refmmr info` and of the documentation is made from this page; tests compare it with what
the backends register.
"""

from __future__ import annotations

from refmmr._backend import Kernel, kernel
from refmmr.reference import (
    adam,
    ascent,
    backward_bound,
    clipping,
    enumeration,
    envelope,
    loss,
    network,
    objective,
    radius,
    wong_kolter,
)
from refmmr.reference import distances as _distances
from refmmr.reference import mmr as _mmr
from refmmr.reference import pgd as _pgd
from refmmr.reference import volumes as _volumes

logits = kernel(network.logits, "numba", "cupy")
activation_pattern = kernel(network.activation_pattern, "numba", "cupy")
distances = kernel(_distances.distances, "numba", "cupy")
mmr = kernel(_mmr.mmr, "numba", "cupy")
mmr_gradient = kernel(_mmr.mmr_gradient, "numba", "cupy")
objective_gradient = kernel(objective.objective_gradient, "numba", "cupy")
margin_gradients = kernel(loss.margin_gradients, "numba")
robust_loss_gradient = kernel(wong_kolter.robust_loss_gradient, "numba")
adam_update = kernel(adam.update, "numba", "cupy")
pgd = kernel(_pgd.pgd, "numba", "cupy")
layer_bounds = kernel(backward_bound.layer_bounds, "numba")
margin_function = kernel(radius.margin_function, "numba")
row_bounds = kernel(backward_bound.row_bounds, "numba")
ascend = kernel(ascent.ascend, "numba")
bound = kernel(ascent.bound, "numba")
ascend_envelopes = kernel(envelope.ascend, "numba")
clip_nodes = kernel(clipping.clip_nodes, "numba")
enumerate_regions = kernel(enumeration.enumerate_regions, "numba")
volumes = kernel(_volumes.volumes, "numba")

KERNELS: dict[str, Kernel] = {
    item.name.removeprefix("refmmr.reference."): item
    for item in list(globals().values())
    if isinstance(item, Kernel)
}
"""All kernels, by module and name of the reference function."""
