"""Mistakes against properties: the matrix is the judge's, its cases are real ones, no answer's code is given away."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllm.course.exercises import EXERCISES
from tinyllm.course.figures import Figure, mistakes_against_properties
from tinyllm.course.judge.rooms import Here
from tinyllm.course.judge.verdict import judge

sys.path.append(str(Path(__file__).parents[1] / "course"))
from figure_cases import chaffs  # noqa: E402

ROUND = EXERCISES["06-round"]


@pytest.fixture(scope="module")
def figure() -> Figure:
    return chaffs()


def of(figure: Figure, kind: str) -> list[dict]:
    return [row for row in figure.data["rows"] if row["kind"] == kind]


def test_it_is_what_the_judge_says(figure):
    answers = [c.function for c in ROUND.chaffs] + list(ROUND.wheats) + [lambda bits: bits >> 16, lambda b: b]
    rows = figure.data["rows"]
    assert len(rows) == len(answers) and figure.data["properties"] == [p.name for p in ROUND.properties]
    for row, answer in zip(rows, answers, strict=True):
        outcomes = judge(ROUND, Here({ROUND.function: answer}), 0, 30).outcomes
        assert [found is None for found in row["found"]] == [o.passed for o in outcomes], row["name"]
        for found, outcome in zip(row["found"], outcomes, strict=True):
            if not outcome.passed:
                assert found["said"] == outcome.said  # of the first one, and of later ones, made small alike
                break


def test_rows_are_named_and_hinted(figure):
    assert [(r["name"], r["hint"], r["source"]) for r in of(figure, "mistake")] == [
        (c.name, c.hint, c.source) for c in ROUND.chaffs
    ]
    assert [r["name"] for r in of(figure, "right")] == ["right answer 1", "right answer 2"]
    assert [bool(f) for f in of(figure, "yours")[0]["found"]] == [False, True, True, True]  # zeros are cut off rightly


@pytest.mark.parametrize("id", ["06-round", "10-levels", "07-longest"])
def test_each_mistake_is_caught_by_its_property_and_no_right_answer_is(id):
    figure = mistakes_against_properties(id)
    for row, chaff in zip(of(figure, "mistake"), EXERCISES[id].chaffs, strict=True):
        assert row["found"][figure.data["properties"].index(chaff.caught_by)], chaff.name
    assert not any(any(row["found"]) for row in of(figure, "right"))


def test_a_case_shows_the_mistake(figure):
    for row, chaff in zip(of(figure, "mistake"), ROUND.chaffs, strict=True):
        for found in filter(None, row["found"]):
            bits = int(found["case"].removeprefix("bits = "))
            assert chaff.function(bits) != ROUND.reference(bits), row["name"]


def test_every_property_is_tried(monkeypatch):
    """The judge itself tries no more after two endings, and a property that was not tried has caught nothing."""
    monkeypatch.setitem(EXERCISES, "06-round", replace(ROUND, chaffs=()))

    def greedy(bits):
        raise MemoryError

    def of_zeros(bits):
        if bits & 0x7FFFFFFF:
            raise MemoryError
        return bits >> 16

    figure = mistakes_against_properties("06-round", {"greedy": greedy, "of zeros": of_zeros}, examples=30)
    for row in of(figure, "yours"):
        assert [f and f["said"] for f in row["found"]] == ["it wanted more memory than there is for it"] * 4


@pytest.fixture
def endless(monkeypatch):
    """An exercise of one mistake, which does not end."""
    paths = EXERCISES["01-paths"]
    slow = tuple(c for c in paths.chaffs if c.slow)
    monkeypatch.setitem(EXERCISES, paths.id, replace(paths, chaffs=slow))
    return paths.id, slow[0].name


def test_what_does_not_end_is_ended(endless):
    id, name = endless
    (row,) = of(mistakes_against_properties(id, examples=5), "mistake")
    assert row["name"] == name and row["found"][1]["said"] == "it took longer than 1 s"
    assert len(row["found"][1]["case"]) < 200


def test_where_nothing_could_end_it_it_is_left_out_and_told(endless):
    id, name = endless
    made: list[Figure] = []
    thread = threading.Thread(target=lambda: made.append(mistakes_against_properties(id, examples=5)))
    thread.start()
    thread.join()
    assert of(made[0], "mistake") == [] and f"nothing here could end it: {name}." in made[0].words


def test_it_prints_nothing_and_gives_no_code_away(figure, capsys):
    def loud(bits):
        print("loud")
        return 0

    mistakes_against_properties("06-round", {"loud": loud}, examples=2)
    assert capsys.readouterr() == ("", "")
    page = json.dumps(figure.data)
    for function in (*ROUND.wheats, *(c.function for c in ROUND.chaffs)):
        lines = [line.strip() for line in inspect.getsource(function).splitlines()[1:]]
        assert not any(line in page for line in lines if len(line) > 8)


def test_of_a_kernel_only_ones_own_lines_are_quoted():
    if lacking := EXERCISES["14-map"].lacking():
        pytest.skip(f"not run: {lacking}")
    unguarded = next(c.function for c in EXERCISES["14-map"].chaffs if c.name == "no guard")
    figure = mistakes_against_properties("14-map", {"mine": unguarded}, examples=10)
    assert "fminf" not in json.dumps(of(figure, "mistake"))
    assert "thread 1, line 3: out of bounds" in of(figure, "mistake")[0]["found"][1]["said"]
    assert "line 3 `if (true) y[i] = fminf(" in of(figure, "yours")[0]["found"][1]["said"]


def test_a_stub_is_told(monkeypatch):
    monkeypatch.setitem(EXERCISES, "06-round", replace(ROUND, chaffs=()))

    def stub(bits):
        raise NotImplementedError("your turn")

    (row,) = of(mistakes_against_properties("06-round", {"mine": stub}, examples=2), "yours")
    assert {f["said"] for f in row["found"]} == {"it is still the stub"}


def test_the_seed_chooses_the_cases(monkeypatch):
    monkeypatch.setitem(EXERCISES, "06-round", replace(ROUND, chaffs=()))

    def seldom_wrong(bits):
        return ROUND.reference(bits) if bits % 7 else 0

    def found(seed):
        return mistakes_against_properties("06-round", {"mine": seldom_wrong}, seed, 3).data

    assert found(1) == found(1) and any(found(seed) != found(1) for seed in range(2, 7))


def test_hypothesis_is_needed_only_to_judge(monkeypatch):
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['hypothesis'] = None; import tinyllm.course.figures"],
        check=True,
    )
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"pip install 'tinyllm-engine\[course\]'"):
        mistakes_against_properties("06-round")


def test_a_machine_that_cannot_judge_it_is_told(monkeypatch):
    monkeypatch.setitem(EXERCISES, "06-round", replace(ROUND, lacking=lambda: "g++ is not installed."))
    with pytest.raises(RuntimeError, match=r"06-round cannot be judged here: g\+\+ is not installed\."):
        mistakes_against_properties("06-round")


@pytest.mark.parametrize(
    "wrong, error, said",
    [
        (
            lambda: mistakes_against_properties("06-rond"),
            ValueError,
            r"no exercise '06-rond' \(did you mean 06-round\?\)",
        ),
        (lambda: mistakes_against_properties("06-round", [abs]), TypeError, "a dict of names and functions"),
        (
            lambda: mistakes_against_properties("06-round", {"x": 3}),
            TypeError,
            r"answers\['x'\] must be a function, not",
        ),
        (
            lambda: mistakes_against_properties("06-round", {"x": lambda a, b: a}),
            TypeError,
            r"06-round asks for \w+\(bits\); yours takes \(a, b\)",
        ),
        (lambda: mistakes_against_properties("06-round", examples=0), ValueError, "a whole number above 0, not 0"),
        (lambda: mistakes_against_properties("06-round", examples=1.5), ValueError, "a whole number above 0, not 1.5"),
    ],
)
def test_wrong_use_is_told(wrong, error, said):
    with pytest.raises(error, match=said):
        wrong()
