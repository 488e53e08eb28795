"""One case: all its contenders alive at once, their steps interleaved round by round."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from cases import CASES, MEASURES, UNITS, Target
from protocol import NotRun, Worker, WorkerError
from shapes import Shape

WARM_UP = 3  # steps before the rounds, and those whose losses are compared
PAUSE = 0.3  # seconds before a training step: the threads of the one before may spin for 0.2 s after their work
SAME = 1e-5  # how far float32 losses may be apart, relative: rounding in another order, after two updates


def machine(threads: int) -> dict[str, Any]:
    """Where this was measured."""
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(row.partition(":")[2].strip() for row in rows if row.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def unfit(settings: dict[str, Any]) -> str | None:
    """Why a contender is not run on this CPU: without instructions for it, torch takes a minute for a bfloat16 step."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None  # not Linux: it may be quick
    if settings["worker"] != "torch" or settings.get("dtype") != "bfloat16" or "bf16" in flags:
        return None
    return "this CPU has no instructions for bfloat16 products"


def disagreement(ours: list[float], theirs: list[float]) -> str | None:
    """Why the two are not the same work, or None if their first losses are equal to within `SAME`."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        if not math.isclose(a, b, rel_tol=SAME):
            return f"at step {i} its loss is {b:.6f} and tinyllm's {a:.6f}: not the same work, so not compared"
    return None


def run_case(
    case: str,
    shape: Shape,
    threads: int,
    rounds: int,
    python: str = sys.executable,
    compiling: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every contender of a case.

    Returns
    -------
    dict
        ``contenders``: by name the seconds of every round and what else was measured, library and peak bytes,
        versions; ``not_run``, ``failed`` and ``refused``: by name the reason.
    """
    result: dict[str, Any] = {
        "case": case,
        "shape": shape.fields(),
        "machine": machine(threads),
        "warm_up": WARM_UP,
        "rounds": rounds,
        "contenders": {},
        "not_run": {},
        "failed": {},
        "refused": {},
    }
    workers: dict[str, Worker] = {}
    held: dict[str, dict[str, Any]] = {}

    def attempt(name: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except NotRun as error:
            result["not_run"][name] = str(error)
        except WorkerError as error:
            result["failed"][name] = str(error)
        dead = workers.pop(name, None)
        if dead is not None:
            dead.close()
        return None

    def start(name: str, settings: dict[str, Any]) -> None:
        spec = {"case": case, "shape": shape.fields(), **settings}
        ours = settings.get("module", settings["worker"]) == "tinyllm"
        say(f"{case}: {name} is being built")
        worker = Worker(spec, threads, sys.executable if ours else python)
        workers[name] = worker
        held[name] = {"settings": settings, **worker.ready, "steps": [], "warm_up": []}

    try:
        for name, settings in CASES[case].items():
            if settings.get("compile") and not compiling:
                result["not_run"][name] = "left out with --no-compile"
                continue
            if why := unfit(settings):
                result["not_run"][name] = why
                continue
            attempt(name, lambda name=name, settings=settings: start(name, settings))
        for turn in range(WARM_UP + rounds):
            part = "warm_up" if turn < WARM_UP else "steps"
            order = list(workers) if turn % 2 == 0 else list(workers)[::-1]  # nobody always follows the same one
            for name in order:
                if part == "steps" and task(result) == "train":
                    time.sleep(PAUSE)  # not before milliseconds of work, which would be the cores' waking up
                measured = attempt(name, workers[name].step)
                if measured is not None:
                    held[name][part].append(measured)
            say(f"{case}: {'warm-up' if turn < WARM_UP else 'round'} {turn + 1} of {WARM_UP + rounds}")
        for name in list(workers):
            held[name]["peak"] = attempt(name, workers[name].end)
    finally:
        for worker in workers.values():
            if worker.process.poll() is None:
                worker.close()
    checks = {name: [step["check"] for step in kept["warm_up"] if "check" in step] for name, kept in held.items()}
    for name in workers:
        exempt = name == "tinyllm" or held[name]["settings"].get("dtype") == "bfloat16"
        why = None if exempt or "tinyllm" not in workers else disagreement(checks["tinyllm"], checks[name])
        if why:
            result["refused"][name] = why
        else:
            result["contenders"][name] = held[name]
    return result


def middle(contender: dict[str, Any], measure: str) -> float:
    """The median over the rounds."""
    return median(step[measure] for step in contender["steps"])


def speed(ours: dict[str, Any], theirs: dict[str, Any], measure: str) -> float:
    """How many times as fast we are: the median of each round's own ratio, because the machine's pace drifts."""
    return median(b[measure] / a[measure] for a, b in zip(ours["steps"], theirs["steps"], strict=True))


def task(result: dict[str, Any]) -> str:
    """What kind of work the case is."""
    return next(iter(CASES[result["case"]].values()))["task"]


def measures(result: dict[str, Any]) -> tuple[str, ...]:
    """What a step of this case measures."""
    return MEASURES[task(result)]


def figure(result: dict[str, Any], target: Target) -> float | None:
    """A target's figure, or None if someone is missing or memory is not told here."""
    known = result["contenders"]
    measure = target.measure or measures(result)[0]
    if "tinyllm" not in known or (target.peer and target.peer not in known):
        return None
    ours = known["tinyllm"]
    if target.figure == "value":
        return middle(ours, measure) * UNITS[measure][1]
    theirs = known[str(target.peer)]
    if target.figure == "speed":
        return speed(ours, theirs, measure)
    return ours["peak"] / theirs["peak"] if ours["peak"] and theirs["peak"] else None


def meets(value: float, bound: float, at_least: bool) -> bool:
    return value >= bound if at_least else value <= bound


def write(result: dict[str, Any], folder: Path) -> Path:
    """The result as JSON, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['case']}.json"
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    return path
