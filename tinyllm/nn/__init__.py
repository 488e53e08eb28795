"""Layers: what a module is, and the few there are."""

from tinyllm.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from tinyllm.nn.module import Module, Place, Weight, has_memory, placeholder, put, require_model

__all__ = [
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Module",
    "Place",
    "RMSNorm",
    "Weight",
    "has_memory",
    "placeholder",
    "put",
    "require_model",
]
