"""Peak memory of this process; needs the standard library only."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path


def forget_peak() -> float:
    """Start the peak anew, where the system can, and return the memory in use, in MB.

    Elsewhere the peak so far stands for it: compiling may have needed more than the call does.
    """
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    except OSError:
        return peak()


def peak() -> float:
    """Largest resident memory in MB."""
    try:
        return status("VmHWM")
    except OSError:
        return largest(resource.RUSAGE_SELF)


def children_peak() -> float:
    """The same of the largest of the processes that this one started and that have ended."""
    return largest(resource.RUSAGE_CHILDREN)


def largest(who: int) -> float:
    """What the system kept, in MB."""
    size = resource.getrusage(who).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def status(field: str) -> float:
    """A figure that Linux keeps of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 2**10
