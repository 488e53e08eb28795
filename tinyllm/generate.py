"""Generation: one token after another from the logits of the last position, with a KV cache.

Read next: `train.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tinyllm.backend.random import Generator
from tinyllm.models import DecoderModel
from tinyllm.models.cache import KVCache
from tinyllm.tensor import no_grad


def next_probabilities(
    logits: Any, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """The distribution the next token is drawn from.

    Parameters
    ----------
    logits : array (vocabulary,)
    temperature : float
        Logits are divided by it; below 1 sharper, above 1 flatter.
    top_k : int, optional
        Only the k most likely tokens.
    top_p : float, optional
        Only the fewest most likely tokens that reach this probability together (Holtzman et al. 2019); never none.

    Returns
    -------
    float64 array (vocabulary,)
        It sums to 1.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = len(p) if top_k is None else min(top_k, len(p))
    if top_p is not None:
        # A token stays if what stands before it has not reached top_p yet.
        before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
        keep = min(keep, max(1, int((before < top_p).sum())))
    p[order[keep:]] = 0
    return p / p.sum()


def stream(
    model: DecoderModel,
    prompt: Sequence[int],
    max_new_tokens: int = 100,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[int] = (),
    seed: int = 0,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yield new token ids as they are chosen.

    Parameters
    ----------
    model : DecoderModel
    prompt : sequence of int
        At least one token.
    max_new_tokens : int
    temperature : float
        0 takes the most likely token each time (greedy).
    top_k, top_p
        See `next_probabilities`.
    stop : sequence of int
        Ids that end the text; they are not yielded.
    seed : int
        The same seed draws the same text.
    use_cache : bool
        Without it every token runs the whole text again: the same tokens, slowly.

    Raises
    ------
    ValueError
        If the prompt is empty or longer than the context, or a setting is out of range.
    """
    ids = [int(i) for i in prompt]
    context = model.config.max_seq_len
    if not ids:
        raise ValueError("the prompt is empty; give at least one token")
    if len(ids) >= context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, but the model's context is {context}; "
            "shorten it to leave room for an answer"
        )
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError("temperature must be at least 0, top_k at least 1 and top_p in (0, 1]")
    return _stream(
        model, ids, min(max_new_tokens, context - len(ids)), temperature, top_k, top_p, set(stop), seed, use_cache
    )


def _stream(model, ids, room, temperature, top_k, top_p, stop, seed, use_cache) -> Iterator[int]:
    generator = Generator(seed)
    cache = KVCache() if use_cache else None
    fresh = ids
    for _ in range(room):
        training = model.training
        model.eval()
        with no_grad():
            hidden = model.hidden(np.array([fresh]), cache=cache)
            logits = model.lm_head(hidden[:, -1:]).numpy()[0, -1]  # the head for the last position alone
        model.train(training)
        if temperature == 0:
            token = int(logits.argmax())
        else:
            p = next_probabilities(logits, temperature, top_k, top_p)
            u = float(generator.words(1)[0] >> np.uint64(11)) * 2.0**-53
            token = min(int(np.searchsorted(np.cumsum(p), u, side="right")), int(np.flatnonzero(p)[-1]))
        if token in stop:
            return
        yield token
        ids = [*ids, token]
        fresh = [token] if use_cache else ids


def generate(model: DecoderModel, prompt: Sequence[int], max_new_tokens: int = 100, **settings: Any) -> list[int]:
    """The new token ids as a list; the settings are those of `stream`."""
    return list(stream(model, prompt, max_new_tokens, **settings))
