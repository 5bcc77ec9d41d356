"""The authors' rule for the border of the first convolution, as an option.

A unit at the border of a padded convolution reads fewer pixels than its filter has weights: the
others meet the padding.  So its row of V is the filter with those weights cut off, and its distance
is ``|f| / ||cut filter||_q``.  In the authors' released code (Croce, Andriushchenko, Hein 2019) the
units of the *first* convolution are measured by the full filter instead,

    d = |f| / ||W_i||_q,    W_i the whole filter of channel i,

for the regularizer alone.  The norm is larger, so border units seem nearer than they are, and the
gradient of the norm goes to all weights of the filter.

Here the full filters take the place of the first layer's rows in `Hyperplanes`.  All other steps
stay as they are, until the gradient with respect to these rows goes back to the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refmmr.reference.distances import Hyperplanes
from refmmr.reference.layers import Conv2d
from refmmr.reference.mmr import two_backprops
from refmmr.reference.network import Gradients, Network


def with_full_filters(net: Network, hyperplanes: Hyperplanes) -> Hyperplanes:
    """The hyperplanes with full filters for the rows of the first convolution.

    Its part of V has shape (1, weights of a filter, N_1) then.  A network whose first hidden layer
    is dense has no border: its hyperplanes stay as they are.
    """
    if not _has_border(net):
        return hyperplanes
    filters = net.affine_layers[0].W
    columns = filters.reshape(len(filters), -1).T
    positions = hyperplanes.V[0].shape[2] // len(filters)
    return hyperplanes._replace(V=[np.repeat(columns, positions, axis=1)[None], *hyperplanes.V[1:]])


def backprops_of_full_filters(
    net: Network,
    hyperplanes: Hyperplanes,
    df_sample: Sequence[np.ndarray],
    df_probes: Sequence[np.ndarray],
) -> Gradients:
    """Step 3 of the gradient (`mmr.two_backprops`), for `with_full_filters`.

    The rows of the first layer are the filters themselves, one copy a position, so their gradient
    is the sum over the positions; the probes do not have to go through that layer.
    """
    if not _has_border(net):
        return two_backprops(net, hyperplanes, df_sample, df_probes)
    dfilters, *behind = df_probes
    no_rows = np.zeros_like(hyperplanes.probes.outputs[0])
    gradients = two_backprops(net, hyperplanes, df_sample, [no_rows, *behind])
    dW, _ = gradients[0]
    dW += dfilters.reshape(dW[0].size, len(dW), -1).sum(axis=2).T.reshape(dW.shape)
    return gradients


def _has_border(net):
    """Whether the first hidden layer is a convolution."""
    return net.n_hidden > 0 and isinstance(net.affine_layers[0], Conv2d)
