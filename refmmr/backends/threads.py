"""Threads: each works on samples of its own, through BLAS products and compiled kernels.

They are plain Python threads, started at first use: a forked child starts its own, several threads
may use them at once, and none spins while it waits.  While they work BLAS uses one thread in each
of them, so a caller never keeps more than `get_threads` cores busy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from typing import Any

from threadpoolctl import ThreadpoolController

_LIMITS = ("REFMMR_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS")

_count: int | None = None
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def get_threads() -> int:
    """Threads in use.

    The last `set_threads`; else the first set of ``REFMMR_NUM_THREADS``, ``NUMBA_NUM_THREADS`` and
    ``OMP_NUM_THREADS`` (joblib sets the latter two in its workers, so that all of them together do
    not take more than the machine has); else one per core that this process may use.
    """
    if _count is not None:
        return _count
    for name in _LIMITS:
        text = os.environ.get(name, "").split(",")[0].strip()
        if text.isdigit() and int(text) > 0:
            return int(text)
    return _cores()


def set_threads(n: int | None) -> None:
    """Use n threads; None for the default, see `get_threads`."""
    global _count
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"n: expected a number of threads, 1 or more, or None, got {n!r}")
    _count = n


def spread(work: Callable[..., Any], n: int, *args: Any, least: int = 1) -> None:
    """Call ``work(start, stop, *args)`` on consecutive parts of ``range(n)``, a thread each.

    BLAS uses one thread in each of them.  `least` is the shortest part that is worth a thread.
    """
    parts = max(1, min(get_threads(), n // least))
    ends = [n * i // parts for i in range(parts + 1)]
    with one_blas_thread():
        if parts == 1:
            # Work that is too small for two threads is too small for two threads of BLAS.
            work(0, n, *args)
            return
        # This thread would only wait, so it does the first part.
        others = [
            _submit(parts - 1, work, start, stop, *args) for start, stop in pairwise(ends[1:])
        ]
        try:
            work(ends[0], ends[1], *args)
        finally:
            wait(others)
        for other in others:
            other.result()


def together(work: Callable[[int, threading.Barrier], None], count: int) -> None:
    """Call ``work(i, barrier)`` for i = 0, ..., count - 1 at the same time, a thread each.

    They may wait for each other at the barrier.  BLAS uses one thread in each of them.
    """
    barrier = threading.Barrier(count)

    def run(i: int) -> None:
        try:
            work(i, barrier)
        except BaseException:
            barrier.abort()  # the others would wait forever
            raise

    with one_blas_thread():
        others: list[Future[None]] = []
        failures: list[BaseException | None] = []
        try:
            # A pool starts its tasks in order, so those of one call must be neighbours: if two
            # calls had some of their threads each, both would wait for the rest.
            with _submission:
                others.extend(_submit(count - 1, run, i) for i in range(1, count))
            run(0)
        except threading.BrokenBarrierError as error:
            failures.append(error)
        except BaseException:
            barrier.abort()  # Ctrl-C before this thread runs: those that do would wait forever
            raise
        finally:
            wait(others)
        failures += [other.exception() for other in others]
        # The one that failed first broke the barrier of the others.
        for failure in sorted(filter(None, failures), key=_is_consequence):
            raise failure


def _submit(size: int, work: Callable[..., Any], *args: Any) -> Future[Any]:
    """Start work in a pool, in the context of this thread: `numpy.errstate` holds there, too."""
    return _pool(size).submit(copy_context().run, work, *args)


def _is_consequence(error: BaseException) -> bool:
    return isinstance(error, threading.BrokenBarrierError)


_submission = threading.Lock()
_lock = threading.Lock()
_users = 0
_former: list[int] = []


def _after_fork() -> None:
    """A child has none of the threads: free the lock and restore the threads of BLAS."""
    global _lock, _submission, _users
    _lock, _submission = threading.Lock(), threading.Lock()
    if _users:
        _users = 0
        _restore_blas()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _restore_blas() -> None:
    for blas, count in zip(_blas(), _former, strict=True):
        blas.set_num_threads(count)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS uses one thread; the last of nested or concurrent users restores the former number."""
    global _users, _former
    with _lock:
        _users += 1
        if _users == 1:
            _former = [blas.num_threads for blas in _blas()]
            for blas in _blas():
                blas.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _restore_blas()


@cache
def _blas() -> list[Any]:
    """The BLAS libraries that NumPy has loaded."""
    controllers = ThreadpoolController().lib_controllers
    return [library for library in controllers if library.user_api == "blas"]


def _pool(size: int) -> ThreadPoolExecutor:
    # A forked child has none of its parent's threads.
    key = (os.getpid(), size)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(size, thread_name_prefix="refmmr")
    return _pools[key]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
