"""Qwen2, Qwen2.5 (biases on queries, keys and values) and Qwen3 (no biases; norms of each head's queries and keys)."""

from __future__ import annotations

from typing import Any

from tinyllm.formats.fields import Fields
from tinyllm.models.config import DecoderConfig
from tinyllm.models.families import llama

SHAPE = {name: value for name, value in llama.SHAPE.items() if name != "sliding_window"}
QWEN2 = {**SHAPE, "qkv_bias": True}
QWEN3 = {**SHAPE, "qk_norm": True}
CONTEXT = 32768


def read_qwen2(fields: Fields) -> dict[str, Any]:
    """The fields of a Qwen2 or Qwen2.5."""
    return {**_read_shared(fields), **QWEN2}


def read_qwen3(fields: Fields) -> dict[str, Any]:
    """The fields of a Qwen3."""
    fields.rest.setdefault("head_dim", 128)
    return {**_read_shared(fields), **QWEN3}


def _read_shared(fields: Fields) -> dict[str, Any]:
    fields.rest.setdefault("max_position_embeddings", CONTEXT)
    window = _window(fields)
    return {**llama.read_block(fields), "sliding_window": window}


def _window(fields: Fields) -> int:
    """The window of all layers, 0 for none. Unless ``use_sliding_window`` is true the other fields say nothing.

    Raises
    ------
    ValueError
        If only some layers have one.
    """
    slides, window = fields.flag("use_sliding_window", False), llama.take_window(fields)
    first, types = fields.take("max_window_layers", 28), fields.rest.get("layer_types")
    count = fields.rest.get("num_hidden_layers")
    by_rule = types is None and isinstance(count, int) and isinstance(first, int) and first >= count
    if not slides or by_rule or (isinstance(types, list) and "sliding_attention" not in types):
        return 0
    if types is not None:
        llama.all_layers_are(fields, "sliding_attention")
    elif first != 0:
        raise ValueError(
            f"config.json has use_sliding_window with max_window_layers={first!r}: a window for the layers above "
            "alone, which is not understood here (only 0, for all)"
        )
    return window


def write_qwen2(config: DecoderConfig) -> dict[str, Any]:
    """``config.json`` of a Qwen2."""
    fields = _write_shared(config)
    if config.head_dim * config.num_heads != config.hidden_size:
        fields["head_dim"] = config.head_dim  # transformers' Qwen2 has no such field, but looks for it
    return fields


def write_qwen3(config: DecoderConfig) -> dict[str, Any]:
    """``config.json`` of a Qwen3."""
    return {**_write_shared(config), "head_dim": config.head_dim, "attention_bias": False}


def _write_shared(config: DecoderConfig) -> dict[str, Any]:
    slides = bool(config.sliding_window)
    return {
        **llama.write_block(config),
        "use_sliding_window": slides,
        "sliding_window": config.sliding_window or None,
        "max_window_layers": 0 if slides else config.num_layers,
    }
