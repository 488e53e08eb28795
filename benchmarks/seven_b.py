"""One whole optimiser step of a model of Llama-2-7B's shape, and the most memory it took, building included.

    python benchmarks/seven_b.py                     NF4, double quantised; embedding and head in float16
    python benchmarks/seven_b.py --base float16      LoRA over a float16 base
    python benchmarks/seven_b.py --all               both, then torch + PEFT + bitsandbytes in float32 and bfloat16
    python benchmarks/seven_b.py --scale 16 --ci     every matrix 16 times smaller; fails if it needs too much memory
    python benchmarks/seven_b.py --layers 2 --ci     the true width, where building embedding and head is the peak

Batch 1 x 128, checkpointing, LoRA of rank 8 on q, k, v and o, AdamW. The weights are random, made, stored in few bits
and dropped again one by one, so that no float copy of the whole ever exists; this holds for the peers, too. One
process after the other.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from cases import BNB, CHECKPOINTING, OURS
from measure import disagreement, machine, unfit, write
from protocol import NotRun, Worker, WorkerError
from rich.console import Console
from rich.table import Table
from run import megabytes, show
from shapes import Shape, llama_2_7b

HERE = Path(__file__).resolve().parent
CONTENDERS: dict[str, dict[str, Any]] = {
    "tinyllm nf4": {**OURS, "base": "nf4", **CHECKPOINTING},
    "tinyllm float16": {**OURS, "base": "float16", **CHECKPOINTING},
    "bitsandbytes": {**BNB, **CHECKPOINTING, "quantised": True},
    "bitsandbytes bfloat16": {**BNB, "dtype": "bfloat16", **CHECKPOINTING, "quantised": True},
}
MOST = {"tinyllm nf4": 4.5e9, "tinyllm float16": 14.5e9}  # bytes resident at the peak, the targets at full size


def measure_one(name: str, shape: Shape, threads: int, python: str) -> dict[str, Any]:
    """Build, take one step, end: what a worker told."""
    ours = name.startswith("tinyllm")
    spec = {"shape": shape.fields(), **CONTENDERS[name]}
    worker = Worker(spec, threads, sys.executable if ours else python)
    try:
        step = worker.step()
        return {**worker.ready, **step, "peak": worker.end()}
    finally:
        if worker.process.poll() is None:
            worker.close()


def measure_all(names: list[str], shape: Shape, threads: int, python: str) -> dict[str, Any]:
    """One after the other; `run.py`'s results say more about ``not_run``, ``failed`` and ``refused``."""
    result: dict[str, Any] = {
        "case": shape.name.replace("/", "-"), "shape": shape.fields(), "machine": machine(threads), "contenders": {},
        "not_run": {}, "failed": {}, "refused": {},
    }  # fmt: skip
    for name in names:
        if why := unfit(CONTENDERS[name]):
            result["not_run"][name] = why
            continue
        try:
            held = measure_one(name, shape, threads, python)
        except NotRun as error:
            result["not_run"][name] = str(error)
            continue
        except WorkerError as error:
            result["failed"][name] = str(error)
            continue
        ours = result["contenders"].get("tinyllm nf4")
        same_work = name == "bitsandbytes" and ours is not None
        why = disagreement([ours["check"]], [held["check"]]) if same_work else None
        if why:
            result["refused"][name] = why
        else:
            result["contenders"][name] = held
    return result


def weight_bytes(shape: Shape, base: str) -> float:
    """What the stored weights take: the linear layers in `base`, embedding and head in float16."""
    attention = 2 * shape.hidden_size**2 * (1 + shape.num_kv_heads / shape.num_heads)
    linears = shape.num_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)
    bits = 4.127 if base == "nf4" else 16  # with double quantised scales
    return linears * bits / 8 + 2 * shape.vocab_size * shape.hidden_size * 2


def allowed(name: str, shape: Shape) -> float:
    """The target for a smaller shape: weights count as they are, the rest (activations, adapters) as the width."""
    base = name.removeprefix("tinyllm ")
    rest = MOST[name] - weight_bytes(llama_2_7b(), base)
    return weight_bytes(shape, base) + rest * shape.hidden_size / llama_2_7b().hidden_size


def too_much(result: dict[str, Any]) -> list[str]:
    """Which contenders need more memory than the target allows for this shape."""
    said, shape = [], Shape(**result["shape"])
    narrow = shape.hidden_size < llama_2_7b().hidden_size
    for name in MOST:
        held = result["contenders"].get(name)
        if held is None or held["peak"] is None:
            continue
        needed = held["peak"] - (held["library"] if narrow else 0)  # libraries do not shrink with the model
        if needed > allowed(name, shape):
            said.append(f"{name} needs {megabytes(needed)} MB, and {megabytes(allowed(name, shape))} were promised")
    return said


def targets(result: dict[str, Any] | None) -> list[tuple[str, str, float | None, bool | None]]:
    """What is promised at full size, in words, the figure, and whether it is met; None where it was not measured."""
    known = {} if result is None else result["contenders"]
    rows: list[tuple[str, str, float | None, bool | None]] = []
    for name, most in MOST.items():
        peak = known.get(name, {}).get("peak")
        says = f"Llama-2-7B, {name.removeprefix('tinyllm ')} base: GB at the peak of one step, building included"
        value = None if peak is None else peak / 1e9
        rows.append((says, f"under {most / 1e9:g}", value, None if value is None else value < most / 1e9))
    both = "tinyllm nf4" in known and "bitsandbytes" in known
    value = known["bitsandbytes"]["seconds"] / known["tinyllm nf4"]["seconds"] if both else None
    says = "Llama-2-7B, nf4 base: speed over bitsandbytes, float32 compute"
    return [*rows, (says, "1 or more, goal 1.2", value, None if value is None else value >= 1)]


def cells(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for the table."""
    headings = ["", "peak MB, building included", "target", "s to build", "s a step", "tinyllm nf4's speed", "loss"]
    ours, rows = result["contenders"].get("tinyllm nf4"), []
    for name, held in result["contenders"].items():
        target = f"under {megabytes(MOST[name])}" if name in MOST and result["shape"]["name"] == "llama-2-7b" else ""
        speed = f"{held['seconds'] / ours['seconds']:.2f} x" if ours is not None and held is not ours else ""
        row = [name, megabytes(held["peak"]), target, show(held["build"]), show(held["seconds"]), speed]
        rows.append([*row, f"{held['check']:.5f}"])
    return headings, rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="One optimiser step of a 7B model, and the most memory it took.")
    parser.add_argument("--base", choices=("nf4", "float16"), default="nf4", help="how tinyllm stores the base (nf4)")
    parser.add_argument("--peer", action="store_true", help="torch + PEFT + bitsandbytes as well, 4 minutes")
    parser.add_argument("--all", action="store_true", help="both bases and the peers")
    parser.add_argument("--scale", type=int, choices=(1, 4, 16), default=1, help="how many times smaller (1)")
    parser.add_argument("--threads", type=int, default=0, help="for everyone; 0: the cores there are")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter the peers are installed in")
    parser.add_argument("--out", type=Path, help="where the JSON goes; benchmarks/results by default")
    parser.add_argument("--ci", action="store_true", help="fail if it needs too much; no JSON unless --out is given")
    parser.add_argument("--layers", type=int, default=32, help="fewer, at full width, show what building needs (32)")
    args = parser.parse_args(arguments)
    if not 1 <= args.layers <= 32:
        parser.error("--layers must be from 1 to 32")
    peers = [name for name in CONTENDERS if name.startswith("bitsandbytes")]
    names = list(CONTENDERS) if args.all else [f"tinyllm {args.base}", *(peers if args.peer else [])]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    result = measure_all(names, llama_2_7b(args.scale, args.layers), args.threads or cores or 1, args.peer_python)
    console = Console(highlight=False)
    table = Table(title=f"{result['shape']['name']}, 1 x 128, one step, {result['machine']['threads']} threads")
    headings, rows = cells(result)
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for kind, word in (("not_run", "not run, "), ("failed", "FAILED, it "), ("refused", "REFUSED, ")):
        for name, why in result[kind].items():
            console.print(f"{name}: {word}{why}", soft_wrap=True)
    broken = too_much(result)
    for sentence in broken:
        console.print(f"memory: {sentence}", soft_wrap=True)
    out = args.out or (None if args.ci else HERE / "results")
    if out is not None and result["contenders"]:
        write(result, out)
    return int(bool(result["failed"] or result["refused"] or (args.ci and broken)))


if __name__ == "__main__":
    raise SystemExit(main())
