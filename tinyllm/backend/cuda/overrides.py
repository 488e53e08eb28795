"""How a kernel takes the place of a primitive; the overrides themselves are in the files beside this one, by family.

An override gives what the specification gives, to rounding (codes and masks: bit for bit), for float32, float16 and
bfloat16; anything else it leaves to the specification, which runs on CuPy as it stands. Sums are float32 in every
kernel; what a norm or a loss keeps is float32, whatever the activations are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np

from tinyllm.backend.cuda.kernels import kernel
from tinyllm.backend.primitives import specification
from tinyllm.backend.table import BACKENDS

FLOATS = ("float32", "float16", "bfloat16")
SPECIFICATION = specification()
OVERRIDES: dict[str, Callable] = {}
int32, int64, float32 = np.int32, np.int64, np.float32


def override(*swallowed: str) -> Callable:
    """Put a function into the table of overrides under its own name.

    It is called for arrays of `FLOATS`, and only while none of the primitives it swallows (does the work of, without
    calling them) is replaced by ``tinyllm.use``; otherwise the specification, which calls them, takes its place.
    """

    def put(function: Callable) -> Callable:
        name = function.__name__
        specified = SPECIFICATION[name]

        @wraps(specified)
        def chosen(xp: Any, x: Any, *rest: Any, **named: Any) -> Any:
            fits = not hasattr(x, "dtype") or (x.dtype.name in (*FLOATS, "uint8") and x.size)
            here = BACKENDS["cuda"].table if "cuda" in BACKENDS else OVERRIDES
            ours = all(
                here.get(part, SPECIFICATION[part]) in (SPECIFICATION[part], OVERRIDES.get(part)) for part in swallowed
            )
            if fits and not ours:
                return _widened(specified, xp, x, *rest, **named)
            return (function if fits else specified)(xp, x, *rest, **named)

        OVERRIDES[name] = chosen
        return chosen

    return put


def _widened(specified: Callable, xp: Any, *arguments: Any, **named: Any) -> Any:
    """The specification of half-precision arrays, in float32 (CuPy multiplies no stacks of halves), rounded at last."""
    half = next((a.dtype for a in arguments if hasattr(a, "dtype") and a.dtype.name in FLOATS[1:]), None)
    if half is None:
        return specified(xp, *arguments, **named)
    wide = [a.astype(np.float32) if getattr(a, "dtype", None) == half else a for a in arguments]
    y = specified(xp, *wide, **named)
    return tuple(part.astype(half) for part in y) if isinstance(y, tuple) else y.astype(half)


def constant(xp: Any, table: np.ndarray) -> Any:
    """A small float32 table on the device, put there once."""
    return _on_device(xp, table.tobytes())


@cache
def _on_device(xp: Any, raw: bytes) -> Any:
    return xp.asarray(np.frombuffer(raw, np.float32))


def launch_rows(xp: Any, name: str, x: Any, arguments: tuple, n: int) -> None:
    """Launch a kernel with one thread block a row of `n`: four numbers a thread, as long as that is at most 1,024."""
    threads = min(1024, -(-n // 128) * 32)
    kernel(name).build(xp, x.dtype.name)((x.size // n,), (threads,), arguments)


def aligned(*arrays: Any) -> bool:
    """Whether 16-byte accesses may begin where these arrays do."""
    return all(a.data.ptr % 16 == 0 for a in arrays)
