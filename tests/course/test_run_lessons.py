"""The command that runs the lessons stops at one that fails, at one that takes too long, and where there is none."""

from __future__ import annotations

import run_lessons


def test_a_lesson_that_runs(tmp_path, capsys):
    (tmp_path / "01_fine.py").write_text("print('fine')\n")
    assert run_lessons.main([], tmp_path) == 0
    assert "01_fine.py: " in capsys.readouterr().out


def test_a_failing_cell_stops_it_and_is_shown(tmp_path, capsys):
    (tmp_path / "01_fails.py").write_text("assert 1 > 2, 'one is not more than two'\n")
    (tmp_path / "02_fine.py").write_text("")
    assert run_lessons.main([], tmp_path) == 1
    said = capsys.readouterr().out
    assert "one is not more than two" in said and "02_fine.py" in said


def test_a_lesson_over_its_time_stops_it(tmp_path, monkeypatch):
    (tmp_path / "01_slow.py").write_text("sum(i * i for i in range(10**6))\n")
    monkeypatch.setattr(run_lessons, "LIMIT", 0.0)
    assert run_lessons.main([], tmp_path) == 1


def test_no_lesson_is_no_success(tmp_path):
    assert run_lessons.main(["7"], tmp_path) == 1
