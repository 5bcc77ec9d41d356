"""The page "Bring your own network" does what it says, section by section, in five lines each."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import refmmr as rm

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own.md"
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def blocks(section):
    """The code of a section, block by block."""
    return FENCE.findall(SECTIONS[section])


def lines(code):
    """Statements of a block: lines that are no import and no continuation."""
    return [
        line
        for line in code.splitlines()
        if line and not line.startswith((" ", ")", "import", "from", "#"))
    ]


def run(section, folder, monkeypatch):
    """Execute the blocks of a section in a folder of their own; the names they leave."""
    monkeypatch.chdir(folder)
    names = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Stochastic Optimizer", module="sklearn")
        for code in blocks(section):
            exec(compile(code, f"{PAGE.name}: {section}", "exec"), names)
    return names


def holds(found, net, X):
    """Radii that attacks of this size do not refute."""
    rng = np.random.default_rng(0)
    assert (found.lower > 0).any()
    classes = net.predict(X)
    right = found.lower > 0
    for _ in range(50):
        steps = rng.choice([-1.0, 1.0], size=X.shape)
        size = found.lower.reshape(-1, *[1] * (X.ndim - 1)) * 0.999
        if found.p == 2:
            size = size / np.sqrt(X[0].size)
        Z = np.clip(X + size * steps, 0, 1)
        assert (net.predict(Z) == classes)[right].all()


FILES_OF_OTHERS = ("Keras", "Properties in VNN-LIB")
"""Sections on files that other programs write: here the tests do."""


@pytest.mark.parametrize(
    "section",
    [
        "PyTorch",
        "Pooling and residual blocks in PyTorch",
        "ONNX",
        "scikit-learn",
        *FILES_OF_OTHERS,
    ],
)
def test_five_lines(section):
    before = section not in FILES_OF_OTHERS  # a block that makes what is brought
    assert len(blocks(section)) >= 1 + before
    for code in blocks(section)[before:]:
        assert 2 <= len(lines(code)) <= 5


def test_five_lines_for_weights_of_others():
    (code,) = blocks("Weights from a paper's repository")
    assert len(lines(code)) <= 5


@pytest.mark.torch
def test_pytorch(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason='PyTorch: pip install "refmmr[torch]"')
    torch.manual_seed(0)
    names = run("PyTorch", tmp_path, monkeypatch)
    X = names["data"].X_test[:50]
    names["model"].eval()
    with torch.no_grad():
        expected = names["model"](torch.tensor((X - 0.5) / 0.25, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(names["net"](X), expected, rtol=1e-4, atol=1e-4)
    holds(names["found"], names["net"], X)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*written as")
def test_pooling_and_residual_blocks(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason='PyTorch: pip install "refmmr[torch]"')
    torch.manual_seed(0)
    names = run("Pooling and residual blocks in PyTorch", tmp_path, monkeypatch)
    X = names["data"].X_test[:10]
    with torch.no_grad():
        expected = names["model"](torch.tensor(X, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(names["net"](X), expected, rtol=1e-4, atol=1e-4)
    holds(names["found"], names["net"], X)


def channels_last(path, softmax):
    """A model as tf2onnx writes it: NHWC outside, NCHW around convolutions and pooling."""
    onnx = pytest.importorskip("onnx", reason='ONNX: pip install "refmmr[interop]"')
    rng = np.random.default_rng(0)
    weights = {
        "F": rng.normal(size=(3, 1, 3, 3)) / 3,
        "c": rng.normal(size=3),
        "W": rng.normal(size=(48, 10)) / 4,
    }
    steps = [
        ("Transpose", ["x"], {"perm": [0, 3, 1, 2]}),
        ("Conv", ["t0", "F", "c"], {"auto_pad": "SAME_UPPER", "strides": [1, 1]}),
        ("Relu", ["t1"], {}),
        ("MaxPool", ["t2"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Transpose", ["t3"], {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["t4", "s"], {}),
        ("MatMul", ["t5", "W"], {}),
    ] + softmax * [("Softmax", ["t6"], {})]
    nodes = [
        onnx.helper.make_node(kind, inputs, [f"t{i}"], **attributes)
        for i, (kind, inputs, attributes) in enumerate(steps)
    ]
    value = onnx.helper.make_tensor_value_info
    arrays = {name: np.float32(array) for name, array in weights.items()}
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, ("n", 8, 8, 1))], [value(nodes[-1].output[0], 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        + [onnx.numpy_helper.from_array(np.int64([-1, 48]), "s")],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@pytest.mark.filterwarnings("ignore:.*(written as|is left out)")
def test_keras(tmp_path, monkeypatch):
    channels_last(tmp_path / "model.onnx", softmax=True)
    names = run("Keras", tmp_path, monkeypatch)
    net = names["net"]
    assert net.input_shape == (1, 8, 8)
    assert isinstance(net.layers[2], rm.Conv2d)
    holds(names["found"], net, names["data"].X_test[:10])


@pytest.mark.filterwarnings("ignore:.*written as")
def test_properties_in_vnnlib(tmp_path, monkeypatch):
    channels_last(tmp_path / "model.onnx", softmax=False)
    lines = [f"(declare-const X_{j} Real)" for j in range(64)]
    lines += [f"(declare-const Y_{k} Real)" for k in range(10)]
    lines += [f"(assert (and (>= X_{j} 0) (<= X_{j} 1)))" for j in range(64)]
    lines.append("(assert (or " + " ".join(f"(and (>= Y_{k} Y_0))" for k in range(1, 10)) + "))")
    (tmp_path / "property.vnnlib").write_text("\n".join(lines))
    found = run("Properties in VNN-LIB", tmp_path, monkeypatch)["found"]
    assert found.status == "violated"
    assert rm.load(tmp_path / "model.onnx").predict(found.counterexample[None]) != 0


def test_onnx(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx", reason='ONNX: pip install "refmmr[interop]"')
    pytest.importorskip("pandas", reason='pandas: pip install "refmmr[interop]"')
    names = run("ONNX", tmp_path, monkeypatch)
    holds(names["found"], names["net"], names["data"].X_test[:50])
    assert "lower" in capsys.readouterr().out


def test_scikit_learn(tmp_path, monkeypatch, capsys):
    names = run("scikit-learn", tmp_path, monkeypatch)
    X = names["data"].X_test[:50]
    holds(names["found"], names["net"], X)
    # The last block has put another classifier in the place of the first.
    assert 0.5 < float(capsys.readouterr().out.split("]")[1].split()[0]) <= 1
    assert names["model"].score(names["data"].X_test, names["data"].y_test) > 0.9


@pytest.mark.skipif("REFMMR_MODELS" not in os.environ, reason="REFMMR_MODELS is not set")
@pytest.mark.skipif("REFMMR_DATA" not in os.environ, reason="REFMMR_DATA is not set")
def test_weights_of_others(tmp_path, monkeypatch):
    pytest.importorskip("numba", reason='numba: pip install "refmmr[numba]"')
    before = rm.get_backend()
    try:
        names = run("Weights from a paper's repository", tmp_path, monkeypatch)
    finally:
        rm.set_backend(before)  # the page chooses another one
    net, data = names["net"], names["data"]
    assert (net.predict(data.X_test) != data.y_test).mean() == 0.0189
    holds(names["found"], net, data.X_test[:10])
