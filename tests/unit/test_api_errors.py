"""Bad input: the error names the argument, what was expected and what came."""

from fractions import Fraction

import numpy as np
import pytest

import refmmr as rm
from refmmr import Conv2d, Flatten, Linear, Network

NAN, INF = np.nan, np.inf
NET = Network([Linear([[1, 2], [3, 4], [5, 6]], [0, 0, 0]), Linear(np.ones((2, 3)), [0, 1])], 2)
IMAGES = Network(
    [Conv2d(np.ones((1, 1, 2, 2)), [0]), Flatten(), Linear(np.ones((2, 4)), [0, 0])], (1, 3, 3)
)
X, Y = np.full((2, 2), 0.5), [0, 1]
WIDE = np.ones((2, 3))
FILTERS = np.ones((1, 1, 2, 2))
MARGINS = {"gamma_b": 1, "gamma_d": 1}


def says(call, error, *words):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message


# What is not an array of finite real numbers, and what the message says of it.
NOT_NUMBERS = {
    "nan": ([[1, NAN], [1, 1]], ValueError, ["finite", "nan", "(0, 1)"]),
    "inf": ([[1, 1], [1, -INF]], ValueError, ["finite", "-inf", "(1, 1)"]),
    "ragged": ([[1, 2], [3]], ValueError, ["ragged"]),
    "complex": (np.ones((2, 2), complex), TypeError, ["real numbers", "complex128"]),
    "strings": ([["1", "2"], ["3", "4"]], TypeError, ["real numbers", "<U1"]),
    "objects": ([[Fraction(1, 2)] * 2] * 2, TypeError, ["real numbers", "object"]),
    "None": (None, TypeError, ["real numbers", "object"]),
    "dates": (np.zeros((2, 2), "datetime64[s]"), TypeError, ["real numbers", "datetime64"]),
}


@pytest.fixture(params=NOT_NUMBERS)
def not_numbers(request):
    return NOT_NUMBERS[request.param]


# Every public function that takes a batch and its labels.
BATCH_FUNCTIONS = {
    "distances": rm.distances,
    "mmr": lambda net, X, y, **options: rm.mmr(net, X, y, **MARGINS, **options),
    "mmr_gradient": lambda net, X, y, **options: rm.mmr_gradient(net, X, y, **MARGINS, **options),
}


@pytest.fixture(params=BATCH_FUNCTIONS)
def function(request):
    return BATCH_FUNCTIONS[request.param]


class TestLayers:
    def test_weights_that_are_not_numbers(self, not_numbers):
        W, error, words = not_numbers
        says(lambda: Linear(W, [0, 0]), error, "W:", *words)

    def test_biases_that_are_not_numbers(self):
        says(lambda: Linear([[1]], [NAN]), ValueError, "b:", "finite", "nan", "(0,)")
        says(lambda: Conv2d(FILTERS, ["0"]), TypeError, "b:", "real numbers", "<U1")

    @pytest.mark.parametrize("W", [1, [1, 2], np.ones((2, 2, 2))])
    def test_linear_axes(self, W):
        says(lambda: Linear(W, [0, 0]), ValueError, "W:", "2 axes", str(np.shape(W)))

    def test_conv_axes(self):
        says(lambda: Conv2d(np.ones((2, 2)), [0, 0]), ValueError, "W:", "4 axes", "(2, 2)")

    @pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
    def test_no_weights(self, shape):
        says(
            lambda: Linear(np.ones(shape), np.zeros(shape[0])),
            ValueError,
            "W:",
            "at least one",
            str(shape),
        )

    def test_biases_that_do_not_go_with_the_weights(self):
        says(lambda: Linear([[1, 2]], [0, 0]), ValueError, "b:", "(1,)", "(2,)")
        says(lambda: Linear([[1, 2]], 0), ValueError, "b:", "1 axes", "()")
        says(lambda: Linear([[1, 2]], [[0]]), ValueError, "b:", "1 axes", "(1, 1)")

    @pytest.mark.parametrize(
        ("stride", "came"), [(0, "0"), (-1, "-1"), ((1, 0), "0"), ((1, 2, 3), "(1, 2, 3)")]
    )
    def test_stride(self, stride, came):
        says(lambda: Conv2d(FILTERS, [0], stride=stride), ValueError, "stride:", "integer", came)

    @pytest.mark.parametrize("stride", [1.5, "2", None, True])
    def test_stride_that_is_no_integer(self, stride):
        says(
            lambda: Conv2d(FILTERS, [0], stride=stride),
            TypeError,
            "stride:",
            "integer",
            repr(stride),
        )

    @pytest.mark.parametrize(
        "padding",
        [-1, (1, -1), "full", (1, 2, 3), ((1, 2), (3, 4), (5, 6)), ((1, 2, 3), 1)],
    )
    def test_padding(self, padding):
        says(lambda: Conv2d(FILTERS, [0], padding=padding), ValueError, "padding:", "integer")

    @pytest.mark.parametrize("padding", [0.5, None])
    def test_padding_that_is_no_integer(self, padding):
        words = ["padding:", "integer", repr(padding)]
        says(lambda: Conv2d(FILTERS, [0], padding=padding), TypeError, *words)


class TestNetwork:
    def test_things_that_are_no_layers(self):
        says(lambda: Network([np.ones((2, 2))], 2), TypeError, "layers[0]", "Linear", "ndarray")
        says(lambda: Network([NET.layers[0], None], 2), TypeError, "layers[1]", "NoneType")

    def test_no_layer_with_weights(self):
        says(lambda: Network([], 2), ValueError, "layers:", "at least one", "none")
        says(lambda: Network([Flatten()], (1, 2, 2)), ValueError, "layers:", "at least one", "none")

    def test_layers_that_do_not_fit(self):
        two, three = Linear(np.ones((3, 2)), [0] * 3), Linear(np.ones((1, 2)), [0])
        says(lambda: Network([two, three], 2), ValueError, "layers[1]", "(2,)", "got (3,)")
        says(lambda: Network([two], 3), ValueError, "layers[0]", "(2,)", "got (3,)")

    def test_images_for_a_dense_layer(self):
        layers = [Conv2d(FILTERS, [0]), Linear(np.ones((1, 4)), [0])]
        says(lambda: Network(layers, (1, 3, 3)), ValueError, "layers[1]", "(1, 2, 2)", "Flatten")

    def test_vectors_for_image_layers(self):
        says(lambda: Network([Conv2d(FILTERS, [0])], 4), ValueError, "layers[0]", "got (4,)")
        says(lambda: Network([Flatten()], 4), ValueError, "layers[0]", "height", "got (4,)")

    def test_wrong_number_of_channels(self):
        says(
            lambda: Network([Conv2d(FILTERS, [0])], (3, 4, 4)),
            ValueError,
            "layers[0]",
            "(1, height, width)",
            "got (3, 4, 4)",
        )

    def test_a_kernel_larger_than_the_image(self):
        layers = [Conv2d(np.ones((1, 1, 4, 4)), [0]), Flatten(), Linear([[1]], [0])]
        says(lambda: Network(layers, (1, 3, 3)), ValueError, "layers[0]", "no output", "(1, 0, 0)")

    @pytest.mark.parametrize(
        ("shape", "error", "words"),
        [
            ((1, 2), ValueError, ["(channels, height, width)", "(1, 2)"]),
            ((), ValueError, ["(channels, height, width)", "()"]),
            (0, ValueError, ["at least 1", "0"]),
            ((1, -3, 3), ValueError, ["at least 1", "-3"]),
            ((2.0,), TypeError, ["integer", "2.0"]),
            ("2", TypeError, ["integer", "'2'"]),
            (None, TypeError, ["None"]),
            (2.5, TypeError, ["2.5"]),
        ],
    )
    def test_input_shape(self, shape, error, words):
        says(lambda: Network(NET.layers, shape), error, "input_shape:", *words)

    @pytest.mark.parametrize("call", [NET, NET.predict, NET.activation_pattern])
    def test_inputs(self, call, not_numbers):
        bad, error, words = not_numbers
        says(lambda: call(bad), error, "X:", *words)
        says(lambda: call(WIDE), ValueError, "X:", "(n, 2)", "(2, 3)")
        says(lambda: call([1, 2]), ValueError, "X:", "(n, 2)", "(2,)", "X[None]")
        says(lambda: call(np.ones((0, 2))), ValueError, "X:", "at least one", "(0, 2)")

    def test_images(self):
        says(lambda: IMAGES(np.ones((2, 9))), ValueError, "X:", "(n, 1, 3, 3)", "(2, 9)")
        says(lambda: IMAGES(np.ones((1, 3, 3))), ValueError, "X:", "(1, 3, 3)", "X[None]")

    @pytest.mark.parametrize("dtype", [np.float16, int, complex, object])
    def test_astype(self, dtype):
        says(lambda: NET.astype(dtype), TypeError, "dtype:", "float32", str(np.dtype(dtype)))

    def test_with_parameters(self):
        pairs = NET.parameters
        says(lambda: NET.with_parameters(pairs[:1]), ValueError, "parameters:", "2 pairs", "got 1")
        wrong = [pairs[0], (WIDE.T, [0, 0, 0])]
        says(lambda: NET.with_parameters(wrong), ValueError, "layer 1", "(2, 3)", "(3, 2)")

    @pytest.mark.parametrize(
        ("sizes", "error", "words"),
        [
            ([3], ValueError, ["inputs and classes", "[3]"]),
            ([3, 0, 2], ValueError, ["at least 1", "0"]),
            ([3, 2.0], TypeError, ["integer", "2.0"]),
        ],
    )
    def test_mlp(self, sizes, error, words):
        says(lambda: Network.mlp(sizes), error, "sizes:", *words)

    def test_lenet_small(self):
        says(lambda: Network.lenet_small((28, 28)), ValueError, "input_shape:", "(28, 28)")
        says(lambda: Network.lenet_small((1, 0, 28)), ValueError, "input_shape:", "at least 1", "0")
        says(lambda: Network.lenet_small(n_classes=0), ValueError, "n_classes:", "at least 1", "0")


class TestLinearRegion:
    def test_numbers(self):
        says(lambda: rm.linear_region(NET, [NAN, 0]), ValueError, "x:", "finite", "nan", "(0,)")
        says(lambda: rm.linear_region(NET, [1j, 0]), TypeError, "x:", "complex128")
        says(lambda: rm.linear_region(NET, ["a", "b"]), TypeError, "x:", "<U1")
        says(lambda: rm.linear_region(NET, [[1], 2]), ValueError, "x:", "ragged")

    def test_shape(self):
        says(lambda: rm.linear_region(NET, [1, 2, 3]), ValueError, "x:", "(2,)", "(3,)")
        says(lambda: rm.linear_region(NET, X), ValueError, "x:", "(2,)", "(2, 2)")
        says(lambda: rm.linear_region(IMAGES, np.ones(9)), ValueError, "x:", "(1, 3, 3)", "(9,)")


class TestBatches:
    def test_inputs_that_are_not_numbers(self, function, not_numbers):
        bad, error, words = not_numbers
        says(lambda: function(NET, bad, Y), error, "X:", *words)

    def test_inputs_of_a_wrong_shape(self, function):
        says(lambda: function(NET, WIDE, Y), ValueError, "X:", "(n, 2)", "(2, 3)")
        says(lambda: function(NET, X[0], Y), ValueError, "X:", "(n, 2)", "(2,)", "X[None]")
        says(lambda: function(NET, 3.0, Y), ValueError, "X:", "(n, 2)", "()")

    def test_empty_batch(self, function):
        says(lambda: function(NET, np.ones((0, 2)), []), ValueError, "X:", "at least one", "(0, 2)")

    @pytest.mark.parametrize(
        ("y", "error", "words"),
        [
            ([0.0, 1.0], TypeError, ["integer", "float64"]),
            ([True, False], TypeError, ["integer", "bool"]),
            (["0", "1"], TypeError, ["integer", "<U1"]),
            (None, TypeError, ["integer", "object"]),
            ([0, 2], ValueError, ["0 to 1", "2"]),
            ([-1, 0], ValueError, ["0 to 1", "-1"]),
            ([0], ValueError, ["(2,)", "(1,)"]),
            (0, ValueError, ["(2,)", "()"]),
            ([[0, 1]], ValueError, ["(2,)", "(1, 2)"]),
            ([[0, 1], [1]], ValueError, ["integer", "ragged"]),
        ],
    )
    def test_labels(self, function, y, error, words):
        says(lambda: function(NET, X, y), error, "y:", *words)

    @pytest.mark.parametrize("p", [0, 3, -1, -INF, NAN, 1.5, None, "two", [1, 2], True])
    def test_norm(self, function, p):
        says(lambda: function(NET, X, Y, p=p), ValueError, "p:", "1, 2 or inf", repr(p))

    @pytest.mark.parametrize("p", [np.array([1, 2]), np.array([[2]])])
    def test_norm_that_is_an_array(self, function, p):
        says(lambda: function(NET, X, Y, p=p), ValueError, "p:", "1, 2 or inf")

    def test_something_that_is_no_network(self, function):
        says(lambda: function("net", X, Y), TypeError, "net:", "Network", "str")


class TestBox:
    @pytest.mark.parametrize(
        ("box", "error", "words"),
        [
            (1, ValueError, ["pair (lo, hi)", "1"]),
            ((0, 1, 2), ValueError, ["pair (lo, hi)", "(0, 1, 2)"]),
            ((1, 0), ValueError, ["lo <= hi", "lo = 1", "hi = 0"]),
            (([0, 1], [1, 0.5]), ValueError, ["lo <= hi", "lo = 1", "hi = 0.5", "(1,)"]),
            # Where lo = hi nothing may change, but x must have that value.
            ((1, 1), ValueError, ["X", "inside the box", "from 1 to 1"]),
            (([0, 1], [1, 1]), ValueError, ["X", "inside the box"]),
            ((0, INF), ValueError, ["hi", "finite", "inf"]),
            ((NAN, 1), ValueError, ["lo", "finite", "nan"]),
            (("a", "b"), TypeError, ["lo", "real numbers"]),
            ((0, [1, 1, 1]), ValueError, ["hi", "(2,)", "(3,)"]),
            ((0, [[1, 1], [1, 1]]), ValueError, ["hi", "(2,)", "(2, 2)"]),
        ],
    )
    def test_box(self, box, error, words):
        says(lambda: rm.distances(NET, X, Y, box=box), error, "box", *words)

    def test_points_outside(self):
        outside = np.array([[0.5, 0.5], [0.5, 1.25]])
        says(
            lambda: rm.distances(NET, outside, Y, box=(0, 1)),
            ValueError,
            "X:",
            "inside the box",
            "sample 1",
            "1.25",
            "box=None",
        )

    def test_faces_are_inside(self):
        rm.distances(NET, [[0, 1], [1, 0]], Y, box=(0, 1))


class TestMargins:
    @pytest.fixture(params=["mmr", "mmr_gradient"])
    def regularizer(self, request):
        return getattr(rm, request.param)

    @pytest.mark.parametrize("name", ["gamma_b", "gamma_d"])
    @pytest.mark.parametrize("gamma", [0, -1, NAN, INF, "1", None, 1j, True])
    def test_gamma(self, regularizer, name, gamma):
        options = MARGINS | {name: gamma}
        error = ValueError if type(gamma) in (int, float) else TypeError
        says(lambda: regularizer(NET, X, Y, **options), error, f"{name}:", "> 0", repr(gamma))

    @pytest.mark.parametrize(("name", "most"), [("k_b", 3), ("k_d", 2)])
    @pytest.mark.parametrize("k", [0, -1, "most + 1"])
    def test_k_out_of_range(self, regularizer, name, most, k):
        k = most + 1 if k == "most + 1" else k
        options = MARGINS | {name: k}
        says(
            lambda: regularizer(NET, X, Y, **options),
            ValueError,
            f"{name}:",
            f"from 1 to {most}",
            f"got {k}",
        )

    @pytest.mark.parametrize("k", [1.0, "1", True, [1]])
    def test_k_that_is_no_integer(self, regularizer, k):
        options = MARGINS | {"k_b": k}
        says(lambda: regularizer(NET, X, Y, **options), TypeError, "k_b:", "integer", repr(k))
