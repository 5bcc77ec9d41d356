"""What several files of tests share; pytest finds it by `pythonpath` in pyproject.toml."""

import http.server
import threading
from contextlib import contextmanager

import numpy as np

import refmmr as rm
from refmmr.certify.bounds import region
from refmmr.reference import rounding
from refmmr.reference.distances import hyperplanes_around
from refmmr.reference.hyperplanes import dual_norm


def network(*parameters):
    """Dense layers from pairs (W, b)."""
    return rm.Network([rm.Linear(W, b) for W, b in parameters], np.shape(parameters[0][0])[1])


def units(W, b, *more):
    """A network with these units in its first layer; its output is the sum of the last layer's."""
    pairs = [(W, b), *more]
    return network(*pairs, (np.ones((1, len(pairs[-1][1]))), [0]))


def random_biases(*sizes):
    """Random weights and biases, except for the logits': so that every class wins somewhere."""
    rng = np.random.default_rng(1)
    net = rm.Network.mlp(sizes, rng=1)
    hidden = [(W, rng.normal(size=b.shape) / 2) for W, b in net.parameters[:-1]]
    return net.with_parameters([*hidden, net.parameters[-1]])


# One hyperplane, {3 x + 4 y = 0}, and a decision boundary, {3 x + 4 y = 1}.
SIMPLE = network(([[3, 4]], [0]), ([[1], [0]], [0, 1]))

RADII_OF_SIMPLE = [
    # margin 4 at (1, 0.5), gradient (3, 4).
    (1, None, 1.0),
    (2, None, 0.8),
    (np.inf, None, 4 / 7),
    # In [0, 1]^2 the second coordinate can fall by 0.5 only: it gains 2, the first the rest.
    (1, (0, 1), 0.5 + 2 / 3),
    (2, (0, 1), np.hypot(0.5, 2 / 3)),
    (np.inf, (0, 1), 2 / 3),
    # Here it cannot fall at all.
    (1, (np.array([-1.0, 0.5]), 1), 4 / 3),
    (2, (np.array([-1.0, 0.5]), 1), 4 / 3),
    (np.inf, (np.array([-1.0, 0.5]), 1), 4 / 3),
]
"""Norm, box and radius of the point (1, 0.5) of class 0."""


def length(delta, p):
    """The l_p norm of each sample."""
    return np.linalg.norm(delta.reshape(len(delta), -1), p, axis=1)


def value_errors(net, X):
    """How far the outputs of each layer at X, in float64, may be from those in real arithmetic.

    Two ways to compute them are at most twice as far from each other.  Arrays (n, units).
    """
    return [error.reshape(len(X), -1) for error in rounding.value_errors(net, X)]


def margin_errors(net, X):
    """The same for differences of two logits, (n, 1)."""
    return 4 * value_errors(net, X)[-1].max(axis=1, keepdims=True)


def region_errors(net, X, y, p):
    """How far two sound computations of the radius of a region may be from each other, (n,).

    An error of a hyperplane's value is divided by its slope.  Only hyperplanes near the radius
    count; a factor of 8 covers the rounding of the allowances that are subtracted.
    """
    around = hyperplanes_around(net, X, y)
    errors = region.hyperplane_errors(net, X, y, around)
    lower = region.region_bounds(net, X, y, p, None).lower
    found = np.zeros(len(X))
    for i, radius in enumerate(lower):
        other = np.arange(net.n_classes) != y[i]
        values = np.concatenate([np.abs(around.f[i]), around.margin[i, other]])
        norms = dual_norm(np.concatenate([around.boundary_gradients[i], around.R[i].T[other]]), p)
        off = np.concatenate([errors.f[i], errors.margin[i, other]])
        turned = np.concatenate([errors.V[i], errors.R[i, other]])
        real = norms > turned
        distances = values[real] / norms[real]
        slack = 8 * (off[real] + distances * turned[real]) / norms[real]
        found[i] = slack[distances - slack <= radius].max(initial=0)
    return found


def bits(net):
    """Everything that makes a network, comparable bit by bit."""
    parameters = [(a.dtype, a.shape, a.tobytes()) for pair in net.parameters for a in pair]
    return repr(net), net.input_shape, net.dtype, parameters


@contextmanager
def file_server(folder):
    """A server of the files of a folder: its address, and a list of what it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, form, *args):
            asked.append(self.path.strip("/"))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/", asked
        finally:
            running.shutdown()
            thread.join()
