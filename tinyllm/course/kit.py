"""What the lessons use over and over: the small base model, its tokenizer and texts, held-out losses, a short run."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

import tinyllm
from tinyllm import assets
from tinyllm.backend import random
from tinyllm.backend.device import device
from tinyllm.backend.names import is_whole, nearest
from tinyllm.course.page import pyplot, say, show
from tinyllm.course.timing import in_turns
from tinyllm.data.batches import Batch, Loader
from tinyllm.data.examples import Dataset, split
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.nn import require_model
from tinyllm.train.loop import Observer, TrainConfig, evaluate, fit

__all__ = ["base", "batches", "begin", "fine_tune", "held_out", "in_turns", "plt", "say", "show", "tokenizer"]

plt: Any  # matplotlib.pyplot, loaded when a lesson asks for it


@dataclass(frozen=True)
class Text:
    """An embedded text, as the command that learns it parts and cuts it.

    Attributes
    ----------
    read : callable
        Gives the whole of it.
    share : float
        How much of its tokens is held out, from the end.
    tail : int
        The same in letters: so the whole of the plays, which takes seconds, need not be tokenised to find it.
    time : int
        Tokens a row of the held-out batches.
    seed : int
        Which of them come first.
    """

    read: Callable[[], str]
    share: float
    tail: int
    time: int
    seed: int


ROWS = 8  # of a held-out batch
TEXTS = {
    "plays": Text(assets.plays, share=0.02, tail=95_181, time=256, seed=1),  # `tinyllm pretrain`, which made the base
    "jargon": Text(assets.jargon, share=0.1, tail=38_590, time=128, seed=0),  # `tinyllm finetune`
}


def begin(lesson: int, needs: str | None = None) -> None:
    """Begin a lesson: seed the generator with 0, and say in a line what runs here.

    Parameters
    ----------
    lesson : int
    needs : str, optional
        The oldest release with which the lesson runs, ``"0.2"``.

    Raises
    ------
    ImportError
        If this tinyllm is older, or matplotlib is not installed.
    """
    if not is_whole(lesson) or lesson < 0:
        raise ValueError(f"begin takes the lesson's number, 0 or above, not {lesson!r}: kit.begin(8)")
    if needs is not None and _release(tinyllm.__version__) < _release(needs):
        raise ImportError(
            f"lesson {lesson} needs tinyllm {needs} or later, and this is {tinyllm.__version__}: "
            "pip install --upgrade tinyllm-engine, or take the lesson from this release"
        )
    pyplot()
    random.manual_seed(0)
    threads = tinyllm.get_num_threads()
    print(
        f"lesson {lesson}: tinyllm {tinyllm.__version__}, NumPy {np.__version__}, device {device()}, "
        f"{threads} thread{'s' * (threads != 1)}"
    )


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare; what follows them (``rc1``, ``.dev0``) does not count."""
    numbers = re.match(r"\d+(\.\d+)*", version) if isinstance(version, str) else None
    if numbers is None:
        raise ValueError(f'needs must be a release such as "0.2", not {version!r}')
    found = [int(number) for number in numbers.group().split(".")]
    while found and found[-1] == 0:  # 0.2 is 0.2.0
        found.pop()
    return tuple(found)


def base(storage: str = "float32", **options: Any) -> DecoderModel:
    """The embedded base model, read anew; `options` are those of `DecoderModel.from_pretrained`."""
    return DecoderModel.from_pretrained(assets.path("base"), storage=storage, **options)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """A ``with`` block with the generator seeded anew, which afterwards goes on from where it was."""
    place = random.default.state
    try:
        random.manual_seed(seed)
        yield
    finally:
        random.default.restore(place)


@functools.cache
def tokenizer() -> Tokenizer:
    """The base model's tokenizer: ``.encode(text)`` gives ids, ``.decode(ids)`` the text."""
    return Tokenizer.load(assets.path("base"))


def _about(text: str) -> Text:
    if not isinstance(text, str) or text not in TEXTS:
        hint = nearest(str(text), TEXTS, "; did you mean {!r}?")
        raise ValueError(f"the embedded texts are {' and '.join(map(repr, TEXTS))}, not {text!r}{hint}")
    return TEXTS[text]


def batches(size: int = 4, time: int = 64, text: str = "jargon", seed: int = 0) -> Iterator[Batch]:
    """Batches of the part of a text that is learned, without end, each epoch in an order of its own.

    Parameters
    ----------
    size, time : int
        Rows a batch, and tokens a row.
    text : {"jargon", "plays"}
    seed : int
        Of the order.

    Returns
    -------
    iterator of Batch
        ``.ids``, ``.labels`` and ``.segment_ids``, int64 (size, time).
    """
    return map(_loader(text, size, time, seed).batch, count())


def _loader(text: str, size: int, time: int, seed: int) -> Loader:
    return Loader(_learned(text), size, time, seed)


@functools.cache
def _learned(text: str) -> Dataset:
    about = _about(text)
    return split(load_text(about.read(), tokenizer()), about.share)[0]


def held_out(model: DecoderModel, batches: int = 8) -> dict[str, float]:
    """The loss a token on the held-out part of both texts: the end of each, which neither base nor lessons learn.

    Parameters
    ----------
    model : DecoderModel
    batches : int
        How many batches of 8 rows to look at, always the same; 100 are more than there are.

    Returns
    -------
    dict of str to float
        ``"plays"`` and ``"jargon"``. The first is the last 2 % of the plays, which the base never saw.
    """
    require_model(model)
    return {name: evaluate(model, _held_out(name), batches) for name in TEXTS}


@functools.cache
def _held_out(text: str) -> Loader:
    about = TEXTS[text]
    return Loader(load_text(about.read()[-about.tail :], tokenizer()), ROWS, about.time, about.seed)


def fine_tune(
    model: DecoderModel,
    steps: int = 30,
    lr: float = 1e-3,
    size: int = 4,
    time: int = 64,
    text: str = "jargon",
    seed: int = 0,
    **settings: Any,
) -> list[float]:
    """Train what has ``requires_grad`` for a few steps, in the engine's own loop.

    Parameters
    ----------
    model : DecoderModel
        Afterwards in the mode in which it was, training or evaluation.
    steps, lr
        Optimiser steps, and the highest learning rate.
    size, time, text, seed
        As in `batches`; the seed is that of dropout, too.
    **settings
        Other fields of `tinyllm.train.TrainConfig`: ``schedule``, ``warmup``, ``grad_accum``, ...

    Returns
    -------
    list of float
        The loss a token of each step's batch, before its update.
    """
    require_model(model)
    config = TrainConfig(steps=steps, lr=lr, seed=seed, **settings)
    losses, training = _Losses(), model.training
    try:
        fit(model, _loader(text, size, time, seed), None, config, losses)
    finally:
        model.train(training)
    return losses.found


class _Losses(Observer):
    """Writes the losses of a run down."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def note(self, done: int, loss: float, norm: float, tokens: int) -> None:
        self.found.append(loss)


def __getattr__(name: str) -> Any:
    if name == "plt":
        return pyplot()
    raise AttributeError(f"the kit has no {name!r}{nearest(name, __all__, '; did you mean {!r}?')}")
