"""A property against an answer: Hypothesis looks for a case that breaks it, and makes that case small."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky, Unsatisfiable

from tinyllm.course.exercise import Exercise, Property, Seed, Wrong
from tinyllm.course.judge.calling import ENDINGS, Answer, called
from tinyllm.course.judge.compare import compare
from tinyllm.course.judge.wire import written

TOGETHER = 20.0  # seconds that all calls of one property may take
SHRINKS = 150  # cases tried to make a wrong one smaller
SMALLER = 100  # other cases, to see which sizes there are
AGAIN = 3  # times that the smallest case is tried again: an answer that draws lots does not give the same


class Room(Protocol):
    def call(self, name: str, case: tuple) -> Answer: ...

    def close(self) -> None: ...


class Ending(BaseException):
    """No other case is tried: the answer is the stub, or ends its process."""


@dataclass
class Outcome:
    """What became of one property.

    Attributes
    ----------
    property : Property
    passed : bool
    said : str
        What is wrong, in one sentence.
    case : tuple or None
        The smallest case that shows it.
    expected, got : object
        The two sides, if there are two.
    lines : tuple of str
        Where the answer raised.
    tried : int
        Cases.
    ended : str
        The kind of ending after which it was not called again.
    printed : bool
    """

    property: Property
    passed: bool = True
    said: str = ""
    case: tuple | None = None
    expected: Any = None
    got: Any = None
    lines: tuple[str, ...] = ()
    tried: int = 0
    ended: str = ""
    printed: bool = False
    seen: list[tuple] = field(default_factory=list)


def trial(exercise: Exercise, tested: Property, room: Room, seed: int, examples: int, smaller: bool = True) -> Outcome:
    """Try a property with so many cases at most; look for one that is smaller than Hypothesis's, or do not."""
    outcome, began = Outcome(tested), time.monotonic()

    def call(case: tuple) -> None:
        outcome.tried += 1
        if len(outcome.seen) < 40:
            outcome.seen.append(case)
        if time.monotonic() - began > TOGETHER:
            raise _ended(outcome, Answer(raised="TooLong"), case, f"all its calls took longer than {TOGETHER:g} s")
        one(exercise, tested, room, case, outcome)

    outcome.passed = searched(shrinking(call, outcome), tested.cases, seed, examples)
    if not outcome.passed and not outcome.ended:
        if smaller:
            _smaller(exercise, tested, room, outcome, seed)
        _again(exercise, tested, room, outcome)
    return outcome


def shrinking(call: Callable[[tuple], None], outcome: Outcome) -> Callable[[tuple], None]:
    """The same, noting the smallest case that went wrong; ends some cases after the first that did."""
    since = 0

    def body(case: tuple) -> None:
        nonlocal since
        since += outcome.case is not None
        if since > SHRINKS:
            raise Ending()
        try:
            call(case)
        except Wrong as wrong:
            if outcome.case is None or _size(case) <= _size(outcome.case):
                outcome.said, outcome.case = wrong.said, case
                outcome.expected, outcome.got = wrong.expected, wrong.got
            raise

    return body


def searched(body: Callable[[tuple], None], cases: Any, seed: int, examples: int) -> bool:
    """Whether `body` raises for none of the cases that Hypothesis draws; the last one it is called with is small."""
    looked_for = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        print_blob=False,
    )
    state = random.getstate(), np.random.get_state()
    try:
        seeded(seed)(looked_for(given(cases)(body)))()
    except Unsatisfiable:
        return True
    except (Flaky, Wrong, Ending):
        return False
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
    return True


def one(exercise: Exercise, tested: Property, room: Room, case: tuple, outcome: Outcome) -> None:
    """One case of a property; raises `Wrong` or `Ending`."""

    def call(*arguments: Any) -> Any:
        answer = room.call(exercise.function, arguments)
        outcome.printed |= answer.printed > 0
        if answer.raised in ENDINGS:
            raise _ended(outcome, answer, arguments)
        unchanged(exercise, arguments, answer)
        if answer.raised:
            raise raising(answer, outcome)
        return answer.value

    outcome.lines = ()
    if tested.law is not None:
        tested.law(call, *case)
        return
    wanted = called(exercise.reference, case, 60.0)
    if wanted.raised:
        refused(exercise, room, case, wanted, outcome)
        return
    size = called(exercise.size, case).value if exercise.size is not None else None
    compare(wanted.value, call(*case), size, exercise.budget)


def raising(answer: Answer, outcome: Outcome) -> Wrong:
    outcome.lines = answer.lines
    if answer.raised == "NotPlain":
        return Wrong(f"it returns {answer.said}, which is none of the plain kinds asked for")
    return Wrong(f"it raises {answer.raised}{': ' if answer.said else ''}{answer.said}")


def refused(exercise: Exercise, room: Room, case: tuple, wanted: Answer, outcome: Outcome) -> None:
    """The reference raises: so must the answer."""
    answer = room.call(exercise.function, case)
    if answer.raised in ENDINGS:
        raise _ended(outcome, answer, case)
    unchanged(exercise, case, answer)
    if not answer.raised:
        raise Wrong(f"it must raise a {wanted.raised}, and returns something", None, answer.value)
    if wanted.raised not in answer.kinds:
        outcome.lines = answer.lines
        raise Wrong(f"it must raise a {wanted.raised}, not {answer.raised}: {answer.said}")
    if wanted.said not in answer.said:
        raise Wrong(f"the {wanted.raised} must say {wanted.said!r}; it says {answer.said!r}")


def unchanged(exercise: Exercise, before: tuple, answer: Answer) -> None:
    for name, value, now in zip(exercise.parameters, before, answer.after, strict=False):
        if isinstance(value, Seed) or callable(value) or plainly_equal(value, now):
            continue
        try:
            compare(value, now, 0.0, 0.0)
        except Wrong as wrong:
            raise Wrong(f"it changes its argument `{name}`: copy before you write", value, now) from wrong


def plainly_equal(one: Any, other: Any) -> bool:
    """Whether Python says so itself, which is quick; of arrays it says nothing."""
    try:
        return bool(one == other)
    except ValueError:
        return False


def _ended(outcome: Outcome, answer: Answer, case: tuple, said: str | None = None) -> Ending:
    outcome.ended, outcome.lines, outcome.case = answer.raised, answer.lines, case
    outcome.said = said or ENDINGS[answer.raised].format(answer.said)
    return Ending()


def _smaller(exercise: Exercise, tested: Property, room: Room, outcome: Outcome, seed: int) -> None:
    """Search again among cases with fewer numbers: Hypothesis cannot take a row out of several arrays at once."""
    best = _numbers(outcome.case)
    for case in sorted(cases_of(tested, seed + 2, SMALLER), key=_numbers):
        if _numbers(case) >= best:
            return
        found = Outcome(tested)
        body = shrinking(partial(one, exercise, tested, room, outcome=found), found)
        try:
            body(case)
        except Ending:
            return
        except Wrong:
            most = _numbers(case)
            break
    else:
        return
    searched(body, tested.cases.filter(lambda case: _numbers(case) <= most), seed, SMALLER // 4)
    outcome.said, outcome.case, outcome.lines = found.said, found.case, found.lines
    outcome.expected, outcome.got = found.expected, found.got


def _size(case: tuple) -> tuple[int, int]:
    return _numbers(case), len(written(case) or repr(case))


def _numbers(value: Any) -> int:
    """How many numbers a case holds, those in its arrays and lists."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, dict):
        return sum(map(_numbers, value.values())) + len(value)
    if isinstance(value, list | tuple | set | bytes | str):
        return sum(map(_numbers, value)) if isinstance(value, list | tuple) else len(value)
    return 1


def _again(exercise: Exercise, tested: Property, room: Room, outcome: Outcome) -> None:
    """Try the smallest case again: if it then passes, or differs, the answer is not the same from call to call."""
    assert outcome.case is not None
    told, case = (outcome.said, outcome.expected, outcome.got), outcome.case
    for _ in range(AGAIN):
        try:
            one(exercise, tested, room, case, outcome)
            same = False
        except Wrong as wrong:
            same = wrong.said == told[0]
        except Ending:
            return
        if not same:
            outcome.said = "it gives different answers to the same question: it may draw nothing, and keep nothing"
            outcome.expected = outcome.got = outcome.case = None
            return


def cases_of(tested: Property, seed: int, many: int) -> list[tuple]:
    """Some cases of a property, drawn without any answer."""
    found: list[tuple] = []
    searched(lambda case: found.append(case), tested.cases, seed, many)
    return found
