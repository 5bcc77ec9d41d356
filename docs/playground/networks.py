"""The networks of the playground: two trainings on two moons, epoch by epoch, and a small one.

``data()`` trains them (a few seconds) and returns what ``playground.js`` reads.  Weights are those
of float32, bit for bit.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

import refmmr as rm

SIZES = (2, 24, 24, 2)
EPOCHS = (0, 1, 2, 3, 5, 8, 12, 18, 26, 38, 55, 75, 100)
FRAME = (-0.1, -0.1, 1.1, 1.1)
SCHEMES: dict[str, dict[str, Any]] = {"plain": {}, "mmr": {"lam": 0.5, "gamma": 0.1}}
SHOWN = 45  # test points of each class in the picture


def data() -> dict[str, Any]:
    """Everything that the playground is given."""
    moons = rm.datasets.load("moons")
    shown = np.concatenate([np.flatnonzero(moons.y_test == label)[:SHOWN] for label in (0, 1)])
    points = np.column_stack([moons.X_test[shown].round(4), moons.y_test[shown]])
    return {
        "frame": FRAME,
        "sizes": SIZES,
        "epochs": EPOCHS,
        "points": points.tolist(),
        "trainings": {scheme: training(scheme, moons) for scheme in SCHEMES},
        "lines": lines(moons),
    }


def training(scheme: str, moons: rm.datasets.Dataset) -> dict[str, Any]:
    """Weights after each of `EPOCHS`, and what they are worth on all test points."""
    start = rm.Network.mlp(SIZES, rng=1).astype("float32")
    nets = {0: start}

    def keep(net: rm.Network, record: dict[str, float]) -> None:
        if record["epoch"] in EPOCHS:
            nets[int(record["epoch"])] = net

    rm.fit(
        start, moons.X_train, moons.y_train, scheme, p=2, epochs=EPOCHS[-1], lr=0.01,
        progress=False, callback=keep, **SCHEMES[scheme],
    )  # fmt: skip
    return {
        "weights": [encode(nets[epoch]) for epoch in EPOCHS],
        "tested": [tested(nets[epoch], moons) for epoch in EPOCHS],
    }


def encode(net: rm.Network) -> str:
    """All weights as base64: W then b of each layer, little-endian float32."""
    arrays = [np.asarray(array, dtype="<f4") for pair in net.parameters for array in pair]
    return base64.b64encode(b"".join(array.tobytes() for array in arrays)).decode()


def tested(net: rm.Network, moons: rm.datasets.Dataset) -> dict[str, float]:
    """Test error, and the mean radius that regions prove in l_2, 0 for misclassified points."""
    proved = rm.certify(net, moons.X_test, moons.y_test, p=2, box=None, progress=False)
    return {
        "error": float((proved.upper == 0).mean()),
        "radius": round(float(proved.lower.mean()), 6),
    }


def lines(moons: rm.datasets.Dataset) -> dict[str, Any]:
    """A network of one hidden layer, each unit as its line.

    A unit is ``v max(0, s (cos t (z_0 - x) + sin t (z_1 - y)))``: a point (x, y) of its line, the
    angle t of its normal, its slope s, and its weight v in the difference of the two logits, to
    which c is added.
    """
    net, _ = rm.fit(
        rm.Network.mlp([2, 6, 2], rng=11), moons.X_train, moons.y_train, epochs=150, lr=0.03,
        progress=False,
    )  # fmt: skip
    (W1, b1), (W2, b2) = net.parameters
    slope = np.linalg.norm(W1, axis=1)
    middle = np.array([0.5, 0.5])
    foot = middle - (W1 @ middle + b1)[:, None] * W1 / slope[:, None] ** 2
    weight = W2[1] - W2[0]
    # The same function with slope and weight of one size.
    size = np.sqrt(slope * np.abs(weight))
    table = np.column_stack([foot, np.arctan2(W1[:, 1], W1[:, 0]), size, np.sign(weight) * size])
    return {"units": table.round(3).tolist(), "c": round(float(b2[1] - b2[0]), 3)}
