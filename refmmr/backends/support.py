"""The kernels that each backend has: the table of `refmmr info` and of the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from refmmr._backend import Kernel
from refmmr._kernels import KERNELS
from refmmr.backends import MODULES

BEGIN = "<!-- kernels: written by make support-table -->"
END = "<!-- end of kernels -->"
"""Marks around the table in the docs."""


def table(kernels: Mapping[str, Kernel] = KERNELS) -> list[tuple[str, ...]]:
    """Rows (kernel, numpy, numba, ...), headings first; a backend has "yes" or "-"."""
    rows = [("kernel", "numpy", *MODULES)]
    for name, kernel in sorted(kernels.items()):
        marks = ("yes" if backend in kernel.twins else "-" for backend in MODULES)
        rows.append((name, "yes", *marks))
    return rows


def markdown(kernels: Mapping[str, Kernel] = KERNELS) -> str:
    """The table for the docs."""
    heading, *rows = table(kernels)
    lines = ["| " + " | ".join(heading) + " |", "| --- " * len(heading) + "|"]
    lines += ["| " + " | ".join((f"`{kernel}`", *marks)) + " |" for kernel, *marks in rows]
    return "\n".join(lines) + "\n"


def write(path: Path) -> None:
    """Write the table between its marks in a file of the docs."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}", encoding="utf-8")
