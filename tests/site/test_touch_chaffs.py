"""Mistakes against properties, in a browser: what it counts, draws and tells is what the judge found, at any choice."""

from __future__ import annotations

from itertools import product

import pytest
from test_touch import said

from tinyllm.course.exercises import EXERCISES
from tinyllm.course.figures import mistakes_against_properties
from tinyllm.course.judge.rooms import Here
from tinyllm.course.judge.verdict import judge

ROUND = EXERCISES["06-round"]
FILLED, OUTLINED, DOTS = "#drawing path", "#drawing rect[stroke-dasharray]", "#drawing circle"


def cut_off(bits: int) -> int:
    return bits >> 16


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    figure = mistakes_against_properties("06-round", {"mine": cut_off}, seed=3)
    return figure.save(tmp_path_factory.mktemp("chaffs"))


@pytest.fixture(scope="module")
def outcomes():
    """Of each mistake, of the right answers and of one's own, straight from the judge."""
    answers = {c.name: c.function for c in ROUND.chaffs} | {
        f"right answer {i}": w for i, w in enumerate(ROUND.wheats, 1)
    }
    answers["mine"] = cut_off
    return {name: judge(ROUND, Here({ROUND.function: f}), 3).outcomes for name, f in answers.items()}


def test_every_choice_of_properties(tab, path, outcomes):
    tab.goto(path.as_uri())
    inputs, names = tab.locator("#controls input"), [c.name for c in ROUND.chaffs]
    for on in product([True, False], repeat=len(ROUND.properties)):
        for i, lit in enumerate(on):
            inputs.nth(i).set_checked(lit)
        caught = {n: [not o.passed and lit for o, lit in zip(outcomes[n], on, strict=True)] for n in outcomes}
        many = sum(any(caught[n]) for n in names)
        verb = "is on: it catches" if sum(on) == 1 else "are on: they catch"
        begin = (
            f"{sum(on)} of 4 properties {verb} {many} of 5 mistakes." if any(on) else "None of the 4 properties is on"
        )
        assert said(tab).startswith(begin), on
        assert "Of the 2 right answers none is refused." in said(tab)
        assert f"Of yours {'1' if any(caught['mine']) else 'none'} is refused." in said(tab)
        through = [n for n in names if not any(caught[n])]
        told = said(tab).partition(" Not caught: ")[2]
        if any(on):
            assert all(f"“{n}” (" in told for n in through[:2]) and (bool(told) == bool(through))
            assert (f", {len(through) - 2} more." in told) == (len(through) > 2)
        marks = sum(sum(row) for row in caught.values())
        wrong = sum(not o.passed for row in outcomes.values() for o in row)
        # One of each kind more stands in the legend.
        assert [tab.locator(x).count() for x in (FILLED, OUTLINED)] == [marks + 1, wrong - marks + 1]
        assert tab.locator(DOTS).count() == 4 * len(outcomes) - wrong + 1
        drawn = tab.locator("#drawing svg text").all_text_contents()
        assert drawn.count("▸ slips through") == len(through) and drawn.count("passes") == 3 + (not any(caught["mine"]))
        assert f"{many} of the mistakes are caught, {len(through)} slip through" in tab.get_attribute(
            "svg", "aria-label"
        )


def test_what_would_catch_it_is_named(tab, path, outcomes):
    tab.goto(path.as_uri())
    names = [p.name for p in ROUND.properties]
    catching = [p for p, o in zip(names, outcomes["NaN becomes infinite"], strict=True) if not o.passed]
    assert catching == ["NaN"]
    tab.get_by_label("NaN", exact=True).uncheck()
    assert (
        "3 of 4 properties are on: they catch 4 of 5 mistakes. Not caught: “NaN becomes infinite” (“NaN” would)."
        in said(tab)
    )
    tab.locator("select").select_option(label="NaN becomes infinite")
    assert "“NaN becomes infinite” slips through, but “NaN”, which is off, would catch it: 0x7f8" in said(tab)


def test_each_answer_is_told_with_its_smallest_case(tab, path, outcomes):
    tab.goto(path.as_uri())
    tab.click("summary")
    for i, (name, found) in enumerate(outcomes.items()):
        tab.locator("select").select_option(index=i)
        cells = tab.locator("#numbers tr.picked td").all_text_contents()
        assert cells[0] == name and [c == "passes" for c in cells[2:]] == [o.passed for o in found]
        wrong = [o for o in found if not o.passed]
        if not wrong:
            assert f"“{name}” passes all 4." in said(tab) and cells[1] == "passes"
            continue
        first, verb = wrong[0], "refused" if name == "mine" else "caught"
        assert cells[1] == f"{verb} by {len(wrong)}"
        assert (
            f"is {verb} by “{first.property.name}”: {first.said}. The smallest case found: bits = {first.case[0]}."
            in said(tab)
        )
        assert f"{verb}: {first.said}. Case: bits = {first.case[0]}" in cells
        hint = next((f" Hint: {c.hint}" for c in ROUND.chaffs if c.name == name), "it too." if len(wrong) > 1 else "")
        assert said(tab).endswith(hint)


def test_a_name_that_does_not_fit_is_cut(tab, tmp_path):
    name = "a name of which nobody would have thought that it was as long as it is " * 2
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(mistakes_against_properties("10-levels", {name: lambda bits: bits}).save(tmp_path).as_uri())
    rights = tab.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().right)")
    assert max(rights) <= 390
    assert any(t.startswith("a name of which") and t.endswith("…") for t in tab.locator("svg text").all_text_contents())
