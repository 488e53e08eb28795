"""Every page in a browser, opened from its folder: no error, no request, no wider than a phone, readable by everybody.

What it needs: `pip install playwright`, a Chromium of the system, and `npm install --no-save axe-core@4.14.1`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
# What axe finds is counted by its rule and the element; anything minor or moderate is left to a person.
SERIOUS = """async () => (await axe.run(document, {resultTypes: ["violations"], preload: false})).violations
    .filter(v => ["serious", "critical"].includes(v.impact))
    .flatMap(v => v.nodes.slice(0, 3).map(n => v.id + " " + n.html.slice(0, 120)))"""
WIDER = """() => [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && e.checkVisibility() && !e.closest("pre, table, .highlight, mjx-container, .cell_output, .bd-sidebar, dialog"))
    .slice(0, 3).map(e => e.outerHTML.slice(0, 120))"""


def complaints(tab, page: Path, axe: str | None, schemes: tuple[str, ...] = ("light",)) -> list[str]:
    """What is wrong with a page: on a phone, and to axe on a desk in each colour scheme."""
    said: list[str] = []
    listeners = {
        "console": lambda message: said.append(f"console: {message.text}") if message.type == "error" else None,
        "pageerror": lambda error: said.append(f"error: {error}"),
        "request": lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else said.append(f"asks {r.url}"),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.set_viewport_size(PHONE)
    tab.emulate_media(color_scheme=schemes[0])
    tab.goto(page.as_uri(), wait_until="load")
    if tab.evaluate("document.documentElement.scrollWidth") > PHONE["width"]:
        said += [f"wider than {PHONE['width']}: {element}" for element in tab.evaluate(WIDER) or ["?"]]
    if axe is not None:
        tab.set_viewport_size(DESK)
        tab.evaluate(axe)
        tab.add_style_tag(content="* { transition: none !important }")  # or colours are read on their way
        for scheme in schemes:
            tab.emulate_media(color_scheme=scheme)
            said += [f"axe, {scheme}: {found}" for found in tab.evaluate(SERIOUS)]
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    return said


def pages(site: Path) -> list[Path]:
    return sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)


def test_every_page(tab, site):
    """Sources are many and alike: axe looks at one of them."""
    if not AXE.exists():
        pytest.skip("not run: axe-core is not there (npm install --no-save axe-core@4.14.1)")
    axe = AXE.read_text(encoding="utf-8")
    looked = [*(p for p in pages(site) if "_modules" not in p.parts), site / "_modules/tinyllm/lora/layer.html"]
    wrong = []
    for page in pages(site):
        found = complaints(tab, page, axe if page in looked else None, ("light", "dark"))
        wrong += [f"{page.relative_to(site)}: {fault}" for fault in found]
    assert wrong == []


@pytest.mark.parametrize(
    "planted, words",
    [
        ("<script>console.error('oh')</script>", "console: oh"),
        ("<script>nothing.at.all</script>", "error: nothing is not defined"),
        ("<script>fetch('http://127.0.0.1:9/x').catch(() => 0)</script>", "asks http://127.0.0.1:9/x"),
        ("<p style='width: 900px'>wide</p>", "wider than 390"),
        ("<p style='color: #ddd; background: #fff'>pale</p>", "axe, light: color-contrast"),
        ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>", "axe, light: image-alt"),
    ],
)
def test_a_planted_fault_is_noticed(tab, tmp_path, planted, words):
    if "axe" in words and not AXE.exists():
        pytest.skip("not run: axe-core is not there")
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><html lang=en><title>t</title><main><h1>t</h1>{planted}</main>", encoding="utf-8")
    axe = AXE.read_text(encoding="utf-8") if "axe" in words else None
    assert any(words in said for said in complaints(tab, page, axe))
