"""Data sets in files: CIFAR-10, GTSRB, .npz, .csv."""

import gzip
import io
import os
import pickle
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from refmmr import datasets
from refmmr.datasets import gtsrb, pickles

RNG = np.random.default_rng(0)
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
IMAGES = [RNG.integers(0, 256, (n, 3072), dtype=np.uint8) for n in (2, 1, 3, 1, 1, 2)]
LABELS = [[0, 9], [3], [4, 4, 1], [2], [8], [7, 5]]


def python_2(data, labels, fortran=False):
    """A pickle as Python 2 and its NumPy wrote it, byte by byte."""

    def text(content):
        return b"U" + bytes([len(content)]) + content

    pixels = data.tobytes(order="F" if fortran else "C")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85" + text(b"b")
        + b"\x87Rq\x07(K\x01M" + len(data).to_bytes(2, "little") + b"M\x00\x0c\x86"
        + b"cnumpy\ndtype\nq\x08" + text(b"u1") + b"K\x00K\x01\x87Rq\x09(K\x03" + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + (b"\x88" if fortran else b"\x89")
        + b"T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )  # fmt: skip
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5")
        + b"q\x03" + text(b"labels") + b"q\x04](" + numbers + b"e" + text(b"data") + array
        + text(b"filenames") + b"](" + text(b"a.png") + b"e" + b"u."
    )  # fmt: skip


def python_3(data, labels, protocol=2):
    return pickle.dumps({b"data": data, b"labels": labels}, protocol=protocol)


WRITERS = {
    "binary": lambda data, labels: np.insert(data, 0, labels, axis=1).astype(np.uint8).tobytes(),
    "python 2": python_2,
    "python 2, columns first": lambda data, labels: python_2(data, labels, fortran=True),
    "python 3": python_3,
    "python 3, protocol 3": lambda data, labels: python_3(data, labels, 3),
    "old NumPy": lambda data, labels: python_3(data, labels).replace(b"numpy._core", b"numpy.core"),
}


def cifar_files(version):
    ending = ".bin" if version == "binary" else ""
    return {
        batch + ending: WRITERS[version](data, labels)
        for batch, data, labels in zip(BATCHES, IMAGES, LABELS, strict=True)
    }


def write_folder(folder, files):
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    return folder


def tar(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def check_cifar(data):
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.n_classes == 10
    np.testing.assert_array_equal(data.y_train, np.concatenate(LABELS[:5]))
    np.testing.assert_array_equal(data.y_test, LABELS[5])
    expected = np.concatenate(IMAGES[:5]).astype(np.float32) / 255
    np.testing.assert_array_equal(data.X_train, expected.reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(data.X_test.reshape(2, -1), IMAGES[5].astype(np.float32) / 255)


@pytest.mark.parametrize("version", WRITERS)
def test_cifar(tmp_path, version):
    folder = write_folder(tmp_path / "mine", cifar_files(version))
    data = datasets.load(folder, images=True, dtype=np.float32)
    assert data.name == "mine"
    check_cifar(data)
    flat = datasets.load(folder)
    assert (flat.X_train.shape, flat.X_train.dtype) == ((8, 3072), np.float64)
    np.testing.assert_array_equal(flat.X_train, data.X_train.reshape(8, -1))


@pytest.mark.parametrize("version", ["binary", "python 2"])
def test_cifar_archives(tmp_path, version):
    path = tmp_path / "cifar-10-some.tar.gz"
    path.write_bytes(gzip.compress(tar(cifar_files(version))))
    data = datasets.load(path, images=True)
    assert data.name == "cifar-10-some"
    check_cifar(data)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "place", ["cifar10", "cifar10/cifar-10-batches-bin", "cifar-10-batches-bin"]
)
def test_cifar_by_name(tmp_path, place):
    write_folder(tmp_path / place, cifar_files("binary"))
    data = datasets.load("cifar10", tmp_path, images=True)
    assert data.name == "cifar10"
    check_cifar(data)


@pytest.mark.parametrize("place", ["cifar-10-binary.tar.gz", "cifar10/cifar-10-binary.tar.gz"])
def test_cifar_archive_by_name(tmp_path, monkeypatch, place):
    write_folder(tmp_path, {place: gzip.compress(tar(cifar_files("binary")))})
    monkeypatch.setenv("REFMMR_DATA", str(tmp_path))
    check_cifar(datasets.load("cifar10", images=True))


def test_cifar_incomplete(tmp_path):
    files = cifar_files("binary")
    del files["data_batch_3.bin"]
    with pytest.raises(FileNotFoundError, match=r"expected .*data_batch_3.bin too"):
        datasets.load(write_folder(tmp_path / "a", files))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar(files)))
    with pytest.raises(ValueError, match=r"b.tar.gz: expected the batches of CIFAR-10, data_batch"):
        datasets.load(tmp_path / "b.tar.gz")
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(FileNotFoundError, match="cifar10: expected the batches of CIFAR-10"):
        datasets.load("cifar10", tmp_path)


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes(3074), b"\x0a" + bytes(3072)])
def test_cifar_binary_damaged(tmp_path, content):
    files = cifar_files("binary") | {"test_batch.bin": content}
    with pytest.raises(ValueError, match=r"test_batch.bin: expected"):
        datasets.load(write_folder(tmp_path, files))


def test_cifar_archive_of_links_and_bombs(tmp_path, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in cifar_files("binary"):
            info = tarfile.TarInfo(file)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    path = tmp_path / "links.tar.gz"
    path.write_bytes(gzip.compress(packed.getvalue()))
    with pytest.raises(ValueError, match=r"links.tar.gz: expected the batches"):
        datasets.load(path)
    monkeypatch.setattr(datasets.cifar, "MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(ValueError, match="expected at most 1000 bytes"):
        datasets.load(path)


class Runs:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_hostile_pickles_are_not_run(tmp_path, protocol):
    done = tmp_path / "done"
    content = pickle.dumps({b"data": IMAGES[5], b"labels": Runs(done)}, protocol=protocol)
    pickle.loads(content)
    assert done.is_dir()  # it is hostile
    done.rmdir()
    files = cifar_files("python 2") | {"test_batch": content}
    with pytest.raises(ValueError, match=r"test_batch: expected a pickle of .* no code, got"):
        datasets.load(write_folder(tmp_path / "files", files))
    assert not done.exists()


DAMAGED = {
    "empty": (b"", "exhausted"),
    "truncated": (python_2(IMAGES[5], [1, 2])[:-9], "got one with"),
    "no dictionary": (pickle.dumps([1], 2), "a list instead of a dictionary"),
    "no labels": (pickle.dumps({b"data": b""}, 3), "labels"),
    "no array": (pickle.dumps({b"data": b"", b"labels": []}, 3), "other things than an array"),
    "floats": (python_3(IMAGES[5].astype(np.float32), [1, 2]), "something else than bytes"),
    "text labels": (python_3(IMAGES[5], ["a", "b"]), "labels that are no integers"),
    "true labels": (python_3(IMAGES[5], [True, False]), "labels that are no integers"),
    "one axis": (python_3(IMAGES[5].ravel(), [1, 2]), "not two-dimensional"),
    "other pixels": (python_3(IMAGES[5][:, :9], [1, 2]), r"expected images \(n, 3072\)"),
    "too few labels": (python_3(IMAGES[5], [1]), r"got \(2, 3072\) with 1"),
    "no images": (python_2(IMAGES[5][:0], []), r"got \(0, 3072\) with 0"),
    "label 10": (python_3(IMAGES[5], [1, 10]), "expected labels 0 to 9, got 10"),
    "label -1": (python_3(IMAGES[5], [1, -1]), "expected labels 0 to 9, got -1"),
    "a global": (b"\x80\x02cos\nsystem\n.", "the name 'os system'"),
    "builtins": (b"\x80\x02c__builtin__\neval\n.", "the name '__builtin__ eval'"),
    "an instance": (b"\x80\x02(ios\nsystem\n.", "the instruction INST"),
    "by the stack": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "protocol 4"),
    "without protocol": (b"\x8c\x02os\x8c\x06system\x93.", "the instruction SHORT_BINUNICODE"),
    "stack underflow": (b"\x80\x02R.", "too few values"),
    "no mark": (b"\x80\x02t.", "pop from empty list"),
    "unknown memo": (b"\x80\x02h\x05.", "got one with 5"),
    "items of None": (b"\x80\x02NNa.", "items for a NoneType"),
    "keys of None": (b"\x80\x02NNNs.", "keys for a NoneType"),
    "number as key": (b"\x80\x02}K\x01Ns.", "a key of type int"),
    "odd keys": (b"\x80\x02}(U\x01au.", "keys for a dict"),
    "state of None": (b"\x80\x02NNb.", "a state for something else"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_pickles_damaged(tmp_path, case):
    content, message = DAMAGED[case]
    files = cifar_files("python 2") | {"test_batch": content}
    with pytest.raises(ValueError, match=f"test_batch: .*{message}"):
        datasets.load(write_folder(tmp_path, files))


def test_small_pickles_stay_small(monkeypatch):
    """References to one large text are cheap to write, and must be cheap to read."""
    pixels = bytes(10**5)
    large = b"X" + len(pixels).to_bytes(4, "little") + pixels + b"q\x01"
    encode = b"c_codecs\nencode\nq\x02"
    call = b"h\x02h\x01X\x06\0\0\0latin1\x86R"
    bomb = b"\x80\x02" + large + encode + b"](" + call * 2000 + b"e."
    # A tuple of the one before twice, and so on: as text it would have 2**60 parts.
    doubling = b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"."
    tracemalloc.start()
    try:
        for content in (bomb, doubling):
            with pytest.raises(ValueError, match="instead of a dictionary"):
                pickles.read_batch(content, "bomb")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(bomb)
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 100)
    with pytest.raises(ValueError, match="more than 100 instructions"):
        pickles.read_batch(bomb, "bomb")


# GTSRB


def picture(size, color, ending="ppm", inner=None):
    """An image of one colour, with a sign of another one in [2, 6) x [2, 6)."""
    from PIL import Image

    image = Image.new("RGB", (size, size), color)
    if inner is not None:
        image.paste(inner, (2, 2, 6, 6))
    packed = io.BytesIO()
    image.save(packed, format={"ppm": "PPM", "png": "PNG"}[ending])
    return packed.getvalue()


def official_table(rows, with_classes=True):
    last = ";ClassId" if with_classes else ""
    lines = [f"Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2{last}"]
    lines += [f"{file};8;8;2;2;6;6" + (f";{c}" if with_classes else "") for file, c in rows]
    return "\r\n".join(lines).encode()


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def official(training="GTSRB/Final_Training/Images", truth="GT-final_test.csv"):
    return {
        f"{training}/00000/00000_00000.ppm": picture(8, RED, inner=BLUE),
        f"{training}/00000/GT-00000.csv": official_table([("00000_00000.ppm", 0)]),
        f"{training}/00014/00000_00000.ppm": picture(40, GREEN),
        f"{training}/00014/00000_00001.ppm": picture(8, BLUE),
        f"{training}/00014/GT-00014.csv": official_table(
            [("00000_00000.ppm", 14), ("00000_00001.ppm", 14)]
        ),
        "GTSRB/Final_Test/Images/00000.ppm": picture(9, GREEN),
        "GTSRB/Final_Test/Images/GT-final_test.test.csv": official_table([("00000.ppm", 0)], False),
        truth: official_table([("00000.ppm", 3)]),
    }


def kaggle():
    header = b"Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\n"
    return {
        "Train.csv": header
        + b"8,8,2,2,6,6,0,Train/0/a.png\n40,40,2,2,6,6,14,Train/14/a.png\n"
        + b"8,8,2,2,6,6,14,Train/14/b.png\n",
        "Test.csv": header + b"9,9,2,2,6,6,3,Test/00000.png\n",
        "Train/0/a.png": picture(8, RED, "png", inner=BLUE),
        "Train/14/a.png": picture(40, GREEN, "png"),
        "Train/14/b.png": picture(8, BLUE, "png"),
        "Test/00000.png": picture(9, GREEN, "png"),
    }


LAYOUTS = {
    "official": official(),
    "fixed archive": official("GTSRB/Training"),
    "truth beside the test images": official(truth="GTSRB/Final_Test/Images/GT-final_test.csv"),
    "truth replaced": official(truth="GTSRB/Final_Test/Images/GT-final_test.test.csv"),
    "Kaggle": kaggle(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gtsrb(tmp_path, layout):
    write_folder(tmp_path / "gtsrb", LAYOUTS[layout])
    data = datasets.load("gtsrb", tmp_path, images=True, progress=False)
    assert (data.name, data.X_train.shape, data.X_test.shape) == (
        "gtsrb", (3, 3, 32, 32), (1, 3, 32, 32)
    )  # fmt: skip
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 14, 14], [3])
    for image, color in (
        (data.X_train[1], GREEN),
        (data.X_train[2], BLUE),
        (data.X_test[0], GREEN),
    ):
        np.testing.assert_array_equal(
            image, np.broadcast_to(np.array(color)[:, None, None] / 255, (3, 32, 32))
        )
    # The sign in the middle of the first, with all of its margin, and without.
    assert data.X_train[0, :, 0, 0].tolist() == [1, 0, 0]
    assert data.X_train[0, :, 16, 16].tolist() == [0, 0, 1]
    cropped = datasets.load(tmp_path / "gtsrb", crop=True)
    blue = np.repeat([0.0, 0.0, 1.0], 1024)
    np.testing.assert_array_equal(cropped.X_train[0], blue)


def test_gtsrb_from_inside(tmp_path):
    write_folder(tmp_path, official(truth="GTSRB/GT-final_test.csv"))
    assert datasets.load(tmp_path / "GTSRB").y_test.tolist() == [3]
    assert datasets.load("gtsrb", tmp_path).y_test.tolist() == [3]


def test_gtsrb_reads_nothing_above_the_folder(tmp_path):
    write_folder(tmp_path, official())
    with pytest.raises(FileNotFoundError, match=r"GTSRB: expected GT-final_test.csv .*_GT.zip"):
        datasets.load(tmp_path / "GTSRB")


def replaced(files, file, old, new):
    assert old in files[file]
    return files | {file: files[file].replace(old, new)}


HOSTILE = {
    "above": b"../../secret.png",
    "absolute": b"/etc/passwd",
    "drive": b"C:\\secret.png",
    "backslashes": b"..\\..\\secret.png",
    "null": b"a\0b",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_gtsrb_names_stay_in_the_folder(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(picture(8, RED, "png"))
    files = replaced(kaggle(), "Train.csv", b"Train/14/a.png", HOSTILE[name])
    with pytest.raises(ValueError, match=r"Train.csv: line 3: expected names of files inside"):
        datasets.load(write_folder(tmp_path / "a" / "b", files))


def test_gtsrb_links_stay_in_the_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(8, RED, "png"))
    write_folder(tmp_path / "a", kaggle())
    (tmp_path / "a" / "Train/14/a.png").unlink()
    (tmp_path / "a" / "Train/14/a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="expected names of files inside"):
        datasets.load(tmp_path / "a")


MISSING = {
    "image": "Train/14/a.png",
    "table": "Test.csv",
}


@pytest.mark.parametrize("what", MISSING)
def test_gtsrb_missing(tmp_path, what):
    files = kaggle()
    del files[MISSING[what]]
    with pytest.raises(FileNotFoundError, match=f"{MISSING[what]}.*found none"):
        datasets.load(write_folder(tmp_path, files))


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("GTSRB/Final_Training", "expected the training images in"),
        ("GTSRB/Final_Test", "expected the test images in"),
        ("GTSRB/Final_Training/Images/00000/GT", "expected .*GT-00000.csv"),
        ("GT-final_test.csv", "expected GT-final_test.csv with a column ClassId"),
    ],
)
def test_gtsrb_parts_missing(tmp_path, gone, message):
    files = {file: content for file, content in official().items() if not file.startswith(gone)}
    files.pop("GTSRB/Final_Training/Images/00014/GT-00014.csv", None)
    with pytest.raises(FileNotFoundError, match=message):
        datasets.load(write_folder(tmp_path, files))


DAMAGED_GTSRB = {
    "class 43": (replaced(kaggle(), "Test.csv", b",3,", b",43,"), "expected classes 0 to 42"),
    "class a": (replaced(kaggle(), "Test.csv", b",3,", b",a,"), "line 2: expected Path, ClassId"),
    "short line": (replaced(kaggle(), "Test.csv", b",3,Test/00000.png", b""), "line 2: expected"),
    "no column": (replaced(kaggle(), "Test.csv", b"ClassId", b"Label"), "expected columns ClassId"),
    "empty": (kaggle() | {"Test.csv": b""}, "expected columns Path, ClassId"),
    "no rows": (kaggle() | {"Test.csv": kaggle()["Test.csv"].split(b"\n")[0]}, "1 to 100000 test"),
    "no text": (kaggle() | {"Test.csv": b"\xff\xfe"}, "expected a table of text"),
    "no image": (kaggle() | {"Test/00000.png": b"text"}, "expected a PPM or PNG image"),
    "a gif": (kaggle() | {"Test/00000.png": b"GIF89a" + bytes(99)}, "expected a PPM or PNG image"),
    "truncated": (
        kaggle() | {"Test/00000.png": picture(9, GREEN, "png")[:45]},
        "00000.png: expected a PPM or PNG image",
    ),
    "huge": (kaggle() | {"Test/00000.png": b"P6 30000 3000 255\n"}, "expected a PPM or PNG image"),
}


@pytest.mark.parametrize("case", DAMAGED_GTSRB)
def test_gtsrb_damaged(tmp_path, case):
    files, message = DAMAGED_GTSRB[case]
    with pytest.raises(ValueError, match=message):
        datasets.load(write_folder(tmp_path, files), progress=False)


def test_gtsrb_bounds(tmp_path, monkeypatch):
    write_folder(tmp_path, kaggle())
    monkeypatch.setattr(gtsrb, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="40x40 pixels"):
        datasets.load(tmp_path)
    monkeypatch.setattr(gtsrb, "MAX_IMAGES", 2)
    with pytest.raises(ValueError, match=r"expected .* 2 .*images, got"):
        datasets.load(tmp_path)


def test_gtsrb_signs_outside_of_their_image(tmp_path):
    files = replaced(kaggle(), "Test.csv", b"2,2,6,6", b"2,2,6,600")
    folder = write_folder(tmp_path, files)
    assert len(datasets.load(folder).X_test) == 1
    with pytest.raises(ValueError, match=r"the sign at \(2, 2, 6, 600\) of 9x9 pixels"):
        datasets.load(folder, crop=True)


# .npz

PIXELS = RNG.integers(0, 256, (10, 3, 4), dtype=np.uint8)
Y = np.arange(10) % 2


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_both_halves(tmp_path, save):
    path = tmp_path / "mnist.npz"
    save(path, x_train=PIXELS, y_train=Y.astype(np.uint8), x_test=PIXELS[:4], y_test=Y[:4])
    data = datasets.load(path, images=True)
    assert (data.name, data.X_train.shape, data.classes) == ("mnist", (10, 1, 3, 4), None)
    expected = PIXELS.astype(np.float32) / 255
    np.testing.assert_array_equal(data.X_train[:, 0], expected)
    np.testing.assert_array_equal(data.y_test, Y[:4])
    flat = datasets.load(path, dtype=np.float32)
    np.testing.assert_array_equal(flat.X_test, expected[:4].reshape(4, 12))
    whole = datasets.load(path, box=(0, 255))
    np.testing.assert_array_equal(whole.X_test, PIXELS[:4].reshape(4, 12))


def test_npz_with_one_half(tmp_path):
    path = tmp_path / "mine.npz"
    points = np.asfortranarray(PIXELS.reshape(10, 12) / 255)
    np.savez(path, X=points, y=np.where(Y, "cat", "dog"), other=np.zeros(3))
    data = datasets.load(path)
    assert (data.X_train.shape, data.X_test.shape, data.classes) == (
        (8, 12),
        (2, 12),
        ("cat", "dog"),
    )
    again = datasets.from_arrays(points, np.where(Y, "cat", "dog"))
    np.testing.assert_array_equal(data.X_train, again.X_train)
    assert len(datasets.load(path, test_size=0.5, rng=3).X_test) == 5


def test_npz_of_large_values(tmp_path):
    np.savez(tmp_path / "a.npz", X=PIXELS.reshape(10, 12), y=Y)
    with pytest.raises(ValueError, match=r"a.npz: X: .*divide by 255, or pass box=\(0, 255\)"):
        datasets.load(tmp_path / "a.npz")
    assert datasets.load(tmp_path / "a.npz", box=(0, 255)).X_train.max() > 1


def npz(compression=zipfile.ZIP_STORED, **members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return packed.getvalue()


def npy(array, **options):
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asarray(array), **options)
    return content.getvalue()


def header(shape, descr="|u1"):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return content.getvalue()


LABEL_BYTES = npy(Y)
DAMAGED_NPZ = {
    "empty": (b"", "expected an .npz file"),
    "text": (b"not a zip file", "expected an .npz file"),
    "no arrays": (npz(), "expected arrays X and y, .* got none of them"),
    "no labels": (npz(X=npy(PIXELS)), "expected arrays X and y, .* got x"),
    "half a half": (npz(X=npy(PIXELS), y=LABEL_BYTES, X_test=npy(PIXELS)), "expected arrays X and"),
    "objects": (npz(X=npy([{}], allow_pickle=True), y=LABEL_BYTES), "without objects, got"),
    "structure": (npz(X=npy(np.zeros(3, "i4,f4")), y=LABEL_BYTES), "without objects, got x|X"),
    "complex": (npz(X=npy(np.zeros((2, 2), complex)), y=LABEL_BYTES), "of dtype complex128"),
    "truncated array": (npz(X=npy(PIXELS)[:-1], y=LABEL_BYTES), "bytes for shape"),
    "long array": (npz(X=npy(PIXELS) + b"\0", y=LABEL_BYTES), "bytes for shape"),
    "false shape": (npz(X=header((2**40, 2**20)), y=LABEL_BYTES), "bytes for shape"),
    "negative shape": (npz(X=header((-1, 5)), y=LABEL_BYTES), "of shape"),
    "twice": (npz(X=npy(PIXELS), x=npy(PIXELS), y=LABEL_BYTES), "x twice"),
    "bzip2": (npz(zipfile.ZIP_BZIP2, X=npy(PIXELS), y=LABEL_BYTES), "compressed by method 12"),
    "other version": (npz(X=b"\x93NUMPY\x03\x00" + bytes(80), y=LABEL_BYTES), "of version"),
    "NaN": (npz(X=npy(np.full((10, 2), np.nan)), y=LABEL_BYTES), "a.npz: X: expected finite"),
    "labels of others": (npz(X=npy(PIXELS), y=npy(Y[:3])), r"a.npz: y: expected shape \(10,\)"),
    "text as X": (npz(X=npy([["a"]] * 10), y=LABEL_BYTES), "a.npz: X: expected real numbers"),
}


@pytest.mark.parametrize("case", DAMAGED_NPZ)
def test_npz_damaged(tmp_path, case):
    content, message = DAMAGED_NPZ[case]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        datasets.load(tmp_path / "a.npz")


def test_npz_bombs(tmp_path, monkeypatch):
    """Sizes are checked before memory is asked for."""
    path = tmp_path / "bomb.npz"
    path.write_bytes(npz(zipfile.ZIP_DEFLATED, X=npy(np.zeros((10, 10**5))), y=LABEL_BYTES))
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(datasets.tables, "MAX_NPZ_BYTES", 10**6)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="arrays of more than 1000000 bytes"):
            datasets.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10**6


def test_npz_with_a_false_size(tmp_path):
    """A size that deflate cannot reach is not believed."""
    name = b"X.npy"
    content = bytearray(npz(X=npy(PIXELS), y=LABEL_BYTES))
    entry = content.index(b"PK\x01\x02")
    assert content[entry + 46 : entry + 51] == name
    content[entry + 24 : entry + 28] = (2**30).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"X.npy with a false size"):
        datasets.load(tmp_path / "a.npz")


# .csv

TABLE = "a,b,kind\n" + "".join(f"0.{i},1,{'yes' if i % 2 else 'no'}\n" for i in range(10))


def write_table(folder, text, encoding="utf-8"):
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(tmp_path, delimiter, end):
    text = TABLE.replace(",", delimiter).replace("\n", end)
    data = datasets.load(write_table(tmp_path, text, "utf-8-sig"))
    assert (data.name, data.classes) == ("table", ("no", "yes"))
    assert (data.X_train.shape, data.X_test.shape) == ((8, 2), (2, 2))
    for X, y in ((data.X_train, data.y_train), (data.X_test, data.y_test)):
        np.testing.assert_array_equal(np.rint(X[:, 0] * 10).astype(int) % 2, y)
        np.testing.assert_array_equal(X[:, 1], 1)


def test_csv_columns(tmp_path):
    path = write_table(tmp_path, 'y,"the first, b",c\n10,0.5,1\n9,1,0\n10,0,0\n\n9,0,0.25\n')
    data = datasets.load(path, target="y", test_size=0.5, dtype=np.float32)
    # Numbers in their order, not in that of text.
    assert data.classes == (9, 10)
    assert (data.X_train.shape, data.X_train.dtype) == ((2, 2), np.float32)


DAMAGED_CSV = {
    "empty": ("", "expected a first line with the names"),
    "numbers only": ("1,2\n3,4\n", "expected a first line with the names"),
    "one column": ("a\n1\n", "expected a first line with the names"),
    "no rows": ("a,b\n", "expected rows below the header"),
    "a cell less": (TABLE + "1,no\n", "line 12: expected 3 cells, got 2"),
    "a cell more": (TABLE + "1,1,1,no\n", "line 12: expected 3 cells, got 4"),
    "empty cell": (TABLE + ",1,no\n", "line 12: expected a finite number in column 'a', got ''"),
    "text": (TABLE + "1,red,no\n", "line 12: expected a finite number in column 'b', got 'red'"),
    "NaN": (TABLE + "1,nan,no\n", "line 12: expected a finite number in column 'b', got 'nan'"),
    "infinite": (TABLE + "1,1e999,no\n", "expected a finite number in column 'b', got '1e999'"),
    "no label": (TABLE + "1,1,\n", "line 12: expected a label, got none"),
    "large": (TABLE + "1,200,no\n", r"table.csv: X: .*or pass box=\(0, 255\)"),
    "rare": (TABLE + "1,1,maybe\n", "give the test half yourself"),
    "null": (TABLE + "\0,1,no\n", "line 12|line contains NUL"),
}


@pytest.mark.parametrize("case", DAMAGED_CSV)
def test_csv_damaged(tmp_path, case):
    text, message = DAMAGED_CSV[case]
    with pytest.raises(ValueError, match=message):
        datasets.load(write_table(tmp_path, text))


def test_csv_is_text(tmp_path):
    with pytest.raises(ValueError, match=r"table.csv: expected a table of text"):
        datasets.load(write_table(tmp_path, TABLE, "utf-16"))


def test_csv_target(tmp_path):
    path = write_table(tmp_path, TABLE)
    with pytest.raises(ValueError, match="expected one column 'label' for the labels, got"):
        datasets.load(path, target="label")
    with pytest.raises(ValueError, match=r"target: expected it for a .csv table only, got 'kind'"):
        datasets.load("digits", target="kind")
    with pytest.raises(ValueError, match="images: expected a data set of images, got 'table'"):
        datasets.load(path, images=True)


# All of them


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name: expected a file, found no .*a\.csv"):
        datasets.load(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"or a file ending in .tar.gz, .tgz, .npz, .csv, got"):
        datasets.load(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"expected .*train-images"):
        datasets.load(tmp_path)
    with pytest.raises(ValueError, match="crop: expected it for GTSRB only, got it for 'moons'"):
        datasets.load("moons", crop=True)
