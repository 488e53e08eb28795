"""What to say when a training step fails: what is not finite, what has no gradient, and what fills the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.device import backend
from tinyllm.backend.names import few
from tinyllm.backend.table import of
from tinyllm.data.batches import Batch
from tinyllm.inspect.memory import resident_memory
from tinyllm.models import DecoderModel
from tinyllm.nn import Module
from tinyllm.optim import AdamW
from tinyllm.tensor import Parameter, no_grad
from tinyllm.train.loop import NonFiniteLoss


@contextmanager
def in_words(model: DecoderModel, batches: list[Batch], step: int) -> Iterator[None]:
    """Around the gradients of a step: what is not finite is told in words.

    Raises
    ------
    NonFiniteLoss
        For the block's own, with the layer and the step.
    """
    position = random.default.state
    try:
        with np.errstate(all="ignore"):
            yield
    except NonFiniteLoss:
        raise NonFiniteLoss(explain_non_finite(model, batches, position, step)) from None


def require_gradients(model: Module) -> None:
    """Every trainable parameter must have taken part in the first step (A's gradient is zero then, but it is there)."""
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if without:
        raise RuntimeError(
            f"after the first step these trainable parameters have no gradient: {few(without)}; freeze them or make "
            "the loss depend on them"
        )


def require_finite(model: Module, held_out_loss: float | None, step: int) -> None:
    """What the last update broke is neither logged nor saved."""
    name = _first_non_finite((name, p) for name, p in model.named_parameters() if p.requires_grad)
    if name is not None:
        raise NonFiniteLoss(
            f"step {step}: the weight {name} holds non-finite numbers; lower the learning rate or check the model"
        )
    if held_out_loss is not None and not math.isfinite(held_out_loss):
        raise NonFiniteLoss(
            f"step {step}: the held-out loss is {held_out_loss}; lower the learning rate or check the model"
        )


def _first_non_finite(weights: Iterable[tuple[str, Parameter]]) -> str | None:
    return next((name for name, p in weights if not np.isfinite(p.numpy()).all()), None)


def explain_non_finite(model: DecoderModel, batches: list[Batch], position: tuple[int, int], step: int) -> str:
    """Run the step again and watch every layer, so that a run without trouble pays nothing for the explanation.

    Parameters
    ----------
    model : DecoderModel
        With the gradients of the step.
    batches : list of Batch
    position : tuple of int
        The generator's before the step, so that dropout's masks are the same.
    step : int
        Counted from 0.
    """
    name = _first_non_finite(model.named_parameters())
    if name is not None:
        advice = "lower the learning rate or check the checkpoint"
        return f"step {step + 1}: the weight {name} holds non-finite numbers; {advice}"
    random.default.restore(position)
    with watching_outputs(model) as outputs, no_grad(), np.errstate(all="ignore"):
        for batch in batches:
            model.hidden(batch.ids, batch.segment_ids)
    gradients = [
        f"the gradient of {name}"
        for name, p in model.named_parameters()
        if p.grad is not None and not of(p.grad).xp.isfinite(p.grad).all()
    ]
    where = [*outputs, *gradients, "the loss"][0]
    return f"step {step + 1}: not finite, first in {where}; lower the learning rate, and look at that step's data"


@contextmanager
def watching_outputs(model: Module) -> Iterator[list[str]]:
    """Within the block, the yielded list gets the path of each layer whose output is not finite, in order.

    A layer's ``forward`` is shadowed by an attribute of its own: other models, in other threads too, are not watched.
    """
    paths: list[str] = []
    layers = {id(layer): (path, layer) for path, layer in model.named_modules()}  # a shared one is watched once

    def watched(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **kwargs: Any) -> Any:
            y = forward(*args, **kwargs)
            if not paths and hasattr(y, "numpy") and not np.isfinite(y.numpy()).all():
                paths.append(path or type(model).__name__)
            return y

        return watching

    shadows = [(layer, vars(layer).get("forward")) for _, layer in layers.values()]  # somebody else's, or None
    try:
        for path, layer in layers.values():
            layer.forward = watched(path, layer.forward)  # type: ignore[method-assign]
        yield paths
    finally:
        for layer, shadow in shadows:
            vars(layer).pop("forward", None)
            if shadow is not None:
                layer.forward = shadow  # type: ignore[method-assign]


class MemoryFull(MemoryError):
    """Too little memory for a run; the message says what was held, and what to lower.

    Attributes
    ----------
    what : str
        The message without the advice.
    """

    def __init__(self, what: str, advice: str = ""):
        super().__init__(f"{what}; {advice}" if advice else what)
        self.what = what


@contextmanager
def explaining_out_of_memory(model: Module, optimizer: Callable[[], AdamW | None]) -> Iterator[None]:
    """Turn NumPy's error, or CuPy's, into one sentence: what was held, and what to lower.

    Raises
    ------
    MemoryFull
    """
    try:
        yield
    except Exception as error:
        on_card = type(error).__name__ == "OutOfMemoryError"  # its class cannot be named without CuPy
        if not on_card and not isinstance(error, MemoryError):
            raise
        if on_card:
            used, what = backend().xp.get_default_memory_pool().used_bytes(), "the GPU's memory is full"
        else:
            used, what = resident_memory() or 0, "there is too little memory"
        listed, advice = _remedy(holdings(model, optimizer()), used)
        raise MemoryFull(f"{what}: {listed}", advice) from None


def holdings(model: Module, optimizer: AdamW | None) -> dict[str, int]:
    """Bytes by what they are for."""
    frozen = [w for _, w in model.named_weights() if not w.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = [array for pair in optimizer.moments.values() for array in pair] if optimizer is not None else []
    return {
        "the frozen base": sum((w.data if isinstance(w, Parameter) else w).nbytes for w in frozen),
        "trained weights": sum(w.data.nbytes for w in trained),
        "their gradients": sum(w.grad.nbytes for w in trained if w.grad is not None),
        "optimiser state": sum(a.nbytes for a in moments),
    }


def _remedy(sizes: dict[str, int], used: int) -> tuple[str, str]:
    """The sizes, and what to do about the largest."""
    sizes = {**sizes, "activations": max(0, used - sum(sizes.values()))}
    largest = max(sizes, key=lambda name: sizes[name])
    listed = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in sizes.items())
    advice = {
        "the frozen base": "keep it in fewer bits (--method qlora, or storage='nf4')",
        "activations": "use a smaller batch or shorter sequences, or turn checkpointing on",
    }
    return listed, advice.get(largest, "train less of the model, with a smaller rank or fewer target modules")
