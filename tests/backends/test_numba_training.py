"""The same seed gives the same training on NumPy and on Numba, up to rounding.

Measured on digits (3 to 5 epochs, three seeds, all schemes, p = 2 and inf): weights and history are
at most 2e-15 apart in float64 and 1e-6 in float32, as far as if one starts from weights that are
off by one rounding.  That grows with the number of steps, and jumps where a rounding changes a
mask; hence the margins here.
"""

import numpy as np
import pytest

import refmmr as rm
from refmmr import training

pytest.importorskip("numba", reason="the numba backend needs numba")

WEIGHTS = {np.float64: 1e-11, np.float32: 2e-5}
HISTORY = {np.float64: 1e-12, np.float32: 2e-6}
SCHEMES = {
    "plain": {},
    "at": {"eps": {2: 0.1, np.inf: 0.05}, "pgd_steps": 5},
    "mmr": {"lam": 0.5, "gamma": {2: 0.3, np.inf: 0.05}},
    "mmr+at": {
        "lam": 0.5,
        "gamma": {2: (0.3, 0.5), np.inf: (0.05, 0.1)},
        "eps": {2: 0.1, np.inf: 0.05},
        "pgd_steps": 5,
    },
}
COLUMNS = "loss", "cross_entropy", "mmr", "train_error", "validation_error", "lr", "lam", "k_b"


@pytest.fixture(scope="module")
def digits():
    return rm.datasets.load("digits")


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setenv("REFMMR_STRICT", "1")


def train(backend, net, data, scheme, p, images=False, **options):
    """Train on 512 digits, six epochs at most, 8 steps each."""
    for name, value in SCHEMES[scheme].items():
        options[name] = value[p] if isinstance(value, dict) else value
    points = [data.X_train[:512], data.X_test]
    if images:
        points = [X.reshape(-1, 1, 8, 8) for X in points]
    X, X_test = points
    with rm.use_backend(backend):
        return rm.fit(
            net, X, data.y_train[:512], scheme, p=p, batch_size=64, rng=1, progress=False,
            validation=(X_test, data.y_test), **{"epochs": 6, **options},
        )  # fmt: skip


def assert_close(run, other, dtype):
    (net, history), (other_net, other_history) = run, other
    for pair, other_pair in zip(net.parameters, other_net.parameters, strict=True):
        for array, expected in zip(pair, other_pair, strict=True):
            assert array.dtype == expected.dtype == dtype
            np.testing.assert_allclose(array, expected, rtol=0, atol=WEIGHTS[dtype])
    for column in COLUMNS:
        np.testing.assert_allclose(
            history[column], other_history[column], rtol=HISTORY[dtype], atol=HISTORY[dtype]
        )


def moved(net, start):
    return max(
        np.abs(array - other).max()
        for pair, other_pair in zip(net.parameters, start.parameters, strict=True)
        for array, other in zip(pair, other_pair, strict=True)
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("p", [2, np.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_dense(digits, scheme, p, dtype):
    start = rm.Network.mlp([64, 24, 16, 10], rng=0).astype(dtype)
    expected = train("numpy", start, digits, scheme, p)
    assert moved(expected[0], start) > 0.02
    assert_close(train("numba", start, digits, scheme, p), expected, dtype)


@pytest.mark.parametrize("scheme", ["plain", "mmr+at"])
def test_convolutional(digits, scheme):
    start = rm.Network.lenet_small((1, 8, 8), 10, rng=0)
    options = {"epochs": 1, "images": True}
    expected = train("numpy", start, digits, scheme, np.inf, **options)
    assert_close(train("numba", start, digits, scheme, np.inf, **options), expected, np.float64)


def test_the_same_seed_gives_the_same_bits(digits):
    start = rm.Network.mlp([64, 24, 10], rng=0)
    (net, _), (again, _) = (train("numba", start, digits, "mmr+at", 2) for _ in range(2))
    for pair, other_pair in zip(net.parameters, again.parameters, strict=True):
        for array, other in zip(pair, other_pair, strict=True):
            assert array.tobytes() == other.tobytes()


class StoppedError(Exception):
    """Instead of a process that is killed."""


@pytest.mark.parametrize("backends", [("numpy", "numba"), ("numba", "numpy"), ("numba", "numba")])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_checkpoint_goes_on_under_the_other_backend(
    digits, backends, dtype, tmp_path, monkeypatch
):
    start = rm.Network.mlp([64, 24, 16, 10], rng=0).astype(dtype)
    expected = train("numpy", start, digits, "mmr", 2)
    path, first, second = tmp_path / "run.npz", *backends
    with monkeypatch.context() as patch:
        epoch = training.run.Run._train

        def stop_in_the_third(run, *args):
            if len(run.history) == 2:
                raise StoppedError
            return epoch(run, *args)

        patch.setattr(training.run.Run, "_train", stop_in_the_third)
        with pytest.raises(StoppedError):
            train(first, start, digits, "mmr", 2, checkpoint=path)
    resumed = train(second, start, digits, "mmr", 2, checkpoint=path)
    assert len(resumed[1]) == 6
    assert_close(resumed, expected, dtype)
