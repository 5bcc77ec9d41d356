"""One ball around a point: bounds of the units on it, and of linear functions of the logits.

The trees of all functions (`refmmr.certify.bounds._tree`) start from here.  Gradient steps run in
float32, as they only choose the free parameters of the bounds; every bound that counts is then a
backward bound in float64 with its rounding errors subtracted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refmmr import _kernels
from refmmr.reference import ascent as book
from refmmr.reference import envelope
from refmmr.reference.ascent import Nodes
from refmmr.reference.backward_bound import LinearBound, backward_bound
from refmmr.reference.ball import Ball
from refmmr.reference.intervals import Bounds
from refmmr.reference.layers import Linear
from refmmr.reference.network import Network, flat, unflat
from refmmr.reference.proof import LEVELS
from refmmr.reference.rounding import Magnitude, layer_magnitudes, rounding_factor

UNIT_STEPS = 10
"""Gradient steps for the bound of a unit behind the first layer."""

LARGEST = 1e15
"""Weights and inputs above this, and weights and radii below its reciprocal, leave the range of
float32 in products."""

CHUNK = 2**22
"""Numbers in an array of the rows of units, at most."""


class Forms(NamedTuple):
    """Lower bounds ``<A, z> + constant`` of some units of a layer, and of their negatives."""

    units: np.ndarray  # (u,) their numbers in the layer
    A: np.ndarray  # (2, u, d)
    constant: np.ndarray  # (2, u), the errors subtracted
    slopes: np.ndarray | None = None  # where recorded, see `refmmr.reference.proof.Proof.slopes`


class OutOfTimeError(Exception):
    """The deadline of a place passed while units were bounded."""


class Place(NamedTuple):
    """A ball around one point within the box, and the network on it."""

    net: Network  # float64
    ball: Ball
    fast: Network  # float32, where its range holds all weights
    fast_ball: Ball
    deadline: float  # time of `time.monotonic` after which no unit is bounded
    record: bool = False  # what a certificate needs

    @property
    def dtype(self) -> type:
        """Of the gradient steps."""
        return self.fast.parameters[0][0].dtype.type


class Start(NamedTuple):
    """Bounds of the units on the whole ball, from which the trees of all functions begin."""

    place: Place
    bounds: list[Bounds]  # each (1, *unit_shape)
    forms: list[Forms]
    magnitudes: list[Magnitude]  # of rounding errors, for these and narrower bounds
    envelopes: envelope.Hidden | None = None  # what envelopes need, where `has_envelopes`


def has_envelopes(place: Place) -> bool:
    """Whether upper relaxations may be envelopes on a box: one dense hidden layer, in l_inf.

    Certificates have no room for a slope a weight.
    """
    dense = len(place.net.affine) == 2 and all(
        isinstance(layer, Linear) for layer in place.net.affine_layers
    )
    fits = place.ball.p == np.inf and place.dtype == np.float32
    return dense and fits and not place.record


def place(net: Network, ball: Ball, deadline: float = np.inf, record: bool = False) -> Place:
    """The network on a ball around one point."""
    weights = [np.abs(part[part != 0]) for pair in net.parameters for part in pair]
    narrow = all(w.max(initial=1) < LARGEST and w.min(initial=1) > 1 / LARGEST for w in weights)
    farthest = max(np.abs(ball.lowest).max(), np.abs(ball.highest).max())
    narrow = narrow and ball.radius[0] > 1 / LARGEST and farthest < LARGEST
    dtype = np.float32 if narrow else np.float64
    box = None if ball.box is None else (ball.box[0].astype(dtype), ball.box[1].astype(dtype))
    fast_ball = Ball(ball.x.astype(dtype), ball.radius.astype(dtype), ball.p, box)
    return Place(net, ball, net.map(lambda w: w.astype(dtype)), fast_ball, deadline, record)


def start(place: Place, bounds: Sequence[Bounds]) -> Start:
    """Better bounds of the units, from valid ones (each (1, *unit_shape)) layer after layer."""
    magnitudes = layer_magnitudes(place.net, place.ball, bounds)
    better: list[Bounds] = []
    forms = []
    for k, own in enumerate(bounds):
        own, form = bound_units(place, k, better, own, magnitudes)
        better.append(own)
        forms.append(form)
    hidden = envelope.hidden(place.net, place.ball) if has_envelopes(place) else None
    return Start(place, better, forms, magnitudes, hidden)


def root_bounds(start: Start, rows: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower bounds (m,) of functions of the logits on the ball, and where they are reached, (m, d).

    rows : (m, *logits_shape).
    """
    nodes = _repeated(book.root(start.bounds), len(rows))
    ascent = ascend(start.place, rows, nodes, steps)
    nodes = nodes._replace(slopes=ascent.slopes)
    return bound(start.place, rows, nodes, start.magnitudes)[0], ascent.points


def ascend(place: Place, rows: np.ndarray, nodes: Nodes, steps: int) -> book.Ascent:
    """Gradient steps, in float32: `refmmr.reference.ascent.ascend`."""
    dtype = place.dtype
    bounds: list[Bounds] = [(low.astype(dtype), high.astype(dtype)) for low, high in nodes.bounds]
    nodes = nodes._replace(bounds=bounds)
    return _kernels.ascend(place.fast, place.fast_ball, rows.astype(dtype), nodes, steps)


def bound(
    place: Place, rows: np.ndarray, nodes: Nodes, magnitudes: list[Magnitude], constant: float = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The backward bound of each node: minimum (n,), ``A`` (n, d) and constant minus error (n,)."""
    # Where floats overflowed: any finite parameters give a valid bound.
    slopes = [np.nan_to_num(slope.astype(np.float64)).clip(0, 1) for slope in nodes.slopes]
    betas = [np.nan_to_num(beta.astype(np.float64)).clip(0) for beta in nodes.multipliers]
    nodes = nodes._replace(slopes=slopes, multipliers=betas)
    return finished(place, _kernels.bound(place.net, place.ball, rows, nodes, magnitudes), constant)


def finished(
    place: Place, linear: LinearBound, constant: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimum (n,), ``A`` (n, d) and constant minus error (n,), with a constant added."""
    error = linear.error + rounding_factor(8) * abs(constant)
    linear = LinearBound(linear.A, linear.constant + constant, error, [])
    return linear.minimum(place.ball)[:, 0], linear.A[:, 0], (linear.constant - error)[:, 0]


def bound_units(
    place: Place, k: int, bounds: list[Bounds], own: Bounds, magnitudes: list[Magnitude]
) -> tuple[Bounds, Forms]:
    """Better bounds of the unstable units of hidden layer k, from `bounds` of the layers before.

    Parameters
    ----------
    bounds : list of (lower, upper), each (1, *unit_shape)
    own : (lower, upper)
        Of layer k, so far.

    Returns
    -------
    (lower, upper), each (1, *unit_shape)
    Forms
        Of the units that were unstable.

    Raises
    ------
    OutOfTimeError
        With a deadline.
    """
    lower, upper = (side.copy() for side in own)
    units = np.flatnonzero((lower < 0) & (upper > 0))
    size, d = lower.size, place.ball.x.size
    A, constant = np.zeros((2, len(units), d)), np.zeros((2, len(units)))
    n_before = sum(low.size for low, _ in bounds)
    recorded = np.zeros((2, size, n_before), np.uint8) if place.record else None
    step = max(1, CHUNK // max(d, *(low.size for low, _ in bounds), size))
    for sign, side in ((1, 0), (-1, 1)):
        for start in range(0, len(units), step):
            if time.monotonic() > place.deadline:
                raise OutOfTimeError
            some = units[start : start + step]
            rows = np.zeros((len(some), size))
            rows[np.arange(len(some)), some] = sign
            rows = rows.reshape(-1, *lower.shape[1:])
            part = slice(start, start + len(some))
            if k == 0:
                linear = backward_bound(
                    place.net, place.ball, rows[None], [], [], None, magnitudes[:1]
                )
                A[side, part], constant[side, part] = (
                    linear.A[0],
                    (linear.constant - linear.error)[0],
                )
                found = linear.minimum(place.ball)[0]
            else:
                nodes = _repeated(book.root(bounds), len(some))
                ascent = ascend(place, rows, nodes, UNIT_STEPS)
                slopes = ascent.slopes
                if recorded is not None:
                    levels = np.rint(LEVELS * np.nan_to_num(flat(slopes)).clip(0, 1))
                    recorded[side, some] = levels
                    slopes = unflat(levels / LEVELS, place.net.unit_shapes[:k])
                nodes = nodes._replace(slopes=slopes)
                found, A[side, part], constant[side, part] = bound(
                    place, rows, nodes, magnitudes[: k + 1]
                )
            if sign > 0:
                lower.reshape(-1)[some] = np.maximum(lower.reshape(-1)[some], found)
            else:
                upper.reshape(-1)[some] = np.minimum(upper.reshape(-1)[some], -found)
    return (lower, upper), Forms(units, A, constant, recorded)


def _repeated(nodes: Nodes, n: int) -> Nodes:
    return nodes.take(np.zeros(n, dtype=int))
