"""Every exercise: right answers pass, each known mistake is caught by its property and named, the stub fails in words.

Right answers meet more cases when HYPOTHESIS_PROFILE is `deep`: a thousand for each property.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllm.course.exercises import EXERCISES, lesson_14
from tinyllm.course.judge.report import page, sentences
from tinyllm.course.judge.rooms import Here
from tinyllm.course.judge.verdict import judge

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
LESSONS = sorted((Path(__file__).parents[2] / "tutorials").glob("[01]*.py"))
TEXTS = "\n".join(lesson.read_text(encoding="utf-8") for lesson in LESSONS)

by_id = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
every_chaff = pytest.mark.parametrize(
    "exercise, chaff",
    [pytest.param(e, c, id=f"{e.id}-{c.name}") for e in EXERCISES.values() for c in e.chaffs],
)


@by_id
def test_right_answers_pass(exercise):
    assert len(exercise.wheats) >= 2
    for wheat in exercise.wheats:
        verdict = judge(exercise, Here({exercise.function: wheat}, 60), 1, 1000 if DEEP else 100)
        assert verdict.earned == exercise.points, "\n".join(sentences(verdict))


@every_chaff
def test_a_mistake_is_caught_by_its_property_and_named(exercise, chaff):
    room = Here({exercise.function: chaff.function}, seconds=1 if chaff.slow else 5)  # a machine may be busy
    verdict = judge(exercise, room)
    (caught,) = [o for o in verdict.outcomes if o.property.name == chaff.caught_by]
    assert not caught.passed, "\n".join(sentences(verdict))
    if not caught.ended:
        assert verdict.mistake is chaff, "\n".join(sentences(verdict))
    assert verdict.earned < exercise.points and page(verdict)


@pytest.mark.parametrize(
    "id, wrong, said",
    [
        ("02-ignored", "the mean over all", "in 3 steps of fine-tuning the base has the losses"),
        ("03-clip", "the sum of the norms", "in 3 steps of fine-tuning the base has the losses"),
        ("03-schedule", "it begins at 0", "in 3 steps of fine-tuning the base has the losses"),
        ("05-topp", "it may be empty", "the engine cannot go on with it"),
        ("05-topp", lambda p, top_p: [p.index(max(p))], "the base wrote"),
    ],
)
def test_in_the_engine_a_wrong_part_is_noticed(id, wrong, said):
    exercise = EXERCISES[id]
    function = next(c.function for c in exercise.chaffs if c.name == wrong) if isinstance(wrong, str) else wrong
    (run,) = judge(replace(exercise, properties=exercise.properties[-1:]), Here({exercise.function: function})).outcomes
    assert not run.passed and run.said.startswith(said), run.said


@by_id
def test_it_is_the_exercise_of_its_lesson(exercise):
    found = re.search(
        rf"# ## Exercise {exercise.id}: .*?\n#\n# \*(\d+) minutes, importance (\d) of 5\.\*"
        rf".*?\ndef {exercise.function}\(([^)]*)\):.*?\ncheck\(\"{exercise.id}\", {exercise.function}\)",
        TEXTS,
        re.DOTALL,
    )
    assert found, f"no lesson has {exercise.id} with {exercise.function}"
    minutes, importance, parameters = found.groups()
    assert (int(minutes), int(importance)) == (exercise.minutes, exercise.importance)
    assert tuple(p.strip() for p in parameters.split(",") if p) == exercise.parameters


@by_id
def test_it_is_well_made(exercise):
    assert len(exercise.chaffs) >= 3 and len({c.name for c in exercise.chaffs}) == len(exercise.chaffs)
    assert len({p.name for p in exercise.properties}) == len(exercise.properties)
    assert {c.caught_by for c in exercise.chaffs} <= {p.name for p in exercise.properties}
    assert all(c.hint for c in exercise.chaffs) and exercise.hints


@by_id
def test_what_it_names_is_there(exercise):
    for name in [*exercise.emptied, *([exercise.read] if exercise.read else [])]:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name


@by_id
def test_the_stub_is_told_at_once(exercise):
    def stub(*args):
        raise NotImplementedError("your turn")

    verdict = judge(exercise, Here({exercise.function: stub}))
    assert verdict.stub and verdict.earned == 0
    assert sentences(verdict) == [
        f"{exercise.id}: your turn. {exercise.function} is still the stub, and nothing is judged."
    ]


def test_the_race_is_the_lessons():
    assert lesson_14.SMOOTH in TEXTS


def test_functions_have_names_of_their_own():
    """A homework may hold any of them together."""
    names = [exercise.function for exercise in EXERCISES.values()]
    assert len(set(names)) == len(names)


def test_every_exercise_of_the_lessons_is_judged():
    asked = re.findall(r'^check\("([^"]+)"', TEXTS, re.MULTILINE)
    assert list(EXERCISES) == asked


def varied():
    for exercise in EXERCISES.values():
        for number in range(1, len(exercise.variants) + 1):
            yield pytest.param(exercise, exercise.varied(number), id=f"{exercise.id}-variant {number}")


@pytest.mark.parametrize("plain, exercise", list(varied()))
def test_a_variants_answers_pass_and_the_published_one_is_recognised(plain, exercise):
    assert (exercise.function, exercise.parameters) == (plain.function, plain.parameters)
    for wheat in exercise.wheats:
        verdict = judge(exercise, Here({exercise.function: wheat}, 60), 1)
        assert verdict.earned == exercise.points, "\n".join(sentences(verdict))
    for wheat in plain.wheats:
        verdict = judge(exercise, Here({exercise.function: wheat}, 60))
        assert verdict.earned < exercise.points and verdict.mistake is not None
        assert verdict.mistake.name == "as in the lesson", "\n".join(sentences(verdict))
