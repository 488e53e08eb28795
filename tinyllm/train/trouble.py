"""What to say when a loss, a gradient or a weight stops being a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.table import of
from tinyllm.data.batches import Batch
from tinyllm.models import DecoderModel
from tinyllm.nn import Module
from tinyllm.tensor import Parameter, no_grad


class NonFiniteLoss(RuntimeError):
    """A loss, gradient or weight stopped being a number; the message says in which layer and step."""


def _require_gradients(model: Module) -> None:
    """Every trainable parameter must have taken part in the first step (A's gradient is zero then, but it is there)."""
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        raise RuntimeError(
            f"after the first step these trainable parameters have no gradient: {', '.join(without[:5])}{more}; freeze "
            "them or make the loss depend on them"
        )


def _require_finite(model: Module, held_out_loss: float | None, step: int) -> None:
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
    """Run the step again and watch every layer, so that a run without trouble pays nothing for the explanation."""
    name = _first_non_finite(model.named_parameters())
    if name is not None:
        said = "lower the learning rate or check the checkpoint"
        return f"step {step + 1}: the weight {name} holds non-finite numbers; {said}"
    random.default.restore(position)
    paths = {id(module): path for path, module in model.named_modules()}
    found: list[str] = []
    plain = Module.__call__

    def watching(self: Module, *args: Any, **kwargs: Any) -> Any:
        y = plain(self, *args, **kwargs)
        if not found and hasattr(y, "numpy") and not np.isfinite(y.numpy()).all():
            found.append(paths.get(id(self), type(self).__name__))
        return y

    Module.__call__ = watching  # type: ignore[method-assign, assignment]
    try:
        with no_grad(), np.errstate(all="ignore"):
            for batch in batches:
                model.hidden(batch.ids, batch.segment_ids)
    finally:
        Module.__call__ = plain  # type: ignore[method-assign]
    where = found[0] if found else None
    if where is None:
        bad = [
            name
            for name, p in model.named_parameters()
            if p.grad is not None and not of(p.grad).xp.isfinite(p.grad).all()
        ]
        where = f"the gradient of {bad[0]}" if bad else "the loss"
    return f"step {step + 1}: not finite, first in {where}; lower the learning rate, and look at that step's data"
