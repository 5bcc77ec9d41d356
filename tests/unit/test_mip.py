"""Linear and mixed-integer programs, on networks small enough to solve by hand."""

import signal
import threading

import numpy as np
import pytest

import refmmr as rm
from refmmr import _solvers
from refmmr.certify.bounds import _branching, _decision, _milp, lp, mip
from refmmr.reference import backward_bound
from refmmr.reference.ball import ball

UNIT = (np.zeros(2), np.ones(2))

# f_0 - f_1 = 0.5 - max(z_0 - z_1, 0) - max(z_1 - z_0, 0) = 0.5 - |z_0 - z_1|
VALLEY = rm.Network(
    [
        rm.Linear([[1.0, -1.0], [-1.0, 1.0]], [0.0, 0.0]),
        rm.Linear([[0.0, 0.0], [1.0, 1.0]], [0.5, 0.0]),
    ],
    2,
)


def bounds_around(net, x, p, eps, box):
    return lp.layer_bounds(net, np.asarray(x), p, eps, box)


@pytest.mark.parametrize(("p", "expected"), [(np.inf, 0.25), (1, 0.5)])
def test_valley_by_hand(p, expected):
    x = np.array([[0.5, 0.5]])
    found = mip.mip_bounds(VALLEY, x, np.array([0]), p, UNIT)
    assert found.lower[0] == pytest.approx(expected, rel=1e-6)
    assert found.lower[0] <= expected <= found.upper[0]
    assert found.upper[0] == pytest.approx(expected, rel=1e-6)
    assert VALLEY.predict(found.adversarial)[0] == 1


def test_without_a_box():
    found = mip.mip_bounds(VALLEY, np.array([[3.0, 3.0]]), np.array([0]), np.inf, None)
    assert found.lower[0] == pytest.approx(0.25, rel=1e-6)
    assert found.upper[0] == pytest.approx(0.25, rel=1e-6)


def test_nothing_else_in_the_box():
    box = np.full(2, 0.4), np.full(2, 0.6)
    found = mip.mip_bounds(VALLEY, np.array([[0.5, 0.5]]), np.array([0]), np.inf, box)
    assert found.lower[0] == np.inf
    assert np.isinf(found.upper[0])
    assert np.isnan(found.adversarial).all()


def test_goal():
    x, y = np.tile([0.5, 0.5], (3, 1)), np.zeros(3, dtype=int)
    goal = np.array([0.2, 0.249, 0.251])
    found = mip.mip_bounds(VALLEY, x, y, np.inf, UNIT, goal)
    np.testing.assert_array_equal(found.lower, [0.2, 0.249, 0])
    assert np.isinf(found.upper[:2]).all()
    assert 0.25 < found.upper[2] <= 0.251


def test_a_tie_is_neither_robust_nor_an_example():
    x = np.array([0.5, 0.5])
    decision = _decision.decide(
        VALLEY, x, 0, np.inf, 0.25, UNIT, bounds_around(VALLEY, x, np.inf, 0.25, UNIT)
    )
    assert not decision.robust
    assert decision.adversarial is None


def test_misclassified_points_are_their_own_examples():
    x = np.array([[0.9, 0.1]])
    for bounds in (mip.mip_bounds, lp.lp_bounds):
        found = bounds(VALLEY, x, np.array([0]), np.inf, UNIT)
        assert found.lower[0] == found.upper[0] == 0
        np.testing.assert_array_equal(found.adversarial, x)


def test_a_known_example_is_used():
    x, known = np.array([[0.5, 0.5]]), np.array([[0.8, 0.2]])
    found = mip.mip_bounds(
        VALLEY, x, np.array([0]), np.inf, UNIT, np.array([0.4]),
        upper=np.array([0.3]), adversarial=known,
    )  # fmt: skip
    assert (found.lower[0], found.upper[0]) == (0, 0.3)
    np.testing.assert_array_equal(found.adversarial, known)


def test_triangles_by_hand():
    # Both units lie in [-2 eps, 2 eps]; at their upper bounds the ReLUs add up to 2 eps for all z.
    x = np.array([[0.5, 0.5]])
    found = lp.lp_bounds(VALLEY, x, np.array([0]), np.inf, UNIT)
    assert 0.25 * (1 - 2 * lp.PRECISION) <= found.lower[0] <= 0.25
    bounds = bounds_around(VALLEY, x[0], np.inf, 0.3, UNIT)
    below = lp.margins_below(VALLEY, x[0], 0, np.inf, 0.3, UNIT, bounds)
    assert below.lower[1] == pytest.approx(0.5 - 2 * 0.3, abs=1e-9)
    assert below.lower[1] <= 0.5 - 2 * 0.3


@pytest.mark.parametrize("bounds", [mip.mip_bounds, lp.lp_bounds])
def test_l2_is_refused(bounds):
    with pytest.raises(ValueError, match=r"p: expected 1 or inf.*got 2.*quadratic"):
        bounds(VALLEY, np.array([[0.5, 0.5]]), np.array([0]), 2, UNIT)


def test_matrices_of_convolutions():
    rng = np.random.default_rng(0)
    conv = rm.Conv2d(rng.standard_normal((3, 2, 2, 3)), rng.standard_normal(3), (2, 1), "same")
    shape = conv.output_shape((2, 5, 4))
    dense = rm.Linear(rng.standard_normal((2, np.prod(shape))), np.zeros(2))
    net = rm.Network([conv, rm.Flatten(), dense], (2, 5, 4))
    x = rng.standard_normal((2, 5, 4))
    (W, b), _ = _milp.matrices(net)
    np.testing.assert_allclose(W @ x.reshape(-1) + b, conv.apply(x).reshape(-1), atol=1e-12)
    assert _milp.matrices(net) is _milp.matrices(net)


def random_network(seed, sizes=(2, 8, 8, 3)):
    rng = np.random.default_rng(seed)
    net = rm.Network.mlp(list(sizes), rng=rng)
    return net.with_parameters([(W, 0.3 * rng.standard_normal(len(b))) for W, b in net.parameters])


@pytest.mark.parametrize("scales", [(1e8, 1e-8, 1.0), (1e-8, 1.0, 1e8), (1e-6, 1e-6, 1e6)])
def test_weights_of_any_scale(scales):
    net = random_network(5)
    factors = np.cumprod(scales)
    scaled = net.with_parameters(
        [
            (W * scale, b * factor)
            for (W, b), scale, factor in zip(net.parameters, scales, factors, strict=True)
        ]
    )
    x = np.array([[0.4, 0.6]])
    y = net.predict(x)
    plain = mip.mip_bounds(net, x, y, np.inf, UNIT)
    assert np.isfinite(plain.upper).all()
    found = mip.mip_bounds(scaled, x, y, np.inf, UNIT)
    np.testing.assert_allclose(found.lower, plain.lower, rtol=1e-6)
    np.testing.assert_allclose(found.upper, plain.upper, rtol=1e-6)


def test_no_time_leaves_valid_bounds():
    net = random_network(5)
    x = np.array([[0.4, 0.6]])
    y = net.predict(x)
    exact = mip.mip_bounds(net, x, y, np.inf, UNIT)
    hurried = mip.mip_bounds(net, x, y, np.inf, UNIT, max_seconds=1e-9)
    assert hurried.lower[0] <= exact.upper[0] * (1 + 1e-9)
    assert hurried.upper[0] >= exact.lower[0]
    assert hurried.lower[0] < exact.lower[0]
    goal = exact.lower * 0.99
    assert mip.mip_bounds(net, x, y, np.inf, UNIT, goal).lower[0] == goal[0]


def hard_problem():
    """A ball that CROWN and the triangles do not decide, without an example in it."""
    net = random_network(1, (6, 30, 30, 2))
    rng = np.random.default_rng(2)
    for x in rng.uniform(0.3, 0.7, (50, 6)):
        y = int(net.predict(x[None])[0])
        box = np.zeros(6), np.ones(6)
        for eps in (0.1, 0.15, 0.2):
            bounds = bounds_around(net, x, np.inf, eps, box)
            below = lp.margins_below(net, x, y, np.inf, eps, box, bounds)
            if (below.lower > 0).all():
                continue
            decision = _decision.decide(net, x, y, np.inf, eps, box, bounds)
            if decision.robust and decision.nodes > 3:
                return net, x, y, eps, box, bounds, below
    raise AssertionError("no such ball")


def test_the_tree_goes_on_where_it_stopped(monkeypatch):
    """A limit of one program, then all that are needed: HiGHS's search between proves nothing."""
    net, x, y, eps, box, bounds, below = hard_problem()
    s = int(below.lower.argmin())
    program = _milp.build(net, x, np.inf, eps, box, bounds, binary=False)
    where = ball(x[None], np.full(1, eps), np.inf, box)
    arguments = net, where, y, s, 1.0, program, bounds
    assert _branching.prove_margin(*arguments).proved
    first = _branching.prove_margin(*arguments, max_nodes=1)
    assert not first.proved
    assert first.point is None
    assert _branching.prove_margin(*arguments, branches=first.left).proved
    original = _branching.prove_margin
    limits = iter([1, np.inf])
    monkeypatch.setattr(
        _branching, "prove_margin",
        lambda *args, **options: original(*args, **options | {"max_nodes": next(limits)}),
    )  # fmt: skip
    decision = _decision.decide(net, x, y, np.inf, eps, box, bounds)
    assert decision.robust
    assert decision.binaries == sum(((lo < 0) & (hi > 0)).sum() for lo, hi in bounds[:-1])


def test_the_word_of_the_solver_is_no_proof(monkeypatch):
    """HiGHS calls every program infeasible: branch and bound is not impressed."""
    net, x, y, eps, box, bounds, _ = hard_problem()
    original = _branching.prove_margin
    monkeypatch.setattr(_milp, "input_of", lambda *_: None)
    monkeypatch.setattr(
        _branching,
        "prove_margin",
        lambda *args, **options: original(*args, **options | {"max_nodes": 1}),
    )
    decision = _decision.decide(net, x, y, np.inf, eps, box, bounds)
    assert not decision.robust
    assert decision.adversarial is None


@pytest.mark.parametrize("seed", [153, 163, 278])
def test_the_dual_bound_is_the_optimum_where_it_rests_on_bounds_of_units(seed):
    """In these subproblems the minimiser lies where a pre-activation meets its bound."""
    rng = np.random.default_rng(seed)
    net = rm.Network.mlp([2, 4, 4, 2], rng=seed).astype(np.float64)
    net = net.with_parameters([(W, 0.3 * rng.normal(size=b.shape)) for W, b in net.parameters])
    x, eps = rng.random(2), 0.5
    y = int(net.predict(x[None])[0])
    bounds = lp.layer_bounds(net, x, np.inf, eps, None)
    program = _milp.build(net, x, np.inf, eps, None, bounds, binary=False)
    branch = {
        (k, j): int(rng.choice([-1, 1]))
        for k, split in enumerate(program.split)
        for j in range(len(split.units))
        if rng.random() < 0.5
    }
    highs = _milp.solver(program)
    _solvers.set_costs(highs, *_milp.margin(program, y, 1 - y))
    _branching._fix(highs, program, {}, branch)
    assert _solvers.run(highs) == _solvers.OPTIMAL
    optimum = highs.getInfo().objective_function_value
    duals = lp.unit_duals(program, np.array(highs.getSolution().row_dual), net)
    fixed = _branching._fixed_units(net, program, branch)
    where, row = ball(x[None], np.full(1, eps), np.inf, None), np.eye(2)[y] - np.eye(2)[1 - y]
    bound = lp.dual_bound(net, where, row, bounds, duals, fixed)
    np.testing.assert_allclose(bound, optimum, rtol=0, atol=1e-9 * max(1, abs(optimum)))


def test_arbitrary_dual_variables_prove_nothing_wrong():
    net, x, y, eps, box, bounds, _ = hard_problem()
    rng = np.random.default_rng(0)
    where = ball(x[None], np.full(1, eps), np.inf, box)
    row = np.array([1.0, -1.0]) if y == 0 else np.array([-1.0, 1.0])
    Z = np.clip(x + rng.uniform(-eps, eps, (500, 6)), *box)
    lowest = (net(Z) @ row).min()
    for _ in range(20):
        duals = [3 * rng.standard_normal(30) for _ in range(2)]
        assert lp.dual_bound(net, where, row, bounds, duals) <= lowest


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_stops_the_solver(monkeypatch):
    highs = _solvers.solver()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 1:
            signal.raise_signal(signal.SIGINT)
        return True, None

    monkeypatch.setattr(highs, "startSolve", lambda: None)
    monkeypatch.setattr(highs, "wait", wait)
    stopped = threading.Event()
    monkeypatch.setattr(highs, "cancelSolve", stopped.set)
    with pytest.raises(KeyboardInterrupt):
        _solvers.run(highs)
    assert stopped.is_set()


def test_crown_and_the_program_agree_where_nothing_is_unstable():
    x = np.array([0.9, 0.2])
    bounds = bounds_around(VALLEY, x, np.inf, 0.09, UNIT)
    margins = backward_bound.margin_bounds(
        VALLEY, x[None], np.array([1]), np.inf, np.array([0.09]), UNIT, "crown"
    )
    below = lp.margins_below(VALLEY, x, 1, np.inf, 0.09, UNIT, bounds)
    assert below.points == {}
    assert below.complete
    assert below.lower[0] == pytest.approx(margins[0, 0], abs=1e-12)


@pytest.mark.parametrize("p", [1, np.inf])
def test_units_that_are_zero(p):
    """Their bounds are an allowance for underflow, whose inverse is not finite."""
    net = rm.Network(
        [rm.Linear([[1, 0], [0, 0]], [-0.5, 0]), rm.Linear([[1, 1], [0, 0]], [0, 0.25])], 2
    )
    found = mip.mip_bounds(net, np.ones((1, 2)), np.zeros(1, int), p, None)
    np.testing.assert_allclose([found.lower, found.upper], 0.25, rtol=1e-5)
