"""Before long work in the reference a warning says how long it takes, and what is faster."""

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify import _estimate

pytest.importorskip("numba")

NET = rm.Network.mlp([3, 8, 3], rng=0)
X = np.random.default_rng(0).uniform(0, 1, (_estimate.FEW + 1, 3))
Y = NET.predict(X)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_estimate, "LONG", 0.0)
    monkeypatch.setattr(_estimate, "get_backend", lambda: "numpy")


def test_certify_warns(impatient):
    with pytest.warns(UserWarning, match=r"'crown' took .* s for one point.*65 points.*numba"):
        rm.certify(NET, X, Y, eps=0.01, method="crown")


def test_robust_error_warns(impatient):
    with pytest.warns(UserWarning, match=r"'crown' took .* s for one point.*65 points.*numba"):
        rm.robust_error(NET, X, Y, eps=0.01)


@pytest.mark.usefixtures("impatient")
def test_few_points_are_done_at_once():
    rm.certify(NET, X[1:], Y[1:], eps=0.01, method="crown")


def test_short_work_is_done_at_once(monkeypatch):
    monkeypatch.setattr(_estimate, "get_backend", lambda: "numpy")
    rm.certify(NET, X, Y, eps=0.01, method="crown")


def test_a_compiled_backend_is_not_warned_of(impatient, monkeypatch):
    monkeypatch.setattr(_estimate, "get_backend", lambda: "numba")
    rm.certify(NET, X, Y, eps=0.01, method="crown")
