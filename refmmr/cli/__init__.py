"""The command line: ``refmmr demo | train | certify | verify | regions | convert | info``."""

from refmmr.cli import (
    certify,
    info,
    regions,
    train,
    verify,
)  # these modules register their commands
from refmmr.cli.app import main

__all__ = ["certify", "info", "main", "regions", "train", "verify"]
