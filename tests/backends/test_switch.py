"""Who sees which backend, and what is said where a backend cannot run."""

import asyncio
import contextvars
import copy
import importlib.machinery
import pickle
import re
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner

import refmmr as rm
from refmmr import _backend, backends
from refmmr.cli import main
from refmmr.reference import distances as reference

NET = rm.Network.mlp([2, 3, 2], rng=0)
X, Y = np.full((1, 2), 0.5), np.array([0])
RUN = _backend.kernel(reference.distances)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """As in a new process where no package is installed but a backend named "fake" is there."""
    monkeypatch.setattr(_backend, "_twins", {"numpy": {}, "fake": {}})
    monkeypatch.setattr(_backend, "_process", None)
    monkeypatch.delenv("REFMMR_BACKEND", raising=False)
    monkeypatch.delenv("REFMMR_STRICT", raising=False)
    for name in ("numba", "cupy"):
        monkeypatch.setitem(sys.modules, name, None)


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


# --------------------------------------------------------------------------- threads and contexts


def test_set_backend_is_seen_by_all_threads():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(rm.get_backend).result() == "numpy"
        rm.set_backend("fake")
        assert pool.submit(rm.get_backend).result() == "fake"
        assert in_a_thread(rm.get_backend) == "fake"
        pool.submit(rm.set_backend, "numpy").result()
        assert rm.get_backend() == "numpy"


def test_use_backend_is_not_seen_by_threads_started_inside():
    with rm.use_backend("fake"):
        assert in_a_thread(rm.get_backend) == "numpy"
    rm.set_backend("fake")
    with rm.use_backend("numpy"):
        assert in_a_thread(rm.get_backend) == "fake"


def test_use_backend_in_a_thread_is_its_own():
    inside, done = threading.Event(), threading.Event()
    seen = []

    def work():
        with rm.use_backend("fake"):
            inside.set()
            done.wait(10)
            seen.append(rm.get_backend())
        seen.append(rm.get_backend())

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    assert rm.get_backend() == "numpy"
    rm.set_backend("numpy")  # nor does this reach into the block
    done.set()
    thread.join()
    assert seen == ["fake", "numpy"]


def test_a_worker_of_a_pool_forgets_the_block():
    def work():
        with rm.use_backend("fake"):
            return rm.get_backend()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == "fake"
        assert pool.submit(rm.get_backend).result() == "numpy"


def test_tasks_inherit_the_block_they_are_made_in():
    async def job():
        async def child(name):
            seen = [rm.get_backend()]
            with rm.use_backend(name):
                await asyncio.sleep(0.01)
                seen.append(rm.get_backend())
            await asyncio.sleep(0.01)
            return [*seen, rm.get_backend()]

        with rm.use_backend("fake"):
            inside = [asyncio.create_task(child(name)) for name in ("numpy", "fake")]
        outside = asyncio.create_task(child("fake"))
        assert rm.get_backend() == "numpy"
        return await asyncio.gather(*inside, outside)

    assert asyncio.run(job()) == [
        ["fake", "numpy", "fake"],
        ["fake", "fake", "fake"],
        ["numpy", "fake", "numpy"],
    ]


def test_a_copied_context_remembers_the_block():
    with rm.use_backend("fake"):
        context = contextvars.copy_context()
    assert rm.get_backend() == "numpy"
    assert context.run(rm.get_backend) == "fake"
    assert in_a_thread(lambda: context.run(rm.get_backend)) == "fake"


def test_set_backend_inside_a_block_counts_after_it():
    with rm.use_backend("fake"):
        rm.set_backend("numpy")
        assert rm.get_backend() == "fake"
    assert rm.get_backend() == "numpy"
    with rm.use_backend("numpy"):
        rm.set_backend("fake")
        assert rm.get_backend() == "numpy"
    assert rm.get_backend() == "fake"


def fail_inside(name, error):
    with rm.use_backend(name):
        raise error


def test_errors_leave_blocks_in_order():
    with rm.use_backend("fake"):
        with pytest.raises(KeyError):
            fail_inside("numpy", KeyError)
        assert rm.get_backend() == "fake"
        with pytest.raises(ValueError, match="abacus"):
            fail_inside("abacus", AssertionError("entered"))
        assert rm.get_backend() == "fake"
    assert rm.get_backend() == "numpy"


def test_use_backend_as_a_decorator():
    @rm.use_backend("fake")
    def work():
        return rm.get_backend()

    assert [work(), work(), rm.get_backend()] == ["fake", "fake", "numpy"]


def test_the_environment_counts_where_nothing_is_chosen(monkeypatch):
    monkeypatch.setenv("REFMMR_BACKEND", "fake")
    assert [rm.get_backend(), in_a_thread(rm.get_backend)] == ["fake", "fake"]
    with rm.use_backend("numpy"):
        assert [rm.get_backend(), in_a_thread(rm.get_backend)] == ["numpy", "fake"]
    rm.set_backend("numpy")
    assert rm.get_backend() == "numpy"


def test_an_empty_environment_is_none(monkeypatch):
    monkeypatch.setenv("REFMMR_BACKEND", "")
    assert rm.get_backend() == "numpy"


# --------------------------------------------------------------------------------------- kernels


def test_strict_refuses_to_run_the_reference_instead(monkeypatch):
    expected = rm.distances(NET, X, Y)
    with rm.use_backend("fake"):
        np.testing.assert_array_equal(rm.distances(NET, X, Y).boundary, expected.boundary)
        monkeypatch.setenv("REFMMR_STRICT", "1")
        with pytest.raises(
            NotImplementedError, match=r"backend fake has no .*distances\.distances"
        ):
            rm.distances(NET, X, Y)
        monkeypatch.setenv("REFMMR_STRICT", "0")
        assert rm.distances(NET, X, Y).boundary.shape == (1, 3)
    monkeypatch.setenv("REFMMR_STRICT", "1")
    np.testing.assert_array_equal(rm.distances(NET, X, Y).boundary, expected.boundary)


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda k: pickle.loads(pickle.dumps(k))]
)
def test_copies_of_kernels_run_the_current_twin(make):
    again = make(RUN)
    _backend.implements("fake", reference.distances)(lambda *args: "twin")
    assert again.reference is reference.distances
    assert again.__doc__ == reference.distances.__doc__
    np.testing.assert_array_equal(again(NET, X, Y, 2).boundary, rm.distances(NET, X, Y).boundary)
    with rm.use_backend("fake"):
        assert again(NET, X, Y, 2) == "twin"
        assert make(RUN)(NET, X, Y, 2) == "twin"


@pytest.mark.parametrize("pickled", [False, True])
def test_numba_stands_in_for_a_backend_without_a_twin(pickled, monkeypatch):
    _backend.implements("numba", reference.distances)(lambda *args: "numba")
    declared, undeclared = _backend.kernel(reference.distances, "numba"), RUN
    if pickled:
        declared, undeclared = pickle.loads(pickle.dumps((declared, undeclared)))
    assert declared.twins == ("numba",)
    with rm.use_backend("fake"):
        assert declared(NET, X, Y, 2) == "numba"
        assert undeclared(NET, X, Y, 2).boundary.shape == (1, 3)
        _backend.implements("fake", reference.distances)(lambda *args: "fake")
        assert declared(NET, X, Y, 2) == "fake"
    assert declared(NET, X, Y, 2).boundary.shape == (1, 3)


def test_a_declared_twin_that_is_not_there():
    """Numba is not installed, or does not register what is declared: the reference runs."""
    declared = _backend.kernel(reference.distances, "numba", "fake")
    for twins in ({}, {"numba": {}}):
        _backend._twins.update(twins)
        for name in ("fake", *twins):
            with rm.use_backend(name):
                assert declared(NET, X, Y, 2).boundary.shape == (1, 3)


def test_copies_of_networks():
    net = rm.Network.lenet_small((1, 6, 6), 3, rng=0).astype(np.float32)
    again = pickle.loads(pickle.dumps(net))
    points = np.random.default_rng(0).uniform(0, 1, (3, 1, 6, 6)).astype(np.float32)
    assert repr(again) == repr(net)
    assert again.dtype == net.dtype
    np.testing.assert_array_equal(again(points), net(points))


# ------------------------------------------------------------------------ what is not there


def test_names_in_any_case():
    with rm.use_backend("Fake"):
        assert rm.get_backend() == "fake"
    rm.set_backend("NumPy")
    assert rm.get_backend() == "numpy"


def test_unknown_names():
    for name in ("abacus", "", None, 3, ["numpy"], "num py", " numpy"):
        with pytest.raises(
            ValueError, match="backend: expected one of numpy, fake, numba, cupy, got"
        ):
            rm.set_backend(name)
        with pytest.raises(ValueError, match="backend: expected one of"), rm.use_backend(name):
            pytest.fail("entered")
    assert rm.get_backend() == "numpy"


@pytest.mark.parametrize("name", ["numba", "cupy"])
def test_a_package_that_is_not_installed(name, monkeypatch):
    message = rf'{name} needs the package {name}.*: pip install "refmmr\[{name}\]"'
    with pytest.raises(ImportError, match=f"^backend: {message}"):
        rm.set_backend(name)
    with pytest.raises(ImportError, match=f"^backend: {message}"), rm.use_backend(name):
        pytest.fail("entered")
    assert rm.get_backend() == "numpy"
    assert rm.available_backends() == ("numpy", "fake")
    monkeypatch.setenv("REFMMR_BACKEND", name)
    with pytest.raises(ImportError, match=f"^REFMMR_BACKEND: {message}"):
        rm.get_backend()
    with pytest.raises(ImportError, match=f"^REFMMR_BACKEND: {message}"):
        rm.distances(NET, X, Y)


def fake_package(monkeypatch, name, **contents):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def test_cupy_without_a_device(monkeypatch):
    cuda = types.SimpleNamespace(is_available=lambda: False)
    fake_package(monkeypatch, "cupy", cuda=cuda)
    assert "cupy" not in rm.available_backends()
    with pytest.raises(RuntimeError, match=r"^backend: cupy needs a CUDA device"):
        rm.set_backend("cupy")
    monkeypatch.setenv("REFMMR_BACKEND", "cupy")
    with pytest.raises(RuntimeError, match=r"^REFMMR_BACKEND: cupy needs a CUDA device"):
        rm.get_backend()


def test_available_backends_loads_none(monkeypatch):
    fake_package(monkeypatch, "numba")
    monkeypatch.setattr(backends, "load", lambda *args: pytest.fail("loaded"))
    assert rm.available_backends() == ("numpy", "fake", "numba")


# ------------------------------------------------------------------------------------- loading

SOURCE = """
import time
from refmmr._backend import implements
from refmmr.reference import distances, mmr

implements("slow", mmr.mmr)(lambda *args: "twin")
{action}
implements("slow", distances.distances)(lambda *args: "twin")
"""


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """Make a backend named "slow" that does something between its two twins."""

    def make(action):
        (tmp_path / "refmmr_tests_slow.py").write_text(SOURCE.format(action=action))
        modules = {"slow": backends.Module("refmmr_tests_slow", "numpy", "slow")}
        monkeypatch.setattr(backends, "MODULES", modules)
        monkeypatch.syspath_prepend(tmp_path)

    yield make
    sys.modules.pop("refmmr_tests_slow", None)


def test_a_thread_waits_for_a_backend_that_another_one_is_loading(slow, monkeypatch):
    monkeypatch.setenv("REFMMR_STRICT", "1")
    slow("time.sleep(0.3)")

    def work():
        with rm.use_backend("slow"):
            return rm.distances(NET, X, Y)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(work), pool.submit(work)]
        end = time.monotonic() + 10
        while "refmmr_tests_slow" not in sys.modules and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)  # now it has the first of its twins
        jobs.append(pool.submit(work))
        assert [job.result() for job in jobs] == ["twin"] * 3


def test_a_backend_that_fails_to_load_is_not_there(slow):
    slow("raise OSError('no such library')")
    for _ in range(2):
        with pytest.raises(OSError, match="no such library"):
            rm.set_backend("slow")
    assert rm.get_backend() == "numpy"


def test_an_interrupted_load_loses_no_twin(tmp_path, monkeypatch):
    package = tmp_path / "refmmr_tests_stopped"
    package.mkdir()
    twin = (
        "from refmmr._backend import implements\n"
        "from refmmr.reference import {module}\n"
        '@implements("stopped", {module}.{name})\n'
        "def twin(*args): return 'twin'\n"
    )
    (package / "first.py").write_text(twin.format(module="distances", name="distances"))
    (package / "second.py").write_text(
        "import pathlib\n"
        "mark = pathlib.Path(__file__).with_name('interrupted')\n"
        "if not mark.exists():\n"
        "    mark.touch()\n"
        "    raise KeyboardInterrupt\n" + twin.format(module="mmr", name="mmr")
    )
    (package / "__init__.py").write_text("from refmmr_tests_stopped import first, second\n")
    modules = {"stopped": backends.Module("refmmr_tests_stopped", "numpy", "stopped")}
    monkeypatch.setattr(backends, "MODULES", modules)
    monkeypatch.setattr(_backend, "_twins", {"numpy": {}})
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(KeyboardInterrupt):
            rm.set_backend("stopped")
        with rm.use_backend("stopped"):
            assert len(_backend._twins["stopped"]) == 2
            assert rm.distances(NET, X, Y) == "twin"
    finally:
        for name in [*sys.modules]:
            if name.startswith("refmmr_tests_stopped"):
                del sys.modules[name]


# ------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize("words", [["--backend", "{}", "info"], ["info", "--backend", "{}"]])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("abacus", "backend: expected one of numpy, fake, numba, cupy, got 'abacus'"),
        ("numba", 'backend: numba needs the package numba, .*pip install "refmmr\\[numba\\]"'),
        ("cupy", 'backend: cupy needs the package cupy, .*pip install "refmmr\\[cupy\\]"'),
    ],
)
def test_the_command_line_says_it_in_one_line(words, name, message):
    result = CliRunner().invoke(main, [word.format(name) for word in words])
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1
    assert re.match(f"Error: {message}", result.output)


@pytest.mark.parametrize("name", ["abacus", "numba", "cupy"])
def test_the_command_line_checks_the_environment(name, monkeypatch):
    monkeypatch.setenv("REFMMR_BACKEND", name)
    result = CliRunner().invoke(main, ["info"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: REFMMR_BACKEND: ")
    assert len(result.output.strip().splitlines()) == 1


def test_the_command_line_without_a_device(monkeypatch):
    cuda = types.SimpleNamespace(is_available=lambda: False)
    fake_package(monkeypatch, "cupy", cuda=cuda)
    result = CliRunner().invoke(main, ["--backend", "cupy", "info"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: backend: cupy needs a CUDA device")


def test_a_process_with_an_unknown_backend_fails_at_the_first_call():
    code = "import refmmr as rm; print('imported'); rm.Network.mlp([2, 2], rng=0)([[0, 0]])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"REFMMR_BACKEND": "abacus", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout == "imported\n"
    assert run.stderr.splitlines()[-1].startswith("ValueError: REFMMR_BACKEND: expected one of")
