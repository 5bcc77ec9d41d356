"""Which kernel each backend has: told without importing it, and as it is in fact."""

import importlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import refmmr as rm
from refmmr import _backend
from refmmr._kernels import KERNELS
from refmmr.backends import MODULES, support

ROOT = Path(__file__).parents[2]


def test_numba_registers_what_is_declared():
    pytest.importorskip("numba", reason='numba is not installed: pip install "refmmr[numba]"')
    with rm.use_backend("numba"):
        registered = {name for name in _backend._twins["numba"] if name.startswith("refmmr.")}
    assert registered == {k.name for k in KERNELS.values() if "numba" in k.twins}


def test_every_twin_is_of_a_backend_that_there_is():
    assert {twin for kernel in KERNELS.values() for twin in kernel.twins} == set(MODULES)


def test_docs_show_the_table():
    text = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    assert support.markdown() in text, "run: make support-table"


def test_writing_the_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{support.BEGIN}\nold\n{support.END}\nafter\n")
    support.write(page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| `mmr.mmr` | yes | yes | yes |" in text


def test_the_example_of_contributing_works(tmp_path):
    pytest.importorskip("numba", reason='numba is not installed: pip install "refmmr[numba]"')
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "widths_example.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("widths_example", file)
    module = importlib.util.module_from_spec(spec)
    try:
        with rm.use_backend("numba"):
            spec.loader.exec_module(module)
            X = np.random.default_rng(0).standard_normal((10_000, 3))
            np.testing.assert_array_equal(module.run_widths(X), np.ptp(X, axis=1))
            assert _backend._twins["numba"]["widths_example.widths"] is module.fast_widths
    finally:
        _backend._twins["numba"].pop("widths_example.widths", None)
