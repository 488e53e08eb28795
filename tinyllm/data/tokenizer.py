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

from tinyllm.data import labels, pieces, special_tokens
from tinyllm.data.chat import ChatTemplate
from tinyllm.data.messages import check_messages, plain_chat
from tinyllm.data.special_tokens import NAMES, USUAL, default_template, find, spelled
from tinyllm.formats.atomic import make_folder, write_text
from tinyllm.formats.foreign import refuse_pointer
from tinyllm.models.checkpoints import named

__all__ = ["Tokenizer"]


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
    eos_id, bos_id, pad_id, unk_id : int or None
        End of text, beginning of text, padding, what the vocabulary lacks; None where there is no such token.
    begin_ids : tuple of int
        What texts for this model start with: `bos_id` or nothing as `add_bos_token` says, or else what the tokenizer's
        own post-processor puts there. `encode` never adds it.
    adds_bos : bool
        Whether `bos_id` is among them.
    chat_template : str or None
        The checkpoint's Jinja template. Set it to None to use the plain form of `apply_chat`.
    """

    def __init__(self, inner: Any, config: Mapping[str, Any] | None = None) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._compiled: tuple[str, ChatTemplate] | None = None
        self._config = dict(config or {})
        self.eos_id, self.bos_id, self.pad_id, self.unk_id = (find(inner, self._config, name) for name in USUAL)
        self.chat_template = special_tokens.default_template(self._config.get("chat_template"))
        special_tokens.make_units(inner, self._config, self.eos_id)
        self.begin_ids = special_tokens.beginning(inner, self._config, self.bos_id)
        self.adds_bos = self.bos_id in self.begin_ids

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer from a checkpoint folder, or from a tokenizer file.

        Parameters
        ----------
        path : str or path
            A folder with tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json, config.json
            and chat_template.jinja; or a file in tokenizer.json's format (one named tokenizer.json is read with the
            files beside it); or a GGUF file; or ``base`` or the name of a fetched model.

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
        file = Path(named.find(path))
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
        refuse_pointer(file)
        try:
            inner = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{file} is not a tokenizer.json file ({error}): fetch or save it again") from error
        config = special_tokens.read_config(file.parent) if file.name == "tokenizer.json" else None
        try:
            return cls(inner, config)
        except ValueError as error:
            raise ValueError(f"{file.parent}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; nothing is added at either end.

        Special tokens written out in the text (`<|endoftext|>`) become their ids, as in Hugging Face's tokenizers.
        """
        parts = [text] if len(text) <= pieces.PIECE or not self._may_be_cut else pieces.pieces(text)
        return [id for part in parts for id in self._inner.encode(part, add_special_tokens=False).ids]

    def encode_segments(
        self, segments: Sequence[tuple[str, bool]], templated: bool = True
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of a text and which of them are learned; every text that is trained on or asked comes by here.

        The text is encoded once, as a whole, as transformers does, and what is learned follows from the characters that
        a token stands for: pieces that would be encoded otherwise alone (SentencePiece puts a space before each) cannot
        go wrong.

        Parameters
        ----------
        segments : sequence of (str, bool)
            Pieces of the text, and whether each is learned.
        templated : bool
            Whether a chat template wrote them: then nothing is put before them, and an end of text only where the last
            is learned and has no end of its own. Otherwise `begin_ids` come first, and the end of text follows each
            learned piece that does not end with it.

        Returns
        -------
        ids : list of int
        learned : list of bool
        """
        end = self._end
        if not templated and end:
            segments = [(text + end if on and not text.endswith(end) else text, on) for text, on in segments]
        text = "".join(text for text, _ in segments)
        if all(on for _, on in segments) or not any(on for _, on in segments):  # offsets take memory
            ids = self.encode(text)
            learned = [bool(segments) and segments[0][1]] * len(ids)
        else:
            encoding = self._inner.encode(text, add_special_tokens=False)
            ids = list(encoding.ids)
            learned = labels.learned_tokens(ids, encoding.offsets, list(segments), self._units)
        if not templated:
            return [*self.begin_ids, *ids], [False] * len(self.begin_ids) + learned
        if self.eos_id is not None and ids and learned[-1] and not self.is_unit(ids[-1]):
            return [*ids, self.eos_id], [*learned, True]
        return ids, learned

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that a model is to go on from, which begins as texts do in training."""
        return self.encode_segments([(text, False)], templated=False)[0]

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of a conversation that a model is to answer, as they stand before the answer in training."""
        segments = self.apply_chat(messages, add_generation_prompt=True)
        return self.encode_segments(segments, templated=self.chat_template is not None)[0]

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

    def decode_after(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` add to `prompt`: SentencePiece takes the space away from a text that begins with one."""
        before, whole = self.decode(prompt), self.decode([*prompt, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.decode(ids)

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
        folder = make_folder(folder)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        for name, id in (("eos", self.eos_id), ("bos", self.bos_id), ("pad", self.pad_id)):
            config.pop(f"{name}_token_id", None)
            config[f"{name}_token"] = None if id is None else self.token(id)
        # Templates may ask for bos_token: one that only the model's configuration knows stays there.
        config["bos_token"] = self._names().get("bos_token")
        config["add_bos_token"] = self.adds_bos
        given = self._config.get("chat_template")  # perhaps several, by name
        config["chat_template"] = given if default_template(given) == self.chat_template else self.chat_template
        write_text(folder / "tokenizer.json", self._inner.to_str(pretty=True))
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        special_tokens.renew_template(folder, self.chat_template)

    def apply_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
    ) -> list[tuple[str, bool]]:
        r"""Lay a conversation out as segments of text.

        The plain form, for tokenizers without a chat template, where ⏎ is a newline and ``<eos>`` is put by whoever
        encodes the segments, after each trainable one::

            System: Be brief.⏎User: Hello⏎Assistant: Hi!<eos>⏎User: Bye⏎Assistant: Bye!<eos>

        Only the answers are trainable, from the space after the colon on: in byte-level vocabularies that space belongs
        to the answer's first token. An answer with ``"weight": 0`` (or "train": false) is context.

        Parameters
        ----------
        messages : sequence of {"role": "system" | "user" | "assistant", "content": str}
            An answer with ``"weight": 0`` (or "train": false) is context.
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
        checked, learned = check_messages(messages)
        if self.chat_template is None:
            return plain_chat(checked, learned, self._end, add_generation_prompt)
        return self._template.segments(checked, learned, add_generation_prompt)

    def template_marker(self, text: str) -> str | None:
        """A marker of the chat template's that `text` spells out, or None."""
        markers = () if self.chat_template is None else self._template.markers
        return next((marker for marker in markers if marker in text), None)

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
    def _end(self) -> str:
        """The end of text as a text spells it out; "" where there is none."""
        return "" if self.eos_id is None else self._units[self.eos_id]

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
        named = {f"{name}_token": spelled(self._config.get(f"{name}_token")) for name in NAMES}
        for name, id in (("eos", self.eos_id), ("bos", self.bos_id if self.adds_bos else None), ("pad", self.pad_id)):
            named[f"{name}_token"] = named[f"{name}_token"] or (None if id is None else self.token(id))
        return {name: token for name, token in named.items() if token is not None}

    @functools.cached_property
    def _units(self) -> dict[int, str]:
        return {id: added.content for id, added in self._inner.get_added_tokens_decoder().items()}

    @functools.cached_property
    def _may_be_cut(self) -> bool:
        return pieces.may_be_cut(self._inner)
