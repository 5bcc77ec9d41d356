"""Certificates and robust errors whose values are known by hand."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import RADII_OF_SIMPLE, SIMPLE, network

import refmmr as rm
from refmmr.certify import METHODS, api
from refmmr.certify.bounds import region
from refmmr.reference import affine

NORMS = [1, 2, np.inf]


@pytest.mark.parametrize(("p", "box", "radius"), RADII_OF_SIMPLE)
def test_by_hand(p, box, radius):
    found = rm.certify(SIMPLE, [[1.0, 0.5]], [0], p, box)
    np.testing.assert_allclose(found.lower, radius, rtol=1e-12)
    np.testing.assert_allclose(found.upper, radius, rtol=1e-6)
    assert found.exact.all()
    assert found.lower <= radius <= found.upper
    assert SIMPLE.predict(found.adversarial) == 1
    assert (found.p, found.method, len(found)) == (p, "region", 1)


def test_region_boundary_nearer_than_the_decision_boundary():
    """Only the region boundary is proved; the projection beyond it is still genuine."""
    net = network(([[1, 0], [0, 1]], [-0.5, 0]), ([[0, 1], [0, 0]], [0, 0.25]))
    found = rm.certify(net, [[0.6, 0.75]], [0], 2)
    np.testing.assert_allclose(found.lower, 0.1, rtol=1e-12)
    np.testing.assert_allclose(found.upper, 0.5, rtol=1e-6)
    assert not found.exact.any()
    assert net.predict(found.adversarial) == 1


def test_projection_that_is_not_adversarial():
    """Beyond the facet the network bends back: no adversarial example is found or reported."""
    net = network(([[1], [-1]], [-0.5, 0.5]), ([[1, 1], [0, 0]], [0.1, 0]))
    found = rm.certify(net, [[0.7]], [0], 2, box=None)
    np.testing.assert_allclose(found.lower, 0.2, rtol=1e-12)
    assert found.upper == np.inf
    assert np.isnan(found.adversarial).all()
    assert not found.exact.any()


@pytest.mark.parametrize("box", [None, (-1, 1)])
@pytest.mark.parametrize("p", NORMS)
def test_misclassified(p, box):
    X = np.array([[0.9, 0.5], [0.1, 0.1], [-1, -1]])
    found = rm.certify(SIMPLE, X, [1, 0, 0], p, box)
    np.testing.assert_array_equal(found.lower, 0)
    np.testing.assert_array_equal(found.upper, 0)
    assert found.exact.all()
    np.testing.assert_array_equal(found.adversarial, X)


@pytest.mark.parametrize("p", NORMS)
def test_point_on_a_hyperplane(p):
    """(0, 0) lies on the hyperplane of SIMPLE: its region proves nothing."""
    found = rm.certify(SIMPLE, [[0.0, 0.0]], [1], p, (-1, 1))
    assert found.lower == 0
    assert found.upper > 0
    assert not found.exact.any()


def test_ties():
    """Equal logits: the first class is the predicted one, and has no radius."""
    net = network(([[1, 0], [1, 0]], [0, 0]))
    assert net.predict([[0.5, 0.5]]) == 0
    for y in (0, 1):
        assert rm.certify(net, [[0.5, 0.5]], [y], 2).lower == 0
    assert rm.certify(net, [[0.5, 0.5]], [1], 2).upper == 0
    # The tie is everywhere, so nothing ever gets to class 1.
    assert rm.certify(net, [[0.5, 0.5]], [0], 2).upper == np.inf


def test_predicted_classes_are_meant_without_labels():
    X = np.random.default_rng(0).uniform(0, 1, (9, 2))
    given, default = (rm.certify(SIMPLE, X, y, 2) for y in (SIMPLE.predict(X), None))
    np.testing.assert_array_equal(given.lower, default.lower)
    assert (default.lower > 0).any()


def test_nothing_to_fear_in_the_box():
    """The decision boundary misses the box: every point of it is safe, and that is exact."""
    net = network(([[1, 1], [0, 0]], [1, 0]))
    found = rm.certify(net, [[0.5, 0.5]], [0], 2, (0, 1))
    assert found.lower == np.inf
    assert found.upper == np.inf
    assert found.exact.all()


@pytest.mark.parametrize("box", [None, (0, 1)])
@pytest.mark.parametrize("p", NORMS)
def test_units_without_a_hyperplane_do_not_matter(p, box):
    """A unit that is the constant 0 (or any other) has no boundary: its distance is infinite."""
    expected = rm.certify(SIMPLE, [[1.0, 0.5]], [0], p, box).lower
    for constant in (1.0, -1.0, 0.0):
        net = network(([[3, 4], [0, 0]], [0, constant]), ([[1, 0], [0, 0]], [0, 1]))
        found = rm.certify(net, [[1.0, 0.5]], [0], p, box)
        np.testing.assert_allclose(found.lower, expected, rtol=1e-12)


def test_padding():
    """A unit at the border of the image has a truncated filter, so a larger distance."""
    ones = np.ones((1, 1, 3, 3))
    net = rm.Network(
        [
            rm.Conv2d(ones, [-1.0], padding=1),
            rm.Flatten(),
            rm.Linear(np.ones((2, 4)), [10, 0]),
        ],
        (1, 2, 2),
    )
    X = np.full((1, 1, 2, 2), 0.5)
    # Each unit sees all four pixels: 4 * 0.5 - 1 = 1, gradient (1, 1, 1, 1).
    for p, radius in ((1, 1), (2, 0.5), (np.inf, 0.25)):
        np.testing.assert_allclose(rm.certify(net, X, [0], p, None).lower, radius, rtol=1e-12)


def test_images():
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (3, 1, 8, 8))
    for p in NORMS:
        free, boxed = (rm.certify(net, X, None, p, box) for box in (None, (0, 1)))
        assert (free.lower > 0).all()
        assert (free.lower <= boxed.lower * (1 + 1e-12)).all()
        assert boxed.adversarial.shape == X.shape
        near = rm.distances(net, X, net.predict(X), p)
        expected = np.minimum(near.boundary.min(axis=1), near.decision.min(axis=1))
        np.testing.assert_allclose(free.lower, expected, rtol=1e-6)


@pytest.mark.parametrize("box", [None, (0, 1)])
@pytest.mark.parametrize("p", NORMS)
def test_chunks_change_nothing(p, box, monkeypatch):
    net = rm.Network.mlp([5, 9, 7, 3], rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (11, 5))
    y = np.arange(11) % 3
    whole = rm.certify(net, X, y, p, box)
    monkeypatch.setattr(affine, "CHUNK_BYTES", 1)
    monkeypatch.setattr(api, "BLOCK", 4)
    monkeypatch.setattr(region, "BATCH", 1)
    parts = rm.certify(net, X, y, p, box)
    np.testing.assert_allclose(parts.lower, whole.lower, rtol=1e-12)
    np.testing.assert_allclose(parts.upper, whole.upper, rtol=1e-12)
    np.testing.assert_allclose(parts.adversarial, whole.adversarial, rtol=1e-12)
    np.testing.assert_array_equal(parts.exact, whole.exact)


def test_float32_network_is_certified_in_float64():
    net = rm.Network.mlp([3, 5, 2], rng=0).astype(np.float32)
    X = np.random.default_rng(0).uniform(0, 1, (4, 3)).astype(np.float32)
    single, double = rm.certify(net, X, None, 2), rm.certify(net.astype(np.float64), X, None, 2)
    np.testing.assert_array_equal(single.lower, double.lower)
    assert single.lower.dtype == single.adversarial.dtype == np.float64


@pytest.mark.parametrize("box", [None, (-1, 1)])
@pytest.mark.parametrize("p", NORMS)
def test_tiny_logits(p, box):
    """The same classes, with logits of 1e-170: the radius must not grow."""
    for scale in (1e-100, 1e-140, 1e-155, 1e-160, 1e-170, 1e-250, 1e-300):
        net = network(([[3 * scale, 4 * scale], [0, 0]], [0, scale]))
        found = rm.certify(net, [[0.7, 0.5]], [0], p, box)
        exact = rm.certify(network(([[3, 4], [0, 0]], [0, 1])), [[0.7, 0.5]], [0], p, box)
        assert found.lower <= exact.upper
        assert found.upper >= exact.lower


@pytest.mark.parametrize("scale", [1e150, 1e200, 1e300])
def test_huge_weights(scale):
    """What overflows is not certified; nothing breaks."""
    net = network(([[3 * scale, 4 * scale]], [0]), ([[scale], [0]], [0, 1]))
    distance = {1: 5 / 4, 2: 1, np.inf: 5 / 7}, {1: 1.5, 2: np.hypot(0.5, 1), np.inf: 1}
    for p in NORMS:
        for box, expected in zip((None, (0, 1)), distance, strict=True):
            found = rm.certify(net, [[1.0, 0.5]], [0], p, box)
            assert 0 <= found.lower <= min(expected[p], found.upper)


def test_repr():
    text = repr(rm.certify(SIMPLE, [[1.0, 0.5]], [0], 2, None))
    assert (
        text == "Certificates(1 points, l_2, region: mean certified radius 0.8, exact for 100.0%)"
    )


BAD = {
    "X shape": ({"X": [[0.5]]}, r"X: expected shape \(n, 2\), got \(1, 1\)"),
    "X single": ({"X": [0.5, 0.5]}, r"X: .* pass X\[None\]"),
    "X empty": ({"X": np.zeros((0, 2)), "y": []}, "X: expected at least one sample"),
    "X nan": ({"X": [[0.5, np.nan]]}, r"X: expected finite numbers, got nan at .*\(0, 1\)"),
    "X text": ({"X": [["a", "b"]]}, "X: expected real numbers"),
    "X outside": ({"X": [[0.5, -0.5]]}, "X: expected points inside the box.*-0.5"),
    "y large": ({"y": [2]}, "y: expected classes 0 to 1, got 2"),
    "y negative": ({"y": [-1]}, "y: expected classes 0 to 1, got -1"),
    "y count": ({"y": [0, 1]}, r"y: expected shape \(1,\)"),
    "y float": ({"y": [0.0]}, "y: expected integer"),
    "p 3": ({"p": 3}, "p: expected 1, 2 or inf, got 3"),
    "p text": ({"p": "two"}, "p: expected 1, 2 or inf, got 'two'"),
    "p true": ({"p": True}, "p: expected 1, 2 or inf, got True"),
    "p none": ({"p": None}, "p: expected 1, 2 or inf, got None"),
    "box order": ({"box": (1, 0)}, "box: expected lo <= hi, got lo = 1, hi = 0"),
    "box number": ({"box": 1}, r"box: expected None or a pair \(lo, hi\), got 1"),
    "box nan": ({"box": (0, np.nan)}, "box hi: expected finite numbers, got nan"),
    "box inf": ({"box": (0, np.inf)}, "box hi: expected finite numbers, got inf"),
    "box shape": ({"box": (np.zeros(3), 1)}, r"box: expected lo of shape \(2,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    changed, message = BAD[name]
    arguments = {"X": [[0.5, 0.5]], "y": [0], "p": 2, **changed}
    with pytest.raises((ValueError, TypeError), match=message):
        rm.certify(SIMPLE, **arguments)
    with pytest.raises((ValueError, TypeError), match=message):
        rm.robust_error(SIMPLE, eps=0.1, **arguments)


def test_more_errors():
    with pytest.raises(
        ValueError, match=r"method: expected one of 'region', 'ibp', .*, got 'magic'"
    ):
        rm.certify(SIMPLE, [[0.5, 0.5]], [0], 2, method="magic")
    with pytest.raises(ValueError, match="net: expected at least two classes, got 1"):
        rm.certify(network(([[1, 1]], [0])), [[0.5, 0.5]], [0], 2)
    for eps in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"eps: expected a finite number > 0, got {eps}"):
            rm.robust_error(SIMPLE, [[0.5, 0.5]], [0], 2, eps=eps)
    for name in ("pgd_steps", "restarts"):
        with pytest.raises(ValueError, match=f"{name}|steps"):
            rm.robust_error(SIMPLE, [[0.3, 0.1]], [0], 2, eps=0.1, **{name: 0})


# ---- all methods, and radii to decide about


LINE = network(([[1], [0]], [0, 0.5]))  # class 0 beyond 0.5
CHEAP = ["region", "ibp", "fast-lin", "kw", "crown"]


def by_all(*expensive):
    """Each method with each norm that it supports."""
    return [(m, p) for m in (*CHEAP, *expensive) for p in METHODS[m].norms]


@pytest.mark.parametrize(("method", "p"), by_all("lp", "search", "mip"))
def test_every_method_finds_the_radius_of_an_affine_network(method, p):
    found = rm.certify(LINE, [[0.7], [0.2], [0.9]], [0, 0, 0], p, method=method)
    np.testing.assert_allclose(found.lower, [0.2, 0, 0.4], rtol=1e-5)
    assert (found.lower <= [0.2, 0, 0.4]).all()
    assert (found.upper >= [0.2, 0, 0.4]).all()
    assert (found.method, found.p, found.eps, found.robust, found.status) == (
        method, p, None, None, None,
    )  # fmt: skip
    if METHODS[method].finds:
        assert found.exact.all()
    assert found.seconds.shape == (3,)
    assert (found.seconds > 0).all()


@pytest.mark.parametrize(("method", "p"), by_all("lp", "search", "mip"))
def test_every_method_decides_about_a_radius(method, p):
    X, y = [[0.7], [0.2], [0.9], [0.65]], [0, 0, 0, 0]
    found = rm.certify(LINE, X, y, p, method=method, eps=0.19)
    np.testing.assert_array_equal(found.robust, [True, False, True, False])
    np.testing.assert_array_equal(found.eps, 0.19)
    last = "adversarial" if METHODS[method].finds else "unknown"
    assert found.status.tolist() == ["robust", "adversarial", "robust", last]
    assert "50.0% robust" in repr(found)
    each = rm.certify(LINE, X, y, p, method=method, eps=[0.21, 0.1, 0.39, 0.14])
    np.testing.assert_array_equal(each.robust, [False, False, True, True])


def test_a_closed_ball_is_meant():
    """The tie at distance 0.25 is in the ball: not robust at 0.25, but just below."""
    for method in CHEAP:
        at = [rm.certify(LINE, [[0.75]], [0], 2, method=method, eps=e).robust[0]
              for e in (0.25, 0.2499)]  # fmt: skip
        assert at == [False, True]


def test_expensive_methods_load_at_first_use():
    code = (
        "import sys, refmmr as rm;"
        "rm.certify(rm.Network.mlp([2, 3, 2], rng=0), [[.5, .5]], None, 2);"
        "assert 'highspy' not in sys.modules and 'joblib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mip"}, "method: expected one that supports p = 2, got 'mip', which supports "),
        ({"method": "lp"}, "method: .* got 'lp', which supports p = 1 and p = inf; take one of "),
        ({"method": ["region"]}, "method: expected one of"),
        ({"eps": 0}, "eps: expected a finite number > 0, got 0"),
        ({"eps": "0.1"}, "eps: expected a finite number > 0, got '0.1'"),
        ({"eps": [0.1, 0.2]}, r"eps: expected shape \(1,\), got \(2,\)"),
        ({"eps": [-0.1]}, "eps: expected numbers > 0, got -0.1 at index 0"),
        ({"eps": [np.nan]}, "eps: expected finite numbers, got nan"),
        ({"max_seconds": 1}, "max_seconds: expected None, because only 'lp', 'bab', 'search'"),
        ({"method": "search", "max_seconds": -1}, "max_seconds: expected a finite number > 0"),
        ({"method": "search", "max_regions": 0}, "max_regions: expected an integer of at least 1"),
    ],
)
def test_errors_of_methods_and_radii(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        rm.certify(SIMPLE, [[0.5, 0.5]], [0], 2, **arguments)


def test_progress(capfd):
    rm.certify(SIMPLE, [[0.5, 0.5]], [0], 2)
    assert capfd.readouterr() == ("", "")
    rm.certify(SIMPLE, [[0.5, 0.5]], [0], 2, progress=True)
    assert "certify" in capfd.readouterr().err


# ---- robust_error


@pytest.fixture(scope="module")
def plane():
    """A network on the plane, and points with noisy labels."""
    rng = np.random.default_rng(0)
    net = rm.Network.mlp([2, 12, 8, 3], rng=5)
    X = rng.uniform(0, 1, (500, 2))
    hidden = [(W, rng.normal(size=b.shape) / 2) for W, b in net.parameters[:-1]]
    net = net.with_parameters([*hidden, net.parameters[-1]])
    # Logits around 0, so that each class wins somewhere.
    net = net.with_parameters([*hidden, (net.parameters[-1][0], -np.median(net(X), axis=0))])
    assert np.bincount(net.predict(X)).min() > 50
    X = X[:60]
    y = np.where(rng.random(60) < 0.1, (net.predict(X) + 1) % 3, net.predict(X))
    return net, X, y


def disc(p, eps, fine):
    """A dense grid of the ball of l_p."""
    side = np.linspace(-eps, eps, fine)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return grid[np.linalg.norm(grid, p, axis=1) <= eps]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
def test_robust_error_against_brute_force(plane, p, eps):
    net, X, y = plane
    result = rm.robust_error(net, X, y, p, eps=eps)
    steps = disc(p, eps, 81)
    reached = np.array(
        [
            (net.predict(np.clip(x + steps, 0, 1)) != label).any()
            for x, label in zip(X, y, strict=True)
        ]
    )
    assert not (result.certified & reached).any()
    # The grid may miss what is just within reach, PGD may miss a little more.
    assert (result.attacked & ~reached).mean() <= 0.05
    assert (reached & ~result.attacked).mean() <= 0.1


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("eps", [0.003, 0.03, 0.3])
def test_robust_error_is_consistent(plane, p, eps):
    net, X, y = plane
    result = rm.robust_error(net, X, y, p, eps=eps)
    assert result.test_error == (net.predict(X) != y).mean()
    assert result.test_error <= result.lower_bound <= result.upper_bound <= 1
    np.testing.assert_array_equal(result.misclassified, net.predict(X) != y)
    assert (result.attacked | ~result.misclassified).all()
    assert not (result.attacked & result.certified).any()
    np.testing.assert_array_equal(result.certified, result.certificates.lower > eps)
    assert result.lower_bound == result.attacked.mean()
    assert (result.p, result.eps) == (p, eps)


def test_robust_error_grows_with_eps(plane):
    net, X, y = plane
    results = [rm.robust_error(net, X, y, 2, eps=eps) for eps in (0.001, 0.01, 0.03, 0.1, 1)]
    uppers = [result.upper_bound for result in results]
    assert uppers == sorted(uppers)
    assert results[0].upper_bound < results[-1].lower_bound


@pytest.mark.parametrize("n", [3, 10, 23, 49])
def test_bounds_that_meet_are_equal(n):
    """All points decided: the two shares are the same number, not off by an ulp."""
    net = network(([[1], [0]], [0, 0.5]))
    for near in range(n + 1):
        X = np.where(np.arange(n) < near, 0.51, 1.0)[:, None]
        result = rm.robust_error(net, X, np.zeros(n, dtype=int), 2, eps=0.1)
        assert result.lower_bound == result.upper_bound == near / n


def test_robust_error_is_deterministic(plane):
    net, X, y = plane
    a, b = (rm.robust_error(net, X, y, 2, eps=0.05, rng=5) for _ in range(2))
    for name in ("attacked", "certified"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.certificates.upper, b.certificates.upper)


def test_table():
    X, y = [[1.0, 0.5], [0.4, 0.1], [0.1, 0.1], [1, 1]], [0, 0, 0, 0]
    result = rm.robust_error(SIMPLE, X, y, 2, eps=0.15, methods=["region", "attack"])
    assert (result.test_error, result.lower_bound, result.upper_bound) == (0.25, 0.5, 0.5)
    lines = result.table().splitlines()
    assert lines[0] == "4 points, l_2, eps = 0.15"
    rows = {line[:44].strip(): line[44:].strip() for line in lines[1:6]}
    radii = result.certificates.lower
    assert rows == {
        "test error": "25.00 %",
        "robust error, lower bound (region, attack)": "50.00 %",
        "robust error, upper bound (region)": "50.00 %",
        "mean certified radius": f"{radii.mean():.4f}",
        "exact minimal perturbation": f"{100 * result.exact_share:.1f} %",
    }
    settled = [line.split()[:4] for line in lines[8:]]
    assert settled == [
        ["misclassified", "1", "0", "1"],
        ["region", "3", "2", "1"],
        ["attack", "0", "0", "0"],
        ["undecided", "0"],
    ]
    # The misclassified point is no minimal perturbation that was found.
    assert result.exact_share == result.certificates.exact.mean() - 0.25
    assert repr(result) == result.table()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("short_attack")
def test_a_convolution_may_give_the_logits(method, backend):
    """A last filter as large as its image is a dense layer: the same network, the same bounds."""
    if backend == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    rng = np.random.default_rng(2)
    first = rm.Conv2d(rng.normal(size=(2, 1, 2, 2)), rng.normal(size=2))
    W, b = rng.normal(size=(3, 2, 2, 2)), np.zeros(3)
    net = rm.Network([first, rm.Conv2d(W, b), rm.Flatten()], (1, 3, 3))
    dense = rm.Network([first, rm.Flatten(), rm.Linear(W.reshape(3, -1), b)], (1, 3, 3))
    X = rng.uniform(0, 1, (2, 1, 3, 3))
    with rm.use_backend(backend):
        found, expected = (
            rm.certify(one, X, None, np.inf, method=method, progress=False) for one in (net, dense)
        )
    assert np.isfinite(expected.lower).any()
    np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-6)
    np.testing.assert_allclose(found.upper, expected.upper, rtol=1e-6)
