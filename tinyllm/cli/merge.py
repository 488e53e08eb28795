"""Fold an adapter into its model and write the result as a model of its own, which needs no adapter any more.

Prints how far the logits of a short text move: by rounding and no more, since W x + s B A x = (W + s B A) x.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from tinyllm.adapters import load_adapter
from tinyllm.cli.options import add_base_storage, add_model, choose_model, load_base, model_folder
from tinyllm.frozen import FrozenWeight
from tinyllm.lora import lora_layers, merge_lora
from tinyllm.models import DecoderModel
from tinyllm.tensor import Parameter, no_grad

TEXT = "A hacker is one who enjoys exploring the details of systems."  # any text shows the change


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default=None)
    parser.add_argument("--adapter", required=True, metavar="FOLDER", help="an adapter in PEFT's format")
    add_base_storage(parser)
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
    layers = [(path, layer.lora_A[name].shape[0]) for path, layer in lora_layers(model) for name in layer.active]
    ids = np.array([tokenizer.encode(TEXT)[: model.config.max_seq_len]])
    with no_grad():
        beside = model(ids).numpy()  # (1, time, vocabulary)
        merge_lora(model, keep_base=False)
        for name, weight in list(model.named_weights()):  # what no adapter touched: one model, one dtype
            if isinstance(weight, FrozenWeight):
                model.set_weight(name, Parameter(weight.dense(), requires_grad=False))
        merged = model(ids).numpy()
    change, largest = float(np.abs(merged - beside).max()), float(np.abs(beside).max())
    model.save_pretrained(out)
    tokenizer.save(out)
    ends = ", ".join(sorted({path.rpartition(".")[2] for path, _ in layers}))
    ranks = ", ".join(str(rank) for rank in sorted({rank for _, rank in layers}))
    console.print(escape(base))
    console.print(f"merged {len(layers)} updates of rank {ranks} into {escape(args.model)}: {escape(ends)}")
    said = verdict(model, change, largest)
    console.print(f"largest change of a logit {change:.1e}, beside a largest logit of {largest:.1f}: {said}")
    console.print(f"the model is in {escape(str(out))}: config.json, model.safetensors, tokenizer.json")


def verdict(model: DecoderModel, change: float, largest: float) -> str:
    """Whether a change of the logits is rounding: eps for each product of a sum, layer after layer, and no more."""
    c = model.config
    budget = float(np.finfo(model.dtype).eps) * c.num_layers * max(c.hidden_size, c.intermediate_size) * largest
    if change <= budget:
        return "rounding"
    return f"WARNING, more than rounding ({budget:.1e}); compare what the two models say before you use this one"
