"""A convolutional network that other people trained, read with their weights."""

import os
from pathlib import Path

import numpy as np
import pytest

import refmmr as rm


@pytest.fixture
def wk17a():
    """The MNIST network of Wong and Kolter (2017)."""
    folder = os.environ.get("REFMMR_MODELS")
    if folder is None or not Path(folder, "wk17a.npz").exists():
        pytest.skip("REFMMR_MODELS does not name a folder with wk17a.npz")
    with np.load(Path(folder, "wk17a.npz"), allow_pickle=False) as file:
        w = {key: file[key] for key in file.files}
    return rm.Network(
        [
            rm.Conv2d(w["0.weight"], w["0.bias"], stride=2, padding=1),
            rm.Conv2d(w["2.weight"], w["2.bias"], stride=2, padding=1),
            rm.Flatten(),
            rm.Linear(w["5.weight"], w["5.bias"]),
            rm.Linear(w["7.weight"], w["7.bias"]),
        ],
        input_shape=(1, 28, 28),
    )


@pytest.fixture
def mnist(data_folder):
    return rm.datasets.load("mnist", data_folder, images=True, dtype=np.float32)


def test_published_test_error(wk17a, mnist):
    wrong = sum(
        int((wk17a.predict(mnist.X_test[i : i + 500]) != mnist.y_test[i : i + 500]).sum())
        for i in range(0, 10_000, 500)
    )
    assert wrong == 189


def test_certificates_hold_against_the_attack(wk17a, mnist):
    X, y = mnist.X_test[:12].astype(np.float64), mnist.y_test[:12]
    found = rm.certify(wk17a, X, y, p=np.inf)
    assert (found.lower > 0).all()
    assert (found.lower <= found.upper).all()
    for radius, x, label in zip(found.lower, X, y, strict=True):
        Z = rm.pgd(wk17a, x[None], [label], np.inf, eps=float(radius), steps=20, restarts=3)
        assert wk17a.predict(Z) == label
