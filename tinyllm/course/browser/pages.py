"""The pages that the server shows: the list of lessons, and each lesson with its code in cells one can edit."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

LESSONS = (0, 1, 2, 8, 10)  # those that need nothing but Python, NumPy and matplotlib
PREPARES = "prepare"  # a notebook's cell that installs what is here already

FRAME = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page.css">
{math}<header><a href="/">All lessons</a> <span id="state" role="status">{state}</span>
<button type="button" id="stop"{hidden}>Stop, and start Python afresh</button></header>
<main>
{body}
</main>
{script}</html>
"""
MATH = """<script>MathJax = {tex: {inlineMath: [["$", "$"]]}};</script>
<script src="/mathjax/tex-svg.js" defer></script>
"""
CELL = """<section class="cell"><label for="code-{n}">Cell {n}</label>
<textarea id="code-{n}" rows="{rows}" spellcheck="false" autocapitalize="off">{code}</textarea>
<button type="button" class="run" aria-label="Run cell {n}">Run</button>
<div class="output" id="output-{n}" role="region" aria-label="What cell {n} shows" tabindex="0"></div></section>
"""


def notebook(lessons: Path, number: int) -> Path:
    """The notebook of a lesson.

    Raises
    ------
    FileNotFoundError
        If there is none in the folder.
    """
    found = list((lessons / "notebooks").glob(f"{number:02d}_*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"the lessons are not in {lessons}: give the folder `tutorials` of a clone, --lessons FOLDER"
        )
    return found[0]


def lesson(lessons: Path, number: int, math: bool) -> str:
    """The page of a lesson."""
    cells = json.loads(notebook(lessons, number).read_text(encoding="utf-8"))["cells"]
    body, n = [], 0
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            body.append(f"<div class='text'>{rendered(source)}</div>")
        elif cell["id"] != PREPARES:
            n += 1
            body.append(CELL.format(n=n, rows=source.count("\n") + 1, code=escape(source)))
    script = '<script type="module" src="/page.js"></script>\n'
    return FRAME.format(
        title=title(cells), body="\n".join(body), state="Python is starting ...", hidden="", script=script,
        math=MATH if math else "",
    )  # fmt: skip


def index(lessons: Path) -> str:
    """The page that lists the lessons."""
    rows = []
    for number in LESSONS:
        cells = json.loads(notebook(lessons, number).read_text(encoding="utf-8"))["cells"]
        rows.append(f'<li><a href="/lesson/{number}">{escape(title(cells))}</a></li>')
    body = (
        "<h1>Lessons in this browser</h1>\n<p>Python, NumPy and the engine run in this page; nothing is sent anywhere, "
        "and no internet is needed. What you change is forgotten when the page is closed: copy out what you want to "
        "keep. "
        f"The other lessons run as notebooks and scripts.</p>\n<ul>\n{''.join(rows)}\n</ul>"
    )
    return FRAME.format(title="Lessons in this browser", body=body, state="", hidden=" hidden", script="", math="")


def title(cells: list[dict]) -> str:
    return "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")


def rendered(markdown: str) -> str:
    """Markdown as HTML; formulas between dollars stay as they are, for MathJax."""
    from markdown_it import MarkdownIt  # with rich

    formulas: list[str] = []

    def kept(found: re.Match) -> str:
        formulas.append(found[0])
        return f"\x02{len(formulas) - 1}\x03"

    text = re.sub(r"\$\$.+?\$\$|\$[^$\n]+\$", kept, markdown, flags=re.S)
    html = MarkdownIt("commonmark").enable("table").render(text)
    return re.sub("\x02(\\d+)\x03", lambda found: escape(formulas[int(found[1])]), html)
