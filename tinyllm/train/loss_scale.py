"""The loss scale: what keeps float16's small gradients from vanishing."""

from __future__ import annotations

from typing import Any


class LossScale:
    """A factor on the loss that keeps float16's gradients from vanishing, found by trying (Micikevicius et al. 2018).

    It doubles after `patience` steps without an overflow and halves at each; float32 and bfloat16 need none.
    """

    def __init__(self, dtype: Any, patience: int = 2000):
        self.needed, self.patience = dtype.name == "float16", patience
        self.value, self.calm = (2.0**16 if self.needed else 1.0), 0

    def overflowed(self) -> bool:
        """Halve it; False if it cannot be the cause (any more), so that something else is wrong."""
        self.value, self.calm = self.value / 2, 0
        return self.needed and self.value >= 1

    def went_well(self) -> None:
        self.calm += 1
        if self.needed and self.calm % self.patience == 0:
            self.value *= 2
