"""A class graded: each student in a process of their own, the results in one file that a rerun goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tinyllm
from tinyllm.course.exercise import Exercise
from tinyllm.course.judge.compare import shown
from tinyllm.course.judge.rooms import SECONDS, Process
from tinyllm.course.judge.sandbox import Sandbox
from tinyllm.course.judge.trial import Outcome
from tinyllm.course.judge.verdict import AT_HOME, Verdict, judge
from tinyllm.course.teacher.files import write_text
from tinyllm.course.teacher.homework import Homework
from tinyllm.course.teacher.submissions import Submission

SEED = 1  # other cases than at home


def grade(
    homework: Homework,
    handed_in: list[Submission],
    target: Path | None = None,
    seed: int = SEED,
    report: Callable[[str], None] = lambda said: None,
    seconds: float = SECONDS,
    examples: int = AT_HOME,
    room: type[Process | Sandbox] = Process,
) -> dict[str, Any]:
    """Grade a class, and write what is known after each student.

    Parameters
    ----------
    homework : Homework
    handed_in : list of Submission
    target : Path, optional
        Of the grades, JSON. Students in it whose file is the same are not graded again.
    seed : int
        The same seed and the same files give the same bytes.
    report : callable
        Is told a line for each student.
    seconds : float
        That a call may take.
    examples : int
        Cases of each property.
    room : type
        Where the answers live: in a process of their own, or in a sandbox.

    Returns
    -------
    dict
        The grades as they are written.

    Raises
    ------
    ValueError
        If there are no submissions, `target` is the grades of something else, or this machine cannot judge.
    """
    if not handed_in:
        raise ValueError("there are no submissions: files .py, .ipynb or .zip, or folders with one of these")
    for exercise in homework.exercises:
        if lacking := exercise.lacking():
            raise ValueError(f"{exercise.id} cannot be graded here: {lacking}")
    grades: dict[str, Any] = {
        "homework": homework.name,
        "release": tinyllm.__version__,
        "seed": seed,
        "room": room.__name__.lower(),
        "exercises": [{"id": e.id, "points": e.points} for e in homework.exercises],
        "students": [],
    }
    known = earlier(target, grades) if target is not None else {}
    for submission in handed_in:
        before = known.get(submission.student)
        fresh = before is None or before["digest"] != submission.digest or before["file"] != submission.file
        result = graded(homework, submission, seed, seconds, examples, room) if fresh or before is None else before
        grades["students"].append(result)
        if target is not None:
            write_text(target, json.dumps(grades, indent=1, ensure_ascii=True) + "\n")
        again = "" if fresh else " (as before)"
        report(f"{submission.student}: {result['points']} of {homework.points} points{again}")
    return grades


def earlier(target: Path, wanted: dict[str, Any]) -> dict[str, dict]:
    """The students of an earlier run of the same homework, release, seed and room, by name."""
    if not target.exists():
        return {}
    try:
        found = json.loads(target.read_text(encoding="utf-8"))
        if {k: found[k] for k in wanted if k != "students"} == {k: wanted[k] for k in wanted if k != "students"}:
            return {s["student"]: s for s in found["students"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{target} is there, and holds no grades: choose another -o") from None
    raise ValueError(f"{target} has the grades of another homework, release, seed or room: choose another -o")


def graded(
    homework: Homework,
    submission: Submission,
    seed: int,
    seconds: float,
    examples: int,
    kind: type[Process | Sandbox],
) -> dict[str, Any]:
    """One student's result."""
    notes = [*submission.notes, *foreign(homework, submission)]
    emptied = tuple(name for e in homework.exercises for name in e.emptied)
    room = kind(submission.source, f"{submission.student}.py", emptied, seconds)
    try:
        verdicts = [judge(e, room, seed, examples) if submission.source else None for e in homework.exercises]
    finally:
        room.close()
    results = [_result(e, v) for e, v in zip(homework.exercises, verdicts, strict=True)]
    return {
        "student": submission.student,
        "file": submission.file,
        "digest": submission.digest,
        "points": sum(r["earned"] for r in results),
        "notes": notes,
        "results": results,
    }


def foreign(homework: Homework, submission: Submission) -> list[str]:
    """A sentence if the file was handed out for something else."""
    header = submission.header()
    if header is None:
        return []
    notes = []
    if header[0] != homework.name:
        notes.append("This file was handed out for another homework: what it has of this one is graded.")
    if header[1] != tinyllm.__version__:
        notes.append(f"This file was handed out by release {header[1]}, and graded by {tinyllm.__version__}.")
    return notes


def _result(exercise: Exercise, verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"id": exercise.id, "earned": 0, "points": exercise.points, "mistake": "", "properties": []}
    return {
        "id": exercise.id,
        "earned": verdict.earned,
        "points": exercise.points,
        "mistake": verdict.mistake.name if verdict.mistake is not None else "",
        "properties": [_property(exercise, o) for o in verdict.outcomes],
    }


def _property(exercise: Exercise, outcome: Outcome) -> dict[str, Any]:
    case = ""
    if not outcome.passed and outcome.case is not None and not outcome.ended:
        case = ", ".join(f"{n} = {shown(x)}" for n, x in zip(exercise.parameters, outcome.case, strict=False))
    return {
        "name": outcome.property.name,
        "points": outcome.property.points,
        "passed": outcome.passed,
        "said": outcome.said,
        "case": case,
    }
