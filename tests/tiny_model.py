"""A model that the commands train in a moment, with the embedded base's tokenizer beside it."""

from __future__ import annotations

from pathlib import Path

from tinyllm import assets
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape


def tiny_model(folder: Path, layers: int = 2) -> DecoderModel:
    """A Llama of 16 channels, written into a folder with its tokenizer."""
    tokenizer = Tokenizer.load(assets.path("base"))
    shape = llama_shape(num_kv_heads=1, intermediate_size=32, max_seq_len=64)
    model = DecoderModel(tokenizer.vocab_size, 16, layers, 2, seed=1, **shape)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model
