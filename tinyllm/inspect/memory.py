"""How much memory there is in use: the process's own, now and at its peak, and a GPU's.

CuPy's pool keeps no peak, so a hook looks at it after every allocation. What to say when a GPU
has not enough stands here, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tinyllm.backend.device import backend, device
from tinyllm.nn import Module
from tinyllm.tensor import Parameter


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
        name = "peak"

        def malloc_postprocess(self, **_: Any) -> None:
            most[0] = max(most[0], pool.used_bytes())

    with Peak():
        yield lambda: most[0]


@contextmanager
def explaining_out_of_memory(model: Module, optimizer: Any) -> Iterator[None]:
    """Turn CuPy's error into one sentence: what was held, and what to lower.

    Raises
    ------
    MemoryError
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # its class cannot be named without CuPy
            raise
        used = backend().xp.get_default_memory_pool().used_bytes()
        raise MemoryError(f"the GPU's memory is full: {_told(holdings(model, optimizer), used)}") from None


def holdings(model: Module, optimizer: Any) -> dict[str, int]:
    """Bytes by what they are for."""
    frozen = [w for _, w in model.named_weights() if not w.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = [array for pair in optimizer.moments.values() for array in pair]
    return {
        "the frozen base": sum((w.data if isinstance(w, Parameter) else w).nbytes for w in frozen),
        "trained weights": sum(w.data.nbytes for w in trained),
        "their gradients": sum(w.grad.nbytes for w in trained if w.grad is not None),
        "optimiser state": sum(a.nbytes for a in moments),
    }


def _told(held: dict[str, int], used: int) -> str:
    held = {**held, "activations": max(0, used - sum(held.values()))}
    largest = max(held, key=lambda name: held[name])
    said = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in held.items())
    advice = {
        "the frozen base": "keep it in fewer bits (--method qlora, or storage='nf4')",
        "activations": "use a smaller batch or shorter sequences, or turn checkpointing on",
    }
    return f"{said}; {advice.get(largest, 'train less of the model, with a smaller rank or fewer target modules')}"
