"""What a decoder is made of: one dataclass, the reason for each field on its line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyllm.backend.names import is_real, is_share, is_whole


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary wavelengths, so that a longer text turns no pair further than training did.

    A wavelength shorter than ``original_max_seq_len / high_freq_factor`` stays; one longer than
    ``original_max_seq_len / low_freq_factor`` becomes `factor` times as long; between them the two are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: float  # the context of the first training

    def __post_init__(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor or self.factor < 1 or self.original_max_seq_len < 1:
            raise ValueError(
                f"{self} is no stretching: factor and original_max_seq_len must be at least 1, and low_freq_factor "
                "above 0 and below high_freq_factor"
            )


@dataclass
class DecoderConfig:
    """The shape of a `DecoderModel`.

    The defaults are the guide's: GPT-2's block with one ``qkv_proj``. `llama_shape` below gives the other common shape.
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
    rope_scaling: RopeScaling | None = None  # stretched wavelengths, as in Llama 3
    sliding_window: int = 0  # a query sees so many positions, its own included (Mistral); 0: all before it
    norm_eps: float = 1e-5  # keeps the norm finite for a row of zeros
    bias: bool = True  # biases in every linear layer of the blocks
    qkv_bias: bool = False  # biases of queries, keys and values alone (Qwen2)
    qk_norm: bool = False  # an RMS norm of each head's queries and keys, before the positions (Qwen3)
    tie_embeddings: bool = True  # the head is the embedding, transposed
    dropout: float = 0.0  # after the embedding and after each half of a block
    model_type: str = field(default="", compare=False)  # its family on Hugging Face; "": whichever it fits

    def __post_init__(self) -> None:
        for name, fits, needed in CHECKS:
            if not fits(getattr(self, name)):
                raise ValueError(f"{name} must be {needed}, not {getattr(self, name)!r}")
        for name in (*SIZES, *SIZES_WITH_DEFAULT):
            setattr(self, name, int(getattr(self, name)))  # NumPy's whole numbers become Python's
        if isinstance(self.rope_scaling, dict):  # of `describe`, or of a file
            self.rope_scaling = RopeScaling(**self.rope_scaling)
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


def _is_at_least(value: Any, least: int) -> bool:
    return is_whole(value) and value >= least


def _is_above_0(value: Any) -> bool:
    return is_real(value) and 0 < value < np.inf


SIZES = ("vocab_size", "hidden_size", "num_layers", "max_seq_len")
SIZES_WITH_DEFAULT = ("num_heads", "num_kv_heads", "head_dim", "intermediate_size", "sliding_window")
CHOICES = {
    "norm": ("layer_norm", "rms_norm"),
    "activation": ("gelu", "gelu_tanh", "swiglu"),
    "positions": ("learned", "rope"),
    "qkv": ("fused", "separate"),
}
# What each field must be by itself: its name, a test, the words for the error.
CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *((name, lambda value: _is_at_least(value, 1), "at least 1 and a whole number") for name in SIZES),
    *(
        (name, lambda value: _is_at_least(value, 0), "at least 1 (0: the default) and a whole number")
        for name in SIZES_WITH_DEFAULT
    ),
    *((name, _is_above_0, "a finite number above 0") for name in ("rope_theta", "norm_eps")),
    ("dropout", is_share, "in [0, 1)"),
    *((name, allowed.__contains__, f"one of {', '.join(allowed)}") for name, allowed in CHOICES.items()),
)


def llama_shape(**changes: Any) -> dict[str, Any]:
    """The fields that make a `DecoderModel` a Llama: RMS norm, SwiGLU, rotary positions, separate projections."""
    llama = {"norm": "rms_norm", "activation": "swiglu", "positions": "rope", "qkv": "separate", "bias": False}
    return {**llama, **changes}
