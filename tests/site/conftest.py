"""The built site. Build it first:

python tools/run_lessons.py && python -m sphinx -W -b html docs docs/_build/html
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "_build" / "html"


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").exists():
        pytest.skip("not run: the site is not built (CONTRIBUTING.md says how)")
    return SITE


@pytest.fixture(scope="session")
def tab() -> Iterator:
    sync = pytest.importorskip("playwright.sync_api", reason="not run: playwright is not installed")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program = next(filter(None, found), None)
    if program is None:
        pytest.skip("not run: there is no Chromium")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser.new_page()
        browser.close()
