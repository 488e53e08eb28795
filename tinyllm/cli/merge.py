"""Fold an adapter into its model and write the result as a model of its own, which needs no adapter any more.

W x + s B A x = (W + s B A) x, so nothing changes but rounding, as long as W is what the adapter was trained over and
the sum is kept as it is; --base asks for something else. How far the logits and the loss move is measured and printed.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from tinyllm import assets
from tinyllm.cli.options import add_base_storage, add_model, choose_model, load_base, load_model, model_folder
from tinyllm.data.batches import Loader
from tinyllm.data.examples import split
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.lora.adapted import lora_layers
from tinyllm.lora.merge import merge_lora
from tinyllm.lora.peft.adapter import load_adapter
from tinyllm.models import DecoderModel
from tinyllm.tensor import Parameter, no_grad
from tinyllm.train.loop import evaluate

TEXT = "A hacker is one who enjoys exploring the details of systems."  # any text shows the change
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
        help="text the adapter has not seen, to measure the loss on (default: of the jargon file)",
    )
    parser.add_argument(
        "--untie", action="store_true", help="give a head that is tied to the embedding a weight of its own, if adapted"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the merged model goes")


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False)
    out = Path(args.out)
    choose_model(args)
    for kind, folder in (("model", model_folder(args.model)), ("adapter", Path(args.adapter))):
        if out.resolve() == folder.resolve():
            raise ValueError(
                f"--out is the {kind}'s own folder {folder}, which merging would overwrite; name another folder"
            )
    model, tokenizer, base = load_base(args)
    load_adapter(model, args.adapter)
    model.eval()
    loader = held_out(args.data, tokenizer, model)
    layers = [(path, adapter.lora_A.shape[0]) for path, layer in lora_layers(model) for adapter in layer.adding()]
    stored = [layer.base_layer.weight for _, layer in lora_layers(model) if layer.adding()]
    logits, loss = measure(model, tokenizer, loader)
    if args.base == "requantized" and not any(isinstance(weight, NF4Weight) for weight in stored):
        raise ValueError(
            "--base requantized is for an adapter over a base in four bits, and this one is not; leave it out, and see "
            "`tinyllm quantize` for the merged model"
        )
    if args.base == "original":
        if any(isinstance(weight, NF4Weight) for weight in stored):
            del model, stored  # two models never stand side by side
            gc.collect()
            model = original(args)
            load_adapter(model, args.adapter)
            model.eval()
        stored = []
    half = next((w.storage for w in stored if isinstance(w, HalfWeight)), None)
    merge_lora(model, keep_base=False, base="requantized" if half or args.base == "requantized" else "dequantized",
               untie=args.untie)  # fmt: skip
    if args.base == "dequantized" and not half:  # what no adapter touched: one model, one dtype
        for name, weight in list(model.named_weights()):
            if isinstance(weight, FrozenWeight):
                model.set_weight(name, Parameter(weight.dense(), requires_grad=False))
    merged, after = measure(model, tokenizer, loader)
    model.save_pretrained(out)
    tokenizer.save(out)

    ends = ", ".join(sorted({path.rpartition(".")[2] for path, _ in layers}))
    ranks = ", ".join(str(rank) for rank in sorted({rank for _, rank in layers}))
    console.print(escape(base))
    console.print(f"merged {len(layers)} updates of rank {ranks} into {escape(args.model)}: {escape(ends)}")
    kept = half or ("nf4" if any(isinstance(w, NF4Weight) for _, w in model.named_weights()) else str(model.dtype))
    console.print(f"--base {args.base}: {BASES[args.base]}; computed in {model.dtype}, written as {kept}")
    change, largest = float(np.abs(merged - logits).max()), float(np.abs(logits).max())
    said = verdict(model, change, largest, kept if args.base == "dequantized" else args.base)
    console.print(f"largest change of a logit {change:.1e}, beside a largest logit of {largest:.1f}: {said}")
    of = args.data or "the embedded jargon file's held-out tenth"
    console.print(f"loss on {tokens(loader):,} tokens of {escape(str(of))}: {loss:.4f} as trained, {after:.4f} merged "
                  f"({after - loss:+.4f})")  # fmt: skip
    console.print(f"the model is in {escape(str(out))}: config.json, model.safetensors, tokenizer.json")


def held_out(data: str | None, tokenizer: Tokenizer, model: DecoderModel) -> Loader:
    """Text to measure a loss on: a file, all of it, or the part of the jargon file that finetune holds out."""
    text: Any = load_text(data or assets.path("jargon.txt"), tokenizer)
    if data is None:
        text = split(text, 0.1, seed=0)[1]
    return Loader(text, ROWS, min(LENGTH, model.config.max_seq_len), seed=0)


def tokens(loader: Loader) -> int:
    return sum(loader.batch(i).live for i in range(min(BATCHES, len(loader))))


def measure(model: DecoderModel, tokenizer: Tokenizer, loader: Loader) -> tuple[np.ndarray, float]:
    """The logits of `TEXT`, (1, time, vocabulary), and the mean loss of the first batches."""
    with no_grad():
        logits = model(np.array([tokenizer.encode(TEXT)[: model.config.max_seq_len]])).numpy()
    return logits, evaluate(model, loader, BATCHES)


def original(args: argparse.Namespace) -> DecoderModel:
    """The model in float, as its folder has it.

    Raises
    ------
    ValueError
        If the folder itself holds four-bit weights: then there is no original here.
    """
    model, _ = load_model(args, "float32")
    if any(isinstance(weight, NF4Weight) for _, weight in model.named_weights()):
        raise ValueError(
            f"{args.model} is itself in four bits, so the original weights are not here; use --base dequantized, or "
            "--model with the folder it was quantised from"
        )
    return model


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
