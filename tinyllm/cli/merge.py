"""Fold an adapter into its model and write the result as a model of its own, which needs no adapter any more.

W x + s B A x = (W + s B A) x, so nothing changes but rounding, as long as W is what the adapter was trained over and
the sum is kept as it is; --base asks for something else. With --data it is measured on that text how far the logits and
the loss move. What came with the model goes with it: special tokens, generation_config.json, tokenizer, chat template.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from tinyllm.cli.options import (
    add_base_storage,
    add_model,
    choose_model,
    load_base_weights,
    load_weights,
    model_folder,
    refuse_out,
    take_template,
)
from tinyllm.cli.results import add_force, refuse_own_folder, refuse_to_replace, replacing
from tinyllm.cli.tokenizer_files import save_with_tokenizer, tokenizer_of
from tinyllm.data.batches import Loader
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats.state import refuse_non_finite
from tinyllm.frozen import Weight, stored
from tinyllm.lora.adapted import lora_layers
from tinyllm.lora.merge import merge_lora
from tinyllm.lora.peft.adapter import load_adapter
from tinyllm.models import DecoderModel
from tinyllm.tensor import Parameter, no_grad
from tinyllm.train.loop import evaluate

BATCHES, ROWS, LENGTH = 8, 4, 128  # 4,096 tokens tell a loss to some hundredths, a change of it much better
BASES = {
    "dequantized": "what the adapter was trained over, in float",
    "original": "the weights of the model's folder, never quantised",
    "requantized": "what the adapter was trained over, and quantised again: as small, but the update is rounded too",
}


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default=None)
    parser.add_argument("--adapter", required=True, metavar="FOLDER", help="an adapter in PEFT's format")
    add_base_storage(parser)
    parser.add_argument(
        "--base", choices=BASES, default="dequantized",
        help="what to add the update to: " + "; ".join(f"{name}, {what}" for name, what in BASES.items())
        + " (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="text the adapter has not seen, to measure the change of logits and loss on (default: not measured)",
    )
    parser.add_argument(
        "--untie", action="store_true", help="give a head that is tied to the embedding a weight of its own, if adapted"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the merged model goes")
    add_force(parser)


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False)
    out = Path(args.out)
    refuse_out(out)
    name, warning = choose_model(args.model, args.adapter)
    for kind, folder in (("model", model_folder(name)), ("adapter", Path(args.adapter))):
        refuse_own_folder(out, folder, kind, what="merging")
    refuse_to_replace(out, args.force)
    source = model_folder(name)
    tokenizer, about = tokenizer_of(source)
    model, base = load_base_weights(name, args.adapter, args.base_storage, args.device, args.dtype)
    if tokenizer is not None:
        base += take_template(tokenizer, args.adapter)
    load_adapter(model, args.adapter)
    model.eval()
    refuse_non_finite(dict(model.named_weights()))
    loader = None if args.data is None else text_of(args.data, tokenizer, model, source)
    updates = updates_of(model)
    before = None if loader is None else measure(model, loader)
    if args.base == "original" and is_in_four_bits(model):
        del model  # two models never stand side by side
        gc.collect()
        model = original(name, args.device, args.dtype)
        load_adapter(model, args.adapter)
        model.eval()
    written_as = fold(model, args.base, args.untie)
    after = None if loader is None else measure(model, loader)
    with replacing(out):
        save_with_tokenizer(model, tokenizer, out, source)
    console.print(escape(base + warning))
    console.print(f"merged {updates[0]} into {escape(name)}: {escape(updates[1])}")
    console.print(f"--base {args.base}: {BASES[args.base]}; computed in {model.dtype}, written as {written_as}")
    if loader is None or before is None or after is None:
        console.print("what this changed was not measured; --data FILE measures it on that text")
    else:
        show_change(console, model, before, after, written_as if args.base == "dequantized" else args.base)
        console.print(
            f"loss on {tokens(loader):,} tokens of {escape(args.data)}: {before[1]:.4f} as trained, {after[1]:.4f} "
            f"merged ({after[1] - before[1]:+.4f})"
        )
    console.print(f"the model is in {escape(str(out))}: config.json, model.safetensors, {escape(about)}")


def updates_of(model: DecoderModel) -> tuple[str, str]:
    """How many updates of which rank there are, and the names of their layers."""
    updates = [(path, adapter.lora_A.shape[0]) for path, layer in lora_layers(model) for adapter in layer.adding()]
    ranks = ", ".join(str(rank) for rank in sorted({rank for _, rank in updates}))
    names = ", ".join(sorted({path.rpartition(".")[2] for path, _ in updates}))
    return f"{len(updates)} updates of rank {ranks}", names


def adapted_weights(model: DecoderModel) -> list[Weight]:
    """The weights that the updates are added to."""
    return [stored(layer.base_layer.weight) for _, layer in lora_layers(model) if layer.adding()]


def is_in_four_bits(model: DecoderModel) -> bool:
    """Whether any of those weights is kept in NF4."""
    return any(weight.storage == "nf4" for weight in adapted_weights(model))


def fold(model: DecoderModel, base: str, untie: bool) -> str:
    """Merge for good, as ``--base`` says; returns what the weights are then kept as.

    Raises
    ------
    ValueError
        If a base that is not in four bits shall be quantised again.
    """
    if base == "requantized" and not is_in_four_bits(model):
        raise ValueError(
            "--base requantized is for an adapter over a base in four bits, and this one is not; leave it out, and see "
            "`tinyllm quantize` for the merged model"
        )
    half = next((w.storage for w in adapted_weights(model) if w.frozen and w.storage != "nf4"), None)
    half = None if base == "original" else half
    as_stored = half or base == "requantized"
    merge_lora(model, keep_base=False, base="requantized" if as_stored else "dequantized", untie=untie)
    if base == "dequantized" and not half:  # what no adapter touched: one model, one dtype
        for name, weight in list(model.named_weights()):
            if not isinstance(weight, Parameter):
                model.set_weight(name, Parameter(weight.dense(), requires_grad=False))
    return half or ("nf4" if any(stored(w).storage == "nf4" for _, w in model.named_weights()) else str(model.dtype))


def text_of(data: str, tokenizer: Tokenizer | None, model: DecoderModel, source: Path) -> Loader:
    """The text to measure on.

    Raises
    ------
    ValueError
        If there is no tokenizer to read it with.
    """
    if tokenizer is None:
        raise ValueError(f"--data takes a tokenizer, and there is none in {source} that can be read; leave out --data")
    text = load_text(data, tokenizer, vocab_size=model.config.vocab_size)
    return Loader(text, ROWS, min(LENGTH, model.config.max_seq_len), seed=0)


def tokens(loader: Loader) -> int:
    return sum(loader.batch(i).live for i in range(min(BATCHES, len(loader))))


def measure(model: DecoderModel, loader: Loader) -> tuple[np.ndarray, float]:
    """The logits of the first row, (1, time, vocabulary), and the mean loss of the first batches."""
    with no_grad():
        logits = model(loader.batch(0).ids[:1]).numpy()
    return logits, evaluate(model, loader, BATCHES)


def original(name: str, device: str, dtype: str) -> DecoderModel:
    """The model in float, as its folder has it.

    Raises
    ------
    ValueError
        If the folder itself holds four-bit weights: then there is no original here.
    """
    model = load_weights(name, device, dtype)
    if any(stored(weight).storage == "nf4" for _, weight in model.named_weights()):
        raise ValueError(
            f"{name} is itself in four bits, so the original weights are not here; use --base dequantized, or "
            "--model with the folder it was quantised from"
        )
    return model


def show_change(
    console: Console, model: DecoderModel, before: tuple[np.ndarray, float], after: tuple[np.ndarray, float], kept: str
) -> None:
    """How far the logits moved, and whether that is rounding."""
    change, largest = float(np.abs(after[0] - before[0]).max()), float(np.abs(before[0]).max())
    cause = verdict(model, change, largest, kept)
    console.print(f"largest change of a logit {change:.1e}, beside a largest logit of {largest:.1f}: {cause}")


def verdict(model: DecoderModel, change: float, largest: float, kept: str) -> str:
    """Whether a change of the logits is rounding: eps for each product of a sum, layer after layer, and no more."""
    c = model.config
    eps = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(kept, float(np.finfo(model.dtype).eps))
    budget = eps * c.num_layers * max(c.hidden_size, c.intermediate_size) * largest
    if kept in ("float16", "bfloat16"):
        return f"the rounding of every weight to {kept}" if change <= budget else "WARNING, more than such rounding"
    if change <= budget:
        return "rounding"
    if kept in BASES:
        return "the price of this base; --base dequantized changes rounding only"
    return f"WARNING, more than rounding ({budget:.1e}); compare what the two models say before you use this one"
