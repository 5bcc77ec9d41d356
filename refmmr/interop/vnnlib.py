"""Questions about networks: VNN-LIB files, as the verification competition VNN-COMP writes them.

A file describes the *counterexamples* of a property: inputs x in a box, whose outputs ``y = f(x)``
satisfy a Boolean combination of linear constraints.  The property holds if there is none.

Read are version 1.0 (``(declare-const X_0 Real)``, ``X_0``, ``Y_0``) and the part of version 2.0
that says the same (one network, ``(declare-input X real [1, 784])``, ``X[0, 3]``).  The combination
is brought into disjunctive normal form: a counterexample satisfies all constraints of one *clause*.
Numbers are kept as fractions, so nothing is rounded here.

References
----------
Demarchi, Guidotti, Pulina, Tacchella (2023): Supporting standardization of neural networks
verification with VNN-LIB and CoCoNet.  Brix, Mueller, Bak, Johnson, Liu (2023): First three years
of the international verification of neural networks competition.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from refmmr._files import as_path
from refmmr.interop.linear_forms import Atom, Declared, Reader
from refmmr.interop.s_expressions import Expression, parse, read_text

__all__ = ["Clause", "Property", "Row", "read_vnnlib"]

MAX_ATOMS = 2**22
"""Constraints of all clauses together: a normal form can be exponentially longer than the file."""


class Row(NamedTuple):
    """A linear constraint, ``sum_j x_j X_j + sum_k y_k Y_k <= bound`` (``<`` if it is strict)."""

    x: dict[int, Fraction]
    y: dict[int, Fraction]
    bound: Fraction
    strict: bool

    def holds(self, x: Sequence[Fraction], y: Sequence[Fraction]) -> bool:
        """Whether it holds at an input and its output, in exact arithmetic."""
        value = sum((c * x[j] for j, c in self.x.items()), Fraction(0))
        value += sum((c * y[k] for k, c in self.y.items()), Fraction(0))
        return value < self.bound or (value == self.bound and not self.strict)


class Clause(NamedTuple):
    """A conjunction: counterexamples lie in the box, and all rows hold for them."""

    lo: tuple[Fraction, ...]  # (d,)
    hi: tuple[Fraction, ...]  # (d,)
    rows: tuple[Row, ...]

    def holds(self, x: Sequence[Fraction], y: Sequence[Fraction]) -> bool:
        """Whether an input with its output is a counterexample, in exact arithmetic."""
        inside = all(low <= v <= high for low, v, high in zip(self.lo, x, self.hi, strict=True))
        return inside and all(row.holds(x, y) for row in self.rows)


@dataclass(frozen=True)
class Property:
    """The counterexamples of a property, in disjunctive normal form.  Returned by `read_vnnlib`.

    Attributes
    ----------
    n_inputs, n_outputs : int
        Numbers of a flattened input (the last index first to move) and output.
    clauses : tuple of Clause
        An input is a counterexample if one of them holds.
    name : str
        Of the file.
    """

    n_inputs: int
    n_outputs: int
    clauses: tuple[Clause, ...]
    name: str = ""

    def reordered(self, order: Sequence[int]) -> Property:
        """The same property where input j has the index ``order[j]``."""
        before = sorted(range(len(order)), key=order.__getitem__)
        clauses = tuple(
            Clause(
                tuple(clause.lo[j] for j in before),
                tuple(clause.hi[j] for j in before),
                tuple(
                    row._replace(x={order[j]: c for j, c in row.x.items()}) for row in clause.rows
                ),
            )
            for clause in self.clauses
        )
        return replace(self, clauses=clauses)

    def __repr__(self) -> str:
        rows = sum(len(clause.rows) for clause in self.clauses)
        boxes = len({(clause.lo, clause.hi) for clause in self.clauses})
        return (
            f"Property({self.name}: {self.n_inputs} inputs, {self.n_outputs} outputs, "
            f"{len(self.clauses)} clauses of {rows} rows, {boxes} boxes)"
        )


def read_vnnlib(path: str | os.PathLike[str]) -> Property:
    """Read a property of a network from a VNN-LIB file.

    Parameters
    ----------
    path : path-like
        A text, or one that is compressed by gzip (``.vnnlib.gz``).

    Returns
    -------
    Property
        For `refmmr.verify`.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        For other syntax, with file and line; an input without bounds; products of variables; a file
        that is too large, nested too deeply, or has too many clauses.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> text = '''
    ... (declare-const X_0 Real)
    ... (declare-const Y_0 Real)
    ... (declare-const Y_1 Real)
    ... (assert (>= X_0 0))
    ... (assert (<= X_0 1))
    ... (assert (<= Y_0 Y_1))'''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "small.vnnlib"
    ...     size = path.write_text(text)
    ...     read_vnnlib(path)
    Property(small.vnnlib: 1 inputs, 2 outputs, 1 clauses of 1 rows, 1 boxes)
    """
    path = as_path(path)
    return parse_property(read_text(path), str(path), path.name)


def parse_property(text: str, where: str = "property", name: str = "property") -> Property:
    """The property that a text describes; `where` is its place for messages."""
    reader = Reader(where)
    combination: list[list[Atom]] = [[]]
    for expression in parse(text, where):
        if expression.head != "assert":
            reader.declare(expression)
            continue
        if len(expression.items) != 2:
            reader.fail(expression, f"(assert CONSTRAINT), got {len(expression.items) - 1} of them")
        combination = _and(
            reader, expression, combination, _normal_form(reader, expression.items[1])
        )
    declared = reader.declared()
    boxes: dict[tuple[tuple[Fraction, ...], ...], tuple[tuple[Fraction, ...], ...]] = {}
    clauses = []
    for atoms in combination:
        clause = _clause(atoms, declared, where)
        if clause is not None:
            # Clauses on the same box share its numbers.
            lo, hi = boxes.setdefault((clause.lo, clause.hi), (clause.lo, clause.hi))
            clauses.append(clause._replace(lo=lo, hi=hi))
    return Property(declared.inputs, declared.outputs, tuple(clauses), name)


def _normal_form(reader: Reader, expression: Expression) -> list[list[Atom]]:
    """The clauses of a Boolean combination, each a list of constraints."""
    if expression.head == "and":
        combination: list[list[Atom]] = [[]]
        for item in expression.items[1:]:
            combination = _and(reader, item, combination, _normal_form(reader, item))
        return combination
    if expression.head == "or":
        found = [clause for item in expression.items[1:] for clause in _normal_form(reader, item)]
        _check_size(reader, expression, sum(map(len, found)))
        return found
    return [reader.atoms(expression)]


def _and(
    reader: Reader, at: Expression, left: list[list[Atom]], right: list[list[Atom]]
) -> list[list[Atom]]:
    """The conjunction of two normal forms; one clause of the left is extended in place."""
    if len(left) == len(right) == 1:
        left[0].extend(right[0])
        return left
    sizes = [sum(map(len, form)) for form in (left, right)]
    _check_size(reader, at, sizes[0] * len(right) + sizes[1] * len(left))
    return [a + b for a in left for b in right]


def _check_size(reader: Reader, at: Expression, atoms: int) -> None:
    if atoms > MAX_ATOMS:
        reader.fail(at, f"a normal form of at most {MAX_ATOMS} constraints, got {atoms}")


def _clause(atoms: list[Atom], declared: Declared, where: str) -> Clause | None:
    """The clause of some constraints; None for one that nothing satisfies."""
    lo: list[Fraction | None] = [None] * declared.inputs
    hi: list[Fraction | None] = [None] * declared.inputs
    rows: list[Row] = []
    for atom in atoms:
        if not atom.x and not atom.y:
            if not (atom.bound > 0 or (atom.bound == 0 and not atom.strict)):
                return None
            continue
        if len(atom.x) == 1 and not atom.y:
            ((j, c),) = atom.x.items()
            value = atom.bound / c
            side, tighter = (hi, min) if c > 0 else (lo, max)
            old = side[j]
            side[j] = value if old is None else tighter(old, value)
            if not atom.strict:
                continue
        rows.append(Row(atom.x, atom.y, atom.bound, atom.strict))
    for name, side in (("lower", lo), ("upper", hi)):
        if None in side:
            raise ValueError(
                f"{where}: expected bounds of every input, got no {name} bound of input "
                f"{side.index(None)}; assert one, (assert ({'>' if name == 'lower' else '<'}= ...))"
            )
    lower, upper = (tuple(v for v in side if v is not None) for side in (lo, hi))
    if any(low > high for low, high in zip(lower, upper, strict=True)):
        return None
    return Clause(lower, upper, tuple(rows))
