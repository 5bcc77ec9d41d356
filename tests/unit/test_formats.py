"""Which reader a file gets: by its ending and its content; bombs stay packed."""

import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

import refmmr as rm
from refmmr._files import read_arrays


def dense():
    return rm.Network.mlp([3, 4, 2], rng=0)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"])
def test_pickles_are_refused_by_their_ending(tmp_path, ending):
    rm.save(dense(), tmp_path / "net.npz")
    path = (tmp_path / "net.npz").rename(tmp_path / f"net{ending}")
    with pytest.raises(ValueError, match=r"a pickle can run code: .*refmmr\.from_torch"):
        rm.load(path)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_keras_files_are_sent_to_onnx(tmp_path, ending):
    with pytest.raises(ValueError, match="export the model to ONNX"):
        rm.load(tmp_path / f"net{ending}")


@pytest.mark.parametrize("ending", [".onnx", ".mat", ".safetensors"])
def test_content_that_is_of_another_kind(tmp_path, ending):
    rm.save(dense(), tmp_path / "net.npz")
    path = (tmp_path / "net.npz").rename(tmp_path / f"net{ending}")
    with pytest.raises(ValueError, match=r"as its ending says, got an \.npz archive"):
        rm.load(path)


def test_content_without_an_ending(tmp_path):
    rm.save(dense(), tmp_path / "net.npz")
    path = (tmp_path / "net.npz").rename(tmp_path / "net")
    assert repr(rm.load(path)) == repr(dense())
    assert repr(rm.load(path.rename(tmp_path / "net.NPZ"))) == repr(dense())


def test_mat_files_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.npz, \.onnx, \.safetensors, got"):
        rm.save(dense(), tmp_path / "net.mat")


@pytest.mark.parametrize("name", ["input_shape", "stride", "padding", "flatten"])
def test_options_that_a_file_answers(tmp_path, name):
    rm.save(dense(), tmp_path / "net.npz")
    with pytest.raises(ValueError, match=f"{name}: expected none for"):
        rm.load(tmp_path / "net.npz", **{name: "NCHW" if name == "flatten" else [1]})


def test_a_folder(tmp_path):
    with pytest.raises(OSError, match="directory"):
        rm.load(tmp_path)


def test_arrays_of_a_compressed_file(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    found = read_arrays(tmp_path / "x.npz", 10**6)
    assert all((found[name] == arrays[name]).all() for name in arrays)


def test_bombs_stay_packed(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **{"0.weight": np.zeros((2000, 2000))})
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"arrays of more than 1000000 bytes"):
        read_arrays(path, max_bytes=10**6)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 10**6


@pytest.mark.parametrize("claim", ["(1152921504606846976,)", "(4,)"])
def test_arrays_of_another_size_than_their_header_says(tmp_path, claim):
    path = tmp_path / "liar.npz"
    np.savez(path, **{"0.weight": np.zeros(6)})
    with zipfile.ZipFile(path) as archive:
        content = archive.read("0.weight.npy")
    header = content[:10] + content[10:128].replace(b"(6,)", claim.encode()).ljust(118)[:118]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.weight.npy", header + content[128:])
    with pytest.raises(ValueError, match=r"liar\.npz: expected an \.npz file without objects"):
        rm.load(path)


def test_pickled_objects_are_not_built(tmp_path):
    class Trap:
        def __reduce__(self):
            return sys.exit, (3,)

    np.savez(tmp_path / "trap.npz", **{"0.weight": np.array([Trap()], dtype=object)})
    with pytest.raises(ValueError, match="objects"):
        rm.load(tmp_path / "trap.npz")
