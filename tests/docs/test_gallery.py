"""The gallery: its page shows each script, with the figure that it draws."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "gallery"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LONGEST = 50
"""Lines of a script that one would read and paste."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_shown_with_its_code(path):
    """The code comes right after the figure; the documentation's build runs it."""
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    shown = rf"plot:: gallery/{path.name}\n +:include-source: false\n +:alt: .{{40,}}\n```\n\n"
    assert re.search(rf"{shown}```{{literalinclude}} {path.name}\n", page)
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert text.startswith('"""')


def test_nothing_else_is_shown():
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert len(re.findall("plot::", page)) == len(SCRIPTS) >= 5


def test_figures_are_sharp(site):
    """Twice as many pixels as the column of text has: 1472 for a figure that fills it."""
    image = pytest.importorskip("PIL.Image")
    for path in SCRIPTS:
        (figure,) = (site / "_images").glob(f"{path.stem}*.png")
        with image.open(figure) as opened:
            assert opened.width >= 1350
