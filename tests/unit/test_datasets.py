"""Data sets in [0, 1], and the IDX files that MNIST comes in."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from refmmr import datasets
from refmmr.datasets import IDX_FILES


def idx(array):
    """The bytes of an IDX file."""
    array = np.asarray(array, dtype=np.uint8)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


RNG = np.random.default_rng(0)
ARRAYS = {
    "X_train": RNG.integers(0, 256, (6, 4, 4)),
    "y_train": np.array([0, 1, 2, 2, 1, 0]),
    "X_test": RNG.integers(0, 256, (3, 4, 4)),
    "y_test": np.array([2, 0, 1]),
}


def write_mnist(folder, packed=False, **changed):
    """A tiny data set where `datasets.load("mnist", folder)` looks for it."""
    (folder / "mnist").mkdir()
    for part, array in {**ARRAYS, **changed}.items():
        content = idx(array)
        name = IDX_FILES[part] + (".gz" if packed else "")
        (folder / "mnist" / name).write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize(("name", "d", "n_classes"), [("digits", 64, 10), ("moons", 2, 2)])
def test_built_in(name, d, n_classes):
    data = datasets.load(name)
    assert data.name == name
    assert data.n_classes == n_classes
    for X, y in ((data.X_train, data.y_train), (data.X_test, data.y_test)):
        assert X.shape == (len(y), d)
        assert X.dtype == np.float64
        assert y.dtype.kind == "i"
        assert X.min() >= 0
        assert X.max() <= 1
        assert set(y) == set(range(n_classes))
    # All of [0, 1] is used.
    assert data.X_train.max() == 1 or data.X_test.max() == 1
    assert data.X_train.min() == 0 or data.X_test.min() == 0


def test_sizes():
    digits, moons = datasets.load("digits"), datasets.load("moons")
    assert (len(digits.X_train), len(digits.X_test)) == (1437, 360)
    assert (len(moons.X_train), len(moons.X_test)) == (1000, 1000)
    # Stratified: each class has its share.
    shares = np.bincount(digits.y_test) / np.bincount(np.r_[digits.y_train, digits.y_test])
    np.testing.assert_allclose(shares, 0.2, atol=0.01)


def test_train_and_test_have_no_point_in_common():
    for name in ("digits", "moons"):
        data = datasets.load(name)
        train = {x.tobytes() for x in data.X_train}
        assert not any(x.tobytes() in train for x in data.X_test)


@pytest.mark.parametrize("name", ["digits", "moons"])
def test_deterministic(name):
    for a, b in zip(datasets.load(name)[1:5], datasets.load(name)[1:5], strict=True):
        assert a.tobytes() == b.tobytes()


def test_images_and_dtype():
    flat, images = datasets.load("digits"), datasets.load("digits", images=True, dtype=np.float32)
    assert images.X_train.shape == (1437, 1, 8, 8)
    assert images.X_test.dtype == np.float32
    # Sixteenths are exact in both.
    np.testing.assert_array_equal(images.X_test.reshape(-1, 64), flat.X_test)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"name: expected one of 'digits', .* got 'iris'"):
        datasets.load("iris")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (0,), (2, 3, 4)])
def test_read_idx(tmp_path, packed, shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
    content = idx(array)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if packed else content)
    found = datasets.read_idx(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


DAMAGED = {
    "empty": b"",
    "short": b"\0\0\x08",
    "no sizes": b"\0\0\x08\x03\0\0\0\x01",
    "text": b"not an IDX file at all",
    "floats": b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",
    "byte missing": idx(np.arange(9))[:-1],
    "byte too many": idx(np.arange(9)) + b"\0",
    "huge": b"\0\0\x08\x03" + b"\xff" * 12 + b"\0",
    "gzip truncated": gzip.compress(idx(np.arange(99)))[:-9],
    "gzip header only": gzip.compress(b"")[:2],
    "gzip corrupt": gzip.compress(b"\0\0\x08\x01\0\0\0\x20" + bytes(32))[:12] + b"\xff" * 20,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_read_idx_damaged(tmp_path, name):
    path = tmp_path / "damaged-idx"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match="damaged-idx: expected"):
        datasets.read_idx(path)


def test_read_idx_refuses_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.idx, "MAX_IDX_BYTES", 1000)
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(ValueError, match="bomb: expected at most 1000 bytes"):
        datasets.read_idx(path)


def test_read_idx_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        datasets.read_idx(tmp_path / "nothing")


@pytest.mark.parametrize("packed", [False, True])
def test_load_idx(tmp_path, packed):
    data = datasets.load("mnist", write_mnist(tmp_path, packed))
    assert data.X_train.shape == (6, 16)
    assert data.n_classes == 3
    np.testing.assert_allclose(data.X_test, ARRAYS["X_test"].reshape(3, 16) / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_train, ARRAYS["y_train"])
    assert data.X_train.min() >= 0
    assert data.X_train.max() <= 1
    images = datasets.load("mnist", tmp_path, images=True, dtype=np.float32)
    assert images.X_train.shape == (6, 1, 4, 4)
    np.testing.assert_array_equal(images.X_train.reshape(6, 16), data.X_train)


def test_load_idx_by_path(tmp_path):
    folder = write_mnist(tmp_path) / "mnist"
    data = datasets.load(folder)
    assert (data.name, len(data.X_train)) == ("mnist", 6)
    with pytest.raises(ValueError, match="name: expected one of"):
        datasets.load(folder / "nothing")


def test_load_idx_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("REFMMR_DATA", str(write_mnist(tmp_path)))
    assert len(datasets.load("mnist").X_train) == 6


@pytest.mark.parametrize(
    "changed",
    [{"y_train": np.zeros(5)}, {"y_test": np.zeros((3, 1))}, {"X_train": np.zeros((6, 16))}],
)
def test_images_and_labels_that_do_not_fit(tmp_path, changed):
    write_mnist(tmp_path, **changed)
    with pytest.raises(ValueError, match=r"mnist: expected images \(n, height, width\) with"):
        datasets.load("mnist", tmp_path)


def test_missing_files_say_what_goes_where(tmp_path, monkeypatch):
    monkeypatch.delenv("REFMMR_DATA", raising=False)
    monkeypatch.setenv("REFMMR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="REFMMR_DATA") as caught:
        datasets.load("fashion-mnist", download=False)
    for word in ("fashion-mnist/", *IDX_FILES.values(), ".gz"):
        assert word in str(caught.value)
    write_mnist(tmp_path)
    gone = tmp_path / "mnist" / IDX_FILES["y_test"]
    gone.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load("mnist", tmp_path)
    assert str(gone) in str(caught.value)
    assert ".gz" in str(caught.value)


def test_mnist():
    folder = os.environ.get("REFMMR_DATA")
    if folder is None:
        pytest.skip("REFMMR_DATA does not name a folder with mnist/")
    if not Path(folder, "mnist").exists():
        pytest.skip(f"no mnist/ in REFMMR_DATA = {folder}")
    data = datasets.load("mnist", dtype=np.float32)
    assert (data.X_train.shape, data.X_test.shape) == ((60000, 784), (10000, 784))
    assert (data.X_train.min(), data.X_train.max(), data.n_classes) == (0, 1, 10)
    np.testing.assert_array_equal(np.bincount(data.y_test)[:3], [980, 1135, 1032])


def test_images_keep_their_shape(tmp_path):
    tall = np.arange(6 * 4 * 3).reshape(6, 4, 3)
    write_mnist(tmp_path, X_train=tall, X_test=tall[:3])
    data = datasets.load("mnist", tmp_path, images=True)
    assert data.X_train.shape == (6, 1, 4, 3)
    np.testing.assert_allclose(data.X_train[:, 0], tall / 255, rtol=1e-6)


def test_moons_are_no_images():
    with pytest.raises(ValueError, match="images: expected a data set of images, got 'moons'"):
        datasets.load("moons", images=True)
