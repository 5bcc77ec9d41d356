"""The switch: which implementation runs behind a public function."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl

import refmmr as rm
from refmmr import _backend
from refmmr.reference import distances as reference


@pytest.fixture
def fake(monkeypatch):
    """A backend named "fake", gone again after the test."""
    twins = {"numpy": {}, "fake": {}}
    if "numba" in rm.available_backends():  # takes over what "fake" has no twin of
        with rm.use_backend("numba"):
            twins["numba"] = _backend._twins["numba"]
    monkeypatch.setattr(_backend, "_twins", twins)
    monkeypatch.setattr(_backend, "_process", None)
    monkeypatch.delenv("REFMMR_BACKEND", raising=False)


def python(code, **environment):
    """Run code in a fresh interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "REFMMR_BACKEND"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )


def test_numpy_is_the_default():
    run = python("import refmmr; print(refmmr.get_backend())")
    assert (run.returncode, run.stdout) == (0, "numpy\n"), run.stderr
    assert "numpy" in rm.available_backends()


def test_environment_chooses():
    code = """
import refmmr, refmmr._backend
refmmr._backend._twins["fake"] = {}
print(refmmr.get_backend())
with refmmr.use_backend("numpy"):
    print(refmmr.get_backend())
print(refmmr.get_backend())
"""
    run = python(code, REFMMR_BACKEND="fake")
    assert run.stdout.split() == ["fake", "numpy", "fake"], run.stderr


def test_environment_with_an_unknown_name():
    code = "import refmmr; refmmr.distances(refmmr.Network.mlp([2, 2], rng=0), [[0, 0]], [0])"
    run = python(code, REFMMR_BACKEND="abacus")
    assert run.returncode != 0
    message = run.stderr.strip().splitlines()[-1]
    for word in ("ValueError", "REFMMR_BACKEND", "numpy", "'abacus'"):
        assert word in message


def test_unknown_backend(fake):
    with pytest.raises(ValueError, match=r"backend: expected one of numpy, fake, .*got 'abacus'"):
        rm.set_backend("abacus")
    with (
        pytest.raises(ValueError, match="got 'abacus'"),
        rm.use_backend("abacus"),
    ):
        pytest.fail("an unknown backend was entered")
    assert rm.get_backend() == "numpy"


def test_set_and_use(fake):
    rm.set_backend("fake")
    assert rm.get_backend() == "fake"
    with rm.use_backend("numpy"):
        assert rm.get_backend() == "numpy"
        with rm.use_backend("fake"):
            assert rm.get_backend() == "fake"
        assert rm.get_backend() == "numpy"
    assert rm.get_backend() == "fake"


def test_use_restores_after_an_exception(fake):
    with pytest.raises(ZeroDivisionError), rm.use_backend("fake"):
        1 / 0  # noqa: B018
    assert rm.get_backend() == "numpy"


def test_twin_is_called_only_where_it_should(fake):
    calls = []

    @_backend.implements("fake", reference.distances)
    def twin(*args, **kwargs):
        calls.append(args[3])
        return "twin"

    net = rm.Network.mlp([2, 3, 2], rng=0)
    expected = rm.distances(net, [[0.5, 0.5]], [0], 1)
    assert not calls
    with rm.use_backend("fake"):
        assert rm.distances(net, [[0.5, 0.5]], [0], 1) == "twin"
        # No twin: the reference runs.
        assert rm.certify(net, [[0.5, 0.5]], [0], p=2).p == 2
        assert rm.mmr(net, [[0.5, 0.5]], [0], gamma_b=1, gamma_d=1).value.shape == (1,)
    assert calls == [1]
    np.testing.assert_array_equal(rm.distances(net, [[0.5, 0.5]], [0], 1).boundary, expected[0])


def test_bad_arguments_do_not_reach_the_twin(fake):
    @_backend.implements("fake", reference.distances)
    def twin(*args, **kwargs):
        pytest.fail("called with bad arguments")

    with rm.use_backend("fake"), pytest.raises(ValueError, match="p: expected 1, 2 or inf"):
        rm.distances(rm.Network.mlp([2, 2], rng=0), [[0.5, 0.5]], [0], 3)


def test_kernel_keeps_the_documentation():
    public = _backend.kernel(reference.dual_norm)
    assert public.__doc__ == reference.dual_norm.__doc__
    assert public.__name__ == "dual_norm"
    assert public.__wrapped__ is reference.dual_norm


def test_small_networks_run_on_one_thread_of_blas():
    from refmmr.backends import threads

    def blas_threads():
        return {library.num_threads for library in threads._blas()}

    @_backend.kernel
    def seen(net, X):
        return blas_threads()

    small, large = (rm.Network.mlp([100, size, 10], rng=0) for size in (100, 3000))
    X = np.zeros((64, 100))
    with threadpoolctl.threadpool_limits(2), rm.use_backend("numpy"):
        assert seen(small, X) == {1}
        assert seen(small, X[:0]) == {2}  # no product of so few samples is threaded
        assert seen(large, X) == {2}
        assert blas_threads() == {2}


HEAVY = ["cupy", "joblib", "matplotlib", "numba", "scipy", "sklearn", "threadpoolctl", "torch"]


def loaded_by(code):
    run = python(f"{code}; import json, sys; print(json.dumps(sorted(sys.modules)))")
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in json.loads(run.stdout)}


def test_import_is_light():
    assert not loaded_by("import refmmr") & set(HEAVY)


def test_using_networks_is_light():
    code = (
        "import refmmr as rm; net = rm.Network.mlp([2, 4, 2], rng=0); "
        "rm.certify(net, [[0.5, 0.5]], None, p=1); rm.pgd(net, [[0.5, 0.5]], [0], 2, eps=0.1); "
        "rm.enumerate_regions(net, rm.Box([0, 0], [1, 1]), progress=False)"
    )
    assert not loaded_by(code) & set(HEAVY)


def test_every_public_name_is_there():
    missing = [name for name in rm.__all__ if not hasattr(rm, name)]
    assert missing == []
    assert set(rm.__all__) <= set(dir(rm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rm.nothing  # noqa: B018
