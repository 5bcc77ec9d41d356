"""Time a step of training against another commit, and against the expert's version in PyTorch.

For each case (network, scheme, norm, weights) every implementation goes through a few batches of
MNIST in turns, round by round, each in a process of its own on the same number of threads.  The
other commit is checked out beside this one, in ``out/training``; the rival is ``torch (c)`` of
``rivals.py``, if PyTorch is installed.  The weights are those at the start of a training, or after
a hundred steps with MMR, made at first use: then fewer hyperplanes are nearer than gamma.  A busy
machine shows in the medians, less in the best rounds: the table gives ratios of both.

Results go to ``results/training.json`` and ``.md``, case by case; those of the same commits are
kept.  Needs ``REFMMR_DATA``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import _command
import numpy as np
from _markdown import in_words, table, write

import refmmr as rm

BATCH = 128
EPOCH = 60_000 // BATCH
"""Batches of an epoch of MNIST."""
TRAINED_STEPS = {"fc1": 100, "lenet": 40}
SHARES = {"init": 0.1, "trained": 0.02}
"""k_B as a share of the hidden units: where the authors' schedule starts, and where it ends."""
NORMS = {"l2": 2.0, "linf": np.inf}
VALUES = {
    "l2": {"eps": 0.3, "lam": 1.5, "gamma": 0.45, "lr": 5e-4},
    "linf": {"eps": 0.1, "lam": 2.0, "gamma": 0.1, "lr": 1e-3},
}
CASES = [
    f"{network}-{scheme}-{norm}-{weights}"
    for network in ("fc1", "lenet")
    for scheme in ("mmr", "mmr+at")
    for norm in ("linf", "l2")
    for weights in ("init", "trained")
]
ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "training"
RESULTS = Path(__file__).parent / "results"
RIVAL = "torch (c)"


def main() -> None:
    """Time all cases, or serve them to the process that does."""
    parser = _command.parser(__doc__)
    parser.add_argument("--against", default="053960c", help="the other commit")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, metavar="CASE")
    parser.add_argument("--batches", type=int, default=4, help="batches of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-rival", action="store_true", help="leave PyTorch out")
    parser.add_argument("--serve", choices=["library", "rival"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked)
        return
    if not os.environ.get("REFMMR_DATA"):
        sys.exit("error: set REFMMR_DATA to the folder that holds the data sets (mnist/)")
    for case in asked.cases:
        make_weights(case)
    names = {"this": ROOT, asked.against: other_tree(asked.against)}
    workers = {name: Worker(tree, "library", asked) for name, tree in names.items()}
    if has_torch() and not asked.no_rival:
        workers[RIVAL] = Worker(ROOT, "rival", asked)
    for worker in workers.values():
        worker.wait()
    report = {
        "against": asked.against,
        "commit": commit("HEAD"),
        "batches": asked.batches,
        "threads": asked.threads,
        "load_average": os.getloadavg()[0],
        "machine": machine(),
        "rows": {},
    }
    path = RESULTS / "training.json"
    former = json.loads(path.read_text()) if path.exists() else {}
    if all(former.get(key) == report[key] for key in ("against", "commit", "threads")):
        report["rows"] = former["rows"]
    for case in asked.cases:
        report["rows"][case] = take_turns(workers, case, asked.rounds)
        write(path, report, markdown(report))
    print(markdown(report))


class Worker:
    """An implementation in a process of its own, which runs a round when it is told to."""

    def __init__(self, tree: Path, kind: str, asked: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--serve", kind, "--cases", *asked.cases]
        command += ["--batches", str(asked.batches), "--threads", str(asked.threads)]
        path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self) -> None:
        """Wait until it has compiled everything."""
        self._answer()

    def seconds(self, case: str) -> float:
        """Seconds of a step, over one round."""
        print(case, file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker ended; its message is above")
        return line


def serve(asked: argparse.Namespace) -> None:
    """Run what is asked for on standard input, in a worker."""
    make = _library if asked.serve == "library" else _rival
    runs = {case: make(case, asked.threads) for case in asked.cases}
    for run in runs.values():
        run(1)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        runs[line.strip()](asked.batches)
        print((time.perf_counter() - began) / asked.batches, flush=True)


def _library(case: str, count: int) -> Callable[[int], object]:
    from refmmr.backends import threads

    rm.set_backend("numba")
    threads.set_threads(count)
    network, scheme, norm, weights = case.split("-")
    net, X, y = rm.load(weights_path(case)), *samples(network)

    def run(batches: int) -> None:
        n = batches * BATCH
        rm.fit(
            net, X[:n], y[:n], scheme, p=NORMS[norm], epochs=1, batch_size=BATCH, progress=False,
            k_b_shares=(SHARES[weights],) * 2, **VALUES[norm],
        )  # fmt: skip

    return run


def _rival(case: str, count: int) -> Callable[[int], object]:
    import rivals
    import torch

    torch.set_num_threads(count)
    network, scheme, norm, weights = case.split("-")
    net, given = rm.load(weights_path(case)), VALUES[norm]
    X, y = (torch.from_numpy(array) for array in samples(network))
    k_b = int(SHARES[weights] * net.n_hidden)
    options = rivals.Options(
        NORMS[norm], given["gamma"], given["gamma"], k_b, net.n_classes,
        lam=given["lam"], weight=1.0,
    )  # fmt: skip
    attack = rivals.Attack(given["eps"], 40) if scheme == "mmr+at" else None

    def run(batches: int) -> None:
        order = np.arange(batches * BATCH).reshape(batches, BATCH)
        rivals.epoch(
            rivals.Model(net), X, y, order, options, given["lr"],
            attack=attack, backward=rivals.expert_backward,
        )  # fmt: skip

    return run


@cache
def samples(network: str) -> tuple[np.ndarray, np.ndarray]:
    """Training points of MNIST in float32, as the network takes them."""
    data = rm.datasets.load("mnist", images=True, dtype=np.float32)
    X, y = data.X_train[: 100 * BATCH], data.y_train[: 100 * BATCH]
    return (X.reshape(len(X), -1) if network == "fc1" else X), y


def weights_path(case: str) -> Path:
    """Where the weights of a case are."""
    network, _, norm, weights = case.split("-")
    return OUT / f"{network}-{norm}-{weights}.npz"


def make_weights(case: str) -> None:
    """Make the weights of a case, unless they are there."""
    path, (network, _, norm, weights) = weights_path(case), case.split("-")
    if path.exists():
        return
    lenet = rm.Network.lenet_small
    net = rm.Network.mlp([784, 1024, 10], rng=0) if network == "fc1" else lenet(rng=0)
    net = net.astype(np.float32)
    if weights == "trained":
        X, y = samples(network)
        n = TRAINED_STEPS[network] * BATCH
        with rm.use_backend("numba"):
            net, _ = rm.fit(net, X[:n], y[:n], "mmr", p=NORMS[norm], epochs=2, **VALUES[norm])
    path.parent.mkdir(parents=True, exist_ok=True)
    rm.save(net, path)


def other_tree(name: str) -> Path:
    """The files of another commit."""
    tree = OUT / commit(name)
    if not tree.exists():
        tree.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", name, "refmmr"], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "x", "-C", tree], input=archive.stdout, check=True)
    return tree


def commit(name: str) -> str:
    """The short hash of a commit."""
    command = ["git", "rev-parse", "--short", name]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()


def has_torch() -> bool:
    """Whether the rival can run."""
    from importlib.util import find_spec

    return find_spec("torch") is not None


def machine() -> dict[str, object]:
    """What it ran on."""
    from _machine import machine

    return machine()


def take_turns(workers: dict[str, Worker], case: str, rounds: int) -> dict[str, dict]:
    """Median and best of the rounds in milliseconds, of each implementation."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.seconds(case))
    return {
        name: {"median_ms": 1e3 * float(np.median(found)), "best_ms": 1e3 * min(found)}
        for name, found in seconds.items()
    }


def markdown(report: dict) -> str:
    """The figures as a table."""
    names = list(dict.fromkeys(name for row in report["rows"].values() for name in row))
    others = names[1:]
    head = ["case", *(f"{name}, ms" for name in names), "s an epoch"]
    head += [f"against {name}: median, best" for name in others]
    rows = []
    for case in filter(report["rows"].get, CASES):
        row = report["rows"][case]
        mine = row["this"]
        cells = [case, *(f"{row[name]['median_ms']:.1f}" if name in row else "" for name in names)]
        cells.append(f"{mine['median_ms'] * EPOCH / 1e3:.1f}")
        cells += [
            f"{row[name]['median_ms'] / mine['median_ms']:.2f}, "
            f"{row[name]['best_ms'] / mine['best_ms']:.2f}"
            if name in row
            else ""
            for name in others
        ]
        rows.append(cells)
    where = in_words(report["machine"])
    return "\n".join(
        [
            "# A step of training",
            "",
            "Written by `benchmarks/training.py`: milliseconds of a step of 128 samples in float32 "
            f"on {report['threads']} threads, median of the rounds; how many times as long the "
            f"others take.  Commit {report['commit']} against {report['against']}, which has no "
            f"random start of the attack; {where}; load average at the start "
            f"{report['load_average']:.1f}.",
            "",
            *table(head, rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
