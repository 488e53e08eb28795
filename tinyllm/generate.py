"""Generation: one token after another from the logits of the last position, with a KV cache."""

from __future__ import annotations

import math
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

    Raises
    ------
    ValueError
        If a logit is not finite, or the temperature is not a finite number above 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, not {temperature}")
    x = refuse_non_finite_logits(np.asarray(logits, np.float64))
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the maximum to e^-inf = 0: greedy
        p = np.exp((x - x.max()) / temperature)
    p /= p.sum()
    if top_k is None and top_p is None:
        return p
    keep = len(p) if top_k is None else min(top_k, len(p))
    among = np.flatnonzero(p >= np.partition(p, -keep)[-keep])  # sorting them all would take longest of all this
    order = among[np.argsort(-p[among], kind="stable")]
    if top_p is not None:
        # A token stays if what stands before it has not reached top_p yet.
        before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
        keep = min(keep, max(1, int((before < top_p).sum())))
    chosen = np.zeros_like(p)
    chosen[order[:keep]] = p[order[:keep]]
    return chosen / chosen.sum()


def refuse_non_finite_logits(logits: np.ndarray) -> np.ndarray:
    """The logits, if all are finite."""
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite; check the checkpoint, its training may have diverged")
    return logits


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
        At least 0; the end of the context ends the text, too.
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
        If the prompt is empty or longer than the context, or a setting is out of range; while it runs, if the logits
        are not finite.
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
    limited = (top_k is None or top_k >= 1) and (top_p is None or 0 < top_p <= 1)
    if not 0 <= temperature < math.inf or not limited:
        raise ValueError("temperature must be at least 0 and finite, top_k at least 1 and top_p in (0, 1]")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}")
    return _stream(
        model, ids, min(max_new_tokens, context - len(ids)), temperature, top_k, top_p, set(stop), seed, use_cache
    )


def _stream(model, ids, room, temperature, top_k, top_p, stop, seed, use_cache) -> Iterator[int]:
    generator = Generator(seed)
    cache = KVCache() if use_cache else None
    fresh = ids
    modules = [module for _, module in model.named_modules()]  # once: the walk takes as long as a layer
    for _ in range(room):
        modes = [module.training for module in modules]
        for module in modules:
            module.training = False
        with no_grad():
            hidden = model.hidden(np.array([fresh]), cache=cache)
            logits = model.lm_head(hidden[:, -1:]).numpy()[0, -1]  # the head for the last position alone
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        if temperature == 0:
            token = int(refuse_non_finite_logits(logits).argmax())
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
