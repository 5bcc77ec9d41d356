"""The settings of every row of the paper's table (Croce, Andriushchenko, Hein 2019, Table 1).

``rm.presets["mnist-cnn-linf-mmr+at"]`` is a `Preset`; its name says data set, network, norm and
scheme.  The values of lambda, gamma and the learning rate are those in the file names of the
authors' released models.  ``"mnist-cnn-universal"`` and ``"fmnist-cnn-universal"`` are
MMR-Universal (Croce, Hein 2020), from the file names of the models released with it; the command in
the README there has a gamma_inf of 0.15 for MNIST, the model 0.175.
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
    scheme : {"plain", "at", "kw", "mmr", "mmr+at", "mmr-universal"}
        "kw" rows train on the exact bound of Wong and Kolter (2018), not on the estimate by random
        projections of Wong, Schmidt, Metzen and Kolter (2018), which is for wider networks.
    p : {2, inf} or None
        None for MMR-Universal, which has norms of its own.
    eps : float or None
        Radius of the row's robust error, of the adversarial examples and of the ball of "kw", in
        units of an input in [0, 1]; None for MMR-Universal.
    lam, gamma : float, (float, float) or None
        Weight of the regularizer, and the distance to reach; for MMR-Universal those in l_1 and in
        l_inf, None for schemes without it.
    lr : float
        Learning rate of Adam.
    epochs : int
    pgd_steps : int
        Steps of the attack for the adversarial examples of "at" and "mmr+at".
    """

    data: str
    network: str
    scheme: str
    p: float | None
    eps: float | None
    lam: float | tuple[float, float] | None = None
    gamma: float | tuple[float, float] | None = None
    lr: float = 1e-3
    epochs: int = 100
    pgd_steps: int = 40

    def options(self) -> dict[str, Any]:
        """The arguments of `refmmr.fit`."""
        options: dict[str, Any] = {"scheme": self.scheme, "lr": self.lr, "epochs": self.epochs}
        if self.p is not None:
            options["p"] = self.p
        if self.scheme in ("at", "mmr+at", "kw"):
            options["eps"] = self.eps
        if self.scheme in ("at", "mmr+at"):
            options["pgd_steps"] = self.pgd_steps
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
    "mnist": ("mnist", {"linf": 0.1, "l2": 0.3}, 40),
    "fmnist": ("fashion-mnist", {"linf": 0.1, "l2": 0.3}, 40),
    "gts": ("gtsrb", {"linf": 4 / 255, "l2": 0.2}, 7),
    "cifar10": ("cifar10", {"linf": 2 / 255, "l2": 0.1}, 7),
}
"""Name of the data set, the radius for each norm, and the steps of the attack in training."""

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

UNIVERSAL = {
    "mnist": ((3.0, 12.0), (1.0, 0.175), 5e-4),
    "fmnist": ((3.0, 40.0), (1.0, 0.15), 5e-4),
}
"""Lambda and gamma in l_1 and in l_inf, and the learning rate, of "mmr-universal"."""


def _rows() -> dict[str, Preset]:
    rows = {}
    for block, settings in MMR.items():
        short, network, norm = block.split("-")
        data, radii, pgd_steps = DATA[short]
        row = Preset(data, network, "plain", NORMS[norm], radii[norm], pgd_steps=pgd_steps)
        for scheme in ("plain", "at", "kw"):
            rows[f"{block}-{scheme}"] = row._replace(scheme=scheme)
        for scheme, (lam, gamma, lr) in zip(("mmr", "mmr+at"), settings, strict=True):
            rows[f"{block}-{scheme}"] = row._replace(scheme=scheme, lam=lam, gamma=gamma, lr=lr)
    for short, pairs in UNIVERSAL.items():
        data, _, _ = DATA[short]
        row = Preset(data, "cnn", "mmr-universal", None, None, *pairs)
        rows[f"{short}-cnn-universal"] = row
    # The file name of the authors' model says that it was trained for half as long.
    half = "mnist-cnn-l2-mmr+at"
    return rows | {half: rows[half]._replace(epochs=50)}


presets: Mapping[str, Preset] = MappingProxyType(_rows())
"""All rows, by name."""
