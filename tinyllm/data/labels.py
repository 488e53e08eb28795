"""Which tokens of a text are learned, by the characters that they stand for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tinyllm.data.messages import Segments


def learned_tokens(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], segments: Segments, units: Collection[int]
) -> list[bool]:
    """Whether each token is learned.

    A token is learned if any of the characters that it stands for is, as in transformers' assistant masks. Only a
    special token that begins before a learned segment is not: it belongs to the header, although some special tokens
    take the white space after them along.

    Parameters
    ----------
    ids, offsets
        The tokens of the segments' joined text, and where in it each begins and ends.
    segments : sequence of (str, bool)
    units : ids of the special tokens
    """
    spans: list[tuple[int, int]] = []
    end = 0
    for text, trainable in segments:
        start, end = end, end + len(text)
        if trainable and text:
            spans.append((start, end))
    learned: list[bool] = []
    here = done = 0
    for id, (start, end) in zip(ids, offsets, strict=True):
        # Byte-level tokenizers may leave the space of " word" out of its offsets: what no token claimed is its own. A
        # special token's are right, also after a token of a space alone, which claims nothing.
        start = start if id in units else min(start, done)
        done = max(done, end)
        while here < len(spans) and spans[here][1] <= start:
            here += 1
        inside = here < len(spans) and spans[here][0] < max(end, start + 1)
        learned.append(inside and not (id in units and start < spans[here][0]))
    return learned
