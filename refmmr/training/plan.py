"""The plan of a training: its checked arguments, and the schedules that follow from them.

The schedules are those of the authors' released code, as functions of t = epoch / epochs, so that a
short training goes through all of them.  Epochs count from 1, so the last one has t = 1.  Lambda
rises linearly over the first tenth, ``lam min(1, 10 t)``; k_B falls linearly, 10% of the hidden
units at t = 0 and 2% at t = 1 (20% and 5% for MMR-Universal); the learning rate is a tenth from t =
0.9 on.  The radius of the Wong-Kolter bound rises linearly from a tenth of its value to all of it
over the first third, as in their scripts for MNIST (0.01 to 0.1 in 20 epochs of 60): on the whole
ball the bounds of an untrained network are too loose to have a useful gradient.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from refmmr import _validate as check
from refmmr.network import Network
from refmmr.reference.mmr import Regularizer

SCHEMES = ("plain", "at", "mmr", "mmr+at", "mmr-universal", "kw")
BORDERS = ("exact", "full-filter")
NEAREST = ("each", "union")
UNIVERSAL_NORMS = (1, np.inf)
"""The norms of MMR-Universal, in the order of its weights and target distances."""


class Plan:
    """The checked arguments of `fit`, and the schedules."""

    def __init__(
        self, net, X, y, scheme, *, p, eps, lam, gamma, epochs, batch_size, drop_last, lr, rng,
        box, pgd_steps, random_start, k_b_shares, k_d, border, nearest,
    ):  # fmt: skip
        self.scheme = check.check_choice("scheme", scheme, SCHEMES)
        self.adversarial, self.regularized = "at" in self.scheme, "mmr" in self.scheme
        self.bounded, universal = self.scheme == "kw", self.scheme == "mmr-universal"
        X = check.check_inputs(net, X)
        check.check_classes(net)
        self.y = check.check_labels(y, len(X), net.n_classes)
        self.box = None
        if self.adversarial:
            self.box = check.inward(check.check_box(box, X), net.dtype)
        self.X = X.astype(net.dtype)
        self.p = check.check_p(p)
        self.eps = self._needed("eps", eps, self.adversarial or self.bounded)
        self.lam: float | tuple[float, ...]  # a pair for MMR-Universal
        if universal:
            self.lam, self.gamma = self._pair("lam", lam), self._pair("gamma", gamma)
        else:
            self.lam = self._needed("lam", lam, self.regularized)
            self.gamma = tuple(
                self._needed("gamma", one, self.regularized) for one in check.check_gammas(gamma)
            )
        self.border = check.check_choice("border", border, BORDERS)
        self.nearest = check.check_choice("nearest", nearest, NEAREST)
        self.epochs = check.check_count("epochs", epochs, 1)
        self.batch_size = min(check.check_count("batch_size", batch_size, 1), len(X))
        self.drop_last = check.check_flag("drop_last", drop_last)
        self.lr = check.check_number("lr", lr)
        self.seed, self.seed_is_given = check.check_seed(rng)
        self.pgd_steps = check.check_count("pgd_steps", pgd_steps, 1)
        self.random_start = check.check_flag("random_start", random_start)
        usual = (0.2, 0.05) if universal else (0.1, 0.02)
        self.k_b_shares = _check_shares(usual if k_b_shares is None else k_b_shares)
        self.k_d = check.check_count("k_d", net.n_classes if k_d is None else k_d, 1, net.n_classes)
        self.n_hidden = net.n_hidden

    def _needed(self, name: str, value: Any, needed: bool) -> float:
        if not needed:
            return 0.0
        if value is None:
            raise ValueError(f"{name}: expected a number for scheme {self.scheme!r}, got None")
        return check.check_number(name, value)

    def _pair(self, name: str, value: Any) -> tuple[float, ...]:
        """The numbers of MMR-Universal for its norms."""
        is_pair = isinstance(value, (tuple, list)) or np.ndim(value) > 0
        if not (is_pair and len(value) == len(UNIVERSAL_NORMS)):
            raise ValueError(
                f"{name}: expected a pair, for l_1 and for l_inf, for scheme {self.scheme!r}, "
                f"got {value!r}"
            )
        return tuple(check.check_number(name, one) for one in value)

    @property
    def left_out(self) -> int:
        """Number of samples that an epoch leaves out, because they fill no batch."""
        return len(self.X) % self.batch_size if self.drop_last else 0

    @property
    def batches(self) -> int:
        """Number of batches of an epoch."""
        return -(-(len(self.X) - self.left_out) // self.batch_size)

    def schedules(self, epoch: int) -> dict[str, float]:
        """Learning rate, lambda and k_B of an epoch, from 1; for "kw" also the radius.

        Of MMR-Universal, which has two, the share of both lambdas.
        """
        t = epoch / self.epochs
        first, last = self.k_b_shares
        values = {
            "lr": self.lr if t < 0.9 else self.lr / 10,
            "lam": (1.0 if isinstance(self.lam, tuple) else self.lam) * min(1.0, 10 * t),
            "k_b": max(1, int((first * (1 - t) + last * t) * self.n_hidden)),
        }
        if self.bounded:
            values["eps"] = self.eps * min(1.0, 0.1 + 2.7 * (epoch - 1) / self.epochs)
        return values

    def terms(self, scheduled: dict[str, float]) -> tuple[Regularizer, ...]:
        """The regularizers of the objective, with the scheduled values of an epoch."""
        if not self.regularized:
            return ()
        lam, k_b = scheduled["lam"], int(scheduled["k_b"])
        if isinstance(self.lam, tuple):
            return tuple(
                Regularizer(p, lam * weight, gamma, gamma, k_b, self.k_d)
                for p, weight, gamma in zip(UNIVERSAL_NORMS, self.lam, self.gamma, strict=True)
            )
        gamma_b, gamma_d = self.gamma
        return (Regularizer(self.p, lam, gamma_b, gamma_d, k_b, self.k_d),)

    def fingerprint(self, net: Network, validated: bool) -> str:
        """A digest of everything that determines the weights and the recorded columns."""
        values = [self.scheme, self.p, self.eps, self.lam, self.gamma, self.epochs, self.batch_size]
        values += [self.lr, self.seed if self.seed_is_given else None, self.pgd_steps]
        values += [self.k_b_shares, self.k_d, repr(net), validated]
        values += [self.drop_last, self.random_start and self.adversarial]
        # The defaults leave no trace: checkpoints from before these options are valid.
        if self.border != BORDERS[0] or self.nearest != NEAREST[0]:
            values += [self.border, self.nearest]
        digest = hashlib.sha256(json.dumps(values).encode())
        for array in (
            self.X,
            self.y,
            *(self.box or ()),
            *(a for pair in net.parameters for a in pair),
        ):
            digest.update(np.ascontiguousarray(check.on_host(array)).tobytes())
        return digest.hexdigest()


def _check_shares(shares: Any) -> tuple[float, float]:
    if not (isinstance(shares, (tuple, list, np.ndarray)) and len(shares) == 2):
        raise ValueError(f"k_b_shares: expected two shares of the hidden units, got {shares!r}")
    first, last = (check.check_number("k_b_shares", share) for share in shares)
    if max(first, last) > 1:
        raise ValueError(
            f"k_b_shares: expected two shares of the hidden units up to 1, got {shares!r}"
        )
    return first, last
