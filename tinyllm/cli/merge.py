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
from tinyllm.cli.common import add_model, load_model, model_folder
from tinyllm.lora import lora_layers, merge_lora
from tinyllm.tensor import no_grad

TEXT = "A hacker is one who enjoys exploring the details of systems."  # any text shows the change


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--adapter", required=True, metavar="FOLDER", help="an adapter in PEFT's format")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the merged model goes")


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False)
    out = Path(args.out)
    for kind, folder in (("model", model_folder(args.model)), ("adapter", Path(args.adapter))):
        if out.resolve() == folder.resolve():
            raise ValueError(
                f"--out is the {kind}'s own folder {folder}, which merging would overwrite; name another folder"
            )
    model, tokenizer = load_model(args)
    load_adapter(model, args.adapter)
    model.eval()
    layers = [(path, layer.lora_A[name].shape[0]) for path, layer in lora_layers(model) for name in layer.active]
    ids = np.array([tokenizer.encode(TEXT)[: model.config.max_seq_len]])
    with no_grad():
        beside = model(ids).numpy()  # (1, time, vocabulary)
        merge_lora(model, keep_base=False)
        merged = model(ids).numpy()
    change, largest = float(np.abs(merged - beside).max()), float(np.abs(beside).max())
    model.save_pretrained(out)
    tokenizer.save(out)
    ends = ", ".join(sorted({path.rpartition(".")[2] for path, _ in layers}))
    ranks = ", ".join(str(rank) for rank in sorted({rank for _, rank in layers}))
    console.print(f"merged {len(layers)} updates of rank {ranks} into {escape(args.model)}: {escape(ends)}")
    console.print(f"largest change of a logit {change:.1e}, beside a largest logit of {largest:.1f}: rounding")
    console.print(f"the model is in {escape(str(out))}: config.json, model.safetensors, tokenizer.json")
