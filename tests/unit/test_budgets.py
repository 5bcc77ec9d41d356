"""Budgets of certificates: deadlines are met, and memory is bounded, with the bounds kept."""

import time

import numpy as np
import pytest
from helpers import random_biases

import refmmr as rm
from refmmr.certify.bounds import _region_search, _subproblems, linear, search


@pytest.fixture
def cpu_clock(monkeypatch):
    """Deadlines in seconds of this process, so that other processes do not count."""
    monkeypatch.setattr(time, "monotonic", time.process_time)


@pytest.mark.usefixtures("cpu_clock")
@pytest.mark.parametrize("method", ["lp", "bab", "search", "mip"])
def test_a_deadline_is_met_within_a_second(method):
    """Without it CROWN's radius alone takes seconds on this network in NumPy."""
    net = rm.Network.lenet_small((1, 28, 28), 10, rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (1, 1, 28, 28))
    with rm.use_backend("numpy"):
        begin = time.process_time()
        found = rm.certify(net, X, None, p=np.inf, method=method, max_seconds=1)
        spent = time.process_time() - begin
    assert spent < 2
    assert 0 <= found.lower[0] <= found.upper[0]


def test_evaluations_that_would_end_too_late_are_not_begun(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def find(eps, samples):
        calls.append(now[0])
        now[0] += 3
        return eps

    in_time = linear._until(10, find)
    values = [in_time(np.ones(2), np.arange(2))[0] for _ in range(5)]
    assert calls == [0, 3, 6]
    assert values == [1, 1, 1, -np.inf, -np.inf]


@pytest.mark.parametrize("method", ["search", "bab"])
def test_without_any_time_the_bound_of_the_region_is_returned(method):
    net = rm.Network.mlp([6, 20, 3], rng=0)
    X = np.random.default_rng(0).uniform(size=(3, 6))
    region = rm.certify(net, X, None, 2).lower
    assert (region > 0).all()
    found = rm.certify(net, X, None, 2, method=method, max_seconds=1e-9, progress=False)
    assert (found.lower >= region * (1 - 1e-12)).all()
    assert (found.lower <= found.upper).all()


def test_what_is_proved_by_the_deadline_is_kept():
    """The bracket ends where time is up, at a radius that was certified."""
    net = random_biases(3, 8, 8, 2)
    X = np.random.default_rng(0).uniform(0, 1, (1, 3))
    y = net.predict(X)
    box = np.zeros(3), np.ones(3)
    whole = linear.crown_bounds(net, X, y, 2, box).lower[0]
    late = linear.crown_bounds(net, X, y, 2, box, deadline=time.monotonic()).lower[0]
    some = linear.crown_bounds(net, X, y, 2, box, deadline=time.monotonic() + 0.002).lower[0]
    assert late == 0 < whole
    assert some <= whole


@pytest.mark.usefixtures("short_attack")
@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_queues_are_bounded_and_what_is_left_out_bounds_the_result(p, monkeypatch):
    net = random_biases(3, 10, 10, 3)
    X = np.random.default_rng(1).uniform(0, 1, (2, 3))
    y = net.predict(X)
    exact = rm.certify(net, X, y, p, method="search")
    assert exact.exact.all()
    largest = []
    region_step, step = _region_search.RegionSearch.step, _subproblems.Subproblems.step

    def watched(original):
        def run(self):
            original(self)
            largest.append(self._bytes)
            entries = [part if hasattr(part, "kind") else part[2] for part in self._queue]
            if entries:
                assert self._bytes == sum(entry.nbytes for entry in entries)

        return run

    monkeypatch.setattr(_region_search.RegionSearch, "step", watched(region_step))
    monkeypatch.setattr(_subproblems.Subproblems, "step", watched(step))
    for limit in (10**4, 1):
        monkeypatch.setattr(_region_search, "MAX_BYTES", limit)
        monkeypatch.setattr(_subproblems, "MAX_BYTES", limit)
        found = rm.certify(net, X, y, p, method="search")
        assert (found.lower <= exact.upper).all()
        assert (found.upper >= exact.lower).all()
        assert (found.lower > 0).all()
    assert not found.exact.all()  # the smallest budget ends some searches early
    assert len(largest) > 0


def test_a_search_that_cannot_end_ends_where_its_memory_does(monkeypatch):
    """The only example is a tie in a corner of the box, where all hyperplanes meet."""
    monkeypatch.setattr(_region_search, "MAX_BYTES", 10**5)
    monkeypatch.setattr(_subproblems, "MAX_BYTES", 10**5)
    # A tie that is recognised ends a search sooner.
    monkeypatch.setattr(_subproblems.Subproblems, "_is_tie", lambda *arguments: False)
    net = rm.Network.mlp([3, 10, 10, 2], rng=0)
    x = np.array([[0.6, 0.2, 0.1]])
    box = np.zeros(3), np.ones(3)
    (state,) = search.point_searches(net, x, net.predict(x), np.inf, box)
    state.run(max_seconds=100)
    assert state.done
    assert 0.599 < state.lower <= 0.6 + 1e-9
