"""A planted class: twenty students and more, whose grades are written down beforehand and met to the point.

They are graded in processes of their own, and in a sandbox where it is installed. What only the sandbox stops is named:
`DISK` reads the answer from the engine's source, and has all points in a process.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tinyllm.course.__main__ import main
from tinyllm.course.judge.sandbox import Sandbox, lacking
from tinyllm.course.teacher.book import as_csv, as_gradescope, as_junit
from tinyllm.course.teacher.grading import grade
from tinyllm.course.teacher.homework import chosen, make, read_sheet
from tinyllm.course.teacher.lessons import lessons_folder
from tinyllm.course.teacher.submissions import one, submissions

HOMEWORK = chosen(["08-definition", "08-count"])

LOOPS = '''
import numpy as np

def lora_row(x, W, A, B, alpha):
    """In loops."""
    r = A.shape[0]
    y = np.zeros(W.shape[0])
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            y[i] += W[i, j] * x[j]
        for k in range(r):
            for j in range(W.shape[1]):
                y[i] += alpha / r * B[i, k] * A[k, j] * x[j]
    return y
'''
COUNT = """
def trained(shapes, rank, targets):
    names = {path.split(".")[-1] for path in shapes}
    for t in targets:
        if t not in names:
            raise ValueError("no layer " + t)
    return sum(rank * (o + i) for path, (o, i) in shapes.items() if path.split(".")[-1] in targets)
"""
EINSUM = """
import numpy as np
def lora_row(x, W, A, B, alpha):
    return np.einsum("oi,i->o", W, x) + alpha / len(A) * np.einsum("or,ri,i->o", B, A, x)
"""
HELPED = """
from numpy import matmul
def scale(alpha, A): return alpha / len(A)
def lora_row(x, W, A, B, alpha): return matmul(W, x) + matmul(B, matmul(A, x)) * scale(alpha, A)
"""
ROW = "\ndef lora_row(x, W, A, B, alpha):\n    "
RIGHT = "return W @ x + alpha / len(A) * (B @ (A @ x))\n"
PATCHED = """
import numpy as np
def lora_row(x, W, A, B, alpha):
    np.abs = np.asarray = lambda *a, **k: 0
    np.finfo = None
    return np.zeros(len(W))
"""
DISK = """
import glob, numpy, os, tinyllm
def lora_row(x, W, A, B, alpha):
    place = os.path.join(os.path.dirname(tinyllm.__file__), "course", "exercises", "lesson_08.py")
    text = open(place, encoding="utf-8").read()
    text = text[text.index("def lora_row_folded"):].split("def lora_row_size")[0]
    space = {"Array": numpy.ndarray}
    exec(text, space)
    return space["lora_row_folded"](x, W, A, B, alpha)
"""
FAKE = """
print("08-definition: right, 4 of 4 points")
def lora_row(x, W, A, B, alpha):
    print('{"value": 1, "raised": ""}')
    print("08-definition: right, 4 of 4 points")
"""


def notebook(*cells: str) -> str:
    found = [{"cell_type": "code", "source": cell.splitlines(keepends=True), "metadata": {}} for cell in cells]
    return json.dumps({"cells": found, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def zipped(**files: str | bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return out.getvalue()


# The file that each student hands in, its text, and the points of the two exercises.
CLASS: dict[str, tuple[str | bytes, int, int]] = {
    "right_loops.py": (LOOPS + COUNT, 4, 3),
    "right_einsum.py": (EINSUM + COUNT, 4, 3),
    "right_helped.py": (HELPED + COUNT, 4, 3),
    "wrong_alpha.py": (ROW + "return W @ x + alpha * (B @ (A @ x))\n" + COUNT, 1, 3),
    "wrong_silent.py": (ROW + RIGHT + COUNT.replace('raise ValueError("no layer " + t)', "pass"), 4, 2),
    "wrong_dtype.py": (ROW + "import numpy as np; return (W @ x).astype(np.float32)\n" + COUNT, 0, 3),
    "stub.py": (ROW + "raise NotImplementedError('your turn')\n" + COUNT, 0, 3),
    "syntax.py": ("def lora_row(x, W, A, B, alpha:\n    return x\n" + COUNT, 0, 0),
    "endless.py": (ROW + "while True: pass\n" + COUNT, 0, 3),
    "hog.py": (ROW + "return [0] * 10**12\n" + COUNT, 0, 3),
    "gigabyte.py": (ROW + "[print('y' * 2**20) for _ in range(1024)]; " + RIGHT + COUNT, 0, 3),
    "fake.py": (FAKE + COUNT, 0, 3),
    "exits.py": ("import os" + ROW + "os._exit(0)\n" + COUNT, 0, 3),
    "leaves.py": ("import sys" + ROW + "sys.exit(0)\n" + COUNT, 0, 3),
    "patches.py": (PATCHED + COUNT, 0, 3),
    "disk.py": (DISK + COUNT, 4, 3),
    "imports.py": (ROW + "from tinyllm.course.exercises.lesson_08 import lora_row; return 1\n" + COUNT, 0, 3),
    "in_place.py": (ROW + "W += alpha / len(A) * B @ A; return W @ x\n" + COUNT, 0, 3),
    "lots.py": ("import numpy as np" + ROW + "return W @ x + np.random.default_rng().normal()\n" + COUNT, 0, 3),
    "cells.ipynb": (
        notebook("%matplotlib inline\nx = 1 / 0", ROW + "return x", ROW + RIGHT, COUNT, COUNT, "a b"),
        4,
        3,
    ),
    "windows.py": (b"\xef\xbb\xbf" + (LOOPS + COUNT).replace("\n", "\r\n").encode(), 4, 3),
    "empty.py": ("", 0, 0),
    "another.py": ("# tinyllm homework 00000000, release 0.1\n" + LOOPS, 4, 0),
    "latin.py": ("# é\n".encode("latin-1") + COUNT.encode(), 0, 0),
    "zip.zip": (zipped(student__py=LOOPS), 4, 0),
    "nested.zip": (zipped(inner__zip=zipped(student__py=LOOPS)), 0, 0),
    "bad.zip": (b"PK no zip", 0, 0),
    "damaged.ipynb": ("{", 0, 0),
    "=cmd odd name <b> é.py": (COUNT, 0, 3),
    "constant.py": ("import math\nHALF = 2\n" + ROW + "return HALF * W @ x\n", 0, 0),
}
SAID = {
    "syntax": "Not graded: it is not Python, line 1",
    "cells": "lora_row is defined 2 times: the last one counts.",
    "empty": "Not graded: the file is empty.",
    "another": "another homework",
    "latin": "not in UTF-8",
    "nested": "holds another zip",
    "bad": "damaged",
    "damaged": "not the JSON that Jupyter writes",
    "constant": "HALF is set outside of every function",
    "twice": "Handed in more than once: twice.py counts, not twice.ipynb.",
    "linked": "a link to somewhere else",
    "huge": "100 MB",
    "folder": "Several files: student.py counts, not other.py.",
    "nothing": "no .py, .ipynb or .zip",
}


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    for name, (content, *_) in CLASS.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for name in ("twice.py", "twice.ipynb"):
        (folder / name).write_text(notebook(COUNT) if name.endswith("b") else COUNT)
    outside = tmp_path_factory.mktemp("outside") / "secret.py"
    outside.write_text(LOOPS)
    (folder / "linked.py").symlink_to(outside)
    with open(folder / "huge.py", "wb") as file:
        file.truncate(100_000_000)
    for name, files in {"folder": {"student.py": COUNT, "other.py": LOOPS}, "nothing": {"notes.txt": "x"}}.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_text(content)
    return folder


@pytest.fixture(scope="module")
def graded(handed_in, tmp_path_factory):
    target = tmp_path_factory.mktemp("grades") / "grades.json"
    return target, grade(HOMEWORK, list(submissions(handed_in)), target, seconds=1, examples=40)


def of(grades, student):
    (found,) = [s for s in grades["students"] if s["student"] == student]
    return found


@pytest.mark.parametrize("name", CLASS)
def test_the_class_has_the_grades_that_were_written_down(graded, name):
    _, *points = CLASS[name]
    student = of(graded[1], Path(name).stem)
    assert [r["earned"] for r in student["results"]] == points, student
    assert student["points"] == sum(points)


@pytest.mark.skipif(bool(lacking()), reason=f"not run: {lacking()}")
def test_a_sandbox_gives_the_same_grades_but_for_reading_the_answer_from_disk(handed_in, graded):
    found = grade(HOMEWORK, list(submissions(handed_in)), seconds=1, examples=40, room=Sandbox)
    for student, other in zip(found["students"], graded[1]["students"], strict=True):
        points = [r["earned"] for r in student["results"]]
        if student["student"] == "disk":
            assert points == [0, 3], student
        else:
            assert points == [r["earned"] for r in other["results"]], student
            assert student["notes"] == other["notes"]


@pytest.mark.parametrize("student", SAID)
def test_what_is_odd_is_said_in_a_sentence(graded, student):
    assert SAID[student] in " ".join(of(graded[1], student)["notes"])


def test_a_mistake_is_named_and_where_the_time_went_is_said(graded):
    (definition, _) = of(graded[1], "wrong_alpha")["results"]
    assert definition["mistake"] == "alpha without rank"
    for student, said in {
        "endless": "longer than 1 s",
        "hog": "more memory",
        "gigabyte": "printed more than 10 MB",
        "exits": "ended its whole process",
        "leaves": "SystemExit",
        "imports": "this is what you are asked to write",
        "in_place": "changes its argument `W`",
        "lots": "different answers to the same question",
        "fake": "must be an array, not None",
        "wrong_dtype": "must be float64, not float32",
    }.items():
        (definition, _) = of(graded[1], student)["results"]
        assert said in definition["properties"][0]["said"], definition


def test_a_rerun_grades_only_what_changed_and_gives_the_same_bytes(graded, handed_in, tmp_path):
    target, _ = graded
    copy = tmp_path / "grades.json"
    half = json.loads(target.read_text())
    half["students"] = half["students"][: len(CLASS) // 2]  # as if somebody had stopped it
    copy.write_text(json.dumps(half))
    told: list[str] = []
    few = [s for s in submissions(handed_in) if s.student in ("right_loops", "wrong_alpha", "cells", "lots", "zip")]
    grade(HOMEWORK, few, copy, report=told.append, seconds=1, examples=40)
    assert sum("as before" in line for line in told) == sum(
        of_half["student"] in {f.student for f in few} for of_half in half["students"]
    )
    whole = json.loads(target.read_text())
    assert json.loads(copy.read_text())["students"] == [of(whole, s.student) for s in few]
    with pytest.raises(ValueError, match="another homework, release, seed or room"):
        grade(HOMEWORK, few, copy, seed=9)
    copy.write_text("{")
    with pytest.raises(ValueError, match="holds no grades"):
        grade(HOMEWORK, few, copy)


def test_the_book_in_every_form(graded, tmp_path):
    target, grades = graded
    assert main(["book", str(target), "-o", str(tmp_path / "g.csv"), "--junit", str(tmp_path / "g.xml")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "g.csv").read_text(encoding="utf-8"))))
    assert len(rows) == len(grades["students"]) == len(list((tmp_path / "g").iterdir()))
    assert {r["student"]: int(r["sum"]) for r in rows}["wrong_alpha"] == 4
    assert any(r["student"].startswith("'=cmd") for r in rows) and all(int(r["sum"]) <= int(r["of"]) == 7 for r in rows)
    suites = ElementTree.parse(tmp_path / "g.xml").getroot()
    assert len(suites) == len(rows)
    pages = [p.read_text(encoding="utf-8") for p in (tmp_path / "g").iterdir()]
    assert any("&lt;b&gt;" in page for page in pages) and not any("<b>" in page for page in pages)
    assert as_csv(grades) and as_junit(grades)


# Gradescope's fields, as its documentation lists them.
TOP = {"score", "execution_time", "output", "output_format", "test_output_format", "test_name_format", "visibility"}
TOP |= {"stdout_visibility", "extra_data", "tests", "leaderboard"}
TEST = {"score", "max_score", "status", "name", "name_format", "number", "output", "output_format", "tags"}
TEST |= {"visibility", "extra_data"}


def test_gradescopes_results_have_its_fields(handed_in):
    folder = handed_in / "folder"
    found = json.loads(as_gradescope(grade(HOMEWORK, [one("submission", [folder], folder)])))
    assert set(found) <= TOP and found["score"] == 3 == sum(t["score"] for t in found["tests"])
    for test in found["tests"]:
        assert set(test) <= TEST and test["status"] in ("passed", "failed") and test["score"] <= test["max_score"]
        assert test["visibility"] in ("hidden", "after_due_date", "after_published", "visible")


def test_a_teacher_from_list_to_book(tmp_path, capsys):
    """Every command once, in turn, by the words of the teaching page."""
    assert main(["list"]) == 0 and main(["list", "--json"]) == 0
    hw = tmp_path / "hw2"
    assert main(["make", "08-count", "08-definition", "-o", str(hw)]) == 0
    assert read_sheet(hw).name == HOMEWORK.name
    assert main(["check", str(hw)]) == 0
    assert "your turn" in capsys.readouterr().out
    (hw / "student.py").write_text((hw / "student.py").read_text(encoding="utf-8") + COUNT)
    assert main(["check", str(hw)]) == 0
    assert "3 of 7 points" in capsys.readouterr().out
    folder = tmp_path / "all"
    folder.mkdir()
    (hw / "student.py").rename(folder / "anna.py")
    grades = tmp_path / "grades.json"
    assert main(["grade", str(folder), "--homework", str(hw), "-o", str(grades)]) == 0
    assert main(["book", str(grades), "-o", str(tmp_path / "grades.csv")]) == 0
    (row,) = csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8"))
    assert row["sum"] == "3" and "defined 2 times" in row["notes"]


def test_a_variant_asks_for_something_else_and_says_so(tmp_path, capsys):
    hw = tmp_path / "hw"
    assert main(["make", "08-definition", "08-count", "-o", str(hw), "--variant", "17"]) == 0
    assert "Changed by the variant: 08-definition." in capsys.readouterr().out
    text = (hw / "student.py").read_text(encoding="utf-8")
    assert "**In this homework:** The scale is alpha over the *root* of the rank" in text
    (hw / "student.py").write_text(text + LOOPS + COUNT)
    assert main(["check", str(hw)]) == 0
    out = capsys.readouterr().out
    assert "“as in the lesson”" in out and "4 of 7 points" in out  # at rank 1 the two are the same
    assert read_sheet(hw).name != HOMEWORK.name
    assert main(["make", "08", "-o", str(tmp_path / "x"), "--variant", "-1"]) == 2


def test_what_is_handed_out_has_no_answer_and_the_zip_has_gradescopes_files(tmp_path):
    make(HOMEWORK, lessons_folder(), tmp_path / "hw")
    stubs = (tmp_path / "hw" / "student.py").read_text(encoding="utf-8")
    assert stubs.count("NotImplementedError") == 2 and "sum(" not in stubs and "<details>" not in stubs
    names = set(zipfile.ZipFile(tmp_path / "hw" / "gradescope.zip").namelist())
    assert {"setup.sh", "run_autograder", "homework.json", "engine/tinyllm/course/__main__.py"} <= names
    with pytest.raises(FileExistsError, match="choose another -o"):
        make(HOMEWORK, lessons_folder(), tmp_path / "hw")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["make", "08-cuont", "-o", "x"], "did you mean 08-count?"),
        (["make", "77", "-o", "x"], "no exercise or lesson '77'"),
        (["make", "08", "-o", "x", "--lessons", "."], "give the folder `tutorials` of a clone"),
        (["check", "."], "has no homework.json"),
        (["grade", "nowhere", "--homework", ".", "-o", "g"], "there is no folder nowhere"),
        (["grade", "hw/none", "--homework", "hw", "-o", "g"], "there are no submissions"),
        (["book", "nothing.json", "-o", "g.csv"], "there is no nothing.json"),
        (["book", "no.json", "-o", "g.csv"], "holds no grades"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("hw/none").mkdir(parents=True)
    Path("hw/homework.json").write_text(HOMEWORK.sheet())
    Path("no.json").write_text("[]")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
