"""A frozen weight in half precision: float16 or bfloat16, 16 bits each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyllm.backend.device import to_host
from tinyllm.backend.half import BFLOAT16, from_bfloat16, to_bfloat16
from tinyllm.backend.table import Backend, of
from tinyllm.frozen.finite import refuse_non_finite
from tinyllm.frozen.weight import FrozenWeight


class HalfWeight(FrozenWeight):
    """A weight stored as float16 or bfloat16, rounded to nearest even.

    Parameters
    ----------
    bits : uint16 array
        The 16-bit patterns.
    storage : {"float16", "bfloat16"}
    dtype : dtype
        What it computes in.
    """

    def __init__(self, bits: Any, storage: str, dtype: Any = np.float32):
        self.bits, self.storage = bits, storage
        self.shape, self.dtype, self.nbytes = bits.shape, np.dtype(dtype), bits.nbytes

    @classmethod
    def quantize(cls, w: Any, storage: str, name: str = "") -> HalfWeight:
        """Round an array to half precision. Raises ValueError for values that overflow it or are not finite."""
        refuse_non_finite(w, name)
        if storage == "float16":
            with np.errstate(over="ignore"):
                half = w.astype(np.float16)
            refuse_non_finite(half, name, because="it overflows float16; use storage='bfloat16'")
            bits = half.view(np.uint16)
        else:
            with np.errstate(over="ignore"):
                bits = to_bfloat16(w)
            refuse_non_finite(from_bfloat16(bits), name, because="it overflows bfloat16; use storage='float32'")
        return cls(bits, storage, w.dtype)

    @property
    def backend(self) -> Backend:
        return of(self.bits)

    def tiles(self, spans: list[slice] | None = None) -> Iterator[tuple[slice, Any]]:
        if self.storage == self.dtype.name:  # it computes as it is stored: nothing to convert
            bits = self.bits.view(self.dtype)
            yield from ((part, bits[part]) for part in spans or [slice(0, self.shape[0])])
        else:
            yield from super().tiles(spans)

    def move(self, to: Callable[[Any], Any]) -> HalfWeight:
        return type(self)(to(self.bits), self.storage, self.dtype)

    def parts(self, name: str) -> dict[str, Any]:  # on the host, since CuPy has no bfloat16 either
        return {name: to_host(self.bits).view(BFLOAT16 if self.storage == "bfloat16" else np.float16)}

    def transposed(self) -> HalfWeight:
        return HalfWeight(self.bits.T, self.storage, self.dtype)

    def _widen(self, bits: Any, out: Any) -> Any:
        if self.storage == self.dtype.name:  # half precision computes
            out[...] = bits.view(self.dtype)
            return out
        return self.backend.widen(bits, self.storage, out)

    def like(self, array: Any, name: str = "") -> HalfWeight:
        return self.quantize(array, self.storage, name)

    def rows(self, start: int, stop: int, out: Any) -> Any:
        return self._widen(self.bits[start:stop], out)

    def take(self, ids: Any) -> Any:
        bits = self.bits[self.xp.asarray(ids)]
        return self._widen(bits, self.xp.empty(bits.shape, self.dtype))
