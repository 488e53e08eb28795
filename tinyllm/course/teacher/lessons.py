"""The exercises' texts, which stand in the lessons and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "tutorials"
RULES = "RULES_FOR_AI_ASSISTANTS.md"


def lessons_folder(given: str | None = None) -> Path:
    """Where the lessons are.

    Raises
    ------
    FileNotFoundError
        If they are not there.
    """
    folder = Path(given) if given else FOLDER
    if not any(folder.glob("[0-9][0-9]_*.py")):
        raise FileNotFoundError(
            f"the exercises' texts are in the lessons, and there are none in {folder}: "
            "give the folder `tutorials` of a clone, --lessons FOLDER"
        )
    return folder


def exercise_text(id: str, folder: Path) -> tuple[str, str, str]:
    """An exercise's title, its text in Markdown without the hints, and the code that stands above the stub."""
    (lesson,) = folder.glob(f"{id[:2]}_*.py")
    found = re.search(
        rf"^# ## Exercise {id}: (.*?)\n(.*?)^# %%\n(.*?)^def ", lesson.read_text(encoding="utf-8"), re.M | re.S
    )
    assert found, f"{lesson} has no exercise {id}"
    body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in found[2].splitlines())
    body = re.sub(r"<details>.*?</details>\n?", "", body, flags=re.S)
    return found[1], re.sub(r"^\*\d+ minutes.*?\*\n", "", body.strip(), flags=re.M).strip(), found[3].strip()


def lesson_title(id: str, folder: Path) -> str:
    (lesson,) = folder.glob(f"{id[:2]}_*.py")
    found = re.search(r"^# # (Lesson .*)$", lesson.read_text(encoding="utf-8"), re.M)
    return found[1] if found else lesson.stem
