"""Every public name has an example in its docstring, and a place in the reference."""

import inspect
import re
from pathlib import Path

import pytest

import refmmr as rm

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PUBLIC = {f"refmmr.{name}": getattr(rm, name) for name in rm.__all__} | {
    f"refmmr.{module}.{name}": getattr(getattr(rm, module), name)
    for module in ("datasets", "plot", "testing", "zoo")
    for name in getattr(rm, module).__all__
}


@pytest.mark.parametrize("name", [n for n, value in PUBLIC.items() if inspect.isroutine(value)])
def test_every_public_function_has_an_example(name):
    assert ">>> " in inspect.getdoc(PUBLIC[name])


@pytest.mark.parametrize("name", [n for n, value in PUBLIC.items() if inspect.isclass(value)])
def test_every_public_class_has_an_example(name):
    """Or it is what a function returns, whose docstring has one."""
    text = inspect.getdoc(PUBLIC[name])
    made_by = re.search(r"Returned by `(\w+)`", text)
    assert ">>> " in text or (made_by and ">>> " in inspect.getdoc(PUBLIC[f"refmmr.{made_by[1]}"]))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference(name):
    pages = [page for page in REFERENCE.glob("*.md") if page.name != "everything.md"]
    own = re.compile(rf"^   {re.escape(name)}$", re.MULTILINE)
    assert any(own.search(page.read_text()) for page in pages)
    assert own.search((REFERENCE / "everything.md").read_text())


def test_the_page_of_everything_lists_nothing_else():
    listed = re.findall(
        r"^   (refmmr\..*)$", (REFERENCE / "everything.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(PUBLIC)
