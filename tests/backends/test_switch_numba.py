"""The Numba backend in threads, worker processes and forks, and where it has no twin."""

import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import refmmr as rm
from refmmr import _backend, _kernels
from refmmr.backends import threads
from refmmr.reference import hyperplanes

pytest.importorskip("numba", reason="the numba backend needs numba")
joblib = pytest.importorskip("joblib")
threadpoolctl = pytest.importorskip("threadpoolctl")

MARGINS = {"gamma_b": 0.5, "gamma_d": 1.5}


def python(code, **environment):
    """Run code in a fresh interpreter; what it prints."""
    unset = "REFMMR_BACKEND", "REFMMR_STRICT", "REFMMR_NUM_THREADS"
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    path = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout.split()


def problem(n=40):
    net = rm.Network.mlp([10, 20, 15, 4], rng=0)
    rng = np.random.default_rng(0)
    return net, rng.uniform(0, 1, (n, 10)), rng.integers(4, size=n)


@pytest.fixture
def two_threads():
    threads.set_threads(2)
    yield
    threads.set_threads(None)


def blas_threads():
    """Of NumPy's BLAS; SciPy may bring another one, which has no part in this."""
    numpy_blas = {library.filepath for library in threads._blas()}
    infos = threadpoolctl.threadpool_info()
    counts = [info["num_threads"] for info in infos if info["filepath"] in numpy_blas]
    assert counts
    return counts


@pytest.fixture
def spread_everything(monkeypatch):
    """Small problems too are worth several threads."""
    spread = threads.spread
    monkeypatch.setattr(threads, "spread", lambda *args, least=1: spread(*args))


def test_strict(monkeypatch):
    monkeypatch.setenv("REFMMR_STRICT", "1")
    net, X, y = problem(3)
    with rm.use_backend("numba"):
        rm.distances(net, X, y)
        rm.mmr(net, X, y, **MARGINS)
        rm.mmr_gradient(net, X, y, **MARGINS)
        rm.pgd(net, X, y, 2, eps=0.1, steps=1)
        net.predict(X)
        net.activation_pattern(X)
        rm.fit(net, X, y, "mmr+at", lam=1, gamma=1, eps=0.1, epochs=1, progress=False)
        with pytest.raises(NotImplementedError, match=r"backend numba has no .*hyperplanes.norm"):
            _backend.kernel(hyperplanes.norm)(X, 2)
    rm.certify(net, X, y, 2)


def test_without_strict_the_reference_certifies():
    net, X, y = problem(3)
    expected = rm.certify(net, X, y, 2)
    with rm.use_backend("numba"):
        np.testing.assert_allclose(rm.certify(net, X, y, 2).lower, expected.lower, rtol=1e-12)


def test_environment_of_a_process():
    code = """
import sys
import refmmr as rm
from refmmr import _backend
print("numba" in sys.modules, rm.get_backend(), "numba" in sys.modules)
print("refmmr.reference.mmr.mmr_gradient" in _backend._twins["numba"])
"""
    assert python(code, REFMMR_BACKEND="numba") == ["False", "numba", "True", "True"]


def test_pickled_kernels_run_the_twin(monkeypatch):
    monkeypatch.setenv("REFMMR_STRICT", "1")
    again = pickle.loads(pickle.dumps(_kernels.mmr_gradient))
    net, X, y = pickle.loads(pickle.dumps(problem(3)))
    with rm.use_backend("numba"):
        value, _ = again(net, X, y, 2, 0.5, 1.5, 3, 4)
    expected, _ = rm.mmr_gradient(net, X, y, 2, **MARGINS, k_b=3, k_d=4)
    assert abs(value - expected) < 1e-12


# ------------------------------------------------------------------------------------- processes

PROBLEM = """
import numpy as np
import refmmr as rm
from refmmr import _backend, _kernels

net = rm.Network.mlp([10, 20, 15, 4], rng=0)
rng = np.random.default_rng(0)
X, y = rng.uniform(0, 1, (40, 10)), rng.integers(4, size=40)

def flat(result):
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in flat(part)]
    return [np.asarray(result)]

def check(found, expected):
    for array, other in zip(flat(found), flat(expected), strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-9, atol=1e-9)

with rm.use_backend("numpy"):
    distances = rm.distances(net, X, y, 2)
    gradient = rm.mmr_gradient(net, X, y, 2, gamma_b=0.5, gamma_d=1.5)
"""


def test_joblib_workers_follow_the_environment():
    code = (
        PROBLEM
        + """
from joblib import Parallel, delayed
from refmmr.backends import threads
from refmmr.reference import hyperplanes

with Parallel(n_jobs=2) as parallel:
    for found in parallel([delayed(rm.distances)(net, X, y, 2)] * 4):
        check(found, distances)
    job = delayed(rm.mmr_gradient)(net, X, y, 2, gamma_b=0.5, gamma_d=1.5)
    for found in parallel([job] * 4):
        check(found, gradient)
    for found in parallel([delayed(_kernels.distances)(net, X, y, 2)] * 2):  # a kernel
        check(found, distances)
    print(*parallel([delayed(rm.get_backend)()] * 2))
    # joblib shares the cores out to its workers.
    print(max(parallel([delayed(threads.get_threads)()] * 2)) <= max(1, threads.get_threads() // 2))
"""
    )
    names = "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        found = python(code, REFMMR_BACKEND="numba", REFMMR_STRICT="1")
    finally:
        os.environ.update(kept)
    assert found == ["numba", "numba", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_threads_of_its_own():
    code = (
        PROBLEM
        + """
import multiprocessing
import warnings
from refmmr.backends import threads
from refmmr.reference import hyperplanes

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads, from Python 3.12

def work(queue=None):
    check(rm.distances(net, X, y, 2), distances)
    check(rm.mmr_gradient(net, X, y, 2, gamma_b=0.5, gamma_d=1.5), gradient)
    if queue:
        queue.put(rm.get_backend())

rm.set_backend("numba")
threads.set_threads(3)
spread = threads.spread
threads.spread = lambda *args, least=1: spread(*args)  # small problems are worth threads, too
work()
fork = multiprocessing.get_context("fork")
queue = fork.Queue()
children = [fork.Process(target=work, args=(queue,)) for _ in range(2)]
for child in children:
    child.start()
work()
print(*(queue.get(timeout=60) for _ in children))
for child in children:
    child.join(60)
    print(child.exitcode)
work()
"""
    )
    assert python(code, REFMMR_STRICT="1") == ["numba", "numba", "0", "0"]


# --------------------------------------------------------------------------------------- threads


@pytest.mark.usefixtures("two_threads", "spread_everything")
def test_joblib_threads_at_once(monkeypatch):
    """Four callers, two threads each; BLAS has as many threads afterwards as before."""
    monkeypatch.setenv("REFMMR_STRICT", "1")
    net, X, y = problem()
    image_net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    images, labels = np.random.default_rng(0).uniform(0, 1, (20, 1, 8, 8)), np.arange(20) % 3
    jobs = [
        lambda: rm.distances(net, X, y, 2),
        lambda: rm.mmr_gradient(net, X, y, 1, **MARGINS)[1][0],
        lambda: rm.mmr_gradient(image_net, images, labels, 2, **MARGINS)[1][0],
        lambda: [rm.pgd(net, X, y, 2, eps=0.3, steps=5)],
        lambda: [rm.pgd(image_net, images, labels, 2, eps=0.3, steps=3), net(X)],
    ]
    expected = [job() for job in jobs]

    def work(i):
        with rm.use_backend("numba"):
            return jobs[i]()

    with threadpoolctl.threadpool_limits(2):
        before = blas_threads()
        calls = [i for _ in range(6) for i in range(len(jobs))]
        parallel = joblib.Parallel(n_jobs=4, backend="threading")
        found = parallel(joblib.delayed(work)(i) for i in calls)
        assert set(before) == {2}
        assert blas_threads() == before
    for i, arrays in zip(calls, found, strict=True):
        for array, other in zip(arrays, expected[i], strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_blas_has_one_thread_meanwhile(count):
    threads.set_threads(count)
    seen = []
    try:
        with threadpoolctl.threadpool_limits(2):
            threads.spread(lambda start, stop: seen.append(blas_threads()), 3)
            assert set(blas_threads()) == {2}
    finally:
        threads.set_threads(None)
    assert [set(counts) for counts in seen] == [{1}] * count


@pytest.mark.usefixtures("two_threads")
def test_an_error_waits_for_the_other_threads():
    """BLAS gets its threads back after the last of them is done, not before."""
    released, after = threading.Event(), []

    def work(start, stop):
        if start == 0:
            threading.Timer(0.1, released.set).start()
            raise ZeroDivisionError
        assert released.wait(10)
        after.append(blas_threads())

    with threadpoolctl.threadpool_limits(2), pytest.raises(ZeroDivisionError):
        threads.spread(work, 2)
    assert [set(counts) for counts in after] == [{1}]


def test_errors_of_several_threads_wait_for_all():
    threads.set_threads(3)
    released, after = threading.Event(), []

    def work(start, stop):
        if start < 2:
            if start == 1:
                threading.Timer(0.1, released.set).start()
            raise ZeroDivisionError
        assert released.wait(10)
        after.append(blas_threads())

    try:
        with threadpoolctl.threadpool_limits(2), pytest.raises(ZeroDivisionError):
            threads.spread(work, 3)
    finally:
        threads.set_threads(None)
    assert [set(counts) for counts in after] == [{1}]
