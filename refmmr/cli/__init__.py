"""The command line: ``refmmr demo | train | certify | check | verify | regions | ...``."""

from refmmr.cli import (
    certify,
    check,
    info,
    regions,
    train,
    verify,
)  # these modules register their commands
from refmmr.cli.app import main

__all__ = ["certify", "check", "info", "main", "regions", "train", "verify"]
