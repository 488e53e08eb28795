"""Grades in the forms that others read: a table, a page for each student, JUnit's XML, Gradescope's results."""

from __future__ import annotations

import csv
import io
import json
import re
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tinyllm.course.teacher.files import write_text


def read_grades(path: Path) -> dict[str, Any]:
    """What `grade` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        If there are no grades.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: `grade SUBMISSIONS --homework FOLDER -o {path}` writes it")
    try:
        grades = json.loads(path.read_text(encoding="utf-8"))
        assert {"exercises", "students"} <= set(grades)
    except (ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{path} holds no grades") from error
    return grades


def as_csv(grades: dict[str, Any]) -> str:
    """A row for each student: points of each exercise, their sum, and what should be known."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    ids = [e["id"] for e in grades["exercises"]]
    table.writerow(["student", *ids, "sum", "of", "notes"])
    most = sum(e["points"] for e in grades["exercises"])
    for s in grades["students"]:
        earned = {r["id"]: r["earned"] for r in s["results"]}
        # A spreadsheet would take a name that begins with one of these for a formula.
        name = f"'{s['student']}" if s["student"][:1] in "=+-@" else s["student"]
        table.writerow([name, *(earned[i] for i in ids), s["points"], most, " ".join(s["notes"])])
    return out.getvalue()


def as_page(grades: dict[str, Any], student: dict[str, Any]) -> str:
    """A student's page, which needs no other file."""
    most = sum(e["points"] for e in grades["exercises"])
    parts = [f"<h1>{escape(student['student'])}: {student['points']} of {most} points</h1>"]
    parts += [f"<p>{escape(note)}</p>" for note in student["notes"]]
    for result in student["results"]:
        parts.append(f"<h2>{escape(result['id'])}: {result['earned']} of {result['points']}</h2><ul>")
        for p in result["properties"]:
            said = "held" if p["passed"] else p["said"] + (f" For example: {p['case']}" if p["case"] else "")
            parts.append(f"<li>{'&#10003;' if p['passed'] else '&#10007;'} {escape(p['name'])}: {escape(said)}</li>")
        parts.append("</ul>")
        if result["mistake"]:
            parts.append(f"<p>The same answers as a known mistake: {escape(result['mistake'])}.</p>")
    style = "body{font-family:sans-serif;max-width:50em;margin:2em auto;padding:0 1em;overflow-wrap:anywhere}"
    title = escape(student["student"])
    head = f'<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def as_junit(grades: dict[str, Any]) -> str:
    """JUnit's XML: a suite for each student, a case for each property."""
    suites = ElementTree.Element("testsuites", name=f"homework {grades['homework']}")
    for s in grades["students"]:
        cases = [(r["id"], p) for r in s["results"] for p in r["properties"]]
        failed = sum(not p["passed"] for _, p in cases)
        name = _printable(s["student"])
        suite = ElementTree.SubElement(suites, "testsuite", name=name, tests=str(len(cases)), failures=str(failed))
        for id, p in cases:
            case = ElementTree.SubElement(suite, "testcase", classname=id, name=p["name"])
            if not p["passed"]:
                ElementTree.SubElement(case, "failure", message=_printable(p["said"])).text = _printable(p["case"])
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]", "?", text)


def as_gradescope(grades: dict[str, Any]) -> str:
    """The one student's results as Gradescope reads them: a test for each property, all visible."""
    (student,) = grades["students"]
    tests = []
    for number, result in enumerate(student["results"], 1):
        gated = result["earned"] == 0
        for place, p in enumerate(result["properties"], 1):
            score = p["points"] if p["passed"] and not gated else 0
            output = p["said"] + (f"\n{p['case']}" if p["case"] else "")
            tests.append(
                {
                    "name": f"{result['id']}: {p['name']}",
                    "number": f"{number}.{place}",
                    "score": score,
                    "max_score": p["points"],
                    "status": "passed" if p["passed"] else "failed",
                    "output": output,
                    "visibility": "visible",
                }
            )
    told = {"score": student["points"], "output": "\n".join(student["notes"]), "tests": tests}
    return json.dumps(told | {"visibility": "visible", "stdout_visibility": "hidden"}, indent=1) + "\n"


def write_book(grades: dict[str, Any], target: Path, junit: Path | None = None) -> Path:
    """Write the table, a folder of pages beside it, and JUnit's XML if it is asked for; returns the folder."""
    write_text(target, as_csv(grades))
    pages = target.with_suffix("")
    pages.mkdir(parents=True, exist_ok=True)
    for number, student in enumerate(grades["students"], 1):
        safe = re.sub(r"[^\w.-]", "_", student["student"])[:80]
        write_text(pages / f"{number:03d}-{safe}.html", as_page(grades, student))
    if junit is not None:
        write_text(junit, as_junit(grades))
    return pages
