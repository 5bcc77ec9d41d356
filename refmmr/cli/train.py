"""``refmmr demo`` and ``refmmr train``."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

import refmmr as rm
from refmmr import datasets
from refmmr._files import npz_path
from refmmr.cli.app import interruptible, main
from refmmr.cli.options import BACKEND, DATA, EPS, NORM, headless
from refmmr.training import SCHEMES


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


@main.command()
@DATA
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES, case_sensitive=False),
    default="mmr",
    show_default=True,
    help="Plain cross-entropy, adversarial training, MMR, both, or the bound of Wong and Kolter.",
)
@click.option(
    "--hidden",
    default="64",
    show_default=True,
    help="Units of the hidden layers, e.g. 1024 or 64,64; 'lenet' for the paper's CNN.",
)
@NORM
@EPS
@click.option("--lam", type=float, default=1.0, show_default=True, help="Weight of MMR.")
@click.option(
    "--gamma", type=float, default=0.6, show_default=True, help="Target distances of MMR."
)
@click.option("--epochs", type=int, default=50, show_default=True)
@click.option("--batch-size", type=int, default=128, show_default=True)
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Learning rate of Adam.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--float32", is_flag=True, help="Train in single precision.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The trained network, an .npz file.",
)
@BACKEND
@interruptible
def train(
    data: str, scheme: str, hidden: str, p: str, eps: float, lam: float, gamma: float,
    epochs: int, batch_size: int, lr: float, seed: int, float32: bool, out: Path,
) -> None:  # fmt: skip
    """Train a network and save it.

    A checkpoint is written beside the network after every epoch (OUT.checkpoint.npz).  The same
    command continues from it after an interruption; it is removed when the training is complete.
    """
    npz_path(out)  # an error before the training, for another ending
    dtype = np.float32 if float32 else np.float64
    points = datasets.load(data, images=hidden == "lenet", dtype=dtype)
    net = _architecture(hidden, points, seed).astype(dtype)
    checkpoint = out.with_suffix(".checkpoint.npz")
    net, history = rm.fit(
        net, points.X_train, points.y_train, scheme, p=p, eps=eps, lam=lam, gamma=gamma,
        epochs=epochs, batch_size=batch_size, lr=lr, rng=seed, checkpoint=checkpoint,
    )  # fmt: skip
    if history.interrupted:
        click.echo(f"{len(history)} of {epochs} epochs are kept in {checkpoint}", err=True)
        raise KeyboardInterrupt
    rm.save(net, out)
    checkpoint.unlink()
    error = float((net.predict(points.X_test) != points.y_test).mean())
    click.echo(f"{net}")
    click.echo(f"loss {history['loss'][-1]:.4f}, test error {100 * error:.2f} %, saved to {out}")


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
