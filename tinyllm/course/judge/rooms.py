"""Where an answer lives while it is judged: in this process, or in one of its own, with limits.

A room has one door, `call(name, case)`. Neither room is a sandbox: the second keeps the judge out of reach, and bounds
time, memory and output, but its code can still read files.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from tinyllm.course.judge.calling import Answer, called
from tinyllm.course.judge.wire import decode, encode

ROOT = str(Path(__file__).resolve().parents[3])
SECONDS, MEGABYTES, LONGEST = 5.0, 2048, 64_000_000
START = "import sys; sys.path.insert(0, sys.argv[1]); from tinyllm.course.judge.worker import main; main(sys.argv[2])"


class Here:
    """This process: for oneself, in a notebook.

    Parameters
    ----------
    functions : mapping of str to callable
    seconds : float
        Of one call, where the system can bound it.
    """

    def __init__(self, functions: Mapping[str, Callable], seconds: float = SECONDS):
        self.functions, self.seconds = dict(functions), seconds

    def call(self, name: str, case: tuple) -> Answer:
        return called(self.functions[name], case, self.seconds)

    def close(self) -> None:
        pass


class Apart:
    """A room behind a border: opened when it is first called, and again when it was ended.

    Parameters
    ----------
    source : str
        The answers' text, as `submission` cut it out.
    file : str
        What error messages call it.
    emptied : sequence of str
        What raises in there when it is used.
    seconds, megabytes : float, int
        Of one call, and of all memory (a process's on Linux and macOS alone).
    """

    grace: float  # seconds after which nobody on the other side will end a call any more

    def __init__(
        self,
        source: str,
        file: str = "student.py",
        emptied: tuple[str, ...] = (),
        seconds: float = SECONDS,
        megabytes: int = MEGABYTES,
    ):
        self.load = {"load": source, "file": file, "emptied": list(emptied), "seconds": seconds}
        self.emptied, self.seconds, self.megabytes = tuple(emptied), seconds, megabytes
        self.open = False
        self._wrong: Answer | None = None  # why it cannot be opened

    def call(self, name: str, case: tuple) -> Answer:
        if not self.open and self._wrong is None:
            self._wrong = self._loaded()
        if self._wrong is not None:
            return self._wrong
        functions: list[Callable] = []
        message = {"call": name, "args": [encode(x, functions) for x in case]}
        found = self._turn(message, self.seconds + self.grace, functions)
        return found if isinstance(found, Answer) else as_answer(found)

    def _loaded(self) -> Answer | None:
        """Open it and let it read the answers; what went wrong, or None."""
        self._start()
        self.open = True
        found = self._turn(self.load, 20 + self.seconds, [])
        if isinstance(found, Answer):
            return found
        if found.get("raised"):
            self.close()
            return as_answer(found)
        return None

    def close(self) -> None:
        raise NotImplementedError

    def _start(self) -> None:
        raise NotImplementedError

    def _turn(self, message: dict, seconds: float, functions: list[Callable]) -> dict | Answer:
        """The other side's words to a message, or how it ended; it may call these functions on the way."""
        raise NotImplementedError


class Process(Apart):
    """A process of its own."""

    grace = 1.0
    _token = ""

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()

    def _turn(self, message: dict, seconds: float, functions: list[Callable]) -> dict | Answer:
        self._send(message)
        while True:
            found = self._receive(seconds)
            if isinstance(found, Answer) or "callback" not in found:
                return found
            self._send(called_back(functions, found))

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="answer-")
        own = ("PATH", "HOME", "SYSTEMROOT", "LD_LIBRARY_PATH", "TMP", "TEMP", "TMPDIR")
        env = {name: os.environ[name] for name in own if name in os.environ}
        env |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", START, ROOT, str(self.megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env=env,
        )
        assert self._process.stdout is not None
        self._said: queue.Queue = queue.Queue()
        threading.Thread(target=_listen, args=(self._process.stdout, self._said), daemon=True).start()

    def _send(self, message: dict) -> None:
        assert self._process.stdin is not None
        self._token = secrets.token_hex(8)  # what is no answer to this question is none
        try:
            self._process.stdin.write(json.dumps({"token": self._token} | message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, and `_receive` says so

    def _receive(self, seconds: float) -> dict | Answer:
        try:
            line = self._said.get(timeout=seconds)
        except queue.Empty:
            self.close()
            return Answer(raised="TooLong", said=f"{self.seconds:g} s")
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("token") != self._token:
            self.close()
            return Answer(raised="Died")
        return found


def _listen(pipe: IO[bytes], said: queue.Queue) -> None:
    """Pass on what the other side says, line by line; an empty line at its end."""
    try:
        while line := pipe.readline(LONGEST):
            said.put(line)
    except (OSError, ValueError):
        pass
    said.put(b"")


def called_back(functions: list[Callable], found: dict[str, Any]) -> dict[str, Any]:
    """What a function of the case gives for the arguments that came from the other side."""
    try:
        function, case = functions[int(found["callback"])], tuple(decode(found["args"]))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        return {"value": None, "raised": "ValueError", "said": str(error)}
    answer = called(function, case)
    return {"value": encode(answer.value), "raised": answer.raised, "said": answer.said}


def as_answer(found: dict[str, Any]) -> Answer:
    """The other side's words as an answer; they may be anything."""
    try:
        return Answer(
            decode(found.get("value")),
            str(found.get("raised", "")),
            str(found.get("said", ""))[:300],
            tuple(str(line)[:200] for line in found.get("lines", ())),
            tuple(decode(found.get("after", []))),
            int(found.get("printed", 0)),
            tuple(str(kind) for kind in found.get("kinds", ())),
        )
    except (TypeError, ValueError, KeyError, AttributeError):
        return Answer(raised="Died")
