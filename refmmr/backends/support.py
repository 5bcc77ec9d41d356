"""Which kernel each backend has, read from the source, so that no backend need be installed."""

from __future__ import annotations

import ast
from pathlib import Path

from refmmr.backends import MODULES

BEGIN = "<!-- kernels: written by make support-table -->"
END = "<!-- end of kernels -->"
"""Around the table in the docs."""


def declared(backend: str) -> set[str]:
    """Names of the reference functions that a backend implements."""
    package = Path(__file__).parent / MODULES[backend].module.rpartition(".")[2]
    return {name for file in package.glob("*.py") for name in _in_file(file, backend)}


def table(kernels: list[str]) -> list[tuple[str, ...]]:
    """Rows (kernel, numpy, numba, ...), the first one the heading; marks are "yes" and "-"."""
    twins = {backend: declared(backend) for backend in MODULES}
    rows = [("kernel", "numpy", *twins)]
    for kernel in sorted(kernels):
        marks = ("yes" if kernel in names else "-" for names in twins.values())
        rows.append((kernel.removeprefix("refmmr."), "yes", *marks))
    return rows


def markdown(kernels: list[str]) -> str:
    """The table for the docs."""
    heading, *rows = table(kernels)
    lines = ["| " + " | ".join(heading) + " |", "| --- " * len(heading) + "|"]
    lines += ["| " + " | ".join((f"`{kernel}`", *marks)) + " |" for kernel, *marks in rows]
    return "\n".join(lines) + "\n"


def _in_file(file: Path, backend: str) -> list[str]:
    """Arguments of ``@implements(backend, module.function)``, with the module's full name."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id != "implements" or ast.literal_eval(node.args[0]) != backend:
            continue
        module, _, function = ast.unparse(node.args[1]).rpartition(".")
        found.append(f"{modules[module]}.{function}" if module else modules[function])
    return found


def write(path: Path, kernels: list[str]) -> None:
    """Write the table between its marks in a file of the docs."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n\n{markdown(kernels)}\n{END}{after}", encoding="utf-8")
