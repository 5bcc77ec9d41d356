"""``refmmr demo`` and ``refmmr train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

import refmmr as rm
from refmmr import datasets
from refmmr._files import npz_path
from refmmr._presets import presets
from refmmr.cli.app import interruptible, main
from refmmr.cli.options import BACKEND, NORMS, ROW, headless
from refmmr.training import SCHEMES
from refmmr.training.plan import BORDERS, NEAREST


@main.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    help="Folder for networks, figures, results.json and report.html.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Length of each training. [default: 100]"
)
@BACKEND
@interruptible
def demo(out: Path, epochs: int | None) -> None:
    """Train four ways on digits, certify, compare: the whole method in a minute.

    Trains the same small network plain, at (adversarial), mmr and mmr+at, certifies the test set
    and prints the table; everything else is in report.html.
    """
    headless()
    from refmmr import demo as job

    job.run(out, click.echo, epochs)


DEFAULTS: dict[str, Any] = {
    "data": "digits", "scheme": "mmr", "hidden": "64", "p": "2", "eps": 0.3, "lam": 1.0,
    "gamma": 0.6, "epochs": 50, "lr": 1e-3, "pgd_steps": 40,
}  # fmt: skip
"""Of the options that a preset sets too."""


def _one_or_two(ctx: click.Context, option: click.Parameter, text: str | None) -> Any:
    """One number, or a pair of numbers with a comma between."""
    try:
        numbers = None if text is None else [float(number) for number in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"expected 0.6 or 0.5,0.7, got {text!r}") from error
    if numbers is not None and len(numbers) > 2:
        raise click.BadParameter(f"expected one number or two, got {text!r}")
    if numbers is None or len(numbers) == 2:
        return numbers
    return numbers[0]


@main.command()
@click.option(
    "--preset",
    type=ROW,
    metavar="NAME",
    help="Settings of a row of the paper's table, such as mnist-cnn-linf-mmr+at; options beside it "
    "replace single ones.",
)
@click.option("--data", help="Data set, as for 'refmmr certify'. [default: digits]")
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES, case_sensitive=False),
    help="Plain cross-entropy, adversarial training, MMR, both, MMR in l_1 and l_inf, or the bound "
    "of Wong and Kolter. [default: mmr]",
)
@click.option(
    "--hidden",
    help="Units of the hidden layers, e.g. 1024 or 64,64; 'lenet' for the paper's CNN. "
    "[default: 64]",
)
@click.option("--p", type=click.Choice(NORMS, case_sensitive=False), help="Norm. [default: 2]")
@click.option("--eps", type=float, help="Radius of the attacks. [default: 0.3]")
@click.option(
    "--lam",
    callback=_one_or_two,
    help="Weight of MMR; for mmr-universal two, in l_1 and l_inf, such as 3,12. [default: 1]",
)
@click.option(
    "--gamma",
    callback=_one_or_two,
    help="Target distances of MMR, one or gamma_b,gamma_d; for mmr-universal in l_1 and l_inf. "
    "[default: 0.6]",
)
@click.option(
    "--k-b-shares",
    type=(float, float),
    help="k_B as a share of the hidden units, at the start and at the end. [default: 0.1 0.02; for "
    "mmr-universal 0.2 0.05]",
)
@click.option("--k-d", type=int, help="Decision boundaries that count. [default: all]")
@click.option(
    "--border",
    type=click.Choice(BORDERS, case_sensitive=False),
    default=BORDERS[0],
    show_default=True,
    help="How MMR measures border units of the first convolution.",
)
@click.option(
    "--nearest",
    type=click.Choice(NEAREST, case_sensitive=False),
    default=NEAREST[0],
    show_default=True,
    help="Boundaries that count for mmr-universal: the nearest in each norm, or in either.",
)
@click.option("--pgd-steps", type=int, help="Steps of the attack. [default: 40]")
@click.option(
    "--random-start/--no-random-start",
    default=True,
    show_default=True,
    help="Start the attack at a random point of the ball.",
)
@click.option("--epochs", type=int, help="[default: 50]")
@click.option("--batch-size", type=int, default=128, show_default=True)
@click.option("--lr", type=float, help="Learning rate of Adam. [default: 0.001]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--validate", is_flag=True, help="Record the test error of every epoch.")
@click.option(
    "--float32/--float64",
    default=None,
    help="Precision of the training; float32 takes about half the time. [default: float32 with "
    "--preset, else float64]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The trained network, an .npz file.",
)
@BACKEND
@interruptible
def train(
    preset: str | None, k_b_shares: tuple[float, float] | None, k_d: int | None, border: str,
    nearest: str, random_start: bool, batch_size: int, seed: int, validate: bool,
    float32: bool | None, out: Path, **given: Any,
) -> None:  # fmt: skip
    """Train a network and save it.

    A checkpoint is written beside the network after every epoch (OUT.checkpoint.npz).  The same
    command continues from it after an interruption; it is removed when the training is complete.
    """
    npz_path(out)  # an error before the training, for another ending
    row = {} if preset is None else _settings(preset)
    settings = DEFAULTS | row | {k: value for k, value in given.items() if value is not None}
    data, hidden = settings.pop("data"), settings.pop("hidden")
    single = preset is not None if float32 is None else float32
    dtype = np.float32 if single else np.float64
    points = datasets.load(data, images=hidden == "lenet", dtype=dtype)
    net = _architecture(hidden, points, seed).astype(dtype)
    checkpoint = out.with_suffix(".checkpoint.npz")
    net, history = rm.fit(
        net, points.X_train, points.y_train, **settings, batch_size=batch_size, rng=seed,
        k_b_shares=k_b_shares, k_d=k_d, border=border, nearest=nearest, random_start=random_start,
        validation=(points.X_test, points.y_test) if validate else None, checkpoint=checkpoint,
    )  # fmt: skip
    if history.interrupted:
        click.echo(
            f"{len(history)} of {settings['epochs']} epochs are kept in {checkpoint}", err=True
        )
        raise KeyboardInterrupt
    rm.save(net, out)
    checkpoint.unlink()
    error = float((net.predict(points.X_test) != points.y_test).mean())
    click.echo(f"{net}")
    click.echo(f"loss {history['loss'][-1]:.4f}, test error {100 * error:.2f} %, saved to {out}")


def _settings(name: str) -> dict[str, Any]:
    """A preset as options of this command."""
    row = presets[name]
    hidden = {"fc1": "1024", "cnn": "lenet"}[row.network]
    return {"data": row.data, "hidden": hidden, "eps": row.eps, **row.options()}


def _architecture(hidden: str, points: datasets.Dataset, seed: int) -> rm.Network:
    if hidden == "lenet":
        _, *shape = points.X_train.shape
        return rm.Network.lenet_small(tuple(shape), points.n_classes, rng=seed)
    try:
        units = [int(width) for width in hidden.split(",")]
    except ValueError as error:
        raise ValueError(
            f"hidden: expected numbers of units such as 64,64, or 'lenet', got {hidden!r}"
        ) from error
    return rm.Network.mlp([points.X_train.shape[1], *units, points.n_classes], rng=seed)
