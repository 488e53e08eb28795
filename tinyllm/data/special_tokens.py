"""What the files beside a tokenizer.json say: special tokens and the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.formats import json_file

# Used only where no configuration file names the token, and only if the tokenizer itself marks it as special.
USUAL = {
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
    "bos": ("<|begin_of_text|>", "<s>", "<bos>"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
}
NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # the special tokens with a name


def read_config(folder: Path) -> dict[str, Any]:
    """What the files beside tokenizer.json say, the most specific file winning."""
    config: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        file = folder / name
        if not file.is_file():
            continue
        found = json_file.read(file)
        if name != "tokenizer_config.json":  # config.json is the model's: take the special tokens and nothing else
            keys = [f"{special}_token{suffix}" for special in USUAL for suffix in ("", "_id")]
            found = {key: found[key] for key in keys if key in found}
        for key, value in found.items():
            if config.get(key) is None:
                config[key] = value
    # transformers lets the file win, and keeps templates of models with images in the .json.
    template, older = folder / "chat_template.jinja", folder / "chat_template.json"
    if template.is_file():
        config["chat_template"] = _text(template)
    elif config.get("chat_template") is None and older.is_file():
        config["chat_template"] = json_file.read(older).get("chat_template")
    return config


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not valid UTF-8: fetch or save it again") from error


def default_template(template: Any) -> str | None:
    """The template itself, or the one named "default" in a list of named ones.

    Raises
    ------
    ValueError
        If there are several, and none has that name.
    """
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        if named and "default" not in named:
            raise ValueError(
                f"the chat templates are named {', '.join(map(str, named))}, and none is the default: rename one to "
                '"default" in tokenizer_config.json'
            )
        template = named.get("default")
    return template if isinstance(template, str) else None
