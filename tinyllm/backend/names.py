"""Names in messages: the first of many, and the nearest to a wrong one. The book and its wings use it alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are: ``"a, b, c and 4 more"``."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def nearest(name: str, known: Iterable[str], hint: str = " (did you mean {}?)", cutoff: float = 0.6) -> str:
    """A hint at the known name that is most like a wrong one; empty if none is like it.

    Parameters
    ----------
    name : str
    known : iterable of str
    hint : str
        ``{}`` stands for the known name.
    cutoff : float
        How alike they must be: difflib's ratio, from 0 (any name) to 1 (the same).
    """
    return "".join(map(hint.format, difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)))
