"""Cases of the exercises written down, for a judge that has no Hypothesis."""

from __future__ import annotations

from collections.abc import Iterable

from tinyllm.course.exercises import EXERCISES
from tinyllm.course.judge.trial import cases_of
from tinyllm.course.judge.wire import written

DRAWN, KEPT = 150, 60  # cases of a property
LONGEST = 20_000  # letters of a case: larger ones make the page wait


def recorded(ids: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Texts of cases by exercise and property, the shortest first; exercises with functions in cases are left out."""
    found = {}
    for id in ids:
        drawn = {p.name: [written(case) for case in cases_of(p, 0, DRAWN)] for p in EXERCISES[id].properties}
        if all(text is not None for texts in drawn.values() for text in texts):
            found[id] = {name: _spread(list(map(str, texts))) for name, texts in drawn.items()}
    return found


def _spread(texts: list[str]) -> list[str]:
    """Some of them, from the shortest to the longest that is not too long."""
    short = sorted((text for text in dict.fromkeys(texts) if len(text) <= LONGEST), key=len)
    if len(short) <= KEPT:
        return short
    return [short[i * (len(short) - 1) // (KEPT - 1)] for i in range(KEPT)]
