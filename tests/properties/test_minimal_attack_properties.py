"""Laws of the minimal-norm attack: genuine examples, never nearer than what is certified."""

import numpy as np
from helpers import length
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr.attacks import minimal_attack
from refmmr.exact import exact_network, fractions

NETWORKS = testing.networks() | testing.conv_networks()


@settings(max_examples=60)
@given(st.data(), testing.norms(), st.booleans())
def test_genuine_and_inside(data, p, boxed):
    net = data.draw(NETWORKS)
    X, y = data.draw(testing.batches(net))
    box = data.draw(testing.boxes(X)) if boxed else None
    Z, distances = minimal_attack(net, X, y, p, box=box, steps=8, restarts=2)
    found = np.isfinite(distances)
    assert (np.isnan(Z.reshape(len(X), -1)).all(axis=1) == ~found).all()
    assert ((distances == 0) == (net.predict(X) != y)).all()
    assume(found.any())
    assert (net.predict(Z[found]) != y[found]).all()
    away = length((Z - X)[found], p)
    assert (away <= distances[found] * (1 + 1e-14)).all()
    assert (distances[found] <= away * (1 + 1e-9)).all()
    assert not boxed or ((box[0] <= Z) & (box[1] >= Z))[found].all()


@settings(max_examples=60)
@given(st.data(), testing.norms(), st.booleans())
def test_never_nearer_than_a_certificate_and_as_near_as_one_that_is_exact(data, p, boxed):
    net = data.draw(NETWORKS)
    X, _ = data.draw(testing.batches(net))
    y = net.predict(X)
    box = data.draw(testing.boxes(X)) if boxed else None
    _, distances = minimal_attack(net, X, y, p, box=box, steps=8, restarts=2)
    proved = rm.certify(net, X, y, p, box)
    assert (distances >= proved.lower).all()
    exact = proved.exact & (proved.upper > 1e-3)
    assert (distances[exact] <= proved.upper[exact] * (1 + 1e-6)).all()


@settings(max_examples=30)
@given(st.data(), testing.norms())
def test_examples_hold_in_real_arithmetic(data, p):
    """The exact logits of the very floats that are returned."""
    net = data.draw(testing.dyadic_networks(conv=False))
    X, y = data.draw(testing.batches(net, dyadic=True))
    Z, distances = minimal_attack(net, X, y, p, box=None, steps=6, restarts=1)
    found = (distances > 0) & np.isfinite(distances)
    assume(found.any())
    for values, label in zip(exact_network(net).logits(fractions(Z[found])), y[found], strict=True):
        assert max(np.delete(values, label)) > values[label]


@given(st.data(), testing.norms(), st.booleans())
def test_affine_networks_are_solved(data, p, boxed):
    """Two classes and no hidden layer: the distance to one hyperplane, within the box or not."""
    w, value = data.draw(testing.hyperplanes(4))
    X = np.random.default_rng(0).uniform(-1, 1, (1, 4))
    net = rm.Network([rm.Linear([w, 0 * w], [value - X[0] @ w, 0])], 4)
    y = net.predict(X)
    box = data.draw(testing.boxes(X)) if boxed else None
    distance = rm.distances(net, X, y, p, box=box).decision.min()
    assume(distance > 1e-3)
    _, found = minimal_attack(net, X, y, p, box=box, steps=5, restarts=1)
    assert found >= rm.certify(net, X, y, p, box=box).lower
    if boxed:
        # Where the hyperplane only touches the box, no point beyond it is an example.
        side = np.sign(value) * w
        lowest = np.where(side > 0, *box) - X[0]
        assume(abs(value) + side @ lowest < -1e-6 * abs(value))
    assert found <= distance * (1 + 1e-5)
