"""Every stored network is the one of its card, and its certificates hold.

Where there is nothing in ``benchmarks/results/table1`` for a network, it has not been evaluated.
"""

import csv
import functools
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import refmmr as rm

POINTS = Path(__file__).parents[2] / "benchmarks" / "results" / "table1"
NAMES = [name for name in rm.zoo.names() if rm.presets[name].data in ("mnist", "fashion-mnist")]
EVALUATED = [
    (name, points)
    for name in NAMES
    for points in (rm.zoo.card(name).evaluation or {"norms": []}).get("norms", [name])
]
"""Networks, and the files of their points: MMR-Universal has one for each norm."""
NETWORKS = {points: name for name, points in EVALUATED}


@pytest.fixture(autouse=True)
def numba():
    """The reference would take minutes for the convolutional networks."""
    pytest.importorskip("numba")
    with rm.use_backend("numba"):
        yield


@functools.cache
def first_points(name, folder):
    """The first 1000 test points; most networks share a data set."""
    data = rm.datasets.load(name, folder, images=True, dtype=np.float64)
    return data.X_test[:1000].copy(), data.y_test[:1000].copy()


@pytest.fixture
def stored(request, data_folder):
    """The network of this name in float64, its preset, and test points."""
    preset, net = rm.presets[request.param], rm.zoo.load(request.param).astype(np.float64)
    X, y = first_points(preset.data, data_folder)
    return net, preset, X.reshape(-1, *net.input_shape), y


def norm(preset, points):
    """The norm and the radius at which the points of a file were measured."""
    if preset.p is not None:
        return preset.p, preset.eps
    part = rm.zoo.card(NETWORKS[points]).evaluation["norms"][points]
    return float(part["p"]), part["eps"]


def records(points):
    """The points of a file whose radii were measured, with what is proved for each."""
    with gzip.open(POINTS / f"{points}.csv.gz", "rt", newline="") as file:
        measured_on = json.loads(file.readline().removeprefix("# "))
        assert measured_on["sha256"] == rm.zoo.card(NETWORKS[points]).sha256
        rows = [row for row in csv.DictReader(file) if row["region"]]
    radii = [(float(row["region"]), float(row["crown"])) for row in rows]
    certified = np.array([row["certified"] == "1" for row in rows])
    return rows, np.max(radii, axis=1), certified


def spread(indices, count):
    """So many of the indices, at equal steps."""
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]


@pytest.mark.parametrize(("stored", "name"), [(n, n) for n in NAMES], indirect=["stored"])
def test_error(stored, name):
    net, _, X, y = stored
    wrong = net.predict(X) != y
    card = rm.zoo.card(name)
    for points in [points for network, points in EVALUATED if network == name]:
        rows, _, _ = records(points)
        assert wrong[: len(rows)].tolist() == [row["misclassified"] == "1" for row in rows]
    # The card has that of all points: four standard deviations of a sample.
    spread = 4 * np.sqrt(card.test_error * (1 - card.test_error) / 1000)
    assert abs(wrong.mean() - card.test_error) < spread


@pytest.mark.parametrize(("stored", "points"), EVALUATED, indirect=["stored"])
def test_certificates_are_proved_again(stored, points):
    net, preset, X, y = stored
    radius = records(points)[1]
    some = spread(np.flatnonzero(radius), 20)
    p, _ = norm(preset, points)
    again = rm.robust_error(
        net, X[some], y[some], p, eps=radius[some] * (1 - 1e-6), methods=("crown", "region")
    )
    assert again.certified.all()


@pytest.mark.parametrize(("stored", "points"), EVALUATED, indirect=["stored"])
def test_no_attack_is_within_a_certified_radius(stored, points):
    net, preset, X, y = stored
    _, radius, certified = records(points)
    p, at_eps = norm(preset, points)
    radius[certified] = np.maximum(radius[certified], at_eps)
    some = spread(np.flatnonzero(radius), 200)
    # Many points share a radius of the attack: the largest of some that are not beyond their own.
    levels = np.sort([*np.geomspace(radius[some].min(), radius[some].max(), 10), at_eps])
    level = np.searchsorted(levels, radius[some], side="right") - 1
    for j in np.unique(level):
        here = some[level == j]
        eps = levels[j] * (1 - 1e-9)  # no rounded example lies beyond the radius
        Z = rm.pgd(net, X[here], y[here], p, eps=eps, restarts=2)
        assert (net.predict(Z) == y[here]).all()
