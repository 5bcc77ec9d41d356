"""Networks to files and back; nothing but ValueError comes out of a file that is not one."""

import json
import pickle
import re
import zipfile

import numpy as np
import pytest
from helpers import bits
from hypothesis import given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr.interop import npz_files


def dense(dtype=np.float64):
    return rm.Network.mlp([3, 5, 4, 2], rng=0).astype(dtype)


def conv(padding, dtype=np.float64):
    rng = np.random.default_rng(0)
    first = rm.Conv2d(rng.normal(size=(3, 2, 3, 2)), rng.normal(size=3), (2, 1), padding)
    _, height, width = first.output_shape((2, 5, 6))
    last = rm.Linear(rng.normal(size=(2, 3 * height * width)), rng.normal(size=2))
    return rm.Network([first, rm.Flatten(), last], (2, 5, 6)).astype(dtype)


NETWORKS = {
    "dense": dense(),
    "float32": dense(np.float32),
    "linear": rm.Network.mlp([3, 2], rng=0),
    "same": conv("same"),
    "valid": conv("valid"),
    "asymmetric": conv(((0, 2), (1, 0))),
    "conv float32": conv(1, np.float32),
    "lenet": rm.Network.lenet_small((1, 8, 8), 3, rng=0),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.npz"


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("io") / "valid.npz"
    rm.save(dense(), path)
    return path.read_bytes()


def refused(path, *words):
    """`load` says ValueError, and names the file."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        rm.load(path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_bitwise(name, path):
    rm.save(NETWORKS[name], path)
    assert bits(rm.load(path)) == bits(NETWORKS[name])


def test_round_trip_keeps_special_floats(path):
    W = [[-0.0, 5e-324], [np.finfo(float).max, np.nextafter(1, 2)]]
    net = rm.Network([rm.Linear(W, [1e-300, -0.0])], 2)
    rm.save(net, str(path))
    assert bits(rm.load(str(path))) == bits(net)


def test_save_makes_the_folder(tmp_path):
    rm.save(dense(), tmp_path / "a" / "b" / "net.npz")
    assert bits(rm.load(tmp_path / "a" / "b" / "net.npz")) == bits(dense())


def test_save_replaces(path):
    rm.save(dense(), path)
    rm.save(conv(0), path)
    assert bits(rm.load(path)) == bits(conv(0))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failing_write_keeps_the_old_file(path, monkeypatch, error):
    rm.save(dense(), path)
    before = path.read_bytes()

    def half(file, array, **options):
        file.write(b"half an array")
        raise error("no space")

    monkeypatch.setattr(np.lib.format, "write_array", half)
    with pytest.raises(error):
        rm.save(conv(0), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_failing_write_leaves_nothing_where_nothing_was(path, monkeypatch):
    def fail(file, array, **options):
        raise OSError("no space")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="no space"):
        rm.save(dense(), path)
    assert list(path.parent.iterdir()) == []


def test_saved_file_has_the_usual_rights(path):
    rm.save(dense(), path)
    usual = path.parent / "usual"
    usual.touch()
    assert path.stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("name", ["net.npy", "net", "net.npz.txt"])
def test_wrong_ending(tmp_path, name):
    with pytest.raises(ValueError, match=r"path: expected a file ending in \.npz") as caught:
        rm.save(dense(), tmp_path / name)
    assert name in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).write_bytes(b"something else")
    refused(tmp_path / name, "path: expected a file ending in .npz, .onnx, .safetensors, .mat")


def test_missing_file(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        rm.load(path)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("name", ["W0", "format", "layers", "junk"])
def test_pickles_are_refused_and_not_run(path, name):
    mark = path.parent / "mark"
    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb(mark)
    arrays = {**npz_files.network_arrays(dense()), name: bomb}
    np.savez(path, **arrays)
    refused(path)
    assert not mark.exists()


def test_bare_pickle_is_refused_and_not_run(path):
    mark = path.parent / "mark"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    refused(path)
    assert not mark.exists()


def test_truncated_anywhere(path, valid):
    for length in {*range(0, len(valid), 37), *range(30), *range(len(valid) - 30, len(valid))}:
        path.write_bytes(valid[:length])
        refused(path)


FOREIGN = {
    "empty": b"",
    "text": b"refmmr-network version 1\n",
    "zeros": bytes(1000),
    "empty zip": b"PK\x05\x06" + bytes(18),
    "magic only": b"\x93NUMPY\x01\x00",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_bytes(path, name):
    path.write_bytes(FOREIGN[name])
    refused(path)


def test_foreign_npz(path):
    np.savez(path, weights=np.ones(3))
    refused(path, "expected a network of this library, or a state dict", "weights")


def test_single_array_renamed(path):
    np.save(path.with_suffix(".npy"), np.ones(3))
    path.with_suffix(".npy").rename(path)
    refused(path, "not a zip file")


def test_zip_of_something_else(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path)


CROOKED = {
    "format": {"format": "refmmr-checkpoint"},
    "version": {"version": 2},
    "version 0": {"version": 0},
    "version text": {"version": "one"},
    "version list": {"version": np.array([1, 1])},
    "version inf": {"version": np.inf},
    "nan": {"W0": np.full((5, 3), np.nan)},
    "inf": {"b1": np.full(4, np.inf)},
    "complex": {"W0": np.ones((5, 3)) * 1j},
    "strings": {"W0": np.full((5, 3), "1")},
    "misfit": {"W1": np.ones((4, 6))},
    "misfit b": {"b1": np.ones(5)},
    "axes": {"W0": np.ones(3)},
    "input": {"input_shape": np.array([4])},
    "input rank": {"input_shape": np.array([1, 3])},
    "input zero": {"input_shape": np.array([0])},
    "input scalar": {"input_shape": np.array(3)},
    "input inf": {"input_shape": np.array([np.inf])},
    "no layers": {"layers": "[]"},
    "not json": {"layers": "[{"},
    "null": {"layers": "null"},
    "number": {"layers": "[5]"},
    "no type": {"layers": "[{}]"},
    "unknown type": {"layers": json.dumps([{"type": "Pool"}])},
    "missing stride": {"layers": json.dumps([{"type": "Conv2d"}])},
    "deep json": {"layers": "[" * 20_000},
}


@pytest.mark.parametrize("name", CROOKED)
def test_crooked_contents(path, name):
    np.savez(path, **{**npz_files.network_arrays(dense()), **CROOKED[name]})
    refused(path)


@pytest.mark.parametrize("name", ["format", "version", "layers", "input_shape", "W0", "b2"])
def test_missing_arrays(path, name):
    arrays = npz_files.network_arrays(dense())
    del arrays[name]
    np.savez(path, **arrays)
    refused(path)


@pytest.mark.parametrize(
    ("stride", "padding"), [(0, 0), (1, -1), (1, "full"), ([1, 2, 3], 0), (1e400, 0), (1, [[1]])]
)
def test_crooked_convolution(path, stride, padding):
    arrays = npz_files.network_arrays(conv(0))
    described = json.loads(arrays["layers"])
    described[0].update(stride=stride, padding=padding)
    np.savez(path, **{**arrays, "layers": json.dumps(described)})
    refused(path)


def test_one_byte_cannot_change_weights_unnoticed(path):
    """A header that asks for fewer bytes than there are must not hide the checksum."""
    net = rm.Network([rm.Linear(np.ones((4, 400)), np.zeros(4))], 400)
    rm.save(net, path)
    content = path.read_bytes()
    assert content.count(b"'<f8'") == 2
    path.write_bytes(content.replace(b"'<f8'", b"'<f4'", 1))
    refused(path)


# Each kind of damage: single bytes, a run of equal bytes, two places exchanged.
@st.composite
def damage(draw, size):
    spans = st.tuples(
        st.integers(0, size - 1), st.integers(1, 8), st.binary(min_size=1, max_size=8)
    )
    return draw(st.lists(spans, min_size=1, max_size=4))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_give_a_value_error_or_a_network(valid, tmp_path_factory, data):
    content = bytearray(valid)
    for at, length, new in data.draw(damage(len(valid))):
        content[at : at + length] = new
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    try:
        net = rm.load(path)
    except ValueError as caught:
        error = caught
    else:
        assert isinstance(net, rm.Network)
        return
    assert str(path) in str(error)


def directory_bytes(valid):
    """Where the zip's own directory is: what says how each array is stored."""
    return range(valid.index(b"PK\x01\x02"), len(valid))


@pytest.mark.parametrize("new", [0, 1, 9, 255])
def test_damaged_zip_directory(path, valid, new):
    """The same for every byte of the directory (compression methods, encryption flags...)."""
    crashes = []
    for at in directory_bytes(valid):
        path.write_bytes(valid[:at] + bytes([new]) + valid[at + 1 :])
        try:
            assert isinstance(rm.load(path), rm.Network)
        except ValueError:
            pass
        except Exception as error:
            crashes.append((at, repr(error)))
    assert crashes == []
