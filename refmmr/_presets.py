"""The settings of every row of the paper's table (Croce, Andriushchenko, Hein 2019, Table 1).

``rm.presets["mnist-cnn-linf-mmr+at"]`` is a `Preset`; its name says data set, network, norm and
scheme.  The values of lambda, gamma and the learning rate are those in the file names of the
authors' released models.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from refmmr.network import Network

__all__ = ["Preset", "presets"]


class Preset(NamedTuple):
    """The settings of one row.

    Attributes
    ----------
    data : str
        Name of the data set for `refmmr.datasets.load`.
    network : {"fc1", "cnn"}
        The paper's 784-1024-K (or d-1024-K), or its convolutional network.
    scheme : {"plain", "at", "kw", "mmr", "mmr+at"}
    p : {2, inf}
    eps : float
        Radius of the row's robust error, of the adversarial examples and of the ball of "kw", in
        units of an input in [0, 1].
    lam, gamma : float or None
        Weight of the regularizer, and the distance to reach; None for schemes without it.
    lr : float
        Learning rate of Adam.
    epochs : int
    """

    data: str
    network: str
    scheme: str
    p: float
    eps: float
    lam: float | None = None
    gamma: float | None = None
    lr: float = 1e-3
    epochs: int = 100

    def options(self) -> dict[str, Any]:
        """The arguments of `refmmr.fit`."""
        options: dict[str, Any] = {
            "scheme": self.scheme, "p": self.p, "lr": self.lr, "epochs": self.epochs
        }  # fmt: skip
        if self.scheme in ("at", "mmr+at", "kw"):
            options["eps"] = self.eps
        if "mmr" in self.scheme:
            options |= {"lam": self.lam, "gamma": self.gamma}
        return options

    def new_network(
        self, input_shape: tuple[int, ...], n_classes: int, rng: int | np.random.Generator = 0
    ) -> Network:
        """An untrained network in float32, as the authors trained."""
        if self.network == "fc1":
            net = Network.mlp([int(np.prod(input_shape)), 1024, n_classes], rng=rng)
        else:
            channels, height, width = input_shape
            net = Network.lenet_small((channels, height, width), n_classes, rng=rng)
        return net.astype(np.float32)


NORMS = {"linf": np.inf, "l2": 2}
DATA = {
    "mnist": ("mnist", {"linf": 0.1, "l2": 0.3}),
    "fmnist": ("fashion-mnist", {"linf": 0.1, "l2": 0.3}),
    "gts": ("gtsrb", {"linf": 4 / 255, "l2": 0.2}),
    "cifar10": ("cifar10", {"linf": 2 / 255, "l2": 0.1}),
}
"""Name of the data set, and the radius for each norm."""

MMR = {
    "mnist-fc1-linf": ((2, 0.1, 1e-3), (1, 0.1, 1e-3)),
    "mnist-fc1-l2": ((1.5, 0.6, 1e-4), (0.5, 0.45, 5e-5)),
    "mnist-cnn-linf": ((1, 0.2, 1e-3), (0.5, 0.2, 1e-3)),
    "mnist-cnn-l2": ((3, 0.45, 1e-4), (6, 0.45, 5e-5)),
    "fmnist-fc1-linf": ((6, 0.2, 1e-3), (1, 0.15, 1e-3)),
    "fmnist-fc1-l2": ((10, 0.45, 1e-4), (0.5, 0.45, 5e-5)),
    "fmnist-cnn-linf": ((4, 0.2, 1e-3), (2, 0.15, 1e-3)),
    "fmnist-cnn-l2": ((3, 0.45, 1e-4), (1.5, 0.45, 5e-5)),
    "gts-fc1-linf": ((10, 8 / 255, 1e-3), (4, 6 / 255, 1e-3)),
    "gts-fc1-l2": ((16, 0.4, 1e-3), (1, 0.3, 1e-3)),
    "gts-cnn-linf": ((4, 6 / 255, 1e-3), (1, 6 / 255, 1e-3)),
    "gts-cnn-l2": ((10, 0.3, 1e-3), (6, 0.3, 1e-3)),
    "cifar10-cnn-linf": ((1, 3 / 255, 1e-3), (0.1, 3 / 255, 1e-3)),
    "cifar10-cnn-l2": ((1.5, 0.2, 1e-3), (0.5, 0.15, 1e-3)),
}
"""(lambda, gamma_B = gamma_D, learning rate) of "mmr" and of "mmr+at"."""


def _rows() -> dict[str, Preset]:
    rows = {}
    for block, settings in MMR.items():
        short, network, norm = block.split("-")
        data, radii = DATA[short]
        row = Preset(data, network, "plain", NORMS[norm], radii[norm])
        for scheme in ("plain", "at", "kw"):
            rows[f"{block}-{scheme}"] = row._replace(scheme=scheme)
        for scheme, (lam, gamma, lr) in zip(("mmr", "mmr+at"), settings, strict=True):
            rows[f"{block}-{scheme}"] = row._replace(scheme=scheme, lam=lam, gamma=gamma, lr=lr)
    # The file name of the authors' model says that it was trained for half as long.
    half = "mnist-cnn-l2-mmr+at"
    return rows | {half: rows[half]._replace(epochs=50)}


presets: Mapping[str, Preset] = MappingProxyType(_rows())
"""All rows, by name."""
