"""Training: Adam on the cross-entropy, with MMR and with adversarial examples in the batch.

Or, to compare with: Adam on the bound of Wong and Kolter, the cross-entropy of the worst case.

The schedules are those of the authors' released code, written as fractions of the training so that
a short one goes through all of them: lambda rises linearly from a tenth of its value to all of it
over the first tenth, k_B falls linearly from 10% to 2% of the hidden units, and the learning rate
drops to a tenth for the last tenth.  The radius of the Wong-Kolter bound rises linearly from a
tenth of its value to all of it over the first third, as in their scripts for MNIST (0.01 to 0.1 in
20 epochs of 60): on the whole ball the bounds of an untrained network say nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from refmmr import _files, _kernels, backends
from refmmr import _validate as check
from refmmr._backend import get_backend, use_backend
from refmmr._optional import require
from refmmr.network import Network
from refmmr.reference import adam as _adam

__all__ = ["SCHEMES", "History", "fit"]

SCHEMES = ("plain", "at", "mmr", "mmr+at", "kw")


class History:
    """What happened in each epoch of a training.

    Returned by `fit`.

    Attributes
    ----------
    records : list of dict
        One per epoch: ``epoch``, ``loss`` (what was minimised), ``cross_entropy`` (for "kw" that of
        the worst case), ``mmr`` (not yet multiplied by lambda), ``train_error`` (on the batches as
        they were trained on), ``validation_error``, ``lr``, ``lam``, ``k_b``, ``seconds``; for "kw"
        also ``robust_error`` (share of the samples not proved right on their balls) and ``eps``
        (the radius of these balls).
    interrupted : bool
        Whether the training was stopped by hand before its last epoch.
    """

    def __init__(self, records: list[dict[str, float]] | None = None) -> None:
        self.records = records or []
        self.interrupted = False

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, column: str) -> np.ndarray:
        """One column, shape (epochs,)."""
        return np.array([record[column] for record in self.records])

    def to_frame(self) -> Any:
        """The records as a pandas DataFrame, one row an epoch."""
        pandas = require("pandas", "to_frame")
        return pandas.DataFrame(self.records).set_index("epoch")

    def _repr_html_(self) -> str:
        from refmmr.display import html

        return html.history(self)

    def __repr__(self) -> str:
        if not self.records:
            return "History(no epochs)"
        last = ", ".join(f"{key}={value:.4g}" for key, value in self.records[-1].items())
        return f"History({len(self)} epochs; last: {last})"


def fit(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    scheme: str = "plain",
    *,
    p: float | str = 2,
    eps: float | None = None,
    lam: float | None = None,
    gamma: float | tuple[float, float] | None = None,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    rng: int = 0,
    box: Any = (0, 1),
    pgd_steps: int = 40,
    k_b_shares: tuple[float, float] = (0.1, 0.02),
    k_d: int | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> tuple[Network, History]:
    """Train a network.

    Parameters
    ----------
    net : Network
        Where to start; it is not changed.  Its dtype is the dtype of the training.
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
    scheme : {"plain", "at", "mmr", "mmr+at", "kw"}
        Cross-entropy alone; with the first half of each batch replaced by PGD examples; plus
        ``lam * MMR``; both.  "kw" is the method of Wong and Kolter: the cross-entropy of the
        worst-case margins on the ball of radius ``eps``, bounded by their linear relaxation.
    p : {1, 2, inf}
        Norm of the distances, of the adversarial examples and of the ball of "kw".
    eps : float
        Radius of the adversarial examples, for "at" and "mmr+at"; of the ball, for "kw", where it
        grows over the first third of the training.
    lam : float
        Weight of the regularizer, for "mmr" and "mmr+at".
    gamma : float or (gamma_b, gamma_d)
        Distances that are to be reached, for "mmr" and "mmr+at".
    epochs, batch_size : int
        An epoch is as many full batches of shuffled samples as there are.
    lr : float
        Learning rate of Adam; a tenth of it for the last tenth of the epochs.
    rng : int
        Order of the samples.  The same seed gives the same weights.
    box : (lo, hi) or None
        Where adversarial examples must stay.  The ball of "kw" is whole: no box cuts it.
    pgd_steps : int
        Steps of size ``2 * eps / pgd_steps`` for the adversarial examples.
    k_b_shares : (float, float)
        Share of the hidden units whose boundaries count, in the first and after the last epoch.
    k_d : int, optional
        How many decision boundaries count; all K if not given.
    validation : (X, y), optional
        Its error is recorded after every epoch.
    checkpoint : path-like, optional
        An ``.npz`` file, written after every epoch.  If it is there already, the training goes on
        from it, to the same weights as without the interruption.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    net : Network
        The trained network.
    history : History
        One record per epoch.

    Raises
    ------
    ValueError, TypeError
        For arguments that cannot be, also for a checkpoint of a training with other arguments.
    FloatingPointError
        When the loss is no longer finite.

    Warns
    -----
    UserWarning
        When stopped by Ctrl-C: the result is the network after its last full epoch.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): training with MMR and MMR+at; schedules as in their code.
    Wong, Kolter (2018), "Provable defenses against adversarial examples via the convex outer
    adversarial polytope": "kw".

    Examples
    --------
    >>> import refmmr as rm
    >>> data = rm.datasets.load("moons")
    >>> net = rm.Network.mlp([2, 16, 2], rng=0)
    >>> net, history = rm.fit(net, data.X_train, data.y_train, "mmr", p=2, lam=0.5, gamma=0.1,
    ...                       epochs=2)
    >>> len(history)
    2
    """
    plan = _Plan(
        net, X, y, scheme, p=p, eps=eps, lam=lam, gamma=gamma, epochs=epochs,
        batch_size=batch_size, lr=lr, rng=rng, box=box, pgd_steps=pgd_steps, k_b_shares=k_b_shares,
        k_d=k_d,
    )  # fmt: skip
    if validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) != 2:
            raise TypeError(f"validation: expected a pair (X, y), got {validation!r}")
        X_val = check.check_inputs(net, validation[0], "validation X")
        y_val = check.check_labels(validation[1], len(X_val), net.n_classes, "validation y")
        validation = X_val, y_val
    run = _Run(net, plan, checkpoint, validated=validation is not None)
    bar = tqdm(
        total=plan.epochs * plan.batches,
        initial=len(run.history) * plan.batches,
        desc=scheme,
        unit="batch",
        disable=None if progress is None else not progress,
    )
    with bar:
        try:
            while len(run.history) < plan.epochs:
                run.epoch(validation, bar.update)
                bar.set_postfix(loss=f"{run.history.records[-1]['loss']:.4f}")
        except KeyboardInterrupt:
            run.keep()
            run.history.interrupted = True
            warnings.warn(
                f"training stopped by hand after {len(run.history)} of {plan.epochs} epochs",
                stacklevel=2,
            )
    return run.network(), run.history


class _Plan:
    """The checked arguments of `fit`, and what they say for each epoch."""

    def __init__(
        self, net, X, y, scheme, *, p, eps, lam, gamma, epochs, batch_size, lr, rng, box,
        pgd_steps, k_b_shares, k_d,
    ):  # fmt: skip
        self.scheme = check.check_choice("scheme", scheme, SCHEMES)
        self.adversarial, self.regularized = "at" in self.scheme, "mmr" in self.scheme
        self.bounded = self.scheme == "kw"
        if self.bounded and get_backend() == "cupy":
            raise NotImplementedError('scheme: "kw" does not run on the backend cupy')
        X = check.check_inputs(net, X)
        self.y = check.check_labels(y, len(X), net.n_classes)
        self.box = None
        if self.adversarial:
            self.box = check.inward(check.check_box(box, X), net.dtype)
        self.X = X.astype(net.dtype)
        self.p = check.check_p(p)
        self.eps = _needed("eps", eps, self.adversarial or self.bounded, scheme)
        self.lam = _needed("lam", lam, self.regularized, scheme)
        pair = gamma if isinstance(gamma, (tuple, list)) else (gamma, gamma)
        if len(pair) != 2:
            raise ValueError(f"gamma: expected a number or (gamma_b, gamma_d), got {gamma!r}")
        self.gamma = tuple(_needed("gamma", side, self.regularized, scheme) for side in pair)
        self.epochs = check.check_count("epochs", epochs, 1)
        self.batch_size = min(check.check_count("batch_size", batch_size, 1), len(X))
        self.batches = len(X) // self.batch_size
        self.lr = check.check_number("lr", lr)
        self.seed = check.check_count("rng", rng, 0)
        self.pgd_steps = check.check_count("pgd_steps", pgd_steps, 1)
        if not (isinstance(k_b_shares, (tuple, list)) and len(k_b_shares) == 2):
            raise ValueError(
                f"k_b_shares: expected two shares of the hidden units, got {k_b_shares!r}"
            )
        self.k_b = tuple(check.check_number("k_b_shares", share) for share in k_b_shares)
        if max(self.k_b) > 1:
            raise ValueError(
                f"k_b_shares: expected two shares of the hidden units up to 1, got {k_b_shares!r}"
            )
        self.k_d = check.check_count("k_d", net.n_classes if k_d is None else k_d, 1, net.n_classes)
        self.n_hidden = net.n_hidden

    def settings(self, epoch: int) -> dict[str, float]:
        """Learning rate, lambda and k_B of an epoch; with Wong-Kolter bounds also the radius."""
        done = epoch / self.epochs
        first, last = self.k_b
        settings = {
            "lr": self.lr if done < 0.9 else self.lr / 10,
            "lam": self.lam * (0.1 + 0.9 * min(1.0, 10 * done)),
            "k_b": max(1, int((first + (last - first) * done) * self.n_hidden)),
        }
        if self.bounded:
            settings["eps"] = self.eps * min(1.0, 0.1 + 2.7 * done)
        return settings

    def fingerprint(self, net: Network, validated: bool) -> str:
        """Changes with anything that changes the weights, or the columns, of some epoch."""
        said = [self.scheme, self.p, self.eps, self.lam, self.gamma, self.epochs, self.batch_size]
        said += [self.lr, self.seed, self.pgd_steps, self.k_b, self.k_d, repr(net), validated]
        digest = hashlib.sha256(json.dumps(said).encode())
        for array in (
            self.X,
            self.y,
            *(self.box or ()),
            *(a for pair in net.parameters for a in pair),
        ):
            digest.update(np.ascontiguousarray(check.on_host(array)).tobytes())
        return digest.hexdigest()


def _needed(name: str, value: Any, needed: bool, scheme: str) -> float:
    if not needed:
        return 0.0
    if value is None:
        raise ValueError(f"{name}: expected a number for scheme {scheme!r}, got None")
    return check.check_number(name, value)


class _Run:
    """A training in progress: the network, the optimiser and the history, as of the last epoch."""

    FORMAT = "refmmr-checkpoint"
    VERSION = 1

    def __init__(
        self,
        net: Network,
        plan: _Plan,
        checkpoint: str | os.PathLike[str] | None,
        validated: bool,
    ) -> None:
        self.plan, self.history = plan, History()
        self.path = None if checkpoint is None else _files.npz_path(checkpoint)
        self.start = net
        # All of the training happens where the backend computes.
        self.backend = get_backend()
        self.put, self.get = backends.transfer(self.backend)
        self.X, self.y = self.put(plan.X), self.put(plan.y)
        self.box = plan.box and tuple(self.put(side) for side in plan.box)
        # A copy of the weights, where the backend computes, without the checks of `Network`.
        self.working = net.map(lambda array: self.put(array.copy(order="C")))
        self.adam = _adam.Adam(self.working.parameters)
        self.fingerprint = plan.fingerprint(net, validated) if self.path else ""
        if self.path and self.path.exists():
            self._resume(self.path)

    def epoch(
        self,
        validation: tuple[np.ndarray, np.ndarray] | None,
        tick: Callable[[int], Any],
    ) -> None:
        """Train for one epoch; either all of it counts or nothing."""
        epochs, before = len(self.history), self._state()
        try:
            # Whatever other threads choose meanwhile: the arrays are where this backend wants them.
            with use_backend(self.backend):
                self.history.records.append(self._train(validation, tick))
        except KeyboardInterrupt:
            self._restore(before)
            del self.history.records[epochs:]
            raise
        self.keep()

    def _train(self, validation, tick):
        """Go through all batches once; returns the record of the epoch."""
        start, epoch = time.perf_counter(), len(self.history)
        settings = self.plan.settings(epoch)
        sums = np.zeros(4)
        for rows in self._order(epoch):
            sums += self._batch(rows, settings)
            tick(1)
        # The loss of a batch tells of the step before it; the last step has no batch behind it.
        if not all(np.isfinite(array).all() for array in self.adam.arrays):
            raise FloatingPointError(
                f"training diverged in epoch {epoch + 1}: infinite weights; a smaller lr may help"
            )
        cross_entropy, mmr, error, robust_error = (sums / self.plan.batches).tolist()
        record = {
            "epoch": epoch + 1,
            "loss": cross_entropy + settings["lam"] * mmr,
            "cross_entropy": cross_entropy,
            "mmr": mmr,
            "train_error": error,
            **settings,
        }
        if self.plan.bounded:
            record["robust_error"] = robust_error
        if validation is not None:
            X_val, y_val = (self.put(part) for part in validation)
            record["validation_error"] = self._error(X_val, y_val)
        record["seconds"] = time.perf_counter() - start
        return record

    def keep(self) -> None:
        """Write the state after the last full epoch to the checkpoint."""
        if self.path and len(self.history):
            self._write(self.path)

    def _order(self, epoch: int) -> Iterator[np.ndarray]:
        """Shuffled batches; each epoch has its own seed, so a resumed training needs no memory."""
        order = np.random.default_rng([self.plan.seed, epoch]).permutation(len(self.plan.X))
        size = self.plan.batch_size
        return (order[i * size : (i + 1) * size] for i in range(self.plan.batches))

    def _batch(self, rows: np.ndarray, settings: dict[str, float]) -> np.ndarray:
        """One step; returns cross-entropy, MMR, error and robust error of the batch."""
        plan, rows = self.plan, self.put(rows)
        X, y = self.X[rows], self.y[rows]
        if plan.adversarial:
            some = slice((len(X) + 1) // 2)
            X[some] = _kernels.pgd(
                self.working, X[some], y[some], plan.p, plan.eps, plan.pgd_steps,
                2 * plan.eps / plan.pgd_steps, self.box, X[some], True,
            )  # fmt: skip
        error = self._error(X, y)
        mmr = robust_error = 0.0
        if plan.bounded:
            cross_entropy, robust_error, gradients = _kernels.robust_loss_gradient(
                self.working, X, y, plan.p, settings["eps"]
            )
        else:
            cross_entropy, gradients = _kernels.loss_gradient(self.working, X, y)
        if plan.regularized:
            k_b, lam = int(settings["k_b"]), settings["lam"]
            gamma_b, gamma_d = plan.gamma
            mmr, more = _kernels.mmr_gradient(
                self.working, X, y, plan.p, gamma_b, gamma_d, k_b, plan.k_d
            )
            gradients = [
                (dW + lam * more_W, db + lam * more_b)
                for (dW, db), (more_W, more_b) in zip(gradients, more, strict=True)
            ]
        if not np.isfinite(cross_entropy + mmr):
            raise FloatingPointError(
                f"training diverged in epoch {len(self.history) + 1}: cross-entropy "
                f"{cross_entropy}, MMR {mmr}; a smaller lr may help"
            )
        adam = self.adam
        _kernels.adam_update(
            adam.arrays, adam.means, adam.squares, _adam.flat(gradients),
            adam.next_scale(settings["lr"]),
        )  # fmt: skip
        return np.array([cross_entropy, mmr, error, robust_error])

    def _error(self, X: np.ndarray, y: np.ndarray) -> float:
        return float((_kernels.logits(self.working, X).argmax(axis=1) != y).mean())

    def network(self) -> Network:
        """The network as it is now."""
        return self.start.with_parameters(
            [(self.get(W), self.get(b)) for W, b in self.working.parameters]
        )

    def _arrays(self) -> list[np.ndarray]:
        return [*self.adam.arrays, *self.adam.means, *self.adam.squares]

    def _state(self) -> tuple[list[np.ndarray], int]:
        return [array.copy() for array in self._arrays()], self.adam.steps

    def _restore(self, state: tuple[list[np.ndarray], int]) -> None:
        saved, self.adam.steps = state
        for array, value in zip(self._arrays(), saved, strict=True):
            array[...] = self.put(value)

    def _write(self, path: Path) -> None:
        arrays = {f"array{i}": self.get(array) for i, array in enumerate(self._arrays())}
        header = {
            "format": self.FORMAT,
            "version": self.VERSION,
            "fingerprint": self.fingerprint,
            "steps": self.adam.steps,
            "history": json.dumps(self.history.records),
        }
        _files.write_npz(path, {**header, **arrays})

    def _resume(self, path: Path) -> None:
        found = _files.read_npz(path, self.FORMAT, self.VERSION)
        if str(found.get("fingerprint")) != self.fingerprint:
            raise ValueError(
                f"checkpoint: expected a training with the same data, network and arguments, got "
                f"another one in {path}; remove it or name another file"
            )
        try:
            saved = [found[f"array{i}"] for i in range(len(self._arrays()))]
            self._restore((saved, int(found["steps"])))
            self.history = History([dict(record) for record in json.loads(str(found["history"]))])
        # What is in the file can be of any kind, and fail in as many ways.
        except Exception as error:
            raise ValueError(f"checkpoint: {path} is damaged ({error})") from error
