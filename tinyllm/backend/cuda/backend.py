"""The CUDA backend: one large operation fills a card, so work is cut only where it would not fit."""

from __future__ import annotations

from typing import Any

from tinyllm.backend.cuda import attention, nf4, rows, single  # noqa: F401  they fill the table of overrides
from tinyllm.backend.cuda.overrides import OVERRIDES, SPECIFICATION
from tinyllm.backend.table import Backend

PIECE_BYTES = 256 << 20  # most often the whole of a matrix


class CUDA(Backend):
    """A backend whose operations the card shares among its own threads."""

    def pieces(self, n: int, each: int = 0, most: int = 0, unit: int = 1, even: bool = False) -> list[slice]:
        count = -(-n // max(1, PIECE_BYTES // each)) if each else 1
        size = max(unit, -(-n // (max(1, count) * unit)) * unit)
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def cuda_backend(cupy: Any) -> Backend:
    """The backend over a CuPy that works."""
    return CUDA("cuda", cupy, {**SPECIFICATION, **OVERRIDES})
