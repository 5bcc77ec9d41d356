"""``refmmr info``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

import refmmr as rm
from refmmr import backends
from refmmr._backend import get_backend
from refmmr.backends import support, threads
from refmmr.cli.app import main
from refmmr.cli.options import BACKEND, geometry

PACKAGES = (
    "numpy", "scipy", "highspy", "matplotlib", "scikit-learn", "joblib", "tqdm", "click", "dask",
    "onnx", "safetensors", "pandas", "pooch", "torch",
)  # fmt: skip
"""Required and optional packages whose versions `refmmr info` prints."""


@main.command()
@click.argument("model", required=False, type=click.Path(dir_okay=False, path_type=Path))
@BACKEND
@geometry
def info(net: rm.Network | None) -> None:
    """Describe MODEL; without one, print versions, backends, kernels and the folder of data."""
    if net is not None:
        click.echo(_description(net))
        return
    click.echo(f"refmmr {rm.__version__}, Python {platform.python_version()}")
    for package in PACKAGES:
        click.echo(_version(package))
    click.echo(f"backend {get_backend()}, {threads.get_threads()} threads")
    click.echo("  numpy: the reference")
    for name in backends.MODULES:
        error = backends.problem(name)
        click.echo(f"  {name}: {backends.describe(name) if error is None else error}")
    click.echo("kernels")
    rows = support.table()
    width = max(len(row[0]) for row in rows)
    for kernel, *marks in rows:
        click.echo(f"  {kernel:<{width}}  " + "  ".join(f"{mark:<5}" for mark in marks).rstrip())
    folder = os.environ.get("REFMMR_DATA")
    click.echo(f"REFMMR_DATA {folder or 'is not set'}")
    for name in ("mnist", "fashion-mnist", "cifar10", "gtsrb"):
        there = folder is not None and Path(folder, name).is_dir()
        click.echo(f"  {name}: {'found' if there else 'not found'}")


def _description(net: rm.Network) -> str:
    """Layers with the shapes of their outputs, and the size of the network."""
    names = [repr(layer) for layer in net.layers]
    width = max(map(len, names))
    lines = [f"{'input':<{width}}  {net.input_shape}"]
    for i, (name, shape) in enumerate(zip(names, net.shapes[1:], strict=True)):
        lines.append(f"{name:<{width}}  {shape}" + ("  ReLU" if i in net.affine[:-1] else ""))
    n_weights = sum(W.size + b.size for W, b in net.parameters)
    size = f"{net.n_hidden} hidden units, {n_weights} parameters in {net.dtype}"
    return "\n".join([*lines, f"{size}, {net.n_classes} classes"])


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is not installed"
