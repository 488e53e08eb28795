"""From files to labelled examples."""

from __future__ import annotations

import os
import warnings

import numpy as np

from tinyllm.data.examples import IGNORE, Dataset, Example, fit
from tinyllm.data.records import Record, read_record, read_source, refuse_half_characters
from tinyllm.data.tokenizer import Tokenizer


def load_text(path_or_text: str | os.PathLike[str], tokenizer: Tokenizer, max_seq_len: int | None = None) -> Dataset:
    r"""Read a text file or a file of records into labelled examples.

    * ``.txt``, ``.md``, or the text itself: one running text, every token labelled with the next one. ``\r\n`` reads as
      ``\n``, so that a file means the same on every system. No end-of-text token is put at its end.
    * ``.jsonl``, one record a line: ``{"prompt", "completion"}`` (joined as they are, so write the space between them),
      ``{"messages": [{"role", "content"}, ...]}`` (see `Tokenizer.apply_chat`) or ``{"text"}``. Only completions, the
      assistant's turns and texts are learned, each followed by the end-of-text token, which is learned too. Pieces are
      encoded one by one, because that is how the model meets them: the prompt is encoded before there is an answer.
      Where the tokenizer has a chat template, the conversation is encoded as the template writes it, once and with
      nothing added: it brings its own beginning of text and its own end markers. Only a template that ends an answer
      with nothing gets the end-of-text token after the last one.

    Either may be compressed (``.gz``). Other keys of a record are ignored; blank lines too.

    Parameters
    ----------
    path_or_text : path or str
        A str is a path if it names a file, has one of the suffixes above or has no white space; otherwise it is text.
    tokenizer : Tokenizer
    max_seq_len : int, optional
        Cut to this length at once (see `fit`); `Loader` does it otherwise.

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
    if kind == "text":
        tokens = np.array(_encode(text, tokenizer), dtype=np.int64)
        dataset = Dataset((Example(tokens[:-1], tokens[1:]),), plain=True)
    else:
        if tokenizer.eos_id is None:
            raise ValueError(
                "the tokenizer has no end-of-text token, so the model could not learn where an answer ends: "
                "name one as eos_token in tokenizer_config.json"
            )
        examples = []
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 is legal inside a JSON string
            if line.strip():
                try:
                    examples.append(_label(read_record(line, tokenizer), tokenizer))
                except ValueError as error:
                    raise ValueError(f"{name}, line {number}: {error}") from error
        dataset = Dataset(tuple(examples), notes=tokenizer.chat_notes)
        for note in dataset.notes:
            warnings.warn(f"{name}: {note}", stacklevel=2)
    try:
        return fit(dataset, max_seq_len)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    refuse_half_characters(text)
    return tokenizer.encode(text)


def _label(record: Record, tokenizer: Tokenizer) -> Example:
    if record.templated:  # the template is all there is: it writes the beginning and the ends, or there are none
        refuse_half_characters("".join(text for text, _ in record.segments))
        ids, learned = tokenizer.encode_segments(record.segments)
        if ids and learned[-1] and not tokenizer.is_unit(ids[-1]) and tokenizer.eos_id is not None:
            ids, learned = [*ids, tokenizer.eos_id], [*learned, True]
    else:
        ids, learned = [], []
        if tokenizer.adds_bos and tokenizer.bos_id is not None:
            ids, learned = [tokenizer.bos_id], [False]
        for text, trainable in record.segments:
            tokens = _encode(text, tokenizer)
            if trainable and tokenizer.eos_id is not None:
                tokens = [*tokens, tokenizer.eos_id]
            ids += tokens
            learned += [trainable] * len(tokens)
    following = np.array([*ids[1:], IGNORE])[: len(ids)]
    live = np.array([*learned[1:], False])[: len(ids)]
    return Example(np.array(ids, dtype=np.int64), np.where(live, following, IGNORE))
