"""Batches, threads and memory: the Numba twins on whatever arrays a user has, of any length."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr import _kernels
from refmmr.backends import threads
from refmmr.reference import adam
from refmmr.reference.mmr import Regularizer

pytest.importorskip("numba", reason="the numba backend needs numba")


def conv(rng, n_out, n_in, *kernel, **options):
    filters = rng.standard_normal((n_out, n_in, *kernel)) / np.sqrt(n_in * np.prod(kernel))
    return rm.Conv2d(filters, rng.standard_normal(n_out) / 4, **options)


def with_dense(layers, input_shape, sizes):
    shape = input_shape
    for layer in layers:
        shape = layer.output_shape(shape)
    dense = rm.Network.mlp([int(np.prod(shape)), *sizes], rng=1).layers
    return rm.Network([*layers, rm.Flatten(), *dense], input_shape)


def biased(net):
    """The same network with random biases, as after a training.

    Without them all hyperplanes meet in 0, a vertex of the unit box: whether the box touches one is
    up to rounding.
    """
    rng = np.random.default_rng(3)
    return net.with_parameters([(W, rng.uniform(-0.5, 0.5, b.shape)) for W, b in net.parameters])


def zoo():
    rng = np.random.default_rng(0)
    three = [
        conv(rng, 3, 2, 2, 3, stride=(1, 2), padding=((1, 0), (2, 1))),
        conv(rng, 2, 3, 3, 1, stride=(2, 1), padding="same"),
        conv(rng, 4, 2, 2, 2, padding=1),
    ]
    gaps = [
        conv(rng, 2, 1, 1, 2, stride=3, padding=1),
        conv(rng, 2, 2, 2, 1, padding=((3, 2), (2, 4))),
    ]
    nets = {
        "affine": rm.Network.mlp([5, 4], rng=0),
        "one hidden layer": rm.Network.mlp([9, 20, 5], rng=0),
        "deep": rm.Network.mlp([6, 12, 9, 11, 3], rng=0),
        "one class": rm.Network.mlp([3, 4, 1], rng=0),
        "flattened": rm.Network(
            [rm.Flatten(), *rm.Network.mlp([12, 8, 3], rng=0).layers], (3, 2, 2)
        ),
        "conv": with_dense([conv(rng, 4, 1, 3, 2, stride=2, padding=1)], (1, 6, 5), [3]),
        "two convs": with_dense(
            [conv(rng, 3, 2, 3, 3, padding="same"), conv(rng, 4, 3, 2, 3, stride=2)],
            (2, 6, 7),
            [6, 3],
        ),
        # Strides longer than the kernel, and windows outside the image.
        "gaps": with_dense(gaps, (1, 7, 8), [3]),
        "three convs": with_dense(three, (2, 6, 7), [3]),
        "three convs, no dense layer": rm.Network([*three, rm.Flatten()], (2, 4, 3)),
    }
    return {name: biased(net) for name, net in nets.items()}


ZOO = zoo()
SIZES = [1, 7, 64, 131]  # 131 are more than two blocks
GAMMAS = {"gamma_b": 0.3, "gamma_d": 1.5}
TERMS = Regularizer(2, 0.5, 0.3, 1.5, 4, 1), Regularizer(np.inf, 2.0, 0.1, 0.2, 3, 1)
CALLS = {
    "logits": lambda net, X, y: net(X),
    "pattern": lambda net, X, y: net.activation_pattern(X),
    "mmr": lambda net, X, y: rm.mmr(net, X, y, 2, **GAMMAS, k_b=max(1, net.n_hidden)),
    "distances, p=1": lambda net, X, y: rm.distances(net, X, y, 1),
    "distances, p=2, box": lambda net, X, y: rm.distances(net, X, y, 2, box=(0, 1)),
    "distances, p=inf, box": lambda net, X, y: rm.distances(net, X, y, np.inf, box=(0, 1)),
    "mmr_gradient, p=1": lambda net, X, y: rm.mmr_gradient(net, X, y, 1, **GAMMAS),
    "mmr_gradient, p=2": lambda net, X, y: rm.mmr_gradient(net, X, y, 2, **GAMMAS),
    "mmr_gradient, p=inf": lambda net, X, y: rm.mmr_gradient(net, X, y, np.inf, **GAMMAS),
    "objective, plain": lambda net, X, y: _kernels.objective_gradient(net, X, y),
    "objective, p=2": lambda net, X, y: _kernels.objective_gradient(net, X, y, TERMS[:1]),
    "objective, two norms": lambda net, X, y: _kernels.objective_gradient(net, X, y, TERMS),
    "margin_gradients": lambda net, X, y: _kernels.margin_gradients(net, X, y, rivals(net, y)),
    "pgd": lambda net, X, y: rm.pgd(net, X, y, 2, eps=0.3, steps=5),
    "pgd, restarts": lambda net, X, y: rm.pgd(net, X, y, 1, eps=1, steps=3, restarts=2, box=None),
}


def rivals(net, y):
    """All classes but y, (n, K - 1)."""
    others = np.arange(net.n_classes - 1)[None]
    return others + (others >= y[:, None])


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setenv("REFMMR_STRICT", "1")


@pytest.fixture(params=[1, 3])
def thread_count(request, monkeypatch):
    """Run on this number of threads, also where the work is not worth them."""
    spread = threads.spread
    monkeypatch.setattr(threads, "spread", lambda *args, least=1: spread(*args))
    threads.set_threads(request.param)
    yield request.param
    threads.set_threads(None)


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


def inputs(net, n):
    rng = np.random.default_rng(n)
    X = rng.uniform(0, 1, (n, *net.input_shape))
    X[0] = np.round(X[0])  # in a vertex of the box
    return X, rng.integers(net.n_classes, size=n)


def attacks_one_class(net, call):
    names = "pgd", "pgd, restarts", "margin_gradients"
    return net.n_classes == 1 and call in [CALLS[name] for name in names]


def flat(result):
    """The arrays of a result."""
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in flat(part)]
    return [np.asarray(result)]


def on_numba(call, *args):
    with rm.use_backend("numba"):
        return flat(call(*args))


def assert_close(found, expected, rtol=1e-10):
    """Equal up to a share of the largest number of an array."""
    for array, other in zip(found, expected, strict=True):
        assert array.shape == other.shape
        finite = np.abs(other[np.isfinite(other)])
        assert_allclose(array, other, rtol=rtol, atol=rtol * finite.max(initial=1e-3))


@pytest.fixture(scope="module")
def expected():
    """What the reference gives, computed once."""
    known = {}

    def get(name, call, n):
        if (name, call, n) not in known:
            known[name, call, n] = flat(call(ZOO[name], *inputs(ZOO[name], n)))
        return known[name, call, n]

    return get


@pytest.mark.parametrize("name", ZOO)
def test_batches_of_any_size_on_any_number_of_threads(name, call, thread_count, expected):
    net = ZOO[name]
    if attacks_one_class(net, call):
        pytest.skip("one class cannot be attacked")
    for n in SIZES:
        X, y = inputs(net, n)
        found = on_numba(call, net, X, y)
        assert_close(found, expected(name, call, n))
        # The same bits again, and not in the same memory.
        again = on_numba(call, net, X, y)
        for array, other in zip(found, again, strict=True):
            assert array.tobytes() == other.tobytes()
            assert not np.shares_memory(array, other)


def arrangements(array):
    """The same numbers in other arrangements in memory."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    readonly = array.copy()
    readonly.flags.writeable = False
    return [
        np.asfortranarray(array),
        wide[..., ::2],
        np.ascontiguousarray(array[::-1])[::-1],
        readonly,
    ]


@pytest.mark.parametrize("name", ["affine", "deep", "two convs"])
def test_arrays_of_any_arrangement(name, call):
    net = ZOO[name]
    X, y = inputs(net, 9)
    found = on_numba(call, net, X, y)
    for inputs_again in arrangements(X):
        for labels in (y, np.repeat(y, 2)[::2], y.astype(np.int8)):
            again = on_numba(call, net, inputs_again, labels)
            for array, other in zip(again, found, strict=True):
                assert_array_equal(array, other)


@pytest.mark.parametrize("name", ["deep", "two convs"])
@pytest.mark.parametrize("arrangement", range(4))
def test_weights_of_any_arrangement(name, call, arrangement):
    """Users' networks copy their weights, but a training's may be anything."""
    net = ZOO[name]
    X, y = inputs(net, 9)
    found = on_numba(call, net, X, y)
    arranged = net.astype(np.float64)
    for layer in arranged.affine_layers:
        object.__setattr__(layer, "W", arrangements(layer.W)[arrangement])
        object.__setattr__(layer, "b", arrangements(layer.b)[arrangement])
    for array, other in zip(on_numba(call, arranged, X, y), found, strict=True):
        assert_array_equal(array, other)


@pytest.mark.parametrize("name", ZOO)
def test_arguments_stay_as_they_are(name, call):
    net = ZOO[name].astype(np.float64)
    if attacks_one_class(net, call):
        pytest.skip("one class cannot be attacked")
    X, y = inputs(net, 5)
    given = [X, y, *(array for pair in net.parameters for array in pair)]
    before = [array.copy() for array in given]
    found = on_numba(call, net, X, y)
    for array, other in zip(given, before, strict=True):
        assert array.tobytes() == other.tobytes()
        for result in found:
            assert not np.shares_memory(result, array)


def test_start_and_box_of_an_attack_stay_as_they_are():
    net = ZOO["deep"]
    X, y = inputs(net, 5)
    start, box = X.copy(), (np.zeros(6), np.ones(6))
    before = [array.tobytes() for array in (X, start, *box)]
    with rm.use_backend("numba"):
        for last in (False, True):
            Z = _kernels.pgd(net, X, y, 2, 0.3, 3, 0.1, box, start, last)
            assert not np.shares_memory(Z, start)
            assert not np.array_equal(Z, start)
    assert [array.tobytes() for array in (X, start, *box)] == before


def test_results_are_not_the_memory_of_the_next_call(call):
    net = ZOO["two convs"]
    first, second = inputs(net, 9), inputs(net, 7)
    found = on_numba(call, net, *first)
    kept = [array.tobytes() for array in found]
    on_numba(call, net, *second)
    assert [array.tobytes() for array in found] == kept


@pytest.fixture(scope="module")
def of_large():
    """What the reference gives at inputs of single precision, computed once, in double."""
    known = {}

    def get(net, call, n):
        if (id(net), call) not in known:
            X, y = inputs(net, n)
            known[id(net), call] = flat(call(net, X.astype(np.float32).astype(np.float64), y))
        return known[id(net), call]

    return get


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("net", "n"),
    [
        (biased(rm.Network.mlp([300, 250, 220, 120, 10], rng=0)), 40),
        (biased(rm.Network.lenet_small((1, 20, 20), 10, rng=0)), 3),
    ],
    ids=["dense", "convolutional"],
)
def test_networks_larger_than_the_cache(net, n, dtype, call, of_large):
    """Rows come in several groups of samples, positions and hyperplanes."""
    expected = of_large(net, call, n)
    net = net.astype(dtype)
    X, y = inputs(net, n)
    X = X.astype(np.float32).astype(dtype)
    if call is CALLS["pgd, restarts"]:  # ties of gradients' entries are other ones in float32
        expected = flat(call(net, X, y))
    # The masks of float32 are those of float64: no unit is that near to 0.
    assert_array_equal(net.activation_pattern(X), net.astype(float).activation_pattern(X))
    assert_close(on_numba(call, net, X, y), expected, 1e-10 if dtype == np.float64 else 2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adam_on_several_threads(thread_count, dtype):
    rng = np.random.default_rng(0)
    shape = 3, 2**16 + 1
    start = [[rng.uniform(0.1, 1, shape).astype(dtype)] for _ in range(4)]
    exact = [[array.astype(np.float64) for array in arrays] for arrays in start]
    adam.update(*exact, 0.01)
    found = [[array.copy() for array in arrays] for arrays in start]
    with rm.use_backend("numba"):
        _kernels.adam_update(*found, 0.01)
    for arrays, others in zip(found, exact, strict=True):
        assert_allclose(arrays[0], others[0], rtol=8 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("arrangement", range(3))
def test_adam_on_arrays_of_any_arrangement(arrangement):
    rng = np.random.default_rng(0)
    start = [[rng.uniform(0.1, 1, (4, 6))] for _ in range(4)]
    expected = [[array.copy() for array in arrays] for arrays in start]
    adam.update(*expected, 0.01)
    found = [[arrangements(array)[arrangement] for array in arrays] for arrays in start]
    with rm.use_backend("numba"):
        _kernels.adam_update(*found, 0.01)
    assert_close(flat(found), flat(expected), 1e-15)


# ---------------------------------------------------------------------------------- threads.py


def test_number_of_threads(monkeypatch):
    names = "REFMMR_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert threads.get_threads() >= 1
    for count, name in enumerate(reversed(names), start=5):
        monkeypatch.setenv(name, str(count))
        assert threads.get_threads() == count
    monkeypatch.setenv("REFMMR_NUM_THREADS", "3,2")
    assert threads.get_threads() == 3
    for nonsense in ("", "0", "-1", "many"):
        monkeypatch.setenv("REFMMR_NUM_THREADS", nonsense)
        assert threads.get_threads() == 6
    threads.set_threads(2)
    try:
        assert threads.get_threads() == 2
    finally:
        threads.set_threads(None)
    assert threads.get_threads() == 6


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True, np.inf])
def test_impossible_numbers_of_threads(n):
    with pytest.raises(
        ValueError, match="n: expected a number of threads, 1 or more, or None, got"
    ):
        threads.set_threads(n)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("n", "least"), [(1, 1), (7, 1), (7, 3), (20, 8), (3, 100)])
def test_work_is_spread_over_all_samples(count, n, least):
    threads.set_threads(count)
    try:
        runs = []
        threads.spread(
            lambda start, stop, more: runs.append((start, stop, more)), n, "x", least=least
        )
    finally:
        threads.set_threads(None)
    assert len(runs) <= count
    runs.sort()
    assert [run[2] for run in runs] == ["x"] * len(runs)
    ends = [0, *(stop for _, stop, _ in runs)]
    assert [start for start, _, _ in runs] == ends[:-1]
    assert ends[-1] == n
    assert len(runs) == 1 or min(stop - start for start, stop, _ in runs) >= least


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_in_any_thread_is_an_error(bad):
    """And BLAS has as many threads as before."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = threadpoolctl.threadpool_info()

    def work(start, stop):
        if start <= bad < stop:
            raise ZeroDivisionError(f"at {bad}")

    threads.set_threads(3)
    try:
        with pytest.raises(ZeroDivisionError, match=f"at {bad}"):
            threads.spread(work, 3)
        done = []
        threads.spread(lambda start, stop: done.append(start), 3)
    finally:
        threads.set_threads(None)
    assert sorted(done) == [0, 1, 2]
    assert threadpoolctl.threadpool_info() == before
