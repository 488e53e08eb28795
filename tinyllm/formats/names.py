"""The names of a file's arrays, said in an error."""

from __future__ import annotations

from collections.abc import Sequence


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
