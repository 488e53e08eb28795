"""A homework: the exercises that a class is given, as a folder that holds all a student needs but the answers."""

from __future__ import annotations

import hashlib
import json
import shutil
import textwrap
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinyllm
from tinyllm.backend.names import few, nearest
from tinyllm.course.exercise import Exercise
from tinyllm.course.exercises import EXERCISES
from tinyllm.course.teacher.files import write_text
from tinyllm.course.teacher.lessons import RULES, exercise_text, lesson_title
from tinyllm.course.teacher.submissions import HEADER

SHEET, ANSWERS = "homework.json", "student.py"


@dataclass(frozen=True)
class Homework:
    """The exercises and the name of a homework; the same exercises and release have the same name."""

    exercises: tuple[Exercise, ...]
    variant: int = 0

    @property
    def name(self) -> str:
        said = " ".join([*(e.id for e in self.exercises), *([f"variant {self.variant}"] if self.variant else [])])
        return hashlib.sha256(said.encode()).hexdigest()[:8]

    @property
    def points(self) -> int:
        return sum(e.points for e in self.exercises)

    @property
    def minutes(self) -> int:
        return sum(e.minutes for e in self.exercises)

    def sheet(self) -> str:
        told: dict[str, Any] = {"homework": self.name, "release": tinyllm.__version__}
        told |= {"exercises": [e.id for e in self.exercises], "variant": self.variant}
        return json.dumps(told, indent=1) + "\n"


def chosen(names: Sequence[str], variant: int = 0) -> Homework:
    """The homework of these exercises; "08" stands for all of lesson 8. A variant changes those that have some.

    Raises
    ------
    ValueError
        If a name is none of an exercise or a lesson, or the variant below 0.
    """
    if variant < 0:
        raise ValueError(f"a variant is a number from 1 on, not {variant}")
    found: dict[str, Exercise] = {}
    for name in names:
        own = {i: e for i, e in EXERCISES.items() if i == name or i.split("-")[0] == name.zfill(2)}
        if not own:
            raise ValueError(f"there is no exercise or lesson {name!r}{nearest(name, EXERCISES)}")
        found |= own
    return Homework(tuple(found[i].varied(variant) for i in EXERCISES if i in found), variant)


def read_sheet(folder: Path) -> Homework:
    """The homework that `make` wrote into a folder.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is none, or it is damaged, or of a release with other exercises.
    """
    path = folder / SHEET
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {SHEET}: give the folder that `make` wrote")
    try:
        sheet = json.loads(path.read_text(encoding="utf-8"))
        names, variant = sheet["exercises"], int(sheet["variant"])
        unknown = [name for name in names if name not in EXERCISES]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: make the homework again") from error
    if unknown:
        raise ValueError(f"{path} asks for {few(unknown)}, which this release (tinyllm {tinyllm.__version__}) has not")
    return Homework(tuple(EXERCISES[name].varied(variant) for name in names), variant)


def make(homework: Homework, lessons: Path, folder: Path) -> None:
    """Write the folder: stubs, what is asked and how to check it, the sheet, and Gradescope's zip.

    Raises
    ------
    FileExistsError
        If the folder has something in it: a student's answers may be there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: choose another -o, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SHEET, homework.sheet())
    write_text(folder / ANSWERS, stubs(homework, lessons))
    write_text(folder / "README.md", readme(homework, lessons, folder.name))
    shutil.copyfile(lessons / RULES, folder / RULES)
    gradescope(homework, folder / "gradescope.zip")


def stubs(homework: Homework, lessons: Path) -> str:
    """The file that students fill in: each exercise's text as a docstring in a function that says it is their turn."""
    parts = [
        f"{HEADER}{homework.name}, release {tinyllm.__version__}",
        '"""Your answers. Imports, functions and classes of this file are read, and nothing else in it is run."""\n',
        "import numpy as np\n",
    ]
    for e in homework.exercises:
        title, body, above = exercise_text(e.id, lessons)
        parts += [f"\n{above}\n"] if above else []
        body += f"\n\n**In this homework:** {e.said}" if e.said else ""
        said = textwrap.indent(
            f'r"""{e.id}: {title}\n\n{body}\n"""'.replace("\\`", "`"), "    ", lambda line: line.strip() != ""
        )
        parts.append(
            f'\ndef {e.function}({", ".join(e.parameters)}):\n{said}\n    raise NotImplementedError("your turn")\n'
        )
    return "\n".join(parts)


def readme(homework: Homework, lessons: Path, name: str) -> str:
    """What a student reads first."""
    rows = [f"| `{e.id}` | {lesson_title(e.id, lessons)} | {e.minutes} | {e.points} |" for e in homework.exercises]
    return "\n".join(
        [
            f"# Homework {name}",
            "",
            f"{len(homework.exercises)} exercises, about {homework.minutes} minutes, {homework.points} points. Write "
            f"your answers into `{ANSWERS}`, where each exercise has its text, and hand in that one file.",
            "",
            "| exercise | from | minutes | points |",
            "|---|---|---:|---:|",
            *rows,
            "",
            "To see how far you are, as often as you like, in the folder above this one:",
            "",
            "```bash",
            "pip install 'tinyllm-engine[course]'",
            f"python -m tinyllm.course check {name}",
            "```",
            "",
            "It calls your functions with many cases. Of one that goes wrong it shows the smallest it could find, and "
            "if your answers are those of a known mistake, its name. Grading tries the same properties with other "
            "cases: what is right here is right there.",
            "",
            f"Working with an AI assistant? Let it read `{RULES}` first.",
            "",
        ]
    )


def gradescope(homework: Homework, target: Path) -> None:
    """A zip that Gradescope's autograder takes: the engine's source, the sheet, and two scripts."""
    package = Path(tinyllm.__file__).parent
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {SHEET: homework.sheet(), "setup.sh": SETUP, "run_autograder": RUN}.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, content)
        for path in sorted(p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            entry = zipfile.ZipInfo(f"engine/tinyllm/{path.relative_to(package).as_posix()}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())


SETUP = """#!/usr/bin/env bash
set -e
apt-get update && apt-get install -y python3-pip
pip3 install numpy safetensors tokenizers rich threadpoolctl "hypothesis>=6.100,<7"
"""
RUN = """#!/usr/bin/env bash
cd /autograder/source
PYTHONPATH=engine python3 -m tinyllm.course grade /autograder/submission --homework . --gradescope \\
  -o /autograder/results/results.json
"""
