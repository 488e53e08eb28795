"""What holds of every lesson, by reading it: its head, its first cell, predictions, exercises, figures and ending.

That a lesson runs is CI's business (`tools/run_lessons.py`). Each rule is shown a lesson that breaks it.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "tutorials"
LESSONS = {int(path.name[:2]): path.read_text(encoding="utf-8") for path in sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))}
MINE = (TUTORIALS / "mine.py").read_text(encoding="utf-8")
EXERCISE = r"## Exercise (\d\d-[a-z0-9-]+): .+\n#\n# \*(\d+) minutes, importance [1-5] of 5\.\*"


def cells(text: str) -> list[tuple[str, str]]:
    """Pairs of a cell's first line and its text."""
    parts = re.split(r"^(# %%.*)$", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], (body.strip("\n") for body in parts[1::2]), strict=True))


def faults(number: int, text: str, there: set[int], mine: str = MINE) -> list[str]:
    """Everything that is wrong with a lesson, in words."""
    found = cells(text)
    said = [kind for kind, _ in found]
    prose = "\n".join(body for kind, body in found if "markdown" in kind)
    code = [(kind, body) for kind, body in found if "markdown" not in kind]
    wrong = [*head(number, found, there), *ending(prose)]
    first = [line for line in code[0][1].splitlines() if line.strip()]
    if len(first) > 6 or not re.fullmatch(rf'kit\.begin\({number}(, needs="[\d.]+")?\)', first[-1]):
        wrong.append(f"the first cell has {len(first)} lines and ends with {first[-1]}")
    for i, (_, body) in enumerate(found):
        asks = re.search(r"^# \*\*Predict\.\*\*", body, re.MULTILINE)
        if asks and "hide-output" not in " ".join(said[i + 1 : i + 2]):
            wrong.append(f"the cell after a prediction shows its output: {body[:60]}")
    if not any("hide-output" in kind for kind in said):
        wrong.append("there is nothing to predict")
    exercises = [name for name, _ in re.findall(EXERCISE, prose)]
    checked = re.findall(r'^check\("([^"]+)", \w+\)$', text, re.MULTILINE)
    if exercises != checked or not 2 <= len(exercises) <= 4 or len(exercises) != prose.count("## Exercise"):
        wrong.append(f"exercises {exercises}, checked {checked}")
    if any(not name.startswith(f"{number:02}-") for name in exercises):
        wrong.append(f"exercises of another lesson: {exercises}")
    if re.search(r"^# (:::|```\{|\{\w+\}`)", text, re.MULTILINE):
        wrong.append("a directive, which only the site would understand")
    return wrong + functions(text, mine)


def head(number: int, found: list[tuple[str, str]], there: set[int]) -> list[str]:
    first = found[0][1]
    if not re.match(rf"# # Lesson {number}: .*\?\n", first):
        return ["the head is no question"]
    leads = re.findall(r"^# - \*\*(.+?)\*\*: (.+)$", first, re.MULTILINE)
    wanted = ("Needs", "Minutes", "Afterwards you can")
    wrong = [f"the head has no {lead}" for lead in wanted if lead not in dict(leads)]
    needs = {int(n) for n in re.findall(r"\d+", dict(leads).get("Needs", ""))}
    if late := sorted(n for n in needs if n >= number or n not in there):
        wrong.append(f"it needs lessons {late}, which are not there before it")
    return wrong


def ending(prose: str) -> list[str]:
    parts = ["## Three questions", "## What this does not show", "## Now read"]
    wrong = [f"there is no {part!r}" for part in parts if part not in prose]
    if wrong:
        return wrong
    questions, _, rest = prose.partition(parts[0])[2].partition(parts[1])
    if len(re.findall(r"<summary>Answer</summary>", questions)) != 3:
        wrong.append("three questions have three folded answers")
    names = re.findall(r"^# [-*] `([\w.]+)`", rest.partition(parts[2])[2], re.MULTILINE)
    wrong += [f"{name} is nowhere to be read" for name in names if not resolves(name)]
    return wrong if names else [*wrong, "nothing to read"]


def resolves(name: str) -> bool:
    """Whether a dotted name is there, in a module or in one of its classes."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part, None)
        return thing is not None
    return False


def functions(text: str, mine: str) -> list[str]:
    """Figures show and return what they drew; stubs stay empty; what the reader builds stands in mine.py as well."""

    def sources(of: str) -> dict[str, str]:
        nodes = [node for node in ast.parse(of).body if isinstance(node, ast.FunctionDef)]
        return {node.name: ast.get_source_segment(of, node) or "" for node in nodes}

    own, wrong = sources(text), []
    figures = {name: body for name, body in own.items() if name.startswith("figure_")}
    for name, body in figures.items():
        if not re.search(r"kit\.show\(\s*figure,\s", body) or not re.search(r"\n    return ", body):
            wrong.append(f"{name} must show its figure with an alt text and return its numbers")
    if not figures:
        wrong.append("there is no figure")
    for name in re.findall(r'^check\("[^"]+", (\w+)\)$', text, re.MULTILINE):
        if 'raise NotImplementedError("your turn")' not in own.get(name, ""):
            wrong.append(f"{name} is solved already")
    wrong += [f"{name} is another one in mine.py" for name, body in own.items()
              if name.startswith("my_") and sources(mine).get(name) != body]  # fmt: skip
    return wrong


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_keeps_the_contract(number):
    assert faults(number, LESSONS[number], {n for n in LESSONS if n < number}) == []


def test_exercises_have_names_of_their_own():
    names = [name for text in LESSONS.values() for name, _ in re.findall(EXERCISE, text)]
    assert len(names) == len(set(names)) >= 2 * len(LESSONS)


def test_all_that_was_built_stands_in_its_lesson():
    built = {node.name for node in ast.parse(MINE).body if isinstance(node, ast.FunctionDef)}
    taught = {name for text in LESSONS.values() for name in re.findall(r"^def (my_\w+)", text, re.MULTILINE)}
    assert built == taught


PLANTED = {
    "needs a later one": (r"(# - \*\*Needs\*\*: ).*", r"\1lesson 11", "needs lessons [11]"),
    "no minutes": (r"# - \*\*Minutes\*\*.*\n", "", "no Minutes"),
    "no question": (r"(# # Lesson \d+: .*)\?", r"\1.", "no question"),
    "a long first cell": (r"(import numpy as np)", r"\1\n" + "import os\n" * 6, "first cell has"),
    "an open prediction": (r'# %% tags=\["hide-output"\]', "# %%", "nothing to predict"),
    "an exercise without a check": (r'check\("10-pack", pack_bits\)', "", "exercises"),
    "an exercise of another lesson": (r"10-pack", "09-pack", "another lesson"),
    "a solved exercise": (r'raise NotImplementedError\("your turn"\)', "return 0", "solved already"),
    "a directive": (r"# ## Three questions", "# :::{note}\n# ## Three questions", "directive"),
    "an open answer": (r"<details><summary>Answer</summary>", "", "folded"),
    "a renamed function": (r"tinyllm\.qlora\.quantize_base", "tinyllm.qlora.quantise_base", "nowhere to be read"),
    "no ending": (r"## What this does not show", "## Whatever", "What this does not show"),
    "a figure without words": (r"kit\.show\(\s*figure,\s", "kit.show(", "alt text"),
    "another function in mine.py": (r"return codes\[0::2\] << 4", "return codes[0::2] << 3", "another one in mine.py"),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_a_broken_lesson_is_noticed(planted):
    pattern, instead, words = PLANTED[planted]
    text = re.sub(pattern, instead, LESSONS[10])
    assert text != LESSONS[10]
    assert words in " ".join(faults(10, text, {1, 2}))
