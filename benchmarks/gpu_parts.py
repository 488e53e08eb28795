"""The parts of `gpu.py`, one a process: `gpu_parts.py PART [--dry-run]` prints a line of JSON last."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_training import LLAMA, SMOLLM2, TINY, Shape, decoding, random_model, training  # noqa: E402

import tinyllm  # noqa: E402
from tinyllm import assets  # noqa: E402
from tinyllm.backend.device import backend, set_device  # noqa: E402
from tinyllm.data import Loader  # noqa: E402
from tinyllm.data.text import load_text  # noqa: E402
from tinyllm.data.tokenizer import Tokenizer  # noqa: E402
from tinyllm.lora import apply_lora, disable_lora  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.train.loop import Observer, TrainConfig, fit  # noqa: E402

HALF = "bfloat16"


def sized(shape: Shape, dry: bool) -> Shape:
    return replace(shape, **TINY) if dry else shape


def about(dry: bool) -> dict[str, Any]:
    """Versions, the card, and what a plain copy reaches on it: the measure of every kernel."""
    import gpu_kernels

    said = {"python": platform.python_version(), "numpy": np.__version__, "tinyllm": tinyllm.__version__}
    said["dry_run"] = dry
    if dry:
        return said | {"device": "none: the kernels were run by g++, so no time here means anything"}
    xp = backend().xp
    card = xp.cuda.runtime.getDeviceProperties(0)
    free, whole = xp.cuda.Device().mem_info
    said |= {"cupy": xp.__version__, "device": card["name"].decode(), "memory": whole, "free": free}
    said["driver"] = xp.cuda.runtime.driverGetVersion()
    return said | {"copy_GB/s": gpu_kernels.copy_speed(xp, 1 << 30, dry) / 1e9}


def values(dry: bool) -> dict[str, Any]:
    """The backend's own tests of values on the card: every primitive against its specification, every dtype."""
    return passed(["tests/backend/test_primitives.py", "-k", "definition and softmax" if dry else "definition"], dry)


def properties(dry: bool) -> dict[str, Any]:
    """The other tests of primitives, and every variant of a model."""
    if dry:
        return passed(["tests/backend/test_primitives.py", "-k", "softmax and not definition"], dry)
    files = ["tests/backend/test_primitives.py", "tests/backend/test_variants.py"]
    return passed([*files, "-k", "not definition"], dry)


def passed(what: list[str], dry: bool) -> dict[str, Any]:
    """The last line of a run of tests on the card; a test that was skipped has not passed."""
    where = ["--backend", "cuda_on_cpu" if dry else "cuda", "-n", "0", "-p", "no:cacheprovider", "-q", "-rs"]
    command = [sys.executable, "-m", "pytest", *what, *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stdout.strip().splitlines()
    last = said[-1] if said else f"nothing was printed; {done.stderr.strip()}"
    if done.returncode or "passed" not in last or "skipped" in last:
        return {"failed": last, "output": said[-60:]}
    return {"tests": last}


class Losses(Observer):
    """Keeps the loss and the gradients' norm of each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def note(self, done: int, loss: float, norm: float, tokens: int) -> None:
        self.seen.append((loss, norm))


def training_equals_cpu(dry: bool) -> dict[str, Any]:
    """The embedded base, LoRA and QLoRA, by the engine's loop, in float32 here and on the CPU; then in half."""
    folder, steps = assets.path("base"), 2 if dry else 12
    data = load_text(assets.jargon()[:8000], Tokenizer.load(folder), 64)
    found: dict[str, Any] = {}

    def run(storage: str, **options: Any) -> list[tuple[float, float]]:
        model = DecoderModel.from_pretrained(folder, storage=storage, **options)
        tinyllm.manual_seed(0)
        apply_lora(model, 8, dropout=0.05, target_modules="all-linear", verbose=False)
        seen = Losses()
        fit(model, Loader(data, 4, 64), None, TrainConfig(steps=steps), seen)
        return seen.seen

    runs = {"lora": ("float32", {}), "qlora": ("nf4", {})}
    on_card = {name: run(storage, **more) for name, (storage, more) in runs.items()}
    half = {} if dry else {f"lora_{d}": run(d, dtype=np.dtype(d)) for d in ("bfloat16", "float16")}
    set_device("cpu")
    for name, (storage, more) in runs.items():
        there, here = np.array(on_card[name]), np.array(run(storage, **more))
        gap = np.abs(there - here) / np.abs(here)
        found[name] = {"card": there[:, 0].tolist(), "cpu": here[:, 0].tolist(), "largest_gap": float(gap.max())}
    return found | {name: [loss for loss, _ in seen] for name, seen in half.items()}


def lora_135m(dry: bool) -> dict[str, Any]:
    return steps(SMOLLM2, "lora", dry)


def qlora_135m(dry: bool) -> dict[str, Any]:
    return steps(SMOLLM2, "qlora", dry)


def lora_7b(dry: bool) -> dict[str, Any]:
    return steps(LLAMA, "lora", dry)


def steps(shape: Shape, method: str, dry: bool) -> dict[str, Any]:
    shape = sized(shape, dry)
    model = random_model(shape, method, np.dtype(HALF))
    return {"shape": asdict(shape), "method": method, "dtype": HALF} | training(model, shape)


def qlora_7b(dry: bool) -> dict[str, Any]:
    """7B in four bits: a step at 4 x 512 and 16 x 512; decoding with adapters beside and without."""
    shape = sized(LLAMA, dry)
    model = random_model(shape, "qlora", np.dtype(HALF))
    found: dict[str, Any] = {"shape": asdict(shape), "method": "qlora", "dtype": HALF}
    for batch in (shape.batch, 4 * shape.batch):
        found[f"{batch} x {shape.time}"] = training(model, replace(shape, batch=batch))
    tokens = 3 if dry else 48
    found["decoding_adapters_beside"] = decoding(model, tokens)
    disable_lora(model)
    found["decoding_base"] = decoding(model, tokens)
    return found


def peer(shape: Shape, method: str, dry: bool) -> dict[str, Any]:
    """The same in torch + transformers + PEFT (+ bitsandbytes), in a process of its own."""
    shape = sized(shape, dry)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_peer.py"), json.dumps(asdict(shape)), "--method", method]
    done = subprocess.run([*command, *(["--device", "cpu"] if dry else [])], capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    return {"shape": asdict(shape), "method": method} | json.loads(done.stdout.strip().splitlines()[-1])


def peer_lora_135m(dry: bool) -> dict[str, Any]:
    return peer(SMOLLM2, "lora", dry)


def peer_qlora_135m(dry: bool) -> dict[str, Any]:
    return peer(SMOLLM2, "qlora", dry)


def peer_qlora_7b(dry: bool) -> dict[str, Any]:
    return peer(LLAMA, "qlora", dry)


def kernels(dry: bool) -> dict[str, Any]:
    import gpu_kernels

    return {"kernels": gpu_kernels.bandwidths(backend().xp, dry)}


PARTS = [
    about, values, properties, training_equals_cpu, lora_135m, qlora_135m, qlora_7b, lora_7b,
    peer_lora_135m, peer_qlora_135m, peer_qlora_7b, kernels,
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[part.__name__ for part in PARTS])
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        import ml_dtypes  # noqa: F401  gives NumPy the dtype bfloat16

        if args.dry_run:
            from tests.fake_cupy import the_device

            stack.enter_context(the_device())
        else:
            set_device("cuda")
        (part,) = (part for part in PARTS if part.__name__ == args.part)
        print(json.dumps(part(args.dry_run)))


if __name__ == "__main__":
    main()
