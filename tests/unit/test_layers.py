import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from refmmr import Conv2d, Flatten, Linear
from refmmr.reference.layers import same_padding


def naive_conv(layer, image):
    """A convolution of one image, from its definition."""
    _, height, width = image.shape
    (top, _), (left, _) = layer.pads(height, width)
    down, across = layer.stride
    y = np.zeros(layer.output_shape(image.shape))
    for o, row, column in np.ndindex(*y.shape):
        y[o, row, column] = layer.b[o]
        for c, i, j in np.ndindex(*layer.W.shape[1:]):
            r, s = row * down + i - top, column * across + j - left
            if 0 <= r < height and 0 <= s < width:
                y[o, row, column] += layer.W[o, c, i, j] * image[c, r, s]
    return y


CONVOLUTIONS = [
    {"stride": 1, "padding": 0},
    {"stride": (1, 2), "padding": "same"},
    {"stride": (2, 1), "padding": (0, 2)},
    {"stride": 2, "padding": ((2, 0), (1, 3))},
    {"stride": 3, "padding": "valid"},
]


def conv(rng, **options):
    return Conv2d(rng.standard_normal((3, 2, 3, 2)), rng.standard_normal(3), **options)


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_conv_is_its_definition(options):
    rng = np.random.default_rng(0)
    layer, images = conv(rng, **options), rng.standard_normal((2, 2, 5, 6))
    expected = [naive_conv(layer, image) for image in images]
    assert_allclose(layer.apply(images), expected, rtol=1e-13, atol=1e-13)
    assert_allclose(layer.linear(images), expected - layer.b[:, None, None], atol=1e-13)
    assert layer.output_shape((2, 5, 6)) == expected[0].shape


def test_conv_by_hand():
    image = np.arange(9.0).reshape(1, 3, 3)
    layer = Conv2d([[[[1, 0], [0, -2]]]], [0.5])
    assert_array_equal(layer.apply(image), [[[-7.5, -8.5], [-10.5, -11.5]]])
    padded = Conv2d([[[[1, 0], [0, -2]]]], [0], padding=((1, 0), (0, 1)))
    assert_array_equal(padded.linear(image), [[[-2, -4, 0], [-8, -9, 2], [-11, -12, 5]]])


def test_conv_transpose_by_hand():
    # Two windows of stride 2 on a row of 4 pixels, one zero on the left: (0, x0), (x1, x2).
    layer = Conv2d([[[[2, 3]]]], [7], stride=2, padding=((0, 0), (1, 0)))
    assert_array_equal(layer.transpose(np.array([[[1.0, 10.0]]]), (1, 1, 4)), [[[3, 20, 30, 0]]])


def test_conv_weight_gradient_by_hand():
    layer = Conv2d([[[[2, 3]]]], [7], stride=2, padding=((0, 0), (1, 0)))
    dW, db = layer.gradient(np.array([[[5.0, 6, 7, 8]]]), np.array([[[1.0, 10.0]]]))
    assert_array_equal(dW, [[[[60, 5 + 70]]]])
    assert_array_equal(db, [11])


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_leading_axes_are_a_batch(options):
    rng = np.random.default_rng(1)
    layer, images = conv(rng, **options), rng.standard_normal((4, 3, 2, 5, 6))
    outputs = layer.apply(images)
    flat = layer.apply(images.reshape(12, 2, 5, 6))
    assert_array_equal(outputs.reshape(flat.shape), flat)
    back = layer.transpose(outputs, (2, 5, 6))
    assert_allclose(back.reshape(12, 2, 5, 6), layer.transpose(flat, (2, 5, 6)), atol=1e-12)
    dW, db = layer.gradient(images, outputs)
    singles = [layer.gradient(x, g) for x, g in zip(images.reshape(12, 2, 5, 6), flat, strict=True)]
    assert_allclose(dW, sum(single[0] for single in singles), rtol=1e-12, atol=1e-12)
    assert_allclose(db, sum(single[1] for single in singles), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [
        (28, 4, 2, (1, 1)),
        (5, 4, 2, (1, 2)),
        (6, 3, 2, (0, 1)),
        (7, 3, 1, (1, 1)),
        (7, 2, 1, (0, 1)),
        (4, 2, 2, (0, 0)),
        (5, 1, 3, (0, 0)),
        (1, 4, 2, (1, 2)),
    ],
)
def test_same_padding_is_tensorflows(size, kernel, stride, pads):
    assert same_padding(size, kernel, stride) == pads


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_gives_ceil_of_size_over_stride(size, stride):
    layer = Conv2d(np.ones((1, 1, 4, 4)), [0], stride=stride, padding="same")
    assert layer.output_shape((1, size, size)) == (1, *[-(-size // stride)] * 2)


def test_padding_spellings_agree():
    W = np.ones((1, 1, 3, 3))
    assert Conv2d(W, [0], padding=1).padding == ((1, 1), (1, 1))
    assert Conv2d(W, [0], padding=(1, 2)).padding == ((1, 1), (2, 2))
    assert Conv2d(W, [0], padding=((1, 2), (3, 4))).padding == ((1, 2), (3, 4))
    assert Conv2d(W, [0], padding="valid").padding == ((0, 0), (0, 0))
    assert Conv2d(W, [0], stride=(1, 2)).stride == (1, 2)


def test_linear_by_hand():
    layer = Linear([[1, 2, 3], [4, 5, 6]], [10, 20])
    x, g = np.array([[1.0, 0, -1]]), np.array([[1.0, -1]])
    assert_array_equal(layer.apply(x), [[8, 18]])
    assert_array_equal(layer.linear(x), [[-2, -2]])
    assert_array_equal(layer.transpose(g, (3,)), [[-3, -3, -3]])
    dW, db = layer.gradient(x, g)
    assert_array_equal(dW, [[1, 0, -1], [-1, 0, 1]])
    assert_array_equal(db, [1, -1])


def test_flatten_goes_channel_by_channel_and_row_by_row():
    image = np.arange(24.0).reshape(2, 3, 4)
    flat = Flatten().apply(image[None])
    assert_array_equal(flat, [np.arange(24)])
    assert_array_equal(Flatten().transpose(flat, (2, 3, 4)), image[None])
    assert Flatten().output_shape((2, 3, 4)) == (24,)


def test_layers_keep_copies_of_their_weights():
    W, b = np.ones((2, 2)), np.ones(2)
    layer = Linear(W, b)
    W[:] = b[:] = 7
    assert_array_equal(layer.W, np.ones((2, 2)))
    assert_array_equal(layer.b, np.ones(2))
