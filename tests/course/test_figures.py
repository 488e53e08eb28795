"""Figures one can touch: their numbers are the engine's, their page needs nothing beside it, wrong use is told."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from figure_cases import FIGURES, weights
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinyllm.course.figures import Figure, nf4_microscope
from tinyllm.course.figures.figure import LARGEST, numbers


def shown(figure: Figure) -> dict:
    """The numbers as they stand in the page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', figure.html, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("name", FIGURES)
def test_a_page(name):
    figure = FIGURES[name]()
    assert figure.name == name and shown(figure) == json.loads(json.dumps(figure.data))
    assert len(figure.html.encode()) <= LARGEST
    # Neither a request nor a file beside it: no address at all, but the name of SVG.
    assert set(re.findall(r"\w+://[\w./]+", figure.html)) <= {"http://www.w3.org/2000/svg"}
    assert "srcdoc=" in figure._repr_html_()


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_beside_it(name, tmp_path):
    pytest.importorskip("matplotlib", reason="not run: matplotlib is not installed")
    figure = FIGURES[name]()
    path = figure.save(tmp_path / "new")
    assert path.read_text(encoding="utf-8") == figure.html
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_script_prints_what_a_figure_shows(capsys):
    nf4_microscope(weights()).show()
    assert "figure one can touch: A weight under the NF4 microscope." in capsys.readouterr().out


def test_a_page_that_would_be_too_large_is_refused():
    figure = Figure("nf4", "t", "w", {"x": list(range(100_000))}, lambda figure: None)
    with pytest.raises(ValueError, match=r"would take 6\d\d,\d\d\d bytes, and 300,000 are the most"):
        _ = figure.html


def test_text_cannot_end_the_script():
    figure = Figure("nf4", "<b>", "a & b", {"x": "</script><script>"}, lambda figure: None)
    assert shown(figure) == figure.data and "<b>" not in figure.html and "a &amp; b" in figure.html


@given(arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_numbers_are_the_same_floats(x):
    assert (np.array(json.loads(json.dumps(numbers(x))), np.float32).view("u4") == x.view("u4")).all()


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: nf4_microscope(np.zeros(0)), "needs weights"),
        (lambda: nf4_microscope(np.array([1, np.nan])), "all of them finite"),
        (lambda: nf4_microscope(np.ones(4), [1, 0]), "2 to 16 rising numbers between -1 and 1"),
        (lambda: nf4_microscope(np.ones(4), np.linspace(-2, 2, 4)), "2 to 16 rising numbers"),
        (lambda: nf4_microscope(np.ones(4), np.linspace(-1, 1, 17)), "2 to 16 rising numbers"),
    ],
)
def test_wrong_use_is_told(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()
