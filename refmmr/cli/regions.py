"""``refmmr regions`` and ``refmmr convert``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

import refmmr as rm
from refmmr import _files, datasets
from refmmr.cli.app import interruptible, main
from refmmr.cli.options import BACKEND, DATA, MODEL, check_fit, geometry, headless
from refmmr.regions import export

WRITERS: dict[str, Callable[[rm.RegionComplex, Path], object]] = {
    ".html": lambda cx, path: cx.explore(path),
    ".svg": export.save_svg,
    ".geojson": export.save_geojson,
    ".npz": lambda cx, path: cx.save(path),
}
"""The writer of regions for each ending of a file; the others are pictures, by Matplotlib."""


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
    help="A picture (.png, .pdf, .svg), an interactive page (.html), .geojson or .npz.",
)
@BACKEND
@interruptible
@geometry
def regions(
    net: rm.Network, data: str, points: tuple[int, int, int], color: str, out: Path
) -> None:
    """Enumerate and draw the linear regions of MODEL, exactly.

    In the unit square for a network of two inputs, else in the plane through three test points.
    """
    headless()
    from refmmr.display import figures

    endings = dict.fromkeys([*_files.PICTURES, *WRITERS])
    _files.as_path(out, *endings, argument="out")  # an error before the work
    marked, names = None, None
    if net.input_shape == (2,):
        domain: rm.Box | rm.Slice = rm.Box([0, 0], [1, 1])
    else:
        chosen = datasets.load(data, images=len(net.input_shape) == 3)
        check_fit(net, chosen)
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
@geometry
def convert(net: rm.Network, out: Path) -> None:
    """Read the network MODEL and write it to OUT, in the format that the ending of OUT says.

    From .npz, .onnx, .safetensors and .mat to .npz, .onnx and .safetensors.
    """
    rm.save(net, out)
    click.echo(f"{net}, saved to {out}")
