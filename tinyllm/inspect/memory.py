"""The most memory this process has had resident."""

from __future__ import annotations

import sys


def peak_memory() -> int | None:
    """Peak resident memory in bytes, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB
