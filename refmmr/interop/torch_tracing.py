"""The operations of a PyTorch module, in the order in which its forward runs them."""

from __future__ import annotations

from typing import Any

__all__ = ["kind_of", "place_of", "traced"]


def traced(torch: Any, module: Any) -> tuple[list[Any], dict[str, Any]]:
    """The nodes of ``torch.fx.Graph`` of a module, and its submodules by their names.

    Parameters
    ----------
    torch : module
    module : torch.nn.Module

    Raises
    ------
    ValueError
        For a module with hooks, and one whose forward torch.fx cannot trace.
    """
    # In a Sequential of its own even a module of PyTorch's is a node.
    whole = torch.nn.Sequential(module)
    for name, part in whole.named_modules(remove_duplicate=False):
        _check_plain(place_of(name), part)
    try:
        graph = torch.fx.Tracer().trace(whole)
    # Whatever its forward raises when it is run on no numbers.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            "module: expected a forward that torch.fx can trace, without decisions that depend on "
            f"numbers, got {kind_of(module)}: {type(error).__name__}: {reason}; instead: export it "
            "with torch.onnx.export, and read the file with refmmr.load"
        ) from error
    return list(graph.nodes), dict(whole.named_modules(remove_duplicate=False))


def place_of(name: str) -> str:
    """Name of a submodule as in the module that was given: "0.1.2" is its "1.2"."""
    return name.partition(".")[2] or "module"


def kind_of(module: Any) -> str:
    """Name of a module's class; qualified, unless the class is one of PyTorch."""
    kind = type(module)
    if kind.__module__.startswith("torch.nn.modules."):
        return str(kind.__name__)
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_plain(where: str, module: Any) -> None:
    """Refuse a module that computes something besides the forward of its class."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(
            f"module: {where}: expected a module without hooks, got {kind_of(module)} with some; "
            "what they compute cannot be read"
        )
    if "forward" in vars(module):
        raise ValueError(
            f"module: {where}: expected a module with the forward of its class, got "
            f"{kind_of(module)} with another one"
        )
