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
from refmmr.cli.options import BACKEND

PACKAGES = (
    "numpy", "scipy", "highspy", "matplotlib", "scikit-learn", "joblib", "tqdm", "click", "dask",
    "onnx", "safetensors", "pandas", "pooch", "torch",
)  # fmt: skip
"""Required and optional packages whose versions `refmmr info` prints."""


@main.command()
@BACKEND
def info() -> None:
    """Print versions, backends, devices, kernels, and the folder of data sets."""
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


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is not installed"
