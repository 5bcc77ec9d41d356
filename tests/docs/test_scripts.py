"""The scripts of examples/: short, and they run as they stand."""

import os
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import refmmr as rm

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LONGEST = 40
"""Lines of a script that one would paste."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a script in an empty folder; its variables."""
    if not os.environ.get("REFMMR_NOTEBOOKS"):
        pytest.skip("REFMMR_NOTEBOOKS is not set")
    monkeypatch.chdir(tmp_path)

    def go(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(FOLDER / name))

    yield go
    plt.close("all")
    plt.rcdefaults()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_short_and_listed(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    assert f"`{path.name}" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"``python {path.name}" in text


def test_train_and_certify(run, capsys, tmp_path):
    found = run("train_and_certify.py", "digits", "2")["found"]
    assert found.test_error <= found.lower_bound <= found.upper_bound
    assert "test error" in capsys.readouterr().out
    assert rm.load(tmp_path / "digits-mmr.npz").n_classes == 10


def test_robustness_curve(run, tmp_path):
    curve = run("robustness_curve.py")["curve"]
    assert (np.diff(curve.certified_accuracy) <= 0).all()
    assert (tmp_path / "robustness.pdf").stat().st_size > 5000


def test_regions_of_a_slice(run, tmp_path):
    cx = run("regions_of_a_slice.py")["cx"]
    assert cx.complete
    assert len(cx) > 100
    assert (tmp_path / "regions.png").stat().st_size > 5000
    assert "<html" in (tmp_path / "regions.html").read_text()


def test_minimal_perturbation(run):
    names = run("minimal_perturbation.py")
    found, x, y, z = (names[name] for name in ("found", "x", "y", "z"))
    assert found.exact[0]
    assert np.linalg.norm(z - x[0]) == pytest.approx(found.upper[0], rel=1e-6)
    assert names["net"].predict(z[None])[0] != y[0]


def test_certify_keras(run, tmp_path, capsys):
    """Any .onnx file will do here: tests/end_to_end reads one as Keras writes it."""
    pytest.importorskip("onnx")
    net = rm.Network.lenet_small((1, 8, 8), 10, rng=0)
    rm.save(net, tmp_path / "model.onnx")
    found = run("certify_keras.py", "model.onnx", "digits")["found"]
    assert (found.lower > 0).all()
    assert "image 19: class" in capsys.readouterr().out
