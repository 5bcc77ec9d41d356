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


@pytest.mark.parametrize("section", ["PyTorch", "ONNX", "scikit-learn"])
def test_five_lines(section):
    for code in blocks(section)[1:]:
        assert len(lines(code)) <= 5
    assert len(blocks(section)) >= 2


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
