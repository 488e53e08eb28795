"""Who is measured at what: cases, their contenders, and the targets.

tinyllm is the first contender of every case; the others are compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TORCH = {"worker": "torch", "task": "train", "method": "lora", "base": "float32", "dtype": "float32"}
BNB = {**TORCH, "base": "nf4"}
OURS = {"worker": "tinyllm", "task": "train", "method": "lora", "base": "float32"}
BFLOAT16 = {"dtype": "bfloat16"}  # other arithmetic, so other losses: exempt from the check
CHECKPOINTING = {"checkpointing": True}


def importing(module: str) -> dict[str, Any]:
    return {"worker": "import", "task": "import", "module": module}


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {
        "tinyllm": OURS,
        "torch": TORCH,
        "torch bfloat16": {**TORCH, **BFLOAT16},
        "torch.compile": {**TORCH, "compile": True},
        "jax": {"worker": "jax", "task": "train"},
    },
    "qlora": {
        "tinyllm": {**OURS, "base": "nf4"},
        "bitsandbytes": BNB,
        "bitsandbytes bfloat16": {**BNB, **BFLOAT16},
    },
    "qlora-checkpointing": {
        "tinyllm": {**OURS, "base": "nf4", **CHECKPOINTING},
        "bitsandbytes": {**BNB, **CHECKPOINTING},
        "bitsandbytes bfloat16": {**BNB, **BFLOAT16, **CHECKPOINTING},
    },
    "full": {"tinyllm": {**OURS, "method": "full"}, "torch": {**TORCH, "method": "full"}},
    "decode": {
        "tinyllm": {"worker": "tinyllm", "task": "decode"},
        "transformers": {"worker": "torch", "task": "decode"},
    },
    "nf4": {"tinyllm": {"worker": "tinyllm", "task": "nf4"}, "bitsandbytes": {"worker": "torch", "task": "nf4"}},
    "overhead": {
        "tinyllm": {"worker": "tinyllm", "task": "overhead"},
        "torch": {"worker": "torch", "task": "overhead"},
    },
    "import": {
        "tinyllm": importing("tinyllm"),
        "torch": importing("torch"),
        "jax": importing("jax"),
        "peft": importing("peft"),
    },
    "matmul-share": {"tinyllm": {**OURS, "task": "matmul-share"}},
}

# What a step of each task measures; the first is what contenders are compared by.
MEASURES = {
    "train": ("seconds",),
    "decode": ("decode", "prefill"),
    "nf4": ("quantise", "dequantise"),
    "overhead": ("per operation",),
    "import": ("import",),
    "matmul-share": ("share",),
}
# How it is shown: what it is called, and what the number (seconds, but for the share) is multiplied by.
UNITS = {
    "seconds": ("s a step", 1),
    "decode": ("ms a token", 1e3),
    "prefill": ("prefill, ms", 1e3),
    "quantise": ("quantise, ms", 1e3),
    "dequantise": ("dequantise, ms", 1e3),
    "per operation": ("µs an operation", 1e6),
    "import": ("s", 1),
    "share": ("% of a step", 100),
}
WITH_MEMORY = ("train", "decode")  # where a peak says something about the case


@dataclass(frozen=True)
class Target:
    """A promise about one figure.

    `figure` is "speed" (their seconds over ours; `measure` says of what), "memory" (our peak over theirs) or "value"
    (ours alone, in the unit of `UNITS`).
    """

    case: str
    says: str
    figure: str
    peer: str | None
    at_least: bool
    bound: float | None  # None: there is a goal only
    goal: float | None = None
    measure: str | None = None


TARGETS = (
    Target("lora", "LoRA step, speed over torch + PEFT float32", "speed", "torch", True, 1.25, 1.4),
    Target("lora", "the same over torch + PEFT bfloat16", "speed", "torch bfloat16", True, None, 0.9),
    Target("lora", "the same over torch.compile, float32", "speed", "torch.compile", True, 1.1),
    Target("lora", "the same over JAX jit, float32", "speed", "jax", True, 1.1),
    Target("lora", "LoRA step, peak memory over torch + PEFT float32", "memory", "torch", False, 0.45),
    Target("qlora", "QLoRA step, speed over bitsandbytes, float32 compute", "speed", "bitsandbytes", True, 1.4),
    Target(
        "qlora-checkpointing",
        "QLoRA step with checkpointing, peak memory over bitsandbytes with checkpointing",
        "memory", "bitsandbytes", False, 0.30,
    ),
    Target("full", "full fine-tuning step, speed over torch float32", "speed", "torch", True, 1.1),
    Target("matmul-share", "% of a LoRA step inside matmuls", "value", None, True, 80, None, "share"),
    Target("nf4", "NF4 quantise, speed over bitsandbytes", "speed", "bitsandbytes", True, 4.0, None, "quantise"),
    Target("nf4", "NF4 dequantise, speed over bitsandbytes", "speed", "bitsandbytes", True, 1.2, None, "dequantise"),
    Target(
        "overhead", "µs a recorded operation, forward and backward",
        "value", None, False, 6, None, "per operation",
    ),
    Target("decode", "KV-cache decoding, speed over transformers", "speed", "transformers", True, 1.2, None, "decode"),
    Target("import", "seconds of `import tinyllm` beyond NumPy", "value", None, False, 0.15, None, "import"),
)  # fmt: skip
