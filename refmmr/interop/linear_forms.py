"""Linear constraints on the inputs and outputs of a network, from the expressions of VNN-LIB."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple, NoReturn

from refmmr.interop.s_expressions import Expression

__all__ = ["Atom", "Declared", "Reader"]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
MAX_DIGITS = 1000
"""Characters of a number, more than any float has digits."""
MAX_EXPONENT = 400
"""Powers of ten: the largest float is below ``10^309``."""
MAX_BITS = 2**14
"""Bits of a numerator or denominator that is computed: a few numbers of `MAX_DIGITS` multiplied.
A product of thousands would take hours."""
MAX_VARIABLES = 2**24
"""Inputs, and outputs: more than a network in memory has."""

COMPARISONS = {"<=": (1, False), "<": (1, True), ">=": (-1, False), ">": (-1, True)}
"""Sign with which ``left - right`` is at most 0, and whether the comparison is strict."""
IGNORED = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"}
"""Commands of SMT-LIB without a meaning here."""


class Atom(NamedTuple):
    """``sum_j x_j X_j + sum_k y_k Y_k <= bound``, or ``<``."""

    x: dict[int, Fraction]
    y: dict[int, Fraction]
    bound: Fraction
    strict: bool


class Declared(NamedTuple):
    """Numbers of inputs and outputs."""

    inputs: int
    outputs: int


class Form(NamedTuple):
    """``sum of coefficients * variables + constant``; a variable is ("X" or "Y", index)."""

    terms: dict[tuple[str, int], Fraction]
    constant: Fraction


class Reader:
    """The declarations of a file, and the constraints that use them.

    Parameters
    ----------
    where : str
        The file, for messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.scalars: dict[str, set[int]] = {"X": set(), "Y": set()}  # version 1.0
        self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}  # version 2.0: side and shape

    def fail(self, at: Expression, expected: str) -> NoReturn:
        """Raise a ValueError with file and line."""
        raise ValueError(f"{self.where}, line {at.line}: expected {expected}")

    def declare(self, expression: Expression) -> None:
        """Take a declaration."""
        items, head = expression.items, expression.head
        if head in ("declare-const", "declare-fun"):
            wanted = 3 if head == "declare-const" else 4
            if len(items) != wanted or items[1].word is None or items[-1].word != "Real":
                self.fail(expression, f"({head} X_0 Real), got {expression}")
            side, index = self._scalar(items[1])
            if index in self.scalars[side]:
                self.fail(expression, f"each variable once, got {items[1].word} again")
            self.scalars[side].add(index)
        elif head == "declare-network":
            if self.tensors:
                self.fail(expression, "one network, got a second one")
            for item in items[2:]:
                self._tensor(item)
        elif head == "vnnlib-version":
            version = items[1].word if len(items) == 2 else ""
            if version not in ("<1.0>", "<2.0>"):
                self.fail(expression, f"version <1.0> or <2.0>, got {version!r}")
        elif head not in IGNORED:
            self.fail(expression, f"declare-const, declare-network or assert, got {expression}")

    def _tensor(self, item: Expression) -> None:
        """(declare-input X real [1, 784]), and the same for an output."""
        sides = {"declare-input": "X", "declare-output": "Y"}
        if item.head not in sides:
            self.fail(item, f"declare-input or declare-output, got {item}")
        if len(item.items) < 3 or item.items[1].word is None or item.items[2].word is None:
            self.fail(item, f"({item.head} NAME TYPE [SHAPE]), got {item}")
        name, kind = item.items[1].word, item.items[2].word
        shape = self._index(item, kind) if "[" in kind else ()
        if any(size < 1 for size in shape) or math.prod(shape) > MAX_VARIABLES:
            self.fail(item, f"sizes from 1 to {MAX_VARIABLES} together, got {kind}")
        side = sides[item.head]
        if name in self.tensors or side in [other for other, _ in self.tensors.values()]:
            self.fail(item, f"one input and one output, got {name} as another")
        self.tensors[name] = side, shape

    def declared(self) -> Declared:
        """How many inputs and outputs there are."""
        if self.tensors and any(self.scalars.values()):
            raise ValueError(
                f"{self.where}: expected declarations of version 1.0 or 2.0, got both of them"
            )
        counts = []
        for side, what in (("X", "inputs"), ("Y", "outputs")):
            indices = self.scalars[side]
            count = max(indices, default=-1) + 1
            count += sum(math.prod(shape) for own, shape in self.tensors.values() if own == side)
            if count == 0:
                raise ValueError(f"{self.where}: expected declarations of {what}, got none")
            if not self.tensors and len(indices) < count:
                missing = next(i for i in range(count) if i not in indices)
                raise ValueError(
                    f"{self.where}: expected declarations of {side}_0 to {side}_{count - 1}, got "
                    f"none of {side}_{missing}"
                )
            counts.append(count)
        return Declared(*counts)

    def atoms(self, expression: Expression) -> list[Atom]:
        """The one or two constraints of a comparison."""
        if expression.head not in (*COMPARISONS, "=", "=="):
            self.fail(
                expression,
                f"and, or, <=, >=, <, > or =, got {expression}; write the counterexamples as a "
                "combination of these",
            )
        if len(expression.items) != 3:
            self.fail(
                expression,
                f"two sides of {expression.head}, got {len(expression.items) - 1}",
            )
        left, right = (self.form(item) for item in expression.items[1:])
        difference = _sum(left, right, Fraction(-1))
        if expression.head in COMPARISONS:
            return [_atom(difference, *COMPARISONS[expression.head])]
        return [_atom(difference, sign, False) for sign in (1, -1)]

    def form(self, expression: Expression) -> Form:
        """A linear form; the depth of the recursion is that of the parentheses."""
        if expression.word is not None:
            return self._leaf(expression, expression.word)
        try:
            return self._computed(expression)
        except OverflowError:
            self.fail(expression, f"results of at most {MAX_BITS} bits, got a longer one")

    def _computed(self, expression: Expression) -> Form:
        """The form of an operator; an OverflowError for numbers that are too long."""
        items = [self.form(item) for item in expression.items[1:]]
        head = expression.head
        if head == "+" and items:
            return _total(items)
        if head == "-" and items:
            first, *others = items if len(items) > 1 else [Form({}, Fraction(0)), *items]
            return _sum(first, _total(others), Fraction(-1))
        if head == "*" and items:
            product = Form({}, Fraction(1))
            for item in items:
                if product.terms and item.terms:
                    self.fail(expression, "a linear constraint, got a product of variables")
                factor, other = (item, product) if product.terms else (product, item)
                product = _sum(Form({}, Fraction(0)), other, factor.constant)
            return product
        if head == "/" and len(items) == 2 and not items[1].terms and items[1].constant:
            return _sum(Form({}, Fraction(0)), items[0], 1 / items[1].constant)
        self.fail(expression, f"a linear form of +, - and * with constants, got {expression}")

    def _leaf(self, at: Expression, word: str) -> Form:
        if NUMBER.fullmatch(word):
            mantissa, _, exponent = word.lower().partition("e")
            if len(mantissa) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_EXPONENT:
                self.fail(at, f"a number of at most {MAX_DIGITS} digits, got {word[:20]}...")
            return Form({}, Fraction(word))
        return Form({self._variable(at, word): Fraction(1)}, Fraction(0))

    def _variable(self, at: Expression, word: str) -> tuple[str, int]:
        """Side and flat index of a variable that was declared."""
        name, bracket, _ = word.partition("[")
        if name in self.tensors:
            side, shape = self.tensors[name]
            index = self._index(at, word) if bracket else ()
            fits = len(index) == len(shape)
            if not fits or any(i >= size for i, size in zip(index, shape, strict=True)):
                self.fail(at, f"an index into the shape {list(shape)} of {name}, got {word}")
            flat = 0
            for i, size in zip(index, shape, strict=True):
                flat = flat * size + i
            return side, flat
        if self.tensors:
            self.fail(at, f"a number or one of {', '.join(self.tensors)}, got {word[:40]}")
        side, number = self._scalar(at)
        if number not in self.scalars[side]:
            self.fail(at, f"a variable that was declared, got {word}")
        return side, number

    def _scalar(self, at: Expression) -> tuple[str, int]:
        match = re.fullmatch(r"([XY])_(\d{1,9})", at.word or "")
        if match is None or int(match[2]) >= MAX_VARIABLES:
            self.fail(at, f"a number, an input X_0, ... or an output Y_0, ..., got {str(at)[:40]}")
        return match[1], int(match[2])

    def _index(self, at: Expression, word: str) -> tuple[int, ...]:
        """The numbers in brackets behind a word."""
        inside = word.partition("[")[2].removesuffix("]")
        parts = inside.split(",") if inside else []
        if not all(re.fullmatch(r"\d{1,9}", part) for part in parts):
            self.fail(at, f"numbers in brackets, got {word[:40]}")
        return tuple(map(int, parts))


def _sum(left: Form, right: Form, factor: Fraction) -> Form:
    """``left + factor * right``."""
    terms = dict(left.terms)
    for variable, value in right.terms.items():
        terms[variable] = _short(terms.get(variable, Fraction(0)) + factor * value)
    return Form(terms, _short(left.constant + factor * right.constant))


def _total(forms: list[Form]) -> Form:
    terms: dict[tuple[str, int], Fraction] = {}
    constant = Fraction(0)
    for form in forms:
        for variable, value in form.terms.items():
            terms[variable] = _short(terms.get(variable, Fraction(0)) + value)
        constant = _short(constant + form.constant)
    return Form(terms, constant)


def _short(number: Fraction) -> Fraction:
    """The number; an OverflowError if it is too long."""
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MAX_BITS:
        raise OverflowError
    return number


def _atom(form: Form, sign: int, strict: bool) -> Atom:
    """``sign * form <= 0``, or ``< 0``."""
    x, y = (
        {i: sign * value for (side, i), value in form.terms.items() if side == own and value}
        for own in "XY"
    )
    return Atom(x, y, -sign * form.constant, strict)
