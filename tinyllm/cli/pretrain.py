"""Train a small decoder from nothing; with no options, the embedded base on the embedded plays.

The result is a Hugging Face folder (Llama family) with its tokenizer, for --model of the other verbs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from tinyllm import assets
from tinyllm.backend.device import set_device
from tinyllm.cli.options import (
    EMBEDDED,
    add_device,
    add_fields,
    chosen,
    megabytes,
    model_folder,
    refuse_below,
    refuse_out,
)
from tinyllm.cli.progress import draw_losses
from tinyllm.cli.results import BESIDE, MODEL, alone, refuse_what_no_run_wrote, remove_other_results
from tinyllm.cli.tokenizer_files import save_with_tokenizer
from tinyllm.cli.training import add_run, loaders, results_follow, show_data, train_with_bar
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.train import TrainConfig

# The embedded base: its shape, and how it was trained.
SHAPE = {
    "hidden-size": (160, "channels"),
    "layers": (5, "blocks"),
    "heads": (4, "query heads"),
    "kv-heads": (2, "key and value heads"),
    "intermediate-size": (448, "inside the MLP"),
}
TRAINING = {
    "steps": 5000,
    "lr": 3e-3,
    "warmup": 100,
    "weight_decay": 0.1,
    "seed": (1, "initialisation, order"),
    "save_every": (500, "steps between checkpoints, and between evaluations"),
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="text, or .jsonl (default: the embedded plays)")
    parser.add_argument(
        "--tokenizer", default=EMBEDDED, metavar="FOLDER", help="folder with tokenizer.json (default: embedded)"
    )
    for name, (default, text) in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: %(default)s)")
    add_fields(parser, TrainConfig, *TRAINING, "eval_batches", **TRAINING)
    add_run(parser, out="runs/pretrain", max_seq_len=256, held_out=0.02)
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    refuse_below(args, 1, *(name.replace("-", "_") for name in SHAPE))
    config = TrainConfig(**chosen(args, TrainConfig), eval_every=args.save_every)
    set_device(args.device)
    out = Path(args.out)
    refuse_out(out)
    with alone(out):
        pretrain(args, config, out, Console())


def pretrain(args: argparse.Namespace, config: TrainConfig, out: Path, console: Console) -> None:
    """The verb, with the folder to itself."""
    refuse_what_no_run_wrote(out)
    tokenizer = Tokenizer.load(model_folder(args.tokenizer))
    data = loaders(
        assets.path("plays.txt.gz") if args.data is None else args.data,
        tokenizer, args.held_out, args.batch_size, args.max_seq_len, args.seed,
    )  # fmt: skip
    shape = llama_shape(
        num_kv_heads=args.kv_heads, intermediate_size=args.intermediate_size, max_seq_len=args.max_seq_len
    )
    model = DecoderModel(tokenizer.vocab_size, args.hidden_size, args.layers, args.heads, seed=args.seed, **shape)
    show_data(console, data)
    console.print(f"{model.num_parameters():,} parameters")
    # The starting weights are a function of the model's shape and the seed.
    settings = {name: getattr(args, name) for name in ("batch_size", "max_seq_len", "held_out")}
    settings["model"] = model.describe()
    with alone(out, make=not args.resume):
        result = train_with_bar(model, data, config, out, args.resume, settings, console)
        with results_follow():
            save_with_tokenizer(model, tokenizer, out)
            remove_other_results(out, (*MODEL, *BESIDE))
            draw_losses(out / "log.jsonl", out / "loss.png")
    if result["before"] is not None:
        console.print(f"held-out loss {result['before']:.4f} -> {result['after']:.4f}")
    console.print(f"peak memory {megabytes(result['peak_memory'])}")
    console.print(f"the model is in {out}")
