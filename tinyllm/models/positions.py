"""Which position a token has and how far back it may look: packing, padding and the cache as two small arrays.

A query at position i sees the keys start <= j <= i. That one array of starts does what masks do elsewhere, and since
a start is never behind its own query, no row of attention is ever fully masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm.backend.device import to_host
from tinyllm.models.cache import KVCache
from tinyllm.models.config import DecoderConfig


def check_ids(ids: Any, vocab_size: int) -> np.ndarray:
    """The ids as an integer array (batch, time), each in the vocabulary (CuPy would wrap others silently).

    Raises
    ------
    TypeError, ValueError
        Naming the first bad id and where it stands.
    """
    try:
        ids = np.asarray(to_host(ids))
    except ValueError:
        raise ValueError("token ids must have rows of one length: pad them, and pass an attention_mask") from None
    if ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(
            f"token ids must be integers, not {ids.dtype}: a tokenizer makes them of text, and a batch has batch.ids"
        )
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"token ids must have shape (batch, time) with at least one token, not {ids.shape}")
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"token id {int(ids[bad][0])} at {where} is outside the vocabulary 0..{vocab_size - 1}")
    return ids


def positions_and_starts(
    shape: tuple[int, int], past: int, segment_ids: Any, attention_mask: Any, cache: KVCache | None, window: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions (batch or 1, time) and starts (batch, time) or None where every query sees all keys before it.

    A sliding window is one more bound: no query starts more than ``window - 1`` positions before itself. Positions do
    not feel it.

    Raises
    ------
    ValueError
        For a mask with holes, another shape, or packing together with a cache.
    """
    positions, starts = _unlimited(shape, past, segment_ids, attention_mask, cache)
    if window and past + shape[1] > window:
        nearest = past + np.arange(shape[1])[None] - window + 1  # (1, time)
        starts = np.broadcast_to(np.maximum(nearest, 0 if starts is None else starts), shape)
    return positions, starts


def _unlimited(
    shape: tuple[int, int], past: int, segment_ids: Any, attention_mask: Any, cache: KVCache | None
) -> tuple[np.ndarray, np.ndarray | None]:
    batch, time = shape
    at = past + np.arange(time)[None]  # (1, time)
    if segment_ids is not None:
        if cache is not None or attention_mask is not None:
            raise ValueError("segment_ids cannot be combined with a cache or an attention_mask; pass one of them")
        starts = _segment_starts(np.asarray(segment_ids), shape)
        return at - starts, starts
    pads: np.ndarray | None = None
    if attention_mask is not None:
        pads = _left_padding(np.asarray(attention_mask), shape, past)
        if cache is not None:
            if not np.asarray(attention_mask)[:, -1].all():
                raise ValueError(
                    "with a cache, prompts are padded on the left: the next token would see padding on the right"
                )
            cache.pads = pads
    elif cache is not None:
        pads = cache.pads
    if pads is None or not pads.any():
        return at, None
    starts = np.minimum(pads[:, None], at)  # a padding query sees itself, so its softmax stays finite
    return np.maximum(at - pads[:, None], 0), starts


def _segment_starts(segments: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if segments.shape != shape:
        raise ValueError(f"segment_ids have shape {segments.shape}, but the ids {shape}")
    new = np.ones(shape, bool)
    new[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return np.maximum.accumulate(np.where(new, np.arange(shape[1]), 0), axis=1)


def _left_padding(mask: np.ndarray, shape: tuple[int, int], past: int) -> np.ndarray:
    """How many positions each row is padded on the left; what is padded on the right nobody looks at."""
    if past:
        raise ValueError("give the attention_mask with the prompt alone; the cache remembers it")
    if mask.shape != shape:
        raise ValueError(f"attention_mask has shape {mask.shape}, but the ids {shape}")
    live = mask.astype(bool)
    pads = np.where(live.any(axis=1), live.argmax(axis=1), 0)
    last = shape[1] - live[:, ::-1].argmax(axis=1)
    if (live.sum(axis=1) != np.where(live.any(axis=1), last - pads, 0)).any():
        raise ValueError("the attention_mask has holes; only padding on the left or the right is understood")
    return pads


def rope_frequencies(config: DecoderConfig) -> np.ndarray:
    """The angle by which a position turns each pair of channels, (n/2,): theta^(-2i/n), stretched as in Llama 3.

    Source: Su et al. 2021, and ``apply_scaling`` in Meta's llama-models.
    """
    n, scaling = config.head_dim, config.rope_scaling
    frequency = config.rope_theta ** (-np.arange(0, n, 2) / n)
    if scaling is None:
        return frequency
    turns = scaling.original_max_seq_len * frequency / (2 * np.pi)  # within the first training's context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    stays = np.clip((turns - low) / (high - low), 0, 1)
    return stays * frequency + (1 - stays) * frequency / scaling.factor


def rope_tables(positions: np.ndarray, frequency: np.ndarray, dtype: Any, xp: Any) -> tuple[Any, Any]:
    """cos and sin of position * frequency, (batch or 1, 1, time, n/2); angles in float64 for long contexts."""
    angle = positions[:, None, :, None] * frequency
    return xp.asarray(np.cos(angle).astype(dtype)), xp.asarray(np.sin(angle).astype(dtype))
