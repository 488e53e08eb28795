"""The lessons as tables for whoever plans a course: question, needs, minutes and exercises, read from their heads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"


@dataclass(frozen=True)
class Lesson:
    """What a lesson says of itself.

    Attributes
    ----------
    number : int
    question, needs : str
    minutes : int
        To read it and run it.
    exercises : tuple of int
        The minutes of each.
    fives : int
        The minutes of those whose importance is 5.
    page : str
        Its page on the site.
    """

    number: int
    question: str
    needs: str
    minutes: int
    exercises: tuple[int, ...]
    fives: int
    page: str


def read(path: Path) -> Lesson:
    text = path.read_text(encoding="utf-8")
    said = dict(re.findall(r"^# - \*\*(.+?)\*\*: (.+)$", text, re.MULTILINE))
    number, question = re.findall(r"^# # Lesson (\d+): (.+)$", text, re.MULTILINE)[0]
    minutes = tuple(map(int, re.findall(r"^# \*(\d+) minutes, importance [1-5] of 5\.\*$", text, re.MULTILINE)))
    fives = sum(map(int, re.findall(r"^# \*(\d+) minutes, importance 5 of 5\.\*$", text, re.MULTILINE)))
    page = f"lessons/{path.stem}"
    return Lesson(int(number), question, said["Needs"], int(said["Minutes"]), minutes, fives, page)


def lessons(folder: Path = TUTORIALS) -> dict[int, Lesson]:
    """All lessons that are there, by number."""
    found = map(read, sorted(folder.glob("[0-9][0-9]_*.py")))
    return {lesson.number: lesson for lesson in found}


def table(wanted: list[int] | None = None, folder: Path = TUTORIALS) -> str:
    """A Markdown table of these lessons, or of all, with sums; KeyError for one that is not there."""
    there = lessons(folder)
    rows = [there[number] for number in (there if wanted is None else wanted)]
    lines = ["| lesson | needs | minutes | exercises, minutes | of importance 5 |", "|---|---|---:|---:|---:|"]
    lines += [
        f"| [{row.number}. {row.question}]({row.page}) | {row.needs} | {row.minutes} | {len(row.exercises)}, "
        f"{sum(row.exercises)} | {row.fives} |"
        for row in rows
    ]
    exercises = [minutes for row in rows for minutes in row.exercises]
    total, fives = sum(row.minutes for row in rows), sum(row.fives for row in rows)
    return "\n".join([*lines, f"| together | | {total} | {len(exercises)}, {sum(exercises)} | {fives} |"])
