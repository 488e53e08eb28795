"""Mistakes against properties: which known mistake of an exercise each property catches, and by which smallest case."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinyllm.backend.names import few, kind_of
from tinyllm.course.check import fits, known, missing
from tinyllm.course.figures.figure import Figure

if TYPE_CHECKING:
    from tinyllm.course.exercise import Exercise

SLOW = 1.0  # seconds of one call of a mistake: some never end
CODE = re.compile(r"(line \d+) `[^`]*`")  # a kernel's error quotes its line, and this one is not the learner's
MOST = 60  # letters of an argument: a case is told in a sentence


def mistakes_against_properties(
    exercise_id: str, answers: Mapping[str, Callable] | None = None, seed: int = 0, examples: int = 100
) -> Figure:
    """Show what each property of an exercise catches: of the known mistakes, of right answers, and of one's own.

    Every answer is judged by every property alone, as `check` judges it, which takes some seconds.

    Parameters
    ----------
    exercise_id : str
        The lesson's number, a dash and a word, ``"10-pack"``.
    answers : dict of str to callable, optional
        Answers of one's own, by the names that the figure shall call them.
    seed : int
        Of the cases.
    examples : int
        Cases of each property, at least 1.

    Returns
    -------
    Figure

    Raises
    ------
    ImportError
        If hypothesis is not installed.
    RuntimeError
        If this machine lacks what judges the exercise.
    TypeError
        If `answers` is no dict, or one of them is no function of the exercise's parameters.
    ValueError
        If there is no such exercise, or `examples` is not a whole number above 0.
    """
    if lacking := missing():
        raise ImportError(lacking)
    from tinyllm.course.judge.calling import bounded
    from tinyllm.course.judge.rooms import SECONDS

    exercise, answers = known(exercise_id), _checked(exercise_id, answers)
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
        raise ValueError(f"examples must be a whole number above 0, not {examples!r}")
    if lacking := exercise.lacking():
        raise RuntimeError(f"{exercise.id} cannot be judged here: {lacking}")

    def row(kind: str, name: str, function: Callable, seconds: float, hint: str = "", source: str = "") -> dict:
        found = _found(exercise, function, seconds, seed, examples)
        for each in found if kind != "yours" else []:
            if each:
                each["said"] = CODE.sub(r"\1", each["said"])
        return {"kind": kind, "name": name, "hint": hint, "source": source, "found": found}

    left_out = [c.name for c in exercise.chaffs if c.slow and not bounded()]
    chaffs = [c for c in exercise.chaffs if c.name not in left_out]
    rows = [row("mistake", c.name, c.function, SLOW, c.hint, c.source) for c in chaffs]
    rows += [row("right", f"right answer {i}", wheat, SECONDS) for i, wheat in enumerate(exercise.wheats, 1)]
    rows += [row("yours", name, function, SECONDS) for name, function in answers.items()]
    words = (
        "Each row is an answer, each column a property that every right answer has. Switch properties off and on: "
        "which mistakes would then slip through? Choose an answer to read the smallest case that gives it away."
    )
    if left_out:
        words += f" Left out, since nothing here could end it: {few(left_out)}."
    data = {"exercise": exercise.id, "properties": [p.name for p in exercise.properties], "rows": rows}
    title, size = f"{exercise.id}: mistakes against properties", (7.0, 1.2 + 0.3 * len(rows))
    return Figure("chaffs", title, words, data, lambda figure: _draw(figure, data), size)


def _checked(exercise_id: str, answers: Mapping[str, Callable] | None) -> dict[str, Callable]:
    """The answers, each a function that can be called as the exercise says."""
    if answers is not None and not isinstance(answers, Mapping):
        raise TypeError(f'answers must be a dict of names and functions, {{"mine": f}}, not {kind_of(answers)}')
    given = {str(name): function for name, function in (answers or {}).items()}
    for name, function in given.items():
        if not inspect.isroutine(function):
            raise TypeError(f"answers[{name!r}] must be a function, not {kind_of(function)}")
        fits(known(exercise_id), function)
    return given


def _found(exercise: Exercise, function: Callable, seconds: float, seed: int, examples: int) -> list[dict | None]:
    """What each property finds wrong: a sentence, and the smallest case; None where it holds."""
    from tinyllm.course.judge.compare import shown
    from tinyllm.course.judge.rooms import Here
    from tinyllm.course.judge.verdict import judge

    found: list[dict | None] = []
    for tested in exercise.properties:
        # Alone, since after two answers that took too long the judge tries no other property.
        alone = replace(exercise, properties=(tested,))
        (outcome,) = judge(alone, Here({exercise.function: function}, seconds), seed, examples).outcomes
        named = zip(exercise.parameters, outcome.case or (), strict=False)
        case = ", ".join(f"{name} = {shown(value, MOST)}" for name, value in named)
        found.append(None if outcome.passed else {"said": outcome.said, "case": case})
    return found


def _draw(figure: Any, data: dict) -> None:
    axes, rows = figure.subplots(), data["rows"]
    for kind, color in (("mistake", "#00734f"), ("right", "#b84a00"), ("yours", "#b84a00")):
        caught = [(p, y) for y, r in enumerate(rows) if r["kind"] == kind for p, f in enumerate(r["found"]) if f]
        axes.scatter(*zip(*caught, strict=True) if caught else ([], []), marker="X", s=90, color=color)
    passed = [(p, y) for y, r in enumerate(rows) for p, found in enumerate(r["found"]) if not found]
    axes.scatter(*zip(*passed, strict=True) if passed else ([], []), marker=".", s=30, color="#888888")
    for y in range(1, len(rows)):
        if rows[y]["kind"] != rows[y - 1]["kind"]:
            axes.axhline(y - 0.5, color="#888888", linewidth=0.8)
    names = [textwrap.fill(p, max(9, 48 // len(data["properties"]))) for p in data["properties"]]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    yours = {"yours": " (yours)"}
    axes.set_yticks(range(len(rows)), [textwrap.shorten(r["name"], 45) + yours.get(r["kind"], "") for r in rows])
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set(xlabel="property (cross: it catches the answer)", ylabel="answer")
