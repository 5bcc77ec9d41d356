"""The command line: ``refmmr demo | train | certify | regions | convert | info``."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np

import refmmr as rm
from refmmr import _validate as check
from refmmr import backends, datasets
from refmmr._backend import get_backend, set_backend
from refmmr.backends import support, threads
from refmmr.certify import METHODS
from refmmr.regions import export
from refmmr.training import SCHEMES

INTERRUPTED = 130

WRITERS: dict[str, Callable[[rm.RegionComplex, Path], object]] = {
    ".html": lambda cx, path: cx.explore(path),
    ".svg": export.save_svg,
    ".geojson": export.save_geojson,
    ".npz": lambda cx, path: cx.save(path),
}
"""What to make of regions for an ending; anything else is a picture."""


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
NORM = click.option(
    "--p",
    type=click.Choice(["1", "2", "inf", "l1", "l2", "linf"], case_sensitive=False),
    default="2",
    show_default=True,
    help="Norm.",
)
MODEL = click.argument("model", type=click.Path(dir_okay=False, path_type=Path))


def _sizes(ctx: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """Integers with commas between."""
    try:
        return None if text is None else [int(size) for size in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"expected integers such as 1,28,28, got {text!r}") from error


def _geometry(command: Callable) -> Callable:
    """Options for files that hold weights but not what is around them."""
    for option in (
        click.option(
            "--flatten",
            type=click.Choice(["NCHW", "NHWC"]),
            help="For .mat: order in which the first dense layer reads the image before it.",
        ),
        click.option(
            "--padding", callback=_sizes, help="Zeros around images; one, or one a convolution."
        ),
        click.option(
            "--stride", callback=_sizes, help="Of the convolutions; one, or one a convolution."
        ),
        click.option(
            "--input-shape",
            callback=_sizes,
            help="Of the network, e.g. 1,28,28, for files that do not tell (state dicts).",
        ),
    ):
        command = option(command)

    @wraps(command)
    def run(
        model: Path, input_shape: Any, stride: Any, padding: Any, flatten: Any, **others: Any
    ) -> None:
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


PACKAGES = (
    "numpy", "scipy", "highspy", "matplotlib", "scikit-learn", "joblib", "tqdm", "click", "dask",
    "onnx", "safetensors", "pandas", "pooch", "torch",
)  # fmt: skip
"""What `refmmr info` gives the versions of, needed or not."""

EXPECTED = (ValueError, TypeError, ArithmeticError, OSError, ImportError, RuntimeError)
"""Kinds of errors that the library raises."""
UNCAUGHT = (BrokenPipeError, click.exceptions.Exit, click.exceptions.Abort)
"""Kinds of those that are none of the library's."""


class _Commands(click.Group):
    """Errors of the library become one line and exit code 1; Ctrl-C becomes exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            if isinstance(error, UNCAUGHT):
                raise
            raise click.ClickException(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def _interruptible(command: Callable) -> Callable:
    """Ctrl-C ends a command with one line and exit code 130."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "stopped by hand", err=True)
            sys.exit(INTERRUPTED)

    return run


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rm.__version__, prog_name="refmmr")
@BACKEND
def main() -> None:
    """Linear regions of ReLU networks: train with MMR, certify, draw.

    A ReLU network is affine on polytopes.  The distances of a point to the facets of its polytope
    and to the decision boundary bound its minimal adversarial perturbation from below; MMR training
    makes them larger.

    Start with 'refmmr demo'.
    """
    get_backend()  # a wrong REFMMR_BACKEND is an error at once


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
@_interruptible
def demo(out: Path, epochs: int | None) -> None:
    """Train four ways on digits, certify, compare: the whole method in a minute.

    Trains the same small network plain, at (adversarial), mmr and mmr+at, certifies the test set
    and prints the table; everything else is in report.html.
    """
    _headless()
    from refmmr import demo as job

    job.run(out, click.echo, epochs)


@main.command()
@DATA
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
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
    "--gamma", type=float, default=0.6, show_default=True, help="Distances that MMR asks for."
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
@_interruptible
def train(
    data: str, scheme: str, hidden: str, p: str, eps: float, lam: float, gamma: float,
    epochs: int, batch_size: int, lr: float, seed: int, float32: bool, out: Path,
) -> None:  # fmt: skip
    """Train a network and save it.

    A checkpoint is written beside the network after every epoch (OUT.checkpoint.npz).  The same
    command goes on from it after an interruption; it is removed when the training is complete.
    """
    from refmmr._files import npz_path

    npz_path(out)
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


@main.command()
@MODEL
@DATA
@NORM
@click.option(
    "--eps",
    default="0.3",
    show_default=True,
    help="Radius; several with commas for a curve; 'none' for minimal perturbations.",
)
@click.option("--n", type=click.IntRange(min=1), help="Only N test points.")
@click.option(
    "--start", type=click.IntRange(min=0), default=0, show_default=True, help="The first of them."
)
@click.option(
    "--methods",
    default="region,attack,crown",
    show_default=True,
    help="In this order: attack and any of " + ", ".join(METHODS) + ".",
)
@click.option("--max-seconds", type=float, help="Budget of lp, search and mip for each question.")
@click.option("--max-regions", type=int, help="Budget of search for each question.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attack's starts.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="One line a point: a .csv file when all is done; or a .jsonl file or a folder, written as "
    "points are done, that the same command goes on from.",
)
@click.option("--keep-adversarial", is_flag=True, help="Adversarial examples in the .jsonl too.")
@click.option(
    "--jobs", type=int, default=1, show_default=True, help="Processes; -1 is one per core."
)
@click.option("--dask", help="Address of a Dask scheduler, or 'local'.")
@click.option(
    "--plot",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the curve (.png).",
)
@BACKEND
@_interruptible
@_geometry
def certify(
    net: rm.Network, data: str, p: str, eps: str, n: int | None, start: int, methods: str,
    max_seconds: float | None, max_regions: int | None, seed: int, out: Path | None,
    keep_adversarial: bool, jobs: int, dask: str | None, picture: Path | None,
) -> None:  # fmt: skip
    """Certify MODEL on a test set: test error and bounds on the robust error.

    With several radii a robustness curve, with none the minimal perturbations.  MODEL is an .npz,
    .onnx, .safetensors or .mat file.
    """
    radii = _radii(eps)
    csv = out is not None and out.suffix == ".csv"
    if picture is not None:
        if not isinstance(radii, list):
            raise ValueError("plot: expected --eps with several radii, for a curve")
        if picture.suffix != ".png":
            raise ValueError(f"plot: expected a file ending in .png, got {str(picture)!r}")
    points = datasets.load(data, images=len(net.input_shape) == 3)
    _check_fit(net, points)
    if start >= len(points.X_test):
        raise ValueError(f"start: expected less than {len(points.X_test)} points, got {start}")
    chosen = slice(start, None if n is None else start + n)
    X, y = points.X_test[chosen], points.y_test[chosen]
    options: dict[str, Any] = {
        "methods": methods.split(","), "rng": seed, "max_seconds": max_seconds,
        "max_regions": max_regions, "out": None if csv else out,
        "keep_adversarial": keep_adversarial, "n_jobs": jobs, "dask": dask,
    }  # fmt: skip
    result: rm.RobustError | rm.RobustnessCurve | rm.MinimalPerturbations
    if radii is None:
        result = rm.minimal_perturbations(net, X, y, p, **options)
    elif isinstance(radii, list):
        result = rm.robustness_curve(net, X, y, p, radii=radii, **options)
    else:
        result = rm.robust_error(net, X, y, p, eps=radii, **options)
    click.echo(result.table())
    if out is not None:
        if csv:
            _write_points(out, result, start)
        click.echo(f"one line a point in {out}")
    if picture is not None and isinstance(result, rm.RobustnessCurve):
        _headless()
        from refmmr.display import figures

        figures.save(result.plot(), picture)
        click.echo(f"curve drawn in {picture}")


@main.command()
@MODEL
@DATA
@click.option(
    "--points",
    nargs=3,
    type=int,
    default=(0, 1, 2),
    show_default=True,
    help="Test points that the plane goes through, for networks of more than two inputs.",
)
@click.option(
    "--color",
    type=click.Choice(["lines", "region", "class"]),
    default="lines",
    show_default=True,
    help="Bent lines of the units, or polygons coloured by region or by class.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("regions.png"),
    show_default=True,
    help="A picture (.png, .svg), an interactive page (.html), a map (.geojson) or data (.npz).",
)
@BACKEND
@_interruptible
@_geometry
def regions(
    net: rm.Network, data: str, points: tuple[int, int, int], color: str, out: Path
) -> None:
    """Enumerate and draw the linear regions of MODEL, exactly.

    In the unit square for a network of two inputs, else in the plane through three test points.
    """
    _headless()
    from refmmr.display import figures

    marked, names = None, None
    if net.input_shape == (2,):
        domain: rm.Box | rm.Slice = rm.Box([0, 0], [1, 1])
    else:
        chosen = datasets.load(data, images=len(net.input_shape) == 3)
        _check_fit(net, chosen)
        if max(points) >= len(chosen.X_test) or min(points) < 0:
            raise ValueError(
                f"points: expected numbers of test points, 0 to {len(chosen.X_test) - 1}, "
                f"got {points}"
            )
        domain = rm.Slice(*chosen.X_test[list(points)])
        marked, names = domain.points, [f"class {label}" for label in chosen.y_test[list(points)]]
    cx = rm.enumerate_regions(net, domain)
    title = f"{len(cx)} linear regions"
    if out.suffix in WRITERS:
        WRITERS[out.suffix](cx, out)
        click.echo(f"{title}, written to {out}")
        return
    if color == "lines":
        ax = figures.bent_lines(cx, points=marked, labels=names)
    else:
        ax = figures.regions(cx, color, points=marked, labels=names)
    ax.set_title(title)
    figures.save(ax, out)
    click.echo(f"{title}, drawn in {out}")


@main.command()
@MODEL
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@_geometry
def convert(net: rm.Network, out: Path) -> None:
    """Read the network MODEL and write it to OUT, in the format that the ending of OUT says.

    From .npz, .onnx, .safetensors and .mat to .npz, .onnx and .safetensors.
    """
    rm.save(net, out)
    click.echo(f"{net}, saved to {out}")


@main.command()
@BACKEND
def info() -> None:
    """Print versions, backends, devices, kernels, and where data is looked for."""
    click.echo(f"refmmr {rm.__version__}, Python {platform.python_version()}")
    for package in PACKAGES:
        click.echo(_version(package))
    click.echo(f"backend {get_backend()}, {threads.get_threads()} threads")
    click.echo("  numpy: the reference")
    for name in backends.MODULES:
        error = backends.problem(name)
        click.echo(f"  {name}: {backends.describe(name) if error is None else error}")
    click.echo("kernels")
    importlib.import_module("refmmr.training")  # the last module that makes any
    rows = support.table()
    width = max(len(row[0]) for row in rows)
    for kernel, *marks in rows:
        click.echo(f"  {kernel:<{width}}  " + "  ".join(f"{mark:<5}" for mark in marks).rstrip())
    folder = os.environ.get("REFMMR_DATA")
    click.echo(f"REFMMR_DATA {folder or 'is not set'}")
    for name in ("mnist", "fashion-mnist", "cifar10", "gtsrb"):
        there = folder is not None and Path(folder, name).is_dir()
        click.echo(f"  {name}: {'found' if there else 'not found'}")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is not installed"


def _check_fit(net: rm.Network, points: datasets.Dataset) -> None:
    if points.X_test.shape[1:] != net.input_shape:
        raise ValueError(
            f"data: expected inputs of shape {net.input_shape} for this network, got "
            f"{points.X_test.shape[1:]} of {points.name}; name another data set with --data"
        )


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


def _radii(text: str) -> float | list[float] | None:
    """A number, several with commas, or none."""
    if text.lower() == "none":
        return None
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"eps: expected numbers such as 0.1,0.2, or none, got {text!r}") from error
    for number in numbers:
        check.check_number("eps", number)
    return numbers[0] if len(numbers) == 1 else numbers


def _write_points(out: Path, result: Any, start: int) -> None:
    """One CSV line a point; repr of a float reads back to the same float.

    A curve has two columns for each radius, minimal perturbations have none.
    """
    from refmmr import _files

    names = ["point", "class", "misclassified"]
    columns: dict[str, list[Any]] = {}
    if isinstance(result, rm.RobustError):
        columns = {"attacked": result.attacked.tolist(), "certified": result.certified.tolist()}
    elif isinstance(result, rm.RobustnessCurve):
        for j, eps in enumerate(result.radii):
            columns[f"attacked_{eps!r}"] = result.attacked[:, j].tolist()
            columns[f"certified_{eps!r}"] = result.certified[:, j].tolist()
    lines = [",".join([*names, *columns, "lower", "upper", "exact", "settled_by"])]
    for i, row in enumerate(result.records):
        cells = [start + i, row["class"], row["misclassified"]]
        cells += [column[i] for column in columns.values()]
        cells += [row["lower"], row["upper"], row["exact"], row["settled_by"] or ""]
        lines.append(",".join(map(_cell, cells)))
    _files.write_text(out, "\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    return str(int(value) if isinstance(value, bool) else value)


def _headless() -> None:
    """Figures go to files: no window system is needed."""
    import matplotlib as mpl

    mpl.use("Agg")
