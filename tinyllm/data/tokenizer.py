"""Text to token ids and back: the `tokenizers` library, and a checkpoint folder's special tokens.

`tokenizers` is imported only when a tokenizer is loaded.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm.data.chat import ChatTemplate, check_messages, plain_chat
from tinyllm.data.special_tokens import NAMES, USUAL, default_template, read_config
from tinyllm.formats.atomic import write_text

__all__ = ["Tokenizer"]

PIECE = 1 << 16  # characters encoded at once where that changes nothing: `tokenizers` keeps about 200 bytes a token


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
        self._compiled: tuple[str, ChatTemplate] | None = None
        self._config = dict(config or {})
        self.eos_id = self._special("eos")
        self.bos_id = self._special("bos")
        self.pad_id = self._special("pad")
        self.chat_template = default_template(self._config.get("chat_template"))
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
            files beside it); or a GGUF file.

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
        if file.suffix == ".gguf":
            from tinyllm.data.gguf_tokenizer import rebuild

            return cls(*rebuild(file))
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError("reading a tokenizer needs the `tokenizers` package: pip install tokenizers") from error
        try:
            inner = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{file} is not a tokenizer.json file ({error}): fetch or save it again") from error
        config = read_config(file.parent) if file.name == "tokenizer.json" else None
        try:
            return cls(inner, config)
        except ValueError as error:
            raise ValueError(f"{file.parent}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; nothing is added at either end.

        Special tokens written out in the text (`<|endoftext|>`) become their ids, as in Hugging Face's tokenizers.
        """
        if len(text) <= PIECE or not self._parts_at_lines:
            return list(self._inner.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        start = 0
        while start < len(text):
            end = _line_start(text, start + PIECE)
            ids += self._inner.encode(text[start:end], add_special_tokens=False).ids
            start = end
        return ids

    def encode_segments(self, segments: Sequence[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation, and which of them are learned.

        The conversation is encoded once, as a whole, as every program does that talks to the model; so pieces that
        would be encoded otherwise alone (SentencePiece puts a space before each) cannot go wrong. The characters that a
        token stands for decide: a token is learned if any of them is, as in transformers' assistant masks. Only a
        special token that begins before a learned segment is not: it belongs to the header, although some special
        tokens take the white space after them along.

        Parameters
        ----------
        segments : sequence of (str, bool)
            What `apply_chat` returned.

        Returns
        -------
        ids : list of int
        learned : list of bool
        """
        encoding = self._inner.encode("".join(text for text, _ in segments), add_special_tokens=False)
        spans: list[tuple[int, int]] = []
        end = 0
        for text, trainable in segments:
            start, end = end, end + len(text)
            if trainable and text:
                spans.append((start, end))
        learned: list[bool] = []
        here = done = 0
        for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            # Byte-level tokenizers may leave the space of " word" out of its offsets: what no token claimed is its own.
            start = min(start, done)
            done = max(done, end)
            while here < len(spans) and spans[here][1] <= start:
                here += 1
            inside = here < len(spans) and spans[here][0] < max(end, start + 1)
            learned.append(inside and not (id in self._units and start < spans[here][0]))
        return list(encoding.ids), learned

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
        # Templates may ask for bos_token: one that only the model's configuration knows stays there.
        config["bos_token"] = self._names().get("bos_token")
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
            If a message is malformed, or the chat template refuses the conversation, fails, or does not show which
            part of it the assistant writes (see `data/chat.py`).
        ImportError
            If the tokenizer has a chat template and jinja2 is not installed.
        """
        checked = check_messages(messages)
        if self.chat_template is None:
            return plain_chat(checked, add_generation_prompt)
        return self._template.segments(checked, add_generation_prompt)

    @property
    def chat_notes(self) -> tuple[str, ...]:
        """What the user should know about the conversations laid out so far: one sentence each."""
        return () if self.chat_template is None else tuple(self._template.notes)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: end of text, and the chat template's end marker."""
        ids = [] if self.eos_id is None else [self.eos_id]
        marker = None if self.chat_template is None else self._template.end_marker
        id = None if marker is None else self._inner.token_to_id(marker)
        return tuple(dict.fromkeys([*ids, *([] if id is None else [id])]))

    def is_unit(self, id: int) -> bool:
        """Whether `id` is an added token, which no text around it can change: a special token, a chat marker."""
        return id in self._units

    @property
    def _template(self) -> ChatTemplate:
        if self.chat_template is None:
            raise ValueError("the tokenizer has no chat template")
        if self._compiled is None or self._compiled[0] != self.chat_template:
            template = ChatTemplate(self.chat_template, self._names(), self._units.values())
            self._compiled = self.chat_template, template
        return self._compiled[1]

    def _names(self) -> dict[str, str]:
        """The special tokens that a template may name: those the configuration names, as in transformers."""
        named = {f"{name}_token": _spelled(self._config.get(f"{name}_token")) for name in NAMES}
        for name, id in (("eos", self.eos_id), ("bos", self.bos_id if self.adds_bos else None), ("pad", self.pad_id)):
            named[f"{name}_token"] = named[f"{name}_token"] or (None if id is None else self.token(id))
        return {name: token for name, token in named.items() if token is not None}

    @functools.cached_property
    def _units(self) -> dict[int, str]:
        return {id: added.content for id, added in self._inner.get_added_tokens_decoder().items()}

    @functools.cached_property
    def _parts_at_lines(self) -> bool:
        """Whether a text may be cut before a line that begins with a letter or digit, and encoded in pieces.

        So it is for GPT-2's own expression, which ends a piece there, with nothing before or after it that looks
        further: no normaliser, and no added token that reaches across the end of a line.
        """
        parts = json.loads(self._inner.to_str())
        cut = parts["pre_tokenizer"] or {}
        plain = cut.get("type") == "ByteLevel" and cut.get("use_regex") is True and not cut.get("add_prefix_space")
        added = self._inner.get_added_tokens_decoder().values()
        return (
            plain
            and parts["normalizer"] is None
            and not any(token.lstrip or token.rstrip or token.single_word or "\n" in token.content for token in added)
        )

    def _special(self, name: str) -> int | None:
        token = self._config.get(f"{name}_token")
        token = _spelled(token)
        if token is not None:
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
        return next((special[usual] for usual in USUAL[name] if usual in special), None)


def _spelled(token: Any) -> str | None:
    """A token as a configuration gives it: a string, or an AddedToken written out."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _line_start(text: str, start: int) -> int:
    """The first place from `start` on, just after a line's end, that has a word before the end and one after it.

    White space on either side would be cut otherwise there: GPT-2's expression takes a run of it apart only before a
    word.
    """
    while True:
        start = text.find("\n", start) + 1
        if start == 0 or start == len(text):
            return len(text)
        before = text[start - 2 : start - 1]
        if text[start].isalnum() and (before.isalnum() or before in tuple(".,;:!?")):
            return start
