"""A scorer for scikit-learn's model selection: the share of certified points."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data

from refmmr import _validate as check
from refmmr.certify import certify
from refmmr.certify.methods import check_method, check_options
from refmmr.estimator import FLOATS, encoded_labels
from refmmr.interop.scikit_learn import from_sklearn

__all__ = ["certified_accuracy_scorer"]


def certified_accuracy_scorer(
    eps: float, *, p: float = 2, box: Any = None, method: str = "region", **options: Any
) -> CertifiedAccuracy:
    """A scorer for model selection by certified accuracy.

    Parameters
    ----------
    eps : float
        Radius, in units of the estimator's inputs: for a pipeline those of its first step, so that
        candidates with different scalers can be compared.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    box : (lo, hi) or None
        Inputs lie, and the attacker stays, in ``lo <= z <= hi``; None, the default, as for
        `refmmr.MMRClassifier`.
    method : str
        See `refmmr.certify`.
    **options
        `max_seconds` and `max_regions`, see `refmmr.certify`.

    Returns
    -------
    callable
        ``scorer(estimator, X, y)``: the share of points that are classified right, and proved to be
        so within eps.  For the models of `refmmr.from_sklearn`, and searches over these.

    Raises
    ------
    ValueError, TypeError
        For bad arguments, at once: a search would only count them as failed scores.

    Examples
    --------
    >>> import refmmr as rm
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> search = GridSearchCV(
    ...     make_pipeline(StandardScaler(), rm.MMRClassifier()),
    ...     {"mmrclassifier__gamma": [0.1, 0.3]},
    ...     scoring=rm.certified_accuracy_scorer(eps=0.1),
    ... )
    """
    check_method(method, check.check_p(p))
    unknown = sorted(options.keys() - {"max_seconds", "max_regions", "progress"})
    if unknown:
        raise TypeError(f"options: expected max_seconds, max_regions or progress, got {unknown[0]}")
    check_options([method], {name: options[name] for name in options if name != "progress"})
    return CertifiedAccuracy(eps, {"p": p, "box": box, "method": method, **options})


class CertifiedAccuracy:
    """The scorer that `certified_accuracy_scorer` makes."""

    def __init__(self, eps: float, options: dict[str, Any]) -> None:
        self.eps, self.options = check.check_number("eps", eps), options

    def __call__(self, estimator: Any, X: ArrayLike, y: ArrayLike) -> float:
        """Share of points that are classified right and certified."""
        while hasattr(estimator, "best_estimator_"):  # a search, in nested cross-validation
            estimator = estimator.best_estimator_
        net = from_sklearn(estimator)
        # As in its predict, columns of other names, or in another order, are an error.
        inputs = validate_data(_first_step(estimator), X, dtype=FLOATS, reset=False)
        labels = encoded_labels(y, estimator.classes_)
        options = {"progress": False} | self.options
        found = certify(net, inputs, labels, eps=self.eps, **options)
        return float((found.lower > self.eps).mean())

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"certified_accuracy_scorer({self.eps!r}, {options})"


def _first_step(estimator: Any) -> Any:
    """The first estimator that gets the data: the first step of a pipeline."""
    steps = [step for _, step in getattr(estimator, "steps", [("", estimator)])]
    return next(step for step in steps if step not in (None, "passthrough"))
