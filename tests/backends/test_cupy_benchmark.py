"""The benchmark for a GPU, ``benchmarks/gpu.py``: it runs, on tiny networks."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

import refmmr as rm

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(cupy, tmp_path, monkeypatch):
    """The script as a module, whose results go to a temporary folder."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("refmmr_benchmarks_gpu", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with rm.use_backend("cupy"):
        yield module


def run(gpu, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["gpu.py", *words, "--tiny"])
    monkeypatch.setattr(rm, "set_backend", lambda name: None)
    gpu.main()
    path = gpu.OUT / "gpu.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def test_it_runs(gpu, monkeypatch, capsys):
    run(gpu, monkeypatch, "small")
    assert "small: ran" in capsys.readouterr().out
    run(gpu, monkeypatch, "check")
    run(gpu, monkeypatch, "time", "--batches", "1")
    (found,) = run(gpu, monkeypatch, "train", "--row", "mnist-fc1-l2-mmr+at", "--seconds", "3")
    assert len(found["deviations"]) == 8
    assert max(found["deviations"].values()) < 1e-5
    assert len(found["calls"]) == 12
    assert len(found["fit cupy"]) == 8
    assert found["machine"]["card"]
    assert found["train"]["epochs"].endswith("of 100")
    assert 0 <= found["train"]["first_1000_error"] <= found["train"]["first_1000_pgd_lower_bound"]
    text = (gpu.OUT / "gpu.md").read_text()
    assert "| cnn-linf objective_gradient | " in text
    assert "- epochs: " in text


def test_runs_are_compared(gpu, monkeypatch):
    other = {"machine": {"card": "another"}, "calls": {"fc1-linf pgd": [1, 2]}, "fit cupy": {}}
    (gpu.OUT / "gpu.json").write_text(json.dumps({"runs": [other]}))
    runs = run(gpu, monkeypatch, "check")
    assert len(runs) == 2
    assert "| fc1-linf pgd | 1.00 / 2.00 | |" in (gpu.OUT / "gpu.md").read_text()


def test_a_wrong_gradient_is_seen(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "TOLERANCE", {"float32": 0.0})
    with pytest.raises(SystemExit, match="too far from the reference: fc1-linf float32"):
        run(gpu, monkeypatch, "check")


def test_the_script_is_a_script():
    subprocess.run(["bash", "-n", FOLDER / "gpu.sh"], check=True)
    parts = {word for line in (FOLDER / "gpu.sh").read_text().splitlines()
             for name, word in [line.partition("gpu.py ")[::2]] for word in [word.split(" ")[0]]
             if name and word}  # fmt: skip
    assert parts == {"check", "time", "numba", "small", "profile", "train"}
