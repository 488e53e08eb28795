"""Generation: one token after another from the logits of the last position, with a KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyllm.backend.device import to_host
from tinyllm.backend.names import in_our_words, is_real, is_whole, kind_of
from tinyllm.backend.random import Generator
from tinyllm.backend.table import replaceable
from tinyllm.models import DecoderModel
from tinyllm.models.cache import KVCache
from tinyllm.models.positions import check_ids
from tinyllm.nn import Module, require_model
from tinyllm.tensor import no_grad


@replaceable
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
        Only the k most likely tokens; None and 0 take all. Of equally likely ones the first stay.
    top_p : float, optional
        Of what `top_k` leaves, only the fewest most likely tokens that reach this share of it (Holtzman et al. 2019);
        never none. First k, then p is the order of transformers.

    Returns
    -------
    float64 array (vocabulary,)
        It sums to 1.

    Raises
    ------
    ValueError
        If a logit is not finite, the temperature is not a finite number above 0, or a limit is out of range.
    """
    if not is_real(temperature) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, not {temperature!r}")
    check_sampling(temperature, top_k, top_p)
    x = refuse_non_finite_logits(np.asarray(logits, np.float64))
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the maximum to e^-inf = 0: greedy
        p = np.exp((x - x.max()) / temperature)
    p /= p.sum()
    if not top_k and top_p is None:
        return p
    keep = min(top_k or len(p), len(p))
    among = np.flatnonzero(p >= np.partition(p, -keep)[-keep])  # sorting them all would take longest of all this
    order = among[np.argsort(-p[among], kind="stable")][:keep]
    if top_p is not None:
        # A token stays if what stands before it has not reached top_p yet.
        reached = np.cumsum(p[order]) / p[order].sum()
        order = order[: 1 + int((reached[:-1] < top_p).sum())]
    chosen = np.zeros_like(p)
    chosen[order] = p[order]
    return chosen / chosen.sum()


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """ValueError for settings that are out of range, or that do nothing because the likeliest token is taken."""
    limited = top_k is None or is_whole(top_k) and top_k >= 0
    limited = limited and (top_p is None or is_real(top_p) and 0 < top_p <= 1)
    if not is_real(temperature) or not 0 <= temperature < math.inf or not limited:
        raise ValueError(
            "temperature must be at least 0 and finite, top_k at least 1 (0 and None: all tokens) and top_p in (0, 1], "
            f"not {temperature!r}, {top_k!r} and {top_p!r}"
        )
    if temperature == 0 and (top_k or top_p not in (None, 1)):
        raise ValueError("top_k and top_p are for tokens that are drawn: give a temperature above 0, as 1 is")


def refuse_non_finite_logits(logits: np.ndarray) -> np.ndarray:
    """The logits, if all are finite."""
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite; check the checkpoint, its training may have diverged")
    return logits


@in_our_words()
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
    require_model(model)
    ids, context = token_ids(prompt), model.config.max_seq_len
    if len(ids) >= context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, but the model's context is {context}; "
            "shorten it to leave room for an answer"
        )
    check_ids([ids], model.config.vocab_size)
    check_sampling(temperature, top_k, top_p)
    if not is_whole(max_new_tokens) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0 and a whole number, not {max_new_tokens!r}")
    if isinstance(stop, str) or not isinstance(stop, Iterable) or not all(map(is_whole, stop := tuple(stop))):
        raise TypeError(f"stop takes token ids in a list, not {stop!r}")
    generator = Generator(seed)

    def choose(logits: np.ndarray) -> int:
        if temperature == 0:
            return int(refuse_non_finite_logits(logits).argmax())
        p = next_probabilities(logits, temperature, top_k, top_p)
        u = float(generator.words(1)[0] >> np.uint64(11)) * 2.0**-53
        return min(int(np.searchsorted(np.cumsum(p), u, side="right")), int(np.flatnonzero(p)[-1]))

    room = min(max_new_tokens, context - len(ids))
    return _stream(model, ids, room, choose, stop, KVCache() if use_cache else None)


def token_ids(prompt: Any) -> list[int]:
    """The prompt as a list of whole numbers.

    Raises
    ------
    TypeError
        If it is text, or holds anything but whole numbers.
    ValueError
        If it is empty, or has several rows.
    """
    if isinstance(prompt, str | bytes) or not isinstance(prompt, Iterable):
        raise TypeError(f"a prompt is a list of token ids, not {kind_of(prompt)}: tokenizer.encode(text) makes one")
    try:
        ids = np.asarray(to_host(prompt) if hasattr(prompt, "shape") else list(prompt))
    except ValueError:
        raise ValueError("a prompt is one row of token ids; for several texts ask several times") from None
    if not ids.size:
        raise ValueError("the prompt is empty; give at least one token")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"token ids must be integers, not {ids.dtype}: tokenizer.encode(text) makes them")
    if ids.ndim != 1:
        raise ValueError(f"a prompt is one row of token ids, not {ids.shape}; for several texts ask several times")
    return ids.tolist()


def _stream(
    model: DecoderModel, ids: list[int], room: int, choose: Callable, stop: Sequence[int], cache: KVCache | None
) -> Iterator[int]:
    """At most `room` tokens, each by ``choose(logits)``; with a cache only what is new runs through the model."""
    fresh = ids
    modules = [module for _, module in model.named_modules()]  # once: the walk takes as long as a layer
    for _ in range(room):
        with no_grad(), evaluating(modules):
            hidden = model.hidden(np.array([fresh]), cache=cache)
            logits = model.lm_head(hidden[:, -1:]).numpy()[0, -1]  # the head for the last position alone
        token = choose(logits)
        if token in stop:
            return
        yield token
        ids = [*ids, token]
        fresh = [token] if cache is not None else ids


@contextmanager
def evaluating(modules: list[Module]) -> Iterator[None]:
    """A ``with`` block in evaluation mode; between two tokens a model that trains is in training mode again."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@in_our_words(stream)
def generate(model: DecoderModel, prompt: Sequence[int], max_new_tokens: int = 100, **settings: Any) -> list[int]:
    """The new token ids as a list; the settings are those of `stream`."""
    return list(stream(model, prompt, max_new_tokens, **settings))
