"""A scikit-learn classifier: fit, predict, and certify."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from refmmr import _validate as check
from refmmr.certify import (
    Certificates,
    MinimalPerturbations,
    RobustError,
    RobustnessCurve,
    certify,
    minimal_perturbations,
    robust_error,
    robustness_curve,
)
from refmmr.network import Network
from refmmr.training import History, fit

__all__ = ["MMRClassifier"]

LARGEST_SEED = 2**31 - 1
"""Bound of the seeds drawn from ``random_state``: the largest that ``RandomState.randint`` accepts
on every platform."""

FLOATS = [np.float64, np.float32]
"""Dtypes of data that are not converted: a certificate is about the points as they were given."""


class MMRClassifier(ClassifierMixin, BaseEstimator):
    """A dense ReLU network, trained to be provably robust.

    Distances (`eps`, `gamma`, the radii of `certify`) are in units of the features that `fit` sees.
    After a scaler in a pipeline these are scaled features: an `eps` of 0.1 after a StandardScaler
    is a tenth of a standard deviation of each feature, and `box` is a box of scaled features too.
    `refmmr.from_sklearn` folds the scaler into the network, whose radii are in the units of the
    pipeline's own inputs; so does `refmmr.certified_accuracy_scorer`.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int or int
        Units of each hidden layer.
    scheme : {"plain", "at", "mmr", "mmr+at", "mmr-universal", "kw"}
        How to train, see `refmmr.fit`.
    p : {1, 2, inf}
        Norm of all distances; "l1", "l2" and "linf" are understood too.
    eps : float, optional
        Radius of the adversarial examples of "at" and "mmr+at", and of the ball of "kw".
    lam : float or (float, float)
        Weight of the regularizer; for "mmr-universal" a pair, in l_1 and in l_inf.
    gamma : float or (float, float)
        Target distances of the regularizer; for "mmr-universal" those in l_1 and in l_inf.
    epochs : int
    batch_size : int or "auto"
        "auto" is 128, or an eighth of the samples where these are fewer than 1,024.
    lr : float
        Learning rate of Adam.
    box : (lo, hi) or None
        Inputs lie, and the attacker stays, in ``lo <= z <= hi``; data outside are an error.  None,
        the default, because features of any scale are usual here; pass (0, 1) for images, which is
        the default of `refmmr.certify`.
    pgd_steps : int
    k_b_shares : (float, float), optional
    k_d : int, optional
        See `refmmr.fit`.
    dtype : {"float64", "float32"}
        Of the weights and of the training.
    warm_start : bool
        Whether `fit` starts from the network of the last call instead of a random one.  The
        schedules of `refmmr.fit` begin again, as does Adam.
    random_state : int, RandomState or None
        Seed of the first weights and of the order of the samples.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    classes_ : ndarray, shape (K,)
        Labels; class i of the network is ``classes_[i]``.
    network_ : Network
    history_ : History
        Of the last call of `fit`.
    n_iter_ : int
        Epochs of the last call of `fit`.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where X had names that are all strings.

    Notes
    -----
    There is no ``sample_weight``: the regularizer counts the k_B nearest hyperplanes of a sample,
    and a certificate is about one sample; only the mean over the batch could be weighted, to the
    same effect as copies of a sample in X.

    There is no ``partial_fit``: lambda, k_B and the learning rate follow schedules over the whole
    training, and a single pass would be only their first step.

    References
    ----------
    Croce, Andriushchenko, Hein (2019).

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> X, y = make_moons(200, noise=0.1, random_state=0)
    >>> model = MMRClassifier((16,), lam=0.1, epochs=100, lr=0.01, random_state=0)
    >>> model = model.fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    >>> model.certify(X[:3], y[:3]).lower.shape
    (3,)
    """

    classes_: np.ndarray
    network_: Network
    history_: History
    n_iter_: int

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        *,
        scheme: str = "mmr",
        p: float = 2,
        eps: float | None = None,
        lam: Any = 0.5,
        gamma: Any = 0.1,
        epochs: int = 100,
        batch_size: int | str = "auto",
        lr: float = 1e-3,
        box: Any = None,
        pgd_steps: int = 40,
        k_b_shares: tuple[float, float] | None = None,
        k_d: int | None = None,
        dtype: str = "float64",
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.scheme = scheme
        self.p = p
        self.eps = eps
        self.lam = lam
        self.gamma = gamma
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.box = box
        self.pgd_steps = pgd_steps
        self.k_b_shares = k_b_shares
        self.k_d = k_d
        self.dtype = dtype
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array_like, shape (n, d)
        y : array_like, shape (n,)
            Labels of any kind.

        Returns
        -------
        MMRClassifier
            This one.

        Raises
        ------
        ValueError, TypeError
            For bad data or parameters, points outside the box; also, with `warm_start`, for other
            classes, features or hidden layers than before.
        """
        continues = self.warm_start and hasattr(self, "network_")
        check.check_choice("dtype", self.dtype, ("float64", "float32"))
        points, labels = validate_data(self, X, y, dtype=FLOATS, reset=not continues)
        _rounded(points, self.dtype)  # an error for numbers that are infinite in float32
        check.check_box(self.box, points)
        check_classification_targets(labels)
        classes, encoded = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y: expected at least two classes, got one class, {classes.tolist()[0]!r}"
            )
        if continues and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"y: expected the classes {self.classes_.tolist()} as before, because of "
                f"warm_start, got {classes.tolist()}"
            )
        random = check_random_state(self.random_state)
        seeds = [int(random.randint(LARGEST_SEED)) for _ in range(2)]
        hidden = self._hidden()
        if continues:
            start = self._last(hidden)
        else:
            sizes = [points.shape[1], *hidden, len(classes)]
            start = Network.mlp(sizes, rng=seeds[0]).astype(self.dtype)
        network, history = fit(
            start, points, encoded, self.scheme, p=self.p, eps=self.eps, lam=self.lam,
            gamma=self.gamma, epochs=self.epochs, batch_size=self._batch(len(points)),
            lr=self.lr, rng=seeds[1], box=self.box, pgd_steps=self.pgd_steps,
            k_b_shares=self.k_b_shares, k_d=self.k_d, progress=bool(self.verbose),
        )  # fmt: skip
        self.classes_, self.network_, self.history_ = classes, network, history
        self.n_iter_ = len(history)
        return self

    def _hidden(self) -> list[Any]:
        """Units of each hidden layer."""
        sizes = self.hidden_layer_sizes
        if isinstance(sizes, Integral):
            sizes = (sizes,)
        return check.check_sequence("hidden_layer_sizes", sizes, "a sequence of integers")

    def _last(self, hidden: list[Any]) -> Network:
        """The network of the last call, if it is the one that the parameters describe."""
        before = [len(b) for _, b in self.network_.parameters[:-1]]
        if hidden != before:
            raise ValueError(
                f"hidden_layer_sizes: expected {before} as before, because of warm_start, "
                f"got {hidden}"
            )
        return self.network_.astype(self.dtype)

    def _batch(self, n: int) -> Any:
        if isinstance(self.batch_size, str):
            check.check_choice("batch_size", self.batch_size, ("auto",))
            return min(128, max(1, n // 8))
        return self.batch_size

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Logits.

        Parameters
        ----------
        X : array_like, shape (n, d)

        Returns
        -------
        ndarray, shape (n, K), or (n,) for two classes
            For two classes the second logit minus the first, as scikit-learn has it.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Softmax of the logits: ``(n, d) -> (n, K)``."""
        probabilities: np.ndarray = softmax(self._logits(X), axis=1)
        return probabilities

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Label of the largest logit: ``(n, d) -> (n,)``."""
        winners = self._logits(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[winners]
        return labels

    def _logits(self, X: ArrayLike) -> np.ndarray:
        inputs = self._inputs(X)  # the error comes from here if there is no network yet
        logits: np.ndarray = self.network_(_rounded(inputs, self.network_.dtype))
        return logits

    def _inputs(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        inputs: np.ndarray = validate_data(self, X, dtype=FLOATS, reset=False)
        return inputs

    def _labelled(self, X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        return self._inputs(X), encoded_labels(y, self.classes_)

    def certify(self, X: ArrayLike, y: ArrayLike | None = None, **options: Any) -> Certificates:
        """Bound the minimal adversarial perturbation of each point from below and from above.

        Parameters
        ----------
        X : array_like, shape (n, d)
        y : array_like, shape (n,), optional
            True labels; the predicted ones if not given.
        **options
            See `refmmr.certify`; `p` and `box` are those of the estimator if not given.

        Returns
        -------
        Certificates

        Raises
        ------
        ValueError, TypeError
            For bad data, labels that `fit` has not seen, or bad options.
        """
        inputs = self._inputs(X)
        labels = None if y is None else encoded_labels(y, self.classes_)
        return certify(self.network_, inputs, labels, **self._geometry(options))

    def robust_error(
        self, X: ArrayLike, y: ArrayLike, eps: ArrayLike, **options: Any
    ) -> RobustError:
        """Test error and bounds on the robust error.

        Parameters
        ----------
        X : array_like, shape (n, d)
        y : array_like, shape (n,)
        eps : float or array_like, shape (n,)
        **options
            See `refmmr.robust_error`; `p` and `box` are those of the estimator if not given.

        Returns
        -------
        RobustError
        """
        inputs, labels = self._labelled(X, y)
        return robust_error(self.network_, inputs, labels, eps=eps, **self._geometry(options))

    def robustness_curve(
        self, X: ArrayLike, y: ArrayLike, radii: Sequence[float], **options: Any
    ) -> RobustnessCurve:
        """Bounds on the robust accuracy at several radii; see `refmmr.robustness_curve`."""
        inputs, labels = self._labelled(X, y)
        return robustness_curve(
            self.network_, inputs, labels, radii=radii, **self._geometry(options)
        )

    def minimal_perturbations(
        self, X: ArrayLike, y: ArrayLike, **options: Any
    ) -> MinimalPerturbations:
        """Bounds on the minimal perturbation of each point; see `refmmr.minimal_perturbations`."""
        inputs, labels = self._labelled(X, y)
        return minimal_perturbations(self.network_, inputs, labels, **self._geometry(options))

    def robust_score(self, X: ArrayLike, y: ArrayLike, eps: float, **options: Any) -> float:
        """Share of points that are classified right, and proved to be so within eps.

        Parameters
        ----------
        X : array_like, shape (n, d)
        y : array_like, shape (n,)
        eps : float
        **options
            See `refmmr.certify`; `p` and `box` are those of the estimator if not given.

        Returns
        -------
        float
            A lower bound on the accuracy if an attacker may move each point by eps.
        """
        inputs, labels = self._labelled(X, y)
        found = certify(self.network_, inputs, labels, eps=eps, **self._geometry(options))
        return float((found.lower > eps).mean())

    def _geometry(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"p": self.p, "box": self.box, "progress": False} | options


def _rounded(points: np.ndarray, dtype: Any) -> np.ndarray:
    """Points in the dtype of the network; an error for those that overflow in float32."""
    with np.errstate(over="ignore"):
        rounded = points.astype(dtype, copy=False)
    assert_all_finite(rounded, input_name="X")
    return rounded


def encoded_labels(y: ArrayLike, classes: np.ndarray) -> np.ndarray:
    """Labels as indices of classes."""
    places = {label: i for i, label in enumerate(classes.tolist())}
    labels = column_or_1d(y, warn=True).tolist()
    for label in labels:
        if label not in places:
            raise ValueError(f"y: expected labels among {classes.tolist()}, got {label!r}")
    return np.array([places[label] for label in labels], dtype=np.intp)
