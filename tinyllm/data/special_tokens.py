"""A tokenizer's special tokens and chat template: what the files beside tokenizer.json say, and what follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.formats import json_file
from tinyllm.formats.atomic import write_text
from tinyllm.formats.foreign import refuse_pointer

# Used only where no configuration file names the token, and only if the tokenizer itself marks it as special.
USUAL = {
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
    "bos": ("<|begin_of_text|>", "<s>", "<bos>"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
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
    refuse_pointer(file, pages=False)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not valid UTF-8: fetch or save it again") from error


def renew_template(folder: Path, template: str | None) -> None:
    """Have a chat_template.jinja that is there, and wins over tokenizer_config.json, say the same."""
    file = folder / "chat_template.jinja"
    if file.exists() and template is not None:
        write_text(file, template)
    else:
        file.unlink(missing_ok=True)


def default_template(template: Any) -> str | None:
    """The template itself, or the one named "default" of several: a list of named ones, or an object by name.

    Raises
    ------
    ValueError
        If there are several, and none has that name; or it is neither.
    """
    named = template
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        if len(named) < len(template):
            named = None
    if named and isinstance(named, Mapping):
        if "default" not in named:
            raise ValueError(
                f"the chat templates are named {', '.join(map(str, named))}, and none is the default: rename one to "
                '"default" in tokenizer_config.json'
            )
        template = named["default"]
    if template is not None and template != [] and template != {} and not isinstance(template, str):
        raise ValueError(
            f"the chat_template is {template!r:.60}, which is no template: write a text, or several by name, into "
            "tokenizer_config.json"
        )
    return template if isinstance(template, str) else None


def spelled(token: Any) -> str | None:
    """A token as a configuration gives it: a string, or an AddedToken written out."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def find(inner: Any, config: Mapping[str, Any], name: str) -> int | None:
    """The id of the "eos", "bos", "pad" or "unk" token of a tokenizer of the `tokenizers` library, or None.

    Raises
    ------
    ValueError
        If the configuration names a token that the vocabulary does not have.
    """
    token = spelled(config.get(f"{name}_token"))
    if token is not None:
        id: int | None = inner.token_to_id(token)
        if id is not None:
            return id
        if name in ("eos", "bos"):  # padding is masked by length here, so a missing pad token harms nobody
            raise ValueError(
                f"the configuration names {token!r} as {name}_token, which tokenizer.json does not have: "
                "correct tokenizer_config.json or use the tokenizer.json that belongs to it"
            )
    id = config.get(f"{name}_token_id")
    if isinstance(id, list) and id:
        id = id[0]
    if isinstance(id, int) and id >= 0 and inner.id_to_token(id) is not None:
        return id
    special = {added.content: i for i, added in inner.get_added_tokens_decoder().items() if added.special}
    return next((special[usual] for usual in USUAL[name] if usual in special), None)


def make_units(inner: Any, config: Mapping[str, Any], eos_id: int | None) -> None:
    """Have no text change the special tokens that the configuration names, as in transformers, nor the end of text."""
    named = [spelled(config.get(f"{name}_token")) for name in NAMES]
    ids = {id for token in named if token is not None and (id := inner.token_to_id(token)) is not None}
    ids |= set() if eos_id is None else {eos_id}
    missing = ids - inner.get_added_tokens_decoder().keys()
    if missing:
        inner.add_special_tokens([inner.id_to_token(id) for id in sorted(missing)])


def beginning(inner: Any, config: Mapping[str, Any], bos_id: int | None) -> tuple[int, ...]:
    """What is put before a text: what the tokenizer's own post-processor puts, with or without `bos_id` as configured.

    Programs differ in which of the two they follow, so a post-processor that does otherwise than ``add_bos_token`` says
    is replaced: a tokenizer that is saved from here begins texts in one way everywhere.
    """
    own, added = _put_before(inner), config.get("add_bos_token")
    if added is None or bos_id is None or bool(added) == (bos_id in own):
        return own
    begin = (bos_id, *own) if added else tuple(id for id in own if id != bos_id)
    from tokenizers import processors

    old = json.loads(inner.to_str())["post_processor"] or {}
    steps: list[Any] = [
        processors.ByteLevel(trim_offsets=step["trim_offsets"])
        for step in old.get("processors", [old])
        if step.get("type") == "ByteLevel"
    ]
    if begin:
        tokens = [(inner.id_to_token(id), id) for id in begin]
        single = [token for token, _ in tokens]
        steps.append(processors.TemplateProcessing(single=[*single, "$A"], special_tokens=tokens))
    inner.post_processor = processors.Sequence(steps)
    return begin


def _put_before(inner: Any) -> tuple[int, ...]:
    encoding = inner.encode("a", add_special_tokens=True)
    special = encoding.special_tokens_mask
    if not any(special):
        return ()
    return tuple(encoding.ids[: special.index(0) if 0 in special else 1])  # a vocabulary may have no "a"
