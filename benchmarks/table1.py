"""The networks of the paper's Table 1: trained, evaluated, and beside the paper's figures.

``train`` takes the next row that is not finished, in the order of `_table1_rows.ROWS`, until all
are, at low priority; ``train ROW ...`` takes these.  The checkpoint of a row is in ``out/table1``:
after a kill at any point the same command continues.  A finished network is written to
``zoo/ROW.npz``, and ``zoo/ROW.json`` beside it says how it was made: preset, seed, commit, history,
time, machine.  ``status`` says what is done, and how long the rest takes.

Repeated trainings and those with one change show what a difference from the paper means; their
names say what they are, and their networks lie in ``zoo`` beside the others::

    table1.py train mnist-fc1-l2-mmr --seed 1                   mnist-fc1-l2-mmr-seed1
    table1.py train mnist-fc1-l2-mmr --seed 2                   the spread of three seeds
    table1.py train mnist-fc1-linf-at-nostart                   the attack without a random start
    table1.py train mnist-cnn-linf-mmr-fullfilter --epochs 10   the authors' border rule: the first
    table1.py train mnist-cnn-linf-mmr --epochs 10              convolution's, so CNNs alone have it

``evaluate`` measures the rows that are in ``zoo``, or those that are named, and continues likewise:
test error; Wong and Kolter without the box, as in the paper; CROWN, PGD, and branch and bound
within the box; radii that the region and CROWN prove; minimal perturbations by search and by branch
and bound.  MMR-Universal is measured in l_1, l_2 and l_inf.  The points are in
``results/table1/ROW.csv.gz``, the figures in ``zoo/ROW.json``.
A point of a CNN in l_2 takes a core about 0.02 s for the bound of Wong and Kolter, 0.03 s for CROWN
and PGD where that proves nothing, 0.3 s for the radii, and at most ``--max-seconds`` for branch and
bound where it is open after that.  Where most points are open (plain, at), ``--max-seconds 1`` is
enough.

``table`` writes ``results/table1.md`` and its figures, the README's short table, and the checksums
of the zoo that the library knows.

``train`` and ``evaluate`` need ``REFMMR_DATA``; so do the regions' figures of ``table``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import _command
import _table1_evaluate
import _table1_files
import _table1_report
import _table1_summary
import numpy as np
from _machine import machine
from _table1_files import OUT, ROOT, ZOO
from _table1_rows import ROWS, Training, training

import refmmr as rm


def main(words: list[str] | None = None) -> None:
    """Do what the command line asks for."""
    asked = arguments(words)
    if asked.command == "status":
        print(status())
    elif asked.command == "train":
        train([training(row, asked.seed, asked.epochs) for row in asked.rows or ROWS])
    elif asked.command == "evaluate":
        os.nice(10)
        rm.set_backend(os.environ.get("REFMMR_BACKEND", "numba"))
        limits = _table1_evaluate.Limits(
            asked.max_seconds, asked.minimal_points, asked.minimal_seconds
        )
        for row in asked.rows or rm.zoo.names():
            _table1_evaluate.evaluate(training(row).name, asked.n, limits, asked.jobs)
    else:
        rm.set_backend(os.environ.get("REFMMR_BACKEND", "numba"))
        _table1_report.write()


def arguments(words: list[str] | None) -> argparse.Namespace:
    """Return what the command line, or `words`, asks for."""
    parser = _command.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    queue = commands.add_parser("train")
    queue.add_argument("rows", nargs="*", metavar="ROW", help="all that are not finished")
    queue.add_argument("--seed", type=int, help="of weights, batches and attacks: 0")
    queue.add_argument("--epochs", type=int, help="the preset's, 100 for nearly all")
    measure = commands.add_parser("evaluate")
    measure.add_argument("rows", nargs="*", metavar="ROW", help="all that are in the zoo")
    measure.add_argument("--n", type=int, help="first test points: 1000 in l_inf, in l_2 all")
    measure.add_argument("--max-seconds", type=float, default=3.0, help="of bab for a point")
    measure.add_argument(
        "--minimal-points", type=int, default=100, metavar="N",
        help="first test points whose minimal perturbation is looked for, at most 1000: 100",
    )  # fmt: skip
    measure.add_argument(
        "--minimal-seconds", type=float, default=2.0, help="of search, and of bab, for each of them"
    )
    measure.add_argument("--jobs", type=int, default=1, help="processes")
    commands.add_parser("status")
    commands.add_parser("table")
    return parser.parse_args(words)


def train(queue: list[Training]) -> None:
    """Train one row after the other.

    Several queues may run beside each other: a row that one of them trains is left to it.
    """
    os.nice(19)
    rm.set_backend(os.environ.get("REFMMR_BACKEND", "numba"))
    OUT.mkdir(parents=True, exist_ok=True)
    for one in queue:
        with open(OUT / f"{one.name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{one.name} is in training elsewhere", flush=True)
                continue
            if not (ZOO / f"{one.name}.json").exists():
                print(one.name, flush=True)
                train_row(one)


def train_row(one: Training) -> None:
    """Train a network, or continue, and put it into the zoo."""
    preset, name = one.preset, one.name
    other = name.replace("-l2-", "-linf-") if "-l2-" in name else name.replace("-linf-", "-l2-")
    if preset.scheme == "plain" and (ZOO / f"{other}.json").exists():
        name_weights(other, one)
        return
    data = rm.datasets.load(preset.data, images=preset.network == "cnn", dtype=np.float32)
    net = preset.new_network(data.X_train[0].shape, data.n_classes, rng=one.seed)
    checkpoint = OUT / f"{name}.npz"
    net, history = rm.fit(
        net, data.X_train, data.y_train, rng=one.seed, checkpoint=checkpoint,
        **preset.options() | one.changes,
    )  # fmt: skip
    if history.interrupted:
        raise KeyboardInterrupt
    ZOO.mkdir(exist_ok=True)
    path = ZOO / f"{name}.npz"
    rm.save(net, path)
    card = {
        **about(one),
        "seed": one.seed,
        "commit": commit(),
        "test_error": float((net.predict(data.X_test) != data.y_test).mean()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "seconds": float(history["seconds"].sum()),
        "machine": machine(),
        "licence": "MIT",
        "history": history.records,
    }
    # Atomically: a row with a card counts as finished.
    _table1_files.write_card(card)
    checkpoint.unlink()


def about(one: Training) -> dict:
    """What a card says of the settings."""
    preset = one.preset
    return {
        "name": one.name,
        "preset": preset._asdict() | {"p": str(preset.p)},
        "changes": one.changes,
    }


def name_weights(name: str, one: Training) -> None:
    """A card for the weights of another row: plain training knows no norm."""
    card = _table1_files.read_card(name)
    card.pop("evaluation", None)
    _table1_files.write_card(card | about(one) | {"weights": card.get("weights", name)})


def commit() -> str:
    """The commit that is checked out, with a plus where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "refmmr") else "")


def status() -> str:
    """A line for each row: finished, or the epochs so far and the hours left."""
    others = {path.stem for folder, ending in ((ZOO, "json"), (OUT, "npz"))
              for path in folder.glob(f"*.{ending}")} - set(ROWS)  # fmt: skip
    lines, left = [], 0.0
    for one in map(training, [*ROWS, *sorted(others)]):
        said, hours = progress(one)
        lines.append(f"{one.name:24} {said}")
        left += hours
    return "\n".join([*lines, f"{left:.1f} h left of the rows that have begun"])


def progress(one: Training) -> tuple[str, float]:
    """What is done of a row, and the hours left if it has begun."""
    if (ZOO / f"{one.name}.json").exists():
        card = _table1_files.read_card(one.name)
        measured = card.get("evaluation")
        said = f"finished, test error {100 * card['test_error']:.2f} %, "
        said += f"{card['seconds'] / 3600:.1f} h; "
        return said + (_table1_summary.text(measured) if measured else "not evaluated"), 0
    records = records_of(OUT / f"{one.name}.npz")
    if not records:
        return "waits", 0
    epochs = one.changes.get("epochs", one.preset.epochs)
    hours = np.mean([r["seconds"] for r in records]) * (epochs - len(records)) / 3600
    return f"epoch {len(records)} of {epochs}, {hours:.1f} h left", float(hours)


def records_of(checkpoint: Path) -> list[dict]:
    """The history of a training that is not finished."""
    if not checkpoint.exists():
        return []
    with np.load(checkpoint) as arrays:
        found: list[dict] = json.loads(str(arrays["history"]))
    return found


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
