"""The checker of proofs never accepts a radius above the exact minimal perturbation."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import minimal_perturbation_squares

import refmmr as rm
from refmmr.certify.bounds import bab
from refmmr.certify.bounds._proofs import complete_proof
from refmmr.reference.ball import ball
from refmmr.reference.proof import LEVELS, Proof, open_nodes

SEEDS = st.integers(0, 2**32 - 1)


def problem(seed):
    """A network on the plane, a point and its class, a box and the exact distances."""
    rng = np.random.default_rng(seed)
    sizes = [2, *rng.integers(2, 5, rng.integers(1, 3)).tolist(), int(rng.integers(2, 4))]
    net = rm.Network.mlp(sizes, rng=int(seed))
    net = net.with_parameters([(W, rng.normal(size=b.shape) / 2) for W, b in net.parameters])
    x = rng.uniform(0, 1, 2)
    box = (np.zeros(2), np.ones(2)) if rng.integers(2) else None
    y = int(net.logits(x[None]).argmax())
    squares = minimal_perturbation_squares(net, x, y, box)
    return net, x, y, box, squares, rng


def above(square):
    """A float a little above the square root of a fraction."""
    radius = float(np.sqrt(float(square))) * (1 + 1e-12)
    assert Fraction(radius) ** 2 >= square
    return radius


def random_numbers(rng, shape):
    """Slopes and multipliers of all sizes."""
    kinds = rng.integers(0, 4, shape)
    betas = -(10.0 ** rng.uniform(-3, 8, shape))
    return np.choose(kinds, [rng.uniform(0, 1, shape), rng.integers(0, 2, shape), betas, -betas])


def random_proof(net, y, rng, n_splits=6):
    """Trees that are split at random units, with random parameters."""
    target, parent, unit, sign = [], [], [], []
    for s in set(range(net.n_classes)) - {y}:
        leaves = [len(target)]
        target.append(s), parent.append(-1), unit.append(-1), sign.append(0)
        for _ in range(n_splits):
            node, at = leaves.pop(int(rng.integers(len(leaves)))), int(rng.integers(net.n_hidden))
            for one in (-1, 1) if rng.integers(4) else (0,):
                leaves.append(len(target))
                target.append(s), parent.append(node), sign.append(one)
                unit.append(at if one else -1)
    n = len(target)
    again = np.flatnonzero(rng.integers(0, 2, n))
    sizes = [part.stop - part.start for part in net.unit_slices]
    slopes = [
        rng.integers(0, LEVELS + 1, (1 + len(again), 2, size, sum(sizes[:k]))).astype(np.uint8)
        for k, size in enumerate(sizes)
    ]
    arrays = (np.array(part) for part in (target, parent, unit, sign))
    return Proof(*arrays, random_numbers(rng, (n, net.n_hidden)), again, slopes)


@pytest.mark.parametrize("p", [1, 2, np.inf])
@settings(max_examples=15)
@given(seed=SEEDS)
def test_random_proofs_prove_nothing_false(p, seed):
    net, x, y, box, squares, rng = problem(seed)
    if not squares[p]:
        return
    for share in (1, 1.5):
        around = ball(x[None], np.full(1, share * above(squares[p])), p, box)
        for _ in range(3):
            assert open_nodes(net, around, y, random_proof(net, y, rng))


@pytest.mark.parametrize("p", [1, 2, np.inf])
@settings(max_examples=6)
@given(seed=SEEDS)
def test_altered_proofs_prove_nothing_false(p, seed):
    net, x, y, box, squares, rng = problem(seed)
    if not squares[p]:
        return
    radius = above(squares[p])
    decision = bab.decide(net, x, y, p, (1 - 1e-4) * radius, box, record=True)
    assert decision.adversarial is None
    if not decision.robust:  # rounding errors, or the cuts of a leaf, leave it open
        return
    proof = complete_proof(decision.record)
    below, beyond = (ball(x[None], np.full(1, t * radius), p, box) for t in (1 - 1e-4, 1))
    assert open_nodes(net, below, y, proof) == []
    assert open_nodes(net, beyond, y, proof)
    for _ in range(5):
        some = rng.uniform(size=proof.parameters.shape) < 0.3
        parameters = np.where(some, random_numbers(rng, some.shape), proof.parameters)
        slopes = [rng.integers(0, 256, part.shape).astype(np.uint8) for part in proof.slopes]
        moved = rng.permutation(proof.unit) if rng.integers(2) else proof.unit
        altered = proof._replace(parameters=parameters, slopes=slopes, unit=moved)
        assert open_nodes(net, beyond, y, altered)
