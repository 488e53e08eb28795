"""The figures one can touch, in a browser, from their file: they answer to the keyboard with the engine's numbers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import ROOT
from test_browser import AXE, complaints

from tinyllm.backend.nf4 import NF4_MIDPOINTS
from tinyllm.course.figures import nf4_microscope
from tinyllm.frozen.nf4 import dequantize_nf4, quantize_nf4

sys.path.append(str(ROOT / "tests" / "course"))
from figure_cases import FIGURES  # noqa: E402


def said(tab) -> str:
    return tab.inner_text("#said")


@pytest.mark.parametrize("name", FIGURES)
def test_it_opens_from_a_file_for_everybody(tab, tmp_path, name):
    path = FIGURES[name]().save(tmp_path)
    axe = AXE.read_text(encoding="utf-8") if AXE.exists() else None
    assert complaints(tab, path, axe, ("light", "dark")) == []
    tab.click("summary")
    assert tab.locator("#numbers td").count() > 3 and tab.get_attribute("#drawing svg", "aria-label")
    if axe is None:
        pytest.skip("not run: axe-core is not there (npm install --no-save axe-core@4.14.1)")


@pytest.mark.parametrize("name", FIGURES)
def test_the_keyboard_changes_its_numbers(tab, tmp_path, name):
    """Every control is reached by the tab key, and each changes the sentence that is read aloud."""
    tab.goto(FIGURES[name]().save(tmp_path).as_uri())
    controls = tab.locator("#controls input, #controls select, #controls button")
    assert controls.count() >= 1
    for i in range(controls.count()):
        control, before = controls.nth(i), said(tab)
        control.focus()
        kind = control.evaluate("e => e.type")
        for key in {"range": ["ArrowRight", "ArrowLeft"], "select-one": ["ArrowDown", "ArrowUp"]}.get(kind, ["Space"]):
            tab.keyboard.press(key)
            if said(tab) != before:
                break
        assert said(tab) != before, f"{name}: control {i} ({kind}) changes nothing"


def edges(n: int, size: int) -> np.ndarray:
    """Weights where the last bit decides: next to where a level ends, for many a scale; zeros; the smallest floats."""
    rng, w = np.random.default_rng(n), np.zeros(n, np.float32)
    for start in range(0, n, size):
        block = w[start : start + size]
        scales = [1, 2.0**-60, 1e-38, rng.random(), rng.random() * 1e-40]
        scale = np.float32(rng.choice(scales if block.size == size else scales[2:4]))  # of powers of 2 nothing is lost
        ends = rng.choice(NF4_MIDPOINTS, block.size) * scale
        block[:] = (ends.view("i4") + rng.integers(-1, 2, block.size, dtype="i4")).view("f4")
        block[rng.integers(block.size)] = -scale
        block[rng.random(block.size) < 0.1] = 0
    return w


@pytest.mark.parametrize("n", [1, 2, 31, 64, 100, 257, 2047])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_nf4_has_the_engines_bytes(tab, tmp_path, n, size):
    """Bit for bit, of every weight that is shown, full blocks, last ones and odd ends."""
    w = edges(n, size)
    tab.goto(nf4_microscope(w).save(tmp_path).as_uri())
    packed, scales = quantize_nf4(w, size)
    assert tab.evaluate(f"packed({size}, data.sets[0])") == packed.tolist()
    back = np.array(tab.evaluate(f"all({size}, data.sets[0]).map(q => q.back)"), np.float32)
    assert (back.view("u4") == dequantize_nf4(packed, scales, (n,), size).view("u4")).all()
