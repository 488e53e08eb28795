"""Files of text and of records: reading them, and what of a record is learned."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm.data.chat import THINKING
from tinyllm.data.messages import MARKS, Segments, is_learned
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats.foreign import refuse_pointer

PLAIN, LINES = (".txt", ".md"), (".jsonl",)
FORMATS = "give a .jsonl, .txt or .md file (each may end in .gz too)"


TEMPLATE, PLAIN_CHAT = "the tokenizer's chat template", "the plain User:/Assistant: form"
# Keys that change what a model sees or learns, and which nothing here understands.
REFUSED = ("tools", "functions", "documents", "images", "chat_template_kwargs", "completion_mask", "assistant_masks")


class Record(NamedTuple):
    """One record's text.

    Attributes
    ----------
    segments : list of (str, bool)
        Its pieces, and whether each is learned.
    templated : bool
        Whether a chat template wrote them.
    form : str
        How the text came about, for the user.
    masked : int
        Answers that a key of theirs keeps from being learned.
    unused : tuple of str
        Keys that made no difference.
    marker : str or None
        The chat template's marker that the prompt spells out, and for which it stands as it is.
    unwritten : tuple of str
        Roles, the assistant's aside, of messages that the chat template leaves out or changes.
    """

    segments: Segments
    templated: bool
    form: str
    masked: int = 0
    unused: tuple[str, ...] = ()
    marker: str | None = None
    unwritten: tuple[str, ...] = ()


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
    refuse_pointer(path, pages=False)
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
    record = _object(line)
    form = _form(record)
    for key in REFUSED if form != ("text",) else ():
        if record.get(key):
            raise ValueError(
                f'the record has "{key}", which is not supported: take the key away, or leave the record out'
            )
    wanted = is_learned(record, "the record")
    unused = [key for key in record if key not in (*form, *MARKS, "system") and record[key] is not None]
    if form == ("messages",):
        made = _conversation(record["messages"], record.get("system"), tokenizer)
    else:
        made = _prompt_and_completion(record, tokenizer) if len(form) == 2 else _text(record)
    if not wanted:
        answers = max(1, made.masked + sum(on for _, on in made.segments))
        made = made._replace(segments=[(text, False) for text, _ in made.segments], masked=answers)
    return made._replace(unused=(*unused, *made.unused))


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"this is not valid JSON ({error.msg} at column {error.colno}): write one JSON object a line"
        ) from error
    except RecursionError as error:
        raise ValueError("this JSON is nested too deeply: write one flat JSON object a line") from error
    if not isinstance(record, dict):
        raise ValueError(f"this is a JSON {type(record).__name__}: write one JSON object a line")
    return record


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'"{key}" stands twice in one object, and only one can count: remove the other')
        found[key] = value
    return found


def _form(record: dict[str, Any]) -> tuple[str, ...]:
    """The keys of the one form that the record has."""
    forms = [form for form in (("prompt", "completion"), ("messages",), ("text",)) if set(form) & set(record)]
    wanted = '{"prompt", "completion"}, {"messages"} or {"text"}'
    if not forms:
        raise ValueError(f"the record has the keys {sorted(record)}: write {wanted}")
    if len(forms) > 1:
        both = " and ".join(f'"{key}"' for form in forms for key in form if key in record)
        raise ValueError(f"the record has {both}, so what to learn is unclear: write only one of {wanted}")
    for key in forms[0] if forms[0] != ("messages",) else ():
        if key not in record:
            raise ValueError(f'the record lacks "{key}": add it ("prompt" and "completion" go together)')
        if not isinstance(record[key], str):
            raise ValueError(f'"{key}" must be a string, not {type(record[key]).__name__}: write it as plain text')
    return forms[0]


def _conversation(messages: Any, system: Any, tokenizer: Tokenizer) -> Record:
    if system and isinstance(messages, list):
        if any(_role(message) == "system" for message in messages):
            raise ValueError('the record has "system" and a system message: leave one of them out')
        messages = [_system(system), *messages]
    segments = tokenizer.apply_chat(messages)
    answers = [message for message in messages if _role(message) == "assistant"]
    if not answers:
        raise ValueError("the conversation has no assistant turn to learn from: add one or remove the line")
    masked = sum(not is_learned(message, "a message") for message in answers)
    templated = tokenizer.chat_template is not None
    form = f"conversations are written in {TEMPLATE if templated else PLAIN_CHAT}"
    unused = _unused_in(messages, tokenizer.chat_template)
    return Record(segments, templated, form, masked, unused, unwritten=_unwritten(messages, segments))


def _prompt_and_completion(record: dict[str, Any], tokenizer: Tokenizer) -> Record:
    prompt, completion, system = record["prompt"], record["completion"], record.get("system")
    marker = tokenizer.template_marker(prompt)
    if tokenizer.chat_template is not None and marker is None:
        question = [_system(system)] if system else []
        question += [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        segments = tokenizer.apply_chat(question)
        form = f"prompts and completions are written in {TEMPLATE}"
        return Record(segments, True, form, unwritten=_unwritten(question, segments))
    if system:
        raise ValueError(
            '"system" has no place where prompt and completion are joined as they are: write it into the prompt'
        )
    form = "prompts and completions are joined as they are"
    return Record([(prompt, False), (completion, True)], False, form, marker=marker)


def _text(record: dict[str, Any]) -> Record:
    if record.get("system"):
        raise ValueError('"system" has no place beside "text": write it into the text')
    return Record([(record["text"], True)], False, "texts stand as they are")


def _system(content: Any) -> dict[str, str]:
    if not isinstance(content, str):
        raise ValueError(f'"system" must be a string, not {type(content).__name__}: write it as plain text')
    return {"role": "system", "content": content}


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _unwritten(messages: list[dict[str, Any]], segments: Segments) -> tuple[str, ...]:
    text = "".join(piece for piece, _ in segments)
    roles = {
        message["role"]: None
        for message in messages
        if isinstance(message["content"], str) and message["content"].strip() not in text
    }
    return tuple(role for role in roles if role != "assistant")


def _unused_in(messages: list[dict[str, Any]], template: str | None) -> tuple[str, ...]:
    """Keys of the messages that the template does not name, and nothing else looks at."""
    keys = {key: None for message in messages for key, value in message.items() if value is not None}
    unused = [key for key in keys if key not in ("role", "content", *MARKS)]
    if template is not None:
        unused = [
            key for key in unused if not any(name in template for name in (THINKING if key in THINKING else (key,)))
        ]
    return tuple(f"messages: {key}" for key in unused)


def refuse_half_characters(text: str) -> None:
    """Raise a ValueError for half a surrogate pair, which JSON can spell and which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has half a surrogate pair ({text[error.start]!r}): remove it") from error
