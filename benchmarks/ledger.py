"""The memory ledger against what is measured: the plan of a run, and the peak of the process that runs it.

    python benchmarks/ledger.py                SmolLM2-135M's shape, a minute
    python benchmarks/ledger.py --seven-b      Llama-2-7B's shape too, ten minutes and 15 GB
    python benchmarks/ledger.py --report       the table of docs/memory.md from results/ledger.json

Each run is a process of its own. Linux keeps the peak (VmHWM) and forgets it on request, so that building the model and
training it are told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE, RESULT = HERE.parent / "docs" / "memory.md", HERE / "results" / "ledger.json"
SMOL = {"batch_size": 4, "seq_len": 128}
SEVEN = {"batch_size": 1, "seq_len": 128, "checkpointing": True}
CASES: dict[str, dict[str, Any]] = {
    "135M, LoRA": {"method": "lora", "storage": "float32", **SMOL},
    "135M, LoRA, checkpointing": {"method": "lora", "storage": "float32", **SMOL, "checkpointing": True},
    "135M, QLoRA": {"method": "qlora", "storage": "nf4", **SMOL},
    "135M, QLoRA, checkpointing": {"method": "qlora", "storage": "nf4", **SMOL, "checkpointing": True},
    "135M, full": {"method": "full", "storage": "float32", **SMOL},
    "7B, QLoRA, checkpointing": {"method": "qlora", "storage": "nf4", **SEVEN},
    "7B, LoRA over float16, checkpointing": {"method": "lora", "storage": "float16", **SEVEN},
}


def peak(forget: bool = False) -> int:
    """The most bytes resident so far; `forget` begins anew from here."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    if forget:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return found


def measure(name: str) -> dict[str, Any]:
    """Plan, build, take two steps; run in a fresh process."""
    from shapes import SHAPES, Numbers, llama_2_7b
    from worker_tinyllm import build

    import tinyllm
    from tinyllm.backend.cpu.malloc import keep_freed_memory
    from tinyllm.inspect.plan import plan
    from tinyllm.lora import apply_lora

    case, shape = CASES[name], llama_2_7b() if name.startswith("7B") else SHAPES["smollm2-135m"]
    numbers = Numbers(0)
    model = build(shape, case["storage"], numbers)
    ids, targets = numbers.tokens(shape)
    del numbers  # a benchmark's own
    building = peak(forget=True)
    model.checkpointing = case.get("checkpointing", False)
    if case["method"] != "full":
        apply_lora(model, shape.rank, shape.alpha, verbose=False)
    optimizer = tinyllm.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    keep_freed_memory()  # as `tinyllm finetune` does
    began = time.perf_counter()
    for _ in range(2):
        model.loss(ids, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds, measured, config = time.perf_counter() - began, peak(), model.config
    del model, optimizer
    planned = plan(config, rank=shape.rank, **case)
    # This process has held a model; what the library alone takes, a fresh one says.
    said = subprocess.run([sys.executable, __file__, "--library"], capture_output=True, text=True, check=True)
    parts = {**planned.by_category(), "library": int(said.stdout)}
    return {
        "planned": sum(parts.values()), "measured": measured, "building": building, "by_category": parts,
        "seconds_of_two_steps": seconds,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The page's table, in Markdown."""
    lines = ["| run | planned MB | measured MB | difference | building, MB |", "|---|---:|---:|---:|---:|"]
    for name, r in result["cases"].items():
        planned, measured, building = (r[key] / 1e6 for key in ("planned", "measured", "building"))
        lines.append(f"| {name} | {planned:,.0f} | {measured:,.0f} | {planned / measured - 1:+.1%} | {building:,.0f} |")
    return "\n".join(lines) + "\n"


def committed() -> dict[str, Any]:
    """What is in `results/`; no cases if there is nothing."""
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"cases": {}}


def write_table(page: str, result: dict[str, Any]) -> str:
    """The page with its table made anew."""
    return re.sub(r"(<!-- table -->\n).*?(<!-- end -->)", lambda m: m[1] + table(result) + m[2], page, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description="The memory ledger against what is measured.")
    parser.add_argument("--seven-b", action="store_true", help="the 7B runs too")
    parser.add_argument("--report", action="store_true", help="only write the page's table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--library", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.library:
        from tinyllm.inspect.plan import plan
        from tinyllm.models.config import DecoderConfig

        print(plan(DecoderConfig(64, 16, 1)).library)
        return 0
    if args.one:
        print(json.dumps(measure(args.one)))
        return 0
    result = committed()
    if not args.report:
        from measure import machine

        result["machine"] = machine(os.cpu_count() or 1)
        for name in CASES:
            if name.startswith("7B") and not args.seven_b:
                continue
            said = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
            result["cases"][name] = json.loads(said.stdout)
            print(name, f"planned {result['cases'][name]['planned']:,}, measured {result['cases'][name]['measured']:,}")
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(write_table(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
