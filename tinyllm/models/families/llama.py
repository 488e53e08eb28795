"""Llama 2 and 3, SmolLM2 and whatever else says ``"model_type": "llama"``: names and configuration.

Mistral and Qwen are this block with one change each, and use these functions.
"""

from __future__ import annotations

from typing import Any

from tinyllm.formats.fields import Fields
from tinyllm.models.config import DecoderConfig, RopeScaling, llama_shape

# Our paths and theirs; * is a layer's number. A longer path goes before its beginning.
NAMES = {
    "layers.*.self_attn.out_proj": "model.layers.*.self_attn.o_proj",
    "layers": "model.layers",
    "embed_tokens": "model.embed_tokens",
    "norm": "model.norm",
    "lm_head": "lm_head",
}
SHAPE = llama_shape(qkv_bias=False, qk_norm=False, sliding_window=0)
INERT = ("is_llama_config",)
CONTEXT = 2048  # of a config.json without max_position_embeddings
LLAMA3 = {  # their names of a RopeScaling's fields
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
}


def read_fields(fields: Fields) -> dict[str, Any]:
    """The fields of a Llama."""
    fields.expect("pretraining_tp", 1)
    return {**read_block(fields), **SHAPE}


def read_block(fields: Fields) -> dict[str, Any]:
    """What Llama, Mistral and Qwen have in common."""
    fields.expect("hidden_act", "silu", "swish")
    all_layers_are(fields, "full_attention")
    theta, scaling = read_rope(fields)
    heads = fields.take("num_attention_heads")
    return {
        "vocab_size": fields.take("vocab_size"),
        "hidden_size": fields.take("hidden_size"),
        "num_layers": fields.take("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.take("num_key_value_heads", heads),
        "head_dim": fields.take("head_dim", 0),
        "intermediate_size": fields.take("intermediate_size"),
        "max_seq_len": fields.take("max_position_embeddings", CONTEXT),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tie_embeddings": fields.flag("tie_word_embeddings", False),
    }


def take_window(fields: Fields) -> int:
    """Take ``sliding_window``, 0 for none: null is none, and a missing field is transformers' default, 4096."""
    window = fields.rest.pop("sliding_window") if "sliding_window" in fields.rest else 4096
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ValueError(f"{fields.has('sliding_window', window)}; it must be a whole number above 0, or null")
    return window or 0


def all_layers_are(fields: Fields, kind: str) -> None:
    """Take ``layer_types``, which must say the same of every layer, if it is there at all."""
    kinds = fields.take("layer_types", [])
    if not isinstance(kinds, list) or any(one != kind for one in kinds):
        raise ValueError(f"{fields.has('layer_types', kinds)}, which is not understood here (only {kind!r} for all)")


def read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """The base of the wavelengths and how they are stretched: ``rope_parameters`` (transformers 5) or what was before.

    Raises
    ------
    ValueError
        For a kind of scaling that is not understood.
    """
    theta, scaling = fields.number("rope_theta", 10000.0), None
    for name in ("rope_scaling", "rope_parameters"):
        given = fields.take(name, {})
        if not isinstance(given, dict):
            raise ValueError(f"{fields.has(name, given)}; it must be an object")
        rope = Fields(given)
        theta = rope.number("rope_theta", theta)
        kind, older = rope.take("rope_type", None), rope.take("type", None)
        kind = kind or older or "default"
        rope.expect("partial_rotary_factor", 1.0)
        if kind == "llama3":
            scaling = RopeScaling(**{ours: rope.number(theirs) for theirs, ours in LLAMA3.items()})
        if kind not in ("default", "llama3") or any(value is not None for value in rope.rest.values()):
            raise ValueError(
                f"{fields.has(name, given)}, which is not understood; only plain rotary positions and rope_type "
                "'llama3' are"
            )
    return theta, scaling


def write_fields(config: DecoderConfig) -> dict[str, Any]:
    """``config.json`` of a Llama."""
    return {**write_block(config), "head_dim": config.head_dim, "attention_bias": False, "mlp_bias": False}


def write_block(config: DecoderConfig) -> dict[str, Any]:
    """What Llama, Mistral and Qwen have in common, as transformers 4 and 5 both read it."""
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if config.rope_scaling:
        scaling = {theirs: getattr(config.rope_scaling, ours) for theirs, ours in LLAMA3.items()}
        scaling["original_max_position_embeddings"] = round(scaling["original_max_position_embeddings"])
        fields["rope_scaling"] = {"rope_type": "llama3", **scaling}
    return fields
