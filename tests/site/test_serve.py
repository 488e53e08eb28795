"""Lessons in a browser without internet: a learner's rule fine-tunes the base there with the engine's losses.

What it needs: a Chromium of the system, playwright, and the extra `sandbox`; it is "not run" without one of them.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import ROOT
from test_browser import AXE, complaints

import tinyllm
from tinyllm.course import kit
from tinyllm.course.browser import pages
from tinyllm.course.judge.sandbox import lacking
from tinyllm.qlora import apply_qlora
from tutorials import mine

pytestmark = pytest.mark.skipif(bool(lacking()), reason=f"not run: {lacking()}")

RULE = (
    "".join(map(inspect.getsource, (mine.my_clip_factor, mine.my_unbroadcast)))
    + """
import numpy as np
import tinyllm
from tinyllm.course import kit
from tinyllm.qlora import apply_qlora

def losses():
    tinyllm.manual_seed(0)
    model = apply_qlora(kit.base(), rank=4, verbose=False)
    with tinyllm.use(clip_factor=my_clip_factor, unbroadcast=my_unbroadcast):
        return kit.fine_tune(model, steps=3, size=2, time=32)
"""
)
WRONG = """
def lora_row(x, W, A, B, alpha):
    return W @ x + alpha * (B @ (A @ x))
check("08-definition", lora_row)
"""
RIGHT = WRONG.replace("alpha *", "alpha / len(A) *")


@pytest.fixture(scope="module")
def address():
    command = [sys.executable, "-m", "tinyllm.course", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield server.stdout.readline().split()[1]
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def lesson(tab, address):
    """Lesson 8, Python started in it."""
    tab.goto(f"{address}lesson/8")
    ready(tab)
    return tab


def ready(tab) -> None:
    tab.wait_for_function("document.getElementById('state').textContent.startsWith('Python is ready')", timeout=120_000)


def ran(tab, text: str, cell: int = 1) -> str:
    """What a cell shows when this has run in it."""
    tab.fill(f"#code-{cell}", text)
    tab.locator(f"#code-{cell}").press("Shift+Enter")
    tab.wait_for_function(
        f"/^Cell {cell} (failed|has run)/.test(document.getElementById('state').textContent)", timeout=120_000
    )
    return tab.inner_text(f"#output-{cell}")


def test_a_learners_rule_fine_tunes_with_the_engines_losses(lesson):
    found = json.loads(ran(lesson, RULE + "print(losses())"))
    tinyllm.manual_seed(0)
    model = apply_qlora(kit.base(), rank=4, verbose=False)
    wanted = kit.fine_tune(model, steps=3, size=2, time=32)
    assert np.abs(np.array(found) - wanted).max() < 1e-5 and len(found) == 3


def test_answers_are_judged_on_the_cases_written_down(lesson):
    assert "08-definition: right, 4 of 4 points" in ran(lesson, "from tinyllm.course import check\n" + RIGHT)
    wrong = ran(lesson, WRONG)
    assert "not yet, 1 of 4 points" in wrong and "alpha without rank" in wrong and "This case again: check(" in wrong
    assert lesson.locator("#output-1 svg").count() == 1  # the cells, with those ringed that differ
    again = wrong[wrong.index("This case again: ") + 17 :].splitlines()[0]
    assert "not yet" in ran(lesson, again)


def test_pictures_and_figures_one_can_touch_are_shown(lesson):
    text = 'figure, ax = kit.plt.subplots()\nax.plot([1, 2])\nax.set_title("x")\nkit.show(figure, "a line")'
    ran(lesson, "from tinyllm.course import kit\n" + text)
    assert lesson.get_attribute("#output-1 img", "alt") == "a line"
    ran(lesson, "from tinyllm.course.figures import nf4_microscope\nnf4_microscope([0.5, 1, 0.25]).show()")
    frame = lesson.frame_locator("#output-1 iframe")
    assert "Weight 2 is 0.25" in frame.locator("#said").inner_text()


def test_what_fails_is_told_and_the_next_cell_runs(lesson):
    assert "ZeroDivisionError" in ran(lesson, "1 / 0") and "failed" in lesson.inner_text("#state")
    assert ran(lesson, "print(2)") == "2"
    assert ran(lesson, "x = 3", cell=2) == "" and ran(lesson, "print(x)", cell=3) == "3"


def test_an_endless_cell_is_stopped(lesson):
    lesson.fill("#code-1", "while True: pass")
    lesson.locator("#code-1").press("Shift+Enter")
    lesson.wait_for_function("document.getElementById('state').textContent === 'Cell 1 runs ...'")
    lesson.get_by_role("button", name="Stop").click()
    ready(lesson)
    assert ran(lesson, "print(4)") == "4"
    for _ in range(100):  # the browser lets the old one a moment to end by itself
        if len(lesson.workers) == 1:
            return
        lesson.wait_for_timeout(100)
    pytest.fail("the endless cell goes on, unseen")


@pytest.mark.parametrize("page", ["", *(f"lesson/{n}" for n in pages.LESSONS)])
def test_the_pages_are_for_everybody(tab, address, page):
    class Page:
        @staticmethod
        def as_uri() -> str:
            return address + page

    axe = AXE.read_text(encoding="utf-8") if AXE.exists() else None
    said = complaints(tab, Page, axe, ("light", "dark"))
    assert [s for s in said if not s.startswith(f"asks {address}")] == []
    tab.goto("about:blank")


def test_what_is_not_there_is_not_found(address):
    for path in ("nothing", "lesson/3", "shim/../serve.py", "../pyproject.toml", "serve.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)
