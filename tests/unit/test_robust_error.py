"""The pipeline behind `robust_error` and its relatives, with methods whose bounds are known."""

import inspect
import sys
import types

import numpy as np
import pandas as pd
import pytest

import refmmr as rm
from refmmr.certify.bounds import Bounds
from refmmr.certify.evaluation import records, run, stages
from refmmr.certify.methods import METHODS, Method

# Class 0 wherever x > 0.5: the distance to 0.5 is the minimal perturbation.
LINE = rm.Network([rm.Linear([[1.0], [0.0]], [0.0, 0.5])], 1)
X = np.array([[0.52], [0.6], [0.7], [0.9], [0.3]])
Y = np.zeros(5, dtype=int)
TRUTH = np.array([0.02, 0.1, 0.2, 0.4, 0.0])
OWN = ("net", "X", "y", "p", "eps", "radii")
"""Arguments that are no options."""


@pytest.fixture
def fake(monkeypatch):
    """Register a method made of a function, and list what it is asked."""
    module = types.ModuleType("refmmr_fakes")
    monkeypatch.setitem(sys.modules, "refmmr_fakes", module)
    calls = []

    def make(name, answer, **about):
        def method(net, X, y, p, box, goal=None, **options):
            calls.append((name, X[:, 0].tolist(), None if goal is None else goal.tolist(), options))
            return answer(X, goal)

        function = name.replace("-", "_")
        setattr(module, function, method)
        monkeypatch.setitem(METHODS, name, Method("refmmr_fakes", function, **about))
        return calls

    return make


def nothing(X, goal):
    return Bounds(np.zeros(len(X)), np.full(len(X), np.inf), np.full_like(X, np.nan))


def proves(X, goal):
    """The truth, from below."""
    lower = (X[:, 0] - 0.5) * (1 - 1e-9)
    if goal is not None:
        lower = np.where(lower >= goal, goal, 0)
    return Bounds(lower, np.full(len(X), np.inf), np.full_like(X, np.nan))


def decides(X, goal):
    """The truth, from both sides."""
    distance = X[:, 0] - 0.5
    return Bounds(distance * (1 - 1e-9), distance * (1 + 1e-9), X * 0 + 0.5 - 1e-9)


def strip(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# ---- who is asked what


def test_each_method_sees_only_what_is_still_open(fake):
    fake("first", nothing)
    calls = fake("second", proves)
    result = rm.robust_error(LINE, X, Y, 2, eps=0.15, methods=["first", "second", "attack"])
    goal = np.nextafter(0.15, np.inf)
    assert calls == [
        ("first", [0.52, 0.6, 0.7, 0.9], 4 * [goal], {}),
        ("second", [0.52, 0.6, 0.7, 0.9], 4 * [goal], {}),
    ]
    settled = {name: row[:3] for name, row in result.settled.items()}
    assert settled == {
        "misclassified": (1, 0, 1),
        "first": (0, 0, 0),
        "second": (2, 2, 0),
        "attack": (2, 0, 2),
    }
    assert [row["settled_by"] for row in result.records] == [
        "attack", "attack", "second", "second", "misclassified",
    ]  # fmt: skip
    assert result.lower_bound == result.upper_bound == 0.6
    assert result.test_error == 0.2
    np.testing.assert_array_equal(result.certificates.lower[2:4], goal)
    np.testing.assert_array_equal(
        result.certificates.status, ["adversarial"] * 2 + ["robust"] * 2 + ["adversarial"]
    )


def test_expensive_methods_run_point_by_point_with_what_is_known(fake):
    calls = fake(
        "expensive", decides, batched=False, finds=True, guided=True, options=("max_seconds",)
    )
    rm.robust_error(LINE, X, Y, 2, eps=0.05, methods=["attack", "expensive"], max_seconds=3)
    assert [points for _, points, *_ in calls] == [[0.6], [0.7], [0.9]]
    for _, points, _, options in calls:
        # What the attack that looked for an example has left of it.
        assert 0 < options["max_seconds"] <= 3
        # No attack at this radius gets there, so another one looked for an example.
        np.testing.assert_allclose(options["upper"], points[0] - 0.5, rtol=1e-6)


def test_an_expensive_method_may_be_the_first_and_the_only_one(fake, tmp_path):
    calls = fake("expensive", decides, batched=False, finds=True)
    result = rm.robust_error(LINE, X, Y, 2, eps=0.05, methods=["expensive"], out=tmp_path)
    assert [points for _, points, *_ in calls] == [[0.52], [0.6], [0.7], [0.9]]
    assert result.lower_bound == result.upper_bound == 0.4
    path = tmp_path / records.NAME
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    calls.clear()
    rm.robust_error(LINE, X, Y, 2, eps=0.05, methods=["expensive"], out=tmp_path)
    assert [points for _, points, *_ in calls] == [[0.9]]  # no work is done twice


def test_a_batched_method_may_follow_an_expensive_one(fake):
    fake("expensive", nothing, batched=False)
    calls = fake("proof", proves)
    points = np.linspace(0.6, 1, 70)[:, None]
    result = rm.robust_error(LINE, points, [0] * 70, 2, eps=0.05, methods=["expensive", "proof"])
    assert [len(asked) for name, asked, *_ in calls if name == "proof"] == [32, 32, 6]
    assert result.upper_bound == 0
    assert [row["point"] for row in result.records] == list(range(70))


def test_by_default_the_region_is_asked_for_minimal_perturbations_only():
    ladder = ("crown", "attack", "bab")
    assert rm.robust_error(LINE, X, Y, 2, eps=0.15).methods == ladder
    assert rm.robustness_curve(LINE, X, Y, 2, radii=[0.15]).methods == ladder
    assert rm.minimal_perturbations(LINE, X, Y, 2).methods == ("region", "attack", "crown")


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, 10.0),
        ({"max_seconds": 3}, 3.0),
        ({"methods": ["bab"]}, None),
    ],
)
def test_branch_and_bound_has_ten_seconds_by_default(fake, given, limit):
    for name in ("crown", "bab"):
        calls = fake(name, nothing, batched=False, attacks=True, options=("max_seconds",))
    rm.robust_error(LINE, [[0.7]], [0], 2, eps=0.15, **given)
    assert calls[-1][0] == "bab"
    assert calls[-1][-1].get("max_seconds") == limit


def test_the_default_decides_what_bounds_and_attacks_leave_open():
    net = rm.Network.mlp([4, 12, 3], rng=6)
    points = np.random.default_rng(0).uniform(0, 1, (40, 4))
    labels = net.predict(points)
    cheap = rm.robust_error(net, points, labels, 2, eps=0.3, methods=["crown", "attack"])
    default = rm.robust_error(net, points, labels, 2, eps=0.3)
    assert cheap.lower_bound < cheap.upper_bound
    assert default.lower_bound == default.upper_bound
    assert cheap.lower_bound <= default.lower_bound <= cheap.upper_bound


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_the_attack_at_a_radius_begins_with_projections(p):
    result = rm.robust_error(LINE, X, Y, p, eps=0.3, methods=["attack"], pgd_steps=1)
    assert result.attacked.tolist() == [True, True, True, False, True]
    np.testing.assert_allclose(result.certificates.upper, TRUTH, rtol=1e-6)


def test_radius_methods_run_once_and_keep_the_radius(fake):
    calls = fake("radius", proves, goal=False)
    curve = rm.robustness_curve(LINE, X, Y, 2, radii=[0.01, 0.1, 0.15, 0.3], methods=["radius"])
    assert [goal for _, _, goal, _ in calls] == [None]
    np.testing.assert_allclose(curve.certificates.lower, TRUTH, rtol=1e-8)


@pytest.mark.parametrize("container", [list, tuple, np.array, pd.Series])
def test_one_radius_for_each_point_in_any_container(fake, container):
    fake("proof", proves)
    eps = [0.01, 0.2, 0.1, 0.5, 1.0]
    result = rm.robust_error(LINE, X, Y, 2, eps=container(eps), methods=["proof", "attack"])
    np.testing.assert_array_equal(result.certified, [True, False, True, False, False])
    np.testing.assert_array_equal(result.attacked, [False, True, False, True, True])
    np.testing.assert_array_equal(result.eps, eps)
    assert "eps = 0.01 to 1, one a point" in result.table()


# ---- curves


def test_a_curve_has_the_answers_of_single_radii_and_asks_less(fake):
    calls = fake("proof", proves)
    radii = np.linspace(0.013, 0.513, 26).tolist()
    curve = rm.robustness_curve(LINE, X, Y, 2, radii=radii[::-1], methods=["proof", "attack"])
    asked = sum(len(goal) for _, _, goal, _ in calls)
    assert asked <= 4 * 6  # bisection
    assert curve.radii == radii
    for j, eps in enumerate(radii):
        single = rm.robust_error(LINE, X, Y, 2, eps=eps, methods=["proof", "attack"])
        np.testing.assert_array_equal(curve.certified[:, j], single.certified)
        np.testing.assert_array_equal(curve.attacked[:, j], single.attacked)
    assert (np.diff(curve.certified_accuracy) <= 0).all()
    assert (np.diff(curve.attacked_accuracy) <= 0).all()
    assert (curve.certified_accuracy <= curve.attacked_accuracy).all()
    assert "eps = 0.013" in curve.table()
    assert len(curve) == 5


def test_a_method_that_fails_once_is_asked_about_smaller_radii_only(fake):
    calls = fake("weak", nothing)
    rm.robustness_curve(LINE, X[3:4], [0], 2, radii=[0.1, 0.2, 0.3, 0.35], methods=["weak"])
    goals = [goal[0] for _, _, goal, _ in calls]
    np.testing.assert_allclose(goals, [0.2, 0.1])


def test_a_method_that_finds_is_asked_on_both_sides_of_a_failure(fake):
    def stuck_at_two(X, goal):
        return nothing(X, goal) if abs(goal[0] - 0.2) < 1e-9 else decides(X, goal)

    calls = fake("stuck", stuck_at_two, batched=False, finds=True)
    curve = rm.robustness_curve(LINE, X[3:4], [0], 2, radii=[0.1, 0.2, 0.3], methods=["stuck"])
    assert len(calls) == 2
    np.testing.assert_array_equal(curve.certified, [[True, True, True]])


def test_curve_of_one_radius():
    curve = rm.robustness_curve(LINE, X, Y, 2, radii=np.array([0.15]))
    single = rm.robust_error(LINE, X, Y, 2, eps=0.15)
    assert isinstance(curve, rm.RobustnessCurve)
    assert curve.certified_accuracy == [1 - single.upper_bound]


# ---- minimal perturbations


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_minimal_perturbations(p):
    found = rm.minimal_perturbations(LINE, X, Y, p, methods=["attack", "region"])
    assert isinstance(found, rm.MinimalPerturbations)
    np.testing.assert_allclose(found.lower, TRUTH, rtol=1e-6)
    np.testing.assert_allclose(found.upper, TRUTH, rtol=1e-6)
    assert (found.lower <= found.upper).all()
    assert found.exact_share == 0.8
    assert found.settled["region"].points == 4
    rows = dict(line.rsplit("  ", 1) for line in found.table().splitlines()[1:7])
    assert [row for row in rows if row.startswith("lower bound, mean")]
    assert "80.0 %" in found.table()


def test_the_best_bounds_of_all_methods_count(fake):
    fake("low", lambda X, goal: proves(X, None)._replace(lower=(X[:, 0] - 0.5) / 2))
    far = lambda X, goal: nothing(X, goal)._replace(  # noqa: E731
        upper=X[:, 0] - 0.4, adversarial=X * 0 + 0.4
    )
    fake("high", far, finds=True)
    found = rm.minimal_perturbations(LINE, X, Y, 2, methods=["low", "high"])
    np.testing.assert_allclose(found.lower, TRUTH / 2)
    np.testing.assert_allclose(found.upper, np.where(TRUTH > 0, TRUTH + 0.1, 0))
    assert found.exact_share == 0


def test_contradictions_are_never_passed_over(fake):
    fake("liar", lambda X, goal: nothing(X, goal)._replace(lower=np.full(len(X), 5.0)))
    with pytest.raises(ArithmeticError, match=r"contradiction at point 0.*method 'attack'"):
        rm.minimal_perturbations(LINE, X, Y, 2, methods=["liar", "attack"])


# ---- random starts


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_random_starts_belong_to_the_point(p):
    net = rm.Network.mlp([4, 3], rng=0)
    points = np.random.default_rng(0).uniform(0.2, 0.8, (6, 4))
    problem = stages.Problem(net, p, None, {}, {}, 1, 1, seed=7)
    whole = stages._starts(problem, np.arange(6), points, 0.1, 1, None)
    for i in range(6):
        part = stages._starts(problem, np.array([i]), points[i : i + 1], 0.1, 1, None)
        np.testing.assert_array_equal(part[0], whole[i])
    assert (np.linalg.norm(whole - points, p, axis=1) <= 0.1 * (1 + 1e-12)).all()
    assert len(np.unique(whole - points, axis=0)) == 6
    others = [
        stages._starts(problem, np.arange(6), points, 0.1, 2, None),
        stages._starts(problem._replace(seed=8), np.arange(6), points, 0.1, 1, None),
    ]
    assert not any((other == whole).all(axis=1).any() for other in others)


# ---- records and resuming


@pytest.fixture(scope="module")
def noisy():
    """A network and points that need all of the pipeline."""
    rng = np.random.default_rng(3)
    net = rm.Network.mlp([4, 12, 8, 3], rng=5)
    points = rng.uniform(0, 1, (80, 4))
    return net, points, np.where(rng.random(80) < 0.1, 1, net.predict(points))


@pytest.mark.parametrize(
    ("evaluate", "options", "n", "done"),
    [
        (rm.robust_error, {"eps": 0.05, "methods": ["crown", "attack"]}, 80, 38),
        (rm.robustness_curve, {"radii": [0.02, 0.1], "methods": ["crown", "attack"]}, 80, 38),
        (rm.minimal_perturbations, {}, 8, 4),
    ],
)
def test_a_stopped_run_goes_on_where_it_was(
    noisy, tmp_path, monkeypatch, evaluate, options, n, done
):
    path = tmp_path / "run.jsonl"
    noisy = (noisy[0], noisy[1][:n], noisy[2][:n])
    arguments = {**options, "keep_adversarial": True}
    straight = evaluate(*noisy, np.inf, **arguments)
    real, left = records.Writer.write, iter(range(done))

    def write(self, record):
        if "point" in record and next(left, None) is None:
            raise KeyboardInterrupt
        real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(records.Writer, "write", write)
        with pytest.raises(KeyboardInterrupt, match=rf"of {n} points are kept in .*run.jsonl"):
            evaluate(*noisy, np.inf, out=path, **arguments)
    kept = records.read(path)[1]
    assert len(kept) == done
    with open(path, "ab") as file:
        file.write(b'{"point": 7, "lo')  # killed in the middle of a line
    resumed = evaluate(*noisy, np.inf, out=path, **arguments)
    assert strip(resumed.records) == strip(straight.records)
    assert resumed.records[kept[0]["point"]]["seconds"] == kept[0]["seconds"]
    np.testing.assert_array_equal(
        resumed.certificates.adversarial, straight.certificates.adversarial
    )
    points = [row["point"] for row in records.read(path)[1]]
    assert sorted(points) == list(range(n))
    assert path.read_text().count('"point"') == n
    before = path.read_bytes()
    monkeypatch.setattr(run, "improve", pytest.fail)
    again = evaluate(*noisy, np.inf, out=path, **arguments)
    assert strip(again.records) == strip(straight.records)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eps": 0.2}, r"another eps \(0.1 there, 0.2 here\)"),
        ({"eps": np.full(5, 0.1)}, "another eps"),
        ({"X": X[:4], "y": Y[:4]}, "another X, another y"),
        ({"box": None}, "another box"),
        ({"p": 1}, r"another p \(2 there, 1 here\)"),
        ({"methods": ["region"]}, "another methods"),
        ({"rng": 1}, "another seed"),
        ({"net": LINE.with_parameters([([[1.0], [0.0]], [0.0, 0.4])])}, "another net"),
        ({"restarts": 4}, "another restarts"),
    ],
)
def test_a_run_of_other_arguments_is_refused(tmp_path, change, named):
    arguments = {"net": LINE, "X": X, "y": Y, "p": 2, "eps": 0.1, "out": tmp_path}
    rm.robust_error(**arguments)
    with pytest.raises(ValueError, match=f"out: expected a new file.*{named}"):
        rm.robust_error(**{**arguments, **change})


def test_without_a_seed_the_first_draw_holds(noisy, tmp_path):
    settings = {"eps": 0.1, "rng": None, "out": tmp_path, "methods": ["crown", "attack"]}
    first = rm.robust_error(*noisy, 2, **settings)
    path = tmp_path / records.NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:30]))
    again = rm.robust_error(*noisy, 2, **settings)
    assert strip(first.records) == strip(again.records)


COMPUTATION = {
    "net": "c055dea27ba4f6bbad283f1ba9ee274d",
    "X": "68c6ccf1a13310b834d54ed7d4f41a0d",
    "y": "f2b5bf902f006325066fe3040d242a85",
    "box": "1a00e0c708c72facef3ffc4846b416a1",
    "p": 2,
    "methods": ["region", "attack"],
    "options": {},
    "pgd_steps": 40,
    "restarts": 3,
    "keep_adversarial": False,
    "seed": 5874934615388537135,
}
"""What version 1 of the records says of the points above."""

EVALUATIONS = {
    "one radius": (rm.robust_error, {"eps": 0.1}, 0.1),
    "a radius for each point": (
        rm.robust_error,
        {"eps": [0.01, 0.2, 0.1, 0.5, 1.0]},
        "664ca4f2557e918191f5ae1b46f604e3",
    ),
    "a curve": (rm.robustness_curve, {"radii": [0.2, 0.05]}, [0.05, 0.2]),
    "minimal perturbations": (rm.minimal_perturbations, {}, None),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_version_1_of_the_records_is_continued(tmp_path, name):
    evaluate, arguments, eps = EVALUATIONS[name]
    computation = {**COMPUTATION, "eps": eps}
    with records.Writer(tmp_path, computation, {"random_seed": COMPUTATION["seed"]}) as writer:
        writer.write(
            {
                "point": 1, "class": 0, "misclassified": False, "lower": 0.0625, "upper": 0.125,
                "exact": False, "settled_by": None, "seconds": {"region": 7.0},
            }
        )  # fmt: skip
    result = evaluate(LINE, X, Y, 2, methods=["region", "attack"], out=tmp_path, **arguments)
    assert result.certificates.lower[1] == 0.0625
    assert result.certificates.seconds[1] == 7
    others = [other for other, (_, _, value) in EVALUATIONS.items() if value != eps]
    for other in others:
        function, wrong, _ = EVALUATIONS[other]
        with pytest.raises(ValueError, match=r"out: expected a new file.*another eps"):
            function(LINE, X, Y, 2, methods=["region", "attack"], out=tmp_path, **wrong)


def test_the_three_functions_take_and_describe_the_same_options():
    shared = None
    for function in (rm.robust_error, rm.robustness_curve, rm.minimal_perturbations):
        parameters = inspect.signature(function).parameters
        options = {name: parameters[name] for name in parameters if name not in OWN}
        assert len(options) == 13
        assert shared is None or shared == options
        shared = options
        for name in parameters:
            assert name in function.__doc__
        assert "OPTIONS" not in function.__doc__
    with pytest.raises(TypeError, match="unexpected keyword argument 'eps'"):
        rm.minimal_perturbations(LINE, X, Y, eps=None)


def test_an_interruption_without_a_file(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "improve", stop)
    with pytest.raises(KeyboardInterrupt, match="nothing is kept without out="):
        rm.robust_error(LINE, X, Y, 2, eps=0.1)


def test_records_and_frame():
    result = rm.robust_error(LINE, X, Y, 2, eps=0.15, methods=["region", "attack"])
    assert [row["point"] for row in result.records] == list(range(5))
    frame = result.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame["certified"].tolist() == [False, False, True, True, False]
    assert frame["attacked"].tolist() == [True, True, False, False, True]
    assert frame.index.name == "point"


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": []}, "methods: expected at least one method, got none"),
        ({"methods": "region"}, "methods: expected names of methods, got 'region'"),
        ({"methods": ["magic"]}, "methods: expected one of 'attack', 'region',.*got 'magic'"),
        ({"methods": ["ibp", "ibp"]}, "methods: expected each method once"),
        ({"methods": ["region", "mip"]}, "methods: expected one that supports p = 2, got 'mip'"),
        ({"eps": None}, "eps: expected a finite number > 0, got None"),
        ({"eps": np.ones(4)}, r"eps: expected shape \(5,\), got \(4,\); refmmr.robustness_curve"),
        ({"eps": [0.1, -1]}, r"eps: expected shape \(5,\), got \(2,\); refmmr.robustness_curve"),
        ({"eps": [0.1, [1], 1, 1, 1]}, "eps: expected an array of numbers, got a ragged sequence"),
        ({"eps": [1, 1, 1, 1, -1]}, "eps: expected numbers > 0, got -1.0 at index 4"),
        ({"eps": np.array([1, 1, 0, 1, 1])}, "eps: expected numbers > 0, got 0.0 at index 2"),
        ({"eps": "wide"}, "eps: expected a finite number > 0, got 'wide'"),
        ({"y": None}, "y: expected 5 true classes, got None"),
        ({"n_jobs": 0}, "n_jobs: expected an integer of at least 1, or -1 for one per core"),
        ({"n_jobs": -2}, "n_jobs: expected"),
        ({"n_jobs": 1.5}, "n_jobs: expected"),
        ({"dask": 8786}, 'dask: expected None, "local" or an address, got 8786'),
        (
            {"methods": ["crown"], "max_seconds": 1},
            "max_seconds: expected None, because only 'lp', 'bab', 'search', 'mip'",
        ),
        ({"max_regions": 1}, "max_regions: expected None, because only 'search' can take it"),
        ({"methods": ["search"], "max_seconds": 0}, "max_seconds: expected a finite number > 0"),
        ({"out": "points.txt"}, "out: expected a folder or a file ending in .jsonl"),
    ],
)
def test_errors_before_any_work(monkeypatch, change, message):
    monkeypatch.setattr(run, "improve", pytest.fail)
    arguments = {"X": X, "y": Y, "p": 2, "eps": 0.1, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        rm.robust_error(LINE, **arguments)


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ([], r"radii: expected at least one radius, got \[\]"),
        ([0.1, -1], "radii: expected a finite number > 0, got -1"),
        (np.array([0.1, np.nan]), "radii: expected a finite number > 0, got nan"),
        (["wide"], "radii: expected a finite number > 0, got 'wide'"),
        ("wide", "radii: expected numbers, got 'wide'"),
        (0.1, "radii: expected numbers, got 0.1"),
        (np.array(0.1), "radii: expected numbers, got 0.1"),
    ],
)
def test_errors_of_radii(monkeypatch, radii, message):
    monkeypatch.setattr(run, "improve", pytest.fail)
    with pytest.raises((ValueError, TypeError), match=message):
        rm.robustness_curve(LINE, X, Y, 2, radii=radii)
