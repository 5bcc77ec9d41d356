"""The scripts of benchmarks/: their command lines, and that what is committed is what they write.

No figure is measured here: tables and pages are made anew from the committed results.
"""

import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest

import refmmr as rm

FOLDER = Path(__file__).parents[2] / "benchmarks"
RESULTS, ZOO = FOLDER / "results", FOLDER.parent / "zoo"
NAMES = sorted(
    path.stem for path in FOLDER.glob("[a-z]*.py") if "__main__" in path.read_text(encoding="utf-8")
)
PAGES = [
    name
    for name in NAMES
    if (RESULTS / f"{name}.json").exists()
    and "def markdown" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")
]


@pytest.fixture
def load(monkeypatch):
    """A function that imports a script; modules of the folder are forgotten afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_command_line(load, name, monkeypatch, capsys):
    script = load(name)
    for argument, code in (("--help", 0), ("--no-such-argument", 2)):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", argument])
        with pytest.raises(SystemExit) as stopped:
            script.main()
        assert stopped.value.code == code
    assert script.__doc__ in capsys.readouterr().out


def report(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_pages_follow_the_results(load, name):
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert load(name).markdown(report(name)) == page, f"run benchmarks/{name}.py"


def test_the_readme_follows_the_results(load):
    readme, marked = load("readme"), load("_readme")
    for name, table in readme.stored_tables().items():
        assert marked.between(name) == table, "run benchmarks/readme.py --no-demo"


def test_the_paper_s_table_follows_the_cards(load):
    table1, command = load("_table1_report"), "run benchmarks/table1.py table"
    blocks = table1.table()
    page = (RESULTS / "table1.md").read_text(encoding="utf-8")
    assert table1.page(blocks) == page, command
    assert table1.report(blocks) == report("table1"), command


def test_cards_follow_the_points(load, monkeypatch):
    evaluate, written = load("_table1_evaluate"), {}
    monkeypatch.setattr(evaluate, "write_card", lambda card: written.update({card["name"]: card}))
    for path in ZOO.glob("*.json"):
        evaluate.refresh(path.stem)
    # As many as there are evaluations, so that none is left over from another network.
    stored = {path.stem: evaluate.read_card(path.stem) for path in ZOO.glob("*.json")}
    evaluated = {name: card for name, card in stored.items() if "evaluation" in card}
    assert json.loads(json.dumps(written)) == evaluated, "run benchmarks/table1.py table"


def test_checksums_are_those_of_the_zoo():
    files = sorted(path for path in ZOO.iterdir() if path.suffix in (".json", ".npz"))
    sums = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    stored = rm.zoo.CHECKSUMS.read_text(encoding="utf-8").splitlines()
    assert stored == sums, "run benchmarks/table1.py table"
