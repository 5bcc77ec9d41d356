"""The CuPy backend on a GPU: is it right, how fast is it, and a row of the paper's table.

``benchmarks/gpu.sh`` runs all of it, in under ten minutes; the parts are

    check     deviations from the NumPy reference in float64
    time      one call of each kernel, and a batch of a training
    numba     a batch of a training on the processor of the same machine
    small     a few calls without CuPy's memory pool, for ``compute-sanitizer``
    profile   kernels by the time they take (needs PyTorch, whose profiler sees those of CuPy)
    train     a row of ``refmmr.presets``, for a number of seconds; its checkpoint, in the folder
              ``table1``, is one of ``benchmarks/table1.py``, either of which continues from it
    report    ``gpu.md`` from ``gpu.json``

Results go to the folder ``OUT`` (``out/gpu`` if not set); ``gpu.json`` there has a list of runs,
each with its card and commit, and the last one grows with every part.  Needs ``REFMMR_DATA``;
``--tiny`` takes tiny networks on random images instead, which only shows that all of it runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _command
import numpy as np
from _markdown import in_words, table

import refmmr as rm
from refmmr import _kernels
from refmmr.reference import mmr, objective

ROOT = Path(__file__).parent.parent
OUT = Path(os.environ.get("OUT") or ROOT / "out" / "gpu")
BLOCKS = ("fc1-linf", "fc1-l2", "cnn-linf", "cnn-l2")
SHARE = 0.06
"""k_B as a share of the hidden units: the mean of the authors' schedule."""
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
"""Largest relative deviation of an array, in its norm."""
REPEATS = 15
"""Calls that are timed; the median counts."""
EPOCH = 468
"""Batches of an epoch of MNIST."""
KERNELS = ("mmr_gradient", "objective_gradient", "pgd")


class Problem:
    """A preset on MNIST, or on tiny random images."""

    def __init__(self, name: str, tiny: bool = False) -> None:
        self.name, self.preset = name, rm.presets[name]
        self.batch, self.steps = (6, 3) if tiny else (128, 40)
        images = self.preset.network == "cnn"
        if tiny:
            rng = np.random.default_rng(0)
            X, y = rng.random((24, 1, 8, 8), np.float32), rng.integers(3, size=24)
            X = X if images else X.reshape(24, -1)
            self.train, self.test, classes = (X, y), (X, y), 3
        else:
            data = rm.datasets.load(self.preset.data, images=images, dtype=np.float32)
            self.train, self.test = (data.X_train, data.y_train), (data.X_test, data.y_test)
            classes = data.n_classes
        self.net = self.preset.new_network(self.train[0].shape[1:], classes, rng=0)
        k_b = max(1, int(SHARE * self.net.n_hidden))
        p, gamma = self.preset.p, self.preset.gamma
        self.term = mmr.Regularizer(p, self.preset.lam, gamma, gamma, k_b, classes)

    def fit(self, batches: int, scheme: str) -> float:
        """Seconds that an epoch of some batches takes."""
        X, y = (array[: batches * self.batch] for array in self.train)
        options = self.preset.options() | {"scheme": scheme, "epochs": 1, "eps": self.preset.eps}
        options |= {"k_b_shares": (SHARE, SHARE), "pgd_steps": self.steps}
        start = time.perf_counter()
        rm.fit(self.net, X, y, batch_size=self.batch, rng=0, progress=False, **options)
        return time.perf_counter() - start

    def on_device(self, n: int, dtype: type = np.float32) -> tuple[Any, Any, Any, Any]:
        """Network, samples, classes and box on the device."""
        import cupy

        from refmmr.backends import _cupy

        X, y = self.train[0][:n].astype(dtype), self.train[1][:n].astype(np.int64)
        net = _cupy.device_network(self.net.astype(dtype))
        lo = cupy.zeros(net.input_shape, dtype)
        return net, cupy.asarray(X), cupy.asarray(y), (lo, lo + 1)


def main() -> None:
    """Run a part."""
    parser = _command.parser(__doc__)
    parser.add_argument("part", choices=[*PARTS, "report"])
    parser.add_argument("--batches", type=int, default=30, help="of the trainings that are timed")
    parser.add_argument("--seconds", type=float, default=120, help="of the training of a row")
    parser.add_argument("--row", default="mnist-cnn-linf-mmr+at", help="that is trained")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, random images")
    arguments = parser.parse_args()
    if arguments.part == "report":
        report()
        return
    rm.set_backend("numba" if arguments.part == "numba" else "cupy")
    PARTS[arguments.part](arguments)


# -------------------------------------------------------------------------------------- is it right


def check(arguments: argparse.Namespace) -> None:
    """The gradient of the objective, and PGD, of a few samples against the reference."""
    found, bad = {}, []
    for block in BLOCKS:
        problem = Problem(f"mnist-{block}-mmr+at", arguments.tiny)
        host = problem.net.astype(np.float64)
        X, y = problem.train[0][:4].astype(np.float64), problem.train[1][:4]
        expected = objective.objective_gradient(host, X, y, [problem.term])
        for name, tolerance in TOLERANCE.items():
            with rm.use_backend("cupy"):
                ours = _kernels.objective_gradient(
                    host.astype(name), X.astype(name), y, [problem.term]
                )
            deviation = max(map(_off, _arrays(ours), _arrays(expected)))
            found[f"{block} {name}"] = deviation
            bad += [f"{block} {name}"] if not deviation < tolerance else []
            print(f"deviation {block} {name}: {deviation:.1e}", flush=True)
    record({"deviations": found})
    if bad:
        raise SystemExit(f"too far from the reference: {', '.join(bad)}")


def _arrays(found: objective.Objective) -> list[Any]:
    pairs = [array for pair in found.gradients for array in pair]
    return [np.asarray(found.cross_entropy), np.asarray(found.mmr), *pairs]


def _off(ours: Any, theirs: Any) -> float:
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))


# ----------------------------------------------------------------------------------- how fast is it


def time_all(arguments: argparse.Namespace) -> None:
    """Every kernel alone, then a batch of a training."""
    found: dict[str, Any] = {}
    for block in BLOCKS:
        for kernel, call in calls(Problem(f"mnist-{block}-mmr+at", arguments.tiny)).items():
            found[f"{block} {kernel}"] = timed(call, 1 if arguments.tiny else REPEATS)
            host, all_of_it = found[f"{block} {kernel}"]
            print(f"{block} {kernel}: host {host:.3f} ms, {all_of_it:.3f} ms", flush=True)
    record({"calls": found, "pool_mb": _pool()})
    time_fits(arguments)


def calls(problem: Problem) -> dict[str, Callable[[], Any]]:
    """What is timed, with all arrays on the device."""
    net, X, y, box = problem.on_device(problem.batch)
    half, preset, term = problem.batch // 2, problem.preset, problem.term
    attack = (preset.p, preset.eps, problem.steps, 2 * preset.eps / problem.steps, box)
    args: dict[str, tuple[Any, ...]] = {
        "mmr_gradient": (net, X, y, term.p, *term[2:]),
        "objective_gradient": (net, X, y, [term]),
        "pgd": (net, X[:half], y[:half], *attack, X[:half], True),
    }
    return {name: lambda name=name: getattr(_kernels, name)(*args[name]) for name in KERNELS}


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median milliseconds until a call returns, and until the device is done."""
    import cupy

    synchronize = cupy.cuda.get_current_stream().synchronize
    for _ in range(3):  # compiles; an attack is captured when it is run the second time
        call()
    synchronize()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        host = time.perf_counter()
        synchronize()
        times.append((1e3 * (host - start), 1e3 * (time.perf_counter() - start)))
    host_times, all_times = zip(*times, strict=True)
    return round(statistics.median(host_times), 3), round(statistics.median(all_times), 3)


def time_fits(arguments: argparse.Namespace) -> None:
    """Milliseconds that a batch of a training takes, after one that compiles."""
    found = {}
    for block in BLOCKS:
        problem = Problem(f"mnist-{block}-mmr+at", arguments.tiny)
        for scheme in ("mmr", "mmr+at"):
            problem.fit(2, scheme)
            batch = 1e3 * problem.fit(arguments.batches, scheme) / arguments.batches
            found[f"{block} {scheme}"] = round(batch, 3)
            print(
                f"fit {rm.get_backend()} {block} {scheme}: {batch:.2f} ms a batch, "
                f"{EPOCH * batch / 1e3:.1f} s an epoch",
                flush=True,
            )
    record({f"fit {rm.get_backend()}": found})


def _pool() -> int:
    import cupy

    return cupy.get_default_memory_pool().total_bytes() >> 20


def small(arguments: argparse.Namespace) -> None:
    """Every kernel on tiny networks; each array is an allocation, so its ends are seen."""
    import cupy

    cupy.cuda.set_allocator(None)
    for block in BLOCKS:
        for call in calls(Problem(f"mnist-{block}-mmr+at", tiny=True)).values():
            call()
    deep = rm.Network.mlp([5, 4, 4, 3], rng=0).astype(np.float32)
    rm.mmr_gradient(deep, np.eye(5, dtype=np.float32), np.arange(5) % 3, p=1,
                    gamma_b=0.5, gamma_d=0.5, k_b=3)  # fmt: skip
    print("small: ran")


def profile(arguments: argparse.Namespace) -> None:
    """Kernels by the time that they take on the device."""
    import cupy
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for block in BLOCKS:
        for kernel, call in calls(Problem(f"mnist-{block}-mmr+at", arguments.tiny)).items():
            for _ in range(3):
                call()
            cupy.cuda.get_current_stream().synchronize()
            with profiler(activities=[ProfilerActivity.CUDA]) as seen:
                call()
                cupy.cuda.get_current_stream().synchronize()
            print(f"## {block} {kernel}")
            table = seen.key_averages().table
            print(table(sort_by="self_cuda_time_total", row_limit=16, max_name_column_width=50))


# ----------------------------------------------------------------------------------------- training


def train(arguments: argparse.Namespace) -> None:
    """Train a row for some seconds, or to its end; then attack the first 1000 test points."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    problem = Problem(arguments.row, arguments.tiny)
    checkpoint = OUT / "table1" / f"{arguments.row}.npz"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    options = problem.preset.options() | {"pgd_steps": problem.steps}
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, arguments.seconds)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="training stopped by hand")
        net, history = rm.fit(
            problem.net, *problem.train, rng=0, checkpoint=checkpoint,
            batch_size=problem.batch, progress=False, **options,
        )  # fmt: skip
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not len(history):
        raise SystemExit(f"{arguments.row}: no epoch in {arguments.seconds} seconds")
    rm.save(net, OUT / f"{arguments.row}.npz")
    (OUT / f"{arguments.row}.json").write_text(json.dumps(history.records, indent=1) + "\n")
    X, y = (array[:1000] for array in problem.test)
    preset = problem.preset
    Z = rm.pgd(net, X, y, p=preset.p, eps=preset.eps, steps=problem.steps, rng=0)
    found = {
        "row": arguments.row,
        "epochs": f"{len(history)} of {preset.epochs}",
        "seconds_an_epoch": round(float(np.median(history["seconds"])), 2),
        "test_error": float((net.predict(problem.test[0]) != problem.test[1]).mean()),
        "first_1000_error": float((net.predict(X) != y).mean()),
        "first_1000_pgd_lower_bound": float((net.predict(Z) != y).mean()),
    }
    print(json.dumps(found, indent=1))
    record({"train": found})


# ------------------------------------------------------------------------------------------ results


def record(part: dict[str, Any]) -> None:
    """Add a part to the last run of ``gpu.json``, or to a new one on another card or commit."""
    path = OUT / "gpu.json"
    OUT.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    here = machine(runs)
    if not runs or any(runs[-1]["machine"].get(key) != here[key] for key in ("card", "commit")):
        runs.append({"machine": here})
    runs[-1] |= part
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    report(path)


def machine(runs: list[Any]) -> dict[str, Any]:
    """The card, the versions and the commit."""
    import cupy

    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        commit = ""
    runtime = cupy.cuda.runtime
    return {
        "card": runtime.getDeviceProperties(0)["name"].decode(),
        "commit": os.environ.get("COMMIT") or commit or "unknown",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cuda": runtime.runtimeGetVersion(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cupy": cupy.__version__,
    }


def report(path: Path | None = None) -> None:
    """Write ``gpu.md`` beside ``gpu.json``."""
    path = path or OUT / "gpu.json"
    path.with_suffix(".md").write_text(markdown(json.loads(path.read_text())))


def markdown(found: dict) -> str:
    """The runs as a page, with a column for each."""
    runs = found["runs"]
    lines = ["# The CuPy backend on a GPU", "", "Written by `benchmarks/gpu.py`.", ""]
    for number, run in enumerate(runs, 1):
        lines.append(f"- run {number}: {in_words(run['machine'])}")
    lines += [
        "",
        f"Batches of 128 of MNIST in float32, attacks of 40 steps on 64; k_B is {SHARE:.0%} of the "
        "hidden units. A call's first number is the time until it returns, its second until the "
        "device is done.",
    ]
    titles = {
        "calls": "A call, ms",
        "fit cupy": f"A batch of a training, ms, and an epoch of {EPOCH} batches, s",
        "fit numba": "The same with Numba on the processor of that machine",
        "deviations": "Relative deviation of the objective's gradient from the reference",
    }
    for part, title in titles.items():
        names = list(dict.fromkeys(name for run in runs for name in run.get(part, {})))
        rows = (
            [name, *(_cell(part, run.get(part, {}).get(name)) for run in runs)] for name in names
        )
        if names:
            head = ["", *(f"run {number}" for number in range(1, len(runs) + 1))]
            lines += ["", f"## {title}", "", *table(head, rows)]
    for number, run in enumerate(runs, 1):
        if "train" in run:
            lines += ["", f"## Training, run {number}", ""]
            lines += [f"- {key}: {value}" for key, value in run["train"].items()]
    return "\n".join(lines) + "\n"


def _cell(part: str, value: Any) -> str:
    if value is None:
        return ""
    if part == "calls":
        return " / ".join(f"{number:.2f}" for number in value)
    if part == "deviations":
        return f"{value:.1e}"
    return f"{value:.1f} ms, {EPOCH * value / 1e3:.1f} s"


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "check": check,
    "time": time_all,
    "numba": time_fits,
    "small": small,
    "profile": profile,
    "train": train,
}

if __name__ == "__main__":
    main()
