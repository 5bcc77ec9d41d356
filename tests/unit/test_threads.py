"""Several threads certify at the same time, each with solvers of its own."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import random_biases

import refmmr as rm
from refmmr.backends import threads


@pytest.mark.usefixtures("short_attack")
@pytest.mark.parametrize("method", ["lp", "bab", "mip", "search"])
def test_threads_certify_what_one_does(method):
    net = random_biases(3, 8, 8, 2)
    X = np.random.default_rng(0).uniform(0, 1, (8, 3))
    y = net.predict(X)

    def one(i):
        found = rm.certify(net, X[i : i + 1], y[i : i + 1], p=np.inf, method=method)
        return found.lower[0], found.upper[0], found.adversarial.tobytes()

    alone = [one(i) for i in range(len(X))]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(len(X)))) == alone


def test_interrupted_submission_leaves_no_thread_at_the_barrier(monkeypatch):
    barriers = []

    class Interrupted:
        """Ctrl-C when all other threads are started, and this one is not."""

        def __enter__(self):
            pass

        def __exit__(self, *_):
            raise KeyboardInterrupt

    def meet(i, barrier):
        barriers.append(barrier)
        barrier.wait()

    with monkeypatch.context() as patch:
        patch.setattr(threads, "_submission", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            threads.together(meet, 2)
    try:
        assert threads._pool(1).submit(int).result(timeout=60) == 0
    finally:
        for barrier in barriers:
            barrier.abort()


@pytest.mark.parametrize("spread", [True, False])
def test_threads_ignore_the_overflows_that_their_caller_ignores(spread):
    def overflow(*_):
        assert np.isinf(np.float64(1e300) * 1e300)

    threads.set_threads(2)
    try:
        with np.errstate(over="ignore"):
            threads.spread(overflow, 2) if spread else threads.together(overflow, 2)
    finally:
        threads.set_threads(None)
