"""`verify`: proofs and counterexamples of properties, and what becomes "unknown"."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

import refmmr as rm
from refmmr.certify import _counterexamples, verification
from refmmr.certify._clauses import box_around, rounded, rows_of
from refmmr.cli import main
from refmmr.exact import exact_logits
from refmmr.interop.vnnlib import Clause, Property, Row, parse_property

ABSOLUTE = rm.Network([rm.Linear([[1], [-1]], [0, 0]), rm.Linear([[1, 1], [0, 0]], [0, 0.5])], 1)
"""``Y_0 = |x|``, ``Y_1 = 1/2``."""


def text(constraints, inputs=1, outputs=2):
    declared = [f"(declare-const X_{j} Real)" for j in range(inputs)]
    declared += [f"(declare-const Y_{k} Real)" for k in range(outputs)]
    return "\n".join([*declared, *(f"(assert {constraint})" for constraint in constraints)])


def about(*constraints, inputs=1, outputs=2):
    return parse_property(text(constraints, inputs, outputs))


INTERVAL = ("(>= X_0 -0.4)", "(<= X_0 0.3)")


@pytest.mark.parametrize(
    ("constraint", "status"),
    [
        ("(>= Y_0 Y_1)", "holds"),
        ("(>= Y_0 0.4)", "violated"),  # 0.4 of the file, which no float is
        ("(> Y_0 0.4)", "holds"),
        ("(>= Y_0 0.39)", "violated"),
        ("(<= Y_0 0)", "violated"),
        ("(<= Y_0 -1e-9)", "holds"),
        ("(or (>= Y_0 2) (and (<= Y_0 0.1) (>= X_0 0.2)))", "holds"),
        ("(or (>= Y_0 2) (and (<= Y_0 0.1) (>= X_0 0.05)))", "violated"),
        ("(and (<= Y_0 0.3) (>= Y_0 0.29) (<= (+ X_0 Y_0) 0.01))", "violated"),
        ("(<= (+ X_0 Y_0) -0.01)", "holds"),
        ("(>= (* 3 Y_0) (+ 1.25 (/ Y_1 7)))", "holds"),
        ("(<= 0 1)", "violated"),  # any input
        ("(<= 1 0)", "holds"),  # none
    ],
)
def test_by_hand(constraint, status):
    found = rm.verify(ABSOLUTE, about(*INTERVAL, constraint), max_seconds=20)
    if constraint == "(> Y_0 0.4)":
        # A bound that is met exactly cannot be proved in floats, nor is it violated.
        assert found.status in ("holds", "unknown")
    else:
        assert found.status == status
    assert (found.exact is not None) == (found.status == "violated")


def test_a_tie_is_a_counterexample():
    """The only counterexample is the vertex x = 1, at which both outputs are equal."""
    net = rm.Network([rm.Linear([[1.0], [0.0]], [0, 1])], 1)
    found = rm.verify(net, about("(>= X_0 0)", "(<= X_0 1)", "(>= Y_0 Y_1)"))
    assert found.status == "violated"
    assert found.counterexample == [1.0]
    assert found.output.tolist() == [1, 1]


def test_several_boxes():
    cases = [f"(and (>= X_0 {x}) (<= X_0 {x + 1}) (<= Y_0 0.5))" for x in (1, 2, -1)]
    assert rm.verify(ABSOLUTE, about("(or " + " ".join(cases) + ")")).status == "violated"
    assert rm.verify(ABSOLUTE, about("(or " + " ".join(cases[:2]) + ")")).status == "holds"


def test_inputs_that_are_fixed_to_a_number_that_is_no_float():
    net = rm.Network([rm.Linear([[1.0, 1.0]], [0])], 2)
    fixed = ("(= X_0 0.1)", "(>= X_1 0)", "(<= X_1 0.2)")
    found = rm.verify(net, about(*fixed, "(>= Y_0 0.3)", inputs=2, outputs=1))
    assert found.status == "violated"
    assert found.exact.x == (Fraction(1, 10), Fraction(1, 5))
    assert found.exact.y == (Fraction(3, 10),)
    written = _counterexamples.text_of(found.exact)
    assert written == "sat\n((X_0 0.1)\n(X_1 0.2)\n(Y_0 0.3))\n"
    below = rm.verify(net, about(*fixed, "(>= Y_0 0.30001)", inputs=2, outputs=1))
    assert below.status == "holds"


def test_digits_of_counterexamples():
    numbers = [Fraction(1, 4), Fraction("-0.029999999329447746"), Fraction("0.05"), Fraction(1, 3)]
    example = _counterexamples.Counterexample(tuple(numbers), (Fraction(1, 3),))
    values = [line.strip("()").split()[1] for line in _counterexamples.text_of(example).split("\n")
              if "X_" in line]  # fmt: skip
    assert [Fraction(value) for value in values[:3]] == numbers[:3]
    assert float(values[3]) == 1 / 3


@pytest.mark.parametrize("seed", range(40))
def test_random_properties_against_points(seed, monkeypatch):
    """Weights are quarters, so that points of a fine grid are evaluated exactly."""
    if seed % 2:
        monkeypatch.setattr(verification, "MAX_INPUTS", 0)  # split units, not inputs
    rng = np.random.default_rng(seed)
    d, outputs = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    sizes = [d, *rng.integers(2, 8, rng.integers(0, 3)), outputs]
    layers = [
        rm.Linear(rng.integers(-6, 7, (m, n)) / 4, rng.integers(-4, 5, m) / 4)
        for n, m in itertools.pairwise(sizes)
    ]
    net = rm.Network(layers, d)
    center, width = rng.integers(-4, 5, d) / 4, rng.integers(0, 5, d) / 8
    lo, hi = center - width, center + width
    grid = np.array(list(itertools.product(*np.linspace(lo, hi, 9).T)))
    logits = net.logits(grid)
    clauses = []
    for _ in range(rng.integers(1, 4)):
        rows = []
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(-2, 3, outputs), rng.integers(-1, 2, d) * (rng.random() < 0.3)
            values = logits @ y + grid @ x
            bound = values.min() + rng.choice([-0.25, 0.0, 0.125, 0.5])
            row = ({i: Fraction(int(c)) for i, c in enumerate(part) if c} for part in (x, y))
            rows.append(Row(*row, Fraction(bound), bool(rng.random() < 0.2)))
        ends = (tuple(map(Fraction, end.tolist())) for end in (lo, hi))
        clauses.append(Clause(*ends, tuple(rows)))
    prop = Property(d, outputs, tuple(clauses))
    exact = [(list(map(Fraction, z)), list(map(Fraction, f)))
             for z, f in zip(grid.tolist(), logits.tolist(), strict=True)]  # fmt: skip
    hit = any(clause.holds(*point) for clause in clauses for point in exact)
    found = rm.verify(net, prop, max_seconds=2)
    if hit:
        assert found.status != "holds"
    if found.status == "violated":
        x = list(found.exact.x)
        assert any(clause.holds(x, exact_logits(net, x)) for clause in clauses)
        np.testing.assert_allclose(net(found.counterexample[None])[0], found.output, atol=1e-12)


@pytest.mark.parametrize("max_inputs", [0, 100])
def test_a_proof_that_needs_splits(max_inputs, monkeypatch):
    """``|x_0| + |x_1| >= |x_0 + x_1| - 1/8``: the bound on the whole box proves nothing."""
    W = [[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1]]
    net = rm.Network([rm.Linear(W, np.zeros(6)), rm.Linear([[1, 1, 1, 1, -1, -1]], [0.125])], 2)
    box = ["(>= X_0 -1)", "(<= X_0 1)", "(>= X_1 -1)", "(<= X_1 1)"]
    monkeypatch.setattr(verification, "MAX_INPUTS", max_inputs)
    for row, status in (("(<= Y_0 0)", "holds"), ("(<= Y_0 0.125)", "violated")):
        prop = about(*box, row, inputs=2, outputs=1)
        assert rm.verify(net, prop, max_seconds=20).status == status
    # Two rows: neither is positive on the whole box for the second clause, which the first proves.
    prop = about(*box, "(and (<= (- Y_0) -9) (<= Y_0 0.1))", inputs=2, outputs=1)
    assert rm.verify(net, prop, max_seconds=20).status == "holds"


def test_rounded_coefficients_count():
    """y / 3 <= bound: the coefficient is no float, and the bound is nearer than its error."""
    net = rm.Network([rm.Linear([[3.0 * 2**40]], [0])], 1)
    for shift, status in ((0, "violated"), (Fraction(1, 2**30), "unknown"), (1, "holds")):
        row = Row({}, {0: Fraction(1, 3)}, Fraction(2**40) - shift, False)
        prop = Property(1, 1, (Clause((Fraction(1),), (Fraction(1),), (row,)),))
        assert rm.verify(net, prop, max_seconds=1).status == status


def test_numbers_beyond_floats():
    row = Row({}, {0: Fraction(10**400)}, Fraction(1), False)
    prop = Property(1, 2, (Clause((Fraction(1),), (Fraction(2),), (row,)),))
    assert rm.verify(ABSOLUTE, prop, max_seconds=1).status == "unknown"
    huge = (Fraction(10**400),)
    found = rm.verify(ABSOLUTE, Property(1, 2, (Clause((Fraction(0),), huge, (row,)),)))
    assert found.status == "unknown"
    assert "floats hold" in found.reason


@pytest.mark.parametrize("size", [1e30, 1e100, 1e300])
def test_weights_beyond_float32(size):
    """Descents are in float64 then; where that overflows, exact arithmetic still decides."""
    net = rm.Network([rm.Linear([[size]], [0]), rm.Linear([[size], [-1]], [0, 1])], 1)
    for constraint, statuses in (
        ("(>= Y_0 Y_1)", {"violated"}),
        ("(<= Y_0 -1)", {"holds", "unknown"}),
    ):
        asked = about("(>= X_0 0.5)", "(<= X_0 1)", constraint)
        assert rm.verify(net, asked, max_seconds=0.2).status in statuses


@pytest.mark.parametrize(
    "number", [Fraction(1, 3), Fraction(-1, 3), Fraction(1, 4), Fraction(10**400), Fraction(0)]
)
def test_rounding_is_outwards(number):
    below, above = rounded(number, up=False), rounded(number, up=True)
    assert below <= number <= above
    assert (below == above) == (number in (Fraction(1, 4), 0))


def test_lower_bounds_of_rows_are_sound():
    rng = np.random.default_rng(0)
    rows = tuple(
        Row({0: Fraction(int(rng.integers(-9, 9)), 7)}, {0: Fraction(1, 3), 1: Fraction(-1, 11)},
            Fraction(int(rng.integers(-9, 9)), 13), False)
        for _ in range(20)
    )  # fmt: skip
    clause = Clause((Fraction(1, 10),), (Fraction(1, 10),), rows)
    floats = rows_of([clause], 1, 2)
    lo, hi = box_around(clause)
    assert lo[0] < hi[0]
    f = np.array([[0.7, -12.5]])
    lower = floats.lower(f @ floats.C.T - 1e-14, lo[None], hi[None], np.abs(f[0]))
    for row, bound in zip(rows, lower[0], strict=True):
        value = row.x[0] / 10 + row.y[0] * Fraction(0.7) - row.y[1] * Fraction(12.5) - row.bound
        assert Fraction(float(bound)) <= value <= Fraction(float(bound)) + Fraction(1, 10**12)


def test_an_error_is_no_proof(monkeypatch):
    def broken(*args):
        raise MemoryError("too little")

    monkeypatch.setattr(verification, "lower_bounds", broken)
    found = rm.verify(ABSOLUTE, about(*INTERVAL, "(>= Y_0 Y_1)"))
    assert found.status == "unknown"
    assert found.reason == "MemoryError: too little"
    assert "too little" in repr(found)
    with pytest.raises(ValueError, match="expected a counterexample"):
        found.save_counterexample("x")


def test_time_is_over():
    net = rm.Network.mlp([5, 50, 50, 50, 2], rng=0)
    box = [f"(and (>= X_{j} -9) (<= X_{j} 9))" for j in range(5)]
    largest = net(np.random.default_rng(0).uniform(-9, 9, (10**4, 5)))[:, 0].max()
    prop = about(*box, f"(>= Y_0 {1.6 * largest})", inputs=5)
    found = rm.verify(net, prop, max_seconds=0.2)
    assert found.status == "unknown"
    assert found.reason == "time is over"
    assert found.seconds < 10


@pytest.mark.parametrize(
    ("net", "prop", "error", "message"),
    [
        (ABSOLUTE, about(*INTERVAL, "(<= X_1 1)", "(>= X_1 0)", inputs=2), ValueError, "1 inputs"),
        (ABSOLUTE, about(*INTERVAL, outputs=3), ValueError, "of 2 outputs, as the network has"),
        ([1], about(*INTERVAL), TypeError, "expected a Network"),
        (ABSOLUTE, 3, TypeError, "path: expected a path"),
        ("none.onnx", about(*INTERVAL), FileNotFoundError, "none.onnx"),
    ],
)
def test_bad_arguments(net, prop, error, message):
    with pytest.raises(error, match=message):
        rm.verify(net, prop)


def test_the_time_is_checked():
    with pytest.raises(ValueError, match="max_seconds: expected a finite number > 0"):
        rm.verify(ABSOLUTE, about(*INTERVAL), max_seconds=0)


def test_command(tmp_path):
    pytest.importorskip("onnx", reason="writes an ONNX file")
    model, question = tmp_path / "net.onnx", tmp_path / "a.vnnlib"
    example = tmp_path / "example.txt"
    rm.save(ABSOLUTE.astype(np.float32), model)
    for constraint, verdict in (("(>= Y_0 Y_1)", "holds"), ("(>= Y_0 0.35)", "violated")):
        question.write_text(text([*INTERVAL, constraint]))
        result = CliRunner().invoke(
            main, ["verify", str(model), str(question), "--counterexample", str(example)]
        )
        assert result.exit_code == 0, result.output
        assert result.output.split()[0] == verdict
        assert example.exists() == (verdict == "violated")
    assert example.read_text().startswith("sat\n((X_0 -0.")
    question.write_text("(assert")
    result = CliRunner().invoke(main, ["verify", str(model), str(question)])
    assert result.exit_code == 1
    assert "a.vnnlib, line 1: expected ')'" in result.output


def test_replay_by_onnxruntime(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tmp_path / "net.onnx"
    rm.save(ABSOLUTE.astype(np.float32), path)
    found = rm.verify(path, about(*INTERVAL, "(>= Y_0 0.35)"))
    assert found.replayed is True
    # Another network under the same name does not satisfy the constraint.
    rm.save(rm.Network([rm.Linear([[0], [0]], [0, 0])], 1).astype(np.float32), path)
    prop = about(*INTERVAL, "(>= Y_0 0.35)")
    assert verification._replay(path, prop, found.exact) is False


@pytest.mark.parametrize(("kind", "batch"), [("FLOAT16", 1), ("DOUBLE", 1), ("FLOAT", 3)])
def test_replay_of_other_types_and_batches(tmp_path, kind, batch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    number = getattr(onnx.TensorProto, kind)
    W = onnx.helper.make_tensor("W", number, (1, 2), [1.0, -1.0])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["y"])], "g",
        [value("x", number, (batch, 1))], [value("y", number, (batch, 2))], [W],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 17)
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    found = rm.verify(path, about(*INTERVAL, "(>= Y_0 0.25)"))
    assert found.status == "violated"
    assert found.replayed is True
