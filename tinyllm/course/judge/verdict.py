"""The judgement of an answer: every property tried, and the mistake by its name if it is one that people make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyllm.course.exercise import Chaff, Exercise, Wrong
from tinyllm.course.judge.calling import Answer, called
from tinyllm.course.judge.compare import compare
from tinyllm.course.judge.trial import Outcome, Room, cases_of, trial

AT_HOME = 100  # cases of a property
ENDINGS_BORNE = 2  # after so many a process is not started again
FOR_ALL = ("NotImplementedError", "Missing", "NotLoaded")  # what is so for every property
NAMING = 40  # cases of each property on which a mistake must agree


@dataclass
class Verdict:
    """What the judge found.

    Attributes
    ----------
    exercise : Exercise
    outcomes : list of Outcome
        One for each property.
    mistake : Chaff or None
        The known mistake that gives the same answers on all cases.
    """

    exercise: Exercise
    outcomes: list[Outcome]
    mistake: Chaff | None = None

    @property
    def earned(self) -> int:
        if any(not o.passed and o.property.gate for o in self.outcomes):
            return 0
        return sum(o.property.points for o in self.outcomes if o.passed)

    @property
    def stub(self) -> bool:
        return self.outcomes[0].ended == "NotImplementedError"

    @property
    def not_run(self) -> bool:
        return self.outcomes[0].ended == "NotRun"

    @property
    def missing(self) -> bool:
        return self.outcomes[0].ended == "Missing"


def judge(exercise: Exercise, room: Room, seed: int = 0, examples: int = AT_HOME) -> Verdict:
    """Try every property of an exercise on the answer in a room.

    Parameters
    ----------
    exercise : Exercise
    room : Here or Process
        Where the answer is, under the name that the exercise gives it.
    seed : int
        Of the cases.
    examples : int
        Cases of each property.

    Returns
    -------
    Verdict
        The same for the same answer, seed and number of cases.
    """
    if lacking := exercise.lacking():
        not_run = [Outcome(p, False, lacking, ended="NotRun") for p in exercise.properties]
        return Verdict(exercise, not_run)
    outcomes: list[Outcome] = []
    ended = 0
    for tested in exercise.properties:
        if ended >= ENDINGS_BORNE:
            outcomes.append(Outcome(tested, False, "not tried, after what happened above", ended=outcomes[-1].ended))
            continue
        first = all(o.passed for o in outcomes)  # its case is the one that is shown
        outcomes.append(trial(exercise, tested, room, seed, examples, first))
        ended += 0 if not outcomes[-1].ended else ENDINGS_BORNE if outcomes[-1].ended in FOR_ALL else 1
    verdict = Verdict(exercise, outcomes)
    if any(not o.passed and not o.ended and o.case is not None for o in outcomes):
        verdict.mistake = named(exercise, room, [o for o in outcomes if not o.ended], seed)
    return verdict


def named(exercise: Exercise, room: Room, outcomes: list[Outcome], seed: int) -> Chaff | None:
    """The known mistake that answers as this answer does, on all cases that were tried with either."""
    cases = [o.case for o in outcomes if o.case is not None]
    for outcome in outcomes:
        cases += outcome.seen + cases_of(outcome.property, seed + 1, NAMING)
    suspects = [chaff for chaff in exercise.chaffs if not chaff.slow]
    for case in cases:
        answer = room.call(exercise.function, case)
        suspects = [s for s in suspects if alike(exercise, case, called(s.function, case), answer)]
        if not suspects:
            return None
    return suspects[0]


def alike(exercise: Exercise, case: tuple, one: Answer, other: Answer) -> bool:
    """Whether two answers are the same but for rounding, and left their arguments alike."""
    if one.raised or other.raised:
        return one.raised == other.raised
    size = called(exercise.size, case).value if exercise.size is not None else None
    sizes = [size if fitting(size, one.value) else None, None]  # a wrong value may be larger than the right one's size
    if not any(agree(one.value, other.value, size, 4 * exercise.budget) for size in sizes):
        return False
    kept = [pair for pair in zip(one.after, other.after, strict=False) if not callable(pair[0]) and not _draws(pair[0])]
    return all(agree(mine, theirs, 0.0, 0.0) for mine, theirs in kept)


def agree(one: Any, other: Any, size: Any, budget: float) -> bool:
    try:
        compare(one, other, size, budget)
    except Wrong:
        return False
    return True


def _draws(value: Any) -> bool:
    return isinstance(value, np.random.Generator)


def fitting(size: Any, value: Any) -> bool:
    """Whether sizes are of a value's shape, which a mistake need not have."""
    if isinstance(value, np.ndarray):
        return np.shape(size) in ((), value.shape)
    if isinstance(value, list | tuple):
        return isinstance(size, list | tuple) and len(size) == len(value) and all(map(fitting, size, value))
    return not isinstance(size, np.ndarray | list | tuple)
