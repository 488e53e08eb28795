"""The ledger: what a step of training holds, from the small base to a model of 7 billion parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyllm.course import kit
from tinyllm.course.figures.figure import Figure
from tinyllm.inspect.plan import plan
from tinyllm.models.config import DecoderConfig, llama_shape

METHODS = {"full": "full training", "lora": "LoRA", "qlora": "QLoRA"}
PROCESS = "library"  # what Python, NumPy and this library take: of the machine, not of the model
ROOMS = {"laptop, 8 GB": 8e9, "card, 24 GB": 24e9, "card, 80 GB": 80e9}

# As published: vocabulary, width, layers, heads, heads of keys and values, inner width, whether the head is tied.
PUBLISHED = {
    "SmolLM2-135M": (49152, 576, 30, 9, 3, 1536, True),
    "SmolLM2-360M": (49152, 960, 32, 15, 5, 2560, True),
    "TinyLlama-1.1B": (32000, 2048, 22, 32, 4, 5632, False),
    "SmolLM2-1.7B": (49152, 2048, 24, 32, 32, 8192, True),
    "Llama-3.2-3B": (128256, 3072, 28, 24, 8, 8192, True),
    "Llama-2-7B": (32000, 4096, 32, 32, 32, 11008, False),
}


def published(name: str) -> DecoderConfig:
    """The shape of one of the models above."""
    vocab, width, layers, heads, kv, inner, tied = PUBLISHED[name]
    shape = llama_shape(num_kv_heads=kv, intermediate_size=inner, tie_embeddings=tied, max_seq_len=2048)
    return DecoderConfig(vocab, width, layers, heads, **shape)


def ledger(models: Mapping[str, DecoderConfig] | None = None, batch_size: int = 1, seq_len: int = 512) -> Figure:
    """Show what a step holds for models of several sizes, fully trained, with LoRA and with QLoRA.

    Parameters
    ----------
    models : mapping of str to DecoderConfig, optional
        By name, the smallest first; by default the embedded base and six published ones up to 7B.
    batch_size, seq_len : int
        Rows and tokens of a step.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there are no models, or one of them cannot be planned.

    Notes
    -----
    Every number is the engine's plan (`tinyllm.inspect.plan.plan`): two steps without content. What the process itself
    takes is left out. Blocks are computed again on the way back (checkpointing), as one would with a large model.
    """
    if models is None:
        models = {"the small base": kit.base().config, **{name: published(name) for name in PUBLISHED}}
    if not models:
        raise ValueError("the ledger needs models: {name: DecoderConfig}, or none for the published ones")
    rows = []
    for name, config in models.items():
        held = {}
        for method in METHODS:
            found = plan(config, method, batch_size=batch_size, seq_len=seq_len, checkpointing=True)
            held[method] = {part: n for part, n in found.by_category().items() if part != PROCESS}
        rows.append({"name": name, "parameters": found.parameters, "held": held})
    words = (
        "Move from small to large, and choose how it is trained. The bars are bytes at the fullest moment of a step, "
        "with floats of 32 bits, QLoRA's base in four, and blocks computed again on the way back; the dashed lines are "
        "what machines have."
    )
    data = {
        "models": rows,
        "methods": [{"key": key, "name": name} for key, name in METHODS.items()],
        "rooms": [{"name": name, "bytes": n} for name, n in ROOMS.items()],
        "step": f"{batch_size} x {seq_len} tokens",
    }
    title = "What a step of training holds"
    return Figure("ledger", title, words, data, lambda figure: _draw(figure, rows), (7.0, 3.8))


def _draw(figure: Any, rows: list[dict]) -> None:
    ax = figure.subplots()
    for k, (method, name) in enumerate(METHODS.items()):
        sums = [sum(row["held"][method].values()) / 1e9 for row in rows]
        places = [i + 0.27 * (k - 1) for i in range(len(rows))]
        ax.bar(places, sums, 0.25, label=name, color=["#999999", "#0072b2", "#d55e00"][k])
    for name, room in ROOMS.items():
        ax.axhline(room / 1e9, color="#444444", linestyle="--", linewidth=0.8)
        ax.text(-0.4, room / 1e9 * 1.05, name, fontsize=8)
    ax.set(yscale="log", ylabel="GB at the fullest moment")
    ax.set_xticks(range(len(rows)), [row["name"] for row in rows], fontsize=8, rotation=15)
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)  # inside it would lie over bars
