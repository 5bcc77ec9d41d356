"""Arrays in, arrays of the same kind out; between, nothing is copied to the host."""

import importlib

import numpy as np
import pytest

import refmmr as rm
from refmmr import _backend, _kernels, _validate, backends
from refmmr.reference import mmr

MARGINS = {"gamma_b": 0.5, "gamma_d": 1.5, "k_b": 9}
CALLS = {
    "logits": lambda net, X, y: net(X),
    "predict": lambda net, X, y: net.predict(X),
    "activation_pattern": lambda net, X, y: net.activation_pattern(X),
    "distances": lambda net, X, y: rm.distances(net, X, y, p=1),
    "distances in a box": lambda net, X, y: rm.distances(net, X, y, p=2, box=(0, 1)),
    "mmr": lambda net, X, y: rm.mmr(net, X, y, p=2, **MARGINS),
    "mmr_gradient": lambda net, X, y: rm.mmr_gradient(net, X, y, p=np.inf, **MARGINS),
    "objective_gradient": lambda net, X, y: _kernels.objective_gradient(net, X, y).gradients,
    "pgd": lambda net, X, y: rm.pgd(net, X, y, p=1, eps=0.5, steps=3),
    "pgd from random starts": lambda net, X, y: rm.pgd(
        net, X, y, p=np.inf, eps=0.1, steps=2, restarts=3, keep="last"
    ),
}


def arrays(value):
    """All arrays in a result, and its numbers."""
    if isinstance(value, (tuple, list)):
        return [array for part in value for array in arrays(part)]
    return [value]


@pytest.fixture(scope="module")
def problem():
    net = rm.Network.lenet_small((1, 6, 7), 3, rng=0)
    rng = np.random.default_rng(0)
    return net, rng.random((5, 1, 6, 7)), rng.integers(3, size=5)


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


def test_host_in_host_out(cupy, problem, call):
    expected = call(*problem)
    with rm.use_backend("cupy"):
        found = call(*problem)
    assert isinstance(found, type(expected))
    for ours, theirs in zip(arrays(found), arrays(expected), strict=True):
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_device_in_device_out(cupy, problem, call):
    net, X, y = problem
    expected = call(net, X, y)
    with rm.use_backend("cupy"):
        found = call(net, cupy.asarray(X), cupy.asarray(y))
    assert isinstance(found, type(expected)) or isinstance(expected, np.ndarray)
    for ours, theirs in zip(arrays(found), arrays(expected), strict=True):
        assert isinstance(ours, cupy.ndarray if isinstance(theirs, np.ndarray) else float)
        np.testing.assert_allclose(_validate.on_host(ours), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["logits", "distances", "mmr", "mmr_gradient", "objective_gradient", "pgd"]
)
def test_only_single_numbers_go_to_the_host(cupy, standin, problem, name):
    if cupy.ndarray is not standin.ndarray:
        pytest.skip("only the stand-in counts what goes to the host")
    net, X, y = problem
    with rm.use_backend("cupy"):
        there = net, cupy.asarray(X), cupy.asarray(y)
        standin.transfers.clear()
        CALLS[name](*there)
    assert max(standin.transfers, default=0) <= 1


@pytest.mark.parametrize("norms", [(), (2,), (1, np.inf)])
def test_the_objective_of_a_training_stays_on_the_device(cupy, standin, problem, norms):
    from refmmr.backends import _cupy

    if cupy.ndarray is not standin.ndarray:
        pytest.skip("only the stand-in counts what goes to the host")
    net, X, y = problem
    terms = [mmr.Regularizer(p, 0.5, 0.5, 1.5, 9, 3) for p in norms]
    expected = _kernels.objective_gradient(net, X, y, terms)
    with rm.use_backend("cupy"):
        there = _cupy.device_network(net), cupy.asarray(X), cupy.asarray(y)
        standin.transfers.clear()
        found = _kernels.objective_gradient(*there, terms)
        assert standin.transfers == []
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert isinstance(ours, cupy.ndarray)
        assert float(ours) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("full", [5, 2, 1])
def test_a_full_device_halves_the_chunks(cupy, problem, monkeypatch, full):
    from refmmr.backends._cupy import objective

    part, sizes = objective._part, []

    def limited(net, X, *args):
        sizes.append(len(X))
        if len(X) >= full:
            raise cupy.cuda.memory.OutOfMemoryError(1, 1)
        return part(net, X, *args)

    monkeypatch.setattr(objective, "_part", limited)
    net, X, y = problem
    with rm.use_backend("cupy"):
        if full == 1:
            with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
                rm.mmr_gradient(net, X, y, p=2, **MARGINS)
            return
        value, _ = rm.mmr_gradient(net, X, y, p=2, **MARGINS)
    assert sizes == {5: [5, 3, 2], 2: [5, 3, 2, 1, 1, 1, 1, 1]}[full]
    monkeypatch.undo()
    assert value == pytest.approx(rm.mmr_gradient(net, X, y, p=2, **MARGINS)[0], rel=1e-9)


def test_a_network_on_the_device(cupy, problem):
    from refmmr.backends import _cupy

    net, X, y = problem
    there = _cupy.device_network(net)
    assert all(isinstance(a, cupy.ndarray) for pair in there.parameters for a in pair)
    with rm.use_backend("cupy"):
        value, gradients = rm.mmr_gradient(there, X, y, p=2, **MARGINS)
    expected, _ = rm.mmr_gradient(net, X, y, p=2, **MARGINS)
    assert value == pytest.approx(expected, rel=1e-9)
    assert all(isinstance(a, cupy.ndarray) for pair in gradients for a in pair)
    back = _cupy.host_network(there)
    for ours, theirs in zip(back.parameters, net.parameters, strict=True):
        for array, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, other)


def test_networks_on_the_device_share_their_weights(cupy, problem):
    from refmmr.backends import _cupy

    net, *_ = problem
    there = _cupy.device_network(net)
    again = _cupy.device_network(there)
    assert _cupy.device_network(there) is again
    there.parameters[-1][1][...] = 7.0
    np.testing.assert_array_equal(cupy.asnumpy(again.parameters[-1][1]), 7)
    assert not (net.parameters[-1][1] == 7).any()


def test_weights_may_lie_column_by_column(cupy, problem):
    net, X, y = problem
    turned = [(np.asfortranarray(W), b) for W, b in net.parameters]
    expected = rm.distances(net, X, y).decision
    with rm.use_backend("cupy"):
        found = rm.distances(net.with_parameters(turned), X[:, :, ::-1][:, :, ::-1], y).decision
        there = rm.distances(net, cupy.asarray(np.asfortranarray(X)), y).decision
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(cupy.asnumpy(there), expected, rtol=1e-9)


def test_dtypes_are_widened_together(cupy, problem):
    net, X, y = problem
    with rm.use_backend("cupy"):
        d = rm.distances(net.astype(np.float32), X, y)
        assert d.boundary.dtype == np.float64
        d = rm.distances(net, X.astype(np.float32), y)
        assert d.boundary.dtype == np.float64
        d = rm.distances(net.astype(np.float32), X.astype(np.float32), y)
        assert d.boundary.dtype == np.float32


def test_other_backends_say_so(cupy, problem):
    net, X, y = problem
    with pytest.raises(TypeError, match=r'X: expected an array on the host.*set_backend\("cupy"\)'):
        rm.distances(net, cupy.asarray(X), y)
    with pytest.raises(TypeError, match=r"y: expected an array on the host"):
        rm.distances(net, X, cupy.asarray(y))


def test_some_things_are_done_on_the_host_alone(cupy, problem):
    net, X, _ = problem
    with rm.use_backend("cupy"):
        with pytest.raises(TypeError, match=r"x: expected an array on the host.*\.get\(\)"):
            rm.linear_region(net, cupy.asarray(X[0]))
        with pytest.raises(TypeError, match="W: expected an array on the host"):
            rm.Linear(cupy.asarray([[1.0]]), [0])


def test_tensor_float_32_is_warned_about(cupy, monkeypatch):
    from refmmr.backends import _cupy

    monkeypatch.setenv("CUPY_TF32", "1")
    with pytest.warns(UserWarning, match="CUPY_TF32: matrix products in float32 keep 10 bits"):
        importlib.reload(_cupy)


def test_kernels_take_scalars_of_numpy(cupy):
    from refmmr.backends._cupy.kernels import launch

    array = cupy.asarray(np.arange(6.0).reshape(2, 3))
    masked = cupy.empty((2, 3), "f8")
    launch("mask_weights", array.dtype, 6, array[:1].reshape(1, 3), array, masked, np.int64(1), 3)
    np.testing.assert_array_equal(cupy.asnumpy(masked), [[0, 1, 2], [0, 1, 2]])


def test_bad_arrays_on_the_device(cupy, problem):
    net, X, y = problem
    with rm.use_backend("cupy"):
        bad = X.copy()
        bad[2, 0, 1, 3] = np.nan
        with pytest.raises(
            ValueError, match=r"X: expected finite .* got nan at index \(2, 0, 1, 3\)"
        ):
            net(cupy.asarray(bad))
        with pytest.raises(ValueError, match=r"X: expected shape \(n, 1, 6, 7\)"):
            net(cupy.asarray(X[0]))
        with pytest.raises(ValueError, match="y: expected classes 0 to 2, got 3"):
            rm.distances(net, X, cupy.asarray(np.where(y == 2, 3, y)))
        with pytest.raises(
            ValueError, match=r"sample 0 with values from .* for a box from 0 to 0\.5"
        ):
            rm.pgd(net, cupy.asarray(X), y, p=2, eps=0.1, box=(0, 0.5))
        with pytest.raises(TypeError, match="y: expected integer class indices, got dtype float64"):
            rm.distances(net, X, cupy.asarray(y * 1.0))


def test_integers_are_inputs_too(cupy, problem):
    net, X, _ = problem
    zeros = np.zeros(X.shape, int)
    with rm.use_backend("cupy"):
        found = net(cupy.asarray(zeros))
    np.testing.assert_allclose(cupy.asnumpy(found), net(zeros), atol=1e-12)


def test_training_step_on_the_device(cupy, problem):
    """All that `fit` does with a batch, on arrays that stay on the device."""
    from refmmr.backends import _cupy
    from refmmr.reference import adam

    net, X, y = problem
    results = []
    for backend in ("numpy", "cupy"):
        put = _cupy.to_device if backend == "cupy" else np.array
        with rm.use_backend(backend):
            place = _cupy.device_network if backend == "cupy" else _cupy.host_network
            trained = place(net.with_parameters(net.parameters))
            optimiser = adam.Adam(trained.parameters)
            inputs, labels, box = (
                put(X),
                put(y),
                (put(np.zeros(X.shape[1:])), put(np.ones(X.shape[1:]))),
            )
            for _ in range(3):
                Z = _kernels.pgd(trained, inputs, labels, 2, 0.3, 2, 0.2, box, inputs, True)
                gradients = _kernels.objective_gradient(trained, Z, labels).gradients
                _, more = _kernels.mmr_gradient(trained, Z, labels, 2, 0.5, 1.5, 9, 3)
                total = [(a + b, c + d) for (a, c), (b, d) in zip(gradients, more, strict=True)]
                _kernels.adam_update(
                    optimiser.arrays,
                    optimiser.means,
                    optimiser.squares,
                    adam.flat(total),
                    optimiser.next_scale(0.01),
                )
        results.append(_cupy.host_network(trained).parameters)
    for pair, other in zip(*results, strict=True):
        for array, expected in zip(pair, other, strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scheme", ["plain", "mmr+at", "kw"])
def test_fit_trains_on_the_device(cupy, problem, scheme, tmp_path):
    net, X, y = problem
    options = {"p": 2, "eps": 0.2, "lam": 0.5, "gamma": 0.3, "epochs": 2, "batch_size": 2}
    options |= {"pgd_steps": 2, "validation": (X, y), "drop_last": False}
    expected, history = rm.fit(net, X, y, scheme, **options)
    with rm.use_backend("cupy"):
        for there in (X, cupy.asarray(X)):
            file = tmp_path / "checkpoint.npz" if there is X else None
            found, heard = rm.fit(net, there, y, scheme, checkpoint=file, **options)
            for ours, theirs in zip(found.parameters, expected.parameters, strict=True):
                for array, other in zip(ours, theirs, strict=True):
                    assert isinstance(array, np.ndarray)
                    np.testing.assert_allclose(array, other, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(heard["loss"], history["loss"], rtol=1e-6)


# ------------------------------------------------------------------- where there is no twin of cupy

ROBUST = _kernels.robust_loss_gradient


@pytest.fixture
def numba_twin(monkeypatch):
    """The arguments that numba's twin of `ROBUST` is called with."""
    pytest.importorskip("numba", reason='numba is not installed: pip install "refmmr[numba]"')
    with rm.use_backend("numba"):
        twin = _backend._twins["numba"][ROBUST.name]
    calls = []

    def spy(*args):
        calls.append(args)
        return twin(*args)

    monkeypatch.setitem(_backend._twins["numba"], ROBUST.name, spy)
    return calls


@pytest.fixture(params=["not installed", "broken"])
def no_numba(request, monkeypatch):
    """Numba cannot be imported."""
    twins = {name: twins for name, twins in _backend._twins.items() if name != "numba"}
    monkeypatch.setattr(_backend, "_twins", twins)
    if request.param == "not installed":
        monkeypatch.setattr(backends, "problem", lambda name: ImportError("no numba"))
    else:
        monkeypatch.setattr(backends, "problem", lambda name: None)
        monkeypatch.setattr(backends, "load", lambda *args: (_ for _ in ()).throw(ImportError))


def places(cupy, net, X, y):
    """The arguments on the host, the inputs on the device, and all of it there."""
    from refmmr.backends import _cupy

    on_device = cupy.asarray(X), cupy.asarray(y)
    return (net, X, y), (net, *on_device), (_cupy.device_network(net), *on_device)


def check_robust(cupy, problem):
    value, error, gradients = ROBUST(*problem, 2, 0.1)
    for args in places(cupy, *problem):
        with rm.use_backend("cupy"):
            found = ROBUST(*args, 2, 0.1)
        assert found[0] == pytest.approx(value, rel=1e-12)
        assert found[1] == error
        kind = np.ndarray if isinstance(args[1], np.ndarray) else cupy.ndarray
        for pair, expected in zip(found[2], gradients, strict=True):
            for ours, theirs in zip(pair, expected, strict=True):
                assert isinstance(ours, kind)
                np.testing.assert_allclose(_validate.on_host(ours), theirs, rtol=0, atol=1e-12)


def test_the_twin_of_numba_runs_on_the_host(cupy, problem, numba_twin):
    check_robust(cupy, problem)
    assert len(numba_twin) == 3
    for net, X, y, *_ in numba_twin:
        assert all(isinstance(a, np.ndarray) for a in (X, y, *sum(net.parameters, ())))


@pytest.mark.usefixtures("no_numba")
def test_the_reference_runs_on_the_host(cupy, problem):
    check_robust(cupy, problem)
    assert "numba" not in _backend._twins


def test_strict_refuses_to_run_them(cupy, problem, monkeypatch):
    monkeypatch.setenv("REFMMR_STRICT", "1")
    with (
        rm.use_backend("cupy"),
        pytest.raises(NotImplementedError, match=r"backend cupy has no .*robust_loss_gradient"),
    ):
        ROBUST(*problem, 2, 0.1)
