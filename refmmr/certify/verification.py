"""`verify`: whether a property of a network holds.

A property describes its counterexamples as clauses (`refmmr.interop.vnnlib`).  Clauses on the same
box are decided together, each step on those that the one before leaves open:

1. the backward bound (CROWN) of all rows on the box: where one row of a clause is positive, the
   clause has no counterexample;
2. descents of the rows, for a counterexample (`_counterexamples`);
3. branch and bound: for networks of few inputs over halves of the box (`_input_splitting`), else
   over the units (`_unit_splitting`), for the largest row of each clause (`_conjunctions`).

"holds" needs a proof in real arithmetic, "violated" a point that satisfies a clause of the file in
exact arithmetic.  Everything else, errors included, is "unknown".
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from refmmr import _files, _kernels
from refmmr import _validate as check
from refmmr._optional import require
from refmmr.certify._clauses import Rows, box_around, nearest, rows_of
from refmmr.certify._counterexamples import Counterexample, Examples, descend, text_of
from refmmr.certify._input_splitting import MAX_INPUTS, lower_bounds, split_inputs
from refmmr.certify._unit_splitting import split_units
from refmmr.interop.vnnlib import Clause, Property, read_vnnlib
from refmmr.io import load
from refmmr.network import Network

__all__ = ["Verification", "verify"]

ATTACK_SHARE = 0.2
"""Largest share of the time for the descents, before branch and bound."""


@dataclass(frozen=True)
class Verification:
    """Whether a property holds.  Returned by `verify`.

    Attributes
    ----------
    status : {"holds", "violated", "unknown"}
    counterexample : ndarray, shape (*input_shape), or None
        Of "violated": the input, each number rounded to the nearest float64.
    output : ndarray, shape (K,), or None
        Of "violated": the exact output for the exact input, rounded to float64.
    exact : Counterexample or None
        Of "violated": input and output as fractions, as they were checked.
    replayed : bool or None
        Of "violated", for an ONNX file: whether the constraints on the outputs hold, up to 0.001,
        for what onnxruntime computes from the counterexample in the file's precision; None if it
        is not installed.
    seconds : float
    reason : str
        Of "unknown": what ended the search.
    """

    status: str
    counterexample: np.ndarray | None = None
    output: np.ndarray | None = None
    exact: Counterexample | None = None
    replayed: bool | None = None
    seconds: float = 0.0
    reason: str = ""

    def save_counterexample(self, path: str | os.PathLike[str]) -> None:
        """Write the counterexample in the format of VNN-COMP; a ValueError if there is none."""
        if self.exact is None:
            raise ValueError(f"path: expected a counterexample to write, the status is {self}")
        _files.write_text(_files.as_path(path), text_of(self.exact))

    def __repr__(self) -> str:
        details = [f"{self.seconds:.1f} s"]
        details += [f"onnxruntime {'agrees' if self.replayed else 'disagrees'}"] * (
            self.replayed is not None
        )
        details += [self.reason] * bool(self.reason)
        return f"Verification({self.status!r}, {', '.join(details)})"


def verify(
    net: Network | str | os.PathLike[str],
    property: Property | str | os.PathLike[str],
    *,
    max_seconds: float = 60.0,
    rng: int | np.random.Generator | None = 0,
) -> Verification:
    """Decide whether a property of a network holds: whether it has no counterexample.

    Parameters
    ----------
    net : Network or path-like
        Or a file that `refmmr.load` reads.  Its weights are taken as exact real numbers.
    property : Property or path-like
        See `refmmr.read_vnnlib`; or a VNN-LIB file.
    max_seconds : float
        Time limit; then the status is "unknown".  A step that has begun is finished.
    rng : int, numpy.random.Generator or None
        Source of the random starts of the search for counterexamples.

    Returns
    -------
    Verification
        ``.status`` is "holds" (proved in real arithmetic), "violated" (``.counterexample``
        satisfies the file's constraints in exact arithmetic) or "unknown".

    Raises
    ------
    ValueError, TypeError, OSError
        For files that cannot be read, and a property of other inputs or outputs than the network's.
        An error during the search is no exception: the status is "unknown", with the reason.

    References
    ----------
    Zhang et al. (2018): CROWN.  Wang et al. (2018): ReLUval.  Wang et al. (2021): beta-CROWN.

    Examples
    --------
    >>> import refmmr as rm
    >>> from refmmr.interop.vnnlib import parse_property
    >>> net = rm.Network([rm.Linear([[1, 1]], [0]), rm.Linear([[1], [-1]], [0, 1])], 2)
    >>> text = '''
    ... (declare-const X_0 Real) (declare-const X_1 Real)
    ... (declare-const Y_0 Real) (declare-const Y_1 Real)
    ... (assert (>= X_0 0)) (assert (<= X_0 0.25))
    ... (assert (>= X_1 0)) (assert (<= X_1 0.2))
    ... (assert (>= Y_0 Y_1))'''
    >>> rm.verify(net, parse_property(text)).status
    'holds'
    >>> rm.verify(net, parse_property(text.replace("0.2)", "0.3)"))).status
    'violated'
    """
    begin = time.monotonic()
    deadline = begin + check.check_number("max_seconds", max_seconds)
    rng = check.check_rng(rng)
    path = Path(net) if isinstance(net, (str, os.PathLike)) else None
    network: Any = net
    order = None
    if path is not None and path.suffix == ".onnx":
        network, order = _of_onnx(path)
    elif path is not None:
        network = load(path)
    check.check_network(network)
    if not isinstance(property, Property):
        property = read_vnnlib(property)
    _check_sizes(network, property)
    asked = property if order is None else property.reordered(order.tolist())
    try:
        # Where floats overflow, nothing is proved, and no counterexample is exact.
        with np.errstate(over="ignore", invalid="ignore"):
            found = _decide(network.astype(np.float64), asked, rng, begin, deadline)
    except Exception as error:
        # No proof and no counterexample came of it.
        reason = f"{type(error).__name__}: {error}"
        return Verification("unknown", seconds=time.monotonic() - begin, reason=reason)
    replayed = None
    own = found  # with the inputs as the network has them
    if isinstance(found, Counterexample) and order is not None:
        found = found._replace(x=tuple(found.x[i] for i in order.tolist()))
    if isinstance(found, Counterexample) and path is not None and path.suffix == ".onnx":
        replayed = _replay(path, property, found)
    seconds = time.monotonic() - begin
    if not isinstance(found, Counterexample) or not isinstance(own, Counterexample):
        return Verification("unknown" if found else "holds", seconds=seconds, reason=str(found))
    x = np.array([nearest(number) for number in own.x]).reshape(network.input_shape)
    y = np.array([nearest(number) for number in found.y])
    return Verification("violated", x, y, found, replayed, seconds)


def _of_onnx(path: Path) -> tuple[Network, np.ndarray | None]:
    """The network of an ONNX file, and the place of each of the file's inputs in the network's."""
    from refmmr.interop.onnx_files import read_model

    model = read_model(path)
    if model.left_out is not None:
        raise ValueError(
            f"net: expected a model whose outputs are those of its last layer, got {path}, which "
            f"ends in {model.left_out}; instead: export it without, as properties of its outputs "
            "are none of the logits"
        )
    return model.network, model.input_order


def _check_sizes(net: Network, property: Property) -> None:
    inputs = int(np.prod(net.input_shape))
    for what, own, asked in (
        ("inputs", inputs, property.n_inputs),
        ("outputs", net.n_classes, property.n_outputs),
    ):
        if own != asked:
            raise ValueError(
                f"property: expected a property of {own} {what}, as the network has, got one of "
                f"{asked} in {property.name}; take the property that belongs to this network"
            )


def _decide(
    net: Network, property: Property, rng: np.random.Generator, begin: float, deadline: float
) -> Counterexample | str:
    """A counterexample, the reason why the answer is unknown, or "" for a property that holds."""
    groups: dict[Any, list[Clause]] = {}
    for clause in property.clauses:
        groups.setdefault((clause.lo, clause.hi), []).append(clause)
    reasons = []
    for number, clauses in enumerate(groups.values()):
        # Boxes that are left share the time that is left.
        share = (deadline - time.monotonic()) / (len(groups) - number)
        found = _decide_box(net, clauses, rng, min(deadline, time.monotonic() + share))
        if isinstance(found, Counterexample):
            return found
        reasons += [found] * bool(found)
    return reasons[0] if reasons else ""


def _decide_box(
    net: Network, clauses: Sequence[Clause], rng: np.random.Generator, deadline: float
) -> Counterexample | str:
    """The same for clauses on one box."""
    box = lo, hi = box_around(clauses[0])
    rows = rows_of(clauses, len(lo), net.n_classes)
    if not all(clause.rows for clause in clauses):  # any input of the box is a counterexample
        examples = Examples(net, clauses, rows)
        examples((lo + (hi - lo) / 2)[None])
        return examples.found or "floats overflow"
    f_size = _output_sizes(net, rows, lo, hi)
    lower = lower_bounds(net, rows, lo[None], hi[None], f_size)
    left = np.flatnonzero(rows.open_clauses(lower, len(clauses))[0]).tolist()
    if not left:
        return ""
    some = np.isin(rows.clause, left)
    rows = rows.take(some)._replace(clause=np.searchsorted(left, rows.clause[some]))
    examples = Examples(net, [clauses[i] for i in left], rows)
    now = time.monotonic()
    descend(net, rows, len(left), box, examples, rng, now + ATTACK_SHARE * (deadline - now))
    if examples.found is not None:
        return examples.found
    few = np.count_nonzero(lo < hi) <= MAX_INPUTS
    search = split_inputs if few else split_units
    if search(net, rows, len(left), box, f_size, examples, deadline):
        return ""
    over = time.monotonic() > deadline
    return examples.found or ("time is over" if over else f"{len(left)} clauses are left open")


def _output_sizes(net: Network, rows: Rows, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Bounds of the absolute outputs on a box, (K,), if a coefficient of the rows was rounded."""
    if not rows.C_error.any():
        return np.zeros(net.n_classes)
    shape = (1, *net.input_shape)
    middle = np.clip(lo + (hi - lo) / 2, lo, hi)
    lower, upper = _kernels.layer_bounds(
        net, middle.reshape(shape), np.inf, np.array([2 * (hi - lo).max()]),
        (lo.reshape(shape), hi.reshape(shape)), "ibp",
    )[-1]  # fmt: skip
    return np.maximum(np.abs(lower), np.abs(upper)).reshape(-1)


TOLERANCE = 1e-3
"""Of constraints on outputs that onnxruntime computes, as in the competition."""


FLOATS = {"tensor(float16)": "f2", "tensor(float)": "f4", "tensor(double)": "f8"}
"""Types of inputs of onnxruntime."""


def _replay(path: Path, property: Property, found: Counterexample) -> bool | None:
    """Whether onnxruntime's outputs satisfy a clause; None if they cannot be computed."""
    try:
        runtime = require("onnxruntime", "replay")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        batch = math.prod(shape) // len(found.x)
        kind = FLOATS[given.type]
        x = np.tile([nearest(number) for number in found.x], batch).reshape(shape).astype(kind)
        y: Any = session.run(None, {given.name: x})[0].reshape(batch, -1)[0]
    except Exception:
        return None
    outputs = [Fraction(float(value)) for value in y]
    slack = Fraction(TOLERANCE)
    return any(
        all(row._replace(bound=row.bound + slack).holds(found.x, outputs) for row in clause.rows)
        for clause in property.clauses
        if clause._replace(rows=()).holds(found.x, outputs)
    )
