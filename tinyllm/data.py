"""From text files to batches: labelled examples, held-out split, packing, and a loader that needs only a step number.

Two laws hold throughout. Labels are shifted once, here: ``labels[t]`` is what position t predicts, and nobody shifts
again. What is masked is decided by where a piece of text begins and ends, never by token ids, so the end-of-text token
after an answer is learned although padding may use the same id. Read next: `train.py`, which asks for one batch a step.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from tinyllm.backend.random import Generator
from tinyllm.tokenizer import Tokenizer

__all__ = [
    "IGNORE", "Batch", "Cell", "Dataset", "Example", "Loader", "Row",
    "batches", "describe", "fit", "load_text", "pack", "split",
]  # fmt: skip

IGNORE = -100  # a label that is not learned, as in PyTorch
PLAIN, LINES = (".txt", ".md"), (".jsonl",)
FORMATS = "give a .jsonl, .txt or .md file (each may end in .gz too)"


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
    """

    examples: tuple[Example, ...]
    plain: bool = False
    truncated: int = 0
    dropped: int = 0

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
        line = f"{len(self)} {'windows' if self.plain else 'examples'}, {sum(map(len, self))} tokens"
        line += f", {sum(example.live for example in self)} of them with a label"
        if self.truncated:
            line += f"; {self.truncated} truncated"
        if self.dropped:
            line += f"; {self.dropped} dropped with nothing left to learn"
        return line


# Reading ------------------------------------------------------------------------------------------------------------


def load_text(path_or_text: str | os.PathLike[str], tokenizer: Tokenizer, max_seq_len: int | None = None) -> Dataset:
    r"""Read a text file or a file of records into labelled examples.

    * ``.txt``, ``.md``, or the text itself: one running text, every token labelled with the next one. ``\r\n`` reads as
      ``\n``, so that a file means the same on every system. No end-of-text token is put at its end.
    * ``.jsonl``, one record a line: ``{"prompt", "completion"}`` (joined as they are, so write the space between them),
      ``{"messages": [{"role", "content"}, ...]}`` (see `Tokenizer.apply_chat`) or ``{"text"}``. Only completions, the
      assistant's turns and texts are learned, each followed by the end-of-text token, which is learned too. Pieces are
      encoded one by one, because that is how the model meets them: the prompt is encoded before there is an answer.

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
    name, kind, text = _read(path_or_text)
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
                    examples.append(_label(_segments(line, tokenizer), tokenizer))
                except ValueError as error:
                    raise ValueError(f"{name}, line {number}: {error}") from error
        dataset = Dataset(tuple(examples))
    try:
        return fit(dataset, max_seq_len)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _read(source: str | os.PathLike[str]) -> tuple[str, str, str]:
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


def _segments(line: str, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The texts of one record, and whether each is learned."""
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
        return segments
    for key in forms[0]:
        if key not in record:
            raise ValueError(f'the record lacks "{key}": add it ("prompt" and "completion" go together)')
        if not isinstance(record[key], str):
            raise ValueError(f'"{key}" must be a string, not {type(record[key]).__name__}: write it as plain text')
    return [(record[key], key != "prompt") for key in forms[0]]


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which is no character
        raise ValueError(f"the text has half a surrogate pair ({text[error.start]!r}): remove it") from error
    return tokenizer.encode(text)


def _label(segments: list[tuple[str, bool]], tokenizer: Tokenizer) -> Example:
    ids: list[int] = []
    learned: list[bool] = []
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        ids, learned = [tokenizer.bos_id], [False]
    for text, trainable in segments:
        tokens = _encode(text, tokenizer)
        if trainable and tokenizer.eos_id is not None:
            tokens = [*tokens, tokenizer.eos_id]
        ids += tokens
        learned += [trainable] * len(tokens)
    following = np.array([*ids[1:], IGNORE])[: len(ids)]
    live = np.array([*learned[1:], False])[: len(ids)]
    return Example(np.array(ids, dtype=np.int64), np.where(live, following, IGNORE))


# Cutting and splitting ----------------------------------------------------------------------------------------------


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


def split(examples: Sequence[Example], fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
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
    total = sum(map(len, data)) if data.plain else len(data)
    count = 0
    if fraction > 0:
        if total < 2:
            raise ValueError("there is too little data to hold some out: add more, or hold out 0")
        count = min(max(round(total * fraction), 1), total - 1)
    train: list[Example] = []
    held: list[Example] = []
    if data.plain:
        room = total - count  # positions still to train on
        for example in data:
            cut = min(room, len(example))
            room -= cut
            train += [example[:cut]] if cut else []
            held += [example[cut:]] if cut < len(example) else []
    else:
        chosen = set(_order(seed, "split", total)[:count].tolist())
        for index, example in enumerate(data):
            (held if index in chosen else train).append(example)
    return replace(data, examples=tuple(train)), Dataset(tuple(held), plain=data.plain)


def _order(seed: int, purpose: str, n: int) -> np.ndarray:
    """A permutation for one purpose: a hash keeps the streams of different purposes and epochs apart."""
    digest = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=8).digest()
    return Generator(int.from_bytes(digest, "little")).permutation(n)


# Packing and batching -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Row:
    """Examples in one row, unpadded: ``ids``, ``labels``, ``segment_ids``, int64 (time,); segments count from 1."""

    ids: np.ndarray
    labels: np.ndarray
    segment_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch.

    Attributes
    ----------
    ids : int64 (batch, time)
        Padded on the right with 0, which stands for nothing: padding is told by its segment.
    labels : int64 (batch, time)
        What each position predicts; -100 where nothing is learned.
    segment_ids : int64 (batch, time)
        1, 2, ... for the examples of a row, 0 for padding. A position attends only to its own segment, and positions
        count anew in each.
    """

    ids: np.ndarray
    labels: np.ndarray
    segment_ids: np.ndarray

    @property
    def live(self) -> int:
        """How many positions are learned: the weight of this batch among micro-batches."""
        return int(np.count_nonzero(self.labels != IGNORE))


class Cell(NamedTuple):
    """One position as `describe` shows it."""

    text: str
    is_loss_position: bool
    segment: int


def pack(examples: Sequence[Example], max_seq_len: int) -> list[Row]:
    """Lay examples side by side in rows of at most ``max_seq_len`` positions.

    First fit in the order given: each example goes into the first row with room. Segment ids keep the examples of a row
    apart, so that a packed example has the same loss as one alone.

    Raises
    ------
    ValueError
        If an example is too long.
    """
    for index, example in enumerate(examples):
        if len(example) > max_seq_len:
            raise ValueError(
                f"example {index} has {len(example)} tokens, more than max_seq_len {max_seq_len}: "
                "cut the examples with tinyllm.data.fit first"
            )
    leaves = 1 << max(len(examples) - 1, 0).bit_length()
    room = [max_seq_len] * (2 * leaves)  # a heap-shaped tree: room[i] is the most room in any row below node i
    rows: list[list[Example]] = []
    for example in examples:
        node = 1
        while node < leaves:
            node = 2 * node + (room[2 * node] < len(example))
        row = node - leaves
        if row == len(rows):
            rows.append([])
        rows[row].append(example)
        room[node] -= len(example)
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [_row(row) for row in rows]


def _row(examples: Sequence[Example]) -> Row:
    return Row(
        np.concatenate([example.ids for example in examples]),
        np.concatenate([example.labels for example in examples]),
        np.repeat(np.arange(1, len(examples) + 1), [len(example) for example in examples]).astype(np.int64),
    )


class Loader:
    """Batches by number: the batch of a step is a function of the step, so resuming needs nothing else.

    Rows are packed once, in the file's order, and each epoch visits all of them in an order of its own, a function of
    (seed, epoch). Packing anew every epoch would give a different number of rows each time, and the step alone would no
    longer tell the epoch. Which examples share a row makes no difference to them.

    Parameters
    ----------
    examples : sequence of Example
        Cut with `fit` here; `dataset.report()` tells the outcome.
    batch_size : int
        Rows a batch; the last batch of an epoch may have fewer.
    max_seq_len : int
    seed : int
    pack : bool
        Several examples a row, or one.

    Attributes
    ----------
    dataset : Dataset
    rows : list of Row
    batches_per_epoch : int
        Also ``len(loader)``.
    """

    def __init__(
        self, examples: Sequence[Example], batch_size: int, max_seq_len: int, seed: int = 0, pack: bool = True
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, not {batch_size}")
        self.dataset = fit(examples, max_seq_len)
        self.batch_size = batch_size
        self.seed = seed
        self.rows = _packed(self.dataset, max_seq_len) if pack else [_row([example]) for example in self.dataset]
        self.batches_per_epoch = -(-len(self.rows) // batch_size)
        self._epoch, self._rows_order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def order(self, epoch: int) -> np.ndarray:
        """The order of the rows in an epoch: a permutation, int64 (rows,)."""
        if epoch != self._epoch:  # kept for the next step, most often of the same epoch
            self._rows_order = _order(self.seed, f"epoch {epoch}", len(self.rows))
            self._epoch = epoch
        return self._rows_order.copy()

    def batch(self, step: int) -> Batch:
        """Return the batch of micro-step `step`, counted from 0 over all epochs."""
        if step < 0:
            raise ValueError(f"steps count from 0, not {step}")
        epoch, index = divmod(step, self.batches_per_epoch)
        chosen = self.order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        rows = [self.rows[i] for i in chosen]
        shape = len(rows), max(map(len, rows))
        batch = Batch(np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64), np.zeros(shape, np.int64))
        for i, row in enumerate(rows):
            batch.ids[i, : len(row)] = row.ids
            batch.labels[i, : len(row)] = row.labels
            batch.segment_ids[i, : len(row)] = row.segment_ids
        return batch


_packed = pack  # `pack` is also the name of a parameter


def batches(
    examples: Sequence[Example],
    batch_size: int,
    max_seq_len: int,
    seed: int = 0,
    epoch: int = 0,
    pack: bool = True,
) -> Iterator[Batch]:
    """Yield the batches of one epoch, as `Loader` numbers them."""
    loader = Loader(examples, batch_size, max_seq_len, seed, pack)
    for index in range(len(loader)):
        yield loader.batch(epoch * len(loader) + index)


def describe(batch: Batch, tokenizer: Tokenizer) -> list[list[Cell]]:
    """Spell a batch out, for `tinyllm data show`.

    Returns
    -------
    list of rows of (token text, is_loss_position, segment)
        A loss position is one whose *next* token is learned. Padding has the text "" and segment 0; a token that is
        only part of a character is shown in the vocabulary's own spelling.
    """

    def spell(id: int) -> str:
        text = tokenizer.decode([id])
        return (tokenizer.token(id) or text) if "\ufffd" in text or not text else text

    def cell(id: Any, label: Any, segment: Any) -> Cell:
        return Cell(spell(int(id)) if segment else "", bool(label != IGNORE), int(segment))

    columns = batch.ids, batch.labels, batch.segment_ids
    return [[cell(*position) for position in zip(*row, strict=True)] for row in zip(*columns, strict=True)]
