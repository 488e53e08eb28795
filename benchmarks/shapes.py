"""What is measured: model shapes by name, and the numbers every worker fills them with.

The weights are random, but the same for everyone: each worker makes them itself, from the same block of normal numbers
(so that a 7B model takes seconds), and all are exact in float16, so that a base stored in half precision holds the
same values as one in float32.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")  # PEFT's names, which tinyllm accepts
LEARNING_RATE = 1e-3
STD = 0.02


@dataclass(frozen=True)
class Shape:
    """A Llama and the work put to it."""

    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    batch: int = 4
    time: int = 128
    rank: int = 8
    alpha: float = 16.0
    prompt: int = 128  # tokens before the first generated one
    new_tokens: int = 64
    nf4_side: int = 4096  # of the square matrix that is quantised
    chain: int = 10_000  # operations recorded one after another

    def fields(self) -> dict[str, Any]:
        return asdict(self)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m", 49152, 576, 30, 9, 3, 1536, rope_theta=100000.0),
        Shape("tiny", 2048, 192, 4, 3, 1, 512, prompt=16, new_tokens=8, nf4_side=256, chain=500),
    )
}


def llama_2_7b(scale: int = 1, layers: int = 32) -> Shape:
    """Llama-2-7B at batch 1 x 128, or with fewer layers, or every matrix `scale` times smaller: 1, 4 or 16.

    The depth and the channels of a head stay; width, vocabulary and rank shrink with the square root, and stay
    multiples of the NF4 block, which bitsandbytes' CPU layers need to compute correctly.
    """
    factors = {1: 1, 4: 2, 16: 4}
    if scale not in factors:
        raise ValueError(f"scale must be 1, 4 or 16, not {scale}")
    f = factors[scale]
    name = "llama-2-7b" + (f"/{scale}" if scale > 1 else "") + (f"-{layers}-layers" if layers != 32 else "")
    return Shape(
        name, 32000 // f, 4096 // f, layers, 32 // f, 32 // f, 11008 // f, tie_embeddings=False, batch=1, rank=8 // f
    )


class Numbers:
    """Weights by name and tokens, the same in every process.

    Parameters
    ----------
    seed : int
        Another seed gives another model: tests plant it.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        # A prime length: rows are windows of one sequence, never the same window twice.
        block = np.random.default_rng(seed).standard_normal(1_000_003, dtype=np.float32) * np.float32(STD)
        self.block = block.astype(np.float16).astype(np.float32)

    def weight(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A weight by the name transformers gives it, without ``model.``: float32, exact in float16."""
        if "norm" in name:
            return np.ones(shape, np.float32)
        w = np.empty(shape, np.float32)
        flat, n = w.reshape(-1), len(self.block)
        begin = zlib.crc32(name.encode()) % n
        done = 0
        while done < flat.size:
            part = self.block[begin : begin + flat.size - done]
            flat[done : done + len(part)] = part
            done, begin = done + len(part), 0
        return w

    def lora_a(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The A of the layer of that name, (rank, in), with the spread of U(-1/sqrt(in), 1/sqrt(in)). B is zero."""
        return self.weight(f"{name}.lora_A", shape) * np.float32((3 * shape[1]) ** -0.5 / STD)

    def tokens(self, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """Ids and their targets, (batch, time) each."""
        row = np.random.default_rng(self.seed + 1).integers(0, shape.vocab_size, (shape.batch, shape.time + 1))
        return row[:, :-1], row[:, 1:]

    def prompt(self, shape: Shape) -> np.ndarray:
        return np.random.default_rng(self.seed + 2).integers(0, shape.vocab_size, (1, shape.prompt))
