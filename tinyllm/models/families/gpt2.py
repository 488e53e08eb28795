"""GPT-2: names and configuration. Its linear layers are ``Conv1D``, which keep their weights as (in, out)."""

from __future__ import annotations

from typing import Any

from tinyllm.formats.fields import Fields
from tinyllm.models.config import DecoderConfig

NAMES = {
    "layers.*.input_layernorm": "transformer.h.*.ln_1",
    "layers.*.self_attn.qkv_proj": "transformer.h.*.attn.c_attn",
    "layers.*.self_attn.out_proj": "transformer.h.*.attn.c_proj",
    "layers.*.self_attn": "transformer.h.*.attn",
    "layers.*.post_attention_layernorm": "transformer.h.*.ln_2",
    "layers.*.mlp.up_proj": "transformer.h.*.mlp.c_fc",
    "layers.*.mlp.down_proj": "transformer.h.*.mlp.c_proj",
    "layers": "transformer.h",
    "embed_tokens": "transformer.wte",
    "embed_positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
CONV1D = ("qkv_proj", "out_proj", "up_proj", "down_proj")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask
SHAPE = {
    "norm": "layer_norm", "positions": "learned", "qkv": "fused", "bias": True, "qkv_bias": False, "qk_norm": False,
    "sliding_window": 0, "rope_scaling": None,
}  # fmt: skip
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu"}
# Dropout belongs to training, and the summary to another head; n_ctx is an old name of n_positions.
INERT = (
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "n_ctx", "reorder_and_upcast_attn",
)  # fmt: skip


def read_fields(fields: Fields) -> dict[str, Any]:
    """The fields of a GPT-2."""
    fields.expect("scale_attn_weights", True)
    activation = fields.expect("activation_function", *ACTIVATIONS)
    return {
        "vocab_size": fields.take("vocab_size"),
        "hidden_size": fields.take("n_embd"),
        "num_layers": fields.take("n_layer"),
        "num_heads": fields.take("n_head"),
        "intermediate_size": fields.take("n_inner", 0),
        "max_seq_len": fields.take("n_positions", 1024),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "tie_embeddings": fields.flag("tie_word_embeddings", True),
        "activation": ACTIVATIONS[activation],
        **SHAPE,
    }


def differences(config: DecoderConfig) -> list[str]:
    """What `SHAPE` cannot say: every head has its own keys and values, and together they are as wide as the model."""
    fits = {
        "num_kv_heads": config.num_kv_heads == config.num_heads,
        "head_dim": config.head_dim * config.num_heads == config.hidden_size,
        "activation": config.activation in ACTIVATIONS.values(),
    }
    return [f"{name}={getattr(config, name)!r}" for name, fit in fits.items() if not fit]


def write_fields(config: DecoderConfig) -> dict[str, Any]:
    """``config.json`` of a GPT-2."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_seq_len,
        "n_ctx": config.max_seq_len,
        "activation_function": {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }
