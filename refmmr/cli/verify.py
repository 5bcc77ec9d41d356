"""``refmmr verify``: whether a property of a network holds."""

from __future__ import annotations

from pathlib import Path

import click

import refmmr as rm
from refmmr.cli.app import interruptible, main
from refmmr.cli.options import BACKEND, MODEL


@main.command()
@MODEL
@click.argument("question", metavar="PROPERTY", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--max-seconds",
    type=float,
    default=60,
    show_default=True,
    help="Time limit; then the verdict is 'unknown'.",
)
@click.option(
    "--counterexample",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a counterexample to this file, in the format of VNN-COMP.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the search for counterexamples."
)
@BACKEND
@interruptible
def verify(
    model: Path, question: Path, max_seconds: float, counterexample: Path | None, seed: int
) -> None:
    """Decide whether a property (VNN-LIB) of MODEL holds.

    The first word of the output is the verdict: 'holds' (proved: no input is a counterexample),
    'violated' (a counterexample was found) or 'unknown'.  PROPERTY is a .vnnlib or .vnnlib.gz file.
    """
    found = rm.verify(model, question, max_seconds=max_seconds, rng=seed)
    details = [f"{found.seconds:.1f} s"]
    if found.status == "violated":
        details.append("the counterexample satisfies all constraints in exact arithmetic")
    if found.replayed is not None:
        details.append(f"onnxruntime {'agrees' if found.replayed else 'does not agree'}")
    if found.reason:
        details.append(found.reason)
    click.echo(f"{found.status}  ({'; '.join(details)})")
    if counterexample is not None and found.exact is not None:
        found.save_counterexample(counterexample)
        click.echo(f"counterexample in {counterexample}")
