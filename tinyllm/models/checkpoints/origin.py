"""What came with a model beside its weights and changes nothing about its arithmetic: it goes with the model again.

transformers ends a text at the ids of generation_config.json, else of config.json, else at its class's own: a model
that is written without them writes on without end.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.formats import json_file
from tinyllm.formats.atomic import write_whole
from tinyllm.formats.foreign import refuse_pointer
from tinyllm.models.checkpoints import hub

GENERATION = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# A tokenizer proper, in transformers' forms, and what stands beside it.
VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
)  # fmt: skip
BESIDE = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
CHANGES = ("tokenizer", "special_tokens", "added_tokens", "chat_template")
TEMPLATES = "additional_chat_templates"  # a folder of transformers': templates by name
GGUF_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
GGUF_ENDS = ("eot", "eom")  # llama.cpp ends a text at these, too


@dataclass(frozen=True)
class Origin:
    """What came with a model.

    Attributes
    ----------
    name : str
        What transformers and PEFT open: the absolute path of a folder, or a name on the hub; "" for neither.
    model_type : str
        The family whose fields these are.
    fields : dict
        Of config.json: what changes no arithmetic, special ids among it.
    generation : dict
        Of generation_config.json.
    folder : Path or None
        Where the tokenizer's files stand.
    template : str or None
        The chat template of a GGUF file, which has no such files.
    """

    name: str = ""
    model_type: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    template: str | None = None

    def ids(self) -> dict[str, Any]:
        """The special tokens of config.json: numbers, lists of them, or None."""
        return {name: self.fields[name] for name in IDS if name in self.fields}

    def generating(self) -> dict[str, Any]:
        """generation_config.json; where none came, what transformers makes of the other file."""
        return dict(self.generation) or self.ids()

    def ended_by(self, ids: Mapping[str, int | None]) -> Origin:
        """With the special tokens of a tokenizer, if no file said where texts end."""
        if any(said.get("eos_token_id") is not None for said in (self.fields, self.generation)):
            return self
        generation = {**self.generation, **ids} if self.generation else {}
        return Origin(self.name, self.model_type, {**self.fields, **ids}, generation, self.folder, self.template)


def of_folder(folder: Path, model_type: str, fields: Mapping[str, Any]) -> Origin:
    """What came in a folder; `fields` of its config.json are those that change no arithmetic.

    Raises
    ------
    ValueError
        If generation_config.json is damaged.
    """
    file = folder / GENERATION
    generation = json_file.read(file) if file.is_file() else {}
    return Origin(hub.name_of(folder), model_type, dict(fields), generation, folder.absolute())


def of_gguf(path: Any, model_type: str, metadata: Mapping[str, Any]) -> Origin:
    """What came in a GGUF file."""
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in GGUF_IDS.items()}
    ids = {name: id if type(id) is int and 0 <= id < 0xFFFFFFFF else None for name, id in found.items()}
    if metadata.get("tokenizer.ggml.model") == "llama":  # SentencePiece's numbers, where the file says none
        usual = {"bos_token_id": 1, "eos_token_id": 2}
        ids |= {name: id for name, id in usual.items() if found[name] is None}
    ends = [ids["eos_token_id"], *(metadata.get(f"tokenizer.ggml.{key}_token_id") for key in GGUF_ENDS)]
    ends = list(dict.fromkeys(id for id in ends if type(id) is int and 0 <= id < 0xFFFFFFFF))
    generation = {**ids, "eos_token_id": ends} if len(ends) > 1 else {}
    template = metadata.get("tokenizer.chat_template")
    name = hub.name_of(Path(path))
    return Origin(name, model_type, ids, generation, template=template if isinstance(template, str) else None)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer stands in a folder, in any of transformers' forms."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def refuse_pointers(folder: Path) -> None:
    """Raise ValueError if what stands in the place of a tokenizer's file is a pointer to it."""
    for name in (*VOCABULARIES, *BESIDE):
        if (folder / name).is_file():
            refuse_pointer(folder / name, pages=False)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files, each byte and each whole; what would change it of another one that was there goes."""
    for name in (*VOCABULARIES, *BESIDE):
        if (source / name).is_file():
            _copy(source / name, folder / name)
        elif name.startswith(CHANGES):
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / TEMPLATES, ignore_errors=True)
    for file in sorted((source / TEMPLATES).glob("*.jinja")):
        (folder / TEMPLATES).mkdir(exist_ok=True)
        _copy(file, folder / TEMPLATES / file.name)


def _copy(source: Path, target: Path) -> None:
    refuse_pointer(source, pages=False)
    with open(source, "rb") as file, write_whole(target) as copy:
        shutil.copyfileobj(file, copy)
