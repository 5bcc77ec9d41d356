"""Many workers: the same answers, nothing lost when one dies, nothing left when all is stopped."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify.evaluation import records, run, workers

SLOW = '''
import os, time
from pathlib import Path
import numpy as np
from refmmr.certify.bounds import Bounds

def slow_bounds(net, X, y, p, box, goal=None):
    """Proves everything, slowly until there is a file "fast"; notes who did which point."""
    folder = Path(__file__).parent
    with open(folder / f"{os.getpid()}.notes", "a") as file:
        print(repr(float(X.ravel()[0])), file=file)
    if not (folder / "fast").exists():
        time.sleep(0.1)
    return Bounds(np.full(len(X), 9.0), np.full(len(X), np.inf), np.full_like(X, np.nan))
'''

RUN = """
import sys
import numpy as np
import refmmr as rm
from refmmr.certify.methods import METHODS, Method

METHODS["slow"] = Method("slow_method", "slow_bounds", batched=False)
if __name__ == "__main__":
    out, n_jobs, dask = sys.argv[1:4]
    net = rm.Network([rm.Linear(np.eye(2), [0.0, -9.0])], 2)
    X = np.linspace(0, 1, 200).reshape(100, 2)
    try:
        rm.robust_error(net, X, np.zeros(100, dtype=int), 2, eps=0.1, methods=["slow"], out=out,
                        n_jobs=int(n_jobs), dask=dask or None)
    except KeyboardInterrupt as stop:
        sys.exit(f"stopped: {stop}")
"""


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(3)
    net = rm.Network.mlp([4, 12, 8, 3], rng=5)
    points = rng.uniform(0, 1, (100, 4))
    return net, points, np.where(rng.random(100) < 0.1, 1, net.predict(points))


@pytest.fixture
def script(tmp_path):
    """A run of a slow method in a process of its own; its workers can import the method."""
    (tmp_path / "slow_method.py").write_text(SLOW)
    (tmp_path / "run.py").write_text(RUN)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def start(n_jobs, dask):
        words = [sys.executable, tmp_path / "run.py", tmp_path / "out.jsonl", n_jobs, dask]
        return subprocess.Popen(
            [*map(str, words)], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    return start


def points_in(path):
    return [row["point"] for row in records.read(path)[1]] if path.exists() else []


def wait_for_points(path, process, n):
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < n + 1):
        time.sleep(0.02)


def strip(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize(
    ("evaluate", "options", "n"),
    [
        (rm.robust_error, {"eps": 0.05}, 100),
        (rm.robustness_curve, {"radii": [0.02, 0.05, 0.1]}, 100),
        (rm.minimal_perturbations, {}, 10),
    ],
)
def test_workers_change_nothing(noisy, tmp_path, monkeypatch, evaluate, options, n):
    net, X, y = noisy
    monkeypatch.setattr(run, "BLOCK", 4)  # several blocks of few points
    arguments = (net, X[:n], y[:n], np.inf)
    methods = ["region", "attack", "ibp", "crown"]
    here = evaluate(*arguments, methods=methods, **options)
    there = evaluate(*arguments, methods=methods, n_jobs=2, out=tmp_path, **options)
    assert strip(here.records) == strip(there.records)
    assert sorted(points_in(tmp_path / records.NAME)) == list(range(n))


def test_workers_follow_the_backend():
    pytest.importorskip("numba")
    with rm.use_backend("numba"), workers.pool(2) as run:
        assert list(run(_backend, None, [0, 1])) == ["numba", "numba"]


def _backend(problem, task):
    return rm.get_backend()


def test_a_large_problem_arrives_whole():
    with workers.pool(2) as run:
        large = np.arange(300_000.0)  # mapped, not copied
        assert set(run(_total, large, range(5))) == {large.sum() + i for i in range(5)}


def _total(problem, task):
    return float(problem.sum()) + task


def test_errors_in_workers_come_through():
    with workers.pool(2) as run, pytest.raises(ArithmeticError, match="task 1"):
        list(run(_fail, None, [1]))


def _fail(problem, task):
    raise ArithmeticError(f"task {task}")


def test_a_dead_process_is_a_clear_error():
    with workers.pool(2) as run, pytest.raises(RuntimeError, match="n_jobs: a worker process died"):
        list(run(_die, None, [1]))


def _die(problem, task):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(script, tmp_path, n_jobs):
    out = tmp_path / "out.jsonl"
    process = script(n_jobs, "")
    wait_for_points(out, process, 5)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    kept = points_in(out)
    assert 5 <= len(kept) < 90, errors
    assert f"stopped: {len(kept)} of 100 points are kept in {out}" in errors
    assert "Traceback" not in errors
    (tmp_path / "fast").touch()
    process = script(n_jobs, "")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    everything = points_in(out)
    assert everything[: len(kept)] == kept
    assert sorted(everything) == list(range(100))


def test_kill_in_the_middle_loses_nothing(script, tmp_path):
    out = tmp_path / "out.jsonl"
    process = script(1, "")
    wait_for_points(out, process, 5)
    process.kill()
    process.communicate()
    assert 5 <= len(points_in(out)) < 90
    (tmp_path / "fast").touch()
    process = script(1, "")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    lines = [line for line in out.read_text().splitlines() if '"point"' in line]
    assert len(lines) == 100
    assert sorted(points_in(out)) == list(range(100))


# ---- Dask


@pytest.fixture
def distributed():
    return pytest.importorskip("dask.distributed")


def test_a_local_cluster_changes_nothing(distributed, noisy):
    methods = ["region", "attack", "crown"]
    here = rm.robust_error(*noisy, 2, eps=0.05, methods=methods)
    there = rm.robust_error(*noisy, 2, eps=0.05, methods=methods, dask="local", n_jobs=2)
    assert strip(here.records) == strip(there.records)


def test_a_killed_worker_of_a_cluster_loses_nothing(distributed, script, tmp_path):
    out = tmp_path / "out.jsonl"
    process = script(2, "local")
    wait_for_points(out, process, 5)
    workers = [int(path.stem) for path in tmp_path.glob("*.notes")]
    assert process.pid not in workers
    assert workers
    assert len(points_in(out)) < 90
    os.kill(workers[0], signal.SIGKILL)
    (tmp_path / "fast").touch()
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    lines = [line for line in out.read_text().splitlines() if '"point"' in line]
    assert len(lines) == 100
    assert sorted(points_in(out)) == list(range(100))


def test_a_cluster_by_its_address(distributed, noisy):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
    ) as cluster:
        settings = {"eps": 0.05, "methods": ["crown", "attack"]}
        there = rm.robust_error(*noisy, 2, dask=cluster.scheduler_address, **settings)
    here = rm.robust_error(*noisy, 2, **settings)
    assert strip(there.records) == strip(here.records)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://here"])
def test_an_address_where_nobody_answers(distributed, noisy, monkeypatch, address):
    monkeypatch.setattr(workers, "CONNECT", 1)
    with pytest.raises(OSError, match="dask: expected the address of a scheduler, none answered"):
        rm.robust_error(*noisy, 2, eps=0.05, dask=address)


def test_dask_that_is_not_installed(noisy, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ImportError, match=r'pip install "refmmr\[cluster\]"'):
        rm.robust_error(*noisy, 2, eps=0.05, dask="local")
