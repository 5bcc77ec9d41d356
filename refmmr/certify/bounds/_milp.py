"""A network on a ball as a mixed-integer linear program (Tjeng, Xiao, Tedrake 2019).

On the ball the pre-activation of a hidden unit has bounds ``l <= f <= u``.  A *stable* unit (l >= 0
or u <= 0) is linear there and needs no variable of its own.  An unstable one is split into parts,

    f = g - g',     0 <= g <= u a,     0 <= g' <= -l (1 - a),     a in {0, 1},

so that ``g = max(f, 0)``.  With 0 <= a <= 1 instead, the rows give the linear relaxation,
``max(f, 0) <= g <= u (f - l) / (u - l)`` (Ehlers 2017).  Active units are either replaced by their
expression in earlier variables or get a variable, whichever takes fewer coefficients.

Scales: a network may have weights of 1e8 in one layer and of 1e-8 in the next, and a solver has
absolute tolerances.  So the variables are relative: inputs to the radius, units to their bounds;
and a row is divided by the bound of its unit.  Weights of any size give the same program.
"""

from __future__ import annotations

import time
from typing import NamedTuple
from weakref import WeakKeyDictionary

import highspy
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import sparse

from refmmr import _solvers
from refmmr._examples import Box
from refmmr.reference.layers import Conv2d, Linear
from refmmr.reference.network import Network

TOLERANCE = 1e-9
"""How far HiGHS may violate a row, a bound or integrality (it accepts 1e-10 at least)."""

LayerBounds = list[tuple[np.ndarray, np.ndarray]]

_matrices: WeakKeyDictionary[Network, list[tuple[sparse.csr_array, np.ndarray]]] = (
    WeakKeyDictionary()
)


class Split(NamedTuple):
    """The units of a layer that have rows: numbers of units, rows and variables.

    Arrays (m,) for m unstable units, and (a,) for active ones with a variable of their own.
    """

    units: np.ndarray  # numbers of the units in the layer
    rows: np.ndarray  # of the rows ``(g - g' - f) / size = 0``
    size: np.ndarray  # ``max(-l, u)``
    positive: np.ndarray  # of the variables ``g / u``
    negative: np.ndarray  # of the variables ``g' / -l``
    switch: np.ndarray  # of the variables a
    active: np.ndarray  # numbers of the active units in the layer
    active_rows: np.ndarray  # of the rows ``(g - f) / active_size = 0``
    active_size: np.ndarray  # u


class Milp(NamedTuple):
    """A mixed-integer linear program with m variables, without an objective."""

    lower: np.ndarray  # (m,)
    upper: np.ndarray  # (m,)
    binary: np.ndarray  # (m,) bool
    rows: sparse.csr_array  # (r, m)
    row_lower: np.ndarray  # (r,)
    row_upper: np.ndarray  # (r,)
    step: sparse.csr_array  # (d, m): the input is x + step @ variables
    G: sparse.csr_array  # (K, m): the logits are G @ variables + c
    c: np.ndarray  # (K,)
    split: list[Split]  # of each hidden layer


def matrices(net: Network) -> list[tuple[sparse.csr_array, np.ndarray]]:
    """The affine layers as ``(W, b)`` on flattened units, W sparse; built once for each network."""
    if net not in _matrices:
        pairs = zip(net.affine, net.affine_layers, strict=True)
        _matrices[net] = [_matrix(layer, net.shapes[i]) for i, layer in pairs]
    return _matrices[net]


def _matrix(layer: Linear | Conv2d, shape: tuple[int, ...]) -> tuple[sparse.csr_array, np.ndarray]:
    if isinstance(layer, Linear):
        return sparse.csr_array(layer.W), layer.b
    # The pixel that each entry of each window reads; 0 is the padding.
    pixels = np.arange(1, np.prod(shape) + 1).reshape(shape)
    pixels = np.pad(pixels, [(0, 0), *layer.pads(*shape[1:])])
    windows = sliding_window_view(pixels, layer.W.shape[2:], axis=(1, 2))
    windows = windows[:, :: layer.stride[0], :: layer.stride[1]].transpose(1, 2, 0, 3, 4)
    taps = windows.reshape(windows.shape[0] * windows.shape[1], -1)
    filters, positions = len(layer.b), len(taps)
    columns = np.broadcast_to(taps, (filters, *taps.shape))
    units = np.arange(filters * positions).reshape(filters, positions, 1)
    weights = np.broadcast_to(layer.W.reshape(filters, 1, -1), columns.shape)
    inside = columns > 0
    entries = weights[inside], (np.broadcast_to(units, columns.shape)[inside], columns[inside] - 1)
    W = sparse.csr_array(entries, shape=(filters * positions, int(np.prod(shape))))
    return W, np.repeat(layer.b, positions)


class _Builder:
    """Collects columns and rows; matrices made early get their last columns at the end."""

    def __init__(self) -> None:
        self.lower: list[np.ndarray] = []
        self.upper: list[np.ndarray] = []
        self.binary: list[np.ndarray] = []
        self.rows: list[sparse.csr_array] = []
        self.row_lower: list[np.ndarray] = []
        self.row_upper: list[np.ndarray] = []
        self.m = 0
        self.count = 0

    def columns(self, lower: np.ndarray, upper: np.ndarray, binary: bool = False) -> np.ndarray:
        """New variables; their indices."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.binary.append(np.full(len(lower), binary))
        self.m += len(lower)
        return np.arange(self.m - len(lower), self.m)

    def add(self, rows: sparse.csr_array, lower: np.ndarray, upper: np.ndarray) -> None:
        """New rows."""
        self.rows.append(rows)
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        self.count += len(lower)

    def pick(self, columns: np.ndarray, scale: np.ndarray) -> sparse.csr_array:
        """One row for each variable, with one entry."""
        return _entries(np.arange(len(columns)), columns, scale, (len(columns), self.m))


def build(
    net: Network,
    x: np.ndarray,
    p: float,
    eps: float,
    box: Box | None,
    bounds: LayerBounds,
    binary: bool,
    layers: int | None = None,
) -> Milp:
    """The program of a network on a ball within the box.

    Parameters
    ----------
    net : Network
    x : ndarray, shape (d,)
    p : {1, inf}
    eps : float
        Radius, > 0.
    box : (lo, hi) or None
        Arrays of shape (d,), with x inside.
    bounds : list of (lower, upper)
        Of the pre-activations of each hidden layer, arrays (units,), valid on the ball.
    binary : bool
        Whether the switches are binary; otherwise this is the linear relaxation.
    layers : int, optional
        Number of affine layers to take, the last of them in place of the logits; all if not given.

    Returns
    -------
    Milp
    """
    affine = matrices(net)[:layers]
    made = _Builder()
    G = _inputs(made, x, p, eps, box)
    step, c = G, x
    split = []
    for k, (W, b) in enumerate(affine[:-1]):
        low, high = bounds[k]
        active, unstable = np.flatnonzero((low >= 0) & (high > 0)), (low < 0) & (high > 0)
        F, f = sparse.csr_array(W @ _widen(G, made.m)), W @ c + b
        i = np.flatnonzero(unstable)
        size = np.maximum(-low, high)[i]
        split.append(_split(made, F[i], f[i], i, low[i], high[i], size, binary))
        G = _entries(i, split[-1].positive, high[i], (len(b), made.m))
        later = affine[k + 1][0][:, active]
        if _substitutes(F[active], later):
            G, c = G + _widen(_rows(F, active), made.m), np.zeros(len(b))
            c[active] = f[active]
        else:
            scale = high[active]
            own = made.columns(low[active] / scale, np.ones(len(active)))
            rows = made.count + np.arange(len(active))
            split[-1] = split[-1]._replace(active=active, active_rows=rows, active_size=scale)
            made.add(
                made.pick(own, np.ones(len(own))) - _widen(_scaled(F[active], 1 / scale), made.m),
                f[active] / scale,
                f[active] / scale,
            )
            G, c = _widen(G, made.m) + _entries(active, own, scale, (len(b), made.m)), 0 * b
    W, b = affine[-1]
    parts = [_widen(part, made.m) for part in made.rows]
    return Milp(
        np.concatenate(made.lower),
        np.concatenate(made.upper),
        np.concatenate(made.binary),
        sparse.csr_array(sparse.vstack(parts)) if parts else sparse.csr_array((0, made.m)),
        np.concatenate([np.zeros(0), *made.row_lower]),
        np.concatenate([np.zeros(0), *made.row_upper]),
        _widen(step, made.m),
        sparse.csr_array(W @ _widen(G, made.m)),
        W @ c + b,
        split,
    )


def _inputs(made, x, p, eps, box):
    """Variables for the step in units of eps; the matrix from them to the step.

    In l_1 a coordinate moves up or down by variables of their own, whose sum is at most 1.
    """
    down, up = np.ones(len(x)), np.ones(len(x))
    if box is not None:
        down, up = np.minimum(1, (x - box[0]) / eps), np.minimum(1, (box[1] - x) / eps)
    shape = len(x), len(x)
    if p == np.inf:
        made.columns(-down, up)
        return _entries(np.arange(len(x)), np.arange(len(x)), np.full(len(x), eps), shape)
    made.columns(np.zeros(len(x)), up)
    made.columns(np.zeros(len(x)), down)
    made.add(sparse.csr_array(np.ones((1, made.m))), np.full(1, -np.inf), np.ones(1))
    eye = sparse.eye_array(len(x), format="csr") * eps
    return sparse.csr_array(sparse.hstack([eye, -eye]))


def _split(made, F, f, units, low, high, size, binary):
    """Add variables and rows that split unstable units ``F v + f``, in units of their bounds."""
    rows = made.count + np.arange(len(f))
    zero, one, n = np.zeros(len(f)), np.ones(len(f)), len(f)
    positive = made.columns(zero, one)
    negative = made.columns(zero, one)
    switch = made.columns(zero, one, binary)
    made.add(
        made.pick(positive, high / size)
        - made.pick(negative, -low / size)
        - _widen(_scaled(F, 1 / size), made.m),
        f / size,
        f / size,
    )
    made.add(made.pick(positive, one) - made.pick(switch, one), np.full(n, -np.inf), zero)
    made.add(made.pick(negative, one) + made.pick(switch, one), np.full(n, -np.inf), one)
    none = np.zeros(0, dtype=int)
    return Split(units, rows, size, positive, negative, switch, none, none, np.zeros(0))


def _substitutes(F, later):
    """Whether expressions are sparser than own variables, counting the rows of the next layer."""
    through = sparse.csr_array(abs(later)) @ sparse.csr_array(abs(F))
    return through.nnz <= F.nnz + F.shape[0] + later.nnz


def _entries(i, j, values, shape):
    return sparse.csr_array((values, (i, j)), shape=shape)


def _rows(F, chosen):
    """F with other rows set to zero."""
    keep = np.zeros(F.shape[0])
    keep[chosen] = 1
    return _scaled(F, keep)


def _scaled(F, factors):
    """Rows times factors."""
    scaled = sparse.csr_array(sparse.diags_array(factors) @ F)
    scaled.eliminate_zeros()
    return scaled


def _widen(F, m):
    """The same rows in more variables."""
    return sparse.csr_array((F.data, F.indices, F.indptr), shape=(F.shape[0], m))


def solver(program: Milp, deadline: float = np.inf) -> highspy.Highs:
    """HiGHS with a program, to be stopped at a time of `time.monotonic`; all costs are 0."""
    options: dict[str, bool | float] = {
        "mip_feasibility_tolerance": TOLERANCE,
        "small_matrix_value": 1e-12,
        "mip_rel_gap": 0.0,
        # Only the bound is used: attacks are better at finding solutions than these heuristics.
        "mip_heuristic_effort": 0.0,
        "mip_heuristic_run_feasibility_jump": False,
        "mip_heuristic_run_rins": False,
        "mip_heuristic_run_rens": False,
        "mip_heuristic_run_root_reduced_cost": False,
    }
    if deadline < np.inf:
        options["time_limit"] = max(deadline - time.monotonic(), 0.0)
    highs = _solvers.solver(TOLERANCE, **options)
    _solvers.load(
        highs,
        np.zeros(len(program.lower)),
        (program.lower, program.upper),
        program.rows,
        (program.row_lower, program.row_upper),
        program.binary,
    )
    return highs


def margin(program: Milp, y: int, s: int, size: float = 1.0) -> tuple[np.ndarray, float]:
    """``(f_y - f_s) / size`` as costs of the variables and an offset."""
    costs = (program.G[[y]] - program.G[[s]]).toarray()[0]
    return costs / size, float(program.c[y] - program.c[s]) / size


def input_of(program: Milp, x: np.ndarray, highs: highspy.Highs) -> np.ndarray | None:
    """The input of HiGHS's solution, of the shape of x; None if it found none."""
    feasible = highspy.SolutionStatus.kSolutionStatusFeasible
    if highs.getInfo().primal_solution_status != feasible:
        return None
    variables = np.array(highs.getSolution().col_value)
    return x + (program.step @ variables).reshape(x.shape)


def with_length(program: Milp, p: float) -> tuple[Milp, int]:
    """The program with the length of the step, in units of the radius, as one more variable.

    Returns
    -------
    program : Milp
    length : int
        The variable.
    """
    m, d = len(program.lower), program.step.shape[0]
    length = np.ones((d, 1))
    inputs = sparse.eye_array(d, m, format="csr")
    if p == np.inf:
        rows = sparse.vstack([sparse.hstack([sign * inputs, -length]) for sign in (1, -1)])
    else:
        size = np.append(np.ones(2 * d), np.zeros(m - 2 * d))
        rows = sparse.csr_array(np.append(size, -1.0)[None])
    rows = sparse.vstack([_widen(program.rows, m + 1), rows], format="csr")
    count = rows.shape[0] - program.rows.shape[0]
    wider = program._replace(
        lower=np.append(program.lower, 0.0),
        upper=np.append(program.upper, 1.0),
        binary=np.append(program.binary, False),
        rows=sparse.csr_array(rows),
        row_lower=np.append(program.row_lower, np.full(count, -np.inf)),
        row_upper=np.append(program.row_upper, np.zeros(count)),
        step=_widen(program.step, m + 1),
        G=_widen(program.G, m + 1),
    )
    return wider, m
