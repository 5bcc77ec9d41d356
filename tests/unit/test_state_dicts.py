"""State dicts become the networks whose weights they are, or say why not."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import correlate

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


def test_words_tell_no_order():
    tensors = dense("input", 5, 5) | dense("hidden", 5, 5) | dense("output", 2, 5)
    net = from_state_dict(tensors, "x")
    assert (net.parameters[0][0] == tensors["input.weight"]).all()
    with pytest.raises(ValueError, match=r"x: expected names with numbers that tell .* 'input' "):
        from_state_dict(tensors, "x", ordered=False)


def test_the_order_that_alone_fits():
    tensors = dense("away", 4, 5) | dense("classes", 2, 4) | dense("enter", 5, 3)
    net = from_state_dict(tensors, "x", ordered=False)
    assert [W.shape for W, _ in net.parameters] == [(5, 3), (4, 5), (2, 4)]


def test_numbers_tell_the_order_where_shapes_do_not():
    names = [f"layers.{i}" for i in range(0, 24, 2)]
    tensors = {}
    for name in sorted(names):  # "layers.10" is before "layers.2"
        tensors |= dense(name, 3, 3)
    for ordered in (True, False):
        net = from_state_dict(tensors, "x", ordered=ordered)
        for (W, _), name in zip(net.parameters, names, strict=True):
            assert (tensors[f"{name}.weight"] == W).all()


def test_normalisations_by_name_in_any_order():
    layers = {"bn1": norm("bn1", 4), "bn2": norm("bn2", 4), "conv1": conv("conv1", 4, 1)}
    layers |= {"conv2": conv("conv2", 4, 4), "fc": dense("fc", 2, 4)}
    ways = [("conv1", "bn1", "conv2", "bn2", "fc"), sorted(layers)]
    nets = []
    for way in ways:
        tensors = {key: array for name in way for key, array in layers[name].items()}
        nets.append(from_state_dict(tensors, "x", (1, 5, 5), 1, 0, ordered=way is ways[0]))
    X = RNG.random((3, 1, 5, 5))
    assert (nets[0](X) == nets[1](X)).all()


def test_search_for_an_order_ends():
    tensors = {}
    for i in range(
        120
    ):  # words of letters alone: nothing tells the order, and in the end none fits
        tensors |= dense("x" * (i + 1), 3, 3)
    with pytest.raises(ValueError, match=r"x: expected names with numbers .* which leave it open"):
        from_state_dict(tensors | dense("odd", 5, 7), "x")


def test_a_digit_string_without_end():
    tensors = dense("9" * 5000, 2, 3)
    assert from_state_dict(tensors, "x").input_shape == (3,)


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
    "relu before norm": (
        dense("0", 4, 3) | norm("2", 4) | dense("3", 2, 4), {},
        r"x: 2: expected the batch normalisation next to its layer '0', got another module",
    ),
    "numbers against shapes": (
        dense("2", 4, 3) | dense("0", 2, 4), {}, r"'2' \(4, 3\) does not fit behind '0'",
    ),
    "dense before convolution": (
        dense("0", 2, 36) | conv("1", 4, 1), {"stride": 1, "padding": 0}, "different orders",
    ),
    "too many": (
        {f"{i}.weight": np.ones((1, 1)) for i in range(300)}, {}, "at most 256 modules.*got 300",
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


def test_the_network_of_wong_and_kolter():
    """Against a forward pass written for its layers alone."""
    folder = os.environ.get("REFMMR_MODELS")
    if folder is None or not Path(folder, "wk17a.npz").exists():
        pytest.skip("REFMMR_MODELS does not name a folder with wk17a.npz")
    path = Path(folder, "wk17a.npz")
    net = rm.load(path, stride=2, padding=1, input_shape=(1, 28, 28))
    with np.load(path, allow_pickle=False) as file:
        w = {key: file[key].astype(np.float64) for key in file.files}
    assert net.dtype == np.float32
    X = RNG.random((20, 1, 28, 28))
    for x, found in zip(X, net.astype(np.float64)(X), strict=True):
        for name in ("0", "2"):
            padded = np.pad(x, [(0, 0), (1, 1), (1, 1)])
            filters = zip(w[f"{name}.weight"], w[f"{name}.bias"], strict=True)
            out = [correlate(padded, W, "valid")[0, ::2, ::2] + b for W, b in filters]
            x = np.maximum(out, 0)
        x = np.maximum(w["5.weight"] @ x.reshape(-1) + w["5.bias"], 0)
        expected = w["7.weight"] @ x + w["7.bias"]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
