"""Networks from .mat files, against forward passes in their own layout."""

import struct
import zlib

import numpy as np
import pytest
from scipy import io as scipy_io
from scipy.signal import correlate

import refmmr as rm
from refmmr.interop import matlab_variables

RNG = np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.mat"


def save(path, variables, **options):
    scipy_io.savemat(path, variables, **options)


def same_conv(image, W, b):
    """TensorFlow's convolution of an HWC image with HWIO filters, stride 2, SAME."""
    out = []
    for o in range(W.shape[3]):
        pads = []
        for axis in (0, 1):
            n = image.shape[axis]
            total = max((-(-n // 2) - 1) * 2 + W.shape[axis] - n, 0)
            pads.append((total // 2, total - total // 2))
        padded = np.pad(image, [*pads, (0, 0)])
        out.append(correlate(padded, W[..., o], "valid")[::2, ::2, 0] + b[o])
    return np.stack(out, axis=-1)


def authors_cnn(side=8, channels=2):
    pixels = (-(-side // 4)) ** 2
    return {
        "weights_conv1": RNG.normal(size=(4, 4, channels, 3)),
        "biases_conv1": RNG.normal(size=3),
        "weights_conv2": RNG.normal(size=(4, 4, 3, 5)),
        "biases_conv2": RNG.normal(size=5),
        "weights_fc1": RNG.normal(size=(5 * pixels, 6)),
        "biases_fc1": RNG.normal(size=6),
        "weights_fc2": RNG.normal(size=(6, 3)),
        "biases_fc2": RNG.normal(size=3),
    }


def authors_forward(v, image):
    """The authors' network on an image HWC."""
    hidden = image
    for name in ("conv1", "conv2"):
        hidden = np.maximum(same_conv(hidden, v[f"weights_{name}"], v[f"biases_{name}"]), 0)
    hidden = np.maximum(hidden.reshape(-1) @ v["weights_fc1"] + v["biases_fc1"], 0)
    return hidden @ v["weights_fc2"] + v["biases_fc2"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_authors_cnn(path, compressed, dtype):
    v = {name: array.astype(dtype) for name, array in authors_cnn().items()}
    save(path, v, do_compression=compressed)
    net = rm.load(path)
    assert net.input_shape == (2, 8, 8)
    assert net.dtype == dtype
    images = RNG.random((4, 8, 8, 2))
    wide = {name: array.astype(np.float64) for name, array in v.items()}
    expected = [authors_forward(wide, image) for image in images]
    np.testing.assert_allclose(
        net.astype(np.float64)(images.transpose(0, 3, 1, 2)), expected, rtol=1e-11, atol=1e-11
    )


def test_authors_cnn_on_images_that_are_no_multiple_of_four(path):
    v = authors_cnn(side=7, channels=1)
    save(path, v)
    net = rm.load(path, input_shape=(1, 7, 7))
    image = RNG.random((7, 7, 1))
    np.testing.assert_allclose(
        net(image.transpose(2, 0, 1)[None])[0], authors_forward(v, image), rtol=1e-11, atol=1e-11
    )


def fc1():
    return {
        "U": RNG.normal(size=(12, 5)), "bU": RNG.normal(size=(1, 5)),
        "W": RNG.normal(size=(5, 3)), "bW": RNG.normal(size=(1, 3)),
    }  # fmt: skip


def test_authors_fc1(path):
    v = fc1()
    save(path, v)
    x = RNG.random((4, 12))
    expected = np.maximum(x @ v["U"] + v["bU"], 0) @ v["W"] + v["bW"]
    np.testing.assert_allclose(rm.load(path)(x), expected, rtol=1e-12, atol=1e-12)


def test_authors_fc1_on_images(path):
    v = fc1()
    save(path, v)
    images = RNG.random((4, 2, 2, 3))
    expected = np.maximum(images.reshape(4, 12) @ v["U"] + v["bU"], 0) @ v["W"] + v["bW"]
    net = rm.load(path, input_shape=(3, 2, 2))
    np.testing.assert_allclose(net(images.transpose(0, 3, 1, 2)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flatten", [None, "NCHW", "NHWC"])
def test_mipverify_cnn(path, flatten):
    v = authors_cnn()
    names = {"conv1": "conv1", "conv2": "conv2", "fc1": "fc1", "fc2": "logits"}
    save(
        path,
        {f"{names[n]}/weight": v[f"weights_{n}"] for n in names}
        | {f"{names[n]}/bias": v[f"biases_{n}"][None] for n in names},
    )
    net = rm.load(path, flatten=flatten)
    image = RNG.random((8, 8, 2))
    if flatten != "NHWC":
        # The same weights, read channel by channel.
        W = v["weights_fc1"].reshape(5, 2, 2, 6).transpose(1, 2, 0, 3).reshape(20, 6)
        v = {**v, "weights_fc1": W}
    np.testing.assert_allclose(
        net(image.transpose(2, 0, 1)[None])[0], authors_forward(v, image), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("last", ["logits", "softmax"])
def test_mipverify_dense(path, last):
    v = {f"fc{i}/weight": RNG.normal(size=(n, 4)) for i, n in ((1, 3), (2, 4), (10, 4))}
    v |= {f"fc{i}/bias": RNG.normal(size=4) for i in (1, 2, 10)}
    v |= {f"{last}/weight": RNG.normal(size=(4, 2)), f"{last}/bias": RNG.normal(size=2)}
    save(path, v)
    x = RNG.random((4, 3))
    expected = x
    for name in ("fc1", "fc2", "fc10", last):
        expected = expected @ v[f"{name}/weight"] + v[f"{name}/bias"]
        if name != last:
            expected = np.maximum(expected, 0)
    np.testing.assert_allclose(rm.load(path)(x), expected, rtol=1e-12, atol=1e-12)


def test_other_variables_are_not_built(path):
    save(path, {**fc1(), "junk": np.array([{"a": 1}, "text"], dtype=object), "notes": "hello"})
    assert rm.load(path).input_shape == (12,)


REFUSED = {
    "others": ({"A": np.ones(2)}, {}, "expected variables U, W, bU, bW or .*, got 'A'"),
    "none": ({}, {}, "got none"),
    "missing": ({"U": np.ones((2, 2))}, {}, "real numbers in 'bU', got no such variable"),
    "text": ({**fc1(), "W": "text"}, {}, "real numbers in 'W', got char"),
    "cell": ({**fc1(), "W": np.array([1, "a"], object)}, {}, "real numbers in 'W', got cell"),
    "integers": ({**fc1(), "W": np.ones((5, 3), int)}, {}, "real numbers in 'W', got int64"),
    "complex": ({**fc1(), "W": np.ones((5, 3)) * 1j}, {}, "in 'W', got complex double"),
    "nan": ({**fc1(), "W": np.full((5, 3), np.nan)}, {}, "W: W: expected finite"),
    "shapes": ({**fc1(), "W": np.ones((4, 3))}, {}, r"W: expected inputs of shape \(4,\)"),
    "axes": ({**fc1(), "U": np.ones((2, 2, 2))}, {}, "U: expected 2 or 4 axes"),
    "empty": ({**fc1(), "U": np.ones((0, 5))}, {}, "U: expected 2 or 4 axes"),
    "image": (fc1(), {"input_shape": (3, 2, 3)}, "U: expected 18 inputs"),
    "flatten": (fc1(), {"flatten": "CHWN"}, "flatten: expected one of NCHW, NHWC, got 'CHWN'"),
    "strides": (authors_cnn(), {"stride": [2]}, "stride: expected a list of 2"),
    "no image": (
        {**authors_cnn(), "weights_fc1": RNG.normal(size=(7, 6))}, {}, "no square image fits",
    ),
    "dense first": (
        {**authors_cnn(), "weights_conv1": np.ones((3, 3))}, {}, "expected convolutions first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(path, name):
    variables, options, message = REFUSED[name]
    save(path, variables)
    with pytest.raises(ValueError, match=message):
        rm.load(path, **options)


def header(text=b"MATLAB 5.0 MAT-file", mark=b"IM"):
    return text.ljust(124) + b"\x00\x01" + mark


DAMAGED = {
    "empty": b"",
    "header": header()[:100],
    "no mark": header(mark=b"??"),
    "element": header() + b"\x0e\x00",
    "length": header() + struct.pack("<II", 14, 2**31),
    "zlib": header() + struct.pack("<II", 15, 8) + b"notazlib",
    "truncated zlib": header() + struct.pack("<II", 15, 8) + zlib.compress(bytes(1000))[:8],
    "garbage": header() + struct.pack("<II", 14, 64) + bytes(range(64)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(path, name):
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=r"net\.mat: expected a"):
        rm.load(path)


def element(order, kind, data):
    return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_doubles_that_are_stored_as_bytes_in_either_byte_order(path, order):
    parts = [
        element(order, 6, struct.pack(order + "II", 6, 0)),
        element(order, 5, struct.pack(order + "ii", 2, 3)),
        # A short element: length and type in one word.
        struct.pack(order + "I", 1 << 16 | 1) + b"A\0\0\0",
        element(order, 2, bytes([1, 2, 3, 4, 5, 250])),
    ]
    mark = b"IM" if order == "<" else b"MI"
    path.write_bytes(header(mark=mark) + element(order, 14, b"".join(parts)))
    found = matlab_variables.read(path)["A"]
    assert found.dtype == np.float64
    assert found.tolist() == [[1.0, 3.0, 5.0], [2.0, 4.0, 250.0]]


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_are_those_that_were_saved(path, compressed):
    variables = {
        "a": RNG.normal(size=(3, 4)),
        "b": RNG.normal(size=(2, 3, 4)).astype(np.float32),
        "column/x": RNG.normal(size=(5, 1)),
        "empty": np.zeros((0, 3)),
    }
    others = {"text": "hello", "s": {"x": 1}, "i": np.ones((2, 2), np.int16)}
    save(path, variables | others, do_compression=compressed)
    found = matlab_variables.read(path)
    for name, array in variables.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert [found[name] for name in others] == ["char", "struct", "int16"]


@pytest.mark.parametrize("start", [header(b"MATLAB 7.3 MAT-file"), b"\x89HDF\r\n\x1a\n"])
def test_hdf5_says_how_to_save(path, start):
    path.write_bytes(start + bytes(600))
    with pytest.raises(ValueError, match=r"got version 7\.3 \(HDF5\); in MATLAB, .*'-v7'"):
        rm.load(path)


def test_bombs_do_not_unpack(path, monkeypatch):
    monkeypatch.setattr(matlab_variables, "MAX_BYTES", 10_000)
    bomb = zlib.compress(bytes(10**6), 9)
    assert len(bomb) < 2000
    path.write_bytes(header() + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(ValueError, match="more than 10000 bytes unpacked"):
        rm.load(path)


def test_many_small_bombs_do_not_unpack(path, monkeypatch):
    monkeypatch.setattr(matlab_variables, "MAX_BYTES", 10_000)
    bomb = zlib.compress(bytes(4000), 9)
    path.write_bytes(header() + (struct.pack("<II", 15, len(bomb)) + bomb) * 3)
    with pytest.raises(ValueError, match="more than 10000 bytes unpacked"):
        rm.load(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_that_grow_are_bounded(path, monkeypatch, compressed):
    """Doubles that are stored as bytes take eight times as much, once they are read."""
    monkeypatch.setattr(matlab_variables, "MAX_BYTES", 10_000)
    parts = [
        element("<", 6, struct.pack("<II", 6, 0)),
        element("<", 5, struct.pack("<ii", 2000, 1)),
        element("<", 1, b"A"),
        element("<", 2, bytes(2000)),
    ]
    array = element("<", 14, b"".join(parts))
    if compressed:
        packed = zlib.compress(array)
        array = struct.pack("<II", 15, len(packed)) + packed
    path.write_bytes(header() + array)
    with pytest.raises(ValueError, match=r"net\.mat: .*more than 10000 bytes of arrays"):
        rm.load(path)


def test_all_arrays_together_are_bounded(path, monkeypatch):
    save(path, {"a": np.ones(600), "b": np.ones(600)})
    assert len(matlab_variables.read(path)) == 2
    monkeypatch.setattr(matlab_variables, "MAX_BYTES", 8000)
    with pytest.raises(ValueError, match="more than 8000 bytes of arrays"):
        matlab_variables.read(path)
