"""From labelled examples to batches: packing, order, and a loader that needs only a step number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tinyllm.backend.names import is_whole
from tinyllm.data.examples import IGNORE, Example, fit, seeded_order

__all__ = ["Batch", "Loader", "Row", "batches", "pack"]


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
        Padded on the right with 0, which is an id like any other: the segment says what is padding.
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


def _rows(examples: Sequence[Example], max_seq_len: int, packed: bool) -> list[Row]:
    return pack(examples, max_seq_len) if packed else [_row([example]) for example in examples]


def _row(examples: Sequence[Example]) -> Row:
    return Row(
        np.concatenate([example.ids for example in examples]),
        np.concatenate([example.labels for example in examples]),
        np.repeat(np.arange(1, len(examples) + 1), [len(example) for example in examples]).astype(np.int64),
    )


class Loader:
    """Batches by number: the batch of a step is a function of the step, so resuming needs nothing else.

    Rows are packed once, in the file's order, and each epoch visits all of them in an order of its own, a function of
    (seed, epoch). Packing anew every epoch would give a different number of rows each time, and the epoch would no
    longer follow from the step. Which examples share a row makes no difference to them.

    Parameters
    ----------
    examples : sequence of Example
        Cut with `fit` here; `dataset.report()` says how many lost something.
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
        if not is_whole(batch_size) or batch_size < 1:
            raise ValueError(f"the batch size must be at least 1 and a whole number, not {batch_size!r}")
        self.dataset = fit(examples, max_seq_len)
        self.batch_size = batch_size
        self.seed = seed
        self.rows = _rows(self.dataset, max_seq_len, pack)
        self.batches_per_epoch = -(-len(self.rows) // batch_size)
        self._epoch, self._rows_order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def order(self, epoch: int) -> np.ndarray:
        """The order of the rows in an epoch: a permutation, int64 (rows,)."""
        if epoch != self._epoch:  # kept for the next step, most often of the same epoch
            self._rows_order = seeded_order(self.seed, f"epoch {epoch}", len(self.rows))
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

    def refuse_beyond(self, vocab_size: int) -> None:
        """Raise a ValueError if a row has a token that a model of `vocab_size` tokens does not have."""
        largest = max(int(max(row.ids.max(), row.labels.max())) for row in self.rows)
        if largest >= vocab_size:
            raise ValueError(
                f"the data has the token id {largest}, and the model has {vocab_size:,} tokens, 0 to {vocab_size - 1}: "
                "use the tokenizer that belongs to the model; load_text(..., vocab_size=...) names the text"
            )

    def fingerprint(self) -> str:
        """A hash of every row: equal only if ids, labels and segments are, whatever files they were read from."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            digest.update(len(row).to_bytes(8, "little"))  # or the end of a row could pass for the start of the next
            for array in (row.ids, row.labels, row.segment_ids):
                digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()


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
