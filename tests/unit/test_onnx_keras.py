"""Graphs as tf2onnx writes them for models of Keras, against onnxruntime.

Images have their channels last, with transposes (of one channel: reshapes) around convolutions;
names have colons; biases, batch normalisations and shapes are nodes of their own.
"""

import warnings

import numpy as np
import pytest

import refmmr as rm
from refmmr.interop import onnx_files

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'refmmr[interop]'")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

TO_NCHW, TO_NHWC = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
NAME = "StatefulPartitionedCall/sequential"


class Graph:
    """Nodes one after the other, each on the output of the one before unless it says otherwise."""

    def __init__(self, *shape):
        self.shape, self.nodes, self.weights = shape, [], {}
        self.rng = np.random.default_rng(0)
        self.last = "input_1:0"

    def constant(self, array):
        name = f"{NAME}/const__{len(self.weights)}:0"
        self.weights[name] = np.asarray(array)
        return name

    def normal(self, *shape):
        fan_in = max(1, int(np.prod(shape[1:])))
        return (self.rng.normal(size=shape) / np.sqrt(fan_in)).astype("f4")

    def add(self, kind, *constants, at=None, first=True, **attributes):
        """A node; its other inputs are constants, or names of values."""
        at = self.last if at is None else at
        names = [c if isinstance(c, str) else self.constant(c) for c in constants]
        self.last = f"{NAME}/{kind.lower()}_{len(self.nodes)}:0"
        inputs = [at, *names] if first else [*names, at]
        name = self.last.removesuffix(":0")
        self.nodes.append(helper.make_node(kind, inputs, [self.last], name, **attributes))
        return self.last

    def conv(self, n_in, n_out, size, **attributes):
        """Conv2D: between transposes, with its bias as an Add behind them."""
        self.add("Transpose", **TO_NCHW)
        W = self.normal(n_out, n_in // attributes.get("group", 1), size, size)
        self.add("Conv", W, kernel_shape=[size, size], **attributes)
        self.add("Transpose", **TO_NHWC)
        self.add("Add", self.normal(n_out))

    def dense(self, n_in, n_out):
        self.add("MatMul", self.normal(n_out, n_in).T)
        self.add("Add", self.normal(n_out))

    def flatten(self, size):
        """The shape of Keras' Flatten, computed from that of its input."""
        x = self.last
        self.add("Shape")
        self.add("Cast", to=TensorProto.INT32)
        self.add("Slice", np.int64([0]), np.int64([1]), np.int64([0]))
        self.add("Squeeze", np.int64([0]))
        self.add("Unsqueeze", np.int64([0]))
        self.add("Concat", np.int32([size]), axis=0)
        shape = self.add("Cast", to=TensorProto.INT64)
        self.add("Reshape", shape, at=x)

    def model(self, opset=15):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "tf2onnx",
            [value("input_1:0", TensorProto.FLOAT, ("unk__1", *self.shape))],
            [value(self.last, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 2)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def assert_read(graph, kinds):
    """The network gives onnxruntime's outputs, with layers of these kinds: C, L and F."""
    content = graph.model().SerializeToString()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(written as ReLUs|is left out)")
        found = onnx_files.model_from_bytes(content, "m.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    X = np.random.default_rng(1).uniform(size=(4, *graph.shape)).astype("f4")
    expected = session.run(None, {"input_1:0": X})[0]
    flat = np.empty((4, X[0].size), "f4")
    order = slice(None) if found.input_order is None else found.input_order
    flat[:, order] = X.reshape(4, -1)
    logits = found.network(flat.reshape(4, *found.network.input_shape))
    if found.left_out:
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-6)
    names = {rm.Conv2d: "C", rm.Linear: "L", rm.Flatten: "F"}
    assert "".join(names[type(layer)] for layer in found.network.layers) == kinds
    return found.network


def test_convolutions_pooling_and_a_softmax():
    graph = Graph(12, 12, 3)
    graph.conv(3, 4, 3, strides=[2, 2], auto_pad="SAME_UPPER")
    graph.add("Relu")
    graph.add("Transpose", **TO_NCHW)
    graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    graph.add("Transpose", **TO_NHWC)
    graph.conv(4, 4, 2, pads=[0, 0, 1, 1])
    graph.add("Relu")
    graph.flatten(36)
    graph.dense(36, 8)
    graph.add("Relu")
    graph.dense(8, 5)
    graph.add("Softmax", axis=-1)
    net = assert_read(graph, "CCCCFLL")
    assert net.input_shape == (3, 12, 12)


def test_one_channel_is_reshaped_not_turned():
    graph = Graph(8, 8, 1)
    graph.add("Sub", np.float32(0.5))
    graph.add("Mul", np.float32(4))
    graph.add("Reshape", np.int64([-1, 1, 8, 8]))
    graph.add("Conv", graph.normal(4, 1, 3, 3), graph.normal(4), kernel_shape=[3, 3])
    graph.add("Relu")
    graph.add("Transpose", **TO_NHWC)
    graph.add("Reshape", np.int64([-1, 144]))
    graph.dense(144, 5)
    assert_read(graph, "CFL")


def test_batch_normalisation_and_depthwise_convolutions():
    """As in MobileNet: ZeroPadding2D, ReLU6, global average pooling."""
    graph = Graph(9, 9, 3)
    graph.add("Pad", np.int64([0, 1, 1, 0, 0, 0, 0, 0]))
    graph.conv(3, 4, 3, strides=[2, 2])
    graph.add("Mul", 0.5 + graph.normal(4) ** 2)
    graph.add("Sub", graph.normal(4))
    graph.add("Clip", np.float32(0), np.float32(0.5))
    graph.conv(4, 4, 3, group=4, pads=[1, 1, 1, 1])
    graph.add("Transpose", **TO_NCHW)
    ones = np.ones(4, "f4")
    graph.add("BatchNormalization", ones, graph.normal(4), graph.normal(4), ones, epsilon=1e-3)
    graph.add("LeakyRelu", alpha=0.3)
    graph.add("GlobalAveragePool")
    graph.add("Squeeze", np.int64([2, 3]))
    graph.dense(4, 3)
    assert_read(graph, "CCFL")


def test_a_residual_block_and_a_mean_over_pixels():
    graph = Graph(6, 6, 2)
    graph.conv(2, 4, 3, pads=[1, 1, 1, 1])
    skip = graph.add("Relu")
    graph.conv(4, 4, 3, pads=[1, 1, 1, 1])
    graph.add("Relu")
    graph.conv(4, 4, 3, pads=[1, 1, 1, 1])
    graph.add("Add", skip)
    graph.add("Relu")
    graph.add("ReduceMean", axes=[1, 2], keepdims=0)
    graph.dense(4, 3)
    assert_read(graph, "CCCFL")


def test_concatenation_and_upsampling():
    graph = Graph(4, 6, 2)
    graph.conv(2, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    graph.add("Relu")
    graph.add("Transpose", **TO_NCHW)
    graph.add(
        "Resize", np.float32([]).reshape(0), np.float32([1, 1, 2, 2]), mode="nearest",
        coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil",
    )  # fmt: skip
    graph.add("Transpose", **TO_NHWC)
    graph.add("Concat", "input_1:0", axis=3)
    graph.conv(5, 4, 3, pads=[1, 1, 1, 1])
    graph.add("Relu")
    graph.flatten(96)
    graph.dense(96, 3)
    # Pixels of two sizes beside each other: that layer is a matrix, with a warning.
    with pytest.warns(UserWarning, match="convolution written as a matrix of 96 x 114"):
        assert_read(graph, "CFLL")


def test_conv1d_as_a_convolution_of_images():
    graph = Graph(16, 3)
    graph.add("Unsqueeze", np.int64([1]))
    graph.add("Transpose", **TO_NCHW)
    graph.add("Conv", graph.normal(4, 3, 1, 5), kernel_shape=[1, 5], strides=[1, 2])
    graph.add("Transpose", **TO_NHWC)
    graph.add("Squeeze", np.int64([1]))
    graph.add("Add", graph.normal(4))
    graph.add("Relu")
    graph.flatten(24)
    graph.dense(24, 3)
    net = assert_read(graph, "CFL")
    assert net.input_shape == (3, 1, 16)


def test_a_sigmoid_of_one_output():
    graph = Graph(5)
    graph.dense(5, 4)
    graph.add("Relu")
    graph.dense(4, 1)
    logits = graph.last
    graph.add("Sigmoid")
    content = graph.model().SerializeToString()
    with pytest.warns(UserWarning, match="Sigmoid node 'StatefulPartitionedCall/.*' is left out"):
        net = onnx_files.from_bytes(content, "m.onnx")
    graph.nodes.pop()
    graph.last = logits
    session = ort.InferenceSession(graph.model().SerializeToString())
    X = graph.normal(6, 5)
    np.testing.assert_array_equal(net.predict(X), session.run(None, {"input_1:0": X})[0][:, 0] > 0)


@pytest.mark.parametrize("kind", ["Tanh", "Elu", "Softplus"])
def test_other_activations_are_refused_by_name(kind):
    graph = Graph(5)
    graph.dense(5, 4)
    graph.add(kind)
    graph.dense(4, 2)
    message = f"m.onnx: {kind} node '{NAME}/{kind.lower()}_2': .*not piecewise linear; instead"
    with pytest.raises(ValueError, match=message):
        onnx_files.from_bytes(graph.model().SerializeToString(), "m.onnx")
