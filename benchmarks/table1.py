"""The networks of the paper's Table 1: trained, evaluated, and beside the paper's figures.

``train`` takes the next row that is not finished, in the order of `ROWS`, until all are, at low
priority; ``train ROW ...`` takes these.  The checkpoint of a row is in ``out/table1``: after a kill
at any point the same command continues.  A finished network is written to ``zoo/ROW.npz``, and
``zoo/ROW.json`` beside it says how it was made: preset, seed, commit, history, time, machine.
``status`` says what is done, and how long the rest takes.

``evaluate`` measures the rows that are in ``zoo``, or those that are named, and continues likewise:
test error; Wong and Kolter without the box, as in the paper; CROWN, PGD, and branch and bound
within the box; radii that the region and CROWN prove.  The points are in
``results/table1/ROW.csv.gz``, the figures in ``zoo/ROW.json``.

``table`` writes ``results/table1.md`` and its figures, the README's short table, and the checksums
of the zoo that the library knows.

``train`` and ``evaluate`` need ``REFMMR_DATA``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess

import _table1_evaluate
import _table1_report
import numpy as np
from _machine import machine
from _table1_evaluate import OUT, ROOT, ZOO

import refmmr as rm

SEED = 0
BLOCKS = ("mnist-cnn-linf", "mnist-fc1-linf", "mnist-cnn-l2", "mnist-fc1-l2",
          "fmnist-cnn-linf", "fmnist-fc1-linf", "fmnist-cnn-l2", "fmnist-fc1-l2")  # fmt: skip
SCHEMES = ("mmr+at", "mmr", "at", "plain", "kw")
ROWS = [f"{block}-{scheme}" for block in BLOCKS for scheme in SCHEMES]
"""In an order that is useful wherever it stops; German signs and CIFAR-10 need a GPU."""


def main(words: list[str] | None = None) -> None:
    """Do what the command line asks for."""
    asked = arguments(words)
    if asked.command == "status":
        print(status())
    elif asked.command == "train":
        train(asked.rows)
    elif asked.command == "evaluate":
        os.nice(10)
        rm.set_backend(os.environ.get("REFMMR_BACKEND", "numba"))
        for row in asked.rows or rm.zoo.names():
            _table1_evaluate.evaluate(row, asked.n, asked.max_seconds, asked.jobs)
    else:
        _table1_report.write()


def arguments(words: list[str] | None) -> argparse.Namespace:
    """Return what the command line, or `words`, asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("rows", nargs="*", metavar="ROW", help="all that are not finished")
    measure = commands.add_parser("evaluate")
    measure.add_argument("rows", nargs="*", metavar="ROW", help="all that are in the zoo")
    measure.add_argument("--n", type=int, help="first test points: 1000 in l_inf, in l_2 all")
    measure.add_argument("--max-seconds", type=float, default=3.0, help="of bab for a point")
    measure.add_argument("--jobs", type=int, default=1, help="processes")
    commands.add_parser("status")
    commands.add_parser("table")
    return parser.parse_args(words)


def train(rows: list[str]) -> None:
    """Train rows one after the other, all that are missing if none is named.

    Several queues may run beside each other: a row that one of them trains is left to it.
    """
    os.nice(19)
    rm.set_backend(os.environ.get("REFMMR_BACKEND", "numba"))
    OUT.mkdir(parents=True, exist_ok=True)
    for row in rows or ROWS:
        with open(OUT / f"{row}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{row} is in training elsewhere", flush=True)
                continue
            if not (ZOO / f"{row}.json").exists():
                print(row, flush=True)
                train_row(row)


def train_row(row: str) -> None:
    """Train a network, or continue, and put it into the zoo."""
    preset = rm.presets[row]
    other = row.replace("-l2-", "-linf-") if "-l2-" in row else row.replace("-linf-", "-l2-")
    if preset.scheme == "plain" and (ZOO / f"{other}.json").exists():
        copy_row(other, row)
        return
    data = rm.datasets.load(preset.data, images=preset.network == "cnn", dtype=np.float32)
    net = preset.new_network(data.X_train[0].shape, data.n_classes, rng=SEED)
    checkpoint = OUT / f"{row}.npz"
    net, history = rm.fit(
        net, data.X_train, data.y_train, rng=SEED, checkpoint=checkpoint, **preset.options()
    )
    if history.interrupted:
        raise KeyboardInterrupt
    ZOO.mkdir(exist_ok=True)
    path = ZOO / f"{row}.npz"
    rm.save(net, path)
    card = {
        "name": row,
        "preset": preset._asdict() | {"p": str(preset.p)},
        "seed": SEED,
        "commit": commit(),
        "test_error": float((net.predict(data.X_test) != data.y_test).mean()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "seconds": float(history["seconds"].sum()),
        "machine": machine(),
        "licence": "MIT",
        "history": history.records,
    }
    # Atomically: a row with a card counts as finished.
    _table1_evaluate.write_card(card)
    checkpoint.unlink()


def copy_row(row: str, to: str) -> None:
    """Plain training knows no norm: the rows in l_inf and in l_2 are one network."""
    shutil.copyfile(ZOO / f"{row}.npz", ZOO / f"{to}.npz")
    card = json.loads((ZOO / f"{row}.json").read_text())
    card.pop("evaluation", None)
    preset = rm.presets[to]
    card |= {"name": to, "preset": preset._asdict() | {"p": str(preset.p)}}
    _table1_evaluate.write_card(card)


def commit() -> str:
    """The commit that is checked out, with a plus where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "refmmr") else "")


def status() -> str:
    """A line for each row: finished, or the epochs so far and the hours left."""
    lines, left = [], 0.0
    for row in ROWS:
        card, checkpoint = ZOO / f"{row}.json", OUT / f"{row}.npz"
        if card.exists():
            found = json.loads(card.read_text())
            measured = found.get("evaluation")
            lines.append(
                f"{row:24} finished, test error {100 * found['test_error']:.2f} %, "
                f"{found['seconds'] / 3600:.1f} h; "
                + (_table1_evaluate.text(measured) if measured else "not evaluated")
            )
            continue
        epochs = rm.presets[row].epochs
        records = []
        if checkpoint.exists():
            with np.load(checkpoint) as arrays:
                records = json.loads(str(arrays["history"]))
        if records:
            hours = np.mean([r["seconds"] for r in records]) * (epochs - len(records)) / 3600
            left += hours
            lines.append(f"{row:24} epoch {len(records)} of {epochs}, {hours:.1f} h left")
        else:
            lines.append(f"{row:24} waits")
    return "\n".join([*lines, f"{left:.1f} h left of the rows that have begun"])


if __name__ == "__main__":
    main()
