"""Backward step by step in a browser: what each step says, and that both ends lead on and letters stay legible."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import ROOT
from test_browser import PHONE
from test_touch import said

from tinyllm import Parameter, functional
from tinyllm.course.figures import backward_steps

sys.path.append(str(ROOT / "tests" / "course"))
from figure_cases import broadcast_and_used_twice  # noqa: E402

LETTERS = """() => [...document.querySelectorAll("#drawing g text")].map(e => {
    const box = e.getBoundingClientRect();
    return [12 * e.getScreenCTM().a, box.left, box.right, e.textContent]})"""
INSIDE = """boxes => {
    const drawing = document.querySelector("#drawing svg").getBoundingClientRect();
    const texts = [...document.querySelectorAll("#drawing g text")];
    return boxes.every(n => {
        const box = texts.find(e => e.textContent.startsWith(`${n} `)).getBoundingClientRect();
        return box.left >= 0 && box.right <= innerWidth && box.top >= drawing.top && box.bottom <= drawing.bottom;
    })}"""


@pytest.fixture
def page(tab, tmp_path):
    tab.set_viewport_size(PHONE)
    tab.goto(backward_steps(*broadcast_and_used_twice()).save(tmp_path).as_uri())
    tab.click("summary")
    return tab


def press(tab, label: str) -> None:
    tab.get_by_role("button", name=label).click()


def rows(tab) -> list[list[str]]:
    return [row.locator("td").all_text_contents() for row in tab.locator("#numbers tr").all()[1:]]


def test_the_steps_say_who_added_what(page):
    """mean(tanh(product) * w + b): w is used twice, x and b are broadcast over two rows."""
    sentences = []
    for _ in range(8):
        sentences.append(said(page))
        press(page, "next")
    assert said(page) == sentences[0]
    assert sentences[0] == (
        "Step 1 of 8: mean, the loss, starts with the gradient 1. It adds (2, 3) to the add of step 2, the first to do "
        "so."
    )
    assert sentences[1] == (
        "Step 2 of 8: add has received a gradient of shape (2, 3). It adds (2, 3) to the mul of step 4, the first to "
        "do so; and (3,) to b, summed over 2 rows, the first to do so."
    )
    assert sentences[5] == (
        "Step 6 of 8: product (mul) has received a gradient of shape (2, 3). It adds (2, 3) to w, on top of what is "
        "there; and (1, 3) to x, summed over 2 rows, the first to do so."
    )
    press(page, "back")
    assert said(page) == sentences[7] and "w has received a gradient of shape (2, 3)" in sentences[7]
    assert page.inner_text("#controls label").startswith("Step 8 of 8")


def test_the_table_has_the_numbers_of_backward(page):
    page.locator("input").fill("8")
    loss, named = broadcast_and_used_twice()
    loss.backward()
    table = rows(page)
    assert [int(row[0]) for row in table] == [1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 6, 6, 6, 7, 8]
    received = {row[1].split()[0]: row for row in table if "has received" in row[1]}
    for name in "wxb":
        shown = np.array(received[name][4].split(", "), float)
        np.testing.assert_allclose(shown, named[name].grad.ravel(), rtol=5e-4)
        assert received[name][2] == str(named[name].shape)
    to_w = [row for row in table if row[1] == "adds to w"]
    assert [row[3] for row in to_w] == ["first", "on top"]
    both = sum(np.array(row[4].split(", "), float) for row in to_w)
    np.testing.assert_allclose(both, named["w"].grad.ravel(), rtol=0, atol=1e-3)


def test_boxes_and_edges_show_by_their_lines_what_has_happened(page):
    page.locator("input").fill("4")
    looks = page.evaluate("""Object.fromEntries([...document.querySelectorAll("#drawing g rect[rx]")].map(r => [
        r.nextSibling.textContent, [r.getAttribute("stroke-width"), r.getAttribute("stroke-dasharray")]]))""")
    assert looks == {
        "1 mean": [None, None], "2 add": [None, None], "3 b": [None, None], "4 mul": ["3", None], "5 tanh": ["2", None],
        "6 product": [None, "3 3"], "7 x": [None, "3 3"], "8 w": ["2", None],
    }  # fmt: skip
    assert page.locator("#drawing g path[fill=none][stroke-width='3']").count() == 2  # from mul to tanh and to w
    told = page.get_attribute("#drawing svg", "aria-label")
    assert "Step 4 mul has its turn; 3 are done, 2 have received something and wait, 2 have nothing yet." in told


def test_a_number_that_is_added_twice_is_written_at_its_edge(tab, tmp_path):
    a = Parameter(np.array(3.0))
    tab.goto(backward_steps(a * a, {"a": a}).save(tmp_path).as_uri())
    assert said(tab) == (
        "Step 1 of 2: mul, the loss, starts with the gradient 1. It adds 3 to a, the first to do so; and 3 to a, on "
        "top of what is there."
    )
    assert tab.locator("#drawing g text").all_text_contents()[-1] == "3 + 3"
    press(tab, "next")
    assert said(tab).startswith("Step 2 of 2: a has received the gradient 6. It was not computed from anything")


def test_on_a_phone_twelve_boxes_fit_with_letters_of_nine_pixels(tab, tmp_path):
    rng = np.random.default_rng(0).standard_normal
    table, *rest = (Parameter(rng(shape)) for shape in ((20, 8), (8, 12), (12,), (12, 20), (20,)))
    hidden = functional.gelu(functional.embedding(table, np.arange(6)) @ rest[0] + rest[1])
    loss = functional.cross_entropy(hidden @ rest[2] + rest[3], np.arange(6))
    names = dict(zip(["table", "weight_1", "bias_1", "weight_2", "bias_2"], [table, *rest], strict=True))
    figure = backward_steps(loss, names)
    assert len(figure.data["steps"]) == 12
    tab.set_viewport_size(PHONE)
    tab.goto(figure.save(tmp_path).as_uri())
    for k in range(1, 13):
        tab.locator("input").fill(str(k))
        for size, left, right, words in tab.evaluate(LETTERS):
            assert size >= 9 and left >= 0 and right <= PHONE["width"], words


def joined(leaves: list, one_by_one: bool):
    """Products of all leaves: as a chain, which is high, or in pairs of pairs, which is wide."""
    while len(leaves) > 1:
        leaves = [(leaves[0] * leaves[1]).tanh(), *leaves[2:]] if one_by_one else [*leaves[2:], leaves[0] * leaves[1]]
    return leaves[0].sum()


@pytest.mark.parametrize("one_by_one", [True, False])
def test_the_window_goes_along_with_a_large_graph(tab, tmp_path, one_by_one):
    """The box whose turn it is, and in a chain those that it adds to, are always inside of the drawing."""
    figure = backward_steps(joined([Parameter(np.ones(40)) for _ in range(25)], one_by_one))
    tab.set_viewport_size(PHONE)
    tab.goto(figure.save(tmp_path).as_uri())
    for k in range(1, len(figure.data["steps"]) + 1, 7):
        tab.locator("input").fill(str(k))
        sources = [part["to"] + 1 for part in figure.data["steps"][k - 1]["parts"]]
        assert tab.evaluate(INSIDE, [k, *sources] if one_by_one else [k])
        assert min(size for size, *_ in tab.evaluate(LETTERS)) >= 9
