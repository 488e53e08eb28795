"""What a learner calls below an exercise: `check` judges an answer, `example` an example that one has thought up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tinyllm.backend.names import kind_of, nearest
from tinyllm.course.page import show_html

if TYPE_CHECKING:
    from tinyllm.course.exercise import Exercise


def check(id: str, function: Callable[..., Any], *, case: str | None = None) -> None:
    """Judge an answer to an exercise, and show what was found.

    It is called with many cases. Of one that goes wrong the smallest is shown that could be found, and if the answers
    are those of a known mistake, its name.

    Parameters
    ----------
    id : str
        The exercise's name: the lesson's number, a dash and a word, ``"08-noop"``.
    function : callable
        The answer.
    case : str, optional
        The text that an earlier check printed, to run just this case again.

    Raises
    ------
    TypeError
        If the answer is no function, or has other parameters than the exercise asks for.
    ValueError
        If there is no such exercise, or `case` is no such text.
    """
    if not inspect.isroutine(function):
        raise TypeError(
            f'check takes the exercise\'s name and your function, not {_said(function)}: check("{id}", your_function)'
        )
    if lacking := missing():
        print(f"{id}: not judged. {lacking}")
        return
    from tinyllm.course.judge.report import page, sentences
    from tinyllm.course.judge.rooms import Here
    from tinyllm.course.judge.verdict import judge
    from tinyllm.course.judge.wire import read

    exercise = known(id)
    fits(exercise, function)
    if case is not None:
        exercise = only(exercise, read(case))
    verdict = judge(exercise, Here({exercise.function: function}))
    show_html(page(verdict), sentences(verdict))


def example(id: str, inputs: tuple, output: Any) -> None:
    """Judge an example of one's own, before there is any answer: is it right, and which mistakes would it show?

    Parameters
    ----------
    id : str
    inputs : tuple
        What the function would be called with.
    output : object
        What it would have to return.

    Raises
    ------
    TypeError
        If `inputs` is no tuple.
    ValueError
        If there is no such exercise, or `inputs` are too many or too few.
    """
    if lacking := missing():
        print(f"{id}: not judged. {lacking}")
        return
    from tinyllm.course.judge.examples import weighed

    exercise = known(id)
    if not isinstance(inputs, tuple):
        raise TypeError(f"inputs must be a tuple of what {exercise.function} is called with, not {kind_of(inputs)}")
    if len(inputs) != len(exercise.parameters):
        asked = ", ".join(exercise.parameters)
        raise ValueError(f"{exercise.function}({asked}) takes {len(exercise.parameters)} inputs, not {len(inputs)}")
    print(weighed(exercise, inputs, output))


def missing() -> str:
    """What to install before anything can be judged, or ""."""
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        return "The judge looks for cases with hypothesis: pip install 'tinyllm-engine[course]', and run this again."
    return ""


def known(id: str) -> Exercise:
    """The exercise of that name."""
    from tinyllm.course.exercises import EXERCISES

    if id not in EXERCISES:
        raise ValueError(f"there is no exercise {id!r}{nearest(str(id), EXERCISES)}")
    return EXERCISES[id]


def fits(exercise: Exercise, function: Callable) -> None:
    """Raise TypeError unless it can be called as the exercise says."""
    try:
        inspect.signature(function).bind(*exercise.parameters)
    except TypeError:
        asked, own = ", ".join(exercise.parameters), inspect.signature(function)
        raise TypeError(f"{exercise.id} asks for {exercise.function}({asked}); yours takes {own}") from None
    except ValueError:  # a built-in function may have no signature to look at
        return


def only(exercise: Exercise, case: tuple) -> Exercise:
    """The exercise with nothing to try but this case."""
    from dataclasses import replace

    from hypothesis import strategies as st

    properties = tuple(replace(p, cases=st.just(case)) for p in exercise.properties)
    return replace(exercise, properties=properties)


def _said(function: Any) -> str:
    return f"the class {function.__name__}" if isinstance(function, type) else kind_of(function)
