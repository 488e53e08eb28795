"""How much memory there is in use: the process's own, now and at its peak, and a GPU's.

CuPy's pool keeps no peak, so a hook looks at it after every allocation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tinyllm.backend.device import backend, device


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


@contextmanager
def card_peak() -> Iterator[Callable[[], int | None]]:
    """Within the block, the yielded function tells the most bytes of the GPU in use so far; None on the CPU."""
    if device() == "cpu":
        yield lambda: None
        return
    cupy: Any = backend().xp
    pool = cupy.get_default_memory_pool()
    most = [pool.used_bytes()]

    class Peak(cupy.cuda.MemoryHook):  # type: ignore[name-defined]
        name = f"peak {id(most)}"  # CuPy holds hooks by name, and one block may stand inside another

        def malloc_postprocess(self, **_: Any) -> None:
            most[0] = max(most[0], pool.used_bytes())

    with Peak():
        yield lambda: most[0]
