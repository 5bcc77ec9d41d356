"""Workers: one function on many blocks of points, in this process, in others or on a cluster.

Results are returned as they are finished, in any order.  Workers receive everything with the task
and write no files: only the parent keeps records.
"""

from __future__ import annotations

import importlib
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import islice
from typing import Any
from uuid import uuid4

import numpy as np

from refmmr._backend import get_backend, use_backend

Work = Callable[[Any, Any], Any]
"""A function of a module: (problem, task) -> result."""
RunTasks = Callable[[Work, Any, Sequence[Any]], Iterator[Any]]
"""Runs a function on all tasks of a problem: (work, problem, tasks) -> results, in any order."""

CONNECT = 10
"""Seconds to wait for a scheduler, which replies within milliseconds on a local network."""
WORKERS = 60
"""Seconds to wait for the first worker: a process that imports NumPy and SciPy from a slow disk."""
RETRIES = 3
"""Number of attempts on other workers, after a worker died with the task."""
AHEAD = 4
"""Number of tasks submitted per worker: enough to keep it busy, few enough to bound the memory."""


@contextmanager
def pool(n_jobs: int = 1, dask: str | None = None) -> Iterator[RunTasks]:
    """A context with a function that runs tasks on workers and yields their results.

    Parameters
    ----------
    n_jobs : int
        Processes; -1 is one per core, 1 this process alone.
    dask : str, optional
        Address of a Dask scheduler, or "local" for a cluster on this machine of n_jobs workers (one
        per core if n_jobs is 1 or -1).
    """
    if dask is not None:
        with _cluster(dask, n_jobs) as run:
            yield run
    elif n_jobs == 1:
        yield _here
    else:
        yield partial(_processes, n_jobs)


def _here(work: Work, problem: Any, tasks: Sequence[Any]) -> Iterator[Any]:
    for task in tasks:
        yield work(problem, task)


def _processes(n_jobs: int, work: Work, problem: Any, tasks: Sequence[Any]) -> Iterator[Any]:
    """Run tasks by joblib, which maps a large problem into the memory of its processes."""
    import joblib

    packed, token = _pack(problem), uuid4().hex
    backend = get_backend()
    with joblib.parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        parallel = joblib.Parallel(
            return_as="generator_unordered", batch_size=1, pre_dispatch="2 * n_jobs"
        )
        calls = (joblib.delayed(_process)(work, backend, token, packed, task) for task in tasks)
        try:
            with closing(parallel(calls)) as results:
                yield from results
        except joblib.externals.loky.process_executor.BrokenProcessPool as error:
            raise RuntimeError(
                "n_jobs: a worker process died (killed, or out of memory)"
            ) from error


def _process(work: Work, backend: str, token: str, packed: np.ndarray, task: Any) -> Any:
    """A task in a process of its own, which leaves Ctrl-C to the parent."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return _worker(work, backend, token, packed, task)


def _worker(work: Work, backend: str, token: str, packed: np.ndarray, task: Any) -> Any:
    from refmmr.backends import threads

    # There can be as many workers as cores: none of them starts threads of its own.
    threads.set_threads(1)
    with use_backend(backend), threads.one_blas_thread():
        return work(_unpack(token, packed), task)


def _pack(problem: Any) -> np.ndarray:
    return np.frombuffer(pickle.dumps(problem, protocol=5), dtype=np.uint8)


_last: dict[str, Any] = {}


def _unpack(token: str, packed: np.ndarray) -> Any:
    """The problem, unpacked once in each process; the last one is kept."""
    problem = _last.get(token)
    if problem is None:
        problem = pickle.loads(packed.data)
        _last.clear()
        _last[token] = problem
    return problem


@contextmanager
def _cluster(address: str, n_jobs: int) -> Iterator[RunTasks]:
    """Workers of a Dask cluster.

    Tasks are futures, not calls of joblib's Dask backend: then the scheduler gives the task of a
    worker that died to another one, sends the problem again if the workers that held it died, and
    runs nothing more after an interruption.
    """
    import joblib

    try:
        distributed = importlib.import_module("dask.distributed")
    except ImportError as error:
        raise ImportError(
            f'dask: needs the package dask.distributed: pip install "refmmr[cluster]" ({error})'
        ) from error
    with ExitStack() as stack:
        scheduler: Any = address
        if address == "local":
            workers = n_jobs if n_jobs > 1 else joblib.cpu_count()
            scheduler = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",
                )
            )
        try:
            client = stack.enter_context(
                distributed.Client(scheduler, timeout=CONNECT, set_as_default=False)
            )
            client.wait_for_workers(1, timeout=WORKERS)
        except TimeoutError as error:
            raise OSError(
                f"dask: expected a cluster with workers at {address!r}, none answered ({error})"
            ) from error
        except (OSError, ValueError) as error:
            raise OSError(
                f"dask: expected the address of a scheduler, none answered at {address!r} within "
                f"{CONNECT} s ({error})"
            ) from error
        yield partial(_futures, distributed, client)


def _futures(
    distributed: Any, client: Any, work: Work, problem: Any, tasks: Sequence[Any]
) -> Iterator[Any]:
    packed, token, backend = _pack(problem), uuid4().hex, get_backend()
    waiting = iter(tasks)
    ahead = AHEAD * max(1, sum(client.nthreads().values()))
    with warnings.catch_warnings():
        # Dask warns of a large argument; it is sent once to each worker.
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        shared = client.submit(_same, packed, pure=False, retries=RETRIES)

    def submit(task: Any) -> Any:
        return client.submit(
            _worker, work, backend, token, shared, task, pure=False, retries=RETRIES
        )

    running = {submit(task) for task in islice(waiting, ahead)}
    try:
        done = distributed.as_completed(running, loop=client.loop)
        for future in done:
            result = future.result()
            running.discard(future)
            for task in islice(waiting, 1):
                following = submit(task)
                running.add(following)
                done.add(following)
            yield result
    finally:
        client.cancel([*running, shared], force=True)


def _same(packed: np.ndarray) -> np.ndarray:
    return packed
