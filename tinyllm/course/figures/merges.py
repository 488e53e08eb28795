"""The merge lab: three ways to merge an adapter that was trained over four bits, in numbers and in words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinyllm.backend.device import to_host
from tinyllm.course.figures.figure import Figure, numbers
from tinyllm.frozen import stored
from tinyllm.lora.adapted import lora_layers
from tinyllm.lora.merge import merge_lora
from tinyllm.nn import Module

MOST = 256  # weights that are looked at one by one
TRAINED = "beside its base, as trained"
WAYS = {
    "dequantized": "the four-bit base as floats, and the update",
    "original": "the floats before they were quantised, and the update",
    "requantized": "the first, rounded to four bits again",
}


def merge_lab(
    model: Module,
    original: Mapping[str, Any],
    layer: str,
    loss: Callable[[Any], float] | None = None,
    write: Callable[[Any], str] | None = None,
) -> Figure:
    """Show what each way of merging keeps for single weights, what the loss is then, and what the model writes.

    Parameters
    ----------
    model : Module
        With an adapter that was trained over a base in four bits; it is left as it is.
    original : mapping of str to array
        The weights before they were quantised, ``kit.base().state_dict()``.
    layer : str
        The path of an adapted layer, whose first 256 weights are shown.
    loss : callable, optional
        Of a model: what is to be compared, ``lambda m: kit.held_out(m, 1)["jargon"]``.
    write : callable, optional
        Of a model: a text that it writes.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there is no such adapted layer, or a way of merging does not fit the model.
    """
    layers = dict(lora_layers(model))
    if layer not in layers:
        known = ", ".join(list(layers)[:3]) or "none"
        raise ValueError(f"{layer!r} is no adapted layer of this model; adapted are {known}, ...: model.get(path)")
    base = to_host(stored(layers[layer].base_layer.weight).dense())
    trained = to_host(layers[layer].fold(stored(layers[layer].base_layer.weight)))
    # `loss` and `write` may change what they are given, its mode at least.
    unmerged = copy.deepcopy(model)
    rows = [_row(TRAINED, "four bits, and A and B in floats", unmerged, trained, trained, None, loss, write)]
    for name, words in WAYS.items():
        merged: Any = merge_lora(copy.deepcopy(model), keep_base=False, base=original if name == "original" else name)
        weight = stored(merged.get(layer).weight)
        rows.append(_row(name, words, merged, to_host(weight.dense()), trained, weight.nbytes, loss, write))
    data = {"layer": layer, "base": numbers(_first(base)), "exact": numbers(_first(trained)), "ways": rows}
    words = (
        "The adapter was trained over a four-bit base. Choose what it is merged into, and a weight: what does the "
        "merged matrix hold, what is the loss, and what does the model write?"
    )
    return Figure("merges", "Merged into what?", words, data, lambda figure: _draw(figure, data))


def _first(w: np.ndarray) -> np.ndarray:
    return w.reshape(-1)[:MOST].astype(np.float32)


def _row(
    name: str,
    words: str,
    model: Any,
    weight: np.ndarray,
    trained: np.ndarray,
    nbytes: int | None,
    loss: Callable | None,
    write: Callable | None,
) -> dict[str, Any]:
    """What one way gives."""
    away = np.abs(weight.astype(np.float64) - trained)
    return {
        "name": name,
        "words": words,
        "weights": numbers(_first(weight)),
        "away": float(f"{away.mean():.4g}"),
        "bytes": nbytes,
        "loss": None if loss is None else float(f"{loss(model):.6g}"),
        "text": None if write is None else str(write(model)),
    }


def _draw(figure: Any, data: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    count = range(24)
    left.plot(count, data["base"][:24], "_", color="#444444", markersize=10, label="four-bit base")
    for row, color in zip(data["ways"][1:], ("#0072b2", "#009e73", "#d55e00"), strict=True):
        left.plot(count, row["weights"][:24], ".", color=color, label=row["name"])
    left.set(xlabel=f"weight of {data['layer']}", ylabel="value")
    left.legend(fontsize=7)
    has_loss = data["ways"][0]["loss"] is not None
    values = [row["loss" if has_loss else "away"] for row in data["ways"]]
    right.barh([row["name"].split(",")[0] for row in data["ways"]], values, color="#0072b2")
    right.set(xlabel="loss" if has_loss else "mean distance from what was trained", xlim=(0.9 * min(values), None))
