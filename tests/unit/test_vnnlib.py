"""VNN-LIB files: what they say, and what is refused."""

import gzip
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest

import refmmr as rm
from refmmr.interop import s_expressions
from refmmr.interop import vnnlib as module
from refmmr.interop.vnnlib import parse_property

DECLARED = """
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
"""
BOX = "(assert (>= X_0 0)) (assert (<= X_0 0.1)) (assert (>= X_1 -1e-1)) (assert (<= X_1 2.))"
TWO = """
(vnnlib-version <2.0>)
(declare-network net
    (declare-input X real [1, 2])
    (declare-output Y real [2]))
(assert (and (>= X [0, 0] 0) (<= X[0,0] 0.1) (>= X[0,1] -0.1) (<= X[0,1] 2)))
(assert (<= Y[0] Y[1]))
"""


def read(constraints, declared=DECLARED):
    return parse_property(declared + constraints, "file.vnnlib")


def test_numbers_are_exact():
    (clause,) = read(BOX + "(assert (<= Y_0 Y_1))").clauses
    assert clause.lo == (0, Fraction(-1, 10))
    assert clause.hi == (Fraction(1, 10), 2)
    assert clause.rows == (module.Row({}, {0: Fraction(1), 1: Fraction(-1)}, Fraction(0), False),)


def test_version_2_says_the_same():
    assert parse_property(TWO).clauses == read(BOX + "(assert (<= Y_0 Y_1))").clauses


def test_a_scalar_output_of_version_2():
    text = TWO.replace("Y real [2]", "Y real []").replace("(<= Y[0] Y[1])", "(<= Y 3)")
    found = parse_property(text)
    assert found.n_outputs == 1
    assert found.clauses[0].rows == (module.Row({}, {0: Fraction(1)}, Fraction(3), False),)


def test_a_disjunction_has_a_clause_for_each_case():
    found = read(
        BOX + "(assert (or (and (<= Y_0 1) (>= Y_1 2)) (and (<= X_0 0.05) (< Y_1 (- Y_0)))))"
        "(assert (or (<= Y_0 9) (<= Y_1 9)))"
    )
    assert [len(clause.rows) for clause in found.clauses] == [3, 3, 2, 2]
    assert [clause.hi[0] for clause in found.clauses] == [Fraction(1, 10)] * 2 + [
        Fraction(1, 20)
    ] * 2
    assert found.clauses[2].rows[0] == module.Row(
        {}, {0: Fraction(1), 1: Fraction(1)}, Fraction(0), True
    )
    assert "4 clauses of 10 rows, 2 boxes" in repr(found)


def test_linear_forms():
    (clause,) = read(BOX + "(assert (>= (+ (* 2 X_0 3) (- Y_0 1 Y_1) (/ Y_1 4)) (- 5)))").clauses
    expected = {0: Fraction(-6)}, {0: Fraction(-1), 1: Fraction(3, 4)}, Fraction(4), False
    assert clause.rows == (module.Row(*expected),)


def test_an_equation_is_two_inequalities():
    (clause,) = read(BOX + "(assert (= Y_0 3))").clauses
    assert [row.bound for row in clause.rows] == [3, -3]
    (clause,) = read("(assert (= X_0 3)) (assert (= X_1 4))").clauses
    assert clause.lo == clause.hi == (3, 4)


def test_clauses_that_nothing_satisfies_are_left_out():
    assert read(BOX + "(assert (or (<= X_0 -1) (<= 2 1)))").clauses == ()
    assert len(read(BOX + "(assert (or (<= Y_0 1) (<= 1 2)))").clauses) == 2


def test_a_strict_bound_of_an_input_stays_a_row():
    (clause,) = read(BOX + "(assert (< X_0 0.05))").clauses
    assert clause.hi[0] == Fraction(1, 20)
    assert not clause.holds([Fraction(1, 20), Fraction(0)], [Fraction(0)] * 2)
    assert clause.holds([Fraction(1, 21), Fraction(0)], [Fraction(0)] * 2)
    assert not clause.holds([Fraction(1, 21), Fraction(3)], [Fraction(0)] * 2)


@pytest.mark.parametrize("packed", [False, True])
def test_files(packed, tmp_path):
    path = tmp_path / ("a.vnnlib.gz" if packed else "a.vnnlib")
    text = ("; a comment (\n" + DECLARED + BOX).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    found = rm.read_vnnlib(path)
    assert (found.n_inputs, found.n_outputs, len(found.clauses)) == (2, 2, 1)
    assert found.name == path.name


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ("(assert (<= X_0 1)", "line 6: expected ')' for the list"),
        (")", "line 6: expected an expression, got ')'"),
        ("\n(assert (<= (* X_0 Y_0) 1))", "line 7: expected a linear constraint"),
        ("(assert (<= X_0))", "line 6: expected two sides of <=, got 1"),
        ("(assert (not (<= X_0 1)))", "expected and, or, <=, >=, <, > or =, got (not ...)"),
        ("(assert (<= X_7 1))", "expected a variable that was declared, got X_7"),
        ("(assert (<= Z 1))", "expected a number, an input X_0, ... or an output Y_0, ..., got Z"),
        ("(assert (<= X_0 1e999999999))", "got 1e999999999"),
        ("(assert (<= X_0 1e999))", "expected a number of at most 1000 digits"),
        ("(assert (<= X_0 NaN))", "got NaN"),
        ("(assert (<= (/ X_0 0) 1))", "expected a linear form"),
        ("(assert)", "expected (assert CONSTRAINT), got 0"),
        ("(assert (<= X_0 1))", "expected bounds of every input, got no lower bound of input 0"),
        ("(declare-const X_0 Real)", "each variable once, got X_0 again"),
        ("(declare-const X_3 Real)", "expected declarations of X_0 to X_3, got none of X_2"),
        ("(declare-const X_0 Int)", "expected (declare-const X_0 Real)"),
        ("(declare-datatypes)", "expected declare-const, declare-network or assert"),
        ("(vnnlib-version <3.0>)", "expected version <1.0> or <2.0>"),
        ("([0])", "expected a name before '[0]'"),
        ('(assert "x)', "expected an expression, got '\"'"),
        ("(assert (<= X_0 \u0661))", "got \u0661"),
        (
            f"(assert (<= Y_0 (* {'1e400 ' * 20})))",
            "line 6: expected results of at most 16384 bits",
        ),
        (f"(assert (<= Y_0 {'(/ ' * 20} 1 {'1e-400)' * 20}))", "expected results of at most"),
        (
            f"(assert (<= Y_0 (+ {' '.join(f'(/ Y_0 {10**900 + i})' for i in range(9))})))",
            "expected results of at most 16384 bits, got a longer one",
        ),
        ("(" * 101 + ")" * 101, "line 6: expected parentheses at most 100 deep"),
        ("(" * 10**6, "line 6: expected parentheses at most 100 deep"),
    ],
)
def test_errors_name_file_and_line(constraints, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(constraints)
    assert str(error.value).startswith("file.vnnlib")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("X [0, 0]", "X[0,2]", "expected an index into the shape [1, 2] of X, got X[0,2]"),
        ("X [0, 0]", "X[0]", "got X[0]"),
        ("X [0, 0]", "X[0,-1]", "expected numbers in brackets"),
        ("X [0, 0]", "Q[0]", "expected a number or one of X, Y, got Q[0]"),
        ("[1, 2]", "[1, 0]", "expected sizes from 1"),
        ("[1, 2]", "[99999999, 99999999]", "expected sizes from 1"),
        ("declare-output", "declare-hidden", "expected declare-input or declare-output"),
        ("declare-output Y", "declare-input Z", "expected one input and one output, got Z"),
        ("(vnnlib-version <2.0>)", DECLARED, "version 1.0 or 2.0, got both"),
    ],
)
def test_errors_of_version_2(old, new, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_property(TWO.replace(old, new))


def test_a_normal_form_that_explodes():
    with pytest.raises(ValueError, match="a normal form of at most"):
        read(BOX + "(assert (or (<= Y_0 1) (<= Y_1 1)))" * 40)


def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(s_expressions, "MAX_BYTES", 10**4)
    path = tmp_path / "bomb.vnnlib.gz"
    path.write_bytes(gzip.compress(b" " * 10**6))
    with pytest.raises(ValueError, match="expected at most 10000 bytes"):
        rm.read_vnnlib(path)


def test_damaged_files(tmp_path):
    path = tmp_path / "a.vnnlib.gz"
    path.write_bytes(gzip.compress(DECLARED.encode())[:-9])
    with pytest.raises(ValueError, match="expected a whole gzip archive"):
        rm.read_vnnlib(path)
    path.write_bytes(b"(assert\n\xff\xfe")
    with pytest.raises(ValueError, match="line 2: expected text in UTF-8"):
        rm.read_vnnlib(path)
    with pytest.raises(FileNotFoundError):
        rm.read_vnnlib(tmp_path / "none")
    with pytest.raises(ValueError, match="expected a file, got a folder or device"):
        rm.read_vnnlib(tmp_path)
    with pytest.raises(TypeError, match="path: expected a path"):
        rm.read_vnnlib(3)


def test_files_of_the_competition():
    folder = os.environ.get("REFMMR_VNNCOMP")
    if not folder:
        pytest.skip("REFMMR_VNNCOMP is not set: it names the folder of networks and properties")
    found = rm.read_vnnlib(Path(folder) / "mnistfc" / "prop_0_0.03.vnnlib.gz")
    assert (found.n_inputs, found.n_outputs, len(found.clauses)) == (784, 10, 9)
    assert found.clauses[0].hi[28] == Fraction("0.029999999329447746")
