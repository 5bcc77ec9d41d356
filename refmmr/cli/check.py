"""``refmmr check``: certificates in files, proved again."""

from __future__ import annotations

from pathlib import Path

import click

import refmmr as rm
from refmmr.cli.app import interruptible, main
from refmmr.cli.options import BACKEND, MODEL, geometry


@main.command()
@MODEL
@click.argument("certificates", type=click.Path(path_type=Path))
@BACKEND
@interruptible
@geometry
def check(net: rm.Network, certificates: Path) -> None:
    """Prove CERTIFICATES of MODEL again, a file or a folder of 'refmmr certify --certificate'.

    One line for each.  The exit code is 1 if one of them is not proved, or not of this network.
    """
    found = rm.check_certificate(net, certificates)
    for one in found:
        click.echo(
            f"{one.path.name}: {'proved' if one.proved else 'NOT proved'}, class {one.y} within "
            f"l_{one.p:g} {one.eps:g}, {one.nodes} nodes"
        )
    if not all(one.proved for one in found):
        raise click.exceptions.Exit(1)
