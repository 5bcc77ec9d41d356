"""Optional packages, imported at use; the error for a missing one says how to install it."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, who: str, extra: str = "interop") -> Any:
    """Import a module for the function `who`, or raise an error that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f'{who}: needs the package {package}: pip install "refmmr[{extra}]"'
        ) from error
