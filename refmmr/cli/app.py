"""The command ``refmmr``: errors become one line, Ctrl-C becomes exit code 130."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

import refmmr as rm
from refmmr._backend import get_backend
from refmmr.cli.options import BACKEND

INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended, by the convention of shells: 128 + SIGINT."""

EXPECTED = (ValueError, TypeError, ArithmeticError, OSError, ImportError, RuntimeError)
"""Kinds of errors that the library raises."""
UNCAUGHT = (BrokenPipeError, click.exceptions.Exit, click.exceptions.Abort)
"""Errors of these kinds that click or the shell handles."""


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


def interruptible(command: Callable) -> Callable:
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
    get_backend()  # an unknown REFMMR_BACKEND is an error before anything else
