"""The objective of training: cross-entropy plus regularizers, and its gradient.

    J = mean over the samples of  CE(f(x), y) + sum_t lam_t R_t(x)

No term: plain training, or training on adversarial examples.  One term: MMR (Croce, Andriushchenko,
Hein 2019).  Two terms, in l_1 and l_inf: MMR-Universal (Croce, Hein 2020).

The cross-entropy and all terms read the same forward pass, so there is one of it, and one
backpropagation: each loss adds its gradient where it reads the pre-activations, the cross-entropy
``softmax - onehot`` at the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference.affine import chunks
from refmmr.reference.border import backprops_of_full_filters, with_full_filters
from refmmr.reference.distances import hyperplanes_around
from refmmr.reference.loss import cross_entropy, cross_entropy_gradient
from refmmr.reference.mmr import Regularizer, two_backprops
from refmmr.reference.network import Gradients, Network, add_mean, zero_gradients
from refmmr.reference.regularizers import regularizer_derivatives


class Objective(NamedTuple):
    """The objective of a batch, and its gradient."""

    cross_entropy: float  # mean over the batch
    mmr: float  # mean over the batch of sum_t lam_t R_t
    wrong: int  # number of misclassified samples
    gradients: Gradients  # of the sum of both means


def objective_gradient(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    terms: Sequence[Regularizer] = (),
    border: str = "exact",
    nearest: str = "each",
) -> Objective:
    """Cross-entropy plus regularizers of a batch, and the gradient with respect to the weights.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
        True classes.
    terms : sequence of Regularizer
        The regularizers, each with its norm, weight, target distances and numbers of boundaries.
    border : {"exact", "full-filter"}
        How border units of the first convolution are measured, see `refmmr.reference.border`.
    nearest : {"each", "union"}
        The region boundaries that count, see `refmmr.reference.regularizers`.

    Returns
    -------
    Objective
    """
    n, gradients = len(X), zero_gradients(net)
    losses, values, wrong = 0.0, 0.0, 0
    # The rows of V, which only a regularizer needs, are the large arrays.
    for rows in chunks(net, n, X.itemsize) if terms else [slice(0, n)]:
        part = _objective(net, X[rows], y[rows], terms, border, nearest)
        losses += part.cross_entropy / n
        values += part.mmr / n
        wrong += part.wrong
        add_mean(gradients, part.gradients, n)
    return Objective(losses, values, wrong, gradients)


def _objective(net, X, y, terms, border, nearest):
    """The same of a few samples, summed over them instead of their mean."""
    hyperplanes = hyperplanes_around(net, X, y) if terms else None
    cache = net.forward(X) if hyperplanes is None else hyperplanes.cache
    logits = cache.outputs[-1].reshape(len(X), -1)
    losses, wrong = cross_entropy(logits, y), logits.argmax(axis=1) != y
    dlogits = cross_entropy_gradient(logits, y)
    if hyperplanes is None:
        gradients = net.weight_gradients(cache, net.backward(cache, net.at_logits(dlogits)))
        return Objective(float(losses.sum()), 0.0, int(wrong.sum()), gradients)
    backprops = two_backprops
    if border == "full-filter":
        hyperplanes, backprops = with_full_filters(net, hyperplanes), backprops_of_full_filters
    values, df_sample, df_probes = regularizer_derivatives(net, hyperplanes, y, terms, nearest)
    df_sample[-1] = df_sample[-1] + dlogits
    gradients = backprops(net, hyperplanes, df_sample, df_probes)
    return Objective(float(losses.sum()), float(values.sum()), int(wrong.sum()), gradients)
