"""State dicts become the networks whose weights they are, or say why not."""

import numpy as np
import pytest

import refmmr as rm
from refmmr import Conv2d, Flatten, Linear
from refmmr.interop.state_dicts import BATCHNORM_EPS, from_state_dict, steps

RNG = np.random.default_rng(0)


def dense(prefix, n_out, n_in, bias=True):
    entries = {f"{prefix}.weight": RNG.normal(size=(n_out, n_in))}
    return entries | ({f"{prefix}.bias": RNG.normal(size=n_out)} if bias else {})


def conv(prefix, n_out, n_in, size=3):
    return {
        f"{prefix}.weight": RNG.normal(size=(n_out, n_in, size, size)),
        f"{prefix}.bias": RNG.normal(size=n_out),
    }


def norm(prefix, n, affine=True):
    entries = {
        f"{prefix}.running_mean": RNG.normal(size=n),
        f"{prefix}.running_var": RNG.random(n),
        f"{prefix}.num_batches_tracked": np.array(7),
    }
    if affine:
        entries |= {f"{prefix}.weight": RNG.normal(size=n), f"{prefix}.bias": RNG.normal(size=n)}
    return entries


def kinds(net):
    return [type(layer) for layer in net.layers]


def test_dense_bit_for_bit():
    tensors = dense("0", 5, 3) | dense("2", 4, 5, bias=False) | dense("10", 2, 4)
    net = from_state_dict(tensors, "x")
    assert kinds(net) == [Linear] * 3
    for (W, b), name in zip(net.parameters, ("0", "2", "10"), strict=True):
        assert (tensors[f"{name}.weight"] == W).all()
        assert (b == tensors.get(f"{name}.bias", 0)).all()


def test_numbers_before_letters_and_ten_behind_two():
    tensors = dense("10", 2, 4) | dense("2", 4, 5) | dense("0", 5, 3)
    assert [W.shape for W, _ in from_state_dict(tensors, "x").parameters] == [
        (5, 3),
        (4, 5),
        (2, 4),
    ]


def test_names_out_of_order_fall_back_on_the_order_of_the_mapping():
    tensors = dense("enter", 5, 3) | dense("away", 4, 5) | dense("classes", 2, 4)
    net = from_state_dict(tensors, "x")
    assert [W.shape for W, _ in net.parameters] == [(5, 3), (4, 5), (2, 4)]


def test_convolutions_come_first():
    tensors = dense("classifier.0", 2, 4 * 9) | conv("features.0", 4, 1)
    net = from_state_dict(tensors, "x", (1, 5, 5), 1, 0)
    assert kinds(net) == [Conv2d, Flatten, Linear]
    assert net.layers[0].stride == (1, 1)


def test_geometry_one_for_each_convolution():
    tensors = conv("0", 4, 1) | conv("2", 3, 4) | dense("5", 2, 3 * 4)
    net = from_state_dict(tensors, "x", (1, 8, 8), [2, 1], [1, 0])
    assert [layer.stride for layer in net.layers[:2]] == [(2, 2), (1, 1)]
    assert [layer.padding for layer in net.layers[:2]] == [((1, 1), (1, 1)), ((0, 0), (0, 0))]


def test_the_input_shape_that_alone_fits():
    tensors = conv("0", 4, 2) | dense("2", 2, 4 * 36)
    assert from_state_dict(tensors, "x", None, 1, 0).input_shape == (2, 8, 8)


def by_hand(x, parts):
    """A batch normalisation as its definition says."""
    shape = (-1,) if x.ndim == 2 else (-1, 1, 1)
    mean, var = (parts[f"running_{name}"].reshape(shape) for name in ("mean", "var"))
    x = (x - mean) / np.sqrt(var + BATCHNORM_EPS)
    return x * np.reshape(parts.get("weight", 1), (-1,) if x.ndim == 2 else shape) + np.reshape(
        parts.get("bias", 0), shape
    )


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalisation_is_folded(affine):
    entries = norm("1", 4, affine)
    parts = {name.partition(".")[2]: array for name, array in entries.items()}
    if not affine:
        parts |= {"weight": np.ones(4), "bias": np.zeros(4)}
    first = conv("0", 4, 1)
    last = dense("4", 2, 4 * 9)
    net = from_state_dict(first | entries | last, "x", (1, 5, 5), 1, 0)
    X = RNG.random((6, 1, 5, 5))
    hidden = Conv2d(first["0.weight"], first["0.bias"]).apply(X)
    hidden = np.maximum(by_hand(hidden, parts), 0).reshape(6, -1)
    np.testing.assert_allclose(
        net(X), hidden @ last["4.weight"].T + last["4.bias"], rtol=1e-12, atol=1e-12
    )
    assert kinds(net) == [Conv2d, Flatten, Linear]


def test_batch_normalisation_of_a_dense_layer():
    first, entries, last = dense("0", 4, 3), norm("1", 4), dense("3", 2, 4)
    parts = {name.partition(".")[2]: array for name, array in entries.items()}
    net = from_state_dict(first | entries | last, "x")
    X = RNG.random((6, 3))
    hidden = np.maximum(by_hand(X @ first["0.weight"].T + first["0.bias"], parts), 0)
    np.testing.assert_allclose(
        net(X), hidden @ last["3.weight"].T + last["3.bias"], rtol=1e-12, atol=1e-12
    )


REFUSED = {
    "empty": ({}, {}, "x: expected weights, got an empty state dict"),
    "name": ({"weights": np.ones((2, 2))}, {}, r"x: expected a network .* got an entry 'weights'"),
    "part": ({"0.gamma": np.ones(2)}, {}, r"got an entry '0\.gamma'"),
    "axes": ({"0.weight": np.ones((2, 2, 2))}, {}, r"x: 0: expected a weight of 2 or 4 axes"),
    "bias alone": ({"0.bias": np.ones(2)}, {}, r"x: 0: expected a weight of 2 or 4 axes"),
    "chain": (dense("0", 4, 3) | dense("2", 2, 5), {}, r"'2' \(2, 5\) does not fit behind '0'"),
    "norm first": (norm("0", 3) | dense("1", 2, 3), {}, "no layer stands before"),
    "norm size": (dense("0", 4, 3) | norm("1", 5), {}, "of 5 does not fit"),
    "norm without var": (
        dense("0", 4, 3) | {"1.running_mean": np.zeros(4)}, {}, r"x: 1: expected running_mean",
    ),
    "negative variance": (
        dense("0", 2, 3) | {"1.running_mean": np.zeros(2), "1.running_var": -np.ones(2)}, {},
        r"x: 1: expected variances of at least 0",
    ),
    "nan variance": (
        dense("0", 2, 3) | {"1.running_mean": np.zeros(2), "1.running_var": [np.nan, 1]}, {},
        r"x: 1: expected variances of at least 0",
    ),
    "bias": ({"0.weight": np.ones((2, 2)), "0.bias": np.ones(3)}, {}, r"x: 0: b: expected shape"),
    "nan": ({"0.weight": np.full((2, 2), np.nan)}, {}, r"x: 0: W: expected finite"),
    "text": ({"0.weight": np.full((2, 2), "a")}, {}, r"x: 0: [Wb]: expected real numbers"),
    "stride of a dense network": (dense("0", 2, 3), {"stride": 1}, r"stride: expected none for x"),
    "no stride": (conv("0", 4, 1), {"padding": 0}, r"stride: .*'0' \(4, 1, 3, 3\)"),
    "no padding": (conv("0", 4, 1), {"stride": 1}, r"padding: expected one for"),
    "strides": (conv("0", 4, 1), {"stride": [1, 1], "padding": 0}, "stride: expected a list of 1"),
    "bad stride": (
        conv("0", 4, 1), {"stride": 0, "padding": 0, "input_shape": (1, 5, 5)}, "x: 0: stride",
    ),
    "no input shape": (
        conv("0", 4, 1) | dense("2", 2, 4), {"stride": 2, "padding": 0},
        r"input_shape: .*squares of sides \[3, 4\] fit",
    ),
    "no image": (
        conv("0", 4, 1) | dense("2", 2, 8), {"stride": 2, "padding": 0}, "no square image fits",
    ),
    "wrong image": (
        conv("0", 4, 1) | dense("2", 2, 16),
        {"stride": 1, "padding": 0, "input_shape": (1, 5, 5)},
        r"x: 2: expected inputs of shape \(16,\), got \(36,\)",
    ),
    "no dense layer": (
        conv("0", 4, 1), {"stride": 1, "padding": 0, "input_shape": (1, 5, 5)}, "x: output:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    tensors, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        from_state_dict(tensors, "x", **options)


def test_steps_number_modules_as_pytorch_does():
    net = rm.Network.lenet_small((1, 7, 8), 3, rng=0)
    assert [step.kind for step in steps(net)] == [
        "pad", "conv", "relu", "conv", "relu", "flatten", "linear", "relu", "linear",
    ]  # fmt: skip


def test_networks_trained_by_others_are_read(tmp_path):
    path = tmp_path / "state.npz"
    tensors = conv("0", 4, 1) | dense("3", 2, 4 * 16)
    np.savez_compressed(path, **tensors)
    net = rm.load(path, input_shape=(1, 8, 8), stride=2, padding=1)
    assert (tensors["0.weight"] == net.layers[0].W).all()
    np.savez(path, **dense("0", 3, 2))
    assert rm.load(path).input_shape == (2,)
