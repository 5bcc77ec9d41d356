"""Numba twins of the hot functions of `refmmr.reference`, on all cores.

A file here has the name of the chapter of the reference that it is the twin of:

==================================== ============================================================
function of the reference            its twin, in `refmmr.backends._numba`
==================================== ============================================================
``layers`` Linear, Conv2d            ``layers`` Dense, Conv; ``planes`` PlaneConv
``network.Network`` forward, ...     ``network.Passes``; weights in its order: ``layout.Layout``
``network.logits``                   ``network.logits``
``network.activation_pattern``       ``network.activation_pattern``
``affine.probe``: rows of V          ``affine`` DenseStem, ConvStem; ``patches.SecondConv``
``hyperplanes.shortest_step_in_box`` ``hyperplanes.distances_in_box``
``distances.hyperplanes_around``     ``distances.HyperplaneWorker``; ``nearest.NearestWorker``
``distances.distances``              ``distances.distances``
``mmr.mmr``                          ``mmr.mmr``
``mmr.mmr_gradient``                 ``mmr_gradient.mmr_gradient``
``hyperplanes.dual_norm_gradient``   ``norm_gradients``
``regularizers``: several norms      ``mmr.apply_hinges``, ``mmr_gradient.GradientWorker``
``border``: full filters             ``distances.Shared``
``loss.margin_gradients``            ``loss.margin_gradients``
``objective.objective_gradient``     ``objective.objective_gradient``
``adam.update``                      ``adam.update``
``pgd.pgd``                          ``pgd.pgd``
``wong_kolter.robust_loss_gradient`` ``wong_kolter.robust_loss_gradient``
``wong_kolter.forward, backward``    ``wong_kolter_kernels``, ``wong_kolter_gradient``; of at most
                                     one hidden layer: ``wong_kolter_rows``
``ascent.ascend``                    ``ascent.ascend``; ``ascent_kernels``
``ascent.bound``                     ``ascent.bound``
``envelope.ascend``                  ``envelope.ascend``; ``envelope_kernels``
``backward_bound.layer_bounds``      ``backward_bound.layer_bounds``; ``backward_bound_kernels``
``radius.margin_function``           ``radius.margin_function``; ``backward_bound.Bounds``
``backward_bound.row_bounds``        ``backward_bound.row_bounds``
``clipping.clip_nodes``              ``clipping.clip_nodes``; ``ascent_kernels``
``enumeration.enumerate_regions``    ``enumeration.enumerate_regions``
``enumeration.next_maps``            ``maps.Maps``
``vertices.VertexTable``             ``vertices``; on the edges of a cell: ``pieces``
``cells.Polygon``, ``Polytope``      ``polygons.split_polygons``; ``polytopes``, ``edges``
``volumes.volumes``                  ``volumes.volumes``
==================================== ============================================================

A public function prepares the arrays and gives each thread a run of samples
(`refmmr.backends.threads`); a thread has memory of its own and works on blocks that stay in its
cache, through matrix products (BLAS) and compiled loops (`jit`).
"""

from refmmr.backends._numba import (
    adam,
    ascent,
    backward_bound,
    clipping,
    distances,
    enumeration,
    envelope,
    loss,
    mmr,
    mmr_gradient,
    network,
    objective,
    pgd,
    radius,
    volumes,
    wong_kolter,
)

__all__ = [
    "adam",
    "ascent",
    "backward_bound",
    "clipping",
    "distances",
    "enumeration",
    "envelope",
    "loss",
    "mmr",
    "mmr_gradient",
    "network",
    "objective",
    "pgd",
    "radius",
    "volumes",
    "wong_kolter",
]
