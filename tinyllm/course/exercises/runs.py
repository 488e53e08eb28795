"""A learner's part in the engine: three steps of the small base, or a text that it writes, beside the engine's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import tinyllm
from tinyllm.course import kit
from tinyllm.course.exercise import Property, Wrong, demand
from tinyllm.functional import cross_entropy
from tinyllm.generate import generate
from tinyllm.lora import apply_lora
from tinyllm.optim import AdamW, clip_grad_norm, lr_factor
from tinyllm.tensor import Tensor, op

STEPS, NORM, RATE, IGNORED = 3, 0.5, 1e-2, -100
CLOSE = 1e-5  # of a loss of about 6, in float32

Part = Callable[..., Any]


def _losses(loss: Part | None = None, clip: Part | None = None, factor: Part | None = None) -> list[float]:
    """The losses of three LoRA steps of the base, with these parts in place of the engine's."""
    found = []
    with kit.seeded():
        model = apply_lora(kit.base(), rank=4, verbose=False)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = AdamW(trained, lr=RATE)
        for step, batch in zip(range(STEPS), kit.batches(1, 16), strict=False):
            targets = batch.labels.reshape(-1).copy()
            targets[::5] = IGNORED
            logits = model(batch.ids).reshape(len(targets), -1)
            value = cross_entropy(logits, targets) if loss is None else _own_loss(loss, logits, targets)
            value.backward()
            if clip is None:
                clip_grad_norm(trained, NORM)
            else:
                for p, g in zip(trained, clip([p.grad for p in trained], NORM)[0], strict=True):
                    p.grad = np.asarray(g, p.dtype)
            rise = lr_factor("cosine", step, STEPS, 1) if factor is None else float(factor(step, STEPS, 1))
            for group in optimizer.groups:
                group["lr"] = RATE * rise
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(value.data))
    return found


def _own_loss(loss: Part, logits: Tensor, targets: Any) -> Tensor:
    value, gradient = loss(logits.data.astype(np.float64), targets)
    slope = np.asarray(gradient, logits.dtype).reshape(logits.shape)
    return op(np.asarray(value, logits.dtype), (logits, lambda g: g * slope))


@functools.cache
def _engines() -> list[float]:
    return _losses()


def _text(nucleus: Part | None = None) -> list[int]:
    """Tokens that the base writes, drawn from the fewest that reach three quarters."""

    def shares(logits: Any, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Any:
        p = np.exp(np.asarray(logits, np.float64) - logits.max())
        p /= p.sum()
        kept = np.asarray(nucleus(p.tolist(), top_p), np.int64)  # type: ignore[misc]
        left = np.zeros_like(p)
        left[kept] = p[kept] / p[kept].sum()
        return left

    prompt, model = kit.tokenizer().encode("O Romeo, "), kit.base()
    model.eval()
    with tinyllm.use(**({} if nucleus is None else {"next_probabilities": shares})):
        return generate(model, prompt, 12, temperature=1.0, top_p=0.75, seed=1)


def _going(run: Callable[[], list]) -> list:
    """What the run gives; an answer with which the engine cannot go on is wrong."""
    try:
        return run()
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"the engine cannot go on with it: {type(error).__name__}: {str(error)[:200]}") from error


def fine_tunes(part: str, points: int = 1) -> Property:
    """With the answer as `loss`, `clip` or `factor` the base has the engine's losses in three steps."""

    def law(call: Part) -> None:
        own, wanted = _going(lambda: _losses(**{part: call})), _engines()
        mine, theirs = (", ".join(f"{x:.5f}" for x in losses) for losses in (own, wanted))
        near = np.allclose(own, wanted, rtol=0, atol=CLOSE)
        demand(near, f"in {STEPS} steps of fine-tuning the base has the losses {mine} with it, and {theirs} without it")

    return Property("the base is fine-tuned with it", st.just(()), points, law)


def writes(points: int = 1) -> Property:
    """With the answer the base writes the text that it writes without it."""

    def law(call: Part) -> None:
        own, wanted = _going(lambda: _text(call)), _text()
        decode = kit.tokenizer().decode
        demand(own == wanted, f"the base wrote {decode(own)!r} with it, and without it {decode(wanted)!r}")

    return Property("the base writes with it", st.just(()), points, law)
