"""The scripts of the paper's table: its figures, the points on disk, the page."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import refmmr as rm

FOLDER = Path(__file__).parents[2] / "benchmarks"
ROW = "mnist-fc1-l2-mmr"
FOUND = {
    "class": 3, "misclassified": False, "kw": True, "certified": True, "attacked": False,
    "settled_by": "crown", "limit": 3.0, "attack": np.inf, "kw_s": 0.25, "crown_s": 0.5,
}  # fmt: skip
RADII = {
    "region": 0.1 + 0.2, "region_exact": True, "crown": 0.25, "attack": 0.5, "region_s": 1.0,
    "radius_s": 0.0, "curve_s": 2.0,
}  # fmt: skip


@pytest.fixture
def scripts(monkeypatch):
    """The modules ``_table1_paper``, ``_table1_evaluate`` and ``_table1_report``."""
    monkeypatch.syspath_prepend(FOLDER)
    names = [f"_table1_{part}" for part in ("paper", "evaluate", "report")]
    yield [importlib.import_module(name) for name in names]
    for name in [*names, "_machine"]:
        sys.modules.pop(name, None)


def open_point(i):
    return {"point": i, **FOUND, "certified": False, "kw": False, "settled_by": "", "attack": 0.9}


def test_figures_of_the_paper(scripts):
    cells = scripts[0].cells()
    assert {name for name in cells if "xiao" not in name} == {
        name for name in rm.presets if "universal" not in name
    }
    assert cells["mnist-fc1-linf-mmr"] == ("2.11", "22.5", "24.9")
    assert cells["cifar10-cnn-l2-mmr+at"] == ("37.75", "43.9", "53.3")
    for error, lower, upper in cells.values():
        assert float(error) <= float(lower) <= float(upper)


def test_points_on_disk(scripts, tmp_path, monkeypatch):
    evaluate = scripts[1]
    points = {7: {"point": 7, **FOUND, **RADII}, 2: open_point(2)}
    path = tmp_path / "row.csv.gz"
    about = {"sha256": "0" * 64, "machine": {"cores": 2}}
    evaluate.write_points(path, about, points)
    assert evaluate.read_points(path) == (about, points)
    first = path.read_bytes()
    evaluate.write_points(path, *evaluate.read_points(path))
    assert path.read_bytes() == first
    monkeypatch.setattr(evaluate, "POINTS", tmp_path)
    assert evaluate.points_of({"name": "row", "sha256": "0" * 64}) == points
    assert evaluate.points_of({"name": "row", "sha256": "1" * 64}) == {}
    assert evaluate.points_of({"name": "other", "sha256": "0" * 64}) == {}


def test_what_is_tried_again(scripts):
    evaluate = scripts[1]
    points = {0: {"point": 0, **FOUND}, 1: open_point(1)}
    assert [evaluate._missing(i, points, 3.0) for i in range(3)] == [False, False, True]
    assert [evaluate._open(i, points, 3.0) for i in range(2)] == [False, False]
    assert [evaluate._open(i, points, 9.0) for i in range(2)] == [False, True]
    again = evaluate._joined(points[1], FOUND | {"attack": 0.7})
    assert (again["kw_s"], again["attack"], again["certified"]) == (0.5, 0.7, True)
    assert evaluate._joined(points[1], FOUND)["attack"] == 0.9


def test_summary(scripts):
    evaluate = scripts[1]
    wrong = FOUND | {
        "misclassified": True, "kw": False, "certified": False, "attacked": True,
        "settled_by": "misclassified", "attack": 0.0,
    }  # fmt: skip
    nothing = RADII | {"region": 0, "region_exact": False, "crown": 0, "attack": 0}
    points = {
        0: {"point": 0, **FOUND, **RADII}, 1: open_point(1),
        2: {"point": 2, **wrong, **nothing}, 3: {"point": 3, **wrong, "settled_by": "bab"},
    }  # fmt: skip
    found = evaluate.summary(points, rm.presets[ROW])
    assert (found["points"], found["open"], found["test_error"]) == (4, 1, 0.5)
    assert (found["pgd"], found["lower_bound"], found["upper_bound"]) == (0.25, 0.5, 0.75)
    assert (found["kw"], found["seconds"]["kw"]) == (0.75, 1.0)
    assert (found["exact"]["points"], found["exact"]["open"]) == (4, 1)
    points[1]["limit"] = 0.0  # not tried by branch and bound yet
    exact = evaluate.summary(points, rm.presets[ROW])["exact"]
    assert exact == {"points": 1, "lower_bound": 0.0, "upper_bound": 0.0, "open": 0}
    points[0] = points[1]
    assert evaluate.summary(points, rm.presets[ROW])["exact"] is None
    radii = found["radii"]
    assert (radii["points"], radii["known_by_region"]) == (2, 0.5)
    # Proved by region 0.3 and a bit, which is beyond eps = 0.3 by CROWN too.
    assert radii["best"]["mean"] == pytest.approx(0.15)
    assert radii["curve"]["radii"][3] == 0.3
    assert radii["curve"]["certified_accuracy"] == [0.5] * 4 + [0.0] * 4
    assert radii["curve"]["attacked_accuracy"] == [0.5] * 6 + [0.0] * 2


@pytest.mark.parametrize("proof", [{"certified": True}, {"kw": True}, {"region": 0.31}])
def test_contradictions_are_errors(scripts, proof):
    point = {"point": 4, **FOUND, "certified": False, "kw": False, "attack": 0.3}
    scripts[1].check({4: point}, rm.presets[ROW])
    with pytest.raises(ArithmeticError, match=r"point 4: 0.3.* proved, an example at 0.3"):
        scripts[1].check({4: point | proof}, rm.presets[ROW])


def test_page(scripts):
    paper, evaluate, report = scripts
    points = {0: {"point": 0, **FOUND, **RADII}, 1: open_point(1)}
    machine = {"date": "today", "processor": "P"}
    evaluation = evaluate.summary(points, rm.presets[ROW]) | {"machine": machine}
    cards = {
        name: rm.zoo.Card(
            name, rm.presets[name], 0, "abc", 0.0262, "0" * 64, "MIT", 60.0,
            machine, [], found,
        )
        for name, found in ((ROW, evaluation), ("mnist-fc1-l2-kw", None))
    }  # fmt: skip
    printed = paper.cells()
    names = [f"mnist-fc1-l2-{scheme}" for scheme in ("plain", "kw", "mmr")]
    blocks = {
        "mnist-fc1-l2": [report.Row(name, printed[name], cards.get(name)) for name in names],
        "cifar10-cnn-linf": [report.Row("cifar10-cnn-linf-xiao", ("1", "2", "3"), None)],
    }
    page = report.page(blocks, {"table1-mnist-fc1-l2-radii.png": "Histograms"})
    assert "## MNIST, FC1, l_2, eps = 0.3\n" in page
    assert "## CIFAR-10, CNN, l_inf, eps = 2/255\n" in page
    assert "| plain | 1.73 | – | 9.7 | – | 66.3 | – |" in page
    assert "| KW | 1.19 | 2.62 | 2.4 | – | 5.2 | – |" in page
    # In l_2 PGD and KW, as the paper: neither attacked, one of two proved.
    assert "| MMR | 2.40 | 2.62 | 5.9 | 0.00 | 8.8 | 50.00 |" in page
    rest = "1, 3 s | 0.300, 0.300 | 100.00, 0.300 |"
    assert f"| MMR | 2 | 50.00 | 0.00 to 50.00 of 2 | {rest}" in page
    assert "![Histograms](../../docs/images/table1-mnist-fc1-l2-radii.png)" in page
    listed = page.split("## Differences")[1]
    assert f"- {ROW}, UB: 8.8 there, 50.00 here (+41.20)" in listed
    assert "- mnist-fc1-l2-kw, TE: 1.19 there, 2.62 here (+1.43)" in listed
    assert f"{ROW}, TE" not in listed
    short = report.short_table(blocks)
    assert "| MNIST, FC1, l_2, eps = 0.3, MMR | 2.40 / 2.62 | 5.9 / 0.00 | 8.8 / 50.00 |" in short
    assert "KW |" in short.splitlines()[1]
    assert len(short.strip().splitlines()) == 3


def test_two_queues_share_the_rows(scripts, monkeypatch, tmp_path, capsys):
    table1 = importlib.import_module("table1")
    monkeypatch.setattr(table1, "OUT", tmp_path / "out")
    monkeypatch.setattr(table1, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(table1.os, "nice", lambda _: 0)
    monkeypatch.setattr(table1.rm, "set_backend", lambda _: None)
    trained = []

    def other_queue(row):
        """While this row is in training another queue begins, and takes the next."""
        trained.append(row)
        if len(trained) == 1:
            table1.main(["train", "one", "two"])

    monkeypatch.setattr(table1, "train_row", other_queue)
    table1.main(["train", "one"])
    sys.modules.pop("table1")
    assert trained == ["one", "two"]
    assert "one is in training elsewhere" in capsys.readouterr().out
