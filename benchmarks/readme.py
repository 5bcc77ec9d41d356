"""Write the demo's table and picture, and figures of the benchmarks, into the README.

The demo is run anew (unless ``--no-demo``); the other figures are those of the last
``make -C benchmarks`` with ``backends``, ``training``, ``wk17a``, ``rsl18a`` and ``table1``, and
of ``benchmarks/gpu.sh``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import _command
import _readme
import _table1_report
import rsl18a
import wk17a
from _machine import machine
from _markdown import in_words, table
from training import EPOCH

from refmmr import demo

ROOT = Path(__file__).parent.parent
# What is shown of results/backends.json, and the name that a reader is told.
SHOWN = {
    "mmr-fc1-l2-init": "MMR gradient, FC1, 128 images, at initialisation",
    "mmr-fc1-l2-trained": "MMR gradient, FC1, 128 images, trained",
    "mmr-lenet-l2-init": "MMR gradient, CNN, an image, at initialisation",
    "mmr-lenet-l2-trained": "MMR gradient, CNN, an image, trained",
    "pgd-fc1-l2-trained": "PGD, FC1, 64 images, 40 steps",
    "pgd-lenet-l2-trained": "PGD, CNN, 64 images, 40 steps",
}
# The trainings of results/training.json whose epochs are shown, and their names in gpu.json.
EPOCHS = {
    "fc1-mmr-linf-trained": "fc1-linf mmr",
    "fc1-mmr+at-linf-trained": "fc1-linf mmr+at",
    "lenet-mmr-linf-trained": "cnn-linf mmr",
    "lenet-mmr+at-linf-trained": "cnn-linf mmr+at",
}
IMPLEMENTATIONS = ("numpy", "numba", "torch (a)", "torch (b)", "torch (c)")


def main() -> None:
    """Replace what stands between the marks."""
    parser = _command.parser(__doc__)
    parser.add_argument("--no-demo", action="store_true", help="leave the demo's table as it is")
    if not parser.parse_args().no_demo:
        _readme.replace("demo table", demo_table(run_demo()))
    for name, text in stored_tables().items():
        _readme.replace(name, text)


def stored_tables() -> dict[str, str]:
    """What stands between the marks, from the files in ``results`` and ``zoo``; not the demo's."""
    return {
        "backends table": backends_table(results("backends")),
        "training table": training_table(results("training"), results("gpu")["runs"][-1]),
        "certification table": certification_table(results("wk17a")),
        "open table": open_table(results("rsl18a")),
        "paper's table": _table1_report.short_table(_table1_report.table()),
    }


def results(name: str) -> dict:
    """What a benchmark wrote."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def run_demo() -> dict:
    """The demo's results; its picture goes to the docs."""
    out = ROOT / "out" / "demo"
    demo.run(out)
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "regions.png", images / "demo-regions.png")
    return json.loads((out / "results.json").read_text())


def demo_table(report: dict) -> str:
    """The demo's figures in Markdown, with the machine."""
    head = ["training", "test error", "robust error", "not certified by region, CROWN"]
    head += ["mean radius by region, CROWN", "minimal change in the region", "training time"]
    rows = [
        [
            row["scheme"],
            f"{100 * row['test_error']:.1f} %",
            demo.interval(row["robust_error_lower_bound"], row["robust_error_upper_bound"]),
            ", ".join(f"{100 * share:.1f} %" for share in row["not_certified"].values()),
            ", ".join(f"{radius:.3f}" for radius in row["mean_certified_radius"].values()),
            f"{100 * row['exact_share']:.1f} %",
            f"{row['training_seconds']:.1f} s",
        ]
        for row in report["rows"]
    ]
    sizes = "-".join(map(str, report["network"]))
    what = f"digits, {sizes}, l_{report['p']}, eps = {report['eps']}; {in_words(machine())}."
    return "\n".join(["", *table(head, rows), "", what, ""])


def backends_table(report: dict) -> str:
    """Some of the backends' figures in Markdown, in milliseconds."""
    rows = {
        key.split("@")[0]: row
        for key, row in report["rows"].items()
        if row["threads"] == row["machine"]["cores"]
    }
    lines = table(
        ["", *IMPLEMENTATIONS],
        (
            [
                title,
                *(cell(job, rows[job]["implementations"].get(name)) for name in IMPLEMENTATIONS),
            ]
            for job, title in SHOWN.items()
        ),
    )
    what = f"float32, l_2; {in_words(rows[next(iter(SHOWN))]['machine'])}."
    return "\n".join(["", *lines, "", what, ""])


def training_table(report: dict, gpu: dict) -> str:
    """Seconds of an epoch of MNIST on the processor, in PyTorch and on a GPU, in Markdown."""
    names = ("this", "torch (c)")
    rows = []
    for case, other in EPOCHS.items():
        network, scheme, *_ = case.split("-")
        row = report["rows"][case]
        times = [EPOCH / 1000 * row[name]["median_ms"] for name in names]
        times.append(EPOCH / 1000 * gpu["fit cupy"][other])
        title = f"{'FC1' if network == 'fc1' else 'CNN'}, {scheme}"
        rows.append([title, *(f"{t:.1f} s" for t in times)])
    head = ["", "numba", "torch (c)", f"cupy, {gpu['machine']['card']}"]
    what = f"float32, l_inf, scaled up from some batches; {in_words(report['machine'])}."
    return "\n".join(["", *table(head, rows), "", what, ""])


def certification_table(report: dict) -> str:
    """Published figures of a network beside ours, in Markdown."""
    seconds = sum(row["total"] for row in report["seconds"].values())
    what = (
        f"{report['points']} points, {report['undecided']} undecided; {seconds:.0f} s of work for "
        f"PGD, CROWN and branching together. {in_words(report['machine'])}."
    )
    return "\n".join(["", *wk17a.compared(report), "", what, ""])


def open_table(report: dict) -> str:
    """Published bounds of a robust error that nobody knows beside ours, in Markdown."""
    hours = sum(row["total"] for row in report["seconds"].values()) / 3600
    what = (
        f"{report['points']} points, {report['open']} undecided; {hours:.1f} h of work. "
        f"{in_words(report['machine'])}."
    )
    return "\n".join(["", *rsl18a.compared(report), "", what, ""])


def cell(job: str, found: dict | None) -> str:
    """Time of an implementation, if it was timed."""
    if found is None or "median_ms" not in found:
        return ""
    per_image = "lenet" in job and job.startswith("mmr")
    return f"{found['ms_a_sample' if per_image else 'median_ms']:.3g} ms"


if __name__ == "__main__":
    main()
