"""Look at this installation: versions, cores, memory, why CUDA can or cannot be used, and a LoRA run of three steps.

Ends with 0 if the engine trains here and the embedded model loads.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import textwrap
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.console import Console

from tinyllm import __version__, assets
from tinyllm.backend.device import probe
from tinyllm.cli.options import megabytes
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.lora.verbs import apply_lora, get_lora_parameters
from tinyllm.models import DecoderModel
from tinyllm.optim import AdamW

VARIABLES = {"openblas": "OPENBLAS_NUM_THREADS", "mkl": "MKL_NUM_THREADS", "accelerate": "VECLIB_MAXIMUM_THREADS"}
PRODUCT = """
import time
import numpy as np
from tinyllm.backend import BACKENDS
x, w, times = np.ones((512, 576), "f"), np.ones((1536, 576), "f"), []
for _ in range(40):
    began = time.perf_counter()
    BACKENDS["numpy"].matmul(x, w.T)
    times.append(time.perf_counter() - began)
print(2 * 512 * 576 * 1536 / sorted(times)[20] / 1e9)
"""
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def add(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)

    def show(name: str, value: str) -> None:
        line = f"{name:<18}{value}"
        if console.is_terminal:  # elsewhere a line is a line, for programs that search it
            line = textwrap.fill(line, console.width, subsequent_indent=" " * 18)
        console.print(line)

    show("tinyllm", __version__)
    show("python", f"{platform.python_version()} on {platform.platform()}")
    show("numpy", f"{np.__version__}, BLAS {blas()}")
    for name in ("safetensors", "tokenizers", "rich", "matplotlib"):
        show(name, version(name))
    cores = usable_cores()
    show("cores", str(cores))
    show("memory", megabytes(total_memory()))
    show("threads", threads(cores))
    show("cuda", probe() or "ready: use --device cuda")
    problems = []
    for name, check in (("embedded model", embedded), ("three LoRA steps", three_steps)):
        try:
            show(name, check())
        except Exception as error:  # a broken installation may raise anything
            problems.append(name)
            show(name, f"FAILED: {error}")
    if problems:
        raise RuntimeError(f"{' and '.join(problems)} failed, see above; install tinyllm again")
    console.print("OK")


def version(name: str) -> str:
    """The version of an installed package."""
    if find_spec(name) is None:
        return "not installed" + (" (only loss.png needs it)" if name == "matplotlib" else f": pip install {name}")
    return metadata.version(name)


def blas() -> str:
    """Name and version of the library that multiplies matrices for NumPy."""
    config = np.show_config(mode="dicts")
    found = (config or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()


def usable_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int | None:
    """The machine's memory in bytes, or the container's limit; None where the system does not tell."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text(encoding="ascii")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return total


def threads(cores: int) -> str:
    """How fast a product is with 1, 2, 4 ... threads here and now, and what to set."""
    counts = sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})
    variable = next((v for name, v in VARIABLES.items() if name in blas().lower()), "OMP_NUM_THREADS")
    now = next((f"{name}={os.environ[name]}" for name in (variable, "OMP_NUM_THREADS") if name in os.environ), None)
    return advice({count: speed(count) for count in counts}, variable, now)


def advice(speeds: dict[int, float], variable: str, now: str | None) -> str:
    """The fewest threads that are nearly as fast as any: more of them only wait for each other."""
    measured = ", ".join(f"{count}: {gflops:.0f}" for count, gflops in speeds.items())
    best = max(speeds.values())
    if best == 0:
        return f"could not be measured; set {variable}, and keep it for a run and its --resume"
    count = min(count for count, gflops in speeds.items() if gflops >= 0.9 * best)
    return (
        f"{measured} GFLOP/s; set {variable}={count} (now {now or 'not set: all cores'}) while the machine is as busy "
        "as this, and keep it for a run and its --resume, since another number rounds differently"
    )


def speed(count: int) -> float:
    """GFLOP/s of a layer's product with so many threads; 0 if it cannot be had.

    In a process of its own, where the variables count from the start. The median of the wall-clock time counts: a
    thread whose core is busy with something else keeps the others waiting, and nothing else shows it.
    """
    environment = {**os.environ, **dict.fromkeys(THREADS, str(count))}
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRODUCT], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0.0


def embedded() -> str:
    """Load the model and the tokenizer that come with the package."""
    folder = assets.path("base")
    model, tokenizer = DecoderModel.from_pretrained(folder), Tokenizer.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"its tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}")
    return f"loads: {model.num_parameters():,} parameters, {tokenizer.vocab_size} token ids"


def three_steps() -> str:
    """Train an adapter on a tiny random model; the loss must fall."""
    model = DecoderModel(61, 32, 2, 2, seed=0, max_seq_len=16)
    apply_lora(model, rank=4, target_modules="all-linear", verbose=False)
    optimizer = AdamW(get_lora_parameters(model), lr=1e-2)
    ids = np.arange(32).reshape(2, 16) * 7 % 61
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.loss(ids, (ids + 7) % 61)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not (all(map(math.isfinite, losses)) and losses[-1] < losses[0]):
        raise ValueError(f"the loss does not fall: {losses}")
    return f"OK, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
