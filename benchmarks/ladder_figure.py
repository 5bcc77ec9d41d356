"""Draw what every method proves about one test image: ``docs/images/ladder.png``.

A network with two hidden layers, trained adversarially on digits: the image's own linear region
certifies a small radius, each more expensive method a larger one.  All in l_inf, in the box of the
images.
"""

from __future__ import annotations

from pathlib import Path

import _command
import matplotlib as mpl
import numpy as np

import refmmr as rm
from refmmr import demo, plot
from refmmr.attacks import minimal_attack

POINT = 8
SIZES = (64, 48, 48, 10)
METHODS = ("region", "ibp", "fast-lin", "crown", "lp", "mip")
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "ladder.png"


def main() -> None:
    """Train, certify one image with all methods, draw."""
    _command.parser(__doc__).parse_args()
    mpl.use("Agg")
    data = rm.datasets.load("digits")
    net, _ = rm.fit(
        rm.Network.mlp(SIZES, rng=demo.SEED), data.X_train, data.y_train, "at",
        **demo.TRAINING,
    )  # fmt: skip
    X, y = data.X_test[[POINT]], data.y_test[[POINT]]
    Z, distance = minimal_attack(net, X, y, np.inf)
    certificates = {method: rm.certify(net, X, y, np.inf, method=method) for method in METHODS}
    figure = plot.ladder(
        certificates, attack=float(distance[0]), adversarial=Z[0], x=X[0].reshape(8, 8)
    )
    for method, found in certificates.items():
        print(f"{method:<9} {found.lower[0]:.5f} {found.upper[0]:.5f}")
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    main()
