"""Fine-tune a model on a text; with no options, the embedded base on the embedded jargon file, with LoRA.

Prints the held-out loss and a sample before and after, and writes to --out: the adapter in PEFT's format (or the whole
model for --method full), log.jsonl, loss.png, run.json (the settings) and a checkpoint for --resume.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tinyllm import assets
from tinyllm.backend.cpu.malloc import keep_freed_memory
from tinyllm.backend.device import set_device
from tinyllm.cli import fetch
from tinyllm.cli.memory import estimate
from tinyllm.cli.options import EMBEDDED, add_model, megabytes, model_folder
from tinyllm.cli.progress import TrainingBar, draw_losses
from tinyllm.data.batches import Loader
from tinyllm.data.examples import split
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats import json_file
from tinyllm.formats.atomic import write_text
from tinyllm.generate import generate
from tinyllm.inspect.plan import Plan, plan
from tinyllm.lora.config import BIASES
from tinyllm.lora.peft.adapter import save_adapter
from tinyllm.lora.verbs import apply_lora, trainable_summary
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints.folder import load_config
from tinyllm.models.config import DecoderConfig
from tinyllm.qlora import apply_qlora
from tinyllm.train import TrainConfig, train

BLOCK_SIZE = 64  # what storage="nf4" quantises with
READ_WHOLE = 1 << 26  # bytes of a file up to which a fingerprint reads it
EXPRESSION = frozenset("*+?[](){}|^$\\")  # a dot is none: it parts the names in a path
RUN = "run.json"  # the settings of the run whose results stand beside it
RESULTS = (
    RUN, "adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "loss.png",
)  # fmt: skip
# By method: for the embedded base, which is so small that it stands large steps, for a model of `tinyllm fetch`, small
# enough for larger ones than usual, and for a checkpoint of one's own.
LEARNING_RATES = {"full": (1e-3, 2e-5, 2e-5), "lora": (1e-2, 1e-3, 2e-4), "qlora": (1e-2, 1e-3, 2e-4)}


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--data", help=".txt, .md, or .jsonl with prompt/completion, messages or text (default: embedded)"
    )
    parser.add_argument(
        "--method", default="lora", choices=["full", "lora", "qlora"],
        help="default: %(default)s; qlora keeps the base in four bits, the embedding and the head in float16",
    )  # fmt: skip
    lora = parser.add_argument_group("adapters")
    lora.add_argument("--rank", type=int, default=8, help="default: %(default)s")
    lora.add_argument(
        "--alpha", type=float, default=16.0, help="the update is scaled by alpha/rank (default: %(default)s)"
    )
    lora.add_argument("--dropout", type=float, default=0.0, help="on the adapter's input (default: %(default)s)")
    lora.add_argument(
        "--target-modules", nargs="+", default=["all-linear"], metavar="NAME",
        help="names or suffixes, or all-linear (default); one argument with any of *+?[](){}|^$\\ in it is a regular "
        "expression for the whole name; see `tinyllm targets`",
    )  # fmt: skip
    lora.add_argument("--rslora", action="store_true", help="scale by alpha/sqrt(rank)")
    lora.add_argument("--dora", action="store_true", help="train the lengths of the weights' rows, too (DoRA)")
    lora.add_argument(
        "--bias", default="none", choices=BIASES,
        help="which biases train: none (default), those of the adapted layers (lora_only), or all",
    )  # fmt: skip
    lora.add_argument(
        "--block-size", type=int, default=BLOCK_SIZE,
        help="qlora: weights a scale (default: %(default)s; with any other the whole model is read as float32 first, "
        "and the embedding and the head stay float32)",
    )  # fmt: skip
    lora.add_argument("--loraplus-ratio", type=float, default=1.0, help="B learns this much faster than A (default: 1)")
    run = parser.add_argument_group("training")
    run.add_argument("--steps", type=int, default=300, help="optimiser steps (default: %(default)s)")
    run.add_argument(
        "--lr",
        type=float,
        help="highest learning rate (default: 2e-4, full 2e-5; for smollm2-135m 1e-3, full 2e-5; for the embedded "
        "base 1e-2, full 1e-3)",
    )
    run.add_argument(
        "--schedule", default="cosine", choices=["constant", "linear", "cosine"], help="default: %(default)s"
    )
    run.add_argument("--warmup", type=int, default=10, help="steps of warm-up (default: %(default)s)")
    run.add_argument("--weight-decay", type=float, default=0.0, help="on matrices (default: %(default)s)")
    run.add_argument("--max-grad-norm", type=float, default=1.0, help="default: %(default)s")
    run.add_argument("--batch-size", type=int, default=8, help="rows a micro-batch (default: %(default)s)")
    run.add_argument("--grad-accum", type=int, default=1, help="micro-batches a step (default: %(default)s)")
    run.add_argument("--max-seq-len", type=int, default=128, help="tokens a row (default: %(default)s)")
    run.add_argument(
        "--checkpointing", action="store_true", help="recompute blocks instead of keeping their activations"
    )
    run.add_argument("--held-out", type=float, default=0.1, help="share of the data held out (default: %(default)s)")
    run.add_argument("--eval-every", type=int, default=50, help="steps between evaluations (default: %(default)s)")
    run.add_argument("--save-every", type=int, default=100, help="steps between checkpoints (default: %(default)s)")
    run.add_argument("--seed", type=int, default=0, help="adapters, dropout, order (default: %(default)s)")
    run.add_argument("--out", default="runs/finetune", help="folder for the results (default: %(default)s)")
    run.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")
    sample = parser.add_argument_group("samples")
    sample.add_argument(
        "--prompt", help=r"text to continue before and after; \n is a new line (default: for the embedded data only)"
    )
    sample.add_argument("--sample-tokens", type=int, default=80, help="0 for none (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    from tinyllm.backend import random

    console = Console(highlight=False)
    # Four bits weight by weight, so that the whole model never stands in float32.
    by_weight = args.method == "qlora" and args.block_size == BLOCK_SIZE
    storage = "nf4" if by_weight else "float32"
    set_device(args.device)
    folder = model_folder(args.model)
    shape = load_config(folder)
    context = shape.max_seq_len
    if args.max_seq_len > context:
        raise ValueError(
            f"--max-seq-len {args.max_seq_len} is beyond the model's context of {context} tokens; give that or less"
        )
    random.manual_seed(args.seed)
    tokenizer = Tokenizer.load(folder)
    text = load_text(args.data or assets.path("jargon.txt"), tokenizer)
    learn, rest = split(text, args.held_out, args.seed)
    loader = Loader(learn, args.batch_size, args.max_seq_len, args.seed)
    held_out = Loader(rest, args.batch_size, args.max_seq_len, args.seed) if len(rest) else None
    prompt = ":hacker:\n" if args.data is None else None
    if args.prompt is not None:
        prompt = args.prompt.replace("\\n", "\n")

    planned = plan_of(args, shape, storage)  # with the data in memory, and nothing of the model yet
    console.print(estimate(planned), soft_wrap=True)
    model = DecoderModel.from_pretrained(folder, storage=storage, dtype=args.dtype)
    prepare(model, args)
    model.checkpointing = args.checkpointing
    out = Path(args.out)
    if not args.resume:
        clear(out, model_folder(args.model), console)
    console.print(
        f"model {escape(args.model)}, data {escape(args.data or 'the embedded jargon file')}, method {args.method}"
    )
    console.print(trainable_summary(model))
    sample_before = sample(model, tokenizer, prompt, args)
    lr = default_lr(args) if args.lr is None else args.lr
    config = TrainConfig(
        steps=args.steps, lr=lr, schedule=args.schedule, warmup=args.warmup,
        grad_accum=args.grad_accum, weight_decay=args.weight_decay, max_grad_norm=args.max_grad_norm,
        loraplus_ratio=args.loraplus_ratio, seed=args.seed, eval_every=args.eval_every, save_every=args.save_every,
    )  # fmt: skip
    what = ("model", "data", "method", "rank", "alpha", "dropout", "target_modules", "rslora", "dora", "bias")
    settings = {name: getattr(args, name) for name in (*what, "block_size", "batch_size", "max_seq_len", "held_out")}
    settings |= {"data_fingerprint": loader.fingerprint(), "model_fingerprint": fingerprint(model_folder(args.model))}
    settings |= {"held_out_fingerprint": held_out.fingerprint() if held_out is not None else None}
    keep_freed_memory()  # this process trains and ends
    with TrainingBar(args.steps, console) as bar:
        result = train(model, loader, held_out, config, out, resume=args.resume, settings=settings, report=bar.report)
    written = save(model, tokenizer, args, out, lr)  # before anything else can fail
    sample_after = sample(model, tokenizer, prompt, args)

    if prompt is not None and sample_before is not None and sample_after is not None:
        for title, said in (("before", sample_before), ("after", sample_after)):
            console.rule(f"sample {title}", align="left")
            console.print(escape(prompt + said))
        console.rule()
    if held_out is not None:
        change = 100 * (result["after"] / result["before"] - 1)
        console.print(f"held-out loss {result['before']:.4f} -> {result['after']:.4f} ({change:+.1f} %)")
    console.print(
        f"{result['tokens']:,} tokens in {result['seconds']:.0f} s, peak memory {megabytes(result['peak_memory'])} "
        f"(planned {megabytes(planned.peak)})"
    )
    for line in written:
        console.print(line, soft_wrap=True)


def default_lr(args: argparse.Namespace) -> float:
    """The learning rate of a run that names none."""
    embedded, fetched, other = LEARNING_RATES[args.method]
    return embedded if args.model == EMBEDDED else fetched if args.model in fetch.MODELS else other


def clear(out: Path, model: Path, console: Console) -> None:
    """Remove an earlier run's results, so that they cannot be taken for this one's; only what run.json vouches for.

    Raises
    ------
    ValueError
        If the folder is the model's own.
    """
    if out.resolve() == model.resolve():
        raise ValueError(
            f"--out is the model's own folder {out}, which the results would overwrite; name another folder"
        )
    if (out / RUN).is_file():
        console.print(f"replacing the earlier run in {escape(str(out))}", soft_wrap=True)
        for name in RESULTS:
            (out / name).unlink(missing_ok=True)


def plan_of(args: argparse.Namespace, shape: DecoderConfig, storage: str) -> Plan:
    """What the run will hold, before anything of the model is read."""
    stored = model_folder(args.model) / "config.json"
    if args.method != "full" and stored.is_file() and json_file.read(stored).get("quantization_config"):
        storage = "nf4"  # what is stored so stays so
    return plan(
        shape, args.method, storage=storage, rank=args.rank, dropout=args.dropout,
        target_modules=None if args.method == "full" else chosen_targets(args), use_dora=args.dora,
        batch_size=args.batch_size, seq_len=args.max_seq_len, checkpointing=args.checkpointing,
    )  # fmt: skip


def chosen_targets(args: argparse.Namespace) -> Any:
    """``--target-modules`` as `apply_lora` takes it: a list of names, or one expression."""
    targets = args.target_modules
    if len(targets) == 1 and (targets[0] == "all-linear" or EXPRESSION & set(targets[0])):
        return targets[0]
    return targets


def prepare(model: DecoderModel, args: argparse.Namespace) -> None:
    """Make the model trainable by the method asked for."""
    if args.method == "full":
        return
    options = {
        "target_modules": chosen_targets(args),
        "use_rslora": args.rslora,
        "use_dora": args.dora,
        "bias": args.bias,
    }
    options["verbose"] = False
    if args.method == "lora":
        apply_lora(model, args.rank, args.alpha, args.dropout, **options)
    else:
        apply_qlora(model, args.rank, args.alpha, args.dropout, args.block_size, **options)


def fingerprint(model: Path) -> str:
    """A hash of a model's configuration and weight files; of large files the size alone, which takes no time."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([model / "config.json", *model.glob("*.safetensors")]) if model.is_dir() else [model]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        if size <= READ_WHOLE:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def sample(model: DecoderModel, tokenizer: Tokenizer, prompt: str | None, args: argparse.Namespace) -> str | None:
    """What the model makes of the prompt."""
    if prompt is None or args.sample_tokens < 1:
        return None
    stop = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    ids = generate(
        model, tokenizer.encode(prompt), args.sample_tokens, temperature=0.5, top_p=0.9, stop=stop, seed=args.seed
    )
    return tokenizer.decode(ids)


def save(model: DecoderModel, tokenizer: Tokenizer, args: argparse.Namespace, out: Path, lr: float) -> list[str]:
    """Write the adapter or the model, and the picture; returns what to say about it."""
    if args.method == "full":
        model.save_pretrained(out)
        tokenizer.save(out)
        what = f"model in {out}: config.json, model.safetensors, tokenizer.json"
    else:
        save_adapter(model, out, base_model_name_or_path=args.model)
        size = (out / "adapter_model.safetensors").stat().st_size
        what = f"adapter in {out}: adapter_config.json, adapter_model.safetensors ({megabytes(size)})"
    drawn = draw_losses(out / "log.jsonl", out / "loss.png")
    told = "loss.png" if drawn else "no loss.png (pip install matplotlib draws it)"
    options = {name: value for name, value in vars(args).items() if name not in ("run", "verb")}
    write_text(out / RUN, json.dumps({**options, "lr": lr}, default=str, indent=1))
    return [what, f"log.jsonl, {told}, run.json (the settings), checkpoint.safetensors beside it"]
