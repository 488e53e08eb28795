"""The three cases: what they tell is so, and only one suspect is the right one."""

from __future__ import annotations

import re

import pytest

from tinyllm.backend import random
from tinyllm.course import detective, kit
from tinyllm.course.detective import CASES, SUSPECTS, accuse, case


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"\d+\.\d+", text)]


@pytest.fixture(scope="module")
def noticed():
    return {number: found.noticed() for number, found in CASES.items()}


def test_every_token_asked_for_itself(noticed):
    first, last, held, base = numbers(noticed[1])
    assert first > base and last < 2 and held > base + 2
    words = re.search(r"writes '(.*)'", noticed[1])[1].split()
    assert len(words) >= 8 and set(words) == {"is"}


def test_added_up(noticed):
    first, last, usual_first, usual_last, own, usual = numbers(noticed[2])
    assert first == usual_first and abs(last - usual_last) < 0.02
    assert abs(own / usual - detective.PARTS) < 0.01 and usual < 1 < own


def test_without_alpha(noticed):
    trained, loaded, base, after, before = numbers(noticed[3])
    assert trained < loaded < base and abs(before / after - 2) < 0.02


def test_one_suspect_is_it(capsys):
    for number, found in CASES.items():
        assert found.culprit in SUSPECTS
        for suspect in SUSPECTS:
            accuse(number, suspect)
            assert (f"Case {number} is solved" in capsys.readouterr().out) == (suspect == found.culprit)
    assert len({found.culprit for found in CASES.values()}) == 3


def test_a_case_is_told_with_all_suspects_and_gives_no_answer_away(capsys):
    place = random.default.state
    case(2)
    out = " ".join(capsys.readouterr().out.split())
    assert "Case 2." in out and all(suspect in out for suspect in SUSPECTS) and CASES[2].why[:20] not in out
    assert random.default.state == place


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="there are cases 1, 2 and 3, not 4"):
        case(4)
    with pytest.raises(ValueError, match="lists, not 'weight decai': write one as it is there"):
        accuse(1, "weight decai")
    with pytest.raises(ValueError, match="not 'a'"):  # several begin so
        accuse(1, "a")
    accuse(1, "weight decay")
    assert kit.base() is not None
