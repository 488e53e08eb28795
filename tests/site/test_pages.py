"""The pages as files: every link and picture leads somewhere in the folder, nothing is asked of the network."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT

LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """What a page leads to, loads, and can be led to in it; and its pictures without words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.silent: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        has = {name: value or "" for name, value in attributes}
        self.ids |= {has[name] for name in ("id", "name") if name in has}
        if tag == "a" and "href" in has:
            self.links.append(has["href"])
        self.loads += [has[name] for t, name in LOADS if t == tag and name in has]
        if tag == "img" and not has.get("alt", "").strip():
            self.silent.append(has.get("src", "")[:60])


@cache
def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def astray(path: Path, target: str) -> bool:
    """Whether a link of the page leads to nothing in the folder."""
    if re.match(r"(https?:|mailto:|data:)", target):
        return False
    file, _, anchor = target.partition("#")
    there = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
    if there.is_dir() or not there.exists():
        return True
    return bool(anchor) and there.suffix == ".html" and unquote(anchor) not in read(there).ids


def faults(path: Path) -> list[str]:
    page = read(path)
    wrong = [f"leads nowhere: {link}" for link in page.links if astray(path, link)]
    wrong += [f"asks the network for {load}" for load in page.loads if re.match(r"(https?:)?//", load)]
    wrong += [f"lacks {load}" for load in page.loads if not re.match(r"(https?:)?//", load) and astray(path, load)]
    return wrong + [f"a picture without words: {picture}" for picture in page.silent]


def test_every_page_is_whole(site):
    pages = sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)  # a template of the theme's
    assert len(pages) > 50
    assert [f"{page.relative_to(site)} {fault}" for page in pages for fault in faults(page)] == []


def test_every_lesson_is_there_as_it_ran(site):
    lessons = sorted(path.stem for path in (ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
    assert lessons and lessons == sorted(path.stem for path in (site / "lessons").glob("*.html"))
    for lesson in lessons:
        text = (site / "lessons" / f"{lesson}.html").read_text(encoding="utf-8")
        number = int(lesson[:2])
        assert f"lesson {number}: tinyllm" in text  # what the first cell printed
        assert re.search(r'<img alt="[^"]{30,}"', text), f"lesson {number} shows no figure"
        assert "|—" not in text, f"lesson {number} shows a table's source"
        source = r"_modules/tinyllm/[\w/]+\.html[^>]*><code>tinyllm\.[\w.]+</code></a> \([\w/.]+, lines \d+ to \d+\)"
        assert re.search(source, text), f"lesson {number} names no source"


@pytest.mark.parametrize(
    "planted, words",
    [
        ('<a href="nowhere.html">x</a>', "leads nowhere"),
        ('<a href="other.html#gone">x</a>', "leads nowhere"),
        ('<script src="https://cdn.example/x.js"></script>', "asks the network"),
        ('<img alt="a cat" src="gone.png">', "lacks"),
        ('<img src="data:image/png;base64,xx">', "without words"),
    ],
)
def test_a_broken_page_is_noticed(tmp_path, planted, words):
    (tmp_path / "other.html").write_text('<p id="here">', encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(f'<a href="other.html#here">fine</a>{planted}', encoding="utf-8")
    (fault,) = faults(page)
    assert words in fault
