"""The estimator keeps scikit-learn's conventions, and its proofs are those of the library."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

import refmmr as rm

RNG = np.random.default_rng(0)
X = RNG.random((120, 3))
Y = (X[:, 0] + X[:, 1] > 1).astype(int) + (X[:, 2] > 0.5)
NAMES = np.array(["low", "middle", "high"])[Y]


def model(**options):
    settings = {"epochs": 40, "lr": 0.01, "lam": 0.1, "random_state": 0}
    return rm.MMRClassifier((16,), **(settings | options))


@parametrize_with_checks([rm.MMRClassifier((16,), epochs=10, lr=0.03)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_no_check_is_left_out_that_a_peer_passes():
    def names(estimator):
        return {check.func.__name__ for _, check in estimator_checks_generator(estimator)}

    missing = names(MLPClassifier()) - names(rm.MMRClassifier())
    # Of what the peer has and this does not.
    others = ("partial_fit", "multilabel", "sample_weight")
    assert [name for name in missing if not any(other in name for other in others)] == []


@pytest.fixture(scope="module")
def fitted():
    return model().fit(X, NAMES)


def test_labels_of_any_kind(fitted):
    assert fitted.classes_.tolist() == ["high", "low", "middle"]
    assert fitted.score(X, NAMES) > 0.8
    assert set(fitted.predict(X)) <= set(NAMES)


def test_the_network_is_the_librarys(fitted):
    codes = np.searchsorted(fitted.classes_, NAMES)
    assert (fitted.classes_[fitted.network_.predict(X)] == fitted.predict(X)).all()
    assert (fitted.decision_function(X) == fitted.network_(X)).all()
    found, expected = fitted.certify(X, NAMES), rm.certify(fitted.network_, X, codes, 2, None)
    assert (found.lower == expected.lower).all()
    assert (found.upper == expected.upper).all()
    assert (fitted.certify(X).lower >= found.lower).all()


def test_the_same_seed_gives_the_same_network(fitted):
    again = model().fit(X, NAMES)
    assert (again.decision_function(X) == fitted.decision_function(X)).all()
    other = model(random_state=1).fit(X, NAMES)
    assert (other.decision_function(X) != fitted.decision_function(X)).any()


def test_probabilities(fitted):
    probabilities = fitted.predict_proba(X)
    logits = fitted.decision_function(X)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)


def test_two_classes_have_one_decision():
    binary = model().fit(X, Y > 0)
    decision = binary.decision_function(X)
    logits = binary.network_(X)
    assert (decision == logits[:, 1] - logits[:, 0]).all()
    assert ((decision > 0) == binary.predict(X)).all()


@pytest.mark.parametrize("scheme", ["plain", "at", "mmr", "mmr+at", "kw"])
def test_schemes(scheme):
    trained = model(scheme=scheme, eps=0.02, box=(0, 1), epochs=10, pgd_steps=3).fit(X, Y)
    assert trained.n_iter_ == len(trained.history_) == 10
    expected, history = rm.fit(
        rm.Network.mlp([3, 16, 3], rng=0), X, Y, scheme, eps=0.02, lam=0.1, gamma=0.1, epochs=10,
        batch_size=15, lr=0.01, box=(0, 1), pgd_steps=3,
    )  # fmt: skip
    assert trained.network_.affine_layers[0].W.shape == expected.affine_layers[0].W.shape
    assert history.records[0].keys() == trained.history_.records[0].keys()


def test_universal_mmr_takes_pairs():
    given = {"scheme": "mmr-universal", "lam": (0.1, 0.2), "gamma": (0.2, 0.1), "epochs": 3}
    trained = model(**given).fit(X, Y)
    assert (trained.history_["mmr"] > 0).all()
    with pytest.raises(ValueError, match="lam: expected a pair"):
        model(**given | {"lam": 0.1}).fit(X, Y)


def test_warm_start_goes_on():
    short = model(epochs=5, warm_start=True).fit(X, Y)
    before = short.network_
    short.fit(X, Y)
    start, _ = rm.fit(
        before, X, Y, "mmr", lam=0.1, gamma=0.1, epochs=5, batch_size=15, lr=0.01, box=None,
        rng=_second_seed(0),
    )  # fmt: skip
    assert (short.network_(X) == start(X)).all()
    cold = model(epochs=5).fit(X, Y)
    again = cold.network_
    assert (cold.fit(X, Y).network_(X) == again(X)).all()


def _second_seed(state):
    random = np.random.RandomState(state)
    return [int(random.randint(2**31 - 1)) for _ in range(2)][1]


def test_warm_start_keeps_its_classes_and_features():
    started = model(epochs=2, warm_start=True).fit(X, Y)
    with pytest.raises(ValueError, match=r"y: expected the classes \[0, 1, 2\] as before"):
        started.fit(X, Y > 0)
    with pytest.raises(ValueError, match="features"):
        started.fit(X[:, :2], Y)


def test_warm_start_keeps_its_hidden_layers_and_takes_another_dtype():
    started = model(epochs=2, warm_start=True).fit(X, Y)
    with pytest.raises(ValueError, match=r"expected \[16\] as before, because of warm_start, got"):
        started.set_params(hidden_layer_sizes=(16, 5)).fit(X, Y)
    started.set_params(hidden_layer_sizes=16, dtype="float32").fit(X, Y)
    assert started.network_.dtype == np.float32


def test_float32():
    narrow = model(dtype="float32", epochs=3).fit(X, Y)
    assert narrow.network_.dtype == np.float32
    assert narrow.decision_function(X).dtype == np.float32


def test_float32_proves_for_the_points_that_were_given():
    narrow = model(dtype="float32", epochs=3).fit(X, Y)
    expected = rm.certify(narrow.network_, X, Y, 2, None, progress=False)
    rounded = rm.certify(narrow.network_, X.astype(np.float32), Y, 2, None, progress=False)
    assert (narrow.certify(X, Y).lower == expected.lower).all()
    assert (expected.lower != rounded.lower).any()


@pytest.mark.parametrize("scheme", ["mmr", "at"])
def test_float32_in_the_box_of_the_data(scheme):
    box = X.min(axis=0), X.max(axis=0)
    assert (X.astype(np.float32) > box[1]).any() or (X.astype(np.float32) < box[0]).any()
    narrow = model(dtype="float32", scheme=scheme, eps=0.1, box=box, epochs=2, pgd_steps=2)
    assert len(narrow.fit(X, Y).certify(X, Y)) == 120


def test_float32_overflow(fitted):
    huge = 1e300 * (1 + X)
    with pytest.raises(ValueError, match="X contains infinity"):
        model(dtype="float32").fit(huge, Y)
    narrow = model(dtype="float32", epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match="X contains infinity"):
        narrow.predict(huge)


def test_robust_score_and_error(fitted):
    eps = 0.02
    score = fitted.robust_score(X, NAMES, eps)
    result = fitted.robust_error(X, NAMES, eps, methods=("region",))
    assert score == 1 - result.upper_bound
    assert 0 < score <= fitted.score(X, NAMES)
    assert fitted.robust_score(X, NAMES, eps, method="crown") >= score
    curve = fitted.robustness_curve(X, NAMES, [0.01, 0.02], methods=("region",))
    assert curve.certified_accuracy[1] == score
    found = fitted.minimal_perturbations(X[:20], NAMES[:20], methods=("region",))
    np.testing.assert_array_equal(found.lower, fitted.certify(X[:20], NAMES[:20]).lower)


def test_clone_and_pickle(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "network_")
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.decision_function(X) == fitted.decision_function(X)).all()


def test_pipeline_and_grid_search_by_certified_accuracy():
    scorer = rm.certified_accuracy_scorer(0.02, method="crown")
    search = GridSearchCV(
        make_pipeline(MinMaxScaler((0, 2)), model(epochs=10)),
        {"mmrclassifier__lam": [0.01, 1.0]},
        scoring=scorer,
        cv=2,
        n_jobs=2,
        error_score="raise",
    )
    search.fit(X, NAMES)
    best = search.best_estimator_
    assert search.score(X, NAMES) == scorer(best, X, NAMES)
    # In units of the pipeline's inputs: the scaler doubles all distances.
    scaler, classifier = best[0], best[1]
    inside = classifier.certify(scaler.transform(X), NAMES, method="crown").lower
    outside = rm.certify(
        rm.from_sklearn(best), X, np.searchsorted(best.classes_, NAMES), 2, None, "crown"
    ).lower
    shares = scaler.scale_
    assert (outside >= inside / shares.max() * (1 - 1e-9)).all()
    assert (outside <= inside / shares.min() * (1 + 1e-9) + 1e-12).all()


def test_scorer_pickles_and_says_what_it_is():
    scorer = rm.certified_accuracy_scorer(0.1, p=1)
    again = pickle.loads(pickle.dumps(scorer))
    text = "certified_accuracy_scorer(0.1, p=1, box=None, method='region')"
    assert repr(again) == repr(scorer) == text


def test_scorer_of_a_peer():
    peer = make_pipeline(StandardScaler(), MLPClassifier((8,), solver="lbfgs", random_state=0))
    scores = cross_val_score(peer, X, NAMES, scoring=rm.certified_accuracy_scorer(1e-4), cv=2)
    assert (scores > 0.3).all()


FRAME = pd.DataFrame(X, columns=["a", "b", "c"])


@pytest.mark.parametrize(
    "estimator",
    [
        model(epochs=3),
        make_pipeline(StandardScaler(), model(epochs=3)),
        make_pipeline("passthrough", model(epochs=3)),
    ],
    ids=["alone", "scaled", "passthrough"],
)
def test_scorer_minds_the_names_of_columns(estimator):
    scorer = rm.certified_accuracy_scorer(0.01)
    estimator = clone(estimator).fit(FRAME, NAMES)
    bare = clone(estimator).fit(X, NAMES)
    assert scorer(estimator, FRAME, NAMES) == scorer(bare, X, NAMES) > 0
    with pytest.raises(ValueError, match="feature names should match"):
        scorer(estimator, FRAME[["c", "b", "a"]], NAMES)


def test_scorer_in_nested_cross_validation():
    scorer = rm.certified_accuracy_scorer(0.02)
    search = GridSearchCV(model(epochs=5), {"lam": [0.01, 1.0]}, scoring=scorer, cv=2)
    fitted = clone(search).fit(X, NAMES)
    assert scorer(fitted, X, NAMES) == scorer(fitted.best_estimator_, X, NAMES) > 0
    scores = cross_val_score(search, X, NAMES, scoring=scorer, cv=2, error_score="raise")
    assert ((scores >= 0) & (scores <= 1)).all()


def test_mmr_certifies_more_than_plain_training():
    digits = rm.datasets.load("digits")
    options = {"epochs": 15, "batch_size": 32, "lr": 0.003, "box": (0, 1), "random_state": 0}
    plain = rm.MMRClassifier((32,), scheme="plain", **options)
    mmr = rm.MMRClassifier((32,), lam=0.5, gamma=0.4, **options)
    scores = {}
    for name, estimator in (("plain", plain), ("mmr", mmr)):
        estimator.fit(digits.X_train, digits.y_train)
        assert estimator.score(digits.X_test, digits.y_test) > 0.9
        scores[name] = estimator.robust_score(digits.X_test, digits.y_test, 0.1)
    assert scores["mmr"] > 0.6 > scores["plain"]


BAD = {
    "scheme": ({"scheme": "best"}, "scheme: expected one of"),
    "dtype": ({"dtype": "float16"}, "dtype: expected one of 'float64', 'float32'"),
    "batch size": ({"batch_size": "all"}, "batch_size: expected one of 'auto'"),
    "hidden": ({"scheme": "plain", "p": 3}, "p: expected 1, 2 or inf"),
    "box": ({"scheme": "at", "eps": 0.1, "box": (0, 0.5)}, "X: expected points inside the box"),
    "eps": ({"scheme": "at"}, "eps: expected a number"),
    "box, nothing attacked": ({"box": (0, 0.5)}, "X: expected points inside the box"),
    "no box": ({"box": "all"}, "box: expected"),
    "crossed box": ({"box": (1, 0)}, "box: expected lo <= hi"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parameters(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        model(**options).fit(X, Y)


def test_bad_sizes():
    with pytest.raises(TypeError, match="hidden_layer_sizes: expected a sequence"):
        rm.MMRClassifier("100").fit(X, Y)
    assert rm.MMRClassifier(5, epochs=1).fit(X, Y).network_.n_hidden == 5


def test_bad_data(fitted):
    with pytest.raises(ValueError, match="y: expected at least two classes, got one class, 1"):
        model().fit(X, np.ones(120, int))
    with pytest.raises(ValueError, match=r"y: expected labels among .* got 'none'"):
        fitted.certify(X[:1], ["none"])
    with pytest.raises(ValueError, match="features"):
        fitted.certify(X[:, :2])
    with pytest.raises(NotFittedError):
        model().certify(X)
    with pytest.warns(DataConversionWarning):
        model(epochs=1).fit(X, Y[:, None])


def test_labels_to_prove_for(fitted):
    expected = fitted.certify(X, NAMES).lower
    for labels in (NAMES.tolist(), NAMES.astype(object), pd.Series(NAMES, index=range(5, 125))):
        assert (fitted.certify(X, labels).lower == expected).all()
    with pytest.warns(DataConversionWarning):
        assert (fitted.certify(X, NAMES[:, None]).lower == expected).all()
    numbers = model(epochs=1).fit(X, Y)
    assert (numbers.certify(X, Y.astype(float)).lower == numbers.certify(X, Y).lower).all()


@pytest.mark.parametrize("labels", [np.zeros(120, int), np.array([None, 1] * 60)])
def test_labels_of_another_type(fitted, labels):
    with pytest.raises(ValueError, match=r"y: expected labels among .* got (0|None)"):
        fitted.certify(X, labels)


def test_scores_need_labels(fitted):
    for score in (fitted.robust_score, fitted.robust_error):
        with pytest.raises(ValueError, match="y should be a 1d array"):
            score(X, None, 0.1)
    with pytest.raises(ValueError, match="y should be a 1d array"):
        rm.certified_accuracy_scorer(0.1)(fitted, X, None)


BAD_SCORERS = {
    "norm": ({"p": 3}, ValueError, "p: expected 1, 2 or inf"),
    "method": ({"method": "best"}, ValueError, "method: expected one of"),
    "method for the norm": ({"method": "mip"}, ValueError, "one that supports p = 2"),
    "budget": ({"max_regions": 3}, ValueError, "max_regions: expected None"),
    "option": ({"seconds": 3}, TypeError, "options: expected max_seconds, .* got seconds"),
}


@pytest.mark.parametrize("name", BAD_SCORERS)
def test_bad_scorers_fail_at_once(name):
    options, error, message = BAD_SCORERS[name]
    with pytest.raises(error, match=message):
        rm.certified_accuracy_scorer(0.1, **options)


@pytest.mark.parametrize("eps", [0, -1, np.nan])
def test_bad_radius_of_the_scorer(eps):
    with pytest.raises(ValueError, match="eps: expected a finite number > 0"):
        rm.certified_accuracy_scorer(eps)
