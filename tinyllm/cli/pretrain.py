"""Train a small decoder from nothing; with no options, the embedded base on the embedded plays.

The result is a Hugging Face folder (Llama family) with its tokenizer, for --model of the other verbs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from tinyllm import assets
from tinyllm.backend.cpu.malloc import keep_freed_memory
from tinyllm.backend.device import set_device
from tinyllm.cli.options import megabytes, model_folder
from tinyllm.cli.progress import TrainingBar, draw_losses
from tinyllm.data.batches import Loader
from tinyllm.data.examples import split
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape
from tinyllm.train import TrainConfig, train


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="text, or .jsonl (default: the embedded plays)")
    parser.add_argument(
        "--tokenizer", default="base", metavar="FOLDER", help="folder with tokenizer.json (default: embedded)"
    )
    parser.add_argument(
        "--out", default="runs/pretrain", help="folder for model, log and checkpoint (default: %(default)s)"
    )
    parser.add_argument("--hidden-size", type=int, default=160, help="channels (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=5, help="blocks (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="query heads (default: %(default)s)")
    parser.add_argument("--kv-heads", type=int, default=2, help="key and value heads (default: %(default)s)")
    parser.add_argument("--intermediate-size", type=int, default=448, help="inside the MLP (default: %(default)s)")
    parser.add_argument("--max-seq-len", type=int, default=256, help="tokens a row (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=100, help="steps of warm-up (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="on matrices (default: %(default)s)")
    parser.add_argument(
        "--held-out", type=float, default=0.02, help="share of the text held out (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="initialisation, order (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])


def run(args: argparse.Namespace) -> None:
    console = Console()
    set_device(args.device)
    out = Path(args.out)
    tokenizer = Tokenizer.load(model_folder(args.tokenizer))
    text = load_text(args.data if args.data else assets.path("plays.txt.gz"), tokenizer)
    learn, rest = split(text, args.held_out, args.seed)
    shape = llama_shape(
        num_kv_heads=args.kv_heads, intermediate_size=args.intermediate_size, max_seq_len=args.max_seq_len
    )
    model = DecoderModel(tokenizer.vocab_size, args.hidden_size, args.layers, args.heads, seed=args.seed, **shape)
    console.print(f"{model.num_parameters():,} parameters")
    config = TrainConfig(
        steps=args.steps, lr=args.lr, warmup=args.warmup, weight_decay=args.weight_decay, seed=args.seed,
        eval_every=args.save_every, save_every=args.save_every,
    )  # fmt: skip
    loader = Loader(learn, args.batch_size, args.max_seq_len, args.seed)
    held_out = Loader(rest, args.batch_size, args.max_seq_len, args.seed) if len(rest) else None
    settings = {"batch_size": args.batch_size, "max_seq_len": args.max_seq_len, "model": model.describe()}
    # The starting weights are a function of the model's shape and the seed.
    settings |= {"held_out": args.held_out, "data_fingerprint": loader.fingerprint()}
    settings |= {"held_out_fingerprint": held_out.fingerprint() if held_out is not None else None}
    keep_freed_memory()  # this process trains and ends
    with TrainingBar(args.steps, console) as bar:
        result = train(model, loader, held_out, config, out, resume=args.resume, settings=settings, report=bar.report)
    model.save_pretrained(out)
    tokenizer.save(out)
    draw_losses(out / "log.jsonl", out / "loss.png")
    if held_out is not None:
        console.print(f"held-out loss {result['before']:.4f} -> {result['after']:.4f}")
    console.print(f"peak memory {megabytes(result['peak_memory'])}")
    console.print(f"the model is in {out}")
