"""Mistakes that are easily made: each error names the argument, and what converts it."""

import inspect
import pathlib

import numpy as np
import pytest

import refmmr as rm

NET = rm.Network.mlp([2, 4, 3], rng=0)
X, Y = np.full((2, 2), 0.5), [0, 1]
SLICE = rm.Slice([0, 0], [1, 1], [2, 3])


def model_of(package):
    """An object of a class that another package defines."""
    return type("Model", (), {"__module__": f"{package}.models"})()


MISTAKES = {
    "seed of an attack": (
        lambda: rm.pgd(NET, X, Y, 2, eps=0.1, rng="a"),
        "rng: expected a seed, a numpy Generator or None, got 'a'",
    ),
    "seed of an evaluation": (
        lambda: rm.robust_error(NET, X, Y, 2, eps=0.1, rng="a"),
        "rng: expected a seed",
    ),
    "seed of a network": (lambda: rm.Network.mlp([2, 2], rng=-1), "rng: expected a seed"),
    "one class": (
        lambda: rm.pgd(rm.Network.mlp([2, 1], rng=0), X, [0, 0], 2, eps=0.1),
        "net: expected at least two classes, got 1",
    ),
    "validation": (
        lambda: rm.fit(NET, X, Y, validation=3),
        r"validation: expected a pair \(X, y\), got 3",
    ),
    "an integer above any float": (
        lambda: rm.pgd(NET, X, Y, eps=10**400),
        "eps: expected a finite number > 0, got an integer above any float",
    ),
    "a norm above any float": (
        lambda: rm.distances(NET, X, Y, p=10**400),
        "p: expected 1, 2 or inf",
    ),
    "a radius that is a flag": (
        lambda: rm.certify(NET, X, Y, eps=np.True_),
        r"eps: expected a finite number > 0, got (np\.)?True",
    ),
    "a flag that is a string": (
        lambda: rm.fit(NET, X, Y, drop_last="no"),
        "drop_last: expected True or False, got 'no'",
    ),
    "no network": (
        lambda: rm.enumerate_regions(3, rm.Box([0, 0], [1, 1])),
        "net: expected a Network, got int",
    ),
    "a model of PyTorch": (
        lambda: rm.certify(model_of("torch"), X, Y),
        "net: expected a Network, got Model; convert it with refmmr.from_torch$",
    ),
    "a model of scikit-learn": (
        lambda: rm.fit(model_of("sklearn"), X, Y),
        "net: expected a Network, got Model; convert it with refmmr.from_sklearn$",
    ),
    "an estimator": (
        lambda: rm.robust_error(rm.MMRClassifier(), X, Y, eps=0.1),
        "net: expected a Network, got MMRClassifier; convert it with refmmr.from_sklearn$",
    ),
    "a model of Keras": (
        lambda: rm.pgd(model_of("keras"), X, Y, eps=0.1),
        "net: expected a Network, got Model; export it to ONNX and read the file with refmmr.load$",
    ),
    "a path": (
        lambda: rm.mmr(pathlib.Path("net.npz"), X, Y, gamma=1),
        "net: expected a Network, got PosixPath; read the file with refmmr.load$",
    ),
    "a path as text": (
        lambda: rm.linear_region("net.npz", X[0]),
        "net: expected a Network, got str; read the file with refmmr.load$",
    ),
    "labels that are strings": (
        lambda: rm.certify(NET, X, ["cat", "dog"]),
        "y: expected integer class indices, got dtype <U3; "
        r"classes, y = numpy.unique\(y, return_inverse=True\) numbers them$",
    ),
    "labels that are objects": (
        lambda: rm.fit(NET, X, np.array(["cat", "dog"], object)),
        "y: expected integer class indices, got dtype object; classes, y = numpy.unique",
    ),
    "labels that are one-hot": (
        lambda: rm.robust_error(NET, X, np.eye(3, dtype=int)[Y], eps=0.1),
        r"y: expected shape \(2,\), one label a sample, got \(2, 3\); "
        r"for one-hot rows pass y.argmax\(axis=1\)$",
    ),
    "labels that are one-hot floats": (
        lambda: rm.fit(NET, X, np.eye(3)[Y]),
        "y: expected integer class indices, got dtype float64; for one-hot rows pass y.argmax",
    ),
    "labels that are floats": (
        lambda: rm.pgd(NET, X, [0.0, 1.0], eps=0.1),
        r"y: expected integer class indices, got dtype float64; pass y.astype\(int\)$",
    ),
    "labels of validation": (
        lambda: rm.fit(NET, X, Y, validation=(X, [0.0, 1.0])),
        r"validation y: expected integer class indices, got dtype float64; pass y.astype\(int\)$",
    ),
    "labels that are shares": (
        lambda: rm.mmr(NET, X, [0.5, 1.0], gamma=1),
        "y: expected integer class indices, got dtype float64$",
    ),
    "gamma twice": (
        lambda: rm.mmr(NET, X, Y, gamma=1, gamma_d=2),
        "gamma: expected either gamma or gamma_b and gamma_d, got both",
    ),
    "no gamma": (lambda: rm.mmr(NET, X, Y), "gamma_b: expected a finite number > 0, got None"),
    "gamma of three": (
        lambda: rm.mmr_gradient(NET, X, Y, gamma=(1, 2, 3)),
        r"gamma: expected a number or \(gamma_b, gamma_d\), got \(1, 2, 3\)",
    ),
    "gamma of zero": (
        lambda: rm.mmr(NET, X, Y, gamma=(1, 0)),
        "gamma: expected a finite number > 0, got 0",
    ),
    "box of three sides": (
        lambda: rm.Box([0, 0], [1, 1, 1]),
        r"Box: expected hi of shape \(2,\) or a number, got shape \(3,\)",
    ),
    "extent of words": (
        lambda: rm.Slice([0, 0], [1, 1], [2, 3], extent="abcd"),
        "extent: expected real numbers",
    ),
    "extent, ragged": (
        lambda: rm.Slice([0, 0], [1, 1], [2, 3], extent=(1, [2], 3, 4)),
        "extent: expected an array of numbers, got a ragged sequence",
    ),
    "points of another space": (
        lambda: SLICE.project([[1, 1, 1]]),
        r"X: expected shape \(1, 2\), got \(1, 3\)",
    ),
    "nothing to save": (lambda: rm.save(None, "net.npz"), "net: expected a Network, got NoneType"),
    "path": (lambda: rm.load(3), "path: expected a path, got 3"),
    "one point in a region": (
        lambda: rm.linear_region(NET, X[0]).contains(X[0]),
        r"Z: expected points of 2 numbers, got \(2,\)",
    ),
    "data of integers": (
        lambda: rm.datasets.load("digits", dtype=int),
        "dtype: expected float32 or float64, got <class 'int'>",
    ),
    "data by number": (lambda: rm.datasets.load(5), "name: expected a name or a folder, got 5"),
    "padding, an array of three": (
        lambda: rm.Conv2d(np.zeros((1, 1, 2, 2)), [0], padding=np.array([1, 1, 1])),
        "padding: expected",
    ),
    "labels of other points": (
        lambda: rm.enumerate_regions(NET, rm.Box([0, 0], [1, 1])).plot(
            points=[[0, 0]], labels=["a", "b"]
        ),
        r"points: expected shape \(m, 2\) and as many labels",
    ),
    "parameters": (
        lambda: NET.with_parameters(5),
        r"parameters: expected pairs \(W, b\), got 5",
    ),
    "a list of backends": (
        lambda: rm.set_backend(["numpy"]),
        r"backend: expected one of numpy, .*numba.*, got \['numpy'\]",
    ),
    "another kind of picture": (
        lambda: rm.plot.save(None, "figure.gif"),
        "path: expected a file ending in .png or .pdf or .svg, got 'figure.gif'",
    ),
    "sizes": (lambda: rm.Network.mlp(3), "sizes: expected a sequence of integers, got 3"),
    "layers": (lambda: rm.Network(None, 2), "layers: expected a sequence of layers, got None"),
    "image shape": (
        lambda: rm.Network.lenet_small(28, 10),
        r"input_shape: expected \(channels, height, width\), got 28",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_errors_name_the_argument(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("p", "spellings"),
    [
        (1, ["1", "l1", "L1", "l_1", 1.0, np.int8(1)]),
        (2, ["2", "l2", "L_2", 2.0]),
        (np.inf, ["inf", "Inf", "linf", "L_INF", float("inf")]),
    ],
)
def test_norms_have_several_spellings(p, spellings):
    expected = rm.distances(NET, X, Y, p=p).boundary
    for spelling in spellings:
        np.testing.assert_array_equal(rm.distances(NET, X, Y, p=spelling).boundary, expected)
    assert rm.certify(NET, X, Y, p=spellings[1]).p == p
    found = [rm.certify_universal(NET, X, Y, p=name) for name in (p, spellings[1])]
    np.testing.assert_array_equal(*found)


DEFAULTS = {"p": 2, "box": (0, 1), "rng": 0, "progress": None}
NO_BOX = (rm.distances, rm.MMRClassifier, rm.certified_accuracy_scorer)
"""Those without an attack, and those whose features have any scale."""
CALLABLES = [
    *(getattr(rm, name) for name in rm.__all__ if inspect.isroutine(getattr(rm, name))),
    rm.MMRClassifier,
    rm.Network.mlp,
    rm.Network.lenet_small,
    rm.RegionComplex.boundary_distance,
    rm.RegionComplex.regions_meeting_ball,
    rm.datasets.load,
    rm.datasets.from_arrays,
]


@pytest.mark.parametrize("function", CALLABLES, ids=lambda function: function.__qualname__)
def test_the_same_argument_has_the_same_default(function):
    parameters = inspect.signature(function).parameters
    for name in parameters.keys() & DEFAULTS.keys():
        expected = None if name == "box" and function in NO_BOX else DEFAULTS[name]
        assert parameters[name].default == expected
    assert "seed" not in parameters
    assert "random_state" not in parameters or function is rm.MMRClassifier


def test_names_are_taken_in_any_case():
    assert rm.certify(NET, X, Y, method="CROWN").method == "crown"
    assert rm.robust_error(NET, X, Y, eps=0.1, methods=["Region", "ATTACK"]).methods == (
        "region",
        "attack",
    )
    options = {"lam": 1, "gamma": 1, "eps": 0.1, "epochs": 1}
    named, plain = (rm.fit(NET, X, Y, name, **options)[0] for name in ("MMR+AT", "mmr+at"))
    np.testing.assert_array_equal(named(X), plain(X))
    with rm.use_backend("NumPy"):
        assert rm.get_backend() == "numpy"


def test_gamma_is_gamma_b_and_gamma_d():
    for function in (rm.mmr, lambda *args, **options: rm.mmr_gradient(*args, **options)[:1]):
        pair = function(NET, X, Y, gamma_b=0.3, gamma_d=0.7)
        np.testing.assert_array_equal(function(NET, X, Y, gamma=(0.3, 0.7)), pair)
        both = function(NET, X, Y, gamma_b=0.3, gamma_d=0.3)
        np.testing.assert_array_equal(function(NET, X, Y, gamma=0.3), both)
        np.testing.assert_array_equal(function(NET, X, Y, gamma=np.array(0.3)), both)


def test_overflow_is_no_certificate():
    """Hyperplanes that cannot be computed in floats give a radius of 0."""
    net = rm.Network(
        [rm.Linear([[1e200, 1e200], [1, 2]], [1, 3]), rm.Linear([[1e200, 1], [1, 2]], [0, 0])], 2
    )
    for p in (1, 2, np.inf):
        for box in (None, (0, 1)):
            assert rm.certify(net, X, [0, 0], p, box).lower.max() < 1


def test_infinite_weights_are_not_saved(tmp_path):
    net = rm.Network.mlp([2, 2], rng=0)
    net.layers[0].W[0, 0] = np.inf
    with pytest.raises(ValueError, match="net: expected finite numbers, got inf"):
        rm.save(net, tmp_path / "net.npz")
    assert list(tmp_path.iterdir()) == []


def test_training_ends_with_finite_weights_or_an_error():
    net = rm.Network.mlp([2, 4, 3], rng=0).astype(np.float32)
    diverged = pytest.raises(FloatingPointError, match="training diverged in epoch 1")
    with np.errstate(all="ignore"), diverged:
        rm.fit(net, X, Y, epochs=1, lr=1e40)  # a tenth of it in the last epoch
