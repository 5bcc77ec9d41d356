"""An attack that is run again is a CUDA graph; it is the same attack."""

import numpy as np
import pytest

import refmmr as rm
from refmmr import _kernels


@pytest.fixture
def attacks(cupy):
    """The attacks whose buffers are kept, by their shapes and numbers; none so far."""
    from refmmr.backends._cupy import pgd

    pgd._attacks.clear()
    return pgd._attacks


def problem(seed):
    rng = np.random.default_rng(seed)
    net = rm.Network.lenet_small((2, 7, 6), 3, rng=seed)
    X = rng.random((9, 2, 7, 6))
    return net, X, rng.integers(3, size=9)


def attack(net, X, y, p, keep_last, eps=0.2):
    box = np.zeros(net.input_shape), np.ones(net.input_shape)
    return _kernels.pgd(net, X, y, p, eps, 4, 0.1, box, X, keep_last)


@pytest.mark.parametrize("keep_last", [True, False])
@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_again_with_other_arrays(attacks, p, keep_last):
    for seed in range(4):
        expected = attack(*problem(seed), p, keep_last)
        with rm.use_backend("cupy"):
            found = attack(*problem(seed), p, keep_last)
        np.testing.assert_allclose(found, expected, atol=1e-9)
    (kept,) = attacks.values()
    assert kept.runs == 4
    assert (kept.graph is None) == (p == 1)


def test_without_graphs(cupy, attacks, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("operation not supported")

    with rm.use_backend("cupy"):
        attack(*problem(0), 2, True)
        (kept,) = attacks.values()
        monkeypatch.setattr(type(kept.step[0]), "__call__", refuse)
        kept._capture()
        monkeypatch.undo()
        assert kept.graph is None
        found = attack(*problem(1), 2, True)
    np.testing.assert_allclose(found, attack(*problem(1), 2, True), atol=1e-9)


def test_few_buffers_are_kept(attacks):
    from refmmr.backends._cupy import pgd

    with rm.use_backend("cupy"):
        for eps in (0.1, 0.2, 0.3, 0.2):
            attack(*problem(0), np.inf, True, eps)
    assert [key[3] for key in attacks] == [0.3, 0.2]
    assert len(attacks) == pgd.KEPT


def test_many_samples_are_attacked_in_groups(cupy, attacks, monkeypatch):
    from refmmr.backends._cupy import pgd

    monkeypatch.setattr(pgd, "GROUP", 4)
    expected = attack(*problem(3), 2, False)
    with rm.use_backend("cupy"):
        found = attack(*problem(3), 2, False)
    np.testing.assert_allclose(found, expected, atol=1e-9)
