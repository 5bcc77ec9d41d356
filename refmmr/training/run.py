"""A training in progress: batches, steps of Adam, and checkpoints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refmmr import _files, _kernels, backends
from refmmr._backend import get_backend, use_backend
from refmmr.network import Network
from refmmr.reference import adam as _adam
from refmmr.reference.pgd import displaced, random_displacement
from refmmr.training.history import History
from refmmr.training.plan import Plan

BATCHES_AHEAD = 16
"""Batches after which values on a device are fetched, at most: each time the host waits for it."""


class Values(NamedTuple):
    """What a batch leaves for the record; on a device they need not be ready yet."""

    samples: int
    cross_entropy: Any  # mean
    mmr: Any  # mean, times lambda
    wrong: Any  # number of misclassified samples
    robust_error: Any  # mean


class Snapshot(NamedTuple):
    """The state after the last full epoch, as copies: what is returned and written."""

    arrays: list[Any]  # weights and biases, then their means and squares of Adam
    steps: int  # of Adam
    epochs: int


class Run:
    """A training in progress: the network, the optimiser and the history.

    An interruption may come at any point, and a second one while the first is dealt with.  So
    nothing is undone: `last` is replaced by one assignment when an epoch is complete, and all
    results are taken from it.
    """

    FORMAT = "refmmr-checkpoint"
    VERSION = 2  # 1: schedules that count epochs from 0, no random start

    def __init__(
        self,
        net: Network,
        plan: Plan,
        checkpoint: str | os.PathLike[str] | None,
        validated: bool,
    ) -> None:
        self.plan, self.history, self.seed = plan, History(), plan.seed
        self.path = None if checkpoint is None else _files.npz_path(checkpoint)
        self.start = net
        # All arrays of the training live on the device of the backend.
        self.backend = get_backend()
        self.put, self.get = backends.transfer(self.backend)
        self.batches_ahead = BATCHES_AHEAD if self.backend == "cupy" else 1
        self.X, self.y = self.put(plan.X), self.put(plan.y)
        self.box = plan.box and tuple(self.put(limit) for limit in plan.box)
        # A copy of the weights; `map` skips the checks of `Network`, which need arrays on the host.
        self.working = net.map(lambda array: self.put(array.copy(order="C")))
        self.adam = _adam.Adam(self.working.parameters)
        self.fingerprint = plan.fingerprint(net, validated) if self.path else ""
        if self.path and self.path.exists():
            self._resume(self.path)
        self.last = self._snapshot()

    def epoch(
        self,
        validation: tuple[np.ndarray, np.ndarray] | None,
        tick: Callable[[int], Any],
    ) -> None:
        """Train for one epoch, and write it to the checkpoint."""
        # Another thread may switch the backend meanwhile, but the arrays belong to this one.
        with use_backend(self.backend):
            self.history.records.append(self._train(validation, tick))
        self.last = self._snapshot()
        self.keep()

    def end(self) -> None:
        """End an interrupted training: forget the epoch that is not complete."""
        del self.history.records[self.last.epochs :]
        self.keep()

    def _train(self, validation, tick):
        """Go through all batches once; returns the record of the epoch."""
        start, epoch, plan = time.perf_counter(), len(self.history), self.plan
        scheduled = plan.schedules(epoch + 1)
        ahead: list[Values] = []
        sums, samples = np.zeros(4), 0
        for number, rows in enumerate(self._order(epoch)):
            ahead.append(self._batch(rows, scheduled, (epoch, number)))
            samples += len(rows)
            tick(1)
            if len(ahead) == self.batches_ahead:
                sums += self._fetch(ahead)
                ahead = []
        sums += self._fetch(ahead)
        # The loss of each batch checks the step before it; this checks the last step.
        if not all(np.isfinite(array).all() for array in self.adam.arrays):
            raise FloatingPointError(
                f"training diverged in epoch {epoch + 1}: infinite weights; a smaller lr may help"
            )
        cross_entropy, mmr, error, robust_error = (sums / samples).tolist()
        record = {
            "epoch": epoch + 1,
            "loss": cross_entropy + mmr,
            "cross_entropy": cross_entropy,
            "mmr": mmr / scheduled["lam"] if plan.regularized else 0.0,
            "train_error": error,
            **scheduled,
        }
        if plan.bounded:
            record["robust_error"] = robust_error
        if validation is not None:
            X_val, y_val = (self.put(part) for part in validation)
            record["validation_error"] = self._error(X_val, y_val)
        record["seconds"] = time.perf_counter() - start
        return record

    def keep(self) -> None:
        """Write the state after the last full epoch to the checkpoint."""
        if self.path and self.last.epochs:
            self._write(self.path)

    def _order(self, epoch: int) -> Iterator[np.ndarray]:
        """Rows of each batch.  Each epoch has its own seed: a resumed training needs no state."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.plan.X))
        size = self.plan.batch_size
        return (order[i * size : (i + 1) * size] for i in range(self.plan.batches))

    def _batch(
        self, rows: np.ndarray, scheduled: dict[str, float], place: tuple[int, int]
    ) -> Values:
        """One step.

        `place` is the number of the epoch and of the batch in it.
        """
        plan, rows = self.plan, self.put(rows)
        X, y = self.X[rows], self.y[rows]
        if plan.adversarial:
            half = slice((len(X) + 1) // 2)
            X[half] = _kernels.pgd(
                self.working, X[half], y[half], plan.p, plan.eps, plan.pgd_steps,
                2 * plan.eps / plan.pgd_steps, self.box, self._starts(X[half], place), True,
            )  # fmt: skip
        if plan.bounded:
            wrong = len(X) * self._error(X, y)
            cross_entropy, robust_error, gradients = _kernels.robust_loss_gradient(
                self.working, X, y, plan.p, scheduled["eps"]
            )
            values = Values(len(X), cross_entropy, 0.0, wrong, robust_error)
        else:
            cross_entropy, mmr, wrong, gradients = _kernels.objective_gradient(
                self.working, X, y, plan.terms(scheduled), plan.border, plan.nearest
            )
            values = Values(len(X), cross_entropy, mmr, wrong, 0.0)
        adam = self.adam
        _kernels.adam_update(
            adam.arrays, adam.means, adam.squares, _adam.flat(gradients),
            adam.next_scale(scheduled["lr"]),
        )  # fmt: skip
        return values

    def _fetch(self, batches: list[Values]) -> np.ndarray:
        """Cross-entropy, MMR, error and robust error, summed over the samples of some batches."""
        sums = np.zeros(4)
        for n, *values in batches:
            cross_entropy, mmr, wrong, robust_error = map(float, values)
            if not np.isfinite(cross_entropy + mmr):
                raise FloatingPointError(
                    f"training diverged in epoch {len(self.history) + 1}: cross-entropy "
                    f"{cross_entropy}, regularizer {mmr}; a smaller lr may help"
                )
            sums += n * cross_entropy, n * mmr, wrong, n * robust_error
        return sums

    def _starts(self, X: np.ndarray, place: tuple[int, int]) -> np.ndarray:
        """Where PGD starts; each batch has its own seed: a resumed training needs no state."""
        if not self.plan.random_start:
            return X
        rng = np.random.default_rng([self.seed, *place])
        # The generator is NumPy's, so that all backends start at the same points.
        delta = random_displacement(X.shape, self.plan.p, self.plan.eps, rng, X.dtype)
        return displaced(X, self.put(delta), self.box)

    def _error(self, X: np.ndarray, y: np.ndarray) -> float:
        return float((_kernels.logits(self.working, X).argmax(axis=1) != y).mean())

    def network(self) -> Network:
        """The network after the last full epoch."""
        arrays = [self.get(array) for array in self.last.arrays[: len(self.adam.arrays)]]
        return self.start.with_parameters(list(zip(arrays[::2], arrays[1::2], strict=True)))

    def _arrays(self) -> list[np.ndarray]:
        return [*self.adam.arrays, *self.adam.means, *self.adam.squares]

    def _snapshot(self) -> Snapshot:
        arrays = [array.copy() for array in self._arrays()]
        return Snapshot(arrays, self.adam.steps, len(self.history))

    def _write(self, path: Path) -> None:
        last = self.last
        arrays = {f"array{i}": self.get(array) for i, array in enumerate(last.arrays)}
        header = {
            "format": self.FORMAT,
            "version": self.VERSION,
            "fingerprint": self.fingerprint,
            "steps": last.steps,
            "seed": self.seed,
            "history": json.dumps(self.history.records[: last.epochs]),
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
            self.adam.steps = int(found["steps"])
            for array, value in zip(self._arrays(), saved, strict=True):
                array[...] = self.put(value)
            if not self.plan.seed_is_given:  # the seed that the first run drew
                self.seed = int(found["seed"])
            self.history = History([dict(record) for record in json.loads(str(found["history"]))])
        # Values in a damaged file may raise exceptions of any kind.
        except Exception as error:
            raise ValueError(f"checkpoint: {path} is damaged ({error})") from error
