"""Random networks through PyTorch, safetensors, state dicts and MATLAB files, and back."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from helpers import bits
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy import io as scipy_io

import refmmr as rm
from refmmr import testing
from refmmr.interop.state_dicts import from_state_dict, steps

ANY = st.one_of(testing.networks(), testing.conv_networks())
DTYPES = st.sampled_from([np.float32, np.float64])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason='needs PyTorch: pip install "refmmr[torch]"')


@pytest.fixture(scope="module")
def safetensors():
    return pytest.importorskip("safetensors.numpy", reason="needs safetensors")


def inputs(net, seed):
    return np.random.default_rng(seed).normal(size=(4, *net.input_shape)).astype(net.dtype)


def close(found, expected, dtype):
    """Equal up to the rounding of sums in another order."""
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    return np.abs(found - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.mark.torch
@settings(max_examples=200, deadline=None)
@given(net=ANY, dtype=DTYPES, seed=st.integers(0, 99))
def test_pytorch_there_and_back(torch, net, dtype, seed):
    net = net.astype(dtype)
    module = rm.to_torch(net)
    again = rm.from_torch(module, net.input_shape)
    assert bits(net) == bits(again)
    X = inputs(net, seed)
    with torch.no_grad():
        expected = module(torch.from_numpy(X)).numpy()
    assert expected.dtype == dtype
    assert close(net(X), expected, dtype)
    assert close(again(X), expected, dtype)


@st.composite
def modules(draw, torch):
    """A Sequential of what is read, in an order that PyTorch can run; and its input shape."""
    nn = torch.nn
    torch.manual_seed(draw(st.integers(0, 10**6)))
    relu = nn.ReLU()  # one for all places
    size = st.integers(1, 3)
    channels, height, width = draw(st.tuples(size, st.integers(3, 6), st.integers(3, 6)))
    shape, parts = (channels, height, width), []

    def extras(norm, n):
        """What may stand behind a layer."""
        if draw(st.booleans()):
            parts.append(norm(n, affine=draw(st.booleans())))
        if draw(st.booleans()):
            parts.append(draw(st.sampled_from([nn.Dropout(0.5), nn.Identity()])))
        if draw(st.booleans()):
            parts.append(relu)
        if draw(st.booleans()):
            parts.append(norm(n))

    for _ in range(draw(st.integers(0, 2))):
        if draw(st.booleans()):
            pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
            parts.append(nn.ZeroPad2d(pads))
        padding = draw(st.sampled_from([0, 1, (1, 0), "same", "valid"]))
        strides = [1] if padding == "same" else [1, 2, (2, 1)]
        n = draw(size)
        kernel, stride = draw(st.tuples(size, size)), draw(st.sampled_from(strides))
        parts.append(nn.Conv2d(channels, n, kernel, stride, padding, bias=draw(st.booleans())))
        channels = n
        extras(nn.BatchNorm2d, n)
    parts.append(nn.Flatten())
    features = nn.Sequential(*parts).eval()
    try:
        with torch.no_grad():
            n = features(torch.zeros(1, *shape)).shape[1]
    except RuntimeError:  # an image smaller than the filters
        reject()
    for m in draw(st.lists(st.integers(1, 4), max_size=2)):
        parts.append(nn.Linear(n, m, bias=draw(st.booleans())))
        n = m
        extras(nn.BatchNorm1d, n)
    parts.append(nn.Linear(n, 3))
    cut = draw(st.integers(0, len(parts)))
    module = nn.Sequential(nn.Sequential(*parts[:cut]), *parts[cut:]).double()
    for part in module.modules():
        if hasattr(part, "running_mean"):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.1, 2)
    return module, shape


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*convolution written as a matrix")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # by PyTorch
@settings(max_examples=200, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_modules_of_pytorch_mean_the_same(torch, data, seed):
    module, shape = data.draw(modules(torch))
    net = rm.from_torch(module, shape)
    X = inputs(net, seed).astype(np.float64)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(X)).numpy()
    assert np.abs(net(X) - expected).max() <= 1e-10 * max(1, np.abs(expected).max())


@settings(max_examples=150, deadline=None)
@given(net=ANY, dtype=DTYPES)
def test_safetensors_there_and_back(safetensors, net, dtype):
    net = net.astype(dtype)
    with TemporaryDirectory() as folder:
        path = Path(folder, "net.safetensors")
        rm.save(net, path)
        again = rm.load(path)
    assert bits(net) == bits(again)
    assert repr(net) == repr(again)


def state_dict(net):
    """Weights under the names of the Sequential that the network is."""
    return {
        f"{i}.{name}": array
        for i, (kind, layer, _) in enumerate(steps(net))
        if kind in ("linear", "conv")
        for name, array in (("weight", layer.W), ("bias", layer.b))
    }


@settings(max_examples=150, deadline=None)
@given(net=ANY, data=st.data())
def test_state_dicts_in_any_order(net, data):
    tensors = state_dict(net)
    order = data.draw(st.permutations(list(tensors)))
    convolutions = [layer for layer in net.layers if isinstance(layer, rm.Conv2d)]
    options = {}
    if convolutions:
        options = {
            "stride": [layer.stride for layer in convolutions],
            "padding": [layer.padding for layer in convolutions],
            "input_shape": net.input_shape,
        }
    shuffled = {name: tensors[name] for name in order}
    again = from_state_dict(shuffled, "x", **options, ordered=data.draw(st.booleans()))
    assert bits(net) == bits(again)


@settings(max_examples=100, deadline=None)
@given(net=testing.networks(max_hidden_layers=3), dtype=DTYPES, compressed=st.booleans())
def test_matlab_files_of_dense_networks(net, dtype, compressed):
    net = net.astype(dtype)
    names = [f"fc{i}" for i in range(1, len(net.parameters))] + ["logits"]
    variables = {}
    for name, (W, b) in zip(names, net.parameters, strict=True):
        variables |= {f"{name}/weight": W.T, f"{name}/bias": b[None]}
    with TemporaryDirectory() as folder:
        path = Path(folder, "net.mat")
        scipy_io.savemat(path, variables, do_compression=compressed)
        assert bits(net) == bits(rm.load(path))


@settings(max_examples=100, deadline=None)
@given(net=testing.conv_networks(), dtype=DTYPES, order=st.sampled_from(["NCHW", "NHWC"]))
def test_matlab_files_of_convolutional_networks(net, dtype, order):
    net = net.astype(dtype)
    convolutions = [layer for layer in net.layers if isinstance(layer, rm.Conv2d)]
    n, shape = len(convolutions), net.input_shape
    for layer in convolutions:
        shape = layer.output_shape(shape)
    names = [f"conv{i + 1}" for i in range(n)]
    names += [f"fc{i + 1}" for i in range(len(net.parameters) - n - 1)] + ["logits"]
    variables = {}
    for i, (name, (W, b)) in enumerate(zip(names, net.parameters, strict=True)):
        if i == n and order == "NHWC":
            W = W.reshape(len(W), *shape).transpose(0, 2, 3, 1).reshape(len(W), -1)
        W = W.transpose(2, 3, 1, 0) if W.ndim == 4 else W.T
        variables |= {f"{name}/weight": W, f"{name}/bias": b[None]}
    with TemporaryDirectory() as folder:
        path = Path(folder, "net.mat")
        scipy_io.savemat(path, variables)
        again = rm.load(
            path, input_shape=net.input_shape, flatten=order,
            stride=[layer.stride for layer in convolutions],
            padding=[layer.padding for layer in convolutions],
        )  # fmt: skip
    assert bits(net) == bits(again)
