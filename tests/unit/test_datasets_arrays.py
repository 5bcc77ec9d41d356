"""Data sets from arrays: labels of any kind, two halves, points inside the box."""

import numpy as np
import pytest

import refmmr as rm
from refmmr.datasets import from_arrays

X = np.linspace(0, 1, 40).reshape(20, 2)
Y = np.arange(20) % 2


@pytest.mark.parametrize(
    ("y", "classes", "expected"),
    [
        ([0, 1, 1, 2], None, [0, 1, 1, 2]),
        ([0.0, 1.0, 1.0, 2.0], None, [0, 1, 1, 2]),
        (np.array([0, 1, 1, 2], np.uint8), None, [0, 1, 1, 2]),
        ([[0], [1], [1], [2]], None, [0, 1, 1, 2]),
        ([3, 7, 7, 10], (3, 7, 10), [0, 1, 1, 2]),
        ([-1, 1, 1, -1], (-1, 1), [0, 1, 1, 0]),
        (["b", "a", "a", "c"], ("a", "b", "c"), [1, 0, 0, 2]),
        ([True, False, False, True], (False, True), [1, 0, 0, 1]),
        (np.array(["b", "a", "a", "c"], object), ("a", "b", "c"), [1, 0, 0, 2]),
    ],
)
def test_labels(y, classes, expected):
    data = from_arrays(X[:4], y, X[:1], y[:1])
    assert data.classes == classes
    assert data.y_train.tolist() == expected
    assert data.y_test.tolist() == expected[:1]
    assert data.y_train.dtype == np.intp
    assert data.n_classes == len(set(expected))


def test_a_label_of_the_test_half_alone_is_a_class_too():
    data = from_arrays(X[:2], ["a", "c"], X[:1], ["b"])
    assert (data.classes, data.y_train.tolist(), data.y_test.tolist()) == (
        ("a", "b", "c"),
        [0, 2],
        [1],
    )
    assert from_arrays(X[:2], [0, 1], X[:1], [2]).n_classes == 3


def test_given_classes_number_the_labels():
    data = from_arrays(X[:2], [3, 7], X[:1], [3], classes=range(10))
    assert (data.y_train.tolist(), data.n_classes) == ([3, 7], 10)
    assert from_arrays(X[:2], ["no", "yes"], X[:1], ["no"], classes=["yes", "no"]).y_train[0] == 1


def test_points_are_kept():
    data = from_arrays(X, Y, X[:3], Y[:3], name="mine")
    np.testing.assert_array_equal(data.X_train, X)
    np.testing.assert_array_equal(data.X_test, X[:3])
    assert data.name == "mine"
    assert from_arrays(X.astype(np.float32), Y).X_train.dtype == np.float32
    assert from_arrays([[0, 1], [1, 0]], [0, 1], [[0, 0]], [0]).X_train.dtype == np.float64


def test_images():
    images = np.linspace(0, 1, 96).reshape(4, 2, 3, 4)
    data = from_arrays(images, Y[:4], images, Y[:4])
    np.testing.assert_array_equal(data.X_train, images)
    grey = from_arrays(images[:, 0], Y[:4], images[:, 0], Y[:4])
    np.testing.assert_array_equal(grey.X_test, images[:, :1])


def test_split_is_stratified_and_repeats():
    y = np.repeat(["a", "b"], [40, 10])
    points = np.linspace(0, 1, 50)[:, None]
    data, again = from_arrays(points, y), from_arrays(points, y)
    assert np.bincount(data.y_train).tolist() == [32, 8]
    assert np.bincount(data.y_test).tolist() == [8, 2]
    np.testing.assert_array_equal(data.X_test, again.X_test)
    # Every point is in one of the halves, with its own label.
    both = np.c_[np.r_[data.X_train, data.X_test], np.r_[data.y_train, data.y_test]]
    np.testing.assert_array_equal(both[both[:, 0].argsort()], np.c_[points, y == "b"])
    other = from_arrays(points, y, rng=1, test_size=0.5)
    assert len(other.X_test) == 25
    assert set(other.X_test[:10, 0]) != set(data.X_test[:, 0])


def test_box():
    scaled = X * 255
    with pytest.raises(ValueError, match=r"divide by 255, or pass box=\(0, 255\)"):
        from_arrays(scaled, Y)
    with pytest.raises(ValueError, match=r"X_test: .* divide by 255"):
        from_arrays(X, Y, scaled, Y)
    with pytest.raises(ValueError, match="scale or clip the inputs"):
        from_arrays(X * 1.5, Y)
    with pytest.raises(ValueError, match="scale or clip the inputs"):
        from_arrays(scaled - 1, Y)
    for box in ((0, 255), None, ([0, 0], [300, 255])):
        np.testing.assert_array_equal(from_arrays(scaled, Y, scaled, Y, box=box).X_test, scaled)


def test_the_hint_of_the_box_comes_in_certify_too():
    net = rm.Network.mlp([2, 3, 2], rng=0)
    with pytest.raises(ValueError, match=r"divide by 255, or pass box=\(0, 255\)"):
        rm.certify(net, X * 255, Y, p=2)


class OnDevice:
    __cuda_array_interface__ = {}  # noqa: RUF012


class Refuses:
    def __array__(self, *args, **kwargs):
        raise RuntimeError("requires grad")


REFUSED = {
    "a test half without labels": (lambda: from_arrays(X, Y, X), "expected both or neither"),
    "too few labels": (lambda: from_arrays(X, Y[:5]), r"y: expected shape \(20,\)"),
    "NaN in X": (lambda: from_arrays(np.where(X == 1, np.nan, X), Y), "X: expected finite"),
    "NaN in y": (lambda: from_arrays(X[:2], [0, np.nan]), "y: expected a label .* none at 1"),
    "None in y": (lambda: from_arrays(X[:2], ["a", None]), "y: expected a label .* none at 1"),
    "fractions": (lambda: from_arrays(X[:2], [0, 0.5]), "y: expected class labels, .* 0.5"),
    "infinite": (lambda: from_arrays(X[:2], [0, np.inf]), "y: expected class labels, .* inf"),
    "ragged": (lambda: from_arrays([[0, 1], [0]], [0, 1]), "X: expected an array, got a ragged"),
    "other points": (
        lambda: from_arrays(X, Y, X[:, :1], Y),
        r"X_test: expected points \(2,\), got \(1,\)",
    ),
    "one axis": (lambda: from_arrays(X[:, 0], Y), "X: expected points"),
    "no points": (lambda: from_arrays(X[:0], []), "X: expected points"),
    "channels last": (
        lambda: from_arrays(np.zeros((2, 32, 32, 3)), [0, 1]),
        r"channels last; pass numpy.moveaxis\(X, -1, 1\)",
    ),
    "one of a class": (lambda: from_arrays(X[:3], [0, 0, 1]), "give the test half yourself"),
    "a stranger": (lambda: from_arrays(X, Y, classes=[0, 2]), "expected labels among .*, got 1"),
    "a class twice": (lambda: from_arrays(X, Y, classes=[0, 1, 1]), "classes: expected every"),
    "all for the test": (lambda: from_arrays(X, Y, test_size=1), "test_size: expected a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([["a", "b"]], [0], "X: expected real numbers"),
        (X[:2], np.array([0, "a"], object), "y: expected labels that can be"),
        (X[:2], [0, "a"], "y: expected labels that can be"),
        (X[:2], np.array([[0], {}], object), "y: expected labels that can be"),
        (OnDevice(), [0], "X: expected an array on the host"),
        (Refuses(), [0], r"X: expected something that NumPy can read, got Refuses \(requires"),
    ],
)
def test_refused_types(X, y, message):
    with pytest.raises(TypeError, match=message):
        from_arrays(X, y)


def test_data_frames():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "kind": np.where(Y, "yes", "no")})
    for kind in (frame["kind"], frame["kind"].astype("category"), frame[["kind"]]):
        data = from_arrays(frame[["a", "b"]], kind, X, frame["kind"])
        np.testing.assert_array_equal(data.X_train, X)
        np.testing.assert_array_equal(data.y_train, Y)
        assert data.classes == ("no", "yes")
    frame.loc[3, "kind"] = pd.NA
    with pytest.raises(ValueError, match="y: expected a label for every point, got none at 3"):
        from_arrays(frame[["a", "b"]], frame["kind"])


@pytest.mark.torch
def test_tensors():
    torch = pytest.importorskip("torch")
    points, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(Y)
    data = from_arrays(points, labels, points, labels)
    assert data.X_train.dtype == np.float32
    np.testing.assert_array_equal(data.X_train, X.astype(np.float32))
    np.testing.assert_array_equal(data.y_test, Y)
    with pytest.raises(TypeError, match="X: expected something that NumPy can read, got Tensor"):
        from_arrays(points.requires_grad_(), labels)
