"""A worker is a process that stays alive and takes a step when told: one JSON line a question, one an answer.

`serve` is the worker's half, `Worker` that of the one who measures. A process of its own, so that a peak of resident
memory is one contender's; alive between rounds, so that rounds of all contenders can be interleaved. The worker itself
measures its wall and CPU seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"
)  # fmt: skip
TIMEOUT = 1800  # seconds for one answer; the 7B peers need minutes


def status_bytes(field: str) -> int | None:
    """A field of /proc/self/status in bytes: VmHWM is the peak, VmRSS what is resident now. None off Linux."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def serve(load: Callable[[dict], dict], make: Callable[[dict], Callable[[], dict]]) -> None:
    """The worker's whole life.

    Parameters
    ----------
    load : callable
        From the specification to a dict of versions; imports what is needed, so that memory before and after
        building can be told apart.
    make : callable
        From the specification to the step, which returns what it measured: ``{"loss": ...}`` or other numbers.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer

    def answer(**told: Any) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    spec = json.loads(sys.argv[1])
    try:
        versions = load(spec)
    except ModuleNotFoundError as error:
        answer(missing=f"{error.name} is not installed")
        return
    library, began = status_bytes("VmRSS"), time.perf_counter()
    step = make(spec)
    answer(versions=versions, library=library, build=time.perf_counter() - began)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        wall, cpu = time.perf_counter(), time.process_time()
        measured = step()
        answer(**{"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **measured})
    answer(peak=status_bytes("VmHWM"))


class WorkerError(RuntimeError):
    """A worker ended; the message is one sentence."""


class NotRun(RuntimeError):
    """What the worker needs is not installed."""


class Worker:
    """The other end of `serve`.

    Parameters
    ----------
    spec : dict
        For the worker; ``spec["worker"]`` names its file.
    threads : int
        For every library that counts its own.
    python : str
        The interpreter.

    Raises
    ------
    NotRun
        If a module is missing there.
    WorkerError
        If it ends before it is ready.
    """

    def __init__(self, spec: dict[str, Any], threads: int, python: str = sys.executable):
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "TOKENIZERS_PARALLELISM": "false"}
        environment |= dict.fromkeys(THREADS, str(threads))
        self.said = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            [python, str(HERE / f"worker_{spec['worker']}.py"), json.dumps({**spec, "threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=environment,
            text=True,
        )
        try:
            self.ready = self._read()
            if "missing" in self.ready:
                raise NotRun(self.ready["missing"])
        except BaseException:
            self.close()
            raise

    def step(self) -> dict[str, float]:
        """Take one step; what the worker measured."""
        return self._ask("step")

    def end(self) -> int | None:
        """End it; the peak of its resident memory in bytes."""
        peak = self._ask("end")["peak"]
        self.close()
        return peak

    def close(self) -> None:
        """Make sure that it is gone."""
        self.process.kill()
        self.process.communicate()
        self.said.close()

    def _ask(self, question: str) -> dict[str, Any]:
        try:
            print(question, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has ended; reading says how
        return self._read()

    def _read(self) -> dict[str, Any]:
        late = threading.Timer(TIMEOUT, self.process.kill)
        late.start()
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        hung = not late.is_alive()
        late.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        if hung:
            raise WorkerError(f"gave no answer for {TIMEOUT} seconds")
        self.said.seek(0)
        words = [row.strip() for row in self.said if row.strip()]
        raise WorkerError(f"ended with exit code {code}: {words[-1] if words else 'it said nothing'}")
