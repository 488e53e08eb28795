"""The exercises of the lessons. No release judges answers yet; every exercise has its name and its line already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyllm.backend.names import kind_of


def check(id: str, function: Callable[..., Any]) -> None:
    """Take an answer to an exercise. This release does not judge it, and says so.

    Parameters
    ----------
    id : str
        The exercise's name: the lesson's number, a dash and a word, ``"08-noop"``.
    function : callable
        The answer. It is not called.

    Raises
    ------
    TypeError
        If the answer is no function.
    """
    if not callable(function):
        raise TypeError(
            f'check takes the exercise\'s name and your function, not {kind_of(function)}: check("{id}", your_function)'
        )
    print(
        f"{id}: noted, but not judged, since this release has no grader yet: compare {name_of(function)} with what the "
        "exercise says on inputs small enough to work out by hand."
    )


def name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
