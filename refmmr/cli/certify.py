"""``refmmr certify``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

import refmmr as rm
from refmmr import _files, datasets
from refmmr import _validate as check
from refmmr._presets import presets
from refmmr.certify import METHODS
from refmmr.cli.app import interruptible, main
from refmmr.cli.options import BACKEND, DATA, NORM, ROW, check_fit, geometry, headless


@main.command()
@click.argument("model", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option(
    "--preset",
    type=ROW,
    metavar="NAME",
    help="Data, norm and radius of a row of the paper's table, such as mnist-cnn-linf-mmr+at; "
    "options beside it replace single ones.",
)
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
    show_default="crown,attack,bab; with --eps none region,attack,crown",
    help="In this order: attack and any of " + ", ".join(METHODS) + ".",
)
@click.option(
    "--max-seconds", type=float, show_default="10 for the default methods",
    help="Seconds of lp, bab, search and mip for each point and radius.",
)  # fmt: skip
@click.option("--max-regions", type=int, help="Regions of search for each point and radius.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the attack's random starts."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="One line per point: a .csv file at the end; or a .jsonl file or a folder, written "
    "as points are done, from which the same command continues.",
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
    help="Draw the curve (.png, .pdf, .svg).",
)
@click.option(
    "--certificate",
    type=click.Path(file_okay=False, path_type=Path),
    help="Prove the certified points once more, by bab, and write each proof to a file in this "
    "folder; 'refmmr check' checks them.  With one radius.",
)
@BACKEND
@interruptible
@geometry
def certify(
    net: rm.Network | None, preset: str | None, data: str, p: str, eps: str, n: int | None,
    start: int, methods: str | None, max_seconds: float | None, max_regions: int | None, seed: int,
    out: Path | None, keep_adversarial: bool, jobs: int, dask: str | None, picture: Path | None,
    certificate: Path | None,
) -> None:  # fmt: skip
    """Certify MODEL on a test set: test error and bounds on the robust error.

    With several radii a robustness curve, with 'none' the minimal perturbations.  MODEL is an .npz,
    .onnx, .safetensors or .mat file; with --preset it may be left out, for the network of that name
    in rm.zoo.
    """
    if preset is not None:
        data, p, eps = _settings(preset, data, p, eps)
        net = rm.zoo.load(preset) if net is None else net
    if net is None:
        raise click.UsageError("Missing argument 'MODEL', or --preset for a network of rm.zoo.")
    radii = _radii(eps)
    csv = out is not None and out.suffix == ".csv"
    if picture is not None:
        if not isinstance(radii, list):
            raise ValueError("plot: expected --eps with several radii, for a curve")
        _files.as_path(picture, *_files.PICTURES, argument="plot")
    if certificate is not None and not isinstance(radii, float):
        raise ValueError("certificate: expected --eps with one radius")
    points = datasets.load(data, images=len(net.input_shape) == 3)
    check_fit(net, points)
    if start >= len(points.X_test):
        raise ValueError(f"start: expected less than {len(points.X_test)} points, got {start}")
    chosen = slice(start, None if n is None else start + n)
    X, y = points.X_test[chosen], points.y_test[chosen]
    options: dict[str, Any] = {
        "methods": None if methods is None else methods.split(","), "rng": seed,
        "max_seconds": max_seconds, "max_regions": max_regions, "out": None if csv else out,
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
        click.echo(f"one line for each point in {out}")
    if picture is not None and isinstance(result, rm.RobustnessCurve):
        headless()
        from refmmr.display import figures

        figures.save(result.plot(), picture)
        click.echo(f"curve drawn in {picture}")
    if certificate is not None and isinstance(result, rm.RobustError):
        rows = np.flatnonzero(result.certified)
        _write_certificates(certificate, net, X, y, p, radii, rows, start, max_seconds)


def _write_certificates(folder, net, X, y, p, eps, rows, start, max_seconds):
    """A certificate for some of the points X, named by their numbers in the test set."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    with TemporaryDirectory(dir=folder) as part:
        if len(rows):
            rm.certify(
                net, X[rows], y[rows], p, method="bab", eps=eps, max_seconds=max_seconds,
                certificate=part,
            )  # fmt: skip
        for i, row in enumerate(rows):
            if (file := Path(part, f"{i}.npz")).exists():
                file.replace(folder / f"{start + row}.npz")
                written += 1
    click.echo(f"{written} certificates of {len(rows)} certified points in {folder}")


def _settings(preset: str, data: str, p: str, eps: str) -> tuple[str, str, str]:
    """Data, norm and radius of a preset, where the command line does not say others."""
    row, context = presets[preset], click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    if row.p is None and default in map(context.get_parameter_source, ("p", "eps")):
        raise ValueError(
            f"preset: expected --p and --eps beside {preset}, which is trained for all norms, "
            "such as --p inf --eps 0.1"
        )
    rows = {"data": (data, row.data), "p": (p, str(row.p)), "eps": (eps, repr(row.eps))}
    found = [
        of_row if context.get_parameter_source(name) == default else given
        for name, (given, of_row) in rows.items()
    ]
    return found[0], found[1], found[2]


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
    """Write a CSV line for each point; the repr of a float reads back to the same float.

    A curve has two columns for each radius, minimal perturbations have none.
    """
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
