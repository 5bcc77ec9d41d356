"""The stand-in for CuPy refuses what CuPy would refuse, or would silently do wrong."""

import sys

import numpy as np
import pytest

import refmmr as rm
from refmmr import _backend

CODE = """
extern "C" __global__ void scale(i64 threads, const real *x, real *y, int from, real factor) {
    i64 t = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= threads) return;
    y[t] = factor * x[t + from];
}
extern "C" __global__ void too_far(i64 threads, real *y) {
    i64 t = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    y[t] = 1;
}
"""


@pytest.fixture(scope="module")
def device(standin):
    return standin.module()


@pytest.fixture(scope="module")
def kernels(device):
    code = "typedef long long i64;\ntypedef REAL real;\n" + CODE
    return device.RawModule(code=code, options=("-DREAL=double",))


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, host: a + host,
        lambda a, host: host + a,
        lambda a, host: np.maximum(a, host),
        lambda a, host: host @ a,
        lambda a, host: np.concatenate([a, host]),
        lambda a, host: np.where(a > 0, host, 0),
        lambda a, host: a.__iadd__(host),
        lambda a, host: host.__iadd__(a),
        lambda a, host: a.__setitem__(0, host[0:1]),
        lambda a, host: a[host.astype(int)],
        lambda a, host: a[[0, 1]],
        lambda a, host: np.asarray(a),
        lambda a, host: np.array([a, a]),
        lambda a, host: float(np.linalg.norm(a)),
        lambda a, host: np.add.reduce(a),
        lambda a, host: np.add(a, a, where=True),
        lambda a, host: np.argsort(a, order=None),
        lambda a, host: range(a[0]),
    ],
)
def test_hidden_copies_and_strangers_are_refused(device, mix):
    with pytest.raises(TypeError):
        mix(device.asarray([1.0, 2.0]), np.array([1.0, 2.0]))


def test_what_cupy_does_not_have(device):
    a = device.asarray([1.0, 2.0])
    with pytest.raises(AttributeError):
        a.tostring()
    with pytest.raises(AttributeError):
        device.ndindex(2)


def test_assignments_that_collide_are_refused(device):
    a = device.zeros(3)
    with pytest.raises(AssertionError, match="undefined"):
        a[device.asarray([1, 1])] = device.asarray([1.0, 2.0])


def test_like_numpy_where_it_may(device):
    a = device.asarray([[1.0, 2.0], [3.0, 4.0]])
    assert isinstance(a.sum(), device.ndarray)
    assert float(np.sqrt(a * np.float64(4)).sum()) == pytest.approx(2 * (3 + 2**0.5 + 3**0.5))
    np.testing.assert_array_equal(device.asnumpy(a.T @ a), [[10, 14], [14, 20]])
    assert np.isnan(device.asnumpy(device.empty(2))).all()


def test_kernels_run(device, kernels):
    x, y = device.asarray(np.arange(301.0)), device.zeros(300)
    kernels.get_function("scale")((3,), (128,), (np.int64(300), x, y, np.int32(1), np.float64(2)))
    np.testing.assert_array_equal(device.asnumpy(y), 2 * np.arange(1, 301))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({2: lambda device: device.zeros(300, np.float32)}, "expected float64, got float32"),
        ({3: lambda device: np.int64(1)}, "expected int32, got int64"),
        ({4: lambda device: 2.0}, "without a type"),
        ({1: lambda device: np.zeros(301)}, "expected a device array"),
        ({1: lambda device: device.zeros((301, 2))[:, 0]}, "not contiguous"),
    ],
)
def test_kernels_are_given_what_they_declare(device, kernels, change, message):
    args = [np.int64(300), device.zeros(301), device.zeros(300), np.int32(1), np.float64(2)]
    for i, other in change.items():
        args[i] = other(device)
    with pytest.raises(AssertionError, match=message):
        kernels.get_function("scale")((3,), (128,), tuple(args))


def test_kernels_may_not_write_outside(device, kernels):
    with pytest.raises(AssertionError, match="written where it must not be"):
        kernels.get_function("too_far")((1,), (128,), (np.int64(100), device.zeros(100)))


def test_what_kernels_read_outside_is_not_a_number(device, kernels):
    y = device.zeros(300)
    args = (np.int64(300), device.zeros(300), y, np.int32(1), np.float64(2))
    kernels.get_function("scale")((3,), (128,), args)
    assert np.flatnonzero(np.isnan(device.asnumpy(y))).tolist() == [299]


def test_the_backend_leaves_nothing_behind(standin, request):
    # Another module's fixture must not be active here.
    assert "cupy" not in _backend._twins
    assert "cupy" not in sys.modules or sys.modules["cupy"].__spec__.origin is not None
    net = rm.Network.mlp([2, 3, 2], rng=0)
    assert isinstance(rm.distances(net, [[0.0, 0.0]], [0]).boundary, np.ndarray)
