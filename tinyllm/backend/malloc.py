"""Tell the C library to keep what is freed, because a training step asks for the arrays of the step before.

glibc gives freed memory back to the system, which zeroes every page that is touched again: some 30,000 of them, a
twentieth of the time, in a LoRA step of a model of 135 million parameters.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST_FROM_THE_HEAP = 32 << 20  # larger arrays come from the system, one by one, and go back to it; glibc's own limit


def keep_freed_memory() -> None:
    """Have what is freed kept for the next arrays, for the rest of this process; `train` calls it.

    Its peak stays what it was, but it holds that much until it ends. Outside glibc (macOS, Windows, musl) this does
    nothing.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MOST_FROM_THE_HEAP)  # type: ignore[union-attr]
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # type: ignore[union-attr]
