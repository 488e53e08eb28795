"""From files to labelled examples."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence

import numpy as np

from tinyllm.data.examples import IGNORE, Dataset, Example, fit
from tinyllm.data.notes import Notes, beginning_twice, begins_twice, has_unknown, larger_tokenizer, unknown
from tinyllm.data.records import PLAIN_CHAT, TEMPLATE, Record, read_record, read_source, refuse_half_characters
from tinyllm.data.tokenizer import Tokenizer


def load_text(
    path_or_text: str | os.PathLike[str],
    tokenizer: Tokenizer,
    max_seq_len: int | None = None,
    *,
    template: bool = True,
    vocab_size: int | None = None,
) -> Dataset:
    r"""Read a text file or a file of records into labelled examples.

    * ``.txt``, ``.md``, or the text itself: one running text, every token labelled with the next one. ``\r\n`` reads as
      ``\n``, so that a file means the same on every system. No end-of-text token is put at its end.
    * ``.jsonl``, one record a line: ``{"prompt", "completion"}``, ``{"messages": [{"role", "content"}, ...]}`` (see
      `Tokenizer.apply_chat`) or ``{"text"}``. Only completions, the assistant's turns and texts are learned, each
      followed by the end-of-text token, which is learned too.

    Where the tokenizer has a chat template, it writes conversations and also prompts and completions, as a question and
    its answer; without one prompt and completion are joined as they are, so write the space between them. A template
    brings its own beginning of text and its own end markers. Only one that ends an answer with nothing gets the
    end-of-text token after the last one. A prompt that spells out the template's markers stands as it is.

    Every text is encoded once, as a whole (see `Tokenizer.encode_segments`), and begins as texts for this tokenizer do.
    A conversation or prompt may have a ``"system"``, and a record or an answer ``"weight": 0`` or ``"train": false``:
    it is not learned then. Other keys of a record are ignored, and a note says so; blank lines are, too. Any file may
    be compressed (``.gz``).

    Parameters
    ----------
    path_or_text : path or str
        A str is a path if it names a file, has one of the suffixes above or has no white space; otherwise it is text.
    tokenizer : Tokenizer
    max_seq_len : int, optional
        Cut to this length at once (see `fit`); `Loader` does it otherwise.
    template : bool
        Whether to use the tokenizer's chat template.
    vocab_size : int, optional
        How many tokens the model has: a token beyond them is refused.

    Returns
    -------
    Dataset
        The running text as one long example, or its windows; or one example a record.

    Raises
    ------
    FileNotFoundError
        If the path names no file.
    ValueError
        If the content is not what it should be (the message names file, line and remedy), or teaches nothing.
    """
    name, kind, text = read_source(path_or_text)
    if not text.strip():
        raise ValueError(f"{name} is empty: put some text into it")
    tokenizer = untemplated(tokenizer) if not template else copy.copy(tokenizer)
    tokenizer._compiled = None  # the template's notes are of this file
    dataset = (_running_text if kind == "text" else _records)(name, text, tokenizer, vocab_size)
    for note in dataset.notes:
        warnings.warn(f"{name}: {note}", stacklevel=2)
    try:
        return fit(dataset, max_seq_len)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def untemplated(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without its chat template; the one that is given keeps it."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = None
    return tokenizer


def refuse_ids_beyond(ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer, vocab_size: int | None) -> None:
    """Raise a ValueError that names the first token of `ids` that a model of `vocab_size` tokens does not have."""
    if vocab_size is None:
        return
    beyond = np.flatnonzero(np.asarray(ids) >= vocab_size)
    if len(beyond):
        id = int(ids[beyond[0]])
        raise ValueError(
            f"the text has the token {tokenizer.token(id)!r}, whose id {id} is beyond the model's {vocab_size:,} "
            f"tokens (0 to {vocab_size - 1}): use the tokenizer that belongs to the model, or take the token out"
        )


def _running_text(name: str, text: str, tokenizer: Tokenizer, vocab_size: int | None) -> Dataset:
    refuse_half_characters(text)
    ids = tokenizer.encode_prompt(text)
    try:
        refuse_ids_beyond(ids, tokenizer, vocab_size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    tokens = np.array(ids, dtype=np.int64)
    notes = [beginning_twice(tokenizer)] if begins_twice(ids, tokenizer) else []
    notes += [unknown(tokenizer)] if has_unknown(tokens, tokenizer) else []
    notes += larger_tokenizer(tokenizer, vocab_size)
    return Dataset((Example(tokens[:-1], tokens[1:]),), plain=True, notes=tuple(notes))


def _records(name: str, text: str, tokenizer: Tokenizer, vocab_size: int | None) -> Dataset:
    if tokenizer.eos_id is None:
        raise ValueError(
            "the tokenizer has no end-of-text token, so the model could not learn where an answer ends: "
            "name one as eos_token in tokenizer_config.json"
        )
    notes = Notes(tokenizer, vocab_size)
    examples, forms, masked = [], [], 0
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 is legal inside a JSON string
        if not line.strip():
            continue
        try:
            record = read_record(line, tokenizer)
            example = _label(record, tokenizer)
            refuse_ids_beyond(example.ids, tokenizer, vocab_size)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
        notes.add(number, record, example)
        examples.append(example)
        forms.append(record.form)
        masked += record.masked
    chat = all(form.endswith((TEMPLATE, PLAIN_CHAT)) for form in forms)
    return Dataset(
        tuple(examples), masked=masked, forms=tuple(dict.fromkeys(forms)), chat=chat, notes=notes.sentences()
    )


def _label(record: Record, tokenizer: Tokenizer) -> Example:
    refuse_half_characters("".join(text for text, _ in record.segments))
    ids, learned = tokenizer.encode_segments(record.segments, record.templated)
    following = np.array([*ids[1:], IGNORE])[: len(ids)]
    live = np.array([*learned[1:], False])[: len(ids)]
    return Example(np.array(ids, dtype=np.int64), np.where(live, following, IGNORE))
