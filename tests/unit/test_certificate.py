"""Certificates of method="bab" in files, and the checker that proves them again."""

import functools

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify import certificate_files
from refmmr.certify.bounds import _proofs, bab
from refmmr.reference.ball import ball
from refmmr.reference.proof import Proof, Question, margin_row, node_bound, open_nodes
from refmmr.reference.rounding import layer_magnitudes

NORMS = (1, 2, np.inf)
NODES = ("target", "parent", "unit", "sign", "parameters")


def dense(*sizes, seed):
    net, rng = rm.Network.mlp(list(sizes), rng=seed), np.random.default_rng(seed)
    net = net.with_parameters([(W, rng.normal(size=b.shape) / 2) for W, b in net.parameters])
    return net, rng.uniform(0, 1, (1, sizes[0]))


def conv():
    rng = np.random.default_rng(2)
    layers = [
        rm.Conv2d(rng.normal(size=(2, 1, 2, 2)), rng.normal(size=2), stride=2, padding=1),
        rm.Flatten(),
        rm.Linear(rng.normal(size=(4, 18)) / 3, rng.normal(size=4)),
        rm.Linear(rng.normal(size=(3, 4)), rng.normal(size=3)),
    ]
    return rm.Network(layers, (1, 4, 4)), rng.uniform(0, 1, (1, 1, 4, 4))


CASES = {
    "affine": dense(3, 2, seed=1),
    "one layer": dense(4, 8, 3, seed=8),
    "two layers": dense(4, 7, 6, 3, seed=24),
    "conv": conv(),
}


@functools.cache
def nearest(case, p):
    """An adversarial example, and its distance: it is nearly the nearest."""
    net, X = CASES[case]
    Z, distances = rm.minimal_attack(net, X, net.predict(X), p, restarts=20)
    return Z[0], float(distances[0])


def radius(case, p):
    return nearest(case, p)[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a certificate with a tree, and the arrays in its only file."""
    folder = tmp_path_factory.mktemp("certificate")
    net, X = CASES["two layers"]
    eps = 0.99 * radius("two layers", np.inf)
    rm.certify(net, X, None, np.inf, eps=eps, method="bab", certificate=folder)
    with np.load(folder / "0.npz") as file:
        arrays = dict(file)
    assert (arrays["sign"] != 0).any()
    return net, folder / "0.npz", arrays


@pytest.fixture
def changed(written, tmp_path):
    """Check the certificate with some arrays changed."""
    net, _, arrays = written

    def check(net=net, **changes):
        np.savez(tmp_path / "changed.npz", **{**arrays, **changes})
        (found,) = rm.check_certificate(net, tmp_path / "changed.npz")
        return found

    return check


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_certificates_are_proved_again(case, p, tmp_path):
    net, X = CASES[case]
    for share in (0.7, 0.9):
        eps = share * radius(case, p)
        found = rm.certify(net, X, None, p, eps=eps, method="bab", certificate=tmp_path)
        assert found.status == ["robust"]
        (checked,) = rm.check_certificate(net, tmp_path)
        assert checked.proved
        assert checked.open_nodes == []
        np.testing.assert_array_equal(checked.x, X[0])
        assert (checked.p, checked.eps, checked.path.name) == (p, eps, "0.npz")
        assert checked.y == net.predict(X)[0]
        np.testing.assert_array_equal(checked.box, np.stack([0 * X[0], 0 * X[0] + 1]))


def test_robust_points_alone_have_files(tmp_path):
    net, x = CASES["one layer"]
    X, eps = np.repeat(x, 3, axis=0), radius("one layer", 2) * np.array([0.5, 2, 0.9])
    box = (X - [[[1]], [[2]], [[3]]][0], X + 1)
    found = rm.certify(net, X, None, 2, box, eps=eps, method="bab", certificate=tmp_path / "new")
    checked = rm.check_certificate(net, tmp_path / "new")
    names = [f"{i}.npz" for i in np.flatnonzero(found.robust)]
    assert [one.path.name for one in checked] == names
    assert 0 < len(names) < 3
    for one in checked:
        assert one.proved
        assert one.nodes > 0
        np.testing.assert_array_equal(one.box[0], x[0] - 1)
    (first,) = rm.check_certificate(net, tmp_path / "new" / "0.npz")
    assert repr(first).startswith("CheckedCertificate(0.npz: class ")
    found = rm.certify(net, x, None, 2, None, eps=eps[0], method="bab", certificate=tmp_path)
    assert rm.check_certificate(net, tmp_path / "0.npz")[0].box is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "crown", "eps": 0.1}, "expected method='bab'"),
        ({}, "expected eps"),
        ({"eps": 0.1, "scale": 2.0}, "expected scale=None"),
        ({"eps": 0.1, "certificate": "a.npz"}, "expected a folder"),
        ({"eps": 0.1, "certificate": __file__}, "expected a folder"),
    ],
)
def test_errors_name_the_certificate(arguments, text, tmp_path):
    net, X = CASES["one layer"]
    with pytest.raises(ValueError, match=f"certificate: {text}"):
        rm.certify(net, X, None, **{"method": "bab", "certificate": tmp_path, **arguments})


def test_a_warning_names_points_without_a_certificate(monkeypatch, tmp_path):
    net, X = CASES["one layer"]
    monkeypatch.setattr(bab, "complete_proof", lambda record: None)
    with pytest.warns(UserWarning, match=r"points \[0\] are robust"):
        rm.certify(net, X, None, 2, eps=1e-3, method="bab", certificate=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \.npz file"):
        rm.check_certificate(net, tmp_path)


def test_every_node_is_needed(written, changed):
    arrays = written[2]
    leaves = set(range(len(arrays["parent"]))) - set(arrays["parent"].tolist())
    assert len(leaves) > 2
    for leaf in leaves:
        kept = np.arange(len(arrays["parent"])) != leaf
        whole = arrays | {"parent": arrays["parent"] - (arrays["parent"] > leaf)}
        less = {name: whole[name][kept] for name in NODES}
        found = changed(**less, again=arrays["again"] - (arrays["again"] > leaf))
        assert not found.proved
        assert found.open_nodes


def test_splits_have_both_halves_of_one_unit(written, changed):
    arrays = written[2]
    for i in np.flatnonzero(arrays["sign"]):
        here = np.arange(len(arrays["sign"])) == i
        other = (arrays["unit"] + 1) % written[0].n_hidden
        assert not changed(unit=np.where(here, other, arrays["unit"])).proved
        assert not changed(sign=np.where(here, -1, 1) * arrays["sign"]).proved
        assert not changed(unit=np.where(here, -1, arrays["unit"])).proved


def test_slopes_and_multipliers_are_read_within_their_ranges(written):
    net, _, arrays = written
    numbers, y = arrays["parameters"], int(arrays["y"])
    box, eps = (arrays["lo"], arrays["hi"]), np.full(1, arrays["eps"])
    around = ball(arrays["x"][None], eps, np.inf, box)
    slopes = [arrays[f"slopes{k}"] for k in range(2)]
    parts = [arrays[name] for name in NODES[:4]]
    beyond = Proof(*parts, np.where(numbers >= 1, 7, numbers), arrays["again"], slopes)
    assert open_nodes(net, around, y, beyond) == []
    worse = Proof(*parts, -1e30 + 0 * numbers, arrays["again"], slopes)
    assert open_nodes(net, around, y, worse) != []


def test_another_question_is_not_proved(written, changed):
    arrays = written[2]
    eps = radius("two layers", np.inf)
    assert not changed(eps=np.array(eps * (1 + 1e-6))).proved
    y = int(arrays["y"])
    for other in {0, 1, 2} - {y}:
        assert -1 in changed(y=np.array(other)).open_nodes
    others = np.where(arrays["target"] == (y + 1) % 3, (y + 2) % 3, arrays["target"])
    assert -1 in changed(target=others).open_nodes
    assert not changed(x=nearest("two layers", np.inf)[0]).proved


def test_another_network_is_refused(written, changed):
    net = written[0]
    (W, b), *rest = net.parameters
    near = net.with_parameters([(np.nextafter(W, 9), b), *rest])
    with pytest.raises(ValueError, match="of another network"):
        changed(net=near)
    assert changed(net=net.astype(np.float64)).proved
    layers = CASES["conv"][0].layers
    padded = rm.Conv2d(layers[0].W, layers[0].b, stride=2, padding=2)
    assert certificate_files.network_hash(CASES["conv"][0]) != certificate_files.network_hash(
        rm.Network([padded, *layers[1:2], rm.Linear(np.ones((3, 32)), np.zeros(3))], (1, 4, 4))
    )


@pytest.mark.parametrize(
    "change",
    [
        {"format": "refmmr-network"},
        {"version": 2},
        {"network": 3},
        {"x": np.zeros(3)},
        {"x": np.full(4, np.nan)},
        {"x": np.full(4, 2.0)},
        {"y": 7},
        {"y": 0.0},
        {"p": 3.0},
        {"p": np.nan},
        {"eps": 0.0},
        {"eps": np.nan},
        {"eps": np.inf},
        {"eps": np.ones(1)},
        {"lo": np.full(4, np.nan)},
        {"lo": np.full(4, -np.inf)},
        {"hi": np.ones(5)},
        {"parent": np.zeros(0, int)},
        {"parent": np.zeros((2, 2), int)},
        {"target": np.zeros(1, int)},
        {"again": np.array([99])},
        {"again": np.array([-1])},
        {"slopes1": np.zeros((1, 2, 6, 7))},
        {"slopes0": np.zeros((9, 2, 7, 0), np.uint8)},
    ],
    ids=lambda change: "".join(change),
)
def test_damaged_arrays_are_refused(change, changed):
    with pytest.raises(ValueError, match=r"changed\.npz: expected"):
        changed(**change)


@pytest.mark.parametrize("name", ["network", "x", "hi", "parent", "parameters", "slopes1"])
def test_missing_arrays_are_refused(name, written, tmp_path):
    net, _, arrays = written
    np.savez(tmp_path / "a.npz", **{key: arrays[key] for key in arrays if key != name})
    with pytest.raises(ValueError, match=f"expected an array {name}, got none"):
        rm.check_certificate(net, tmp_path / "a.npz")


def test_numbers_out_of_range_are_refused(written, changed):
    arrays = written[2]
    for name, value in (
        ("parameters", np.nan), ("parameters", np.inf), ("unit", 99), ("unit", -2), ("parent", -2),
    ):  # fmt: skip
        worse = arrays[name].copy()
        worse[-1] = value
        with pytest.raises(ValueError, match="expected"):
            changed(**{name: worse})
    circle = np.maximum(arrays["parent"], 0)
    with pytest.raises(ValueError, match="parents before their children"):
        changed(parent=circle)


def test_damaged_files_are_refused(written, tmp_path, monkeypatch):
    net, path, arrays = written
    content, broken = path.read_bytes(), tmp_path / "broken.npz"
    for damaged in (b"", content[: len(content) // 2], content[:-9], b"PK" + bytes(99)):
        broken.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"broken\.npz: expected an \.npz file"):
            rm.check_certificate(net, broken)
    np.savez(broken, **{**arrays, "x": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="without objects"):
        rm.check_certificate(net, broken)
    with pytest.raises(FileNotFoundError):
        rm.check_certificate(net, tmp_path / "none.npz")
    rm.save(net, broken)
    with pytest.raises(ValueError, match="expected format 'refmmr-certificate'"):
        rm.check_certificate(net, broken)
    monkeypatch.setattr(certificate_files, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        rm.check_certificate(net, path)


def test_a_proof_too_large_for_a_file_is_named(tmp_path, monkeypatch):
    net, X = CASES["one layer"]
    monkeypatch.setattr(certificate_files, "MAX_BYTES", 100)
    with pytest.warns(UserWarning, match="too many nodes"):
        rm.certify(net, X, None, 2, eps=1e-3, method="bab", certificate=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("outside", [0.25, 1e-6])
def test_multipliers_show_that_a_region_is_outside_of_the_ball(p, outside):
    # Where the unit is inactive, the margin is -0.2 everywhere; on the ball it is active.
    net = rm.Network([rm.Linear([[1.0, 0.0]], [-0.5]), rm.Linear([[2.0], [0.0]], [-0.2, 0])], 2)
    around = ball(np.array([[0.75 + outside, 0.5]]), np.full(1, 0.25), p, (np.zeros(2), np.ones(2)))
    bounds = [(np.array([[-0.5]]), np.array([[0.0]]))]
    magnitudes = layer_magnitudes(net, around, [(np.array([[-0.5]]), np.array([[0.5]]))])
    question = Question(net, around, margin_row(net, 0, 1), magnitudes)
    assert node_bound(question, bounds, np.zeros(1)).minimum(around) < 0
    found = _proofs._dual_parameters(question, bounds)
    assert node_bound(question, bounds, found).minimum(around) > 0
