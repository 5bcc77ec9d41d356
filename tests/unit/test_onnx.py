"""ONNX files: every accepted operator against onnxruntime, every refused thing by its name."""

import os
import sys
import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr.interop import onnx_files, onnx_tensors

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'refmmr[interop]'")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)
W1, B1 = RNG.normal(size=(4, 3)).astype("f4"), RNG.normal(size=4).astype("f4")
W2, B2 = RNG.normal(size=(2, 4)).astype("f4"), RNG.normal(size=2).astype("f4")
F1, C1 = RNG.normal(size=(2, 1, 3, 2)).astype("f4"), RNG.normal(size=2).astype("f4")
IMAGE = ("n", 1, 5, 4)
WEIGHTS = {"W1": W1, "b1": B1, "W2": W2, "b2": B2}
GEMMS = [
    ("Gemm", ["x", "W1", "b1"], {"transB": 1}),
    ("Relu", []),
    ("Gemm", ["", "W2", "b2"], {"transB": 1}),
]


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, name=attributes.pop("name", ""), **attributes)


def model(steps, weights=None, shape=("n", 3), opset=17, kind=TensorProto.FLOAT, **parts):
    """A chain: each step is (operator, inputs, attributes), "" among the inputs is the data."""
    nodes, name = list(parts.pop("first", [])), "x"
    for i, (operator, inputs, *attributes) in enumerate(steps):
        inputs = [name if given == "" else given for given in inputs or [""]]
        name = "y" if i == len(steps) - 1 else f"t{i}"
        nodes.append(node(operator, inputs, [name], **(attributes[0] if attributes else {})))
    return graph_model(nodes, weights, shape, opset, kind, **parts)


def graph_model(nodes, weights=None, shape=("n", 3), opset=17, kind=TensorProto.FLOAT, **parts):
    weights = WEIGHTS if weights is None else weights
    initializers = [
        value
        if isinstance(value, TensorProto)
        else numpy_helper.from_array(np.asarray(value), name)
        for name, value in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        parts.pop("inputs", [helper.make_tensor_value_info("x", kind, shape)]),
        parts.pop("outputs", [helper.make_tensor_value_info("y", kind, None)]),
        initializers,
        **parts,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def read(proto, **options):
    return onnx_files.from_bytes(proto.SerializeToString(), "m.onnx", **options)


def run(proto, X):
    session = ort.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"], sess_options=quiet()
    )
    return session.run(None, {session.get_inputs()[0].name: X})[0]


def quiet():
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


def assert_same(proto, shape, samples=5, **options):
    """The network that is read gives the logits of onnxruntime."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*convolution written as a matrix")
        net = read(proto, **options)
    X = np.random.default_rng(1).normal(size=(samples, *shape)).astype("f4")
    logits = run(proto, X)
    assert_allclose(net(X), logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    return net


def f4(*shape, seed=2):
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


# What is accepted, against onnxruntime.


def test_gemms_keep_weights_and_dtype():
    net = assert_same(model(GEMMS), (3,))
    assert net.dtype == np.float32
    assert_array_equal(net.parameters[0][0], W1)
    assert_array_equal(net.parameters[1][1], B2)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_operator_sets(opset):
    assert_same(model(GEMMS, opset=opset), (3,))


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (["x", "A", "c"], {}),
        (["x", "A", "row"], {"alpha": 0.3, "beta": -2.5}),
        (["x", "A", "one"], {"beta": 0.5}),
        (["x", "A", "scalar"], {}),
        (["x", "A"], {"alpha": 2.0}),
        (["x", "A", ""], {}),
    ],
)
def test_gemm_forms(inputs, attributes):
    weights = {
        "A": f4(3, 4), "c": f4(4), "row": f4(1, 4), "one": f4(1, 1), "scalar": np.float32(0.7)
    }  # fmt: skip
    proto = graph_model([node("Gemm", inputs, ["y"], **attributes)], weights)
    net = assert_same(proto, (3,))
    assert net.dtype == (np.float64 if attributes else np.float32)


@pytest.mark.parametrize("add", [["", "b"], ["b", ""]])
def test_matmul_and_add_is_a_layer_bit_for_bit(add):
    steps = [("MatMul", ["", "A"]), ("Add", add), ("Relu", []), ("MatMul", ["", "B"])]
    net = assert_same(model(steps, {"A": f4(3, 4), "b": f4(4), "B": f4(4, 2)}), (3,))
    assert net.dtype == np.float32
    assert_array_equal(net.parameters[0][0], f4(3, 4).T)
    assert_array_equal(net.parameters[0][1], f4(4))


@pytest.mark.parametrize(
    ("operator", "inputs", "constant"),
    [
        ("Sub", ["", "c"], f4(3)),
        ("Sub", ["c", ""], f4(1, 3)),
        ("Add", ["", "c"], np.float32(0.3)),
        ("Mul", ["c", ""], f4(3)),
        ("Mul", ["", "c"], f4(1)),
        ("Div", ["", "c"], f4(3)),
        ("Div", ["", "c"], f4(1, 1)),
    ],
)
def test_normalised_vectors(operator, inputs, constant):
    proto = model([(operator, inputs), *GEMMS[1:]], {**WEIGHTS, "c": constant, "W2": f4(2, 3)})
    assert_same(proto, (3,))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 1, 1), (5, 4), (4,), (1, 5, 1), ()])
def test_normalised_images(shape):
    steps = [
        ("Sub", ["", "mean"]),
        ("Div", ["", "std"]),
        ("Conv", ["", "F"]),
        ("Add", ["", "b"]),
        ("Relu", []),
        ("Flatten", []),
        ("Gemm", ["", "W"]),
    ]
    weights = {
        "mean": f4(*shape),
        "std": 1 + f4(*shape, seed=3) ** 2,
        "F": F1,
        "b": f4(2, 1, 1),
        "W": f4(18, 2),
    }
    assert_same(model(steps, weights, IMAGE), (1, 5, 4))


@pytest.mark.parametrize(
    ("attributes", "outputs"),
    [
        ({}, (3, 3)),
        ({"pads": [1, 0, 2, 1]}, (6, 4)),
        ({"auto_pad": "VALID"}, (3, 3)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 1]}, (3, 4)),
        ({"auto_pad": "SAME_UPPER", "strides": [3, 3]}, (2, 2)),
        ({"auto_pad": "NOTSET", "kernel_shape": [3, 2], "group": 1, "dilations": [1, 1]}, (3, 3)),
        ({"strides": [2, 3], "pads": [1, 1, 1, 1]}, (3, 2)),
    ],
)
def test_conv_forms(attributes, outputs):
    steps = [("Conv", ["", "F", "c"], attributes), ("Relu", []), ("Flatten", []),
             ("Gemm", ["", "W"])]  # fmt: skip
    weights = {"F": F1, "c": C1, "W": f4(2 * outputs[0] * outputs[1], 3)}
    net = assert_same(model(steps, weights, IMAGE), (1, 5, 4))
    assert net.shapes[1] == (2, *outputs)
    assert net.dtype == np.float32


@pytest.mark.parametrize("opset", [8, 9, 14, 17])
@pytest.mark.parametrize("place", ["input", "conv", "relu", "dense", "end"])
def test_batch_normalization(place, opset):
    def normalize(name, channels, attributes):
        rng = np.random.default_rng(4)
        values = [*rng.normal(size=(3, channels)), rng.random(channels) + 0.1]
        names = [f"{name}{k}" for k in range(4)]
        weights.update(zip(names, np.float32(values), strict=True))
        return "BatchNormalization", ["", *names], attributes

    weights = {"F": F1, "c": C1, "W": f4(18, 3), "w": f4(3), "V": f4(3, 2), "v": f4(2)}
    steps = {
        "input": [normalize("i", 1, {})],
        "conv": [("Conv", ["", "F", "c"]), normalize("c", 2, {"epsilon": 1e-3})],
        "relu": [("Relu", []), normalize("r", 2, {"momentum": 0.5})],
        "dense": [("Flatten", []), ("Gemm", ["", "W", "w"]), normalize("d", 3, {})],
        "end": [("Relu", []), ("Gemm", ["", "V", "v"]), normalize("e", 2, {})],
    }
    chosen = [
        step
        for key, group in steps.items()
        for step in group
        if key == place or step[0] != "BatchNormalization"
    ]
    assert_same(model(chosen, weights, IMAGE, opset), (1, 5, 4))


@pytest.mark.parametrize("value", ["value", "value_floats"])
def test_constant_nodes(value):
    constant = numpy_helper.from_array(B1, "") if value == "value" else B1.tolist()
    first = [node("Constant", [], ["c"], **{value: constant}), node("Identity", ["c"], ["b1"])]
    weights = {name: array for name, array in WEIGHTS.items() if name != "b1"}
    net = assert_same(model(GEMMS, weights, first=first), (3,))
    assert_array_equal(net.parameters[0][1], B1)


def test_constant_number():
    first = [node("Constant", [], ["half"], value_float=0.5)]
    assert_same(model([("Mul", ["", "half"]), *GEMMS[1:]], {**WEIGHTS, "W2": f4(2, 3)},
                      first=first), (3,))  # fmt: skip


@pytest.mark.parametrize("target", [[-1, 20], [0, 20], [0, -1]])
@pytest.mark.parametrize("batch", ["n", 1, None, -1])
def test_reshape_that_flattens(target, batch):
    steps = [("Reshape", ["", "s"]), ("Gemm", ["", "W"])]
    proto = model(steps, {"s": np.int64(target), "W": f4(20, 3)}, (batch, 1, 5, 4))
    if batch == -1:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    net = read(proto)
    X = f4(1, 1, 5, 4)
    assert_allclose(net(X), X.reshape(1, 20) @ f4(20, 3), rtol=1e-5, atol=1e-5)
    if batch != -1:  # which onnxruntime does not take
        assert_same(proto, (1, 5, 4), samples=1 if batch == 1 else 4)


@pytest.mark.parametrize("target", [[1, 20], [1, -1]])
def test_reshape_to_a_batch_of_one(target):
    steps = [("Reshape", ["", "s"]), ("Gemm", ["", "W"])]
    weights = {"s": np.int64(target), "W": f4(20, 3)}
    assert_same(model(steps, weights, (1, 1, 5, 4)), (1, 5, 4), samples=1)
    assert read(model(steps, weights, IMAGE)).input_shape == (1, 5, 4)


def test_reshape_to_the_same_shape():
    steps = [("Reshape", ["", "s"]), ("Flatten", [], {"axis": -3}), ("Gemm", ["", "W"])]
    assert_same(model(steps, {"s": np.int64([-1, 1, 5, 4]), "W": f4(20, 3)}, IMAGE), (1, 5, 4))


@pytest.mark.parametrize("axes", ["attribute", "input"])
def test_reshape_to_a_computed_shape(axes):
    """As PyTorch writes ``x.view(x.size(0), -1)``."""
    unsqueeze = (
        node("Unsqueeze", ["number"], ["vector"], axes=[0])
        if axes == "attribute"
        else node("Unsqueeze", ["number", "zeros"], ["vector"])
    )
    nodes = [
        node("Relu", ["x0"], ["t"]),
        node("Shape", ["t"], ["shape"]),
        node("Constant", [], ["zero"], value=helper.make_tensor("", TensorProto.INT64, [], [0])),
        node("Gather", ["shape", "zero"], ["number"], axis=0),
        unsqueeze,
        node("Cast", ["vector"], ["cast"], to=TensorProto.INT64),
        node("Constant", [], ["rest"], value=helper.make_tensor("", TensorProto.INT64, [1], [-1])),
        node("Concat", ["cast", "rest"], ["target"], axis=0),
        node("Reshape", ["t", "target"], ["flat"]),
        node("Gemm", ["flat", "W"], ["y"]),
    ]
    nodes.insert(0, node("Add", ["x", "c"], ["x0"]))
    weights = {"W": f4(20, 3), "c": np.float32(0.5), "zeros": np.int64([0])}
    assert_same(graph_model(nodes, weights, IMAGE, 11 if axes == "attribute" else 17), (1, 5, 4))


def test_what_is_left_out():
    steps = [("Identity", []), *GEMMS[:2], ("Dropout", [""]), *GEMMS[2:], ("Identity", [])]
    proto = model(steps, {**WEIGHTS})
    proto.graph.node[1].input[0] = "t0"
    proto.graph.node[3].output.append("mask")
    net = assert_same(proto, (3,))
    assert_array_equal(net.parameters[1][0], W2)


def test_dropout_with_inputs():
    weights = {**WEIGHTS, "ratio": np.float32(0.5), "mode": np.array(False)}
    steps = [*GEMMS[:2], ("Dropout", ["", "ratio", "mode"]), GEMMS[2]]
    assert_same(model(steps, weights), (3,))
    weights["mode"] = np.array(True)
    with pytest.raises(ValueError, match="Dropout node 2: expected training_mode false"):
        read(model(steps, weights))


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("opset", "attributes"), [(11, {}), (13, {}), (13, {"axis": 1})])
def test_softmax_at_the_end_is_left_out(operator, opset, attributes):
    with pytest.warns(
        UserWarning, match=f"m.onnx: {operator} node 3 is left out: the network gives"
    ):
        net = read(model([*GEMMS, (operator, [], attributes)], opset=opset))
    X = f4(6, 3)
    assert_array_equal(net(X), read(model(GEMMS))(X))
    with pytest.raises(ValueError, match=f"Relu node 4: expected nothing behind {operator} node 3"):
        read(model([*GEMMS, (operator, []), ("Relu", [])]))
    with pytest.raises(ValueError, match=f"{operator} node 3: expected the axis of the classes"):
        read(model([*GEMMS, (operator, [], {"axis": 0})], opset=13))


def test_initializers_listed_as_inputs():
    values = [("x", ("n", 3)), ("W1", W1.shape), ("b2", B2.shape)]
    inputs = [helper.make_tensor_value_info(name, 1, shape) for name, shape in values]
    assert_same(model(GEMMS, inputs=inputs), (3,))


def test_float64():
    weights = {name: array.astype("f8") for name, array in WEIGHTS.items()}
    proto = model(GEMMS, weights, kind=TensorProto.DOUBLE)
    X = np.random.default_rng(1).normal(size=(5, 3))
    net = read(proto)
    assert net.dtype == np.float64
    assert_allclose(net(X), run(proto, X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"])
def test_stored_numbers(kind, raw):
    """Each type of numbers, in each of its two places."""
    number = TensorProto.DataType.Value(kind)
    weights = {}
    for name, array in WEIGHTS.items():
        coarse = (array * 8).round() / 8  # which all types can hold
        tensor = helper.make_tensor(name, number, array.shape, coarse.reshape(-1).tolist())
        if raw:
            exact = numpy_helper.to_array(tensor)
            tensor = numpy_helper.from_array(exact, name)
        assert tensor.HasField("raw_data") == raw
        weights[name] = tensor
    net = read(model(GEMMS, weights, kind=number))
    assert net.dtype == (np.float64 if kind == "DOUBLE" else np.float32)
    assert_array_equal(net.parameters[0][0], (W1 * 8).round() / 8)


def test_open_shapes_need_input_shape():
    steps = [("Conv", ["", "F", "c"]), ("Relu", []), ("Flatten", []), ("Gemm", ["", "W"])]
    weights = {"F": F1, "c": C1, "W": f4(18, 2)}
    for shape in (("n", 1, "h", "w"), ("n", 1, None, 4), None):
        proto = model(steps, weights, shape)
        with pytest.raises(ValueError, match=r"m.onnx: input 'x': expected .* pass input_shape"):
            read(proto)
        assert read(proto, input_shape=(1, 5, 4)).input_shape == (1, 5, 4)
    with pytest.raises(ValueError, match=r"input_shape: expected one that fits \(\?, 1, \?, 4\)"):
        read(model(steps, weights, ("n", 1, None, 4)), input_shape=(1, 5, 5))
    with pytest.raises(ValueError, match="input_shape: expected one that fits"):
        read(model(steps, weights, IMAGE), input_shape=(20,))
    with pytest.raises(TypeError, match="input_shape: expected an integer"):
        read(model(steps, weights, IMAGE), input_shape=(1, 5, 4.0))


# Writing.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_written_models(tmp_path, dtype):
    net = rm.Network.lenet_small((2, 9, 7), 3, rng=0).astype(dtype)
    onnx_files.write(net, tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert [step.op_type for step in proto.graph.node] == [
        "Conv", "Relu", "Conv", "Relu", "Flatten", "Gemm", "Relu", "Gemm",
    ]  # fmt: skip
    assert (proto.producer_name, proto.producer_version) == ("refmmr", rm.__version__)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["x", "logits"]
    back = onnx_files.read(tmp_path / "net.onnx")
    assert (back.dtype, back.input_shape) == (dtype, net.input_shape)
    for (W, b), (V, c) in zip(net.parameters, back.parameters, strict=True):
        assert_array_equal(W, V)
        assert_array_equal(b, c)
    assert list(tmp_path.iterdir()) == [tmp_path / "net.onnx"]


def test_a_convolution_at_the_end_is_flattened(tmp_path):
    conv = rm.Conv2d(f4(2, 1, 3, 3), f4(2))
    onnx_files.write(rm.Network([conv], (1, 3, 3)), tmp_path / "net.onnx")
    X = f4(4, 1, 3, 3)
    logits = onnx_files.read(tmp_path / "net.onnx")(X)
    assert_array_equal(logits, conv.apply(X).reshape(4, 2))
    assert_allclose(run(onnx.load(tmp_path / "net.onnx"), X), logits, rtol=1e-5, atol=1e-5)


def test_no_larger_than_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="net: expected at most 100 bytes"):
        onnx_files.write(rm.Network.mlp([3, 4, 2], rng=0), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_trained_network(tmp_path):
    """A network of others, with MNIST's shape."""
    folder = os.environ.get("REFMMR_MODELS")
    if not folder:
        pytest.skip("REFMMR_MODELS is not set: it names the folder of trained networks")
    arrays = np.load(Path(folder) / "wk17a.npz")
    W = [arrays[name] for name in arrays.files if name.endswith("weight")]
    b = [arrays[name] for name in arrays.files if name.endswith("bias")]
    layers = [
        rm.Conv2d(W[0], b[0], 2, 1),
        rm.Conv2d(W[1], b[1], 2, 1),
        rm.Flatten(),
        rm.Linear(W[2], b[2]),
        rm.Linear(W[3], b[3]),
    ]
    net = rm.Network(layers, (1, 28, 28))
    onnx_files.write(net, tmp_path / "net.onnx")
    X = np.random.default_rng(0).random((20, 1, 28, 28), dtype=np.float32)
    logits = run(onnx.load(tmp_path / "net.onnx"), X)
    assert_allclose(net(X), logits, rtol=1e-6, atol=1e-6 * np.abs(logits).max())
    back = onnx_files.read(tmp_path / "net.onnx")
    assert_array_equal(back(X), net(X))


# What is refused.

FLAT = [("Flatten", []), ("Gemm", ["", "W"])]
IMAGES = {"F": F1, "c": C1, "W": f4(18, 2), "s": np.int64([-1, 18])}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (("MaxPool", [], {"kernel_shape": [1, 1, 1]}), "kernel_shape of two sizes"),
        (
            ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [9, 9], "pads": [0, 9, 0, 9]}),
            "meet",
        ),
        (("AveragePool", [], {"kernel_shape": [2, 2], "ceil_mode": 1}), "ceil_mode = 0, got 1"),
        (("Tanh", []), "got Tanh: it is not piecewise linear; instead: train with ReLU"),
        (("Elu", []), "got Elu: it is not piecewise linear; instead"),
        (("QuantizeLinear", ["", "c"]), "its numbers are rounded; instead"),
        (("Foo", []), "got Foo: it is not known; instead: export the model with Gemm"),
        (("Transpose", [], {"perm": [0, 2, 3, 3]}), r"a permutation of 4 axes, got \[0, 2, 3, 3\]"),
        (("Mul", ["", ""]), "their product is not piecewise linear"),
        (("Clip", ["", "m"]), r"numbers as bounds, got shape \(2,\)"),
        (("PRelu", ["", "wide"]), "numbers that broadcast"),
        (("Pad", ["", "s"], {"mode": "wrap"}), "constant, reflect or edge, got wrap"),
        (("Gather", ["", "s"], {"axis": 1}), "expected indices of 2 entries"),
        (("Squeeze", ["", "i2"]), r"axes of size 1, got \[2\] of \(1, 2, 3, 3\)"),
        (("Slice", ["", "i2", "i2", "i2", "zeros"]), "steps other than 0"),
        (("Split", ["", "i2"], {"axis": 2}), "sizes above 0 that sum to 3"),
        (("Cast", [], {"to": 6}), "a cast to float32 or float64, got type 6"),
        (("ReduceMean", ["", "i9"]), "different axes from -4 to 3"),
        (("Concat", ["", "c"], {"axis": 1}), "shapes that fit along axis 1"),
        (("Expand", ["", "s"]), "a shape to which"),
        (("Conv", ["", "D"], {"group": 2}), r"groups that fit, got group = 2"),
        (("Conv", ["", "D"], {"dilations": [2, 0]}), r"two strides and dilations from 1 on"),
        (("Conv", ["", "D"], {"auto_pad": "SAME"}), "auto_pad NOTSET, .* got 'SAME'"),
        (("Conv", ["", "D"], {"pads": [0, -1, 0, 0]}), r"at least 0, .*got \[0, -1, 0, 0\]"),
        (("Conv", ["", "D"], {"pads": [0, 0]}), r"four pads"),
        (("Conv", ["", "D"], {"pads": [0, 0, 2**40, 0]}), r"four pads of at least 0, at most"),
        (("Conv", ["", "D"], {"pads": [0, 0, 2**24, 0]}), r"at most \d+ units with pads"),
        (("Conv", ["", "D"], {"pads": [1, 1, 1, 1], "auto_pad": "VALID"}), "beside auto_pad VALID"),
        (("Conv", ["", "D"], {"strides": [0, 1]}), "two strides"),
        (("Conv", ["", "D"], {"strides": [1]}), "two strides"),
        (("Conv", ["", "D"], {"kernel_shape": [2, 2]}), r"kernel_shape = \[1, 1\], got \[2, 2\]"),
        (("Conv", ["", "W"]), "filters with 4 axes"),
        (("ConvTranspose", ["", "D"], {"output_shape": [99, 9]}), "or a smaller one, got"),
        (("Flatten", [], {"axis": 5}), "an axis from -4 to 4, got 5"),
        (("Reshape", ["", "s3"]), r"a shape of the 18 entries of \(1, 2, 3, 3\), got \(-1, 4, 6\)"),
        (("Reshape", ["", "s0"], {"allowzero": 1}), r"got \(0, 18\)"),
        (("Reshape", ["", "W"]), "at most 10000 integers, got another constant"),
        (("Gemm", ["", "W"]), r"a matrix of weights and one of inputs, got \(18, 2\)"),
        (("Add", ["", "wide"]), r"numbers that broadcast to shape \(2, 3, 3\), got shape"),
        (("Div", ["", "zero"]), "by numbers other than 0"),
        (("Div", ["zero", ""]), "a division by a constant"),
        (("Mul", ["", "nan"]), "expected finite numbers, got nan"),
        (("Mul", ["", "s"]), "expected real numbers, got the integers 's'"),
        (("BatchNormalization", ["", *"mmmm"], {"training_mode": 1}), "training_mode = 0, got 1"),
        (("BatchNormalization", ["", *"mmm", "v"]), "variances above 0"),
        (("BatchNormalization", ["", *"mmm", "zero"]), r"constants of shape \(2,\), got \(\)"),
        (("Relu", [], {"axis": 0}), "no attribute 'axis'"),
        (("Flatten", [], {"axis": 1.5}), "'axis' of type INT, got another type"),
        (("Relu", ["", "F"]), "expected 1 to 1 inputs, got 2"),
        (("Add", ["", "missing"]), "got 'missing', which neither they nor the initializers give"),
        (("Add", ["", "y"]), "or the graph is not sorted, or has a cycle"),
        (("Softmax", []), r"the axis of the classes, got axis 3 of shape \(1, 2, 3, 3\)"),
        (("ArgMax", [], {"select_last_index": 1}), "the first of equal classes"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_refused_steps(step, message, named):
    extra = {
        "D": f4(2, 2, 1, 1), "s3": np.int64([-1, 4, 6]), "s0": np.int64([0, 18]),
        "wide": f4(3, 2, 3, 3), "zero": np.float32(0), "nan": np.float32(np.nan),
        "m": f4(2), "v": np.float32([-1, 1]), "i2": np.int64([2]), "i9": np.int64([9]),
        "zeros": np.int64([0]),
    }  # fmt: skip
    kind, inputs, *attributes = step
    step = (kind, inputs, {**(attributes[0] if attributes else {}), "name": "bad" * named})
    proto = model([("Conv", ["", "F", "c"]), step, *FLAT], {**IMAGES, **extra}, IMAGE)
    where = f"{kind} node " + ("'bad'" if named else "1")
    with pytest.raises(ValueError, match=f"^m.onnx: {where}: .*{message}") as caught:
        read(proto)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (("Gemm", ["", "W1"], {"transA": 1}), r"expected matrices that fit, got shapes \(3, 1\)"),
        (("Gemm", ["W1", ""]), r"matrices that fit, got shapes \(1, 3\) and \(4, 3\)"),
        (("Gemm", ["", "W1", "m"], {"transB": 1}), r"biases of shape \(4,\), got \(2, 4\)"),
        (("Gemm", ["", "b1"]), r"a matrix of weights and one of inputs, got \(4,\)"),
        (("MatMul", ["", "b1"]), r"matrices that fit, got shapes \(1, 3\) and \(4,\)"),
        (("MatMul", ["W1", ""]), r"matrices that fit, got shapes \(1, 3\) and \(4, 3\)"),
        (("Reshape", ["", "image"]), r"a shape of the 3 entries"),
        (("Conv", ["", "F"]), r"expected images .* got shape \(1, 3\)"),
        (("ConstantOfShape", [""]), "its shape depends on the numbers of the input; instead:"),
    ],
)
def test_refused_steps_on_vectors(step, message):
    weights = {
        **WEIGHTS, "m": f4(2, 4), "image": np.int64([-1, 1, 1, 4]), "F": F1
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"m.onnx: {step[0]} node 0: .*{message}"):
        read(model([step, *GEMMS[1:]], weights))


def gemms(*extra):
    nodes = [
        node("Gemm", ["x", "W1", "b1"], ["a"], transB=1, name="first"),
        node("Relu", ["a"], ["r"]),
        node("Gemm", ["r", "W2", "b2"], ["y"], transB=1, name="last"),
    ]
    return [*nodes, *extra]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (node("Add", ["y", "x"], ["z"], name="sum"), r"Add node 'sum': expected shapes that fit"),
        (node("Relu", ["y"], ["a"]), r"Relu node 3: expected an output with a new name, got 'a'"),
        (node("Relu", ["y"], ["W1"]), r"Relu node 3: .*new name, got 'W1'"),
        (node("Relu", ["y"], [""]), r"Relu node 3: expected an output, got none"),
        (node("Relu", ["y"], ["z", "u"]), r"Relu node 3: expected one output, got 2"),
        (node("Relu", ["y"], ["z"], domain="com.acme"), "ONNX itself, got one of 'com.acme'"),
        (node("Relu", ["W1"], ["z"]), r"Relu node 3: .*depends on the input of the network"),
        (node("Constant", [], ["z"], value_string="s"), r"Constant node 3: .*'value_string'"),
        (node("Constant", [], ["z"]), r"Constant node 3: expected one value, got \[\]"),
        (node("Concat", ["W1", "b1"], ["z"], axis=0), "Concat node 3: expected constants that fit"),
        (
            node("Transpose", ["W1"], ["z"], perm=[0, 0]),
            "Transpose node 3: expected constants that",
        ),
    ],
)
def test_refused_graphs(extra, message):
    with pytest.raises(ValueError, match=f"^m.onnx: .*{message}"):
        read(graph_model(gemms(extra)))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Shape", "x", "s"), ("Gather", "s i", "t")], "constants that fit, got index 5"),
        (
            [("Shape", "x", "s"), ("Concat", "s", "t", {"axis": 1})],
            "constants that fit, got axis 1",
        ),
        ([("Shape", "x", "s"), ("Cast", "s", "t", {"to": 2})], "int64 or bool, got type 2"),
        ([("Shape", "x", "s"), ("Unsqueeze", "s", "t", {"axes": [5]})], "different axes from"),
        ([("Shape", "x", "s"), ("Gemm", "x s", "t")], "expected real numbers, got the integers"),
        ([("Shape", "x", "s"), ("ConstantOfShape", "big", "t")], "at most 1073741824 bytes"),
        ([("Shape", "x", "s"), ("Expand", "s big", "t")], "at most 1073741824 bytes"),
        ([("Shape", "x", "s"), ("Div", "s o", "t")], "a division by 0"),
        ([("Shape", "x", "s"), ("Add", "s r", "t")], "numbers of one type"),
    ],
)
def test_refused_shapes(nodes, message):
    made = [node(k, i.split(), [o], **(a[0] if a else {"axis": 0} if k == "Concat" else {}))
            for k, i, o, *a in nodes]  # fmt: skip
    weights = {**WEIGHTS, "i": np.int64([5]), "r": np.float32(0), "o": np.int64([0]),
               "big": np.int64([2**40, 2])}  # fmt: skip
    with pytest.raises(ValueError, match=rf"m.onnx: {nodes[-1][0]} node \d: .*{message}"):
        read(graph_model([*made, *gemms()], weights))


def value(name, shape=("n", 3), kind=1):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"inputs": [value("x"), value("z")]}, r"expected one input, got 2 \('x', 'z'\)"),
        ({"inputs": []}, "expected one input, got 0"),
        ({"outputs": [value("y"), value("a")]}, r"expected one output, got 2 \('y', 'a'\)"),
        ({"outputs": [value("W1")]}, "output 'W1': expected one that depends on the input"),
        ({"shape": (3,)}, r"Gemm node 'first': expected a matrix .* got \(4, 3\) and \(3,\)"),
        ({"shape": ()}, "expected 1 to 8 axes, got"),
        ({"shape": ("n", 2**50)}, r"at most \d+ in all, got"),
        ({"kind": TensorProto.UINT8}, "input 'x': expected float16, .* got data type 2"),
        ({"opset": 6}, "one operator set, of a version from 7"),
        ({"opset": 10**6}, "one operator set"),
        ({"inputs": [helper.make_tensor_sequence_value_info("x", 1, None)]}, "a tensor, got seq"),
    ],
)
def test_refused_models(parts, message):
    with pytest.raises(ValueError, match=f"m.onnx: .*{message}"):
        read(graph_model(gemms(), **parts))


def changed(change):
    proto = graph_model(gemms())
    change(proto, proto.graph)
    return proto


def sparse(proto, graph):
    tensor = graph.sparse_initializer.add()
    tensor.values.name = "few"


def function(proto, graph):
    proto.functions.add().name = "Relu"


def twice(proto, graph):
    graph.initializer.append(graph.initializer[0])


def same_attribute(proto, graph):
    graph.node[0].attribute.append(graph.node[0].attribute[0])


def empty_graph(proto, graph):
    del graph.node[:]


def subgraph(proto, graph):
    branch = helper.make_graph([], "b", [], [])
    graph.node.append(node("If", ["y"], ["z"], then_branch=branch, else_branch=branch, name="if"))


def many_nodes(proto, graph):
    graph.node.extend([node("Identity", ["y"], ["z"])] * 10_001)


def segment(proto, graph):
    graph.initializer[0].segment.begin = 0


def two_places(proto, graph):
    graph.initializer[0].float_data.append(1)


def wrong_dtype(proto, graph):
    graph.initializer[0].data_type = TensorProto.INT8


def unknown_dtype(proto, graph):
    graph.initializer[0].data_type = 99


def negative(proto, graph):
    graph.initializer[0].dims[:] = [-4, -3]


def many_axes(proto, graph):
    graph.initializer[0].dims[:] = [1] * 9


def infinite(proto, graph):
    graph.initializer[0].raw_data = np.full(12, np.inf, "f4").tobytes()


def no_data(proto, graph):
    graph.initializer[0].ClearField("raw_data")


def large_halves(proto, graph):
    graph.initializer[0].ClearField("raw_data")
    graph.initializer[0].int32_data[:] = [2**16] * 12
    graph.initializer[0].data_type = TensorProto.FLOAT16


def elsewhere(proto, graph):
    graph.initializer[0].ClearField("raw_data")
    graph.initializer[0].data_location = TensorProto.EXTERNAL


def long_name(proto, graph):
    graph.node[1].op_type = "A\n" * 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sparse, "sparse initializer 'few': expected dense weights"),
        (function, "function 'Relu': expected operators of ONNX itself"),
        (twice, "got one name twice"),
        (same_attribute, "Gemm node 'first': expected no attribute 'transB', or none twice"),
        (empty_graph, "expected nodes, got none"),
        (subgraph, "If node 'if': .*graphs inside it"),
        (many_nodes, "at most 10000 nodes, got 10004"),
        (segment, "tensor 'W1': expected a whole tensor, got a segment"),
        (two_places, "tensor 'W1': expected data in one place, got it in two"),
        (wrong_dtype, "tensor 'W1': expected float16, .* got data type INT8"),
        (unknown_dtype, "tensor 'W1': expected float16, .* got data type 99"),
        (negative, r"tensor 'W1': expected a shape of numbers above 0, got \(-4, -3\)"),
        (many_axes, "tensor 'W1': expected at most 8 axes, got 9"),
        (infinite, "Gemm node 'first': W: expected finite numbers, got inf"),
        (no_data, r"tensor 'W1': expected 12 numbers for shape \(4, 3\), got 0"),
        (large_halves, "tensor 'W1': expected numbers of 2 bytes"),
        (elsewhere, "tensor 'W1': expected its data in the model"),
        (long_name, r"'A\\n.*\.\.\.' node 1: expected an operator"),
    ],
)
def test_refused_details(change, message):
    with pytest.raises(ValueError, match=f"m.onnx: .*{message}") as caught:
        read(changed(change))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# Hostile files.


@pytest.mark.parametrize("dims", [[2**40], [2**40, 2**40], [2**62, 4], [4, 2**31]])
@pytest.mark.parametrize("field", ["raw_data", "float_data", "external"])
def test_huge_shapes_take_no_memory(tmp_path, dims, field):
    tensor = TensorProto(name="W1", data_type=TensorProto.FLOAT, dims=dims)
    if field == "raw_data":
        tensor.raw_data = b"1234"
    elif field == "float_data":
        tensor.float_data.append(1)
    else:
        external(tensor, tmp_path, location="data")
    content = model(GEMMS, {**WEIGHTS, "W1": tensor}).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="tensor 'W1': expected"):
            onnx_files.from_bytes(content, "m.onnx", folder=tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_products_of_layers_stay_small():
    """Two vectors make a matrix of 2**30 entries if no ReLU stands between."""
    nodes = [node("MatMul", ["x", "A"], ["t"]), node("MatMul", ["t", "B"], ["y"])]
    weights = {"A": np.ones((2**15, 1), "f4"), "B": np.ones((1, 2**15), "f4")}
    with pytest.raises(ValueError, match="MatMul node 1: expected layers whose product"):
        read(graph_model(nodes, weights, ("n", 2**15)))
    identity = [node("Mul", ["x", "c"], ["t"]), node("Relu", ["t"], ["y"])]
    with pytest.raises(ValueError, match="Relu node 1: expected layers whose product"):
        read(graph_model(identity, {"c": np.float32(2)}, ("n", 2**15)))


def test_the_same_weights_many_times(monkeypatch):
    monkeypatch.setattr(onnx_tensors, "MAX_BYTES", 10_000)
    steps = [step for _ in range(20) for step in (("MatMul", ["", "A"]), ("Relu", []))]
    proto = model(steps, {"A": np.eye(16, dtype="f4")}, ("n", 16))
    with pytest.raises(ValueError, match="at most 10000 bytes of weights in all layers"):
        read(proto)


def test_many_messages_are_counted_before_they_are_made(tmp_path):
    """Two bytes each in the file, hundreds in memory."""
    proto = onnx.ModelProto()
    proto.graph.node.extend([onnx.NodeProto()] * 2**18)
    content = proto.SerializeToString()
    assert len(content) < 2**20
    with pytest.raises(ValueError, match=r"m.onnx: file: .*more than 262144 fields"):
        onnx_files.from_bytes(content, "m.onnx")


def test_deep_messages():
    content = b""
    for _ in range(40):  # a subgraph of an attribute of a node of a graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + varint(len(content)) + content
    content = b"\x3a" + varint(len(content)) + content
    with pytest.raises(ValueError, match="messages nested deeper than 16"):
        onnx_files.from_bytes(content, "m.onnx")


def varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x3a\xff\xff\xff\xff\x7f",
        b"\x3b",
        b"\x08" + b"\xff" * 20,
        b"\x09ab",
        b"text",
    ],
)
def test_no_model(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"m.onnx: (file|graph): expected"):
        onnx_files.read(tmp_path / "m.onnx")


def test_every_cut_is_refused():
    content = model(GEMMS).SerializeToString()
    for stop in range(0, len(content), 7):
        with pytest.raises(ValueError, match=r"^m.onnx: "):
            onnx_files.from_bytes(content[:stop], "m.onnx")


@pytest.mark.parametrize("name", [b"first", b"Relu", b"W1"])
def test_names_that_are_no_text(name):
    content = graph_model(gemms()).SerializeToString()
    with pytest.raises(ValueError, match=r"^m.onnx: file: .* got names that are not UTF-8$"):
        onnx_files.from_bytes(content.replace(name, b"\xff" * len(name)), "m.onnx")


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        onnx_files.read(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="expected a file, got a folder or device"):
        onnx_files.read(tmp_path)
    (tmp_path / "m.onnx").write_bytes(bytes(101))
    monkeypatch.setattr(onnx_tensors, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"m.onnx: expected at most 100 bytes, got 101"):
        onnx_files.read(tmp_path / "m.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="expected a file, got a folder or device"):
        onnx_files.read(tmp_path / "m.onnx")


def test_the_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "m.onnx").write_bytes(b"1")
    with pytest.raises(ImportError, match=r'needs the package onnx: pip install "refmmr\[interop'):
        onnx_files.read(tmp_path / "m.onnx")
    with pytest.raises(ImportError, match="save: needs the package onnx"):
        onnx_files.write(rm.Network.mlp([2, 2], rng=0), tmp_path / "m.onnx")


# Weights in other files.


def external(tensor, folder, data=bytes(4), **entries):
    """Move the data of a tensor to a file."""
    (folder / "data").write_bytes(data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=str(text))


def test_external_data(tmp_path):
    """As `onnx.save` writes it, several tensors in one file or one in each."""
    proto = model(GEMMS)
    for one_file in (True, False):
        folder = tmp_path / str(one_file)
        folder.mkdir()
        onnx.save(
            onnx.ModelProto.FromString(proto.SerializeToString()),
            folder / "m.onnx",
            save_as_external_data=True,
            all_tensors_to_one_file=one_file,
            location="m.onnx.data" if one_file else None,
            size_threshold=0,
        )
        assert len(list(folder.iterdir())) == (2 if one_file else 5)
        net = onnx_files.read(folder / "m.onnx")
        for (W, b), (V, c) in pairwise([*read(proto).parameters, *net.parameters][::2]):
            assert_array_equal(W, V)
            assert_array_equal(b, c)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "its data in the model"),
        ({"location": "../data"}, "in the folder of the model, got '../data'"),
        ({"location": "sub/../data"}, "in the folder of the model, got 'sub/../data'"),
        ({"location": "/etc/passwd"}, "in the folder of the model, got '/etc/passwd'"),
        ({"location": "link"}, "in the folder of the model, got 'link'"),
        ({"location": "."}, r"in the folder of the model, got '\.'"),
        ({"location": "a\0b"}, "in the folder of the model"),
        ({"location": "a" * 5000}, "in the folder of the model"),
        ({"location": "data", "offset": "4"}, "44 bytes from 4 on, not 48"),
        ({"location": "data", "offset": "1000"}, "0 bytes from 1000 on, not 48"),
        ({"location": "data", "offset": "-1"}, "an integer as offset of its data, got '-1'"),
        ({"location": "data", "offset": "9" * 5000}, "an integer as offset of its data"),
        ({"location": "data", "length": "47"}, r"48 bytes for shape \(4, 3\), got 47"),
        ({"location": "data", "length": "1e3"}, "an integer as length of its data, got '1e3'"),
    ],
)
def test_refused_external_data(tmp_path, entries, message):
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "data").write_bytes(bytes(48))
    (folder / "link").symlink_to(tmp_path / "data")
    proto = model(GEMMS)
    external(proto.graph.initializer[0], folder, bytes(48), **entries)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match=f"tensor 'W1': expected .*{message}") as caught:
        onnx_files.read(folder / "m.onnx")
    assert len(str(caught.value).splitlines()) == 1


def test_missing_external_data(tmp_path):
    proto = model(GEMMS)
    external(proto.graph.initializer[0], tmp_path, location="gone")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(FileNotFoundError, match=r"tensor 'W1': .*gone, got no such file"):
        onnx_files.read(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="expected its data in the model"):
        read(proto)


# PyTorch's exporter.


def exported(torch, module, X, tmp_path, dynamic):
    """A file of PyTorch's exporter, with its newer one where that can run."""
    import importlib.util

    exporters = [False] + [True] * (importlib.util.find_spec("onnxscript") is not None)
    for dynamo in exporters:
        path = tmp_path / f"{dynamo}.onnx"
        options = {"dynamic_axes": {"x": {0: "n"}}} if dynamic else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each exporter announces its end
            torch.onnx.export(module, (X[:1],), path, input_names=["x"], dynamo=dynamo, **options)
        yield path


@pytest.mark.torch
@pytest.mark.parametrize("dynamic", [True, False])
def test_torch_export(tmp_path, dynamic):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)

    class Normalize(nn.Module):
        def forward(self, x):
            return (x - torch.tensor([0.3, 0.5])[:, None, None]) / torch.tensor([[[0.2]], [[0.4]]])

    class View(nn.Module):
        def forward(self, x):
            return x.view(x.size(0), -1)

    modules = [
        nn.Sequential(
            Normalize(), nn.Conv2d(2, 3, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(),
            nn.Conv2d(3, 4, 2, padding=1, bias=False), nn.ReLU(), flatten, nn.Linear(64, 5),
            nn.BatchNorm1d(5), nn.ReLU(), nn.Identity(), nn.Linear(5, 3),
        )
        for flatten in (nn.Flatten(), View())
    ]  # fmt: skip
    X = torch.randn(6, 2, 8, 8)
    for module in modules:
        module.train()(X * 2)
        module.eval()
        for path in exported(torch, module, X, tmp_path, dynamic):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*convolution written as a matrix")
                net = onnx_files.read(path)
            expected = module(X).detach().numpy()
            assert_allclose(net(X.numpy()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
def test_torch_export_keeps_weights(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    for path in exported(torch, module, torch.randn(1, 4), tmp_path, True):
        net = onnx_files.read(path)
        assert net.dtype == np.float32
        for (W, b), layer in zip(net.parameters, module[::2], strict=True):
            assert_array_equal(W, layer.weight.detach().numpy())
            assert_array_equal(b, layer.bias.detach().numpy())
