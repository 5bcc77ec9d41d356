"""Options and arguments that several commands share."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

import refmmr as rm
from refmmr import datasets
from refmmr._backend import set_backend
from refmmr._presets import presets


def _choose_backend(ctx: click.Context, option: click.Parameter, name: str | None) -> None:
    try:
        if name is not None:
            set_backend(name)
    except (ValueError, ImportError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error


BACKEND = click.option(
    "--backend",
    callback=_choose_backend,
    expose_value=False,
    help="Implementation of the hot paths, see 'refmmr info'; $REFMMR_BACKEND, or numpy, if not "
    "given.",
)
DATA = click.option(
    "--data",
    default="digits",
    show_default=True,
    help="Data set: digits, moons; mnist, fashion-mnist, cifar10, gtsrb (from the folder "
    "$REFMMR_DATA, else downloaded); or a path: folders of IDX, CIFAR-10 or GTSRB files, an .npz "
    "or a .csv file.",
)
NORMS = ("1", "2", "inf", "l1", "l2", "linf")
NORM = click.option(
    "--p",
    type=click.Choice(NORMS, case_sensitive=False),
    default="2",
    show_default=True,
    help="Norm.",
)


class _Row(click.Choice):
    """A name of `refmmr.presets`; for another one the nearest names, not all of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            near = difflib.get_close_matches(str(value).lower(), presets, cutoff=0)
            self.fail(
                f"expected a data set (mnist, fmnist, gts, cifar10), a network (fc1, cnn), a norm "
                f"(linf, l2) and a scheme (plain, at, kw, mmr, mmr+at), or mnist-cnn-universal, "
                f"fmnist-cnn-universal, got {value!r}; near to it: {', '.join(near)}",
                param,
                ctx,
            )


ROW = _Row(list(presets), case_sensitive=False)
MODEL = click.argument("model", type=click.Path(dir_okay=False, path_type=Path))


def _sizes(ctx: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """Integers with commas between."""
    try:
        return None if text is None else [int(size) for size in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"expected integers such as 1,28,28, got {text!r}") from error


def geometry(command: Callable) -> Callable:
    """Add the options for files that hold weights without strides, padding and input shape."""
    for option in (
        click.option(
            "--flatten",
            type=click.Choice(["NCHW", "NHWC"]),
            help="For .mat: order in which the first dense layer reads the image before it.",
        ),
        click.option(
            "--padding",
            callback=_sizes,
            help="Zeros around images; one number, or one per convolution.",
        ),
        click.option(
            "--stride",
            callback=_sizes,
            help="Stride of the convolutions; one number, or one per convolution.",
        ),
        click.option(
            "--input-shape",
            callback=_sizes,
            help="Of the network, e.g. 1,28,28, for files that do not contain it (state dicts).",
        ),
    ):
        command = option(command)

    @wraps(command)
    def run(
        model: Path | None, input_shape: Any, stride: Any, padding: Any, flatten: Any, **others: Any
    ) -> None:
        net = None
        if model is not None:
            net = rm.load(
                model, input_shape=input_shape, stride=_one(stride), padding=_one(padding),
                flatten=flatten,
            )  # fmt: skip
        command(net=net, **others)

    return run


def _one(sizes: list[int] | None) -> list[int] | int | None:
    """A single size stands for all convolutions."""
    return sizes[0] if sizes is not None and len(sizes) == 1 else sizes


EPS = click.option(
    "--eps", type=float, default=0.3, show_default=True, help="Radius of the attacks."
)


def check_fit(net: rm.Network, points: datasets.Dataset) -> None:
    """Raise a ValueError if the inputs of the network have another shape than the data."""
    if points.X_test.shape[1:] != net.input_shape:
        raise ValueError(
            f"data: expected inputs of shape {net.input_shape} for this network, got "
            f"{points.X_test.shape[1:]} of {points.name}; name another data set with --data"
        )


def headless() -> None:
    """Draw into files, without a window system."""
    import matplotlib as mpl

    mpl.use("Agg")
