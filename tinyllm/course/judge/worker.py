"""The other side of a `Process`: it holds the answers and calls them when it is asked to.

What an answer prints goes nowhere; the pipe to the judge has a number that nobody is told.
"""

from __future__ import annotations

import importlib
import json
import linecache
import os
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyllm.course.judge.calling import called
from tinyllm.course.judge.definitions import definitions
from tinyllm.course.judge.wire import NotPlain, decode, encode

CLOSED = ("tinyllm.course.exercises", "tinyllm.course.exercise", "tinyllm.course.judge", "tinyllm.course.kit")


class Desk:
    """The answers, and what is done when the judge asks."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable] = {}
        self.seconds = 5.0

    def reply(self, message: dict, ask: Callable[[int], Callable]) -> dict:
        """Load the answers, or call one; `ask(k)` makes the function that stands for the judge's at place k."""
        if "load" not in message:
            case = tuple(decode(message["args"], ask))
            return asked_for(self.functions, message["call"], case, self.seconds)
        self.seconds = message["seconds"]
        answer = called(load, (message["load"], message["file"], message["emptied"], self.functions), self.seconds)
        self.functions = answer.value or {}
        wrong = f"{answer.raised}: {answer.said}" if answer.raised else ""
        return {"raised": "NotLoaded" if wrong else "", "said": wrong, "lines": answer.lines}


def main(megabytes: str) -> None:
    inward, outward = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    limit(int(megabytes))
    desk, token = Desk(), ""

    def send(message: dict) -> None:
        outward.write(json.dumps({"token": token} | message).encode() + b"\n")
        outward.flush()

    def ask(k: int) -> Callable:
        def asked(*args: Any) -> Any:
            nonlocal token
            send({"callback": k, "args": [encode(x) for x in args]})
            found = json.loads(inward.readline())
            token = found["token"]
            if found["raised"]:
                raise ValueError(found["said"])
            return decode(found["value"])

        return asked

    for line in inward:
        message = json.loads(line)
        token = message["token"]
        send(desk.reply(message, ask))


def asked_for(functions: dict[str, Callable], name: str, case: tuple, seconds: float) -> dict:
    """The message with what a call gave; each begins with the same random numbers."""
    if name not in functions:
        return {"raised": "Missing", "said": name}
    random.seed(0)
    np.random.seed(0)
    answer = called(functions[name], case, seconds)
    found = {"raised": answer.raised, "said": answer.said, "lines": answer.lines, "printed": answer.printed}
    found["kinds"] = answer.kinds
    try:
        after = [None if callable(x) or isinstance(x, np.random.Generator) else encode(x) for x in answer.after]
        return found | {"value": encode(answer.value), "after": after}
    except NotPlain as error:
        return found | {"raised": "NotPlain", "said": str(error)}
    except MemoryError:
        return found | {"raised": "MemoryError"}


def load(source: str, file: str, emptied: list[str], functions: dict) -> dict[str, Callable]:
    """Run the answers' text and return what it defines."""
    for name in emptied:
        empty(name)
    sys.meta_path.insert(0, Closed())
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module: dict[str, Any] = {"__name__": "student", "__file__": file}
    exec(compile(definitions(source, file), file, "exec"), module)
    return {name: value for name, value in module.items() if callable(value)}


class Closed:
    """Importing the exercises, or what judges them, says what is asked."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.startswith(CLOSED):
            raise ImportError(f"{name} is closed: this is what you are asked to write")


def empty(dotted: str) -> None:
    """Let a function of the engine raise, wherever it was imported to."""
    module, name = dotted.rsplit(".", 1)
    answer = getattr(importlib.import_module(module), name)

    def asked(*args: Any, **kwargs: Any) -> Any:
        raise ImportError(f"{dotted} is empty: this is what you are asked to write")

    for each in [m for n, m in sys.modules.items() if n.startswith("tinyllm")]:
        for key, value in list(vars(each).items()):
            if value is answer:
                setattr(each, key, asked)


def limit(megabytes: int) -> None:
    """Bound memory and the size of files, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, most in ((resource.RLIMIT_AS, megabytes << 20), (resource.RLIMIT_FSIZE, 1 << 24)):
        try:
            resource.setrlimit(what, (most, most))
        except (OSError, ValueError):
            continue
