"""Conversations as they are written down: checking them, which answers are learned, and the form without a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}
MARKS = ("weight", "train", "training", "trainable", "loss", "learn")  # 0 or false: this is not to be learned
# As other programs say it, which is not understood here.
FINER_MARKS = (
    "mask", "masked", "loss_mask", "loss_weight", "loss_scale", "train_detail", "training_detail", "ignore_loss",
)  # fmt: skip
Segments = list[tuple[str, bool]]


def check_messages(messages: Any) -> tuple[list[dict[str, Any]], list[bool]]:
    """The messages as plain dictionaries with a string as their content, and which of them are learned.

    The assistant's are, but for those that have 0 or false as their "weight", "train" or another of `MARKS`.

    Raises
    ------
    ValueError
        If there are none, or one has no or an unknown role, calls a tool, has content other than text, or says in an
        unknown way whether it is to be learned.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError('"messages" must be a list of {"role", "content"} objects with at least one in it')
    checked, learned = [], []
    for number, message in enumerate(messages, 1):
        content = _content(message, number)
        wanted = is_learned(message, f"message {number}")
        if wanted and message["role"] != "assistant":
            asking = [key for key in MARKS[1:] if message.get(key)]
            if asking:
                raise ValueError(
                    f'message {number} asks to be learned ("{asking[0]}"), but only the assistant\'s are: take the key '
                    "away"
                )
        learned.append(wanted and message["role"] == "assistant")
        others = {str(key): value for key, value in message.items() if isinstance(value, (str, bool, int, float))}
        checked.append({key: value for key, value in others.items() if key not in MARKS} | {"content": content})
    return checked, learned


def _content(message: Any, number: int) -> str:
    if isinstance(message, Mapping) and (
        message.get("tool_calls") or message.get("function_call") or message.get("role") in ("tool", "function")
    ):
        raise ValueError(
            f'message {number} is a tool call, which is not supported: write the conversation as {{"prompt", '
            '"completion"} with the markers spelled out in the prompt'
        )
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise ValueError(f'message {number} must be an object with "role" and "content"')
    if not isinstance(message["role"], str) or message["role"] not in ROLES:
        raise ValueError(f"message {number} has the unknown role {message['role']!r}: use {', '.join(ROLES)}")
    content = message["content"]
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content) and content:
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'"content" of message {number} has parts other than text: leave those out')
        content = "".join(map(str, texts))
    if not isinstance(content, str):
        kind = type(content).__name__
        raise ValueError(f'"content" of message {number} must be a string, not {kind}: write it as plain text')
    return content


def is_learned(marked: Mapping[str, Any], what: str) -> bool:
    """Whether a message or record is to be learned, as far as its own keys say.

    Raises
    ------
    ValueError
        If a key says so in a way that is not understood: a weight of 0.5, marks for parts of a text.
    """
    for key in FINER_MARKS:
        if marked.get(key) is not None:
            raise ValueError(
                f'{what} has "{key}", which says what is learned in a way that is not understood: write "weight": 0 to '
                "leave an answer unlearned, or take the key away"
            )
    for key in MARKS:
        value = marked.get(key)
        if value is not None and (not isinstance(value, (bool, int, float)) or value not in (0, 1)):
            raise ValueError(
                f'{what} has {value!r} as its "{key}", and 0 (not learned) and 1 (learned) are understood: write one '
                "of them, or take the key away"
            )
    return all(marked.get(key) is None or bool(marked[key]) for key in MARKS)


def plain_chat(
    messages: Sequence[Mapping[str, Any]], learned: Sequence[bool], end: str, add_generation_prompt: bool
) -> Segments:
    """The form for tokenizers without a template; see `Tokenizer.apply_chat`.

    `end` is written after answers that are not learned, as it is put after the others.
    """
    segments: Segments = []
    context = ""
    for message, wanted in zip(messages, learned, strict=True):
        context += ROLES[message["role"]] + ":"
        if wanted:
            segments += [(context, False), (" " + message["content"], True)]
            context = "\n"
        elif message["role"] == "assistant":
            context += f" {message['content']}{end}\n"
        else:
            context += f" {message['content']}\n"
    if add_generation_prompt:
        context += ROLES["assistant"] + ":"
    if context.strip():
        segments.append((context, False))
    return segments
