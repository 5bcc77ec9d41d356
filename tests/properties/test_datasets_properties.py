"""Files of data that are damaged in any way, and laws of data sets from arrays."""

import gzip
import io
import pickle
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from refmmr import datasets
from refmmr.datasets import IDX_FILES
from refmmr.datasets.pickles import read_batch

BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
PIXELS = (np.arange(2 * 3072) % 256).astype(np.uint8).reshape(2, 3072)
BINARY = np.insert(PIXELS, 0, [3, 9], axis=1).tobytes()
PICKLE = pickle.dumps({b"labels": [3, 9], b"data": PIXELS}, protocol=2)


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def tar(content):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for batch in BATCHES:
            info = tarfile.TarInfo(f"{batch}.bin")
            info.size, info.pax_headers = len(content), {"comment": "a"}
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def npz(compression):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, array in {"X": np.linspace(0, 1, 20), "y": np.arange(10) % 2}.items():
            content = io.BytesIO()
            np.save(content, array.reshape(10, -1).squeeze())
            archive.writestr(f"{name}.npy", content.getvalue())
    return packed.getvalue()


def picture(form):
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(PIXELS.reshape(32, 64, 3)).save(packed, format=form)
    return packed.getvalue()


SIGNS = b"Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\n64,32,0,0,60,30,4,a.png\n"
TABLE = b"a,b,kind\n" + b"".join(b'0.%d,1,"%d"\n' % (i, i % 2) for i in range(8))
IMAGES, LABELS = np.arange(32).reshape(2, 4, 4), np.array([0, 1])
IDX = {file: idx(IMAGES if part.startswith("X") else LABELS) for part, file in IDX_FILES.items()}
IDX_PACKED = {file: gzip.compress(content) for file, content in IDX.items()}
BINARIES = [f"{batch}.bin" for batch in BATCHES]
OFFICIAL = {
    "Training/00004/GT-00004.csv": SIGNS.replace(b",", b";").replace(b"Path", b"Filename"),
    "Training/00004/a.png": picture("PNG"),
    "Final_Test/Images/a.png": picture("PPM"),
    "GT-final_test.csv": SIGNS.replace(b",", b";").replace(b"Path", b"Filename"),
}
KAGGLE = {"Train.csv": SIGNS, "Test.csv": SIGNS, "a.png": picture("PNG")}

# All files, the one that is damaged, what is done to it after, and what is loaded.
FILES = {
    "IDX images": (IDX, IDX_FILES["X_test"], bytes, "."),
    "IDX labels": (IDX, IDX_FILES["y_train"], bytes, "."),
    "IDX, packed": (IDX_PACKED, IDX_FILES["y_test"], bytes, "."),
    "CIFAR binary": (dict.fromkeys(BINARIES, BINARY), "test_batch.bin", bytes, "."),
    "CIFAR pickle": (dict.fromkeys(BATCHES, PICKLE), "data_batch_2", bytes, "."),
    "CIFAR archive": ({"a.tar.gz": tar(BINARY)}, "a.tar.gz", gzip.compress, "a.tar.gz"),
    "CIFAR archive, packed": (
        {"a.tar.gz": gzip.compress(tar(BINARY))}, "a.tar.gz", bytes, "a.tar.gz"
    ),
    "GTSRB table": (OFFICIAL, "Training/00004/GT-00004.csv", bytes, "."),
    "GTSRB truth": (OFFICIAL, "GT-final_test.csv", bytes, "."),
    "GTSRB ppm": (OFFICIAL, "Final_Test/Images/a.png", bytes, "."),
    "GTSRB png": (OFFICIAL, "Training/00004/a.png", bytes, "."),
    "Kaggle table": (KAGGLE, "Test.csv", bytes, "."),
    "npz": ({"a.npz": npz(zipfile.ZIP_STORED)}, "a.npz", bytes, "a.npz"),
    "npz, packed": ({"a.npz": npz(zipfile.ZIP_DEFLATED)}, "a.npz", bytes, "a.npz"),
    "csv": ({"a.csv": TABLE}, "a.csv", bytes, "a.csv"),
}  # fmt: skip


@st.composite
def damaged(draw, content):
    """The bytes with some of them changed, taken out or put in, or cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # Headers are at the start and at the end.
        near = st.integers(0, min(200, len(content)))
        i = draw(near | near.map(lambda i: len(content) - i) | st.integers(0, len(content)))
        some = draw(st.binary(max_size=4))
        kind = draw(st.sampled_from(["change", "insert", "remove", "cut"]))
        if kind == "cut":
            del content[i:]
        else:
            gone = {"change": len(some), "insert": 0, "remove": 3}[kind]
            content[i : i + gone] = b"" if kind == "remove" else some
    return bytes(content)


@pytest.mark.parametrize("case", FILES)
@given(st.data())
def test_damaged_files(case, data):
    """Either a data set comes out, or an error that says what is wrong."""
    files, victim, pack, loaded = FILES[case]
    content = pack(data.draw(damaged(files[victim])))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "folder")
        for file, good in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content if file == victim else good)
        try:
            found = datasets.load(folder / loaded, progress=False)
        except (ValueError, FileNotFoundError) as error:
            found, message = None, str(error)
    if found is None:
        assert message.startswith((name, "folder: expected"))
        return
    for X, y in ((found.X_train, found.y_train), (found.X_test, found.y_test)):
        assert X.ndim == 2
        assert 0 < len(X) == len(y)
        assert X.min() >= 0
        assert X.max() <= 1
        assert 0 <= y.min() <= y.max() < found.n_classes


@pytest.mark.parametrize("case", FILES)
def test_the_same_files_undamaged(tmp_path, case):
    files, victim, pack, loaded = FILES[case]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(pack(content) if file == victim else content)
    assert len(datasets.load(tmp_path / loaded, progress=False).X_train) > 0


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 9))),
    st.lists(st.integers(-(2**31), 2**31 - 1)),
    st.sampled_from([2, 3]),
    st.sampled_from("CF"),
    st.dictionaries(st.binary(min_size=1) | st.text(), st.none() | st.booleans() | st.text()),
)
def test_pickles_are_read_as_they_would_be_unpickled(data, labels, protocol, order, others):
    data = np.array(data, order=order)
    content = {**others, "data": data, "labels": labels}
    found, numbers = read_batch(pickle.dumps(content, protocol), "a pickle")
    np.testing.assert_array_equal(found, data)
    assert numbers == labels


OPCODES = b"()]}NRbauest012\x81\x85\x86\x87\x88\x89\x80\x02q\x01h\x01K\x05U\x01X.cio"


@given(st.lists(st.sampled_from(OPCODES), max_size=60).map(bytes))
def test_any_program_is_refused_or_read(program):
    with pytest.raises(ValueError, match="a pickle: expected"):
        read_batch(b"\x80\x02" + program, "a pickle")


LABELS_OF_ONE_KIND = st.sampled_from(
    [st.integers(-5, 5), st.text(max_size=2), st.booleans(), st.sampled_from([0.0, 1.0, 7.0])]
)


@given(LABELS_OF_ONE_KIND.flatmap(lambda kind: st.tuples(*[st.lists(kind, min_size=1)] * 2)))
def test_labels_can_be_read_back(labels):
    y, y_test = labels
    data = datasets.from_arrays(np.zeros((len(y), 2)), y, np.zeros((len(y_test), 2)), y_test)
    names = data.classes or range(data.n_classes)
    assert [names[i] for i in data.y_train] == y
    assert [names[i] for i in data.y_test] == y_test
    assert list(names) == sorted(set(y) | set(y_test))
