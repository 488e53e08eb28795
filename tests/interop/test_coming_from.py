"""The page for those who come from PyTorch: its blocks and their twins run in one session, and agree."""

from __future__ import annotations

from pathlib import Path

from tests.test_docs import blocks

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"


def test_both_sides_of_the_page_run_and_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    ran = []
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        if block.language in ("python", "torch"):
            code = "\n" * (block.line - 1) + block.text  # so that a failure names the page's line
            exec(compile(code, str(PAGE), "exec"), session)
            ran.append(block.language)
    assert ran == ["python", "torch"] * 3
