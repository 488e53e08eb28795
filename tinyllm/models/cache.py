"""Keys and values of the positions that went before, so that generating a token costs one position."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm.backend.table import of
from tinyllm.tensor import Tensor


class KVCache:
    """One growing pair of arrays a layer.

    Attributes
    ----------
    length : int
        How many positions are in it.
    pads : int array (batch,) or None
        How many of them are padding on the left.
    """

    def __init__(self) -> None:
        self.length = 0
        self.pads: np.ndarray | None = None
        self._layers: dict[int, tuple[Any, Any]] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values, (batch, kv_heads, time, n), and return all of them so far."""
        end = self.length + k.shape[2]
        keys, values = self._room(layer, k.data, end)
        keys[:, :, self.length : end] = k.data
        values[:, :, self.length : end] = v.data
        return Tensor(keys[:, :, :end]), Tensor(values[:, :, :end])

    def _room(self, layer: int, like: Any, end: int) -> tuple[Any, Any]:
        now = self._layers.get(layer)
        if now is None or now[0].shape[2] < end:
            xp = of(like).xp
            room = max(end, 2 * self.length, 64)  # doubling: each position is copied about once
            grown = tuple(xp.zeros((*like.shape[:2], room, like.shape[3]), like.dtype) for _ in range(2))
            if now is not None:
                for new, old in zip(grown, now, strict=True):
                    new[:, :, : self.length] = old[:, :, : self.length]
            self._layers[layer] = now = (grown[0], grown[1])
        return now

    def advance(self, time: int) -> None:
        """All layers have appended `time` positions."""
        self.length += time
