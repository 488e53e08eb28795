"""Files of text and of records: reading them, and what of a record is learned."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from tinyllm.data.tokenizer import Tokenizer

PLAIN, LINES = (".txt", ".md"), (".jsonl",)
FORMATS = "give a .jsonl, .txt or .md file (each may end in .gz too)"


class Record(NamedTuple):
    """The texts of one record, whether each is learned, and whether a chat template wrote them."""

    segments: list[tuple[str, bool]]
    templated: bool


def read_source(source: str | os.PathLike[str]) -> tuple[str, str, str]:
    """The name for messages, "text" or "lines", and the content."""
    if isinstance(source, str):
        known = source.lower().removesuffix(".gz").endswith(PLAIN + LINES)
        one_line = "\n" not in source
        if not (one_line and (known or len(source.split()) == 1 or os.path.exists(source))):
            return "the text", "text", source
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: {FORMATS}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: check the path ({FORMATS})")
    bare = path.name.lower().removesuffix(".gz")
    if not bare.endswith(PLAIN + LINES):
        raise ValueError(f"{path} is of no known kind: {FORMATS}")
    content = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file ({error}): compress or fetch it again") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not valid UTF-8: save the file as UTF-8"
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return str(path), "lines" if bare.endswith(LINES) else "text", text


def read_record(line: str, tokenizer: Tokenizer) -> Record:
    """One line of a .jsonl file."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"this is not valid JSON ({error.msg} at column {error.colno}): write one JSON object a line"
        ) from error
    except RecursionError as error:
        raise ValueError("this JSON is nested too deeply: write one flat JSON object a line") from error
    if not isinstance(record, dict):
        raise ValueError(f"this is a JSON {type(record).__name__}: write one JSON object a line")
    forms = [form for form in (("prompt", "completion"), ("messages",), ("text",)) if set(form) & set(record)]
    wanted = '{"prompt", "completion"}, {"messages"} or {"text"}'
    if not forms:
        raise ValueError(f"the record has the keys {sorted(record)}: write {wanted}")
    if len(forms) > 1:
        both = " and ".join(f'"{key}"' for form in forms for key in form if key in record)
        raise ValueError(f"the record has {both}, so what to learn is unclear: write only one of {wanted}")
    if forms[0] == ("messages",):
        segments = tokenizer.apply_chat(record["messages"])
        if not any(trainable for _, trainable in segments):
            raise ValueError("the conversation has no assistant turn to learn from: add one or remove the line")
        return Record(segments, tokenizer.chat_template is not None)
    for key in forms[0]:
        if key not in record:
            raise ValueError(f'the record lacks "{key}": add it ("prompt" and "completion" go together)')
        if not isinstance(record[key], str):
            raise ValueError(f'"{key}" must be a string, not {type(record[key]).__name__}: write it as plain text')
    return Record([(record[key], key != "prompt") for key in forms[0]], templated=False)


def refuse_half_characters(text: str) -> None:
    """Raise a ValueError for half a surrogate pair, which JSON can spell and which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has half a surrogate pair ({text[error.start]!r}): remove it") from error
