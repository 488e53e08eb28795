"""The lessons as notebooks, tutorials/notebooks/*.ipynb, from the scripts that are their source.

    python tools/notebooks.py [--check]

With --check nothing is written, and the exit status is 1 where a notebook is not what its script makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Put before a lesson's own first cell: what it needs, from this clone or from the package index.
PREPARE = '''\
# Made from {name}, the same lesson as a script. This cell finds what it needs, and where the machine has a
# card, the CuPy for its driver.
import importlib.util, os, re, shutil, subprocess, sys
sys.path.insert(0, os.path.abspath(".."))  # all_of_it.py and mine.py
engine = "../.." if os.path.exists("../../pyproject.toml") else "tinyllm-engine"
missing = [] if importlib.util.find_spec("tinyllm") else [f"{{engine}}[plot]"]
install = [sys.executable, "-m", "pip", "install", "-q"]
if missing:
    subprocess.check_call([*install, *missing])
if shutil.which("nvidia-smi") and not importlib.util.find_spec("cupy"):
    driver = re.search(r"CUDA Version: (\\d+)", subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout)
    if driver and subprocess.call([*install, f"cupy-cuda{{driver[1]}}x[ctk]"]):
        print("CuPy could not be installed (is there a network?): the lesson runs on the processor")'''


def lessons(folder: Path = TUTORIALS) -> list[Path]:
    """The lessons' scripts, in their order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def notebook(lesson: Path) -> NotebookNode:
    """A lesson's cells, without outputs; the same script gives the same bytes."""
    found = jupytext.read(lesson)
    found.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for i, cell in enumerate(found.cells):
        cell["id"] = f"cell-{i}"
        cell["metadata"] = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    return found


def to_open(lesson: Path) -> str:
    """The notebook that a reader opens, as text."""
    found = notebook(lesson)
    cell = nbformat.v4.new_code_cell(PREPARE.format(name=lesson.name), id="prepare")
    found.cells.insert(1, cell)
    nbformat.validate(found)
    return nbformat.writes(found) + "\n"


def main(arguments: list[str], folder: Path = TUTORIALS) -> int:
    made = {folder / "notebooks" / f"{lesson.stem}.ipynb": to_open(lesson) for lesson in lessons(folder)}
    there = set((folder / "notebooks").glob("*.ipynb"))
    stale = [path for path, text in made.items() if path not in there or path.read_text(encoding="utf-8") != text]
    stray = sorted(there - set(made))
    if arguments == ["--check"]:
        for path in stale + stray:
            print(f"{path.name} is not what its lesson makes: python tools/notebooks.py")
        return int(bool(stale or stray))
    for path in stray:
        path.unlink()
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(made[path], encoding="utf-8")
    print(f"{len(made)} notebooks, {len(stale)} written, {len(stray)} removed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
