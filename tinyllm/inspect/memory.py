"""How much memory this process has resident, and the most it ever had."""

from __future__ import annotations

import os
import sys


def peak_memory() -> int | None:
    """Peak resident memory in bytes, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB


def resident_memory() -> int | None:
    """Resident memory in bytes now, or None where the system does not tell without a library of its own."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
