"""What the user should know about a file of texts: one sentence each, with the lines that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from tinyllm.data.examples import Example
from tinyllm.data.records import Record
from tinyllm.data.tokenizer import Tokenizer

NAMED = 8  # keys that one note names


class Notes:
    """Gathers what there is to say while a file is read, line by line."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._spelled: dict[int, str] = {}
        self._otherwise: list[int] = []
        self._twice: list[int] = []
        self._unused: dict[str, int] = {}
        self._unwritten: dict[str, list[int]] = {}
        self._unknown: list[int] = []

    def add(self, line: int, record: Record, example: Example) -> None:
        """Look at the record in `line`, counted from 1, and what became of it."""
        if record.marker is not None:
            self._spelled[line] = record.marker
        if not record.templated:
            ids = example.ids.tolist()
            if _asked_otherwise(record, ids, self._tokenizer):
                self._otherwise.append(line)
            if begins_twice(ids, self._tokenizer):
                self._twice.append(line)
        for role in record.unwritten:
            self._unwritten.setdefault(role, []).append(line)
        if has_unknown(example.ids, self._tokenizer):
            self._unknown.append(line)
        for key in record.unused:
            self._unused.setdefault(key, line)

    def sentences(self) -> tuple[str, ...]:
        """All notes, those of the chat template first."""
        notes = list(self._tokenizer.chat_notes)
        if self._spelled:
            marker = next(iter(self._spelled.values()))
            notes.append(
                f"{_where(list(self._spelled))} the prompt spells out {marker}, a marker of the chat template, so "
                "prompt and completion are joined there as they are"
            )
        if self._otherwise:
            notes.append(
                f"{_where(self._otherwise)} the end of the prompt and the beginning of the answer are one token, so "
                "the prompt alone is asked otherwise than it was learned: a prompt should not end with a space"
            )
        if self._twice:
            notes.append(f"{_where(self._twice)} {beginning_twice(self._tokenizer)}")
        for role, lines in self._unwritten.items():
            notes.append(f"{_where(lines)} the chat template leaves out or changes what the {role} writes")
        if self._unknown:
            notes.append(f"{_where(self._unknown)} {unknown(self._tokenizer)}")
        if self._unused:
            named = [f'"{key}" (line {line})' for key, line in list(self._unused.items())[:NAMED]]
            more = f" and {len(self._unused) - NAMED} more" if len(self._unused) > NAMED else ""
            notes.append(f"keys that change nothing here: {', '.join(named)}{more}")
        return (*notes, *larger_tokenizer(self._tokenizer, self._vocab_size))


def larger_tokenizer(tokenizer: Tokenizer, vocab_size: int | None) -> list[str]:
    """A note if the tokenizer has tokens that the model does not have."""
    if vocab_size is None or tokenizer.vocab_size <= vocab_size:
        return []
    return [
        f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model {vocab_size:,}: a text with one of the "
        "others is refused"
    ]


def has_unknown(ids: np.ndarray, tokenizer: Tokenizer) -> bool:
    """Whether a text has what the vocabulary lacks."""
    return tokenizer.unk_id is not None and bool((ids == tokenizer.unk_id).any())


def unknown(tokenizer: Tokenizer) -> str:
    """The sentence about such a text, from its subject on."""
    token = "" if tokenizer.unk_id is None else tokenizer.token(tokenizer.unk_id)
    return f"the text has characters that the vocabulary lacks: each is learned as {token}"


def begins_twice(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a text that is begun as all texts are spells the beginning out besides."""
    begin = list(tokenizer.begin_ids)
    return bool(begin) and list(ids[: 2 * len(begin)]) == begin * 2


def beginning_twice(tokenizer: Tokenizer) -> str:
    """The sentence about such a text, from its subject on."""
    begin = "".join(str(tokenizer.token(id)) for id in tokenizer.begin_ids)
    return f"the text begins with {begin} twice: the tokenizer puts it before every text, so leave it out of yours"


def _asked_otherwise(record: Record, ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the prompt alone, as a model is asked it, is encoded otherwise than before its answer."""
    prompt = list(takewhile(lambda piece: not piece[1], record.segments))
    if not prompt or len(prompt) == len(record.segments):
        return False
    asked, _ = tokenizer.encode_segments(prompt, templated=False)
    return asked != list(ids[: len(asked)])


def _where(lines: Sequence[int]) -> str:
    return f"in line {lines[0]}" if len(lines) == 1 else f"in {len(lines)} lines (the first is {lines[0]})"
