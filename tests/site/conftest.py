"""The built site. Build it first:

python tools/run_lessons.py && python -m sphinx -W -b html docs docs/_build/html
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "_build" / "html"


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").exists():
        pytest.skip("not run: the site is not built (CONTRIBUTING.md says how)")
    return SITE
