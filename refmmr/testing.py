"""Hypothesis strategies: random networks, points, hyperplanes and boxes for property tests.

They draw a shape and a seed and let NumPy fill in the numbers, which covers them better than
drawing each number by itself.  With ``dyadic=True`` all numbers are small multiples of 1/4: sums
and products of them are exact in float64, so results can be compared with `fractions.Fraction` by
``==``.  Dyadic networks are degenerate on purpose: they have rows of zeros, equal and opposite
rows, and units that are never active.

Examples
--------
>>> from hypothesis import given, settings, strategies as st
>>> import refmmr as rm
>>> from refmmr import testing
>>> @settings(max_examples=10, deadline=None)
... @given(st.data())
... def test_region_contains_its_point(data):
...     net = data.draw(testing.networks())
...     X, y = data.draw(testing.batches(net))
...     assert rm.linear_region(net, X[0]).contains(X[:1], tolerance=1e-9).all()
>>> test_region_contains_its_point()
"""

from __future__ import annotations

from collections.abc import Set
from itertools import pairwise

import numpy as np

from refmmr.exact import exact_network, fractions
from refmmr.network import Conv2d, Flatten, Linear, Network
from refmmr.reference.layers import Layer

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import DrawFn, SearchStrategy
except ImportError as error:
    raise ImportError(
        'refmmr.testing needs hypothesis, which is not installed: pip install "refmmr[test]"'
    ) from error

__all__ = [
    "batches",
    "boxes",
    "conv_networks",
    "dyadic_networks",
    "exact_network",
    "fractions",
    "hyperplanes",
    "networks",
    "norms",
]

FLAWS = ("zero row", "no hyperplane", "twin", "opposite", "dead", "no bias")
"""Degeneracies of a dyadic layer; see `_make_degenerate`."""

STRIDES = ((1, 1), (1, 2), (2, 1), (2, 2))
PADDINGS = (0, 1, "same", (1, 0), ((0, 1), (1, 0)), ((1, 0), (2, 1)))


def norms() -> SearchStrategy[float]:
    """The norms that the library knows: 1, 2 or inf.

    Examples
    --------
    >>> from hypothesis import given
    >>> from refmmr import testing
    >>> @given(testing.norms())
    ... def test_norms(p):
    ...     assert p in (1, 2, float("inf"))
    >>> test_norms()
    """
    return st.sampled_from([1, 2, np.inf])


@st.composite
def networks(
    draw: DrawFn,
    *,
    max_inputs: int = 5,
    max_hidden_layers: int = 3,
    max_width: int = 6,
    max_classes: int = 4,
    dyadic: bool = False,
) -> Network:
    """Small dense networks, with or without hidden layers.

    Parameters
    ----------
    max_inputs, max_hidden_layers, max_width, max_classes : int
        Largest sizes; there are two classes at least.
    dyadic : bool
        Weights that are small multiples of 1/4, with degenerate rows among them, instead of
        normally distributed ones.

    Returns
    -------
    strategy of Network

    Examples
    --------
    >>> from hypothesis import given
    >>> from refmmr import testing
    >>> @given(testing.networks())
    ... def test_shapes(net):
    ...     assert net.n_classes >= 2
    >>> test_shapes()
    """
    sizes = [
        draw(st.integers(1, max_inputs)),
        *draw(st.lists(st.integers(1, max_width), max_size=max_hidden_layers)),
        draw(st.integers(2, max_classes)),
    ]
    layers = [Linear(*draw(_parameters((m, n), dyadic))) for n, m in pairwise(sizes)]
    return Network(layers, (sizes[0],))


@st.composite
def conv_networks(
    draw: DrawFn,
    *,
    max_channels: int = 2,
    max_size: int = 5,
    max_width: int = 4,
    max_classes: int = 3,
    dyadic: bool = False,
) -> Network:
    """Small convolutional networks: one or two convolutions, Flatten, one or two dense layers.

    Kernels, strides and paddings vary, also between the two directions.

    Parameters
    ----------
    max_channels, max_size, max_width, max_classes : int
        Largest number of channels of an image, height and width of the input, units of a dense
        hidden layer, number of classes.
    dyadic : bool
        As for `networks`.

    Returns
    -------
    strategy of Network

    Examples
    --------
    >>> from hypothesis import given
    >>> from refmmr import testing
    >>> @given(testing.conv_networks())
    ... def test_images(net):
    ...     assert len(net.input_shape) == 3
    >>> test_images()
    """
    side = st.integers(2, max_size)
    input_shape = draw(st.tuples(st.integers(1, max_channels), side, side))
    layers: list[Layer] = []
    shape: tuple[int, ...] = input_shape
    for _ in range(draw(st.integers(1, 2))):
        channels, height, width = shape
        filters = (
            draw(st.integers(1, max_channels)),
            channels,
            draw(st.integers(1, min(3, height))),
            draw(st.integers(1, min(3, width))),
        )
        W, b = draw(_parameters(filters, dyadic))
        layers.append(Conv2d(W, b, draw(st.sampled_from(STRIDES)), draw(st.sampled_from(PADDINGS))))
        shape = layers[-1].output_shape(shape)
    layers.append(Flatten())
    sizes = [
        int(np.prod(shape)),
        *draw(st.lists(st.integers(1, max_width), max_size=1)),
        draw(st.integers(2, max_classes)),
    ]
    layers += [Linear(*draw(_parameters((m, n), dyadic))) for n, m in pairwise(sizes)]
    return Network(layers, input_shape)


def dyadic_networks(*, conv: bool = True) -> SearchStrategy[Network]:
    """Networks whose float64 arithmetic is exact, many of them degenerate.

    Parameters
    ----------
    conv : bool
        Convolutional networks among them.

    Returns
    -------
    strategy of Network
        All weights and biases are multiples of 1/4, 2 at most in size.

    Examples
    --------
    >>> from hypothesis import given
    >>> from refmmr import testing
    >>> @given(testing.dyadic_networks())
    ... def test_weights_are_quarters(net):
    ...     assert all((4 * W == (4 * W).round()).all() for W, b in net.parameters)
    >>> test_weights_are_quarters()
    """
    dense = networks(dyadic=True)
    return dense | conv_networks(dyadic=True) if conv else dense


@st.composite
def batches(
    draw: DrawFn,
    net: Network,
    *,
    max_samples: int = 3,
    low: float = -2.0,
    high: float = 2.0,
    dyadic: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels for a network.

    Parameters
    ----------
    net : Network
    max_samples : int
    low, high : float
        Range of the inputs.
    dyadic : bool
        Inputs that are multiples of 1/4; low and high must be such, too.

    Returns
    -------
    strategy of (X, y)
        X of shape (n, *input_shape), y of shape (n,), with n from 1 to `max_samples`.

    Examples
    --------
    >>> from hypothesis import given, strategies as st
    >>> from refmmr import testing
    >>> nets = st.shared(testing.networks(), key="net")
    >>> @given(nets, nets.flatmap(testing.batches))
    ... def test_logits(net, batch):
    ...     X, y = batch
    ...     assert net(X).shape == (len(y), net.n_classes)
    >>> test_logits()
    """
    n, rng = draw(st.integers(1, max_samples)), draw(_generators())
    X = _uniform(rng, low, high, (n, *net.input_shape), dyadic)
    return X, rng.integers(net.n_classes, size=n)


@st.composite
def hyperplanes(
    draw: DrawFn, dimension: int, *, dyadic: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Affine functions ``value + <w, delta>`` of a step delta; their zeros are the hyperplane.

    Parameters
    ----------
    dimension : int
    dyadic : bool
        Multiples of 1/4.

    Returns
    -------
    strategy of (w, value)
        w of shape (dimension,), never all zero, though some entries may be; value of shape ().

    Examples
    --------
    >>> from hypothesis import given
    >>> from refmmr import testing
    >>> @given(testing.hyperplanes(3))
    ... def test_gradients(hyperplane):
    ...     w, value = hyperplane
    ...     assert w.shape == (3,) and w.any()
    >>> test_gradients()
    """
    rng = draw(_generators())
    w = _uniform(rng, -2, 2, (dimension,), dyadic)
    if draw(st.booleans()):
        w[rng.random(dimension) < 0.3] = 0
    if not w.any():
        w[rng.integers(dimension)] = 1
    return w, _uniform(rng, -4, 4, (), dyadic)


@st.composite
def boxes(
    draw: DrawFn, points: np.ndarray, *, dyadic: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``lo <= z <= hi`` around some points, some of which may lie on their faces.

    Parameters
    ----------
    points : ndarray, shape (n, ...)
    dyadic : bool
        Distances of the points to the box are multiples of 1/4.

    Returns
    -------
    strategy of (lo, hi)
        Arrays of the shape of one point, lo < hi.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import given
    >>> from refmmr import testing
    >>> points = np.array([[0.0, 1.0], [0.5, 0.5]])
    >>> @given(testing.boxes(points))
    ... def test_points_are_inside(box):
    ...     lo, hi = box
    ...     assert (lo <= points).all() and (points <= hi).all()
    >>> test_points_are_inside()
    """
    rng = draw(_generators())
    touching = draw(st.sampled_from([0.0, 0.3, 1.0]))
    shape = points.shape[1:]
    below, above = (_uniform(rng, 0.25, 2, shape, dyadic) for _ in range(2))
    # A point touches at most one of two opposite faces, so that lo < hi.
    side = rng.random(shape) < 0.5
    touched = rng.random(shape) < touching
    below, above = np.where(touched & side, 0, below), np.where(touched & ~side, 0, above)
    return points.min(axis=0) - below, points.max(axis=0) + above


def _generators() -> SearchStrategy[np.random.Generator]:
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def _uniform(
    rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...], dyadic: bool
) -> np.ndarray:
    if dyadic:
        return np.asarray(rng.integers(round(4 * low), round(4 * high) + 1, shape) / 4)
    return np.asarray(rng.uniform(low, high, shape))


@st.composite
def _parameters(
    draw: DrawFn, shape: tuple[int, ...], dyadic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a shape, and biases."""
    rng = draw(_generators())
    if not dyadic:
        spread = np.sqrt(2 / np.prod(shape[1:]))
        return rng.standard_normal(shape) * spread, rng.standard_normal(shape[0]) / 2
    W, b = _uniform(rng, -2, 2, shape, dyadic), _uniform(rng, -2, 2, shape[:1], dyadic)
    _make_degenerate(W, b, rng, draw(st.sets(st.sampled_from(FLAWS))))
    return W, b


def _make_degenerate(
    W: np.ndarray, b: np.ndarray, rng: np.random.Generator, flaws: Set[str]
) -> None:
    """Make random rows of a layer degenerate, in place."""
    for flaw in sorted(flaws):
        i, j = rng.integers(len(W), size=2)
        if flaw == "zero row":  # a constant
            W[i] = 0
        elif flaw == "no hyperplane":  # the constant 0
            W[i], b[i] = 0, 0
        elif flaw == "twin":
            W[i], b[i] = W[j], b[j]
        elif flaw == "opposite":
            W[i], b[i] = -W[j], -b[j]
        elif flaw == "dead":  # never active after a ReLU, or on inputs that are not negative
            W[i], b[i] = -np.abs(W[i]), -np.abs(b[i])
        else:
            b[:] = 0
