"""The backend of ghosts: NumPy's primitives on arrays without content, and no more pieces than tell about all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyllm.backend import device
from tinyllm.backend.cpu.backend import CPU
from tinyllm.backend.cpu.threads import get_num_threads
from tinyllm.backend.cuda.backend import CUDA
from tinyllm.backend.ghost import meter
from tinyllm.backend.ghost.array import FUNCTIONS, Ghost, asarray, contiguous
from tinyllm.backend.ghost.meter import Meter
from tinyllm.backend.table import BACKENDS


class GhostModule:
    """An array module like NumPy, whose new arrays are ghosts."""

    ndarray = Ghost
    asarray = staticmethod(asarray)
    ascontiguousarray = staticmethod(contiguous)

    @staticmethod
    def array(x: Any, dtype: Any = None) -> Any:
        return Ghost(x.shape, dtype or x.dtype) if isinstance(x, Ghost) else asarray(x, dtype)

    @staticmethod
    def empty(shape: Any, dtype: Any = float) -> Ghost:
        return Ghost(shape, dtype)

    zeros = ones = empty

    @staticmethod
    def full(shape: Any, value: Any, dtype: Any = float) -> Ghost:
        return Ghost(shape, dtype)

    def __getattr__(self, name: str) -> Any:
        # Ufuncs and dtypes are NumPy's own: with a ghost among their arguments they end up here anyway.
        return getattr(FUNCTIONS, name, None) or getattr(np, name)


class GhostBackend(CPU):
    """Cuts as the device in use does, for as many threads; of pieces that are alike, it works at the first and last."""

    at_a_piece = False

    def pieces(self, n: int, each: int = 0, most: int = 0, unit: int = 1, even: bool = False) -> list[slice]:
        cut = CUDA.pieces if device.device() == "cuda" else CPU.pieces
        return cut(self, n, each, most, unit, even)  # type: ignore[arg-type]

    def in_turn(self, pieces: Sequence[Any]) -> Sequence[Any]:
        """The first piece, and as many as decide the peak: it comes at one of the last two, beside the one before."""
        return [*pieces[:1], *pieces[1:][-3:]]

    def share(self, work: Callable[[Any], None], pieces: Sequence[Any]) -> None:
        """Work at the first and the last piece, and count for each thread what the first needs for a while.

        Where there are no more pieces than threads, all are worked at: what one leaves behind (a sum of its own) stays
        until all are done.
        """
        if self.at_a_piece or len(pieces) < 2:
            for piece in [*pieces[:1], *pieces[1:][-1:]]:
                work(piece)
            return
        now, threads = meter.in_force, min(len(pieces), get_num_threads())
        before, now.high = now.high, now.live
        self.at_a_piece = True
        try:
            work(pieces[0])
            for_a_while = max(0, now.high - now.live)
            for piece in pieces[1:] if len(pieces) == threads else pieces[-1:]:
                work(piece)
            Ghost(for_a_while * threads, np.uint8)  # comes and goes
        finally:
            self.at_a_piece = False
        now.high = max(before, now.high)


@contextmanager
def haunted() -> Iterator[Meter]:
    """A ``with`` block in which the engine computes on ghosts, with a meter of its own."""
    backend = BACKENDS.get("ghost")
    if backend is not None:  # of a block within a block, only the meter is another
        with meter.counted() as counting:
            yield counting
        return
    backend = BACKENDS["ghost"] = GhostBackend("ghost", GhostModule(), BACKENDS["numpy"].table)  # type: ignore[arg-type]
    try:
        with device.making_arrays_of(backend), meter.counted() as counting:
            yield counting
    finally:
        del BACKENDS["ghost"]
