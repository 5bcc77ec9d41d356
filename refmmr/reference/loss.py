"""The cross-entropy loss and margins, values beside gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refmmr.reference.network import ForwardCache, Gradients, Network

LogitGradient = Callable[[np.ndarray, np.ndarray], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities: ``(n, K) -> (n, K)``, rows add up to 1."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``-log softmax(logits)[y]`` of each sample, shape (n,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]


def cross_entropy_gradient(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gradient with respect to the logits: ``softmax(logits) - onehot(y)``, shape (n, K).

    The entry of the class itself is minus the sum of the others: ``softmax - 1`` would lose digits
    to cancellation.
    """
    gradient = softmax(logits)
    rows = np.arange(len(y))
    gradient[rows, y] = 0
    gradient[rows, y] = -gradient.sum(axis=1)
    return gradient


def odds_gradient(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gradient, shape (n, K), of the log-odds of an error, ``log sum_{s != y} exp(f_s) - f_y``.

    The cross-entropy is ``log(1 + exp(log-odds))``, so both gradients have the same direction.  But
    that of the cross-entropy tends to 0 as the margin grows, and underflows for large margins.
    """
    rows = np.arange(len(y))
    rivals = logits.copy()
    rivals[rows, y] = -np.inf
    gradient = softmax(rivals)
    gradient[rows, y] = -1
    return gradient


def loss_gradient(net: Network, X: np.ndarray, y: np.ndarray) -> tuple[float, Gradients]:
    """Mean cross-entropy of a batch, and its gradient with respect to the weights.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)

    Returns
    -------
    value : float
    gradients : list of (dW, db), one per affine layer
    """
    cache, logits, deltas = _forward_backward(net, X, y, cross_entropy_gradient)
    gradients = net.weight_gradients(cache, [delta / len(X) for delta in deltas])
    return float(cross_entropy(logits, y).mean()), gradients


def input_gradient(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    logit_gradient: LogitGradient = cross_entropy_gradient,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the gradient of each sample's loss with respect to its input.

    Parameters
    ----------
    net : Network
    X : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    logit_gradient : callable
        Gradient of the loss with respect to the logits, ``(logits, y) -> (n, K)``.

    Returns
    -------
    logits : ndarray, shape (n, K)
    gradient : ndarray, shape (n, *input_shape)
    """
    _, logits, deltas = _forward_backward(net, X, y, logit_gradient)
    return logits, net.input_gradient(deltas)


def margins(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``f_y - max_{s != y} f_s`` of each sample, shape (n,); negative if misclassified."""
    rows = np.arange(len(y))
    rivals = logits.copy()
    rivals[rows, y] = -np.inf
    return logits[rows, y] - rivals.max(axis=1)


def margin_gradients(
    net: Network, Z: np.ndarray, y: np.ndarray, rivals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the gradients of margins with respect to the input.

    There is one forward pass per sample, whose masks the backward passes of all rivals share.

    Parameters
    ----------
    net : Network
    Z : ndarray, shape (n, *input_shape)
    y : ndarray of int, shape (n,)
    rivals : ndarray of int, shape (n, r)
        Classes other than y.

    Returns
    -------
    logits : ndarray, shape (n, K)
    gradients : ndarray, shape (n, r, d)
        Of ``f_y - f_s`` for each rival s.
    """
    n, r = rivals.shape
    cache = net.forward(Z)
    df = np.zeros((n, r, net.n_classes), dtype=Z.dtype)
    rows, columns = np.ogrid[:n, :r]
    df[rows, columns, y[:, None]] = 1
    df[rows, columns, rivals] = -1
    # One batch of n * r rows, so that each layer is one matrix product.
    outputs, masks = (
        [np.repeat(array, r, axis=0) for array in arrays] for arrays in (cache.outputs, cache.masks)
    )
    repeated = ForwardCache(cache.inputs, outputs, masks)
    deltas = net.backward(repeated, net.at_logits(df.reshape(n * r, -1)))
    gradients = net.input_gradient(deltas).reshape(n, r, -1)
    return cache.outputs[-1].reshape(n, -1), gradients


def _forward_backward(
    net: Network, X: np.ndarray, y: np.ndarray, logit_gradient: LogitGradient
) -> tuple[ForwardCache, np.ndarray, list[np.ndarray]]:
    """Forward cache, logits, and each sample's gradient with respect to all pre-activations."""
    cache = net.forward(X)
    logits = cache.outputs[-1].reshape(len(X), -1)
    return cache, logits, net.backward(cache, net.at_logits(logit_gradient(logits, y)))
