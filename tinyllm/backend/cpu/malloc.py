"""Tell the C library to keep what is freed, because a training step asks for the arrays of the step before.

glibc gives freed memory back to the system, which zeroes every page that is touched again: some 30,000 of them, a
twentieth of the time, in a LoRA step of a model of 135 million parameters.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
FROM_THE_HEAP = 32 << 20  # bytes, glibc's most; larger arrays come from the system and go back to it, one by one
NEVER = -1


def keep_freed_memory() -> None:
    """Have what is freed kept for the next arrays, for the rest of this process; the commands that train call it.

    The library never does: the process is its caller's. The peak stays what it was, but of arrays below 32 MiB it
    holds the most there were at once until it ends. Outside glibc (macOS, Windows, musl) this does nothing.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, FROM_THE_HEAP)  # type: ignore[union-attr]
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)  # type: ignore[union-attr]
