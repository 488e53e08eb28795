"""Frozen weights that store less than float32: half precision (16 bits) or NF4 (4.127 bits a weight)."""

from __future__ import annotations

from typing import Any

from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.frozen.weight import FrozenWeight

__all__ = ["FrozenWeight", "HalfWeight", "NF4Weight", "store"]


def store(w: Any, storage: str, name: str = "", block_size: int = 64, double_quant: bool = True) -> FrozenWeight:
    """An array as a FrozenWeight; `storage` is "float16", "bfloat16" or "nf4"."""
    if storage == "nf4":
        return NF4Weight.quantize(w, block_size, double_quant, name)
    return HalfWeight.quantize(w, storage, name)
