"""One command for a card: are the results right, how fast is each kernel, how fast and how large is a training step?

    python benchmarks/gpu.py [--out results/gpu.json]     on a machine with CuPy and an NVIDIA card
    python benchmarks/gpu.py --dry-run                     the whole flow on tiny shapes, without one (by g++)

It runs the property tests of the primitives on the card, times every kernel beside a copy, trains LoRA and QLoRA on a
random model of SmolLM2-135M's and of Llama-2-7B's shape, does the same in torch + PEFT + bitsandbytes if they are
installed, generates, and writes one JSON. A part that fails is recorded with its error, and the others still run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import tinyllm  # noqa: E402
from tinyllm.backend.device import backend, set_device  # noqa: E402
from tinyllm.generate import generate  # noqa: E402
from tinyllm.inspect.memory import card_peak  # noqa: E402
from tinyllm.lora import apply_lora, get_lora_parameters  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.models.config import llama_shape  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    name: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    tied: bool
    batch: int
    time: int = 512
    checkpointing: bool = False
    warm: int = 2
    steps: int = 8


SMOLLM2 = Shape("SmolLM2-135M", 49152, 576, 30, 9, 3, 1536, True, batch=8)
LLAMA = Shape("Llama-2-7B", 32000, 4096, 32, 32, 32, 11008, False, batch=4, checkpointing=True)
RUNS = [(SMOLLM2, "lora"), (SMOLLM2, "qlora"), (LLAMA, "qlora"), (replace(LLAMA, batch=1), "qlora"), (LLAMA, "lora")]
TINY = {
    "vocab": 96,
    "hidden": 64,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "inner": 96,
    "batch": 2,
    "time": 8,
    "warm": 1,
    "steps": 1,
}


def random_model(shape: Shape, method: str, dtype: Any) -> DecoderModel:
    """A base of random weights in the method's storage, adapters beside every linear layer."""
    drawn = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)

    def init(name: str, size: tuple[int, ...]) -> np.ndarray:
        return (
            np.ones(size, np.float32) if "norm" in name else np.resize(drawn, size)
        )  # drawing 7e9 numbers takes minutes

    settings = llama_shape(num_kv_heads=shape.kv_heads, intermediate_size=shape.inner, tie_embeddings=shape.tied)
    model = DecoderModel(
        shape.vocab, shape.hidden, shape.layers, shape.heads, max_seq_len=max(64, shape.time), dtype=dtype, init=init,
        storage="nf4" if method == "qlora" else np.dtype(dtype).name, **settings,
    )  # fmt: skip
    apply_lora(model, 8, target_modules="all-linear", verbose=False)
    model.checkpointing = shape.checkpointing
    return model.train()


def training(shape: Shape, method: str, dtype: Any) -> dict[str, Any]:
    """Seconds and tokens/s of a step, and the most memory in use, the building of the model left out."""
    model = random_model(shape, method, dtype)
    optimizer = tinyllm.optim.AdamW(get_lora_parameters(model), lr=1e-4)
    ids = np.random.default_rng(1).integers(0, shape.vocab, (shape.batch, shape.time))

    def step() -> float:
        optimizer.zero_grad()
        loss = model.loss(ids, np.roll(ids, -1, axis=1))
        loss.backward()
        optimizer.step()
        return loss.item()

    losses = [step() for _ in range(shape.warm)]
    with card_peak() as peak:
        began = time.perf_counter()
        losses += [step() for _ in range(shape.steps)]
        taken = (time.perf_counter() - began) / shape.steps
        most = peak()
    return {"seconds_a_step": taken, "tokens_a_second": ids.size / taken, "peak_bytes": most, "losses": losses}


def decoding(shape: Shape, dtype: Any, tokens: int) -> dict[str, Any]:
    """Tokens a second of greedy generation, one sequence, NF4 weights."""
    model = random_model(shape, "qlora", dtype)
    generate(model, [1, 2, 3], 2)
    began = time.perf_counter()
    made = len(generate(model, [1, 2, 3], tokens))
    taken = time.perf_counter() - began
    return {"tokens": made, "tokens_a_second": made / taken}


def peer(shape: Shape, method: str, dry: bool) -> dict[str, Any]:
    """The same in torch, from a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_peer.py"), json.dumps(asdict(shape)), "--method", method]
    done = subprocess.run([*command, *(["--device", "cpu"] if dry else [])], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def properties(dry: bool) -> str:
    """The last line of the property tests on the card (dry: one of them, with the kernels on the CPU)."""
    where = ["--backend", "cuda_on_cpu" if dry else "cuda", "-k", "definition and softmax" if dry else "definition"]
    tests = "tests/backend/test_primitives.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", tests, *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1]
    if done.returncode:
        raise RuntimeError(last)
    return last


def attempt(part: Callable[[], Any]) -> Any:
    """What `part` gives, or its error in words: one broken part shall not cost the others their minute on the card."""
    try:
        return part()
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}
    finally:
        if hasattr(backend().xp.get_default_memory_pool(), "free_all_blocks"):
            backend().xp.get_default_memory_pool().free_all_blocks()


def about(xp: Any, dry: bool) -> dict[str, Any]:
    said = {
        "dry_run": dry,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tinyllm": tinyllm.__version__,
    }
    if dry:
        return said | {"device": "none: the kernels were run by g++, so no time here means anything"}
    card = xp.cuda.runtime.getDeviceProperties(0)
    return said | {"cupy": xp.__version__, "device": card["name"].decode(), "memory": card["totalGlobalMem"]}


def measured(dry: bool) -> dict[str, Any]:
    """Every part, with the device chosen."""
    import gpu_kernels

    xp, dtype = backend().xp, np.dtype("bfloat16")
    runs = [(replace(shape, **TINY), method) for shape, method in RUNS[1:3]] if dry else RUNS
    result: dict[str, Any] = {"about": about(xp, dry), "properties": attempt(lambda: properties(dry))}
    result["kernels"] = attempt(lambda: gpu_kernels.bandwidths(xp, dry))
    result["training"] = []
    for shape, method in runs:
        print(f"{shape.name} {method}, {shape.batch} x {shape.time}", flush=True)
        record = {"shape": asdict(shape), "method": method, "dtype": dtype.name}
        record["tinyllm"] = attempt(lambda shape=shape, method=method: training(shape, method, dtype))
        record["peer"] = attempt(lambda shape=shape, method=method: peer(shape, method, dry))
        result["training"].append(record)
    result["decoding"] = {
        shape.name: attempt(lambda shape=shape: decoding(shape, dtype, 3 if dry else 128))
        for shape in ([runs[0][0]] if dry else [SMOLLM2, LLAMA])
    }
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, the kernels run by g++")
    parser.add_argument(
        "--out", type=Path, default=None, help="the JSON (default: benchmarks/results/gpu.json, or printed when dry)"
    )
    args = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        import ml_dtypes  # noqa: F401  gives NumPy the dtype bfloat16

        if args.dry_run:
            from tests.fake_cupy import the_device

            stack.enter_context(the_device())
        else:
            set_device("cuda")
            stack.callback(set_device, "cpu")
        result = measured(args.dry_run)
    text = json.dumps(result, indent=1)
    out = args.out or (None if args.dry_run else ROOT / "benchmarks" / "results" / "gpu.json")
    if out is None:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
        print(f"written to {out}")
    return int("failed" in json.dumps(result))


if __name__ == "__main__":
    raise SystemExit(main())
