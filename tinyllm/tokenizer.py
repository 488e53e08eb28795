"""Text to token ids and back: the `tokenizers` library, and a checkpoint folder's special tokens.

`tokenizers` is imported only when a tokenizer is loaded. Read next: `data.py`, which turns text into labelled examples.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm.formats.atomic import write_text

__all__ = ["ROLES", "Tokenizer"]

ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}

# Used only where no configuration file names the token, and only if the tokenizer itself marks it as special.
_USUAL = {
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
    "bos": ("<|begin_of_text|>", "<s>", "<bos>"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
}


class Tokenizer:
    """A tokenizer with its special tokens and chat template.

    Parameters
    ----------
    inner : tokenizers.Tokenizer
        The tokenizer proper. Truncation and padding are switched off: a tokenizer.json may carry both, and would then
        cut long texts without a word.
    config : mapping, optional
        What tokenizer_config.json holds (`eos_token`, `bos_token`, `pad_token`, `add_bos_token`, `chat_template`);
        `eos_token_id` and the like are accepted too, as config.json writes them.

    Attributes
    ----------
    eos_id, bos_id, pad_id : int or None
        End of text, beginning of text, padding; None where the tokenizer has no such token.
    adds_bos : bool
        Whether texts for this model start with `bos_id` (`add_bos_token`, or else what the tokenizer's own
        post-processor does). `encode` never adds it.
    chat_template : str or None
        The checkpoint's Jinja template. Set it to None to use the plain form of `apply_chat`.
    """

    def __init__(self, inner: Any, config: Mapping[str, Any] | None = None) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._config = dict(config or {})
        self.eos_id = self._special("eos")
        self.bos_id = self._special("bos")
        self.pad_id = self._special("pad")
        self.chat_template = _template(self._config.get("chat_template"))
        added = self._config.get("add_bos_token")
        if added is None:
            added = self.bos_id in inner.encode("", add_special_tokens=True).ids[:1]
        self.adds_bos = bool(added) and self.bos_id is not None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer from a checkpoint folder, or from a tokenizer file.

        Parameters
        ----------
        path : str or path
            A folder with tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json, config.json
            and chat_template.jinja; or a file in tokenizer.json's format (one named tokenizer.json is read with the
            files beside it).

        Returns
        -------
        Tokenizer

        Raises
        ------
        FileNotFoundError
            If there is no such file, or no tokenizer.json in the folder.
        ValueError
            If a file is not what its name says, or names an end-of-text token that the vocabulary does not have.
        ImportError
            If the `tokenizers` package is not installed.
        """
        file = Path(path)
        if file.is_dir():
            folder, file = file, file / "tokenizer.json"
            if not file.is_file():
                raise FileNotFoundError(
                    f"no tokenizer.json in {folder}: copy it there from the checkpoint, or give the file itself"
                )
        elif not file.is_file():
            raise FileNotFoundError(f"no tokenizer at {file}: give a folder with a tokenizer.json, or that file")
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError("reading a tokenizer needs the `tokenizers` package: pip install tokenizers") from error
        try:
            inner = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{file} is not a tokenizer.json file ({error}): fetch or save it again") from error
        try:
            return cls(inner, _read_config(file.parent) if file.name == "tokenizer.json" else None)
        except ValueError as error:
            raise ValueError(f"{file.parent}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; nothing is added at either end.

        Special tokens written out in the text (`<|endoftext|>`) become their ids, as in Hugging Face's tokenizers.
        """
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of `ids` (any iterable of integers), with special tokens written out unless skipped.

        Raises
        ------
        ValueError
            If an id is negative, as the -100 of masked labels is.
        """
        numbers = [int(i) for i in ids]
        if any(i < 0 for i in numbers):
            raise ValueError(f"{min(numbers)} is not a token id: drop masked labels (-100) before decoding")
        return str(self._inner.decode(numbers, skip_special_tokens=skip_special))

    def token(self, id: int) -> str | None:
        """Return the vocabulary's own spelling of one token (`Ġthe` in byte-level vocabularies), or None."""
        token: str | None = self._inner.id_to_token(int(id))
        return token

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included: what an embedding needs, also where the ids have gaps."""
        return 1 + max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        for name, id in (("eos", self.eos_id), ("bos", self.bos_id), ("pad", self.pad_id)):
            config.pop(f"{name}_token_id", None)
            config[f"{name}_token"] = None if id is None else self.token(id)
        config["add_bos_token"] = self.adds_bos
        config["chat_template"] = self.chat_template
        write_text(folder / "tokenizer.json", self._inner.to_str(pretty=True))
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def apply_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
    ) -> list[tuple[str, bool]]:
        r"""Lay a conversation out as segments of text.

        The plain form, for tokenizers without a chat template, where ⏎ is a newline and ``<eos>`` is put by whoever
        encodes the segments, after each trainable one::

            System: Be brief.⏎User: Hello⏎Assistant: Hi!<eos>⏎User: Bye⏎Assistant: Bye!<eos>

        Only the answers are trainable, from the space after the colon on: in byte-level vocabularies that space belongs
        to the answer's first token.

        Parameters
        ----------
        messages : sequence of {"role": "system" | "user" | "assistant", "content": str}
        add_generation_prompt : bool
            End with "Assistant:", for the model to go on from.

        Returns
        -------
        list of (str, bool)
            The segments in order, and whether the model learns to produce them.

        Raises
        ------
        ValueError
            If a message is malformed, or the tokenizer has a chat template (not rendered yet).
        ImportError
            If the tokenizer has a chat template and jinja2 is not installed.
        """
        _check_messages(messages)
        if self.chat_template is not None:
            way_out = (
                'write the conversation as {"prompt", "completion"} with the markers spelled out, or set '
                "tokenizer.chat_template = None for the plain User:/Assistant: form"
            )
            if importlib.util.find_spec("jinja2") is None:
                raise ImportError(
                    "this tokenizer has a chat template, which takes jinja2 to render (not installed), and this "
                    f"version of tinyllm does not render templates yet: {way_out}"
                )
            raise ValueError(
                "this tokenizer has a chat template, and this version of tinyllm does not render templates yet: "
                + way_out
            )
        segments: list[tuple[str, bool]] = []
        context = ""
        for message in messages:
            context += ROLES[message["role"]] + ":"
            if message["role"] == "assistant":
                segments += [(context, False), (" " + message["content"], True)]
                context = "\n"
            else:
                context += f" {message['content']}\n"
        if add_generation_prompt:
            context += ROLES["assistant"] + ":"
        if context.strip():
            segments.append((context, False))
        return segments

    def _special(self, name: str) -> int | None:
        token = self._config.get(f"{name}_token")
        if isinstance(token, Mapping):  # an AddedToken, written out
            token = token.get("content")
        if isinstance(token, str):
            id: int | None = self._inner.token_to_id(token)
            if id is not None:
                return id
            if name != "pad":  # padding is masked by length here, so a missing pad token harms nobody
                raise ValueError(
                    f"the configuration names {token!r} as {name}_token, which tokenizer.json does not have: "
                    "correct tokenizer_config.json or use the tokenizer.json that belongs to it"
                )
        id = self._config.get(f"{name}_token_id")
        if isinstance(id, list) and id:
            id = id[0]
        if isinstance(id, int) and id >= 0 and self.token(id) is not None:
            return id
        special = {added.content: i for i, added in self._inner.get_added_tokens_decoder().items() if added.special}
        return next((special[usual] for usual in _USUAL[name] if usual in special), None)


def _read_config(folder: Path) -> dict[str, Any]:
    """What the files beside tokenizer.json say, the most specific file winning."""
    config: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise ValueError(f"{name} cannot be read ({error}): fetch or save it again") from error
        if name != "tokenizer_config.json":  # config.json is the model's: take the special tokens and nothing else
            keys = [f"{special}_token{suffix}" for special in _USUAL for suffix in ("", "_id")]
            found = {key: found[key] for key in keys if key in found}
        for key, value in found.items():
            if config.get(key) is None:
                config[key] = value
    template = folder / "chat_template.jinja"
    if "chat_template" not in config and template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    return config


def _template(template: Any) -> str | None:
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError('"messages" must be a list of {"role", "content"} objects with at least one in it')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(f'message {number} must be an object with "role" and "content"')
        if not isinstance(message["role"], str) or message["role"] not in ROLES:
            raise ValueError(f"message {number} has the unknown role {message['role']!r}: use {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            kind = type(message["content"]).__name__
            raise ValueError(f'"content" of message {number} must be a string, not {kind}: write it as plain text')
