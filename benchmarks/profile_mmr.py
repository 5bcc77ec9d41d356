"""Where the Numba backend's time goes in one value and gradient of MMR, and how near the floor.

Profiles ``rm.mmr_gradient`` on one thread, batch 128, for both networks of the paper at
initialisation and on the trained weights that ``backends.py`` has left in ``out/bench``, and writes
``results/profile_mmr.md``.  Time spent in matrix products and in compiled loops shows up under the
function that calls them.  Needs ``REFMMR_DATA``.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from pathlib import Path

import _command
import _floor
import _jobs
from _machine import machine
from _markdown import in_words, table
from threadpoolctl import threadpool_limits

import refmmr as rm
from refmmr.backends import threads

CALLS = 10
LINES = 12
RESULTS = Path(__file__).parent / "results" / "profile_mmr.md"


def main() -> None:
    """Profile, write."""
    _command.parser(__doc__).parse_args()
    parts = ["# Where the time of an MMR step goes", ""]
    where = in_words(machine())
    parts.append(f"Written by `benchmarks/profile_mmr.py`: one thread, float32, l_2; {where}.")
    rm.set_backend("numba")
    threads.set_threads(1)
    with threadpool_limits(1):
        rate = _floor.gemm_rate()
        for job in _jobs.jobs("mmr-*-l2-*"):
            parts += ["", f"## {job.name}", "", *section(job, rate)]
    RESULTS.write_text("\n".join(parts) + "\n")


def section(job: _jobs.Job, rate: float) -> list[str]:
    """The functions that take most of the time, and the floor."""
    net = _jobs.network(job)
    X, y = _jobs.first_samples(job.network, _jobs.BATCH)
    step = _jobs.call(job, "numba", net, X, y)
    step()
    seconds = min(timed(step) for _ in range(CALLS))
    hyperplanes = _floor.slopes(net, rm.distances(net, X, y, job.p), _jobs.options(job, net))
    floor = _floor.operations(net, *hyperplanes, len(X)) / rate
    profile = cProfile.Profile()
    for _ in range(CALLS):
        profile.runcall(step)
    stats = pstats.Stats(profile)
    total = stats.total_tt
    entries = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:LINES]
    rows = []
    for (file, _, name), (calls, _, own, _, _) in entries:
        place = Path(file).name if file.endswith(".py") else ""
        rows.append([f"`{place} {name}`", calls // CALLS, f"{100 * own / total:.1f} %"])
    return [
        f"{1e3 * seconds:.1f} ms a call of {len(X)} samples; the arithmetic takes "
        f"{1e3 * floor:.1f} ms at {rate / 1e9:.0f} GFLOP/s, {100 * floor / seconds:.0f} % of it.",
        "",
        *table(["function", "calls", "share of the time"], rows),
    ]


def timed(step: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
