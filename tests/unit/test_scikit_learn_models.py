"""Networks of fitted scikit-learn models decide as they do."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PolynomialFeatures, StandardScaler

import refmmr as rm

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X = np.random.default_rng(0).normal(2, 3, size=(90, 4))
LABELS = {
    "three": np.arange(90) % 3,
    "strings": np.array(["a", "b", "c"])[np.arange(90) % 3],
    "two": (X[:, 0] > 2).astype(int),
    "two strings": np.where(X[:, 0] > 2, "yes", "no"),
}


def mlp(**options):
    return MLPClassifier((6, 5), max_iter=15, random_state=0, **options)


def probabilities(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    "scalers",
    [
        [],
        [StandardScaler()],
        [StandardScaler(with_mean=False)],
        [StandardScaler(with_std=False)],
        [MinMaxScaler((-1, 1))],
        [MaxAbsScaler()],
        [MinMaxScaler(), StandardScaler()],
        ["passthrough"],
    ],
    ids=str,
)
def test_same_probabilities(scalers, labels):
    y = LABELS[labels]
    model = make_pipeline(*scalers, mlp()) if scalers else mlp()
    model.fit(X, y)
    net = rm.from_sklearn(model)
    assert (model.classes_[net.predict(X)] == model.predict(X)).all()
    np.testing.assert_allclose(probabilities(net(X)), model.predict_proba(X), rtol=1e-9, atol=1e-12)
    assert len(net.layers) == 3


def test_weights_bit_for_bit():
    model = mlp().fit(X, LABELS["three"])
    net = rm.from_sklearn(model)
    for (W, b), V, c in zip(net.parameters, model.coefs_, model.intercepts_, strict=True):
        assert (W == V.T).all()
        assert (b == c).all()


@pytest.mark.parametrize("labels", LABELS)
def test_float32_stays(labels):
    model = mlp().fit(X.astype(np.float32), LABELS[labels])
    net = rm.from_sklearn(model)
    assert net.dtype == np.float32
    x = X.astype(np.float32)
    np.testing.assert_allclose(probabilities(net(x)), model.predict_proba(x), rtol=1e-5, atol=1e-6)


def test_estimators_of_this_library_give_their_network():
    model = rm.MMRClassifier((4,), epochs=1, random_state=0).fit(X, LABELS["three"])
    assert rm.from_sklearn(model) is model.network_
    piped = make_pipeline(StandardScaler(), model).fit(X, LABELS["three"])
    net = rm.from_sklearn(piped)
    assert (piped.classes_[net.predict(X)] == piped.predict(X)).all()


def test_constant_features_scale():
    Z = np.column_stack([X, np.ones(90)])
    model = make_pipeline(StandardScaler(), mlp()).fit(Z, LABELS["three"])
    np.testing.assert_allclose(
        probabilities(rm.from_sklearn(model)(Z)), model.predict_proba(Z), rtol=1e-9
    )


def test_certified_radii_are_in_units_of_the_pipeline():
    y = LABELS["two"]
    model = make_pipeline(StandardScaler(), mlp()).fit(X, y)
    net = rm.from_sklearn(model)
    found = rm.certify(net, X[:20], None, p=2, box=None, method="crown")
    rng = np.random.default_rng(1)
    for x, radius in zip(X[:20], found.lower, strict=True):
        steps = rng.normal(size=(200, 4))
        steps *= 0.999 * radius / np.linalg.norm(steps, axis=1, keepdims=True)
        assert (model.predict(x + steps) == model.predict(x[None])).all()


REFUSED = {
    "not fitted": (mlp, ValueError, "model: expected a fitted model"),
    "tanh": (
        lambda: mlp(activation="tanh").fit(X, LABELS["two"]), ValueError,
        "expected activation='relu', got 'tanh'",
    ),
    "labels": (
        lambda: mlp().fit(X, np.stack([LABELS["two"], 1 - LABELS["two"]], axis=1)), ValueError,
        "expected one class a sample",
    ),
    "one label": (
        lambda: mlp().fit(X, LABELS["two"][:, None].repeat(2, 1)), ValueError,
        "expected one class a sample",
    ),
    "one class": (
        lambda: mlp().fit(X, np.zeros(90)), ValueError, "expected at least two classes, got one",
    ),
    "no steps": (
        lambda: Pipeline([("nothing", "passthrough")]).fit(X), ValueError,
        "expected a pipeline with a classifier, got one without steps",
    ),
    "regressor": (
        lambda: MLPRegressor(hidden_layer_sizes=(3,), max_iter=5).fit(X, X[:, 0]), TypeError,
        "model: model: expected an MLPClassifier or an MMRClassifier, got MLPRegressor",
    ),
    "logistic": (
        lambda: LogisticRegression().fit(X, LABELS["two"]), TypeError, "got LogisticRegression",
    ),
    "features": (
        lambda: make_pipeline(PolynomialFeatures(), mlp()).fit(X, LABELS["two"]), TypeError,
        "polynomialfeatures: expected StandardScaler, or .* got PolynomialFeatures",
    ),
    "clip": (
        lambda: make_pipeline(MinMaxScaler(clip=True), mlp()).fit(X, LABELS["two"]), TypeError,
        "without clip, got MinMaxScaler",
    ),
    "number": (lambda: 3, TypeError, "expected an estimator|not an estimator"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, error, message = REFUSED[name]
    model = make()
    with pytest.raises(error, match=message):
        rm.from_sklearn(model)
