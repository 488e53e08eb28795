"""Run every lesson once, as a notebook, and keep it with its outputs for the site: docs/lessons/*.ipynb.

    python tools/run_lessons.py [NUMBER ...]

The exit status is 1 if a lesson fails or takes over a minute of processor time, whatever else the machine does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebooks import TUTORIALS, lessons, notebook
from now_read import resolved

PAGES = TUTORIALS.parent / "docs" / "lessons"
LIMIT = 60.0  # seconds of processor time
TO_TAKE = """

To take with you: {{download}}`the script <../../tutorials/{stem}.py>`,
{{download}}`the notebook <../../tutorials/notebooks/{stem}.ipynb>`."""


def processor_seconds() -> float:
    """What the processes that this one waited for have used so far."""
    times = os.times()
    return times.children_user + times.children_system


def run(lesson: Path, pages: Path) -> str | None:
    """Run a lesson and keep it; what was wrong, or None."""
    before, found = processor_seconds(), notebook(lesson)
    client = NotebookClient(found, timeout=1200, resources={"metadata": {"path": str(lesson.parent)}})
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{lesson.name} failed:\n{str(error)[-3000:]}"
    taken = processor_seconds() - before
    print(f"{lesson.name}: {taken:.1f} s of processor time", flush=True)
    if taken > LIMIT:
        return f"{lesson.name} took {taken:.0f} s of processor time, more than {LIMIT:.0f}"
    for cell in found.cells:
        if cell.cell_type == "markdown":
            cell.source = resolved(cell.source)
    found.cells[0].source += TO_TAKE.format(stem=lesson.stem)
    pages.mkdir(parents=True, exist_ok=True)
    nbformat.write(found, pages / f"{lesson.stem}.ipynb")
    return None


def main(wanted: list[str], folder: Path = TUTORIALS, pages: Path = PAGES) -> int:
    chosen = [lesson for lesson in lessons(folder) if not wanted or int(lesson.name[:2]) in map(int, wanted)]
    wrong = [said for lesson in chosen if (said := run(lesson, pages))]
    print("\n".join(wrong) if wrong else f"{len(chosen)} lessons ran", flush=True)
    return int(bool(wrong) or not chosen)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
