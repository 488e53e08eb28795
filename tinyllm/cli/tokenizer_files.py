"""Writing a model with its tokenizer: the one that came with it, or none where none came."""

from __future__ import annotations

from pathlib import Path

from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints.origin import Origin, copy_tokenizer, has_tokenizer, refuse_pointers


def tokenizer_of(source: Path) -> tuple[Tokenizer | None, str]:
    """The tokenizer of a model's folder or GGUF file; None where there is none, or none that can be read, and a line.

    Raises
    ------
    ValueError
        If a folder's tokenizer.json is damaged, or a pointer stands in the place of one of its tokenizer's files.
    """
    refuse_pointers(source)
    try:
        return Tokenizer.load(source), "tokenizer.json"
    except FileNotFoundError:
        if has_tokenizer(source):
            return None, f"there is no tokenizer.json in {source}; the other tokenizer files there were copied"
        return None, f"there is no tokenizer in {source}, so none was written"
    except (ValueError, ImportError) as error:
        if isinstance(error, ImportError) and source.is_dir():
            return None, f"the tokenizer's files were copied as they are: {error}"
        if source.is_dir():
            raise
        return None, f"no tokenizer was written: {error}"


def save_with_tokenizer(
    model: DecoderModel, tokenizer: Tokenizer | None, out: Path, source: Path | None = None
) -> None:
    """Write a model and its tokenizer in the place of what stood in `out`; of a folder `source` each tokenizer file."""
    if tokenizer is not None:
        add_ids(model, tokenizer)
    model.save_pretrained(out)
    if source is not None and source.is_dir():
        copy_tokenizer(source, out)
    if tokenizer is not None:
        tokenizer.save(out)


def add_ids(model: DecoderModel, tokenizer: Tokenizer) -> None:
    """Have a model that does not say where its texts end say what its tokenizer says."""
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    model.origin = (model.origin or Origin()).ended_by(ids)
