"""Which kernel each backend has: told without importing it, and as it is in fact."""

import importlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import refmmr as rm
import refmmr.training  # the last module that makes kernels
from refmmr import _backend
from refmmr.backends import support

ROOT = Path(__file__).parents[2]


def test_every_declared_twin_is_of_a_kernel():
    for backend in ("numba", "cupy"):
        assert support.declared(backend) <= set(_backend.kernels())


def test_numba_registers_what_it_declares():
    pytest.importorskip("numba", reason='numba is not installed: pip install "refmmr[numba]"')
    with rm.use_backend("numba"):
        assert set(_backend._twins["numba"]) >= support.declared("numba")
        registered = {name for name in _backend._twins["numba"] if name.startswith("refmmr.")}
        assert registered == support.declared("numba")


def test_functions_imported_by_name_are_found_too(tmp_path):
    file = tmp_path / "twin.py"
    file.write_text(
        "from refmmr._backend import implements\n"
        "from refmmr.reference.mmr import mmr\n\n\n"
        '@implements("numba", mmr)\ndef twin(): ...\n'
    )
    assert support._in_file(file, "numba") == ["refmmr.reference.mmr.mmr"]
    assert support._in_file(file, "cupy") == []


def test_docs_show_the_table():
    text = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    assert support.markdown(_backend.kernels()) in text, "run: make support-table"


def test_writing_the_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{support.BEGIN}\nold\n{support.END}\nafter\n")
    support.write(page, ["refmmr.reference.mmr.mmr"])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| `reference.mmr.mmr` | yes | yes | yes |" in text


def test_the_example_of_contributing_works(tmp_path):
    pytest.importorskip("numba", reason='numba is not installed: pip install "refmmr[numba]"')
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "widths_example.py"
    file.write_text(code)
    kernels = list(_backend._kernels)
    spec = importlib.util.spec_from_file_location("widths_example", file)
    module = importlib.util.module_from_spec(spec)
    try:
        with rm.use_backend("numba"):
            spec.loader.exec_module(module)
            X = np.random.default_rng(0).standard_normal((10_000, 3))
            np.testing.assert_array_equal(module.run_widths(X), np.ptp(X, axis=1))
            assert _backend._twins["numba"]["widths_example.widths"] is module.fast_widths
    finally:
        _backend._kernels[:] = kernels
        _backend._twins["numba"].pop("widths_example.widths", None)
