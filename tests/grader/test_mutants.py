"""Right answers, changed in one place each: every change is noticed by a property, or listed as no change at all."""

from __future__ import annotations

import mutants
import pytest

from tinyllm.course.exercises import EXERCISES


@pytest.mark.parametrize("id", EXERCISES)
def test_every_change_of_a_right_answer_is_noticed(id, capsys):
    assert mutants.main([id]) == 0, capsys.readouterr().out


def test_what_is_listed_as_no_change_is_still_one():
    alive = {(id, text) for id in {id for id, _ in mutants.EQUAL} for text in unnoticed(id)}
    assert alive >= set(mutants.EQUAL)


def unnoticed(id):
    exercise = EXERCISES[id]
    cases = {p.name: mutants.cases_of(p, 0, 100) for p in exercise.properties}
    return [
        text for text, function in mutants.mutants(exercise.reference) if mutants.survives(exercise, function, cases)
    ]


def test_a_gap_is_found(monkeypatch, capsys):
    """Without its second property nothing looks at a name that matches no layer."""
    from dataclasses import replace

    exercise = EXERCISES["08-count"]
    monkeypatch.setitem(EXERCISES, "08-count", replace(exercise, properties=exercise.properties[:1]))
    assert mutants.main(["08-count"]) == 1 and "unexplained" in capsys.readouterr().out
