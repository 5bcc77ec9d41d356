"""The parts of the README that scripts write, each between two marks with its name."""

from __future__ import annotations

from pathlib import Path

from refmmr import _files

README = Path(__file__).parent.parent / "README.md"


def between(name: str) -> str:
    """What stands between the marks of this name."""
    return _split(name)[1]


def replace(name: str, text: str) -> None:
    """Put a text between the marks of this name."""
    before, _, after = _split(name)
    start, end = _marks(name)
    _files.write_text(README, before + start + text + end + after)


def _split(name: str) -> tuple[str, str, str]:
    """The README before, between and behind the marks of this name."""
    start, end = _marks(name)
    before, rest = README.read_text(encoding="utf-8").split(start)
    inside, after = rest.split(end)
    return before, inside, after


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by benchmarks/readme.py -->\n", f"<!-- end of {name} -->"
