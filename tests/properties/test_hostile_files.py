"""Damaged files give a ValueError with one clear line, or a network; nothing else, whatever bytes.

The formats that say much about themselves have hypothesis flip, cut and insert bytes anywhere in
files of each kind.  (ONNX has tests of its own, next to these.)
"""

import contextlib
import importlib
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import io as scipy_io

import refmmr as rm

RNG = np.random.default_rng(0)
SMALL = rm.Network.mlp([3, 4, 2], rng=0).astype(np.float32)
CONV = rm.Network.lenet_small((1, 4, 4), 2, rng=0).astype(np.float32)
STATE = {"0.weight": np.ones((4, 3)), "0.bias": np.ones(4), "2.weight": np.ones((2, 4))}
MATLAB = {"U": np.ones((3, 4)), "bU": np.ones(4), "W": np.ones((4, 2)), "bW": np.ones(2)}


def written(name, write):
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        write(path)
        return name, path.read_bytes()


def foreign_safetensors(path):
    numpy = importlib.import_module("safetensors.numpy")
    norm = {f"1.{part}": np.ones(4, np.float32) for part in ("running_mean", "running_var")}
    norm["1.num_batches_tracked"] = np.array(3)
    weights = {"0.weight": np.ones((4, 3), np.float16), "3.weight": np.ones((2, 4), np.float32)}
    numpy.save_file(weights | norm, path)


def convolutional_mat(path):
    shapes = {"conv1/weight": (2, 2, 1, 2), "conv1/bias": (1, 2), "logits/weight": (8, 2)}
    shapes["logits/bias"] = (1, 2)
    scipy_io.savemat(path, {name: RNG.normal(size=shape) for name, shape in shapes.items()})


FILES = {
    "own npz": written("net.npz", lambda path: rm.save(SMALL, path)),
    "own npz with convolutions": written("net.npz", lambda path: rm.save(CONV, path)),
    "npz": written("net.npz", lambda path: np.savez(path, **STATE)),
    "compressed npz": written("net.npz", lambda path: np.savez_compressed(path, **STATE)),
    "mat": written("net.mat", lambda path: scipy_io.savemat(path, MATLAB)),
    "mat with convolutions": written("net.mat", convolutional_mat),
    "compressed mat": written(
        "net.mat", lambda path: scipy_io.savemat(path, MATLAB, do_compression=True)
    ),
}
with contextlib.suppress(ImportError):  # the absence of safetensors is tested elsewhere
    FILES["own safetensors"] = written("net.safetensors", lambda path: rm.save(SMALL, path))
    FILES["safetensors"] = written("net.safetensors", foreign_safetensors)

PLACES = st.floats(0, 1, exclude_max=True)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
        st.tuples(st.just("set"), PLACES, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("delete"), PLACES, st.integers(1, 64)),
        st.tuples(st.just("cut"), PLACES, st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


def edited(content, edits):
    data = bytearray(content)
    for kind, place, what in edits:
        at = int(place * len(data))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << what
        elif kind == "set":
            data[at : at + len(what)] = what
        elif kind == "insert":
            data[at:at] = what
        elif kind == "delete":
            del data[at : at + what]
        elif kind == "cut":
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=300, deadline=None)
@given(edits=EDITS)
def test_damaged_files(kind, edits):
    name, content = FILES[kind]
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(edited(content, edits))
        try:
            # What overflows may warn before it is refused.
            with warnings.catch_warnings(action="ignore"):
                net = rm.load(path)
        except ValueError as error:
            message = str(error)
        else:
            assert np.isfinite(net(np.zeros((1, *net.input_shape)))).all()
            return
    assert "\n" not in message
    assert str(path) in message


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), ending=st.sampled_from([".npz", ".mat", ".safetensors"]))
def test_random_bytes(content, ending):
    with TemporaryDirectory() as folder:
        path = Path(folder, "net" + ending)
        path.write_bytes(content)
        with pytest.raises(ValueError, match="net"):
            rm.load(path)


@pytest.mark.parametrize("kind", FILES)
def test_truncated_files(kind):
    name, content = FILES[kind]
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        for length in range(0, len(content) - 1, max(7, len(content) // 200)):
            path.write_bytes(content[:length])
            with pytest.raises(ValueError, match="net"):
                rm.load(path)
