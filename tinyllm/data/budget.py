"""What a chat template may use up: characters made in all, characters in one value, processor time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

INTEGER = 100_000  # the largest integer a call or filter may be given, and bits of the largest computed; as MAX_RANGE
SECONDS = 5.0  # of processor time for one rendering: what templates in use take in milliseconds
ITEM = 64  # what one call, one item of a list or one turn of a loop counts, in characters


class Budget:
    """What one rendering may still make: `spend` characters in all, `value` at once, and the time."""

    def __init__(self, size: int) -> None:
        self.left = 32_000_000 + ITEM * size
        self.value = 2_000_000 + 8 * size
        self.end = time.process_time() + SECONDS

    def spend(self, n: int) -> None:
        self.left -= n
        if self.left < 0 or time.process_time() > self.end:
            raise SecurityError("it runs on and on, far beyond what a conversation of this length takes")

    def allow(self, n: int) -> None:
        """Refuse a single value of `n` characters."""
        if n > self.value:
            raise SecurityError(f"it makes a value of {n:,} characters, and {self.value:,} are allowed here")

    def weigh(self, value: Any) -> int:
        """How large `value` is when written out; shared parts count each time, so nesting cannot explode."""
        total, todo = 0, [value]
        while todo:
            part = todo.pop()
            if isinstance(part, str):
                total += len(part)
            elif isinstance(part, int):
                total += 1 + part.bit_length() // 3
            elif isinstance(part, Mapping):
                todo += part.keys()
                todo += part.values()
            elif isinstance(part, Namespace):
                todo += object.__getattribute__(part, "_Namespace__attrs").values()
            elif isinstance(part, (list, tuple)):
                self.allow(ITEM // 4 * len(part))
                todo += part
            total += ITEM // 4 if not isinstance(part, str) or part is not value else 0
            self.allow(total)
        return total

    def made(self, value: Any) -> Any:
        """Charge for a value that was made, and return it."""
        if isinstance(value, str):
            self.allow(len(value))
            self.spend(len(value) + 1)
        elif isinstance(value, (list, tuple, dict, Namespace)):
            self.weigh(value)
            self.spend(ITEM * (len(value) if not isinstance(value, Namespace) else 1))
        elif isinstance(value, int) and value.bit_length() > INTEGER:
            raise SecurityError("it computes a number of more than 100,000 bits")
        return value
