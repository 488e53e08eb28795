"""The part of `tokenizers` that the base needs, in plain Python: GPT-2's pieces, merged by rank, to ids and back."""

from __future__ import annotations

import functools
import json
import re
from types import SimpleNamespace
from typing import Any

# GPT-2's expression (Radford et al. 2019) with the letters and digits of Python's `re`.
PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it can be seen, and one from 256 on where it cannot."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


class Tokenizer:
    """As ``tokenizers.Tokenizer``, of a byte-level BPE without a normaliser."""

    def __init__(self, parts: dict[str, Any]):
        self.parts, self.letter = parts, letters()
        self.byte = {letter: byte for byte, letter in self.letter.items()}
        self.vocab: dict[str, int] = parts["model"]["vocab"]
        self.rank = {tuple(pair): i for i, pair in enumerate(parts["model"]["merges"])}
        self.added = {token["content"]: token for token in parts["added_tokens"]}
        self.names = {id: name for name, id in self.get_vocab().items()}
        self.cut = re.compile("|".join(map(re.escape, self.added)) or r"(?!)")
        self.ids = functools.lru_cache(None)(self._ids)

    @classmethod
    def from_str(cls, text: str) -> Tokenizer:
        return cls(json.loads(text))

    def no_truncation(self) -> None:
        pass

    def no_padding(self) -> None:
        pass

    def to_str(self, pretty: bool = False) -> str:
        return json.dumps(self.parts, ensure_ascii=False, indent=2 if pretty else None)

    def encode(self, text: str, add_special_tokens: bool = True) -> Any:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end, name in self._spans(text):
            found = [self.get_vocab()[name]] if name else self.ids(text[start:end])
            ids += found
            offsets += [(start, end)] * len(found)
        return SimpleNamespace(ids=ids, offsets=offsets, special_tokens_mask=[0] * len(ids))

    def _spans(self, text: str) -> Any:
        """Where each piece begins and ends, and the name of an added token."""
        start = 0
        for special in self.cut.finditer(text):
            yield from ((m.start(), m.end(), "") for m in PIECES.finditer(text, start, special.start()))
            yield special.start(), special.end(), special[0]
            start = special.end()
        yield from ((m.start(), m.end(), "") for m in PIECES.finditer(text, start))

    def _ids(self, piece: str) -> list[int]:
        units = [self.letter[byte] for byte in piece.encode("utf-8", errors="replace")]
        while len(units) > 1:
            ranks = [self.rank.get(pair, len(self.rank)) for pair in zip(units, units[1:], strict=False)]
            best = min(ranks)
            if best == len(self.rank):
                break
            merged, i = [], 0
            while i < len(units):
                both = i < len(ranks) and ranks[i] == best
                merged.append(units[i] + units[i + 1] if both else units[i])
                i += 2 if both else 1
            units = merged
        return [self.vocab[unit] for unit in units]

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        names = [self.names[int(id)] for id in ids]
        kept = [name for name in names if name not in self.added or not skip_special_tokens]
        found = b"".join(
            name.encode() if name in self.added else bytes(self.byte[letter] for letter in name) for name in kept
        )
        return found.decode("utf-8", errors="replace")

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return self.vocab | {name: token["id"] for name, token in self.added.items()}

    def token_to_id(self, token: str) -> int | None:
        return self.get_vocab().get(token)

    def id_to_token(self, id: int) -> str | None:
        return self.names.get(id)

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {token["id"]: SimpleNamespace(**token) for token in self.added.values()}
