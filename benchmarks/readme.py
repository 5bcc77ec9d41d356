"""Write the demo's table and picture into the README, from a run of the demo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from _machine import machine

from refmmr import demo

ROOT = Path(__file__).parent.parent
START, END = "<!-- demo table: written by benchmarks/readme.py -->", "<!-- end of demo table -->"


def main() -> None:
    """Run the demo, replace what stands between the marks."""
    out = ROOT / "out" / "demo"
    demo.run(out)
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "regions.png", images / "demo-regions.png")
    report = json.loads((out / "results.json").read_text())
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(START)
    _, after = rest.split(END)
    readme.write_text(before + START + "\n" + table(report) + END + after)


def table(report: dict) -> str:
    """The demo's figures in Markdown, with the machine."""
    head = "| training | test error | robust error, at least - at most | mean certified radius "
    head += "| minimal change exact | training time |"
    rows = [
        f"| {row['scheme']} | {100 * row['test_error']:.1f} % "
        f"| {100 * row['robust_error_lower_bound']:.1f} - "
        f"{100 * row['robust_error_upper_bound']:.1f} % | {row['mean_certified_radius']:.3f} "
        f"| {100 * row['exact_share']:.1f} % | {row['training_seconds']:.1f} s |"
        for row in report["rows"]
    ]
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    sizes = "-".join(map(str, report["network"]))
    what = f"digits, {sizes}, l_{report['p']}, eps = {report['eps']}; {where}."
    return "\n".join(["", head, "| --- " * 6 + "|", *rows, "", what, ""])


if __name__ == "__main__":
    main()
