"""Mistral: a Llama whose queries may look back only so far (``sliding_window``, null in the later models)."""

from __future__ import annotations

from typing import Any

from tinyllm.formats.fields import Fields
from tinyllm.models.config import DecoderConfig
from tinyllm.models.families import llama

SHAPE = {name: value for name, value in llama.SHAPE.items() if name != "sliding_window"}


def read_fields(fields: Fields) -> dict[str, Any]:
    """The fields of a Mistral."""
    window = llama.take_window(fields)
    if fields.rest.get("layer_types"):  # transformers' Mistral does not look at it
        llama.all_layers_are(fields, "sliding_attention" if window else "full_attention")
    return {**llama.read_block(fields), **SHAPE, "sliding_window": window}


def write_fields(config: DecoderConfig) -> dict[str, Any]:
    """``config.json`` of a Mistral."""
    return {
        **llama.write_block(config),
        "head_dim": config.head_dim,
        "sliding_window": config.sliding_window or None,
    }
