"""Mistakes that are easily made: each error names the argument."""

import numpy as np
import pytest

import refmmr as rm

NET = rm.Network.mlp([2, 4, 3], rng=0)
X, Y = np.full((2, 2), 0.5), [0, 1]
SLICE = rm.Slice([0, 0], [1, 1], [2, 3])

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
    "no network": (
        lambda: rm.enumerate_regions(3, rm.Box([0, 0], [1, 1])),
        "net: expected a Network, got int",
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
        lambda: rm.plot.save(None, "figure.pdf"),
        "path: expected a file ending in .png, got 'figure.pdf'",
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
        rm.fit(net, X, Y, epochs=1, lr=1e39)
