"""The Llama family's names and configuration, as Hugging Face writes them, and ours.

Llama, SmolLM2 and other models with ``"model_type": "llama"``. Read next: `folder.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tinyllm.models.config import DecoderConfig, llama_shape

LLAMA = llama_shape()

# Fields that change nothing about what the model computes, whatever they say.
INERT = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "initializer_range",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "is_llama_config", "transformers.js_config",
    "id2label", "label2id", "return_dict", "chunk_size_feed_forward", "problem_type", "quantization_config",
    "unsloth_version", "unsloth_fixed", "_attn_implementation_autoset",
}  # fmt: skip


def is_llama(config: Any) -> bool:
    """Whether a model of this `DecoderConfig` can be written as a Llama."""
    return isinstance(config, DecoderConfig) and all(getattr(config, field) == value for field, value in LLAMA.items())


def hf_name(name: str) -> str:
    """Hugging Face's name of our weight or module: ``norm`` is ``model.norm``, ``out_proj`` is ``o_proj``."""
    name = re.sub(r"\bself_attn\.out_proj\b", "self_attn.o_proj", name)
    return name if name == "lm_head" or name.startswith("lm_head.") or not name else f"model.{name}"


def our_name(name: str) -> str:
    """The other way round."""
    return re.sub(r"\bself_attn\.o_proj\b", "self_attn.out_proj", name.removeprefix("model."))


def config_from_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `DecoderConfig` for a ``config.json``.

    Raises
    ------
    ValueError
        If it is no Llama, lacks a field, or has a field that would change the model and is not understood.
    """
    rest = dict(fields)
    if rest.get("model_type") != "llama":
        raise ValueError(f"the model is of type {rest.get('model_type')!r}; only 'llama' is understood so far")
    lacking = [
        name
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        if name not in rest
    ]
    if lacking:
        raise ValueError(f"config.json lacks {', '.join(lacking)}")
    theta = rest.pop("rope_theta", None)
    for field in ("rope_parameters", "rope_scaling"):  # transformers 5 and 4
        rope = dict(rest.pop(field, None) or {})
        theta = rope.pop("rope_theta", theta)
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        if kind != "default" or any(value is not None for value in rope.values()):
            raise ValueError(
                f"config.json has {field} of type {kind!r}, which is not understood; only plain rotary positions are"
            )
    config = {
        "vocab_size": rest.pop("vocab_size"),
        "hidden_size": rest.pop("hidden_size"),
        "num_layers": rest.pop("num_hidden_layers"),
        "num_heads": rest["num_attention_heads"],
        "num_kv_heads": rest.pop("num_key_value_heads", None) or rest["num_attention_heads"],
        "head_dim": rest.pop("head_dim", None) or 0,
        "intermediate_size": rest.pop("intermediate_size"),
        "max_seq_len": rest.pop("max_position_embeddings", 2048),
        "rope_theta": float(10000.0 if theta is None else theta),
        "norm_eps": rest.pop("rms_norm_eps", 1e-6),
        "tie_embeddings": bool(rest.pop("tie_word_embeddings", False)),
        **LLAMA,
    }
    del rest["num_attention_heads"]
    if rest.pop("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"config.json has hidden_act {fields['hidden_act']!r}; a Llama's is 'silu'")
    if rest.pop("pretraining_tp", 1) not in (1, None):
        raise ValueError("config.json has pretraining_tp above 1, which is not understood; save the model with 1")
    strange = [name for name, value in rest.items() if name not in INERT and value not in (None, False, {}, [])]
    if strange:
        raise ValueError(
            f"config.json has {', '.join(f'{name}={rest[name]!r}' for name in strange)}, which is not understood"
        )
    return config


def config_to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """``config.json`` for a Llama-shaped configuration.

    Raises
    ------
    ValueError
        If the model is none, naming the fields that differ.
    """
    differing = [
        f"{field}={getattr(config, field)!r}" for field, value in LLAMA.items() if getattr(config, field) != value
    ]
    if differing:
        raise ValueError(
            f"only Llama-shaped models can be saved for transformers so far, and this one has {', '.join(differing)}; "
            "use tinyllm.save(model.state_dict(), path)"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
    }
