"""The NumPy backend: pieces that fit a cache, and threads to share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tinyllm.backend.cpu.blas import BLAS
from tinyllm.backend.cpu.overrides import OVERRIDES
from tinyllm.backend.cpu.threads import cut, deal, share
from tinyllm.backend.table import Backend


class CPU(Backend):
    """A backend whose work is shared among threads; see `threads.py`."""

    def pieces(self, n: int, each: int = 0, most: int = 0, unit: int = 1, even: bool = False) -> list[slice]:
        longest = max(unit, most // each // unit * unit) if each else max(unit, -(-n // unit) * unit)
        return deal(n, unit, longest) if even else cut(n, longest)

    def share(self, work: Callable[[Any], None], pieces: Sequence[Any]) -> None:
        share(work, pieces)

    def hold(self) -> AbstractContextManager:
        """BLAS's threads would go on spinning after each product, on cores that ours want."""
        return BLAS

    def undoes(self, primitive: str) -> bool:
        """Its own formula for `rms_norm` can be undone; a replacement's may be another."""
        return primitive == "rms_norm" and self.table[primitive] is OVERRIDES[primitive]
