"""Labelled examples: what one is, cutting to length, holding some out.

Two laws hold here and in `batches.py`. Labels are shifted once, when an example is made (of files by `text.py`):
``labels[t]`` is what position t predicts, and nobody shifts again. What is masked is decided by where a piece of text
begins and ends, never by token ids, so the end-of-text token after an answer is learned although padding may use the
same id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from tinyllm.backend.names import is_whole, kind_of
from tinyllm.backend.random import Generator
from tinyllm.functional import IGNORE


@dataclass(frozen=True, eq=False)
class Example:
    """One text: ``ids`` int64 (time,), and ``labels`` int64 (time,), what each position predicts, or -100.

    A live ``labels[t]`` is the token after ``ids[t]`` in the text: ``ids[t + 1]``, except at the last position of a
    window or of a truncated example, where the text goes on and the example does not.
    """

    ids: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if np.ndim(self.ids) != 1 or np.shape(self.ids) != np.shape(self.labels):
            raise ValueError(
                f"ids and labels must be one-dimensional and equally long, not {np.shape(self.ids)} and "
                f"{np.shape(self.labels)}: give one label for every id, {IGNORE} where nothing is learned"
            )
        object.__setattr__(self, "ids", np.asarray(self.ids, dtype=np.int64))
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, positions: slice) -> Example:
        return Example(self.ids[positions], self.labels[positions])

    @property
    def live(self) -> int:
        """How many positions are learned."""
        return int(np.count_nonzero(self.labels != IGNORE))


@dataclass(frozen=True)
class Dataset(Sequence[Example]):
    """A sequence of examples, and what became of the others.

    Attributes
    ----------
    examples : tuple of Example
    plain : bool
        Whether they are consecutive pieces of one text, rather than separate records.
    truncated, dropped : int
        Examples that lost some of their live labels to ``max_seq_len``, and those that had none left.
    masked : int
        Answers that their own keys (``"weight": 0``) keep from being learned.
    forms : tuple of str
        How the records became texts: "conversations are written in the tokenizer's chat template".
    chat : bool
        Whether all records are conversations, or written as some: then a prompt is a question.
    notes : tuple of str
        What the user should know about them: one sentence each.
    """

    examples: tuple[Example, ...]
    plain: bool = False
    truncated: int = 0
    dropped: int = 0
    masked: int = 0
    forms: tuple[str, ...] = ()
    chat: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        return self.examples[index]

    def report(self) -> str:
        """One line for the user: how much there is, and what was cut."""
        tokens, live = sum(map(len, self)), sum(example.live for example in self)
        line = f"{len(self):,} {'window' if self.plain else 'example'}{'s' * (len(self) != 1)}, {tokens:,} tokens"
        line += f", {'all' if live == tokens else f'{live:,}'} of them with a label"
        if self.truncated:
            line += f"; {self.truncated} truncated"
        if self.dropped:
            line += f"; {self.dropped} dropped with nothing left to learn"
        if self.masked:
            line += f"; {self.masked} {'answer' if self.masked == 1 else 'answers'} left unlearned, as asked"
        return line


def fit(examples: Sequence[Example], max_seq_len: int | None) -> Dataset:
    """Cut examples to at most ``max_seq_len`` positions; what fits already is left as it is.

    A running text becomes consecutive windows, the last one short, and loses nothing. A record is truncated at its end;
    one without any live label left is dropped. Both are counted.

    Raises
    ------
    ValueError
        If nothing is left to learn from, or ``max_seq_len`` is not positive.
    """
    data = examples if isinstance(examples, Dataset) else Dataset(tuple(examples))
    strange = [example for example in data if not isinstance(example, Example)]
    if strange:
        raise TypeError(f"examples are what tinyllm.data.text.load_text gives, not {kind_of(strange[0])}")
    if max_seq_len is not None and not is_whole(max_seq_len):
        raise TypeError(f"max_seq_len must be a whole number, not {max_seq_len!r}")
    limit = max([1, *map(len, data)]) if max_seq_len is None else max_seq_len
    if limit < 1:
        raise ValueError(f"max_seq_len must be at least 1, not {max_seq_len}")
    if data.plain:
        pieces = [example[start : start + limit] for example in data for start in range(0, len(example), limit)]
    else:
        pieces = [example[:limit] for example in data]
    kept = tuple(piece for piece in pieces if piece.live)
    if not kept:
        remedy = "give a longer text, or records with an answer"
        if data.masked:
            remedy = "every answer is left unlearned, as its keys ask; take them away from some"
        if any(example.live for example in data):
            remedy = f"every answer starts beyond the first {limit} tokens; raise max_seq_len or shorten the prompts"
        raise ValueError(f"there is nothing to learn from: {remedy}")
    truncated = 0
    if not data.plain:
        truncated = sum(0 < piece.live < example.live for piece, example in zip(pieces, data, strict=True))
    return replace(
        data,
        examples=kept,
        truncated=data.truncated + truncated,
        dropped=data.dropped + len(pieces) - len(kept),
    )


def split(
    examples: Sequence[Example], fraction: float, seed: int = 0, max_seq_len: int | None = None
) -> tuple[Dataset, Dataset]:
    """Part the examples into those to train on and those held out.

    Of a running text the tail is held out, cut at a token (a window may be parted), so that nothing held out stands
    between texts trained on, and no token is a label on both sides. Of records a seeded choice is held out; both parts
    keep the file's order.

    Parameters
    ----------
    examples : sequence of Example
    fraction : float
        How much to hold out, 0 <= fraction < 1; if not 0, at least one example (or position) lands on either side.
    seed : int
    max_seq_len : int, optional
        Cut records to this length first (see `fit`), so that none is held out that has nothing left to measure.

    Returns
    -------
    train, held_out : Dataset
        The counts of what was cut stay with `train`.

    Raises
    ------
    ValueError
        If the fraction is out of range or there is too little to part.
    """
    data = examples if isinstance(examples, Dataset) else Dataset(tuple(examples))
    if not 0 <= fraction < 1:
        raise ValueError(f"the held-out fraction must be at least 0 and below 1, not {fraction}: try 0.1")
    if max_seq_len is not None and not data.plain:
        data = fit(data, max_seq_len)
    total = sum(map(len, data)) if data.plain else len(data)
    count = 0
    if fraction > 0:
        if total < 2:
            left = (
                f" ({total} left of {total + data.dropped}, the others have nothing to learn)" if data.dropped else ""
            )
            raise ValueError(f"there is too little data to hold some out{left}: add more, or hold out 0")
        count = min(max(round(total * fraction), 1), total - 1)
    train: list[Example] = []
    rest: list[Example] = []
    if data.plain:
        room = total - count  # positions still to train on
        for example in data:
            cut = min(room, len(example))
            room -= cut
            train += [example[:cut]] if cut else []
            rest += [example[cut:]] if cut < len(example) else []
    else:
        chosen = set(seeded_order(seed, "split", total)[:count].tolist())
        for index, example in enumerate(data):
            (rest if index in chosen else train).append(example)
    return replace(data, examples=tuple(train)), Dataset(tuple(rest), plain=data.plain)


def seeded_order(seed: int, purpose: str, n: int) -> np.ndarray:
    """A permutation for one purpose: a hash keeps the streams of different purposes and epochs apart."""
    digest = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=8).digest()
    return Generator(int.from_bytes(digest, "little")).permutation(n)
