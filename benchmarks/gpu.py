"""One command for a card: are the results right, where does a step's time go, how fast is each kernel?

    python benchmarks/gpu.py [--out FILE] [--only PART,...] [--budget SECONDS]    on a machine with CuPy and a card
    python benchmarks/gpu.py --dry-run                       the whole flow on tiny shapes, without one (by g++)

Each part is a process of its own with a limit of seconds (an illegal address spoils everything that follows it in the
same process), and its line of JSON is written as soon as it ends: a run that is killed loses one part at most. What was
not run says so, with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# In this order: what it is, whether it is right, where the time goes; then beside whom, and kernel by kernel.
LIMITS = {
    "about": 60,
    "values": 90,
    "training_equals_cpu": 90,
    "lora_135m": 60,
    "qlora_7b": 180,
    "peer_lora_135m": 90,
    "peer_qlora_7b": 150,
    "kernels": 200,
    "qlora_135m": 60,
    "peer_qlora_135m": 90,
    "lora_7b": 150,
    "properties": 180,
}


def run_part(part: str, limit: float, dry: bool) -> dict[str, Any]:
    """What a part found, from a process of its own; its failure in words if it died, said nothing or took too long."""
    command = [sys.executable, str(HERE / "gpu_parts.py"), part, *(["--dry-run"] if dry else [])]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"part": part, "failed": f"it took longer than {limit:.0f} s"}
    record = {"part": part, "wall_seconds": round(time.perf_counter() - began, 1)}
    said, complained = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    if done.returncode or not said:
        why = complained[-1] if complained else f"exit {done.returncode}"
        return record | {"failed": why, "stderr": complained[-12:]}
    return record | json.loads(said[-1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, the kernels run by g++")
    parser.add_argument("--only", help=f"parts, separated by commas: {', '.join(LIMITS)}")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds; a part that no longer fits is not run")
    parser.add_argument("--out", type=Path, help="a line of JSON a part (default: printed alone)")
    args = parser.parse_args(arguments)
    parts = args.only.split(",") if args.only else list(LIMITS)
    if unknown := sorted(set(parts) - set(LIMITS)):
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(LIMITS)}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("", encoding="utf-8")
    end, failed = time.monotonic() + args.budget, False
    for part in parts:
        left = end - time.monotonic()
        if left < 5:
            record = {"part": part, "not_run": "the budget of seconds was spent"}
        else:
            limit = LIMITS[part] * (10 if args.dry_run else 1)  # g++ on a busy machine is no card
            record = run_part(part, min(limit, left), args.dry_run)
        failed |= "failed" in record
        print(json.dumps(record), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
