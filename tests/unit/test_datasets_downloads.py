"""Where data sets are looked for, and downloads, from a server of this computer."""

import gzip
import hashlib
import io
import stat
import struct
import sys
import zipfile
from pathlib import Path

import helpers
import numpy as np
import pytest

from refmmr import datasets
from refmmr.datasets import IDX_FILES, downloads

ARRAYS = {
    "X_train": np.arange(32).reshape(2, 4, 4),
    "y_train": np.array([0, 1]),
    "X_test": np.arange(16).reshape(1, 4, 4),
    "y_test": np.array([1]),
}
NOWHERE = "http://127.0.0.1:9/"  # the port that discards, where nobody listens


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


MNIST = {f"{IDX_FILES[part]}.gz": idx(array) for part, array in ARRAYS.items()}


def archive(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as content:
        for name, text in files.items():
            content.writestr(name, text)
    return packed.getvalue()


def picture(color):
    return b"P6 4 4 255\n" + bytes(color) * 16


HEADER = b"Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
GTSRB = {
    "GTSRB-Training_fixed.zip": archive(
        {
            "GTSRB/Training/00002/GT-00002.csv": HEADER + b"a.ppm;4;4;0;0;4;4;2\n",
            "GTSRB/Training/00002/a.ppm": picture((255, 0, 0)),
        }
    ),
    "GTSRB_Final_Test_Images.zip": archive({"GTSRB/Final_Test/Images/b.ppm": picture((0, 255, 0))}),
    "GTSRB_Final_Test_GT.zip": archive({"GT-final_test.csv": HEADER + b"b.ppm;4;4;0;0;4;4;1\n"}),
}


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Nothing on this computer, and no way to anywhere else."""
    monkeypatch.delenv("REFMMR_DATA", raising=False)
    monkeypatch.setenv("REFMMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    homes = {name: downloads.Home(NOWHERE, home.files) for name, home in downloads.HOMES.items()}
    monkeypatch.setattr(downloads, "HOMES", homes)
    return tmp_path / "cache"


@pytest.fixture
def server(empty, tmp_path, monkeypatch):
    """A server of files; returns a function that publishes a data set, and what was asked for."""
    pytest.importorskip("pooch")
    folder = tmp_path / "server"
    folder.mkdir()
    with helpers.file_server(folder) as (address, asked):

        def publish(name, files, **sums):
            for file, content in files.items():
                (folder / file).write_bytes(content)
            known = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
            monkeypatch.setitem(downloads.HOMES, name, downloads.Home(address, known | sums))
            return asked

        yield publish


def test_download(server, empty):
    asked = server("mnist", MNIST)
    data = datasets.load("mnist", images=True, progress=False)
    np.testing.assert_array_equal(data.X_train[:, 0], ARRAYS["X_train"].astype(np.float32) / 255)
    assert data.y_test.tolist() == [1]
    assert sorted(path.name for path in empty.iterdir()) == ["mnist"]
    assert len(asked) == 4
    # The second time it is in the cache, and no download is needed.
    again = datasets.load("mnist", images=True, download=False)
    np.testing.assert_array_equal(again.X_train, data.X_train)
    assert len(asked) == 4


def test_download_of_archives(server, empty):
    server("gtsrb", GTSRB)
    data = datasets.load("gtsrb", images=True, progress=False)
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([2], [1])
    assert data.X_train[0, :, 5, 5].tolist() == [1, 0, 0]
    assert not list(empty.rglob("*.zip"))
    assert sorted(path.name for path in empty.iterdir()) == ["gtsrb"]


def test_what_is_here_is_not_downloaded(server, empty, tmp_path, monkeypatch):
    asked = server("mnist", MNIST)
    for place in ("mine/mnist", "others/MNIST/raw"):
        (tmp_path / place).mkdir(parents=True)
        for file, content in MNIST.items():
            (tmp_path / place / file).write_bytes(content)
    monkeypatch.setenv("REFMMR_DATA", str(tmp_path / "mine"))
    datasets.load("mnist")
    datasets.load("mnist", tmp_path / "others")
    assert not asked
    # A folder that lacks the data set does not stop the download, one that lacks a file does.
    monkeypatch.setenv("REFMMR_DATA", str(tmp_path / "others" / "MNIST"))
    datasets.load("mnist", progress=False)
    assert len(asked) == 4
    monkeypatch.setenv("REFMMR_DATA", str(tmp_path / "mine"))
    (tmp_path / "mine/mnist/train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        datasets.load("mnist")


def test_data_that_is_given_is_the_only_place(server, tmp_path):
    asked = server("mnist", MNIST)
    with pytest.raises(FileNotFoundError, match=r"mnist: expected .* to hold mnist/ with train-im"):
        datasets.load("mnist", tmp_path)
    assert not asked


def test_wrong_sum(server, empty):
    sums = {"t10k-labels-idx1-ubyte.gz": "0" * 32}
    server("mnist", MNIST, **sums)
    with pytest.raises(ValueError, match=r"mnist: expected a file with MD5 sum 00000.*t10k-labels"):
        datasets.load("mnist", progress=False)
    assert not list(empty.rglob("*"))


def test_too_large(server, empty, monkeypatch):
    server("mnist", MNIST)
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD_BYTES", 10)
    with pytest.raises(ValueError, match="mnist: expected a file of at most 10 bytes at"):
        datasets.load("mnist", progress=False)
    assert not list(empty.rglob("*"))


def test_an_interrupted_download_goes_on(server, empty):
    asked = server("mnist", MNIST)
    file = Path(empty).parent / "server" / "t10k-labels-idx1-ubyte.gz"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels.*failed: 404"):
        datasets.load("mnist", progress=False)
    assert not (empty / "mnist").exists()
    file.write_bytes(content)
    asked.clear()
    datasets.load("mnist", progress=False)
    assert {path for path in asked if "404" not in path} == {file.name}


@pytest.mark.parametrize("name", sorted(downloads.HOMES))
def test_offline(empty, name):
    pytest.importorskip("pooch")
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load(name)
    text = str(caught.value)
    for part in (f"{name}: expected", "REFMMR_DATA", downloads.WANTED[name], NOWHERE, "failed"):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize("cache", [False, True])
def test_without_pooch(empty, monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "pooch", None)
    if not cache:
        monkeypatch.delenv("REFMMR_CACHE")
    with pytest.raises(FileNotFoundError, match=r"pip install 'refmmr\[interop\]'"):
        datasets.load("cifar10")
    with pytest.raises(FileNotFoundError, match="download=True"):
        datasets.load("cifar10", download=False)


def test_cache_of_the_system(empty, tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("REFMMR_CACHE")
    monkeypatch.setattr(pooch, "os_cache", lambda name: str(tmp_path / name))
    folder = tmp_path / "refmmr" / "mnist"
    folder.mkdir(parents=True)
    for name, content in MNIST.items():
        (folder / name).write_bytes(content)
    assert datasets.load("mnist", download=False).name == "mnist"


def test_homes_are_complete():
    assert set(downloads.HOMES) == set(downloads.PLACES) == set(downloads.WANTED)
    assert set(downloads.HOMES) | {"digits", "moons"} == set(datasets.NAMES)
    for home in downloads.HOMES.values():
        assert home.base.endswith("/")
        assert all(len(bytes.fromhex(md5)) == 16 for md5 in home.files.values())
    for name in ("mnist", "fashion-mnist"):
        assert set(downloads.HOMES[name].files) == {f"{file}.gz" for file in IDX_FILES.values()}


# Archives


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "C:\\out", "..\\out", "C:out"])
def test_unpack_stays_in_the_folder(tmp_path, name):
    path, folder = tmp_path / "a.zip", tmp_path / "folder"
    path.write_bytes(archive({"good": b"good", name: b"out"}))
    with pytest.raises(ValueError, match=r"a.zip: .*expected names of files inside"):
        downloads.unpack(path, folder)
    assert [found.name for found in tmp_path.iterdir()] == ["a.zip"]


def test_unpack_makes_no_links(tmp_path):
    path, folder = tmp_path / "a.zip", tmp_path / "folder"
    with zipfile.ZipFile(path, "w") as content:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        content.writestr(info, "/etc/passwd")
    downloads.unpack(path, folder)
    assert not (folder / "link").is_symlink()
    assert (folder / "link").read_text() == "/etc/passwd"


def test_unpack_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(archive({"a": bytes(10**6), "b": b""}))
    monkeypatch.setattr(downloads, "MAX_UNPACKED_BYTES", 10**5)
    with pytest.raises(ValueError, match="expected at most 100000 bytes, got more"):
        downloads.unpack(path, tmp_path / "folder")
    monkeypatch.setattr(downloads, "MAX_UNPACKED_BYTES", 10**7)
    monkeypatch.setattr(downloads, "MAX_FILES", 1)
    with pytest.raises(ValueError, match="expected at most 1 files, got 2"):
        downloads.unpack(path, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_unpack_damaged(tmp_path):
    path = tmp_path / "a.zip"
    for content in (b"", b"text", archive({"a": b"a" * 99})[:-9]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.zip: "):
            downloads.unpack(path, tmp_path / "folder")


def test_archives_that_cannot_be_unpacked_leave_nothing(server, empty):
    files = GTSRB | {"GTSRB_Final_Test_GT.zip": archive({"../../out": b"out"})}
    server("gtsrb", files)
    with pytest.raises(ValueError, match="expected names of files inside"):
        datasets.load("gtsrb", progress=False)
    assert not list(empty.rglob("*"))
    assert not (empty.parent / "out").exists()
