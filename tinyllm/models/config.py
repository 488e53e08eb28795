"""What a decoder is made of: one dataclass, the reason for each field on its line. Read next: `decoder.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class DecoderConfig:
    """The shape of a `DecoderModel`.

    The defaults are the guide's: GPT-2's block with one ``qkv_proj``. `llama_shape` below gives the
    other common shape.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int = 0  # 0: one head for each 64 channels, at least one
    num_kv_heads: int = 0  # 0: as many as heads; fewer is grouped-query attention
    head_dim: int = 0  # 0: hidden_size // num_heads
    intermediate_size: int = 0  # 0: 4 * hidden_size
    max_seq_len: int = 1024  # learned positions end here; with RoPE it is where training ended
    norm: str = "layer_norm"  # or "rms_norm"
    activation: str = "gelu_tanh"  # "gelu" (exact), "gelu_tanh" (GPT-2) or "swiglu" (Llama)
    positions: str = "learned"  # or "rope"
    qkv: str = "fused"  # one qkv_proj, or "separate" q_proj, k_proj, v_proj
    rope_theta: float = 10000.0  # the longest wavelength is about 2 pi times this
    norm_eps: float = 1e-5  # keeps the norm finite for a row of zeros
    bias: bool = True  # biases in every linear layer of the blocks
    tie_embeddings: bool = True  # the head is the embedding, transposed
    dropout: float = 0.0  # after the embedding and after each half of a block

    def __post_init__(self) -> None:
        for field, least in {
            "vocab_size": 1,
            "hidden_size": 1,
            "num_layers": 1,
            "max_seq_len": 1,
            "num_heads": 0,  # 0 is replaced below
            "num_kv_heads": 0,
            "head_dim": 0,
            "intermediate_size": 0,
        }.items():
            value = getattr(self, field)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < least:
                default = "" if least else " (0: the default)"
                raise ValueError(f"{field} must be at least 1{default} and a whole number, not {value!r}")
            setattr(self, field, int(value))
        self.num_heads = self.num_heads or max(1, self.hidden_size // 64)
        self.num_kv_heads = self.num_kv_heads or self.num_heads
        if not self.head_dim and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "choose another number of heads or give head_dim"
            )
        self.head_dim = self.head_dim or self.hidden_size // self.num_heads
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of channels, so head_dim {self.head_dim} must be even")
        for field, allowed in {
            "norm": ("layer_norm", "rms_norm"),
            "activation": ("gelu", "gelu_tanh", "swiglu"),
            "positions": ("learned", "rope"),
            "qkv": ("fused", "separate"),
        }.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, not {getattr(self, field)!r}")


def llama_shape(**changes: Any) -> dict[str, Any]:
    """The fields that make a `DecoderModel` a Llama: RMS norm, SwiGLU, rotary positions, separate projections."""
    llama = {"norm": "rms_norm", "activation": "swiglu", "positions": "rope", "qkv": "separate", "bias": False}
    return {**llama, **changes}
