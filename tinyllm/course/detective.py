"""Three cases: something is wrong in a run of the base, and only what it does can be seen.

    case(1)                    what was noticed
    accuse(1, "...")           whether that is it, and what gives it away

Each run is made anew, with the mistake in it. Who reads on below knows the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyllm.backend.names import is_whole
from tinyllm.course import kit
from tinyllm.data.batches import Batch
from tinyllm.generate import generate
from tinyllm.lora import apply_lora, lora_layers
from tinyllm.models import DecoderModel
from tinyllm.optim import AdamW, clip_grad_norm

SUSPECTS = (
    "a learning rate of zero",
    "labels that are not moved: every token is asked for itself",
    "labels that are moved twice",
    "micro-batches added up where their mean is meant",
    "gradients that are not set back to zero between steps",
    "an adapter loaded without its alpha",
    "an adapter loaded into the wrong layers",
    "held-out text in the training text",
    "weight decay on the adapter",
)
STEPS, PARTS = 12, 4


@dataclass(frozen=True)
class Case:
    """What is wrong, what gives it away, and the run that shows what was noticed."""

    culprit: str
    why: str
    noticed: Callable[[], str]


def case(number: int) -> None:
    """Tell what was noticed in a run, and who is suspected.

    Parameters
    ----------
    number : {1, 2, 3}
    """
    found = _known(number)
    listed = "\n".join(f"* {suspect}" for suspect in SUSPECTS)
    kit.say(f"**Case {number}.** {found.noticed()}\n\nSuspected are:\n\n{listed}")


def accuse(number: int, suspect: str) -> None:
    """Tell whether it was this one, and if so, what gave it away.

    Parameters
    ----------
    number : {1, 2, 3}
    suspect : str
        As `case` lists them, or the beginning of one.

    Raises
    ------
    ValueError
        If there is no such case or suspect.
    """
    found = _known(number)
    meant = [s for s in SUSPECTS if isinstance(suspect, str) and suspect and s.startswith(suspect)]
    if len(meant) != 1:
        raise ValueError(f"the suspects are those that case({number}) lists, not {suspect!r}: write one as it is there")
    if meant[0] == found.culprit:
        kit.say(f"**Case {number} is solved**: {found.culprit}. {found.why}")
    else:
        kit.say(f"No: with {meant[0]} something else would have been noticed. What would it do to each of the numbers?")


def _known(number: int) -> Case:
    if not is_whole(number) or number not in CASES:
        raise ValueError(f"there are cases 1, 2 and 3, not {number!r}")
    return CASES[number]


def _adapted() -> DecoderModel:
    model = kit.base()
    with kit.seeded():  # whoever looks at a case draws the same numbers afterwards
        apply_lora(model, target_modules="all-linear", verbose=False)
    return model


def _run(
    model: DecoderModel,
    parts: Sequence[Sequence[Batch]],
    labels: Callable[[Batch], Any] = lambda batch: batch.labels,
    mean: bool = True,
    lr: float = 3e-3,
) -> tuple[list[float], list[float]]:
    """The loss and the gradient's norm of each step; a step is made of micro-batches."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses, norms = AdamW(trained, lr=lr), [], []
    for batches in parts:
        optimizer.zero_grad()
        found = []
        for batch in batches:
            loss = model.loss(batch.ids, labels(batch), batch.segment_ids)
            (loss * (1 / len(batches)) if mean else loss).backward()
            found.append(loss.item())
        norms.append(clip_grad_norm(trained, float("inf")))
        optimizer.step()
        losses.append(float(np.mean(found)))
    return losses, norms


def _steps(many: int) -> list[list[Batch]]:
    drawn = kit.batches(1, 48)
    return [[next(drawn) for _ in range(many)] for _ in range(STEPS)]


def _told(losses: list[float]) -> str:
    return f"from {losses[0]:.2f} to {losses[-1]:.2f}"


def _itself() -> str:
    model = _adapted()
    losses, _ = _run(model, _steps(4) * 3, labels=lambda batch: batch.ids, lr=1e-2)
    held = _held_out(model)
    prompt = kit.tokenizer().encode("A hacker is")
    model.eval()
    text = kit.tokenizer().decode(generate(model, prompt, 12))
    return (
        f"The loss of the batches falls {_told(losses)} in {len(losses)} steps, faster than ever before. But the "
        f"held-out loss, measured by somebody else's program, is {held:.2f} afterwards; the base's was {_base():.2f}. "
        f"Asked to go on from “A hacker is”, the model writes {text!r}."
    )


def _added_up() -> str:
    usual, norms = _run(_adapted(), _steps(PARTS))
    losses, own = _run(_adapted(), _steps(PARTS), mean=False)
    return (
        f"A step now has {PARTS} micro-batches in place of one large one, and nobody notices a difference: the loss "
        f"falls {_told(losses)}, with one large batch {_told(usual)}. Then somebody sets the clipping to 1, as in the "
        f"paper. At once nearly every step is clipped: the gradient's norm at the first step is {own[0]:.3f}; with the "
        f"large batch it was {norms[0]:.3f}."
    )


def _without_alpha() -> str:
    model = _adapted()
    _run(model, _steps(2))
    before, sizes = _held_out(model), [_update(model)]
    for _, layer in lora_layers(model):
        for adapter in layer.adding():
            adapter.scale = 1.0
    sizes.append(_update(model))
    return (
        f"After training the held-out loss is {before:.2f}. The adapter is saved, and loaded into a fresh base: now "
        f"it is {_held_out(model):.2f}; the base alone has {_base():.2f}. All arrays in the file are those of the "
        f"trained model, bit for bit, and each is where it belongs. But at one matrix the update has the size "
        f"{sizes[1]:.3f}, and before saving it had {sizes[0]:.3f}."
    )


def _update(model: DecoderModel) -> float:
    """The size of what the adapter adds to one matrix."""
    layers: dict[str, Any] = dict(lora_layers(model))
    layer = layers["layers.2.mlp.up_proj"]
    return float(np.linalg.norm(layer.folded()[0].data - layer.base_layer.weight.data))


def _held_out(model: DecoderModel) -> float:
    return kit.held_out(model, 1)["jargon"]


def _base() -> float:
    return _held_out(kit.base())


CASES = {
    1: Case(
        SUSPECTS[1],
        "To name the token that one has just been given is easy, so the loss falls like a stone; and a model that has "
        "learned it says its last token again and again. The program that measures moves the labels, and finds worse "
        "than nothing.",
        _itself,
    ),
    2: Case(
        SUSPECTS[3],
        "The gradient is as many times too large as there are micro-batches. AdamW divides by the gradient's size, so "
        "the steps stay as they were, and the losses, too. Only what looks at the size itself changes: clipping, and "
        "with it the steps.",
        _added_up,
    ),
    3: Case(
        SUSPECTS[5],
        "All arrays are right, so it is a number that is not in them. The update is smaller by exactly alpha / rank, "
        "which is 2 here: loaded, it has the scale 1. The loss lies between the base's and the trained one's.",
        _without_alpha,
    ),
}
