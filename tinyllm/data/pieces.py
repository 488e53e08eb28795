"""Long texts encoded in pieces, where that changes no id.

`tokenizers` keeps about 200 bytes for each token of a text until it has encoded all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

PIECE = 1 << 16  # characters encoded at once


def may_be_cut(inner: Any) -> bool:
    """Whether texts may be cut before a line that begins with a letter or digit; `inner` is a tokenizers.Tokenizer.

    So it is for GPT-2's own expression, which ends a piece there, with nothing before or after it that looks
    further: no normaliser, and no added token that reaches across the end of a line.
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


def pieces(text: str) -> Iterator[str]:
    """The text in pieces of `PIECE` characters and a little more, each but the last ending with a line."""
    start = 0
    while start < len(text):
        end = _line_start(text, start + PIECE)
        yield text[start:end]
        start = end


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
