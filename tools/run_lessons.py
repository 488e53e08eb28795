"""Run every lesson once, as a script from another folder: its processor time, and whether it is within the limit.

    python tools/run_lessons.py [NUMBER ...]

The exit status is 1 if a lesson fails or takes over a minute of processor time, whatever else the machine does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"
LIMIT = 60.0  # seconds of processor time


def processor_seconds() -> float:
    """What the processes that this one waited for have used so far."""
    times = os.times()
    return times.children_user + times.children_system


def run(lesson: Path) -> str | None:
    """Run a lesson; what was wrong, or None."""
    before = processor_seconds()
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run([sys.executable, str(lesson)], cwd=elsewhere, capture_output=True, text=True)
    taken = processor_seconds() - before
    print(f"{lesson.name}: {taken:.1f} s of processor time", flush=True)
    if done.returncode:
        return f"{lesson.name} failed:\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
    if taken > LIMIT:
        return f"{lesson.name} took {taken:.0f} s of processor time, more than {LIMIT:.0f}"
    return None


def main(wanted: list[str], folder: Path = TUTORIALS) -> int:
    lessons = sorted(folder.glob("[0-9][0-9]_*.py"))
    chosen = [lesson for lesson in lessons if not wanted or lesson.name[:2] in {f"{int(n):02}" for n in wanted}]
    wrong = [said for lesson in chosen if (said := run(lesson))]
    print("\n".join(wrong) if wrong else f"{len(chosen)} lessons ran", flush=True)
    return int(bool(wrong) or not chosen)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
