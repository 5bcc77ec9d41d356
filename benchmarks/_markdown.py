"""Results in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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
