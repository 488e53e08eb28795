"""Models: `DecoderModel` and the checkpoint families it can read."""

from tinyllm.models.config import DecoderConfig
from tinyllm.models.decoder import DecoderModel

__all__ = ["DecoderConfig", "DecoderModel"]
