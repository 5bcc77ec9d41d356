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
EVALUATED = [name for name in NAMES if rm.zoo.card(name).evaluation]


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


def records(name):
    """The points whose radii were measured, with what is proved for each."""
    with gzip.open(POINTS / f"{name}.csv.gz", "rt", newline="") as file:
        measured_on = json.loads(file.readline().removeprefix("# "))
        assert measured_on["sha256"] == rm.zoo.card(name).sha256
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
    if card.evaluation:
        rows, _, _ = records(name)
        assert wrong[: len(rows)].tolist() == [row["misclassified"] == "1" for row in rows]
    # The card has that of all points: four standard deviations of a sample.
    spread = 4 * np.sqrt(card.test_error * (1 - card.test_error) / 1000)
    assert abs(wrong.mean() - card.test_error) < spread


@pytest.mark.parametrize(("stored", "name"), [(n, n) for n in EVALUATED], indirect=["stored"])
def test_certificates_are_proved_again(stored, name):
    net, preset, X, y = stored
    radius = records(name)[1]
    some = spread(np.flatnonzero(radius), 20)
    again = rm.robust_error(
        net, X[some], y[some], preset.p, eps=radius[some] * (1 - 1e-6), methods=("crown", "region")
    )
    assert again.certified.all()


@pytest.mark.parametrize(("stored", "name"), [(n, n) for n in EVALUATED], indirect=["stored"])
def test_no_attack_is_within_a_certified_radius(stored, name):
    net, preset, X, y = stored
    _, radius, certified = records(name)
    radius[certified] = np.maximum(radius[certified], preset.eps)
    some = spread(np.flatnonzero(radius), 200)
    # Many points share a radius of the attack: the largest of some that are not beyond their own.
    levels = np.sort([*np.geomspace(radius[some].min(), radius[some].max(), 10), preset.eps])
    level = np.searchsorted(levels, radius[some], side="right") - 1
    for j in np.unique(level):
        points = some[level == j]
        eps = levels[j] * (1 - 1e-9)  # no rounded example lies beyond the radius
        Z = rm.pgd(net, X[points], y[points], preset.p, eps=eps, restarts=2)
        assert (net.predict(Z) == y[points]).all()
