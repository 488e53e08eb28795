"""Write a model with its weights in four bits: bitsandbytes' NF4, which transformers reads, too.

Every linear layer but the head is quantised, one weight at a time; embedding, head, norms and biases stay floats.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from tinyllm.cli.options import megabytes, model_folder, refuse_out
from tinyllm.cli.results import add_force, refuse_own_folder, refuse_to_replace, replacing
from tinyllm.cli.tokenizer_files import save_with_tokenizer, tokenizer_of
from tinyllm.frozen import Weight, stored
from tinyllm.frozen.nf4 import BLOCK_SIZES, NF4Weight, bits_per_weight
from tinyllm.models import DecoderModel
from tinyllm.models.build import fill, storages
from tinyllm.models.checkpoints.folder import ModelFolder


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder as Hugging Face has it, or whatever --model takes")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--block-size", type=int, default=64, choices=BLOCK_SIZES, help="weights a scale (default: %(default)s)"
    )
    add_force(parser)
    parser.add_argument("--single", action="store_true", help="leave the scales in float32: 4.5 bits instead of 4.127")


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False)
    source, out = model_folder(args.model), Path(args.out)
    refuse_out(out)
    refuse_own_folder(out, source, option="OUT", what="quantising")
    refuse_to_replace(out, args.force)
    folder = None if source.is_file() else ModelFolder(source)
    tokenizer, about = tokenizer_of(source)
    if folder is None:  # GGUF: its reader makes a model of floats
        model = DecoderModel.from_pretrained(source)
    else:
        model = folder.skeleton(DecoderModel, "float32", np.float32)
    losses = Losses(storages(model, "nf4"), args.block_size, not args.single)

    def quantized(name: str, shape: tuple[int, ...]) -> Any:
        return losses.quantize(name, stored(model.get(name)) if folder is None else folder.read(name, shape))

    fill(model, quantized, largest_first=folder is not None)
    model.eval()
    if not losses.count:
        raise ValueError(f"{args.model} has no weights to quantise: they are in four bits already")
    with replacing(out):
        save_with_tokenizer(model, tokenizer, out, source)

    bits = bits_per_weight(losses.count, args.block_size, not args.single)
    console.print(
        f"{losses.count:,} of {model.num_parameters():,} weights in {bits:.3f} bits each "
        f"(NF4, blocks of {args.block_size}, scales in {'float32' if args.single else '8 bits'})"
    )
    console.print(f"{megabytes(size(source))} before, {megabytes(size(out))} after")
    console.print(f"relative error of those weights {losses.relative():.4f} (what is lost, as a share of their length)")
    console.print(f"the model is in {escape(str(out))}: config.json, model.safetensors, {escape(about)}")


class Losses:
    """Quantises the weights that `kept_as` says are kept in NF4, and adds up what they lose."""

    def __init__(self, kept_as: dict[str, str], block_size: int, double_quant: bool):
        self.kept_as, self.block_size, self.double_quant = kept_as, block_size, double_quant
        self.count, self.lost, self.all = 0, 0.0, 0.0

    def quantize(self, name: str, weight: Weight) -> Any:
        """The weight in NF4 if it is to be kept so, else its floats; one that is in NF4 already as it is."""
        if weight.storage == "nf4":
            return weight
        w = weight.dense()
        if self.kept_as[name] != "nf4":
            return w
        quantised = NF4Weight.quantize(w.astype(np.float32, copy=False), self.block_size, self.double_quant, name)
        self.count += w.size
        for part, floats in quantised.tiles():
            rows = w[part].astype(np.float64)
            self.all += float(np.vdot(rows, rows))
            rows -= floats
            self.lost += float(np.vdot(rows, rows))
        return quantised

    def relative(self) -> float:
        """The Frobenius norm of what all weights lost over that of the weights."""
        return (self.lost / self.all) ** 0.5 if self.all else 0.0


def size(path: Path) -> int:
    """Bytes of a model's weights on disk."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("model*.safetensors")))
