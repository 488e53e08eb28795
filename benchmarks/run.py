"""Measure tinyllm and its peers in one run.

    python benchmarks/run.py                       every case at full size: about a quarter of an hour
    python benchmarks/run.py lora qlora            some of them
    python benchmarks/run.py --shape tiny --ci     the whole on small shapes, as CI does

Each case writes a JSON and prints a table. A peer that is not installed is "not run". Ends with 1 if a worker failed,
a comparison was refused or, with --ci, a law of memory is broken; never because of a time.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from cases import CASES, TARGETS, UNITS, WITH_MEMORY
from measure import figure, measures, meets, middle, run_case, speed, task, write
from rich.console import Console
from rich.table import Table
from shapes import SHAPES

HERE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure tinyllm and its peers in one run.")
    parser.add_argument("names", nargs="*", metavar="case", help=f"all of them by default: {', '.join(CASES)}")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that count, after the warm-up (5)")
    parser.add_argument("--threads", type=int, default=0, help="for everyone; 0: the cores there are")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter the peers are installed in")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile (92 s of compiling)")
    parser.add_argument("--out", type=Path, help="where the JSON goes; benchmarks/results/<shape> by default")
    parser.add_argument("--ci", action="store_true", help="check the laws of memory; no JSON unless --out is given")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in CASES]
    if unknown or args.rounds < 1 or args.threads < 0:
        parser.error(
            f"there is no case {unknown[0]!r}; there are: {', '.join(CASES)}"
            if unknown
            else "--rounds must be at least 1 and --threads at least 0"
        )
    threads = args.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    out = args.out or (None if args.ci else HERE / "results" / args.shape)
    console = Console(highlight=False)
    results = {}
    for case in args.names or CASES:
        with console.status(case) as status:
            results[case] = run_case(
                case, SHAPES[args.shape], threads, args.rounds, args.peer_python, not args.no_compile, status.update
            )
        console.print(table(results[case]))
        for line in remarks(results[case]):
            console.print(line, soft_wrap=True)
        if out is not None:
            write(results[case], out)
    console.print(target_table(results))
    broken = memory_laws(results) if args.ci else []
    for sentence in broken:
        console.print(f"memory: {sentence}", soft_wrap=True)
    return int(bool(broken) or any(result["failed"] or result["refused"] for result in results.values()))


def table(result: dict[str, Any]) -> Table:
    """A case as rich shows it."""
    threads = result["machine"]["threads"]
    shown = Table(title=f"{result['case']}, {result['shape']['name']}, {threads} thread{'s' * (threads > 1)}")
    headings, rows = cells(result)
    for heading in headings:
        shown.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


def cells(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: medians, spread, how many times as fast tinyllm is, memory and tinyllm's part of it."""
    names, kind, known = measures(result), task(result), result["contenders"]
    headings = [""]
    for name in names:
        headings += [f"{UNITS[name][0]} (min to max)", *(["tinyllm's speed"] if name != "share" else [])]
    headings += ["tokens/s"] * (kind == "train")
    headings += ["peak MB", "libraries MB", "tinyllm's memory"] * (kind in WITH_MEMORY)
    ours, rows = known.get("tinyllm"), []
    for who, held in known.items():
        compared = ours is not None and held is not ours
        row = [who]
        for name in names:
            values = [step[name] * UNITS[name][1] for step in held["steps"]]
            row.append(f"{show(median(values))} ({show(min(values))} to {show(max(values))})")
            if name != "share":
                row.append(f"{speed(ours, held, name):.2f} x" if compared else "")
        if kind == "train":
            row.append(f"{result['shape']['batch'] * result['shape']['time'] / middle(held, 'seconds'):.0f}")
        if kind in WITH_MEMORY:
            peak = held["peak"]
            row += [megabytes(peak), megabytes(held["library"])]
            row.append(f"{ours['peak'] / peak:.2f} x" if peak and compared else "")
        rows.append(row)
    return headings, rows


def remarks(result: dict[str, Any]) -> list[str]:
    """One sentence for each contender that is not in the table."""
    said = [f"{who}: not run, {why}" for who, why in result["not_run"].items()]
    said += [f"{who}: FAILED, it {why}" for who, why in result["failed"].items()]
    return said + [f"{who}: REFUSED, {why}" for who, why in result["refused"].items()]


def target_table(results: dict[str, dict[str, Any]]) -> Table:
    """The targets of the cases that ran, beside what was measured."""
    shown = Table(title="targets (for the full size; nothing here fails a run)")
    for heading in ("what", "target", "measured", ""):
        shown.add_column(heading, justify="right" if heading in ("target", "measured") else "left")
    for target in TARGETS:
        if target.case in results:
            value = figure(results[target.case], target)
            measured = "not run" if value is None else show(value)
            shown.add_row(target.says, wanted(target), measured, verdict(target, value))
    return shown


def wanted(target: Any) -> str:
    """A target in words: "1.25 or more, goal 1.4"."""
    words = "or more" if target.at_least else "or less"
    bound = f"{show(target.bound)} {words}" if target.bound is not None else ""
    goal = f"goal {show(target.goal)}" if target.goal is not None else ""
    return ", ".join(part for part in (bound, goal) if part)


def verdict(target: Any, value: float | None) -> str:
    """Met, missed, or nothing where there is no figure."""
    if value is None:
        return ""
    return "met" if meets(value, target.goal if target.bound is None else target.bound, target.at_least) else "missed"


def memory_laws(results: dict[str, dict[str, Any]]) -> list[str]:
    """Which laws of memory are broken.

    At any size LoRA needs less than full fine-tuning, QLoRA less than LoRA, checkpointing still less; and the two
    targets of memory against peers are met, where these ran. Among ourselves peaks are compared beyond the libraries,
    which at small sizes are nearly all there is.
    """
    grown = {
        case: result["contenders"]["tinyllm"]["peak"] - result["contenders"]["tinyllm"]["library"]
        for case, result in results.items()
        if result["contenders"].get("tinyllm", {}).get("peak")
    }
    order = [case for case in ("full", "lora", "qlora", "qlora-checkpointing") if case in grown]
    broken = [
        f"{small} needs {megabytes(grown[small])} MB beyond the libraries, {large} only {megabytes(grown[large])}"
        for large, small in zip(order, order[1:], strict=False)
        if grown[small] >= grown[large]
    ]
    for target in TARGETS:
        value = figure(results[target.case], target) if target.figure == "memory" and target.case in results else None
        if value is not None and not meets(value, target.bound, target.at_least):
            broken.append(f"{target.says} is {value:.2f}, not {wanted(target)}")
    return broken


def show(value: float) -> str:
    """Three digits, and all those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.0f}"


if __name__ == "__main__":
    raise SystemExit(main())
