"""What the lessons import and WebAssembly lacks, because it is compiled: stand-ins, which do what is needed of them.

Hypothesis goes through the cases that were written down when the server started; `tokenizers` is `bpe`; safetensors
only checks headers, which is left out; IPython shows what it is given on the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any

from tinyllm.course.browser import bpe

MARK = "\x1d"  # on either side of what is no plain text


class Anything:
    """Stands for a strategy that nobody draws from."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __or__(self, other: Any) -> Any:
        return self

    def __iter__(self) -> Any:
        return iter(())

    __ror__ = __or__


class Recorded(list):
    """Cases that were drawn before, the smallest first; a strategy as far as the judge is concerned."""

    def filter(self, keep: Callable) -> Recorded:
        return Recorded(filter(keep, self))

    def map(self, change: Callable) -> Recorded:
        return Recorded(map(change, self))

    def __or__(self, other: Any) -> Any:
        return Anything()

    def __getattr__(self, name: str) -> Any:
        return Anything()


def given(cases: Any) -> Callable:
    def tried(body: Callable) -> Callable:
        def all_of_them() -> None:
            for case in cases:
                body(case)

        return all_of_them

    return tried


def unchanged(*args: Any, **kwargs: Any) -> Callable:
    return lambda function: function


def module(name: str, **things: Any) -> ModuleType:
    """A module of this name with these things in it, to be imported from now on."""
    made = ModuleType(name)
    vars(made).update(things)
    sys.modules[name] = made
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, made)
    return made


class Shown:
    """What is to be displayed: Markdown or HTML."""

    def __init__(self, data: str):
        self.data = data


class Markdown(Shown):
    pass


class HTML(Shown):
    pass


def display(*things: Any) -> None:
    from tinyllm.course.page import plain

    for thing in things:
        if isinstance(thing, Markdown):
            print(plain(thing.data))
        else:
            html = thing.data if isinstance(thing, HTML) else getattr(thing, "_repr_html_", lambda: None)()
            html = html or getattr(thing, "_repr_svg_", lambda: None)()
            print(f"{MARK}{json.dumps(html)}{MARK}" if html else repr(thing))


class Page:
    """The shell that a lesson runs in; matplotlib asks for its events."""

    events = Anything()


def install() -> None:
    """Put the stand-ins where imports look for them."""
    anything = Anything()
    errors = {name: type(name, (Exception,), {}) for name in ("Flaky", "Unsatisfiable", "SafetensorError")}
    module("hypothesis", given=given, settings=unchanged, seed=unchanged, HealthCheck=(), Phase=anything,
           Verbosity=anything)  # fmt: skip
    module("hypothesis.errors", **errors)
    module("hypothesis.strategies", __getattr__=lambda name: anything, just=lambda x: Recorded([x]))
    module("hypothesis.extra")
    module("hypothesis.extra.numpy", __getattr__=lambda name: anything)
    module("safetensors", SafetensorError=errors["SafetensorError"], safe_open=lambda *a, **k: nullcontext())
    module("tokenizers", Tokenizer=bpe.Tokenizer)
    module("IPython", get_ipython=Page, version_info=(9, 0))
    module("IPython.display", Markdown=Markdown, HTML=HTML, display=display)


def recall(recorded: dict[str, dict[str, list[str]]]) -> None:
    """Let the judge go through these cases; exercises without any are "not run"."""
    from tinyllm.course.exercises import EXERCISES
    from tinyllm.course.judge.wire import read

    for id, exercise in list(EXERCISES.items()):
        cases = recorded.get(id)
        if cases is None:
            EXERCISES[id] = replace(exercise, lacking=lambda: "it can only be judged outside of the browser")
            continue
        kept = [replace(p, cases=Recorded(map(read, cases[p.name]))) for p in exercise.properties]
        EXERCISES[id] = replace(exercise, properties=tuple(kept))
