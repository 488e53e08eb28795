"""Run every lesson once, as a notebook, and keep it with its outputs for the site: docs/lessons/*.ipynb.

    python tools/run_lessons.py [NUMBER ...] [--limit SECONDS]

The exit status is 1 if a lesson fails or takes over a minute of processor time, whatever else the machine does. On a
machine that is slower than a usual laptop, allow more.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebooks import TUTORIALS, lessons, notebook
from now_read import resolved

PAGES = TUTORIALS.parent / "docs" / "lessons"
TO_TAKE = """

To take with you: {{download}}`the script <../../tutorials/{stem}.py>`,
{{download}}`the notebook <../../tutorials/notebooks/{stem}.ipynb>`. They run where they lie in
{{download}}`the zip of everything <tinyllm-engine.zip>`: [how to set it up](../course.md)."""


def processor_seconds() -> float:
    """What the processes that this one waited for have used so far."""
    times = os.times()
    return times.children_user + times.children_system


def run(lesson: Path, pages: Path, limit: float) -> str | None:
    """Run a lesson and keep it; what was wrong, or None."""
    before, found = processor_seconds(), notebook(lesson)
    client = NotebookClient(found, timeout=1200, resources={"metadata": {"path": str(lesson.parent)}})
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{lesson.name} failed:\n{str(error)[-3000:]}"
    taken = processor_seconds() - before
    print(f"{lesson.name}: {taken:.1f} s of processor time", flush=True)
    if taken > limit:
        return f"{lesson.name} took {taken:.0f} s of processor time, more than {limit:.0f}"
    for cell in found.cells:
        if cell.cell_type == "markdown":
            cell.source = resolved(cell.source)
        elif "hide-output" in cell.metadata.get("tags", ()):  # its code may give away what is to be predicted
            cell.metadata["tags"] = ["hide-cell"]
    found.cells[0].source += TO_TAKE.format(stem=lesson.stem)
    pages.mkdir(parents=True, exist_ok=True)
    nbformat.write(found, pages / f"{lesson.stem}.ipynb")
    return None


def main(arguments: list[str], folder: Path = TUTORIALS, pages: Path = PAGES) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, help="of the lessons; by default all")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of processor time for one lesson")
    args = parser.parse_args(arguments)
    chosen = [lesson for lesson in lessons(folder) if not args.numbers or int(lesson.name[:2]) in args.numbers]
    wrong = [said for lesson in chosen if (said := run(lesson, pages, args.limit))]
    print("\n".join(wrong) if wrong else f"{len(chosen)} lessons ran", flush=True)
    return int(bool(wrong) or not chosen)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
