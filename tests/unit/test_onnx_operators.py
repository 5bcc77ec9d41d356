"""Operators of ONNX that are folded into layers or written as ReLUs, against onnxruntime."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr.interop import onnx_files

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'refmmr[interop]'")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

IMAGE = (1, 4, 6, 5)  # with a batch of 1


def f4(*shape, seed=2):
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def model(steps, weights=(), shape=IMAGE, output=None, opset=17):
    """Steps are (operator, inputs, attributes[, outputs]); "x" goes in, "y" comes out.

    An input that is left out is "-".
    """
    nodes = []
    for operator, inputs, attributes, *outputs in steps:
        made = outputs[0].split() if outputs else [f"t{len(nodes)}"]
        given = [name.strip("-") for name in inputs.split()]
        nodes.append(helper.make_node(operator, given, made, **attributes))
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(proto, X):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": X})[0]


def read(proto):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(written as|is left out)")
        return onnx_files.model_from_bytes(proto.SerializeToString(), "m.onnx")


def assert_same(proto, shape=IMAGE, samples=5):
    """The network gives the outputs of onnxruntime, sample by sample."""
    found = read(proto)
    net = found.network
    for x in np.random.default_rng(1).normal(size=(samples, *shape)).astype("f4"):
        expected = run(proto, x).reshape(1, -1)
        flat = np.empty(x.size, "f4")
        order = slice(None) if found.input_order is None else found.input_order
        flat[order] = x.reshape(-1)
        logits = net(flat.reshape(1, *net.input_shape))
        assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))
    return net


def before_dense(step, size, weights=(), shape=IMAGE, opset=17):
    """A convolution and a ReLU, the step from "r" to "s", and a dense layer at the end."""
    steps = [
        ("Conv", "x F c", {"pads": [1, 1, 1, 1]}, "h"),
        ("Relu", "h", {}, "r"),
        *(step if isinstance(step, list) else [step]),
        ("Flatten", "s", {}, "f"),
        ("MatMul", "f W", {}),
    ]
    weights = {"F": f4(4, 4, 3, 3) / 3, "c": f4(4), "W": f4(size, 3, seed=5), **dict(weights)}
    return model(steps, weights, shape, opset=opset)


STEPS = {
    "AveragePool": (("AveragePool", "r", {"kernel_shape": [2, 3]}, "s"), 4 * 5 * 3, {}),
    "AveragePool, padded": (
        (
            "AveragePool",
            "r",
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]},
            "s",
        ),
        4 * 3 * 3,
        {},
    ),
    "AveragePool, pads counted": (
        (
            "AveragePool",
            "r",
            {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1},
            "s",
        ),
        4 * 6 * 5,
        {},
    ),
    "AveragePool, SAME_LOWER": (
        ("AveragePool", "r", {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}, "s"),
        120,
        {},
    ),
    "GlobalAveragePool": (("GlobalAveragePool", "r", {}, "s"), 4, {}),
    "GlobalMaxPool": (("GlobalMaxPool", "r", {}, "s"), 4, {}),
    "ReduceMean": (("ReduceMean", "r", {"axes": [2, 3]}, "s"), 4, {}),
    "ReduceMean, one axis": (("ReduceMean", "r", {"axes": [-1], "keepdims": 0}, "s"), 24, {}),
    "ReduceSum": (("ReduceSum", "r a", {"keepdims": 0}, "s"), 20, {"a": np.int64([2])}),
    "ReduceMax": (("ReduceMax", "r", {"axes": [1]}, "s"), 30, {}),
    "ReduceMin": (("ReduceMin", "h", {"axes": [1], "keepdims": 0}, "s"), 30, {}),
    "MaxPool": (("MaxPool", "r", {"kernel_shape": [2, 2], "strides": [2, 2]}, "s"), 4 * 3 * 2, {}),
    "MaxPool of all signs": (
        ("MaxPool", "h", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, "s"),
        4 * 3 * 3,
        {},
    ),
    "MaxPool, ceil": (
        ("MaxPool", "r", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, "s"),
        4 * 3 * 3,
        {},
    ),
    "MaxPool, dilations": (
        ("MaxPool", "r", {"kernel_shape": [2, 2], "dilations": [3, 2]}, "s"),
        4 * 3 * 3,
        {},
    ),
    "Pad": (
        ("Pad", "r p v", {}, "s"),
        4 * 8 * 7,
        {"p": np.int64([0, 0, 1, 2, 0, 0, 1, 0]), "v": np.float32(0.5)},
    ),
    "Pad, negative": (
        ("Pad", "r p", {}, "s"),
        4 * 5 * 6,
        {"p": np.int64([0, 0, -1, 0, 0, 0, 0, 1])},
    ),
    "Pad, reflect": (
        ("Pad", "r p", {"mode": "reflect"}, "s"),
        4 * 8 * 8,
        {"p": np.int64([0, 0, 1, 2, 0, 0, 1, 1])},
    ),
    "Slice": (
        ("Slice", "r a b k t", {}, "s"),
        4 * 2 * 5,
        {
            "a": np.int64([5, 0]),
            "b": np.int64([1, 9]),
            "k": np.int64([2, 3]),
            "t": np.int64([-2, 1]),
        },
    ),
    "Gather": (("Gather", "r i", {"axis": 2}, "s"), 4 * 2 * 5, {"i": np.int64([3, -1])}),
    "Concat": (
        ("Concat", "r k h", {"axis": 1}, "s"),
        9 * 30,
        {"k": f4(1, 1, 6, 5)},
    ),
    "Split": (
        [("Split", "r z", {"axis": 1}, "a b"), ("Sub", "a b", {}, "s")],
        2 * 30,
        {"z": np.int64([2, 2])},
    ),
    "Squeeze and Unsqueeze": (
        [("Unsqueeze", "r u", {}, "a"), ("Squeeze", "a u", {}, "s")],
        120,
        {"u": np.int64([2])},
    ),
    "Transpose": (("Transpose", "r", {"perm": [0, 2, 3, 1]}, "s"), 120, {}),
    "Expand": (
        [("Unsqueeze", "r u", {}, "a"), ("Expand", "a e", {}, "s")],
        240,
        {"u": np.int64([1]), "e": np.int64([1, 2, 4, 6, 5])},
    ),
    "Neg, Cast, Identity": (
        [("Neg", "r", {}, "a"), ("Cast", "a", {"to": 1}, "b"), ("Identity", "b", {}, "s")],
        120,
        {},
    ),
    "Sum": (("Sum", "r h r", {}, "s"), 120, {}),
    "Mean": (("Mean", "r h", {}, "s"), 120, {}),
    "LeakyRelu": (("LeakyRelu", "h", {"alpha": 0.1}, "s"), 120, {}),
    "PRelu": (("PRelu", "h q", {}, "s"), 120, {"q": f4(4, 1, 1)}),
    "Clip": (
        ("Clip", "h low high", {}, "s"),
        120,
        {"low": np.float32(-0.5), "high": np.float32(0.75)},
    ),
    "Clip, as ReLU6": (
        ("Clip", "h low high", {}, "s"),
        120,
        {"low": np.float32(0), "high": np.float32(1)},
    ),
    "HardSigmoid": (("HardSigmoid", "h", {"alpha": 0.5}, "s"), 120, {}),
    "Abs": (("Abs", "h", {}, "s"), 120, {}),
    "Max": (("Max", "h k r", {}, "s"), 120, {"k": f4(1, 4, 1, 1)}),
    "Min": (("Min", "h k r", {}, "s"), 120, {"k": f4(1, 4, 1, 1)}),
    "a branch": (
        [("Conv", "r F c", {"pads": [1, 1, 1, 1]}, "a"), ("Add", "a r", {}, "s")],
        120,
        {},
    ),
    "ConvTranspose": (
        (
            "ConvTranspose",
            "r T e",
            {"strides": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
            "s",
        ),
        2 * 13 * 6,
        {"T": f4(4, 2, 3, 3), "e": f4(2)},
    ),
    "ConvTranspose, groups": (
        ("ConvTranspose", "r T", {"group": 2, "dilations": [1, 2]}, "s"),
        6 * 7 * 7,
        {"T": f4(4, 3, 2, 2)},
    ),
    "ConvTranspose, output_shape": (
        ("ConvTranspose", "r T", {"strides": [2, 2], "output_shape": [12, 9]}, "s"),
        2 * 12 * 9,
        {"T": f4(4, 2, 3, 2)},
    ),
    "ConvTranspose, SAME_UPPER": (
        (
            "ConvTranspose",
            "r T",
            {"strides": [2, 2], "output_shape": [12, 9], "auto_pad": "SAME_UPPER"},
            "s",
        ),
        2 * 12 * 9,
        {"T": f4(4, 2, 3, 2)},
    ),
    "ConvTranspose, SAME_LOWER": (
        ("ConvTranspose", "r T", {"strides": [2, 1], "auto_pad": "SAME_LOWER"}, "s"),
        2 * 12 * 5,
        {"T": f4(4, 2, 3, 2)},
    ),
    "Conv, depthwise": (
        ("Conv", "r D", {"group": 4, "pads": [1, 1, 1, 1]}, "s"),
        8 * 30,
        {"D": f4(8, 1, 3, 3)},
    ),
    "Conv, dilated": (
        ("Conv", "r D", {"dilations": [2, 3], "strides": [2, 1]}, "s"),
        3 * 2 * 2,
        {"D": f4(3, 4, 2, 2)},
    ),
    "Conv, SAME_LOWER": (
        ("Conv", "r D", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, "s"),
        27,
        {"D": f4(3, 4, 2, 2)},
    ),
    "BatchNormalization": (
        ("BatchNormalization", "r q q q w", {}, "s"),
        120,
        {"q": f4(4), "w": 0.5 + f4(4) ** 2},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps(name):
    step, size, weights = STEPS[name]
    assert_same(before_dense(step, size, weights))


SEQUENCE = (1, 3, 12)


@pytest.mark.parametrize(
    ("step", "shape"),
    [
        (("Conv", "h D", {"strides": [2], "pads": [2, 1], "dilations": [2]}, "s"), (2, 7)),
        (("Conv", "h D", {"auto_pad": "SAME_LOWER"}, "s"), (2, 12)),
        (("ConvTranspose", "h T", {"strides": [2], "output_padding": [1]}, "s"), (2, 26)),
        (("ConvTranspose", "h U", {"group": 3}, "s"), (3, 14)),
        (("ConvTranspose", "h T", {"strides": [2], "output_shape": [24]}, "s"), (2, 24)),
        (("MaxPool", "h", {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}, "s"), (3, 6)),
        (("AveragePool", "h", {"kernel_shape": [2], "strides": [2]}, "s"), (3, 6)),
        (("GlobalAveragePool", "h", {}, "s"), (3, 1)),
        (("GlobalMaxPool", "h", {}, "s"), (3, 1)),
        (("BatchNormalization", "h q q q w", {}, "s"), (3, 12)),
        (("Add", "h x", {}, "s"), (3, 12)),
        (("Resize", "h - z", {"coordinate_transformation_mode": "asymmetric",
                              "nearest_mode": "floor"}, "s"), (3, 24)),
    ],
)  # fmt: skip
def test_sequences(step, shape):
    """Convolutions and pooling along one axis, behind a convolution and a ReLU."""
    steps = [
        ("Conv", "x F c", {"pads": [1, 1], "kernel_shape": [3]}, "g"),
        ("Relu", "g", {}, "h"),
        step,
        ("Relu", "s", {}, "r"),
        ("Flatten", "r", {}, "f"),
        ("MatMul", "f W", {}),
    ]
    weights = {
        "F": f4(3, 3, 3), "c": f4(3), "D": f4(2, 3, 2), "T": f4(3, 2, 3), "U": f4(3, 1, 3),
        "q": f4(3), "w": 0.5 + f4(3) ** 2, "W": f4(int(np.prod(shape)), 4, seed=5),
        "z": np.float32([1, 1, 2]),
    }  # fmt: skip
    net = assert_same(model(steps, weights, SEQUENCE), SEQUENCE)
    assert isinstance(net.layers[0], rm.Conv2d)
    assert net.input_shape == (3, 1, 12)


HALF = "half_pixel"


@pytest.mark.parametrize("factors", [(2, 2), (3, 1), (5, 7)])
@pytest.mark.parametrize(
    ("mode", "nearest", "opset"),
    [
        ("asymmetric", "floor", 11),
        (HALF, "round_prefer_floor", 13),
        (HALF, "round_prefer_ceil", 13),
        ("pytorch_half_pixel", "round_prefer_floor", 17),
        ("tf_half_pixel_for_nn", "floor", 11),
    ],
)
def test_resize_repeats_pixels(factors, mode, nearest, opset):
    attributes = {"coordinate_transformation_mode": mode, "nearest_mode": nearest}
    weights = {"none": np.zeros(0, "f4"), "z": np.float32([1, 1, *factors]),
               "n": np.int64([1, 4, 6 * factors[0], 5 * factors[1]])}  # fmt: skip
    for inputs in ("r none z", "r none none n"):
        step = ("Resize", inputs, attributes, "s")
        assert_same(before_dense(step, 120 * np.prod(factors), weights, opset=opset), samples=2)


def test_older_resize_and_upsample():
    step, weights = ("Resize", "r z", {}, "s"), {"z": np.float32([1, 1, 2, 3])}
    assert_same(before_dense(step, 720, weights, opset=10))
    assert_same(before_dense(("Upsample", "r z", {}, "s"), 720, weights, opset=9))
    step = ("Upsample", "r", {"scales": [1.0, 1.0, 2.0, 3.0]}, "s")
    assert_same(before_dense(step, 720, opset=7))


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ("r none z", {"mode": "linear"}, "got 'linear', 'half_pixel', 'round_prefer_floor'; "),
        ("r none z", {"nearest_mode": "ceil"}, "got 'nearest', 'half_pixel', 'ceil'; instead: "),
        ("r none y", {}, r"a whole number for each axis as factor, got \[1.0, 1.0, 1.5, 2.0\]; in"),
        ("r none none n", {}, r"whole number .*got \[1.0, 0.75, 1.0, 1.0\]; instead: resize by"),
        ("r none h", {}, "got 'h', which depends|constants beside its input"),
        ("r none w", {}, r"a whole number for each axis as factor, got \[2.0, 2.0\]"),
        ("r", {}, "expected scales or sizes, got neither"),
    ],
)
def test_refused_resizing(inputs, attributes, message):
    weights = {"none": np.zeros(0, "f4"), "z": np.float32([1, 1, 2, 2]), "w": np.float32([2, 2]),
               "y": np.float32([1, 1, 1.5, 2]), "n": np.int64([1, 3, 6, 5])}  # fmt: skip
    with pytest.raises(ValueError, match="m.onnx: Resize node 2: .*" + message):
        read(before_dense(("Resize", inputs, attributes, "s"), 120, weights))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            ("Conv", "x F", {}),
            r"expected images .* or sequences .*got shape \(1, 3, 4, 4, 4\); ins",
        ),
        (("MaxPool", "x", {"kernel_shape": [2, 2, 2]}), "instead: reshape it to an image before"),
    ],
)
def test_volumes_are_refused(step, message):
    with pytest.raises(ValueError, match="node 0: .*" + message):
        read(model([step], {"F": f4(2, 3, 2, 2, 2)}, (1, 3, 4, 4, 4)))


@pytest.mark.parametrize("sizes", [[8, 7], [7, 6, 1], [7]])
def test_sizes_of_transposed_convolutions(sizes):
    message = r"ConvTranspose node 2: expected the size \[8, 6\] or a smaller one, got .*; instead"
    step = ("ConvTranspose", "r T", {"output_shape": sizes}, "s")
    with pytest.raises(ValueError, match=message):
        read(before_dense(step, 42, {"T": f4(4, 2, 3, 2)}))


@pytest.mark.parametrize(
    ("step", "size", "opset"),
    [
        (("Slice", "r", {"starts": [1], "ends": [3], "axes": [2]}, "s"), 40, 9),
        (("Pad", "r", {"pads": [0, 0, 1, 1, 0, 0, 0, 0], "value": 0.5}, "s"), 4 * 7 * 6, 10),
        (("Clip", "h", {"min": -0.5, "max": 0.5}, "s"), 120, 10),
        (("Clip", "h", {"min": 0.0, "max": 3.4028234e38}, "s"), 120, 10),
        (("ReduceSum", "r", {"axes": [1]}, "s"), 30, 12),
        ([("Split", "r", {"axis": 3, "split": [2, 3]}, "a b"), ("Neg", "b", {}, "s")], 72, 12),
        ([("Unsqueeze", "r", {"axes": [1]}, "a"), ("Squeeze", "a", {"axes": [1]}, "s")], 120, 12),
        ([("Split", "r", {"axis": 1, "num_outputs": 2}, "a b"), ("Neg", "b", {}, "s")], 60, 18),
    ],
)
def test_older_and_newer_forms(step, size, opset):
    assert_same(before_dense(step, size, opset=opset))


def test_layers_stay_convolutions():
    """Pooling, skip connections and turned axes do not make a layer dense."""
    steps = [
        ("Transpose", "x", {"perm": [0, 3, 1, 2]}, "i"),
        ("Conv", "i F", {"pads": [1, 1, 1, 1]}, "a"),
        ("Relu", "a", {}, "b"),
        ("MaxPool", "b", {"kernel_shape": [2, 2], "strides": [2, 2]}, "p"),
        ("Conv", "p G", {"pads": [1, 1, 1, 1]}, "c"),
        ("LeakyRelu", "c", {"alpha": 0.25}, "d"),
        ("Add", "d p", {}, "e"),
        ("AveragePool", "e", {"kernel_shape": [2, 2], "strides": [2, 2]}, "f"),
        ("Conv", "f G", {"auto_pad": "SAME_UPPER"}, "g"),
        ("Relu", "g", {}, "h"),
        ("Transpose", "h", {"perm": [0, 2, 3, 1]}, "j"),
        ("Reshape", "j n", {}, "k"),
        ("MatMul", "k W", {}),
    ]
    weights = {"F": f4(4, 3, 3, 3), "G": f4(4, 4, 3, 3), "W": f4(16, 2), "n": np.int64([-1, 16])}
    net = assert_same(model(steps, weights, ("n", 8, 8, 3)), (1, 8, 8, 3))
    assert [type(layer) for layer in net.layers] == [rm.Conv2d] * 5 + [rm.Flatten, rm.Linear]
    assert net.input_shape == (3, 8, 8)


GEMM = {"W": f4(12, 3), "b": f4(3)}


@pytest.mark.parametrize(
    ("shape", "output", "steps", "weights"),
    [
        ((12,), (3,), [("MatMul", "x W", {}), ("Add", "t0 b", {})], GEMM),
        ((1, 12, 1), (1, 3), [("Flatten", "x", {}), ("Gemm", "t0 W b", {})], GEMM),
        (
            ("n", 4, 3),
            None,
            [("Reshape", "x s", {}), ("Gemm", "t0 W b", {})],
            {**GEMM, "s": np.int64([-1, 12])},
        ),
        (
            (12, 1),
            (3, 1),
            [("MatMul", "V x", {}), ("Add", "t0 c", {})],
            {"V": f4(3, 12), "c": f4(3, 1)},
        ),
        ((12, 1), (3, 1), [("Gemm", "V x c", {"alpha": 0.5})], {"V": f4(3, 12), "c": f4(3, 1)}),
        ((12, 1), (1, 3), [("Gemm", "x W b", {"transA": 1})], GEMM),
        ((1, 3, 4), (1, 3, 1), [("MatMul", "x V", {})], {"V": f4(4, 1)}),
        (
            (2, 2, 3),
            (3,),
            [("Reshape", "x s", {}), ("MatMul", "t0 W", {})],
            {**GEMM, "s": np.int64([12])},
        ),
        ((12,), (3,), [("MatMul", "V x", {})], {"V": f4(3, 12)}),
        (
            (1, 12),
            (1, 3),
            [("Unsqueeze", "x a", {}), ("MatMul", "t0 W", {}), ("Squeeze", "t1 a", {})],
            {**GEMM, "a": np.int64([1])},
        ),
    ],
)
def test_shapes_of_inputs(shape, output, steps, weights):
    size = tuple(1 if isinstance(side, str) else side for side in shape)
    assert_same(model(steps, weights, shape, output), size)


def test_a_batch_of_several_has_equal_rows():
    steps = [
        ("Reshape", "x s", {}), ("Gemm", "t0 W C", {}), ("Relu", "t1", {}), ("Add", "t2 c", {}),
    ]  # fmt: skip
    row, c = f4(1, 3), f4(5, 3)
    weights = {"W": f4(12, 3), "C": np.repeat(row, 5, axis=0), "c": np.repeat(f4(1, 3), 5, axis=0)}
    weights["s"] = np.int64([5, 12])
    proto = model(steps, weights, (5, 4, 3), (5, 3))
    found = read(proto)
    assert (found.input_shape, found.network.input_shape) == ((4, 3), (12,))
    X = f4(5, 4, 3)
    assert_allclose(found.network(X.reshape(5, 12)), run(proto, X), rtol=1e-5, atol=1e-5)
    weights["c"] = c
    with pytest.raises(ValueError, match="Add node 3: expected equal rows for all 5 inputs"):
        read(model(steps, weights, (5, 4, 3), (5, 3)))
    turned = [
        ("Transpose", "x", {"perm": [1, 0, 2]}),
        ("Reshape", "t0 s", {}),
        ("Gemm", "t1 W", {}),
    ]
    with pytest.raises(ValueError, match=r"Transpose node 0: .*that of a batch of 5; instead"):
        read(model(turned, weights, (5, 4, 3), (5, 3)))


@pytest.mark.parametrize("operator", ["Sigmoid", "ArgMax"])
def test_what_is_left_out_at_the_end(operator):
    attributes = {"axis": 1, "keepdims": 0} if operator == "ArgMax" else {}
    proto = model([("Gemm", "x W b", {}), (operator, "t0", attributes)], GEMM, ("n", 12))
    if operator == "ArgMax":
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.warns(UserWarning, match=f"m.onnx: {operator} node 1 is left out: the network"):
        net = onnx_files.from_bytes(proto.SerializeToString(), "m.onnx")
    X = f4(9, 12)
    result = run(proto, X)
    assert_array_equal(net.predict(X), result if operator == "ArgMax" else result.argmax(axis=1))
    assert read(proto).left_out == f"{operator} node 1"


def test_one_sigmoid_is_a_classifier_of_two():
    proto = model([("Gemm", "x W", {}), ("Sigmoid", "t0", {})], {"W": f4(12, 1)}, ("n", 12))
    X = f4(9, 12)
    assert_array_equal(read(proto).network.predict(X), run(proto, X)[:, 0] > 0.5)


def test_two_entries_of_one_operator_set():
    proto = model([("Gemm", "x W b", {})], GEMM, ("n", 12))
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 17))
    assert read(proto).network.n_classes == 3
    proto.opset_import[1].version = 16
    with pytest.raises(ValueError, match=r"expected one operator set, .* got \[16, 17\]"):
        read(proto)


def test_computed_constants():
    """Weights and shapes that the graph computes, as some exporters write them."""
    steps = [
        ("Transpose", "V", {}, "W0"),
        ("Mul", "W0 h", {}, "W"),
        ("Shape", "x", {}, "shape"),
        ("Slice", "shape zero one", {}, "batch"),
        ("ConstantOfShape", "one", {"value": helper.make_tensor("", 7, [1], [-1])}, "rest"),
        ("Concat", "batch rest", {"axis": 0}, "target"),
        ("Reshape", "x target", {}, "flat"),
        ("MatMul", "flat W", {}),
    ]
    weights = {"V": f4(3, 12), "h": np.float32(0.5), "zero": np.int64([0]), "one": np.int64([1])}
    net = assert_same(model(steps, weights, ("n", 3, 4)), (1, 3, 4))
    assert_array_equal(net.parameters[0][0], weights["V"] / 2)


def test_more_computed_constants():
    """A batch normalisation in pieces, halves of one tensor, a shape by comparisons."""
    steps = [
        ("Sqrt", "v", {}, "d"),
        ("Reciprocal", "d", {}, "e"),
        ("Mul", "x e", {}, "z"),
        ("Split", "V", {"axis": 1}, "A B"),
        ("Split", "V two", {"axis": 1}, "C D"),
        ("Sub", "A D", {}, "W"),
        ("Shape", "x", {"start": 1}, "sizes"),
        ("ReduceProd", "sizes", {"keepdims": 1}, "size"),
        ("Equal", "given none", {}, "open"),
        ("Where", "open size given", {}, "shape"),
        ("Concat", "none shape", {"axis": 0}, "target"),
        ("Reshape", "z target", {}, "flat"),
        ("MatMul", "flat W", {}),
    ]
    weights = {"v": 0.5 + f4(3, 4) ** 2, "V": f4(12, 6), "two": np.int64([3, 3]),
               "given": np.int64([-1]), "none": np.int64([-1])}  # fmt: skip
    assert_same(model(steps, weights, ("n", 3, 4)), (1, 3, 4))


@pytest.mark.parametrize("operator", ["Sqrt", "Reciprocal", "Where", "ReduceProd", "LSTM", "Det"])
def test_other_operators_are_refused_with_a_way_out(operator):
    inputs = {"Where": "x x x", "LSTM": "x x x"}.get(operator, "x")
    proto = model([(operator, inputs, {}), ("Flatten", "t0", {})], {}, (1, 4, 4))
    with pytest.raises(ValueError, match=f"{operator} node 0: expected .*, got {operator}.*: .*in"):
        read(proto)


@pytest.mark.parametrize("inputs", ["c x a", "c b x", "c x z", "c z x", "d x b"])
def test_a_choice_by_a_constant_condition(inputs):
    """Where is affine then; d chooses for rows of the image."""
    c, shape = f4(4, 6, 5) > 0, (1, 4, 6, 5)
    weights = {"c": c, "d": c[0, :, :1], "a": f4(4, 6, 5), "b": f4(1, 6, 1), "h": np.float32(3)}
    assert_same(model([("Mul", "x h", {}, "z"), ("Where", inputs, {}, "w"), ("Flatten", "w", {})],
                      weights, shape))  # fmt: skip


@pytest.mark.parametrize("kind", ["Sum", "Mean"])
def test_sums_of_values_and_constants(kind):
    steps = [("Relu", "x", {}, "r"), (kind, "c x r x b", {}, "s"), ("Flatten", "s", {})]
    assert_same(model(steps, {"c": f4(4, 6, 5), "b": f4(5)}))


@pytest.mark.parametrize("target", [(1, -1), (1, 24)])
def test_a_reshape_that_puts_a_batch_into_one_row_is_refused(target):
    """Not the same network for each row: 8 rows of 3 numbers become one of 24."""
    steps = [("Relu", "x", {}), ("Reshape", "t0 shape", {})]
    proto = model(steps, {"shape": np.int64(target)}, (8, 3))
    assert run(proto, f4(8, 3)).shape == (1, 24)
    with pytest.raises(ValueError, match="Reshape node 1: expected the first axis to be left"):
        read(proto)


def test_a_shape_knows_its_batch():
    steps = [
        ("Shape", "x", {}, "sizes"), ("Slice", "sizes zero one", {}, "batch"),
        ("Concat", "batch rest", {"axis": 0}, "target"), ("Reshape", "x target", {}, "flat"),
        ("MatMul", "flat W", {}),
    ]  # fmt: skip
    weights = {"zero": np.int64([0]), "one": np.int64([1]), "rest": np.int64([-1]), "W": f4(6, 2)}
    proto = model(steps, weights, (4, 2, 3), (4, 2))
    X = f4(4, 2, 3)
    assert_allclose(read(proto).network(X.reshape(4, -1)), run(proto, X), rtol=1e-5, atol=1e-6)


def test_an_image_of_three_equal_sizes_is_not_turned():
    """Its shape would not show it; channels last, the first layer is no convolution then."""
    steps = [
        ("Transpose", "x", {"perm": [0, 3, 1, 2]}),
        ("Conv", "t0 F", {}),
        ("Flatten", "t1", {}),
    ]
    found = read(model(steps, {"F": f4(2, 3, 2, 2)}, (1, 3, 3, 3)))
    assert found.input_order is None
    assert_same(model(steps, {"F": f4(2, 3, 2, 2)}, (1, 3, 3, 3)), (1, 3, 3, 3))


def residual_network():
    """As in VNN-COMP's cifar10_resnet: two blocks, the second with a stride."""
    rng = np.random.default_rng(0)
    weights, steps = {}, []

    def conv(into, out, n_in, n_out, size, stride):
        name = f"F{len(weights)}"
        weights[name] = (rng.normal(size=(n_out, n_in, size, size)) / np.sqrt(n_in) / size).astype(
            "f4"
        )
        weights[name + "b"] = rng.normal(size=n_out).astype("f4") / 4
        pads = [size // 2] * 4
        options = {"strides": [stride, stride], "pads": pads, "kernel_shape": [size, size]}
        steps.append(("Conv", f"{into} {name} {name}b", options, out))

    conv("x", "a0", 3, 4, 3, 2)
    steps.append(("Relu", "a0", {}, "a"))
    for source, target, n_in, n_out, stride in (("a", "b", 4, 4, 1), ("b", "c", 4, 8, 2)):
        conv(source, target + "1", n_in, n_out, 3, stride)
        steps.append(("Relu", target + "1", {}, target + "2"))
        conv(target + "2", target + "3", n_out, n_out, 3, 1)
        skip = source
        if stride > 1:
            skip = target + "4"
            conv(source, skip, n_in, n_out, 1, stride)
        steps.append(("Add", f"{target}3 {skip}", {}, target + "5"))
        steps.append(("Relu", target + "5", {}, target))
    weights.update(W=f4(8 * 4 * 4, 10), w=f4(10))
    return model(
        [*steps, ("Flatten", "c", {}, "f"), ("Gemm", "f W w", {})], weights, (1, 3, 16, 16)
    )


def test_residual_network():
    net = assert_same(residual_network(), (1, 3, 16, 16), samples=3)
    assert [type(layer) for layer in net.layers] == [rm.Conv2d] * 5 + [rm.Flatten, rm.Linear]
    units = sum(4 * 64 for _ in "abb") + 2 * 8 * 16  # those of the model's ReLUs
    assert net.n_hidden == units + 4 * 64 + 4 * 64  # the values a and b are carried once


def question(lo, hi, output):
    """Counterexamples: inputs within bounds for which output 0 is at least output 1."""
    lines = [f"(declare-const X_{j} Real)" for j in range(len(lo))]
    lines += [f"(declare-const Y_{k} Real)" for k in range(2)]
    for j, (low, high) in enumerate(zip(lo, hi, strict=True)):
        lines += [f"(assert (>= X_{j} {low}))", f"(assert (<= X_{j} {high}))"]
    return "\n".join([*lines, output])


def test_properties_of_a_network_with_channels_last(tmp_path):
    """X_j counts the model's inputs, not those of the network, whose channels are first."""
    steps = [
        ("Transpose", "x", {"perm": [0, 3, 1, 2]}), ("Conv", "t0 F", {}), ("Relu", "t1", {}),
        ("Flatten", "t2", {}), ("MatMul", "t3 W", {}),
    ]  # fmt: skip
    F = np.zeros((1, 3, 2, 2), "f4")
    F[0, 2, 0, 0] = 1  # reads channel 2 alone
    weights = {"F": F, "W": np.eye(6, 2, dtype="f4")[[0, 2, 3, 4, 5, 1]]}
    path = tmp_path / "m.onnx"
    proto = model(steps, weights, (1, 3, 4, 3), (1, 2))
    path.write_bytes(proto.SerializeToString())
    assert read(proto).input_order is not None
    # f_0 - f_1 = x[0, 0, 2] - x[1, 2, 2]: the entries 2 and 20 of the flattened input.
    lo, hi = np.zeros(36), np.ones(36)
    lo[20], hi[2] = 0.5, 0.25
    for limit, status in ((hi[2], "holds"), (0.75, "violated")):
        hi[2] = limit
        (tmp_path / "p.vnnlib").write_text(question(lo, hi, "(assert (>= Y_0 Y_1))"))
        found = rm.verify(path, tmp_path / "p.vnnlib", max_seconds=20)
        assert found.status == status
    assert found.replayed
    assert found.exact.x[2] >= found.exact.x[20]
    proto.graph.node[-1].output[0] = "t4"
    proto.graph.node.append(helper.make_node("Softmax", ["t4"], ["y"]))
    path.write_bytes(proto.SerializeToString())
    with (
        pytest.warns(UserWarning, match="is left out"),
        pytest.raises(ValueError, match=r"net: expected a model whose outputs .*Softmax node 5"),
    ):
        rm.verify(path, tmp_path / "p.vnnlib")


FOLDER = os.environ.get("REFMMR_VNNCOMP")


@pytest.mark.skipif(not FOLDER, reason="REFMMR_VNNCOMP is not set: networks of VNN-COMP")
def test_networks_of_vnncomp():
    paths = sorted(Path(FOLDER).glob("*/*.onnx"))
    assert paths
    for path in paths:
        found = onnx_files.read_model(path)
        net = found.network
        assert net.dtype == np.float32
        session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        for x in np.random.default_rng(0).random((3, *found.input_shape), dtype=np.float32):
            expected = session.run(None, {session.get_inputs()[0].name: x[None]})[0]
            logits = net(x.reshape(1, *net.input_shape))
            assert_allclose(logits, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
