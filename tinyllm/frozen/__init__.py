"""How weights are kept: as floats, or frozen in half precision (16 bits) or NF4 (4.127 bits a weight).

`weight.py` has the few things a layer asks of any weight; the other files have one way of keeping each.
"""

from __future__ import annotations

from typing import Any

from tinyllm.frozen.dense import Dense
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.frozen.weight import FrozenWeight, Weight
from tinyllm.tensor import Tensor

__all__ = ["Dense", "FrozenWeight", "HalfWeight", "NF4Weight", "Weight", "store", "stored"]


def stored(weight: Any) -> Weight:
    """What a layer computes with: a stored weight itself, or the face of one on an array or a tensor's array."""
    return weight if isinstance(weight, Weight) else Dense(weight.data if isinstance(weight, Tensor) else weight)


def store(w: Any, storage: str, name: str = "", block_size: int = 64, double_quant: bool = True) -> FrozenWeight:
    """An array as a FrozenWeight; `storage` is "float16", "bfloat16" or "nf4"."""
    if storage == "nf4":
        return NF4Weight.quantize(w, block_size, double_quant, name)
    return HalfWeight.quantize(w, storage, name)
