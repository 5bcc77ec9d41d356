"""Count and time linear regions, by this library and by other tools from PyPI.

The networks are random, with He initialisation and small biases; counted are the regions of full
dimension in the box [-1, 1]^n.  Every run is a process of its own on one thread (see
``_region_rivals.py``, which also says what each tool counts by which option); one that takes longer
than ``--limit`` seconds is given up.  The activation patterns of all tools that finished are then
compared, and those that not all of them claim are checked in exact arithmetic
(``_region_judge.py``).  Further jobs are of this library alone (``_region_alone.py``).

The rivals live in ``build/rivals``, which ``make -C benchmarks regions`` makes; without it they are
left out.  Relucent is not among them unless one installs and asks for it (``--tools '*'``): its
solver, Gurobi, comes with a licence for evaluation that forbids to publish timings, so only the
regions it counts are written.

Slices need ``REFMMR_DATA``.  Results are merged into ``results/regions.json`` after each job, with
``regions.md`` beside it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import _command
import numpy as np
from _machine import machine
from _markdown import table, write
from _region_alone import JOBS, OUT, layers_of, name_of, random_network
from _region_judge import verdicts
from _region_rivals import RADIUS, TOOLS
from tqdm import tqdm

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NETWORKS = {
    name_of(sizes): sizes
    for sizes in (
        [2, 16, 16, 2],
        [2, 32, 32, 2],
        [2, 64, 64, 64, 2],
        [2, 128, 128, 128, 2],
        [3, 16, 16, 2],
        [4, 12, 12, 2],
        [8, 10, 10, 2],
    )
}
QUICK = ("2-16-16-2", "3-16-16-2", *JOBS)
OURS = ("refmmr numpy", "refmmr numba")
RIVALS = tuple(tool for tool in TOOLS if tool not in OURS)
COUNT_ONLY = ("relucent",)
"""Tools whose timings may not be published."""
LIBRARIES = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON", "REFMMR")
"""Whose number of threads the environment tells."""
AFTERWARDS = 600
"""Seconds beyond the limit for imports, compilation and the patterns."""


def main() -> None:
    """Run the jobs that are asked for."""
    asked = arguments()
    path = (asked.results or (OUT if asked.quick else RESULTS)) / "regions.json"
    report = json.loads(path.read_text()) if path.exists() else {"networks": {}, "alone": {}}
    for name in (bar := tqdm(todo(asked))):
        bar.set_description(name)
        about = {"load_average": os.getloadavg()[0], "machine": machine(), "limit": asked.limit}
        if name in NETWORKS:
            report["networks"][name] = compare(NETWORKS[name], asked) | about
        else:
            report["alone"][name] = {"rows": alone(name, asked)} | about
        write(path, report, markdown(report))
    print(markdown(report))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = _command.parser(__doc__)
    parser.add_argument("--only", default="*", metavar="NAME", help="patterns, as 2-*,million")
    parser.add_argument(
        "--tools",
        default="refmmr*,regioncam,affinitree",
        help="patterns; a row has these only (default: all but relucent)",
    )
    parser.add_argument("--limit", type=int, help="seconds for a run (120, with --quick 30)")
    parser.add_argument("--alone-limit", type=int, default=1800, help="the same, of our own jobs")
    parser.add_argument("--no-check", action="store_true", help="do not compare the patterns")
    parser.add_argument("--rivals", default="build/rivals/bin/python", help="their Python")
    parser.add_argument(
        "--fc1", type=Path, help="784-1024-10 trained on MNIST, as rm.save wrote it"
    )
    parser.add_argument("--results", type=Path, help="folder to write to, if not results/")
    parser.add_argument("--quick", action="store_true", help="small ones; results in out/regions")
    asked = parser.parse_args()
    asked.limit = asked.limit or (30 if asked.quick else 120)
    return asked


def todo(asked: argparse.Namespace) -> list[str]:
    """Names of the jobs."""
    names = QUICK if asked.quick else (*NETWORKS, *JOBS)
    return [name for name in names if fits(name, asked.only)]


def fits(name: str, patterns: str) -> bool:
    """Whether a name fits one of some patterns, separated by commas."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))


# One job.


def compare(sizes: list[int], asked: argparse.Namespace) -> dict:
    """All tools on one network, and who is right where they differ."""
    layers = layers_of(random_network(sizes))
    with tempfile.TemporaryDirectory() as folder:
        net = Path(folder) / "net.npz"
        weights = {f"W{i}": W for i, (W, _) in enumerate(layers)}
        np.savez(net, **weights, **{f"b{i}": b for i, (_, b) in enumerate(layers)})
        results, claims = {}, {}
        for tool in (tool for tool in TOOLS if fits(tool, asked.tools)):
            target = Path(folder) / f"{tool}.npz"
            results[tool] = one(tool, net, target, asked)
            if target.exists():
                with np.load(target) as file:
                    claims[tool] = file["packed"]
    judged = verdicts(claims, layers, RADIUS) if claims else {}
    return {"tools": results, "verdicts": judged}


def one(tool: str, net: Path, target: Path, asked: argparse.Namespace) -> dict:
    """One tool on one network."""
    python = sys.executable if tool in OURS else asked.rivals
    if tool in RIVALS and not Path(python).exists():
        return {"failed": "not installed (make -C benchmarks regions)"}
    files = [str(net)] if asked.no_check else [str(net), str(target)]
    command = [python, str(HERE / "_region_rivals.py"), tool, str(asked.limit), *files]
    found = child(command, asked.limit)
    if tool not in COUNT_ONLY:
        return found
    kept = {key: found[key] for key in ("regions", "version") if key in found}
    return kept or {"failed": "no count"}


def alone(name: str, asked: argparse.Namespace) -> list[dict]:
    """A job of this library's own."""
    if name.startswith("slice") and not os.environ.get("REFMMR_DATA"):
        return [{"what": name, "failed": "REFMMR_DATA is not set"}]
    options = json.dumps({"quick": asked.quick, "fc1": asked.fc1 and str(asked.fc1)})
    command = [sys.executable, str(HERE / "_region_alone.py"), name, str(asked.alone_limit)]
    found = child([*command, options], asked.alone_limit)
    return found if isinstance(found, list) else [{"what": name} | found]


def child(command: list[str], limit: int) -> dict | list:
    """What a process prints as JSON, or why it failed, in a line."""
    environment = os.environ | {f"{name}_NUM_THREADS": "1" for name in LIBRARIES}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=limit + AFTERWARDS)
    except subprocess.TimeoutExpired:
        stop(process)
        output, errors = process.communicate()
    except BaseException:
        stop(process)
        raise
    stop(process)
    if output.strip():
        return json.loads(output.strip().splitlines()[-1])
    if process.returncode in (-signal.SIGALRM, -signal.SIGKILL):
        why = "time limit" if process.returncode == -signal.SIGALRM else "killed"
        return {"failed": why}
    return {"failed": ([*errors.strip().splitlines(), f"exit {process.returncode}"])[-1][:200]}


def stop(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# The report.


def markdown(report: dict) -> str:
    """The tables, what was measured on what, and who is right."""
    networks = {name: report["networks"][name] for name in NETWORKS if name in report["networks"]}
    parts = ["# Linear regions", "", *explanation(report, networks)]
    if networks:
        parts += ["", "## Against other tools", "", *rivals_table(networks)]
        parts += ["", *notes(networks), "", "### Detail", "", *detail_table(networks)]
    if report["alone"]:
        parts += ["", "## This library alone", "", *alone_table(report["alone"])]
    return "\n".join(parts) + "\n"


def explanation(report: dict, networks: dict) -> Iterator[str]:
    """What the columns mean, on which machine and with which versions."""
    rows = [*report["networks"].values(), *report["alone"].values()]
    where = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in row["machine"].items() if k != "blas_threads")
        for row in rows
    )
    loads = [row["load_average"] for row in rows] or [0]
    versions = {
        f"{tool} {found['version']}"
        for row in networks.values()
        for tool, found in row["tools"].items()
        if tool in RIVALS and "version" in found
    }
    yield f"Written by `benchmarks/regions.py`. {'; '.join(where)}."
    yield f"Rivals: {', '.join(sorted(versions)) or 'none'}."
    yield f"Load average at the start {min(loads):.1f} to {max(loads):.1f}."
    yield ""
    yield "Regions of full dimension in the box [-1, 1]^n of random networks; one thread, a process"
    yield "for each run, without imports, conversion and compilation. Seconds (regions); the median"
    limits = ", ".join(str(n) for n in sorted({row["limit"] for row in networks.values()}))
    yield f"where there was time for several runs; `-`: more than {limits or 'the limit of'} s. The"
    yield "lead is the time of the quickest rival divided by that of our quicker backend: above 1"
    yield "we are quicker."


def rivals_table(networks: dict) -> list[str]:
    """A row for each network, a column for each tool."""
    tools = [tool for tool in TOOLS if any(tool in row["tools"] for row in networks.values())]
    rows = (
        [name, *(cell(row["tools"].get(tool)) for tool in tools), lead(row), agreement(row)]
        for name, row in networks.items()
    )
    return table(["network", *tools, "lead", "counts"], rows)


def cell(found: dict | None) -> str:
    """Seconds and regions of a tool."""
    if found is None or found.get("failed") == "time limit":
        return "" if found is None else "-"
    if "failed" in found:
        return "not run"
    if "seconds" not in found:
        return f"({found['regions']:,})"
    return f"{found['seconds']:.3g} ({found['regions']:,})"


def lead(row: dict) -> str:
    """Time of the quickest rival against ours; of one that ran out of time at least the limit."""
    tools = row["tools"]
    ours = [tools[tool]["seconds"] for tool in OURS if "seconds" in tools.get(tool, {})]
    theirs = [tools[tool]["seconds"] for tool in RIVALS if "seconds" in tools.get(tool, {})]
    late = any(tools.get(tool, {}).get("failed") == "time limit" for tool in RIVALS)
    if not ours or not (theirs or late):
        return ""
    return f"{min(theirs) / min(ours):.3g}" if theirs else f"> {row['limit'] / min(ours):.3g}"


def agreement(row: dict) -> str:
    """Whether the counts of those who finished are the same."""
    counts = {found["regions"] for found in row["tools"].values() if "regions" in found}
    wrong = [tool for tool, said in row["verdicts"].items() if said["wrong"] or said["missed"]]
    if len(counts) == 1 and not wrong:
        return "agree" if len(row["verdicts"]) > 1 else ""
    return "see below" if counts else ""


def notes(networks: dict) -> Iterator[str]:
    """Who was wrong, by exact arithmetic, and who did not run."""
    yield "Activation patterns are compared too, also with those of random points, and those in"
    yield "dispute are checked exactly. The patterns of regioncam are those of the middle of the"
    yield "faces: its vertices are float32, and that of a sliver may lie in the next region."
    yield ""
    for name, row in networks.items():
        gaps = [said["gap"] for said in row["verdicts"].values() if said["gap"] is not None]
        if gaps:
            gap = max(gaps, key=abs)
            yield f"- {name}: the exact areas add up to the box but for {gap:.0e} of it"
        for tool, said in row["verdicts"].items():
            if said["wrong"] or said["missed"] or said["distinct"] != row["tools"][tool]["regions"]:
                yield f"- {name}, {tool}: {verdict(said, row['tools'][tool]['regions'])}"
        for tool, found in row["tools"].items():
            if found.get("failed", "time limit") != "time limit":
                yield f"- {name}, {tool}: {found['failed']}"


def verdict(said: dict, count: int) -> str:
    """What the exact check says of a tool."""
    checked, disputed = said["checked"]
    text = (
        f"{count:,} counted, {said['distinct']:,} distinct patterns; {said['wrong']:,} are of no "
    )
    text += f"region, {said['missed']:,} regions are missing"
    return text + (
        f" (of {checked} checked of {disputed} in dispute)" if checked < disputed else ""
    )


def detail_table(networks: dict) -> list[str]:
    """Rates and memory."""
    rows = (
        [
            name,
            tool,
            f"{found['regions']:,}",
            f"{found['seconds']:.4g}",
            f"{found['best']:.4g}",
            found["repetitions"],
            f"{found['regions'] / found['seconds']:,.0f}",
            f"{found['peak_mb']:.0f}",
        ]
        for name, row in networks.items()
        for tool, found in row["tools"].items()
        if "seconds" in found
    )
    head = ["network", "tool", "regions", "s", "best s", "runs", "regions/s", "peak MB"]
    return [*table(head, rows), "", "Peak MB is what the run adds to the process."]


def alone_table(jobs: dict) -> list[str]:
    """The library's own jobs."""
    rows = []
    for name in JOBS:
        for row in jobs.get(name, {}).get("rows", []):
            if "failed" in row:
                rows.append([name, row["what"], "", row["failed"], "", "", ""])
                continue
            cells = [name, row["what"], row["backend"], f"{row['regions']:,}"]
            cells += [f"{row['seconds']:.4g}", f"{1e6 * row['seconds'] / row['regions']:.3g}"]
            rows.append([*cells, f"{row['peak_mb']:.0f}"])
    return table(["job", "what", "backend", "regions", "s", "us a region", "peak MB"], rows)


if __name__ == "__main__":
    main()
