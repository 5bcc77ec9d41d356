"""Time the library's backends against each other and against PyTorch.

For every job (see ``_jobs.py``) each implementation is first held against the NumPy reference in
float64, on a few samples; one that is off by more than `TOLERANCE` is not timed.  Then they are
timed in turns, round by round, in one process on the same number of threads, on the first training
points of MNIST in float32; the table gives the median and the best of the rounds.  Peak memory is
measured in a process of its own.  The rivals are in ``rivals.py``, the floor is explained in
``_floor.py``.  The machine should do nothing else: threads that wait for each other at every
operation, as PyTorch's do, suffer most from a busy core.

Results are merged into ``results/backends.json`` after each job, with ``backends.md`` beside it, so
a run may be stopped, and made complete with ``--missing``.  Trained weights are made at first use
and kept in ``out/bench``.  All jobs take about half an hour on two cores that do nothing else.
Epochs of the slow ones are scaled up from a few batches, of which the table gives the number;
``--full`` runs them whole, which takes hours.  Needs ``REFMMR_DATA``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import _command
import _floor
import _jobs
import numpy as np
from _jobs import CAREFUL, EXPERT, GRAPH, Job
from _machine import machine
from _markdown import in_words, table, write
from _memory import forget_peak, peak
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import refmmr as rm

TOLERANCE = {"pgd": 1e-3}
"""Largest deviation by kind of job; 1e-4 where none is named.

Rounding changes the path of an attack, also that of the reference in float32.
"""
EPOCH = 60_000 // _jobs.BATCH
"""Batches of an epoch of MNIST."""
REST = 0.05
"""Seconds between two calls: PyTorch's idle threads spin for a while before they sleep."""
PATIENCE, EPOCH_PATIENCE = 20.0, 10.0
"""Seconds after which an implementation takes no part in further rounds of a job."""
RESULTS = Path(__file__).parent / "results"
GROUPS = {
    "mmr": "Value and gradient of MMR",
    "distances": "Distances",
    "box": "Distances within the box",
    "pgd": f"PGD, {_jobs.STEPS} steps",
    "epoch": "One epoch of training on MNIST",
}


def main() -> None:
    """Time all jobs that are asked for, or measure the memory of one."""
    asked = arguments()
    set_threads(asked.threads)
    if asked.one:
        print(json.dumps(one(*asked.one, asked)))
        return
    if not os.environ.get("REFMMR_DATA"):
        sys.exit("error: set REFMMR_DATA to the folder that holds the data sets (mnist/)")
    backends = asked.backends.split(",") if asked.backends else list(rm.available_backends())
    path = (_jobs.OUT if asked.quick else RESULTS) / "backends.json"
    report = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    todo = [
        job
        for job in _jobs.jobs(asked.jobs)
        if not (asked.missing and f"{job.name}@{asked.threads}" in report["rows"])
        and not (job.kind == "epoch" and (asked.quick or asked.no_epochs))
    ]
    if not _jobs.RIVALS:
        print("PyTorch is not installed: its rivals are left out", file=sys.stderr)
    bar = tqdm(todo)
    about = {"load_average": os.getloadavg()[0], "machine": machine()}
    for job in bar:
        bar.set_description(job.name)
        report["rows"][f"{job.name}@{asked.threads}"] = measure(job, backends, asked) | about
        write(path, report, markdown(report))
    print(markdown(report) if report["rows"] else "no job of that name")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = _command.parser(__doc__)
    parser.add_argument("--jobs", default="*", help="patterns of names, as mmr-fc1-*,pgd-*")
    parser.add_argument("--backends", help="names, separated by commas; all that run here")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--missing", action="store_true", help="only jobs without a result yet")
    parser.add_argument("--no-epochs", action="store_true", help="leave the epochs out")
    parser.add_argument("--full", action="store_true", help="whole epochs of all implementations")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two rounds, no epochs, barely trained weights; results in out/bench",
    )
    parser.add_argument("--one", nargs=2, metavar=("JOB", "IMPLEMENTATION"), help="a single call")
    parser.add_argument("--memory", action="store_true", help="with --one: its peak memory")
    asked = parser.parse_args()
    asked.rounds = 2 if asked.quick else asked.rounds
    return asked


def set_threads(count: int) -> None:
    """The same number of threads for all implementations."""
    threadpool_limits(count)
    if _jobs.torch is not None:
        _jobs.torch.set_num_threads(count)
    try:
        from refmmr.backends import threads
    except ImportError:
        return
    threads.set_threads(count)


def measure(job: Job, backends: list[str], asked: argparse.Namespace) -> dict:
    """Deviation, seconds and memory of a job, for each implementation."""
    if job.state == "trained":
        _jobs.train(job, "numba" if "numba" in backends else "numpy", asked.quick)
    net = _jobs.network(job, asked.quick)
    names = _jobs.implementations(job, backends)
    off = _jobs.check(job, names, net)
    rows: dict[str, dict] = {name: {"deviation": off[name]} for name in names}
    good = [name for name in names if rows[name]["deviation"] <= TOLERANCE.get(job.kind, 1e-4)]
    samples = {name: samples_of(job, name, asked) for name in good}
    runs = {name: prepare(job, name, net, samples[name]) for name in good}
    if job.kind in ("mmr", "distances"):
        compare_whole(job, {name: runs[name] for name in good if samples[name] == _jobs.BATCH})
    patience = EPOCH_PATIENCE if job.kind == "epoch" else PATIENCE
    seconds = take_turns(runs, asked.rounds, patience, warm=job.kind != "epoch")
    for name in good:
        rows[name] |= figures(job, samples[name], seconds[name])
        # A batch of the reference takes half a minute, and its memory is that of the mmr job.
        skip = job.kind == "epoch" and name == "numpy"
        rows[name]["peak_mb"] = None if skip else child_memory(job, name, asked)
    return {
        "threads": asked.threads,
        "implementations": rows,
        **(floor(job, net, backends) if job.kind == "mmr" else {}),
    }


def compare_whole(job: Job, runs: dict[str, Callable[[], object]]) -> None:
    """What is timed gives the same on the whole batch too; the check before was on a few samples.

    Raises
    ------
    RuntimeError
        When two implementations differ by more than the tolerance.
    """
    first, *others = runs
    expected = runs[first]()
    for name in others:
        off = _jobs.deviation(runs[name](), expected)
        if not off <= 1e-4:
            raise RuntimeError(f"{job.name}: {name} and {first} differ by {off:.1e} on a batch")


def samples_of(job: Job, name: str, asked: argparse.Namespace) -> int:
    """Samples of a call; the quick ones go through whole epochs."""
    whole = asked.full or name not in ("numpy", *_jobs.RIVALS)
    whole |= job.network == "fc1" and name in (CAREFUL, EXPERT)
    return EPOCH * _jobs.BATCH if job.kind == "epoch" and whole else job.samples(name)


def prepare(job: Job, name: str, net: rm.Network, samples: int) -> Callable[[], object]:
    """The function to time, on this many samples."""
    X, y = _jobs.first_samples(job.network, samples if samples <= _jobs.SAMPLES else None)
    return _jobs.call(job, name, net, X[:samples], y[:samples])


def take_turns(
    runs: dict[str, Callable[[], object]], rounds: int, patience: float, warm: bool
) -> dict[str, list[float]]:
    """Seconds of each call, round by round, so that a busy moment meets all of them."""
    if warm:
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if sum(seconds[name]) < patience:
                seconds[name].append(timed(run))
    return seconds


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    gc.collect()
    time.sleep(REST)
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def figures(job: Job, samples: int, seconds: list[float]) -> dict[str, float]:
    """Median and best, of a call and of a sample; an epoch is scaled up from its batches."""
    median, best = float(np.median(seconds)), min(seconds)
    found = {
        "samples": samples,
        "rounds": len(seconds),
        "median_ms": 1e3 * median,
        "best_ms": 1e3 * best,
        "ms_a_sample": 1e3 * median / samples,
    }
    if job.kind == "epoch":
        batches = samples // _jobs.BATCH
        found |= {"batches": batches, "epoch_seconds": median / batches * EPOCH}
    return found


def floor(job: Job, net: rm.Network, backends: list[str]) -> dict[str, float]:
    """The rate of a matrix product, and the time a sample would take at that rate."""
    quick = "numba" if "numba" in backends else "numpy"
    n = job.samples(quick)
    X, y = _jobs.first_samples(job.network)
    with rm.use_backend(quick):
        d = rm.distances(net, X[:n], y[:n], job.p)
    units, pairs = _floor.slopes(net, d, _jobs.options(job, net))
    rate = _floor.gemm_rate()
    return {
        "gemm_gflops": rate / 1e9,
        "units_with_slope_a_sample": [count / n for count in units],
        "pairs_with_slope_a_sample": pairs / n,
        "floor_ms_a_sample": 1e3 * _floor.operations(net, units, pairs, n) / rate / n,
    }


# Memory, in a process of its own.


def child_memory(job: Job, name: str, asked: argparse.Namespace) -> float | None:
    """Peak memory of one call in MB; None when the process failed, for want of memory say."""
    command = [sys.executable, __file__, "--one", job.name, name, "--memory"]
    command += ["--threads", str(asked.threads), *(["--quick"] if asked.quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{job.name}, {name}: no memory figure\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)["peak_mb"]


def one(job_name: str, name: str, asked: argparse.Namespace) -> dict[str, float]:
    """A single call, after one on two samples that compiles and imports what is needed."""
    (job,) = _jobs.jobs(job_name)
    net = _jobs.network(job, asked.quick)
    prepare(job, name, net, 2)()
    run = prepare(job, name, net, min(job.samples(name), 3 * _jobs.BATCH))
    before = forget_peak()
    seconds = timed(run)
    return (
        {"seconds": seconds, "peak_mb": peak() - before} if asked.memory else {"seconds": seconds}
    )


# The report.


def markdown(report: dict) -> str:
    """A table for each kind of job, and what it was measured on."""
    parts = ["# Backends and rivals", "", *explanation(report)]
    for kind, title in GROUPS.items():
        keys = [key for key in report["rows"] if key.startswith(kind + "-")]
        if keys:
            lines = epoch_table if kind == "epoch" else call_table
            parts += ["", f"## {title}", "", *lines(report["rows"], keys)]
    return "\n".join(parts) + "\n"


def explanation(report: dict) -> list[str]:
    """What the columns mean."""
    machines = dict.fromkeys(in_words(row["machine"]) for row in report["rows"].values())
    where = "; ".join(machines)
    loads = [row["load_average"] for row in report["rows"].values()]
    return [
        f"Written by `benchmarks/backends.py`. {where}; load average at the start "
        f"{min(loads):.1f} to {max(loads):.1f}.",
        "",
        f"float32, first training points of MNIST; median and best of rounds taken in turns. "
        f"The rivals are in `benchmarks/rivals.py`: `{GRAPH}` is the authors' graph, `{CAREFUL}` "
        f"what a careful user of PyTorch writes, and `{EXPERT}` an expert's version that builds a "
        "graph of the selected hyperplanes only; where there is no gradient "
        f"`{CAREFUL}` stands for both, and within the box there is only one, on the dense rows of "
        f"`{GRAPH}`. Ratios are "
        "the time of a sample against theirs: below 1 is quicker. The floor "
        "is the arithmetic at the speed of a matrix "
        "product (`benchmarks/_floor.py`), given as a share of the median. Peak is the memory of a "
        "call beyond what is in use before it; it grows with the samples. Deviation is the "
        "largest relative one of an array from the NumPy reference in float64.",
    ]


def call_table(rows: dict, keys: Iterable[str]) -> list[str]:
    """A line for each job and implementation."""
    head = ["samples", "median ms", "best ms", "ms a sample", "against (b)", "against (c)"]
    head += ["floor", "peak MB", "deviation"]

    def cells(row: dict, found: dict) -> list[object]:
        share = row.get("floor_ms_a_sample", np.nan) / found["ms_a_sample"]
        return [
            found["samples"],
            f"{found['median_ms']:.4g}",
            f"{found['best_ms']:.4g}",
            f"{found['ms_a_sample']:.3g}",
            *ratios(row, found),
            "" if np.isnan(share) else f"{100 * share:.0f} %",
            memory(found),
            f"{found['deviation']:.0e}",
        ]

    return implementations_table(head, cells, rows, keys)


def epoch_table(rows: dict, keys: Iterable[str]) -> list[str]:
    """A line for each training and implementation; says what was scaled up from a few batches."""
    head = ["s an epoch", "measured", "against (b)", "against (c)", "peak MB", "deviation"]

    def cells(row: dict, found: dict) -> list[object]:
        count = found["batches"]
        return [
            f"{found['epoch_seconds']:.4g}",
            "whole" if count == EPOCH else f"from {count} batch{'es' * (count > 1)}",
            *ratios(row, found),
            memory(found),
            f"{found['deviation']:.0e}",
        ]

    return implementations_table(head, cells, rows, keys)


def implementations_table(
    head: list[str],
    cells: Callable[[dict, dict], list[object]],
    rows: dict,
    keys: Iterable[str],
) -> list[str]:
    """A line for each job and implementation; what deviates too far was not timed."""
    lines = []
    for key in keys:
        row = rows[key]
        for name, found in row["implementations"].items():
            figures: list[object] = [f"off by {found['deviation']:.1e}: not timed"]
            figures += [""] * (len(head) - 1)
            if "median_ms" in found:
                figures = cells(row, found)
            about = [key.split("@")[0], row["machine"]["date"], row["threads"]]
            lines.append([*about, name, *figures])
    return table(["job", "date", "threads", "implementation", *head], lines)


def ratios(row: dict, found: dict) -> list[str]:
    """Against the rivals (b) and (c), where they were timed; two cells."""
    times = [row["implementations"].get(name, {}).get("ms_a_sample") for name in (CAREFUL, EXPERT)]
    return [f"{found['ms_a_sample'] / time:.3g}" if time else "" for time in times]


def memory(found: dict) -> str:
    """Peak memory, where it was measured."""
    return "" if found["peak_mb"] is None else f"{found['peak_mb']:.0f}"


if __name__ == "__main__":
    main()
