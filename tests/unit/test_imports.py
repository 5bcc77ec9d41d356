"""The import graph of refmmr: no circle, arrows that fall one way, a reference that stands alone.

An arrow goes from a module to all that it imports, in functions too, and, where it imports by name
(`import_module`), to all modules that its strings name.  Left out are imports under
`TYPE_CHECKING`, and the twins that `refmmr.backends` names: they register with the switch.
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import refmmr

ROOT = Path(refmmr.__file__).parents[1]
PATHS = [path.relative_to(ROOT) for path in ROOT.glob("refmmr/**/*.py")]
FILES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in PATHS}
FLOORS = [
    "reference",
    "_backend _boxes _files _kernels _optional _solvers _validate _version backends",
    "display",
    "_presets exact geometry network",
    "_examples _minimal_attack _scaling attacks datasets interop io testing",
    "certify regions training zoo",
    "estimator plot scorer",
    "",  # the public page
    "cli demo",
]
"""Modules and packages of refmmr from the ground up: nothing imports from a floor above its own."""
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms.split(" ")}


def nodes(tree):
    yield tree
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from nodes(node)


def arrows(name):
    text = (ROOT / FILES[name]).read_text()
    tables = "import_module" in text and name != "refmmr.backends"
    for node in nodes(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            members = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (member if member in FILES else node.module for member in members)
        elif isinstance(node, ast.Constant) and tables:
            yield from {node.value} & FILES.keys()


GRAPH = {name: set(arrows(name)) - {name} for name in FILES}


def test_no_circle():
    TopologicalSorter(GRAPH).prepare()  # raises an error that names the circle


def test_arrows_fall():
    floor = {name: FLOOR[(name + ".").split(".")[1]] for name in FILES}
    inside = [(a, b) for a, targets in GRAPH.items() for b in targets & FILES.keys()]
    assert [(a, b) for a, b in inside if floor[b] > floor[a]] == []


def test_the_reference_stands_alone():
    reference = {name for name in FILES if name.startswith("refmmr.reference")}
    others = {target for name in reference for target in GRAPH[name]} - reference
    assert {target.split(".")[0] for target in others} <= {"numpy", *sys.stdlib_module_names}
