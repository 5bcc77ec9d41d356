"""Laws of the hull and the union of an l_1 and an l_inf ball, and of the certificates from them."""

from itertools import pairwise

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr.certify.universal import certify_universal
from refmmr.reference.universal import hull_radius, union_radius

EXPONENTS = st.one_of(st.sampled_from([1.0, 2.0, np.inf]), st.floats(1, 30), st.floats(30, 1e6))
RADII = st.floats(1e-3, 1e3)
DIMENSIONS = st.integers(1, 12)
SEEDS = st.integers(0, 2**32 - 1)


def lengths(Z, p):
    """``||z||_p`` of rows, without overflow."""
    largest = np.abs(Z).max(axis=1)
    scaled = Z / largest[:, None]
    return largest * (np.abs(scaled) ** p).sum(axis=1) ** (1 / p) if p < np.inf else largest


def directions(seed, d, p):
    """Vectors of l_p length 1: generic, sparse, flat ones, and mixtures of these."""
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((200, d))
    Z[50:100] *= rng.random((50, d)) < 0.3
    Z[100:150] = np.sign(Z[100:150])
    Z[150:, 0] *= 5
    Z[~Z.any(axis=1), 0] = 1
    return Z / lengths(Z, p)[:, None]


def in_hull(Z, e1, e_inf):
    """Gauge of the hull: the cheapest split ``z = a + b``, ``||a||_1 / e_1 + ||b||_inf / e_inf``.

    For a given ``||b||_inf = t`` the best a is what is above t; piecewise linear in t, so the least
    is at one of the sizes or at 0.
    """
    sizes = np.abs(Z)
    levels = np.concatenate([np.zeros((len(Z), 1)), sizes], axis=1)
    above = np.maximum(sizes[:, None, :] - levels[:, :, None], 0).sum(axis=2)
    return (above / e1 + levels / e_inf).min(axis=1)


def in_union(Z, e1, e_inf):
    """Gauge of the union."""
    return np.minimum(np.abs(Z).sum(axis=1) / e1, np.abs(Z).max(axis=1) / e_inf)


def farthest(p, e1, e_inf, d):
    """The vector of l_q length 1 that the derivation of the hull's radius takes as the worst."""
    ratio = np.clip(e1 / e_inf, 1, d)
    w = np.zeros(d)
    whole = int(ratio)
    w[:whole] = 1
    if whole < d:
        w[whole] = ratio - whole
    return w


@given(RADII, RADII, EXPONENTS, DIMENSIONS, SEEDS)
def test_balls_lie_inside(e1, e_inf, p, d, seed):
    Z = directions(seed, d, p)
    for radius, gauge in ((hull_radius, in_hull), (union_radius, in_union)):
        inside = gauge(Z * radius(e1, e_inf, p, d), e1, e_inf)
        assert (inside <= 1 + 1e-9).all()


@given(RADII, RADII, EXPONENTS, DIMENSIONS)
def test_hull_is_tight(e1, e_inf, p, d):
    """On the l_p sphere, the point that the worst face's normal picks is on the hull's boundary."""
    w = farthest(p, e1, e_inf, d)
    inverse_q = 1 - 1 / p
    # Hoelder with equality: z = w^(q - 1), as q - 1 = 1 / (p - 1).
    if inverse_q == 0:
        z = (np.arange(d) == 0).astype(float)
    else:
        z = np.where(w > 0, w ** (1 / inverse_q - 1), 0)
    z = z[None] / lengths(z[None], p)
    radius = hull_radius(e1, e_inf, p, d)
    assert in_hull(z * radius * (1 + 1e-6), e1, e_inf) > 1


@given(RADII, RADII, EXPONENTS, DIMENSIONS)
def test_union_is_tight(e1, e_inf, p, d):
    a = max(e_inf, e1 / d)
    z = np.full((1, d), max(e1 - a, 0) / max(d - 1, 1))
    z[0, 0] = a
    radius = union_radius(e1, e_inf, p, d)
    np.testing.assert_allclose(lengths(z, p), radius, rtol=1e-9)
    assert in_union(z * (1 + 1e-6), e1, e_inf) > 1


@given(RADII, RADII, st.lists(EXPONENTS, min_size=2, max_size=5), DIMENSIONS)
def test_monotone_and_between_the_ends(e1, e_inf, exponents, d):
    """Radii fall with p, grow with both balls, and the hull's are not below the union's."""
    for radius in (hull_radius, union_radius):
        values = [radius(e1, e_inf, p, d) for p in sorted(exponents)]
        for earlier, later in pairwise(values):
            assert later <= earlier * (1 + 1e-12)
        p = exponents[0]
        for larger in (radius(1.1 * e1, e_inf, p, d), radius(e1, 1.1 * e_inf, p, d)):
            assert larger >= radius(e1, e_inf, p, d) * (1 - 1e-12)
        np.testing.assert_allclose(radius(e1, e_inf, 1, d), max(e1, e_inf), rtol=1e-12)
        np.testing.assert_allclose(radius(e1, e_inf, np.inf, d), max(e_inf, e1 / d), rtol=1e-12)
    for p in exponents:
        assert hull_radius(e1, e_inf, p, d) >= union_radius(e1, e_inf, p, d) * (1 - 1e-12)


NETWORKS = testing.networks() | testing.conv_networks()


@settings(max_examples=60)
@given(st.data(), EXPONENTS, st.booleans(), SEEDS)
def test_nothing_is_found_in_certified_balls(data, p, boxed, seed):
    """Random points of the sphere, and attacks where there are some."""
    net = data.draw(NETWORKS)
    X, _ = data.draw(testing.batches(net))
    y = net.predict(X)
    box = data.draw(testing.boxes(X)) if boxed else None
    radii = np.minimum(certify_universal(net, X, y, p, box), 100)
    assume((radii > 0).any())
    for x, label, radius in zip(X[radii > 0], y[radii > 0], radii[radii > 0], strict=True):
        steps = directions(seed, x.size, p) * radius * (1 - 1e-9)
        Z = x + steps.reshape(-1, *x.shape)
        Z = Z if box is None else np.clip(Z, *box)
        assert (net.predict(Z) == label).all()
        if p in (1, 2, np.inf):
            found = rm.pgd(net, x[None], [label], p, eps=radius * (1 - 1e-9), steps=10, box=box)
            assert net.predict(found) == label


@settings(max_examples=60)
@given(st.data(), testing.norms(), st.booleans())
def test_not_above_the_certificate_of_the_norm_itself(data, p, boxed):
    net = data.draw(NETWORKS)
    X, _ = data.draw(testing.batches(net))
    box = data.draw(testing.boxes(X)) if boxed else None
    itself = rm.certify(net, X, None, p, box).lower
    found = certify_universal(net, X, None, p, box)
    assert (found <= itself * (1 + 1e-9)).all()
    if p != 2 and not boxed:
        assert (found >= itself * (1 - 1e-9)).all()
