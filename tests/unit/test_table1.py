"""The scripts of the paper's table: its figures, the points on disk, the page."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

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
MINIMAL = {
    "minimal": 0.5, "minimal_by": "bab", "minimal_limit": 3.0, "minimal_s": 0.5,
}  # fmt: skip


@pytest.fixture
def scripts(monkeypatch):
    """The scripts by the ends of their names: ``paper`` is ``_table1_paper``."""
    monkeypatch.syspath_prepend(FOLDER)
    names = [path.stem for path in FOLDER.glob("_table1_*.py")]
    modules = {name.removeprefix("_table1_"): importlib.import_module(name) for name in names}
    yield SimpleNamespace(**modules, table1=importlib.import_module("table1"))
    for name in [*names, "table1", "_machine"]:
        sys.modules.pop(name, None)


def open_point(i):
    return {"point": i, **FOUND, "certified": False, "kw": False, "settled_by": "", "attack": 0.9}


def test_figures_of_the_paper(scripts):
    cells = scripts.paper.cells()
    assert {name for name in cells if "xiao" not in name} == {
        name for name in rm.presets if "universal" not in name
    }
    assert cells["mnist-fc1-linf-mmr"] == ("2.11", "22.5", "24.9")
    assert cells["cifar10-cnn-l2-mmr+at"] == ("37.75", "43.9", "53.3")
    for error, lower, upper in cells.values():
        assert float(error) <= float(lower) <= float(upper)


def test_points_on_disk(scripts, tmp_path, monkeypatch):
    files = scripts.files
    points = {7: {"point": 7, **FOUND, **RADII}, 2: open_point(2), 8: {"point": 8, **FOUND}}
    points[8] |= RADII | MINIMAL
    path = tmp_path / "row.csv.gz"
    about = {"sha256": "0" * 64, "machine": {"cores": 2}}
    files.write_points(path, about, points)
    assert files.read_points(path) == (about, points)
    first = path.read_bytes()
    files.write_points(path, *files.read_points(path))
    assert path.read_bytes() == first
    monkeypatch.setattr(files, "POINTS", tmp_path)
    assert files.points_of("row", "0" * 64) == points
    assert files.points_of("row", "1" * 64) == {}
    assert files.points_of("other", "0" * 64) == {}


def test_points_of_files_that_know_no_minimal_perturbations(scripts, tmp_path, monkeypatch):
    files, path = scripts.files, tmp_path / "row.csv.gz"
    new = [name for name in files.FIELDS if name.startswith("minimal")]
    monkeypatch.setattr(files, "FIELDS", [name for name in files.FIELDS if name not in new])
    points = {0: {"point": 0, **FOUND, **RADII}}
    files.write_points(path, {}, points)
    assert files.read_points(path) == ({}, points)
    assert scripts.summary.summary(points, rm.presets[ROW])["minimal"] is None


LIMITS = (3.0, 2, 1.0)


def test_what_is_tried_again(scripts):
    evaluate = scripts.evaluate
    points = {0: {"point": 0, **FOUND}, 1: open_point(1)}
    limits = evaluate.Limits(*LIMITS)
    assert [evaluate._missing(i, points, limits) for i in range(3)] == [False, False, True]
    assert [evaluate._open(i, points, limits) for i in range(2)] == [False, False]
    longer = limits._replace(seconds=9.0)
    assert [evaluate._open(i, points, longer) for i in range(2)] == [False, True]
    again = evaluate._joined(points[1], FOUND | {"attack": 0.7})
    assert (again["kw_s"], again["attack"], again["certified"]) == (0.5, 0.7, True)
    assert evaluate._joined(points[1], FOUND)["attack"] == 0.9


def test_whose_minimal_perturbation_is_looked_for(scripts):
    evaluate, limits = scripts.evaluate, scripts.evaluate.Limits(*LIMITS)
    found = {"point": 0, **FOUND, **RADII, "region_exact": False}
    by_bab = found | MINIMAL | {"minimal_limit": 1.0}

    def wanted(row, limits=limits, i=0):
        return evaluate._unknown(i, {i: row}, limits)

    assert wanted(found)
    assert not wanted(found | {"region_exact": True})
    assert not wanted(found | {"misclassified": True})
    assert not wanted(found, i=2)
    assert not wanted(found, limits._replace(minimal_points=5000), i=1000)
    assert not wanted(by_bab)
    assert not wanted(by_bab | {"minimal_by": ""})
    assert wanted(by_bab | {"minimal_by": ""}, limits._replace(minimal_seconds=2.0))


def test_evaluation_of_a_small_network(scripts, monkeypatch, tmp_path):
    """Each stage on a network of two inputs; what is done is not done again."""
    evaluate, preset = scripts.evaluate, rm.presets[ROW]
    rng = np.random.default_rng(12)
    net = rm.Network(
        [rm.Linear(rng.normal(size=(m, n)), rng.normal(size=m)) for n, m in ((2, 8), (8, 3))], 2
    )
    X = rng.uniform(size=(4, 2))
    card = {"name": ROW, "sha256": "0" * 64}
    data = SimpleNamespace(X_test=X, y_test=net.predict(X))
    data.y_test[0] += 1
    data.y_test[0] %= 3
    monkeypatch.setattr(evaluate, "POINTS", tmp_path)
    monkeypatch.setattr(scripts.files, "POINTS", tmp_path)
    monkeypatch.setattr(evaluate, "OUT", tmp_path / "out")
    monkeypatch.setattr(evaluate, "read_card", lambda _: card)
    monkeypatch.setattr(evaluate, "write_card", lambda _: None)
    monkeypatch.setattr(rm.zoo, "card", lambda _: SimpleNamespace(preset=preset))
    monkeypatch.setattr(rm.zoo, "load", lambda _: net)
    monkeypatch.setattr(rm.datasets, "load", lambda *_, **__: data)
    limits = evaluate.Limits(seconds=5.0, minimal_points=3, minimal_seconds=5.0)
    evaluate.evaluate(ROW, None, limits, 1)
    found = card["evaluation"]
    assert (found["points"], found["test_error"], found["open"]) == (4, 1 / 4, 0)
    assert found["lower_bound"] == found["upper_bound"]
    assert found["minimal"]["points"] <= 3
    assert found["minimal"]["known"] + found["minimal"]["misclassified"] == pytest.approx(1)
    exact = rm.minimal_perturbations(net, X, data.y_test, 2, methods=("search",))
    records = scripts.files.points_of(ROW, "0" * 64)
    for i, row in records.items():
        assert scripts.summary.proved_radius(row, preset) <= exact.upper[i] * (1 + 1e-12)
        if "minimal" in row:
            assert row["minimal"] == pytest.approx(exact.lower[i])
    monkeypatch.setattr(evaluate, "_run", None)
    evaluate.evaluate(ROW, None, limits, 1)


def test_summary(scripts):
    evaluate = scripts.summary
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
    assert found["minimal"] is None
    assert (found["settled"]["bab"], found["settled"]["bab_attacked"]) == (1, 1)
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


def test_summary_of_minimal_perturbations(scripts):
    rows = [{"point": i, **FOUND, **RADII, "region_exact": i == 1} for i in range(6)]
    rows[0] |= {"misclassified": True}
    rows[2] |= MINIMAL
    rows[3] |= MINIMAL | {"minimal_by": "", "minimal": 0.4}
    rows[4] |= {"region_exact": False}
    found = scripts.summary.summary(dict(enumerate(rows[:4])), rm.presets[ROW])
    assert found["minimal"] == {
        "points": 4, "max_seconds": 3.0, "misclassified": 0.25,
        "region": 0.25, "search": 0.0, "bab": 0.25, "known": 0.5,
    }  # fmt: skip
    # What search and branch and bound prove counts as a certified radius.
    assert scripts.summary.certified_radii(rows[2:4], rm.presets[ROW]).tolist() == [0.5, 0.4]
    # Points behind the first that waits do not count.
    more = scripts.summary.summary(dict(enumerate(rows)), rm.presets[ROW])
    assert more["minimal"] == found["minimal"]
    assert scripts.summary.summary({4: rows[4]}, rm.presets[ROW])["minimal"] is None


@pytest.mark.parametrize(
    "proof", [{"certified": True}, {"kw": True}, {"region": 0.31}, {"minimal": 0.31}]
)
def test_contradictions_are_errors(scripts, proof):
    point = {"point": 4, **FOUND, "certified": False, "kw": False, "attack": 0.3}
    scripts.evaluate.check({4: point}, rm.presets[ROW])
    with pytest.raises(ArithmeticError, match=r"point 4: 0.3.* proved, an example at 0.3"):
        scripts.evaluate.check({4: point | proof}, rm.presets[ROW])


def test_page(scripts):
    paper, evaluate, report = scripts.paper, scripts.summary, scripts.report
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


@pytest.mark.parametrize(
    ("name", "seed", "changes"),
    [
        (ROW, 0, {}),
        (f"{ROW}-seed2", 2, {}),
        ("mnist-fc1-linf-at-nostart", 0, {"random_start": False}),
        ("mnist-cnn-linf-mmr-fullfilter", 0, {"border": "full-filter"}),
        (
            "mnist-cnn-l2-mmr+at-fullfilter-nostart-epochs10-seed3", 3,
            {"border": "full-filter", "random_start": False, "epochs": 10},
        ),
    ],
)  # fmt: skip
def test_names_of_trainings(scripts, name, seed, changes):
    found = scripts.rows.training(name)
    assert (found.seed, found.changes, found.name) == (seed, changes, name)
    assert rm.zoo._is_known(name)
    assert found.preset == rm.presets[found.row]


def test_trainings_by_options(scripts):
    training = scripts.rows.training
    assert training(ROW, seed=2, epochs=10).name == f"{ROW}-epochs10-seed2"
    assert training(f"{ROW}-seed2", seed=0, epochs=100).name == ROW
    base = training("mnist-cnn-linf-mmr-fullfilter-epochs10").without("fullfilter")
    assert base.name == "mnist-cnn-linf-mmr-epochs10"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("mnist-fc1-l2-other", "expected a row such as"),
        (f"{ROW}-seed1-epochs2", "in this order"),
        (f"{ROW}-fullfilter", "expected a CNN with MMR"),
        ("mnist-cnn-l2-at-fullfilter", "expected a CNN with MMR"),
        (f"{ROW}-nostart", "expected a scheme with an attack"),
    ],
)
def test_changes_that_change_nothing(scripts, name, match):
    with pytest.raises(SystemExit, match=match):
        scripts.rows.training(name)


@pytest.fixture
def table1(scripts, monkeypatch, tmp_path):
    """The script, at normal priority and on the reference, with an empty zoo."""
    for module in (scripts.table1, scripts.files):
        monkeypatch.setattr(module, "OUT", tmp_path / "out")
        monkeypatch.setattr(module, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(rm.zoo, "CHECKSUMS", tmp_path / "sums.txt")
    monkeypatch.setattr(scripts.table1.os, "nice", lambda _: 0)
    monkeypatch.setattr(scripts.table1.rm, "set_backend", lambda _: None)
    return scripts.table1


def test_a_training_and_its_alias(table1, monkeypatch, tmp_path):
    """One epoch of a plain network, and the card of the other norm, which stores no weights."""
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(256, 4)).astype(np.float32), rng.integers(3, size=256)
    data = SimpleNamespace(X_train=X, y_train=y, X_test=X, y_test=y, n_classes=3)
    monkeypatch.setattr(rm.datasets, "load", lambda *_, **__: data)
    monkeypatch.setattr(table1, "commit", lambda: "abc")
    words = ["--epochs", "1", "--seed", "4"]
    table1.main(["train", "mnist-fc1-linf-plain", "mnist-fc1-l2-plain", *words])
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path / "zoo"))
    first, second = (f"mnist-fc1-{norm}-plain-epochs1-seed4" for norm in ("linf", "l2"))
    assert not (tmp_path / "zoo" / f"{second}.npz").exists()
    card = rm.zoo.card(second)
    assert (card.weights, card.preset.p, card.seed) == (first, 2, 4)
    assert card.changes == {"epochs": 1}
    np.testing.assert_array_equal(
        rm.zoo.load(first).parameters[1][0], rm.zoo.load(second).parameters[1][0]
    )
    assert "finished, test error" in table1.status()


def test_two_queues_share_the_rows(table1, monkeypatch, capsys):
    trained, one, two = [], "mnist-fc1-linf-at", "mnist-fc1-linf-mmr"

    def other_queue(row):
        """While this row is in training another queue begins, and takes the next."""
        trained.append(row.name)
        if len(trained) == 1:
            table1.main(["train", one, two])

    monkeypatch.setattr(table1, "train_row", other_queue)
    table1.main(["train", one])
    assert trained == [one, two]
    assert f"{one} is in training elsewhere" in capsys.readouterr().out
