"""Packages that only some functions need: imported there, with a word on how to get them."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, who: str, extra: str = "interop") -> Any:
    """Import a module for the function `who`, or say which extra of this package brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f'{who}: needs the package {package}: pip install "refmmr[{extra}]"'
        ) from error
