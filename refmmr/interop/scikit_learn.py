"""Networks from scikit-learn: a fitted MLPClassifier, alone or after scalers."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from refmmr.interop.assembly import Assembly
from refmmr.network import Network

__all__ = ["from_sklearn"]


def from_sklearn(model: Any) -> Network:
    """The network of a fitted scikit-learn classifier.

    An MLPClassifier for two classes has one output z, the log-odds of the second class: here it
    becomes the logits (0, z), which have the same decision and the same probabilities.

    Parameters
    ----------
    model : MLPClassifier, MMRClassifier or Pipeline
        An MLPClassifier with ReLUs, or a pipeline of scalers and one: the scalers are folded into
        the first layer, so that radii are in units of the inputs of the pipeline.

    Returns
    -------
    Network
        Class i is ``model.classes_[i]``.

    Raises
    ------
    ValueError, TypeError
        For a model that is not fitted, not of these kinds, or has other activations.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklearn.neural_network import MLPClassifier
    >>> X, y = make_moons(100, noise=0.1, random_state=0)
    >>> model = MLPClassifier([16], max_iter=1000, random_state=0).fit(X, y)
    >>> net = from_sklearn(model)
    >>> bool((net.predict(X) == model.predict(X)).all())
    True
    """
    from sklearn.exceptions import NotFittedError
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise ValueError("model: expected a fitted model, got one that is not") from error
    steps = list(model.steps) if isinstance(model, Pipeline) else [("model", model)]
    steps = [(name, step) for name, step in steps if step not in (None, "passthrough")]
    if not steps:
        raise ValueError("model: expected a pipeline with a classifier, got one without steps")
    *before, (name, classifier) = steps
    if not before and isinstance(getattr(classifier, "network_", None), Network):
        return classifier.network_
    parts = Assembly("model", (steps[0][1].n_features_in_,))
    for where, step in before:
        _scale(parts, where, step)
    _classify(parts, name, classifier)
    return parts.network()


def _scale(parts: Assembly, where: str, step: Any) -> None:
    """Add a scaler."""
    from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

    if type(step) is StandardScaler:
        factor = 1.0 if step.scale_ is None else 1 / step.scale_
        mean = 0.0 if not step.with_mean else step.mean_
        parts.scale(factor, -np.multiply(mean, factor), where)
    elif type(step) is MinMaxScaler and not step.clip:
        parts.scale(step.scale_, step.min_, where)
    elif type(step) is MaxAbsScaler and not getattr(step, "clip", False):
        parts.scale(1 / step.scale_, 0.0, where)
    else:
        _refuse(where, "StandardScaler, or MinMaxScaler or MaxAbsScaler without clip", step)


def _classify(parts: Assembly, where: str, model: Any) -> None:
    """Add the layers of a classifier."""
    from sklearn.neural_network import MLPClassifier

    network = getattr(model, "network_", None)
    if isinstance(network, Network) and len(network.input_shape) == 1:
        weights = network.parameters
    elif not isinstance(model, MLPClassifier):
        _refuse(where, "an MLPClassifier or an MMRClassifier", model)
    else:
        if model.activation != "relu":
            raise ValueError(
                f"model: {where}: expected activation='relu', got {model.activation!r}"
            )
        weights = [(W.T, b) for W, b in zip(model.coefs_, model.intercepts_, strict=True)]
        if len(model.classes_) < 2:
            raise ValueError(f"model: {where}: expected at least two classes, got one")
        if model.out_activation_ == "logistic":
            if len(model.classes_) != 2 or len(weights[-1][1]) != 1:
                raise ValueError(
                    f"model: {where}: expected one class a sample, got a model of several labels"
                )
            W, b = weights[-1]
            weights[-1] = np.vstack([np.zeros_like(W), W]), np.append(np.zeros_like(b), b)
    for i, (W, b) in enumerate(weights):
        if i > 0:
            parts.relu(f"{where}, layer {i}")
        parts.linear(W, b, f"{where}, layer {i + 1}")


def _refuse(where: str, expected: str, step: Any) -> NoReturn:
    raise TypeError(f"model: {where}: expected {expected}, got {type(step).__name__}")
