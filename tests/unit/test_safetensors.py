"""Networks to .safetensors and back; state dicts of others; damaged files."""

import json
import sys

import numpy as np
import pytest
from helpers import bits

import refmmr as rm

safetensors = pytest.importorskip("safetensors", reason="needs safetensors")
numpy = pytest.importorskip("safetensors.numpy")

NETWORKS = {
    "dense": rm.Network.mlp([3, 5, 4, 2], rng=0),
    "float32": rm.Network.mlp([3, 5, 2], rng=0).astype(np.float32),
    "lenet": rm.Network.lenet_small((1, 8, 8), 3, rng=0),
    "asymmetric": rm.Network.lenet_small((2, 7, 9), 3, rng=0).astype(np.float32),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_bitwise(path, name):
    rm.save(NETWORKS[name], path)
    assert bits(rm.load(path)) == bits(NETWORKS[name])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_more_than_ten_modules_keep_their_order(path):
    net = rm.Network.mlp([2, 3, 4, 5, 4, 3, 2, 3, 2], rng=0)
    rm.save(net, path)
    assert bits(rm.load(path)) == bits(net)


def test_names_are_those_of_a_sequential(path):
    rm.save(NETWORKS["asymmetric"], path)
    names = {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert names <= set(numpy.load_file(path)) | {"3.weight", "3.bias"}


def test_state_dict_of_others(path):
    tensors = {"fc1.weight": np.ones((4, 3), np.float16), "fc2.weight": np.ones((2, 4), np.float16)}
    numpy.save_file(tensors, path)
    net = rm.load(path)
    assert net.dtype == np.float32
    assert net(np.ones((1, 3))).tolist() == [[12.0, 12.0]]


def test_content_without_an_ending(path):
    rm.save(NETWORKS["dense"], path)
    other = path.with_suffix(".weights")
    path.rename(other)
    assert bits(rm.load(other)) == bits(NETWORKS["dense"])


def raw(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_bfloat16_is_widened(path):
    numbers = np.array([[1.5, -2.0]], dtype=np.float32)
    half = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    header = {"0.weight": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]}}
    path.write_bytes(raw(header, half.tobytes()))
    assert rm.load(path).parameters[0][0].tolist() == [[1.5, -2.0]]


CROOKED = {
    "empty": b"",
    "text": b"safetensors",
    "long header": (2**40).to_bytes(8, "little") + b"{}",
    "no json": (4).to_bytes(8, "little") + b"{abc",
    "bool": raw({"0.weight": {"dtype": "BOOL", "shape": [2, 2], "data_offsets": [0, 4]}}, bytes(4)),
    "huge": raw({"0.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)),
    "outside": raw({"0.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}),
    "nothing": raw({}),
    "nan": raw(
        {"0.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}},
        np.float32(np.nan).tobytes(),
    ),
}


@pytest.mark.parametrize("name", CROOKED)
def test_damaged_files(path, name):
    path.write_bytes(CROOKED[name])
    with pytest.raises(ValueError, match=r"net\.safetensors"):
        rm.load(path)


ABOUT = {
    "version": {"refmmr": "99"},
    "layers": {"layers": "[1]"},
    "deep": {"layers": "[" * 20_000},
    "too many": {"layers": '[{"type": "Linear"}, {"type": "Linear"}, {"type": "Linear"}]'},
    "shape": {"input_shape": '["a"]'},
    "huge shape": {"input_shape": "[1e400]"},
    "other shape": {"input_shape": "[7]"},
}


@pytest.mark.parametrize("name", ABOUT)
def test_crooked_metadata(path, name):
    rm.save(rm.Network.mlp([3, 4, 2], rng=0), path)
    tensors = numpy.load_file(path)
    with safetensors.safe_open(path, "np") as file:
        about = file.metadata()
    numpy.save_file(tensors, path, {**about, **ABOUT[name]})
    with pytest.raises(ValueError, match=r"net\.safetensors"):
        rm.load(path)


def test_options_that_the_file_answers(path):
    rm.save(NETWORKS["lenet"], path)
    with pytest.raises(ValueError, match="stride: expected none for"):
        rm.load(path, stride=1)


@pytest.mark.parametrize("action", ["load", "save"])
def test_without_the_package(path, monkeypatch, action):
    rm.save(NETWORKS["dense"], path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=rf"{action}: needs the package safetensors: pip install"):
        rm.load(path) if action == "load" else rm.save(NETWORKS["dense"], path)
