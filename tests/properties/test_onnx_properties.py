"""ONNX files: onnxruntime agrees with what is written; a mutated file is read or refused."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr import testing
from refmmr.interop import onnx_files

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'refmmr[interop]'")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx.reference import ReferenceEvaluator  # noqa: E402

NETS = testing.networks() | testing.conv_networks()


def written(net, folder):
    onnx_files.write(net, folder / "net.onnx")
    return (folder / "net.onnx").read_bytes()


def run(content, X):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"x": X})[0]


def size_of_sums(net, X):
    """What the logits would be if no term cancelled another: the scale of rounding errors."""
    parameters = [(np.abs(W), np.abs(b)) for W, b in net.parameters]
    return np.abs(net.with_parameters(parameters)(np.abs(X))).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@given(st.data())
def test_onnxruntime_gives_the_same_logits(folder, data):
    net = data.draw(NETS).astype(np.float32)
    X = data.draw(testing.batches(net))[0].astype(np.float32)
    scale = size_of_sums(net, X)
    assert_allclose(run(written(net, folder), X), net(X), rtol=1e-6, atol=1e-6 * scale)


@given(st.data())
def test_onnxruntime_gives_the_same_logits_in_float64(folder, data):
    """Its convolutions are float32 alone, so here are dense networks."""
    net = data.draw(testing.networks())
    X = data.draw(testing.batches(net))[0]
    scale = size_of_sums(net, X)
    assert_allclose(run(written(net, folder), X), net(X), rtol=1e-12, atol=1e-12 * scale)


@settings(max_examples=20)
@given(st.data())
def test_the_reference_of_onnx_gives_the_same_logits_in_float64(folder, data):
    net = data.draw(testing.conv_networks())
    X = data.draw(testing.batches(net))[0]
    logits = ReferenceEvaluator(onnx.load_from_string(written(net, folder))).run(None, {"x": X})[0]
    assert_allclose(logits, net(X), rtol=1e-12, atol=1e-12 * size_of_sums(net, X))


@given(NETS, st.sampled_from([np.float32, np.float64]))
def test_round_trip(folder, net, dtype):
    net = net.astype(dtype)
    content = written(net, folder)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    back = onnx_files.read(folder / "net.onnx")
    assert (back.dtype, back.input_shape) == (dtype, net.input_shape)
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in net.layers]
    for (W, b), (V, c) in zip(net.parameters, back.parameters, strict=True):
        assert_array_equal(W.view(f"u{W.itemsize}"), V.view(f"u{V.itemsize}"))
        assert_array_equal(b.view(f"u{b.itemsize}"), c.view(f"u{c.itemsize}"))


def mutate(content, rng):
    """A few bytes changed, cut, put in or repeated."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        # Most bytes are weights, which say nothing: half of the places are near names.
        letters = [i for i, byte in enumerate(content) if chr(byte).isalpha()] or [0]
        near = int(rng.choice(letters)) + int(rng.integers(-4, 5))
        start = near if rng.random() < 0.5 else int(rng.integers(len(content) + 1))
        start = min(max(start, 0), len(content))
        stop = start + int(rng.integers(1, 9))
        kind = rng.integers(5)
        if kind == 0:
            content[start:stop] = rng.bytes(len(content[start:stop]))
        elif kind == 1:
            del content[start:stop]
        elif kind == 2:
            content[start:start] = rng.bytes(stop - start)
        elif kind == 3:
            content[start:start] = content[start : start + 4 * (stop - start)]
        elif start < len(content):
            content[start] ^= 1 << int(rng.integers(8))
    return bytes(content)


def seeds(folder):
    """Files with all that a reader has to look at."""
    rng = np.random.default_rng(0)
    for net in (rm.Network.mlp([3, 4, 2], rng=0), rm.Network.lenet_small((1, 4, 4), 2, rng=0)):
        yield written(net.astype(np.float32), folder)
    make, number = onnx.helper.make_node, onnx.numpy_helper.from_array
    arrays = {"m": rng.random((2, 1, 1)), "F": rng.normal(size=(2, 2, 2, 2)), "v": rng.random(2),
              "W": rng.normal(size=(18, 3)), "b": rng.normal(size=3)}  # fmt: skip
    nodes = [
        make("Sub", ["x", "m"], ["x0"]),
        make("Div", ["x0", "m"], ["x1"], name="div"),
        make("Conv", ["x1", "F"], ["x2"], pads=[1, 0, 0, 0], name="conv"),
        make("BatchNormalization", ["x2", "v", "v", "v", "v"], ["x3"], epsilon=0.1),
        make("Relu", ["x3"], ["x4"]),
        make("Dropout", ["x4"], ["x5"]),
        make("Shape", ["x5"], ["s"]),
        make("Constant", [], ["zero"], value_int=0),
        make("Gather", ["s", "zero"], ["s0"]),
        make("Unsqueeze", ["s0", "axes"], ["s1"]),
        make("Constant", [], ["rest"], value_ints=[-1]),
        make("Concat", ["s1", "rest"], ["s2"], axis=0),
        make("Reshape", ["x5", "s2"], ["x6"]),
        make("MatMul", ["x6", "W"], ["x7"]),
        make("Add", ["x7", "b"], ["x8"]),
        make("Softmax", ["x8"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    initializers = [number(np.float32(array), name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, ("n", 2, 3, 4))], [value("y", 1, None)],
        [*initializers, number(np.int64([0]), "axes")],
    )  # fmt: skip
    graph.initializer[0].ClearField("raw_data")
    graph.initializer[0].float_data.extend([0.5, 0.25])
    opset = onnx.helper.make_opsetid("", 17)
    yield onnx.helper.make_model(graph, opset_imports=[opset]).SerializeToString()
    yield piecewise_linear()


def piecewise_linear():
    """A file with pooling, a skip connection, and operators on shapes and indices."""
    make, number = onnx.helper.make_node, onnx.numpy_helper.from_array
    rng = np.random.default_rng(1)
    nodes = [
        make("Transpose", ["x"], ["x0"], perm=[0, 3, 1, 2]),
        make("Conv", ["x0", "F"], ["x1"], pads=[1, 1, 1, 1], dilations=[1, 1], group=1),
        make("LeakyRelu", ["x1"], ["x2"], alpha=0.25),
        make("MaxPool", ["x2"], ["x3"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        make("Clip", ["x3", "low", "high"], ["x4"]),
        make("Add", ["x3", "x4"], ["x5"]),
        make("Split", ["x5"], ["a", "b"], axis=1),
        make("Max", ["a", "b"], ["x6"]),
        make("Pad", ["x6", "pads"], ["x7"]),
        make("Slice", ["x7", "one", "nine", "two"], ["x8"]),
        make("Gather", ["x8", "one"], ["x9"], axis=3),
        make("Concat", ["x9", "x9"], ["x10"], axis=1),
        make("AveragePool", ["x10"], ["x11"], kernel_shape=[2, 1], count_include_pad=1),
        make("Unsqueeze", ["x11", "two"], ["x12"]),
        make("ReduceMean", ["x12"], ["x13"], axes=[2], keepdims=0),
        make("Flatten", ["x13"], ["x14"]),
        make("Gemm", ["x14", "W"], ["y"], transB=1, alpha=0.5),
    ]
    arrays = {
        "F": np.float32(rng.normal(size=(2, 2, 3, 3))), "W": np.float32(rng.normal(size=(3, 2))),
        "low": np.float32(-1), "high": np.float32(1), "pads": np.int64([0, 0, 0, 1, 0, 0, 1, 0]),
        "one": np.int64([1]), "nine": np.int64([9]), "two": np.int64([2]),
    }  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, ("n", 4, 4, 2))], [value("y", 1, None)],
        [number(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 13)
    return onnx.helper.make_model(graph, opset_imports=[opset]).SerializeToString()


@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_mutated_files_are_read_or_refused(files, which, seed):
    content = mutate(files[which], np.random.default_rng(seed))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(written as|is left out)")
            net = onnx_files.from_bytes(content, "m.onnx")
    except ValueError as error:
        assert str(error).startswith("m.onnx: ")  # noqa: PT017
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
    else:
        X = np.zeros((2, *net.input_shape), net.dtype)
        assert net(X).shape == (2, net.n_classes)


@pytest.fixture(scope="module")
def files(folder):
    """Each of them is read as it is."""
    contents = list(seeds(folder))
    for content in contents:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(written as|is left out)")
            assert onnx_files.from_bytes(content).n_classes in (2, 3)
    return contents


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(content):
    with pytest.raises(ValueError, match=r"^m.onnx: "):
        onnx_files.from_bytes(content, "m.onnx")
