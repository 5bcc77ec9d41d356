"""Results in JSON and in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from refmmr import _files


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table: the names of its columns, and a line for each row of cells."""
    lines = [head, ["---"] * len(head), *rows]
    return [" ".join(f"| {cell}".rstrip() for cell in cells) + " |" for cells in lines]


def percent(*ends: float) -> str:
    """A share in per cent; one that is known between two ends has both, unless they agree."""
    return " to ".join(dict.fromkeys(f"{100 * end:.2f} %" for end in ends))


def in_words(machine: dict[str, object]) -> str:
    """A machine in one line."""
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def write(path: Path, report: dict, page: str) -> None:
    """The report as ``.json``, the page as ``.md``; a stop in the middle leaves the former ones."""
    _files.write_text(path.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    _files.write_text(path.with_suffix(".md"), page)
