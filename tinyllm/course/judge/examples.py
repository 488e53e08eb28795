"""A learner's own example against right answers and wrong ones."""

from __future__ import annotations

from typing import Any

from tinyllm.backend.names import few
from tinyllm.course.exercise import Exercise, Wrong
from tinyllm.course.judge.calling import Answer, called
from tinyllm.course.judge.compare import compare
from tinyllm.course.judge.verdict import alike


def weighed(exercise: Exercise, inputs: tuple, output: Any) -> str:
    """Whether the example is right, and how many known mistakes answer otherwise.

    Parameters
    ----------
    exercise : Exercise
    inputs : tuple
    output : object

    Returns
    -------
    str
        A sentence or two. What the right answer is, it does not say.
    """
    right = called(exercise.reference, inputs, 60.0)
    if right.raised:
        return f"{exercise.id}: no right answer returns anything for these inputs: it raises {right.raised}."
    size = called(exercise.size, inputs).value if exercise.size is not None else None
    try:
        compare(right.value, output, size, exercise.budget)
    except Wrong as wrong:
        kinds = "must " in wrong.said
        return f"{exercise.id}: the example is wrong{': ' + wrong.said if kinds else ': another output is right'}."
    given = Answer(output, after=inputs)
    shows = [c.name for c in exercise.chaffs if not alike(exercise, inputs, called(c.function, inputs), given)]
    many = f"{len(shows)} of the {len(exercise.chaffs)} known mistakes"
    return f"{exercise.id}: the example is right, and shows {many}{': ' + few(shows, 9) if shows else ''}."
