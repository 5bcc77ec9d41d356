"""Time every certification method, and CROWN against PyTorch.

``methods``
    Each method on the first test points of digits (the network of the demo, trained with MMR+at)
    and of MNIST (FC1 and the paper's CNN, briefly trained with MMR): milliseconds a point, mean
    bounds, share of points whose minimal perturbation is known.  Methods that bound a batch get a
    batch; search, linear and mixed-integer programs get one point at a time and a time limit.
``crown``
    Lower bounds of all margins on l_inf balls of radius 0.1: the backend against
    ``bounds_torch.py``, in turns, in one process, on the same threads.  Bounds must agree to 1e-5
    before anything is timed.
``search``
    All test points of the demo's MMR+at network, one by one, with a second each: the share whose
    minimal perturbation is known, by their own region and by search, in l_2 and in l_inf.

Results are merged into ``results/certify.json`` after each row, with ``certify.md`` beside it.
Needs ``REFMMR_DATA`` for MNIST; without PyTorch the rival is left out.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import _command
import _jobs
import numpy as np
from _machine import machine
from _markdown import in_words, table, write
from tqdm import tqdm

import refmmr as rm
from refmmr import demo
from refmmr._kernels import margin_function
from refmmr.attacks import minimal_attack

try:
    import torch
    from bounds_torch import Crown
except ImportError:
    torch = None

RESULTS = Path(__file__).parent / "results"
OUT = Path("out/bench")
NORMS = {"l2": 2, "linf": np.inf}
BATCHED = ("region", "ibp", "fast-lin", "crown", "attack")
EXPENSIVE = ("lp", "search", "mip")
NETWORKS = ("digits", "fc1", "lenet")
POINTS = {"digits": 100, "fc1": 100, "lenet": 50}
FEWER_POINTS = {"digits": 40, "fc1": 10, "lenet": 5}
"""Points for the `EXPENSIVE` methods."""
LIMIT = {"digits": 1.0, "fc1": 5.0, "lenet": 10.0}
"""Seconds a point for the `EXPENSIVE` methods."""
RADIUS, TOLERANCE, ROUNDS = 0.1, 1e-5, 7


def main() -> None:
    """Run the rows that are asked for."""
    asked = arguments()
    path = (OUT if asked.quick else RESULTS) / "certify.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {}
    rm.set_backend(asked.backend)
    for name in (bar := tqdm([name for name in rows() if wanted(name, asked.rows)])):
        bar.set_description(name)
        kind, *rest = name.split("-", 3)
        about = {"load_average": os.getloadavg()[0], "machine": machine()}
        row = {"methods": methods, "crown": crown, "search": search}[kind](*rest, asked.quick)
        report[name] = row | about
        write(path, report, markdown(report))
    print(markdown(report))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = _command.parser(__doc__)
    parser.add_argument("--rows", default="*", help="patterns of names, as crown-*,methods-fc1-*")
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--quick", action="store_true", help="few points; results in out/bench")
    return parser.parse_args()


def rows() -> Iterator[str]:
    """Names of all rows."""
    for network in ("fc1", "lenet"):
        for state in ("init", "trained"):
            yield f"crown-{network}-{state}"
    for network in NETWORKS:
        for norm in NORMS:
            for method in (*BATCHED, *EXPENSIVE):
                if norm == "linf" or method not in ("lp", "mip"):
                    yield f"methods-{network}-{norm}-{method}"
    yield from (f"search-digits-{norm}" for norm in NORMS)


def wanted(name: str, patterns: str) -> bool:
    """Whether a name fits one of some patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))


def problem(network: str, norm: str, quick: bool) -> tuple[rm.Network, np.ndarray, np.ndarray]:
    """A network in float64 and its test points."""
    if network == "digits":
        points = rm.datasets.load("digits")
        return trained_on_digits(), points.X_test, points.y_test
    points = rm.datasets.load("mnist", images=network == "lenet", dtype=np.float64)
    job = _jobs.Job("mmr", network, norm, "trained")
    _jobs.train(job, "numba", quick)
    net = _jobs.network(job, quick).astype(np.float64)
    return net, points.X_test, points.y_test


def trained_on_digits() -> rm.Network:
    """The demo's network, trained with MMR+at; kept."""
    path = OUT / "digits-mmr+at.npz"
    if not path.exists():
        points = rm.datasets.load("digits")
        net, _ = rm.fit(
            rm.Network.mlp(list(demo.SIZES), rng=demo.SEED),
            points.X_train, points.y_train, "mmr+at",
            **demo.TRAINING, **demo.REGULARIZER["mmr+at"],
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        rm.save(net, path)
    return rm.load(path)


def methods(network: str, norm: str, method: str, quick: bool) -> dict:
    """Time and bounds of one method."""
    net, X, y = problem(network, norm, quick)
    p = NORMS[norm]
    count = (FEWER_POINTS if method in EXPENSIVE else POINTS)[network]
    X, y = X[: 4 if quick else count], y[: 4 if quick else count]
    if method == "attack":
        seconds, (_, upper) = timed(lambda: minimal_attack(net, X, y, p))
        lower, exact, each = np.zeros(len(X)), np.zeros(len(X), bool), [seconds / len(X)]
    elif method in BATCHED:
        rm.certify(net, X[:2], y[:2], p, method=method, progress=False)
        seconds, found = timed(lambda: rm.certify(net, X, y, p, method=method, progress=False))
        lower, upper, exact = found.lower, found.upper, found.exact
        each = [seconds / len(X)]
    else:
        each, parts = [], []
        for i in range(len(X)):
            seconds, found = timed(
                lambda i=i: rm.certify(
                    net,
                    X[[i]],
                    y[[i]],
                    p,
                    method=method,
                    progress=False,
                    max_seconds=LIMIT[network],
                )
            )
            each.append(seconds)
            parts.append(found)
        lower, upper, exact = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("lower", "upper", "exact")
        )
    right = net.predict(X) == y
    return {
        "points": len(X),
        "median_ms": 1e3 * median(each),
        "mean_ms": 1e3 * float(np.mean(each)),
        "largest_ms": 1e3 * max(each),
        "mean_lower": None if method == "attack" else float(lower.mean()),
        "mean_upper": float(upper.mean()) if np.isfinite(upper).all() else None,
        "exact_share": float((exact & right).mean()),
    }


def crown(network: str, state: str, quick: bool) -> dict:
    """The margins' bounds on balls of one radius, here and in PyTorch."""
    job = _jobs.Job("mmr", network, "linf", state)
    if state == "trained":
        _jobs.train(job, "numba", quick)
    net = _jobs.network(job, quick).astype(np.float64)
    count = (8 if quick else 256) if network == "fc1" else (2 if quick else 32)
    X, y = _jobs.first_samples(network, count)
    X = X.astype(np.float64)
    box = (np.zeros(net.input_shape), np.ones(net.input_shape))
    radii = np.full(len(X), RADIUS)

    def ours() -> np.ndarray:
        found = margin_function(net, X, y, np.inf, box, "crown")(radii, np.arange(len(X)))
        return np.where(np.isinf(found), 0, found)

    runs = {"refmmr": ours}
    row: dict = {"points": len(X), "deviation": None}
    if torch is not None:
        torch.set_num_threads(os.cpu_count() or 1)
        for name, dtype in (("torch float64", torch.float64), ("torch float32", torch.float32)):
            rival = Crown(net, dtype)
            runs[name] = lambda rival=rival: rival.margins(X, y, RADIUS)
        mine = ours()
        off = np.abs(runs["torch float64"]() - mine) / (1 + np.abs(mine))
        row["deviation"] = float(off.max())
        if row["deviation"] > TOLERANCE:
            raise RuntimeError(f"crown-{network}-{state}: bounds differ by {row['deviation']:.1e}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2 if quick else ROUNDS):
        for name, run in runs.items():
            time.sleep(0.1)  # idle threads spin for a while before they sleep
            seconds[name].append(timed(run)[0] / len(X))
    return row | {f"{name} ms": 1e3 * median(spent) for name, spent in seconds.items()}


def search(network: str, norm: str, quick: bool) -> dict:
    """Share of the test points whose minimal perturbation is known, one second each."""
    net, X, y = problem(network, norm, quick)
    X, y = (X[:5], y[:5]) if quick else (X, y)
    p = NORMS[norm]
    right = net.predict(X) == y
    region = rm.certify(net, X, y, p, progress=False)
    each, exact, closed = [], [], []
    for i in tqdm(range(len(X)), leave=False):
        seconds, found = timed(
            lambda i=i: rm.certify(
                net, X[[i]], y[[i]], p, method="search", max_seconds=1.0, progress=False
            )
        )
        each.append(seconds)
        exact.append(bool(found.exact[0]))
        closed.append(float(found.lower[0] / found.upper[0]) if found.upper[0] > 0 else 1.0)
    return {
        "points": len(X),
        "test_error": float((~right).mean()),
        "exact_by_region": float((region.exact & right).mean()),
        "exact_by_search": float((np.array(exact) & right).mean()),
        "solved": float(np.mean(exact)),
        "median_ms": 1e3 * median(each),
        "p95_ms": 1e3 * float(np.quantile(each, 0.95)),
        "largest_ms": 1e3 * max(each),
        "worst_ratio_of_bounds": min(closed),
    }


def timed(run) -> tuple[float, object]:
    """Seconds of a call, and what it returns."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def markdown(report: dict) -> str:
    """The tables."""
    lines = ["# Certification: what the methods cost, and what they prove", ""]
    lines += _crown_table(report) + _search_table(report)
    for network in NETWORKS:
        for norm in NORMS:
            lines += _methods_table(report, network, norm)
    if report:
        last = report[list(report)[-1]]["machine"]
        lines += [in_words(last) + ".", ""]
    return "\n".join(lines)


def _crown_table(report):
    names = [name for name in report if name.startswith("crown-")]
    if not names:
        return []
    columns = ("refmmr", "torch float64", "torch float32")
    rows = []
    for name in names:
        row = report[name]
        figures = [f"{row[f'{c} ms']:.2f}" if f"{c} ms" in row else "" for c in columns]
        off = "" if row["deviation"] is None else f"{row['deviation']:.0e}"
        rows.append([name[6:], *figures, off])
    return [
        f"## CROWN in l_inf, radius {RADIUS}: all margins of a point, ms",
        "",
        "refmmr computes in float64 and subtracts a bound of the rounding errors; PyTorch's bounds "
        "have rounding errors.",
        "",
        *table(["network", *columns, "largest deviation"], rows),
        "",
    ]


def _search_table(report):
    names = [name for name in report if name.startswith("search-")]
    if not names:
        return []
    head = ["norm", "points", "test error", "known by region", "known by search"]
    head += ["solved (with misclassified)", "median ms", "95% ms", "largest ms"]
    rows = []
    for name in names:
        row = report[name]
        shares = [
            f"{100 * row[key]:.1f} %"
            for key in ("test_error", "exact_by_region", "exact_by_search", "solved")
        ]
        times = [f"{row[key]:.0f}" for key in ("median_ms", "p95_ms", "largest_ms")]
        rows.append([name.split("-")[-1], row["points"], *shares, *times])
    title = "## Minimal perturbations of the demo's MMR+at network, a second a point"
    return [title, "", *table(head, rows), ""]


def _methods_table(report, network, norm):
    prefix = f"methods-{network}-{norm}-"
    names = [name for name in report if name.startswith(prefix)]
    if not names:
        return []
    head = ["method", "points", "median ms", "mean ms", "mean lower bound", "mean upper bound"]
    rows = []
    for name in names:
        row = report[name]
        bounds = [
            "" if row[key] is None else f"{row[key]:.4f}" for key in ("mean_lower", "mean_upper")
        ]
        times = [f"{row[key]:.2f}" for key in ("median_ms", "mean_ms")]
        exact = f"{100 * row['exact_share']:.0f} %"
        rows.append([name.removeprefix(prefix), row["points"], *times, *bounds, exact])
    title = f"## {network}, {norm}: certified radii and minimal perturbations"
    return [title, "", *table([*head, "exact"], rows), ""]


if __name__ == "__main__":
    main()
