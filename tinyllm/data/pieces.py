"""Encoding a long text in pieces: `tokenizers` keeps about 200 bytes a token while it encodes one."""

from __future__ import annotations

import json
from typing import Any

PIECE = 1 << 16  # characters encoded at once where that changes nothing


def encode_in_pieces(inner: Any, text: str) -> list[int]:
    """The ids of `text`, of a tokenizer for which `parts_at_lines` holds."""
    ids: list[int] = []
    start = 0
    while start < len(text):
        end = _line_start(text, start + PIECE)
        ids += inner.encode(text[start:end], add_special_tokens=False).ids
        start = end
    return ids


def parts_at_lines(inner: Any) -> bool:
    """Whether a text may be cut before a line that begins with a letter or digit, and encoded in pieces.

    So it is for GPT-2's own expression, which ends a piece there, with nothing before or after it that looks further:
    no normaliser, and no added token that reaches across the end of a line.
    """
    parts = json.loads(inner.to_str())
    cut = parts["pre_tokenizer"] or {}
    plain = cut.get("type") == "ByteLevel" and cut.get("use_regex") is True and not cut.get("add_prefix_space")
    added = inner.get_added_tokens_decoder().values()
    return (
        plain
        and parts["normalizer"] is None
        and not any(token.lstrip or token.rstrip or token.single_word or "\n" in token.content for token in added)
    )


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
