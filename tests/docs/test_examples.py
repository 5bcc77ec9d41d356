"""Examples of the reference pages run, and every public name has one."""

import doctest
import inspect
import sys
import types
from pathlib import Path

import pytest

import refmmr as rm

DOCS = Path(__file__).parents[2] / "docs"
NOTES = DOCS / "reference" / "notes"
PUBLIC = {f"refmmr.{name}": getattr(rm, name) for name in rm.__all__} | {
    f"refmmr.{module}.{name}": getattr(getattr(rm, module), name)
    for module in ("datasets", "plot", "testing")
    for name in getattr(rm, module).__all__
}


@pytest.mark.parametrize("path", sorted(NOTES.glob("*.rst")), ids=lambda path: path.stem)
def test_examples_run(path):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    found = doctest.testfile(str(path), module_relative=False, optionflags=flags, encoding="utf-8")
    assert found.failed == 0


@pytest.mark.parametrize("path", sorted(NOTES.glob("*.rst")), ids=lambda path: path.stem)
def test_notes_belong_to_something(path):
    owner, _, name = path.stem.rpartition(".")
    __import__(owner)
    assert hasattr(sys.modules[owner], name)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    value = PUBLIC[name]
    if isinstance(value, types.ModuleType):
        return
    note = NOTES / f"{name}.rst"
    text = note.read_text() if note.exists() else ""
    assert ">>> " in (inspect.getdoc(value) or "") or ">>> " in text or ".. plot::" in text
