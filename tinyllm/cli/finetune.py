"""Fine-tune a model on a text; with no options, the embedded base on the embedded jargon file, with LoRA.

Prints the held-out loss and a sample before and after, and writes to --out: the adapter in PEFT's format (or the whole
model for --method full), log.jsonl, loss.png, run.json (the settings) and a checkpoint for --resume.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tinyllm import assets
from tinyllm.backend import random
from tinyllm.backend.device import set_device
from tinyllm.cli.generate import asked
from tinyllm.cli.memory import estimate, storage_in
from tinyllm.cli.options import (
    EMBEDDED,
    add_fields,
    add_model,
    add_template,
    chosen,
    megabytes,
    model_folder,
    refuse_below,
    refuse_beyond_context,
    refuse_ignored,
    refuse_out,
    targets_of,
)
from tinyllm.cli.progress import draw_losses
from tinyllm.cli.results import (
    ADAPTER,
    BESIDE,
    MODEL,
    RUN,
    alone,
    refuse_own_folder,
    refuse_what_no_run_wrote,
    remove_other_results,
)
from tinyllm.cli.samples import prompt_of, sample, show_samples
from tinyllm.cli.shortage import telling_the_plan
from tinyllm.cli.tokenizer_files import save_with_tokenizer
from tinyllm.cli.training import add_run, loaders, results_follow, show_data, train_with_bar
from tinyllm.data.batches import Loader
from tinyllm.data.text import refuse_ids_beyond, untemplated
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats.atomic import write_text
from tinyllm.frozen.nf4 import check_block_size
from tinyllm.inspect.plan import Plan, plan
from tinyllm.lora.config import LoRAConfig
from tinyllm.lora.peft.adapter import save_adapter
from tinyllm.lora.verbs import apply_lora, trainable_summary
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints.folder import load_config
from tinyllm.models.checkpoints.named import is_built_in
from tinyllm.models.config import DecoderConfig
from tinyllm.qlora import apply_qlora
from tinyllm.train import TrainConfig

BLOCK_SIZE = 64  # what storage="nf4" quantises with
READ_WHOLE = 1 << 26  # bytes of a file up to which a fingerprint reads it
# By method: for the embedded base, which is so small that it stands large steps, for a model of `tinyllm fetch`, small
# enough for larger ones than usual, and for a checkpoint of one's own.
LEARNING_RATES = {"full": (1e-3, 2e-5, 2e-5), "lora": (1e-2, 1e-3, 2e-4), "qlora": (1e-2, 1e-3, 2e-4)}
RATES_HELP = (
    "highest learning rate (default: 2e-4, full 2e-5; for smollm2-135m 1e-3, full 2e-5; for the embedded base 1e-2, "
    "full 1e-3)"
)
# Where a run of the command is other than `TrainConfig` without arguments.
TRAINING = {
    "steps": 300,
    "lr": (None, RATES_HELP),
    "save_every": 100,
    "seed": (TrainConfig.seed, "adapters, dropout, order"),
}
# What must be the same when resuming, beside `TrainConfig`, the data and the model's weights.
FIXED = (
    "model", "data", "method", "rank", "alpha", "dropout", "target_modules", "rslora", "dora", "bias", "block_size",
    "batch_size", "max_seq_len", "held_out",
)  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--data", help=".txt, .md, or .jsonl with prompt/completion, messages or text (default: embedded)"
    )
    add_template(parser)
    parser.add_argument(
        "--method", default="lora", choices=list(LEARNING_RATES),
        help="default: %(default)s; qlora keeps the base in four bits, the embedding and the head in float16",
    )  # fmt: skip
    lora = parser.add_argument_group("adapters")
    add_fields(lora, LoRAConfig, "rank", "alpha", "dropout", "use_rslora", "use_dora", "bias")
    lora.add_argument(
        "--target-modules", nargs="+", default=["all-linear"], metavar="NAME",
        help="names or suffixes, or all-linear (default); one argument with any of *+?[](){}|^$\\ in it is a regular "
        "expression for the whole name; see `tinyllm targets`",
    )  # fmt: skip
    lora.add_argument(
        "--block-size", type=int, default=BLOCK_SIZE,
        help="qlora: weights a scale (default: %(default)s; with any other the whole model is read as float32 first, "
        "and the embedding and the head stay float32)",
    )  # fmt: skip
    add_fields(lora, TrainConfig, "loraplus_ratio")
    run = parser.add_argument_group("training")
    numbers = ("steps", "lr", "schedule", "warmup", "weight_decay", "max_grad_norm", "grad_accum")
    add_fields(run, TrainConfig, *numbers, "eval_every", "eval_batches", "save_every", "seed", **TRAINING)
    run.add_argument(
        "--checkpointing", action="store_true", help="recompute blocks instead of keeping their activations"
    )
    add_run(run, out="runs/finetune", max_seq_len=128, held_out=0.1)
    sample = parser.add_argument_group("samples")
    sample.add_argument(
        "--prompt",
        help=r"text to continue before and after, or of chats a question to answer; \n is a new line (default: for the "
        "embedded data only)",
    )
    sample.add_argument("--sample-tokens", type=int, default=80, help="0 for none (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    refuse_settings(args)
    set_device(args.device)
    folder, out = model_folder(args.model), Path(args.out)
    with alone(out):
        finetune(args, folder, out, Console(highlight=False))


def finetune(args: argparse.Namespace, folder: Path, out: Path, console: Console) -> None:
    """The verb, with the folder to itself. Nothing in it is touched before everything that can be refused was seen."""
    refuse_own_folder(out, folder)
    refuse_what_no_run_wrote(out)
    shape = load_config(folder)
    refuse_beyond_context(args.max_seq_len, shape.max_seq_len)
    lr = default_lr(args.model, args.method) if args.lr is None else args.lr
    config = TrainConfig(**{**chosen(args, TrainConfig), "lr": lr})
    adapter = {**chosen(args, LoRAConfig), "target_modules": targets_of(args.target_modules)}
    random.manual_seed(args.seed)
    tokenizer = Tokenizer.load(folder)
    text = assets.path("jargon.txt") if args.data is None else args.data
    data = loaders(
        text, tokenizer, args.held_out, args.batch_size, args.max_seq_len, args.seed,
        template=args.template == "own", vocab_size=shape.vocab_size,
    )  # fmt: skip
    talker = tokenizer if args.template == "own" else untemplated(tokenizer)
    prompt, chat = prompt_of(args.prompt, args.data), data[0].dataset.chat
    if prompt is not None:
        refuse_ids_beyond(asked(talker, prompt, prompt if chat else None)[0], tokenizer, shape.vocab_size)
    storage = storage_of(args.method, args.block_size)
    planned = plan_of(  # with the data in memory, and nothing of the model yet
        folder, shape, args.method, storage, adapter,
        batch_size=args.batch_size, seq_len=args.max_seq_len, checkpointing=args.checkpointing,
        dtype=args.dtype,
    )  # fmt: skip
    console.print(estimate(planned), soft_wrap=True)
    with telling_the_plan(planned):
        model = DecoderModel.from_pretrained(folder, storage=storage, dtype=args.dtype)
        prepare(model, args.method, adapter, args.block_size)
        model.checkpointing = args.checkpointing
        if not args.resume and (out / RUN).is_file():
            line = f"replacing the earlier run in {escape(str(out))} once this one's results are there"
            console.print(line, soft_wrap=True)
        show_job(console, args.model, args.data, args.method, data, trainable_summary(model))
        before = sample(model, talker, prompt, chat, args.sample_tokens, args.seed)
        settings = {name: getattr(args, name) for name in FIXED} | {"model_fingerprint": fingerprint(folder)}
        with alone(out, make=not args.resume):
            result = train_with_bar(model, data, config, out, args.resume, settings, console)
            with results_follow():  # before anything else can fail
                lines = save(model, tokenizer, out, args.method)
                lines += save_about(out, {**vars(args), "lr": lr})
        after = sample(model, talker, prompt, chat, args.sample_tokens, args.seed)
    show_samples(console, prompt if not chat else f"{prompt}\n", before, after)
    show_result(console, result, planned, [*lines, next_command(args.model, args.method, out)])


def show_job(
    console: Console, model: str, file: str | None, method: str, data: tuple[Loader, Loader | None], trainable: str
) -> None:
    """What is trained on what, how much that is, and how many parameters train."""
    console.print(f"model {escape(model)}, data {escape(file or 'the embedded jargon file')}, method {method}")
    show_data(console, data)
    console.print(trainable)


def refuse_settings(args: argparse.Namespace) -> None:
    """Raise for options that are out of range or would do nothing, before anything is read or printed."""
    refuse_ignored(args, args.method)
    refuse_below(args, 0, "sample_tokens")
    if args.prompt is not None and args.sample_tokens == 0:
        warnings.warn("--sample-tokens 0 writes no samples, so --prompt has nothing to go on to", stacklevel=1)
    if args.held_out == 0 and "eval_every" in args.given and args.eval_every:
        warnings.warn("--held-out 0 holds nothing out, so --eval-every has nothing to look at", stacklevel=1)
    LoRAConfig(**chosen(args, LoRAConfig))
    if args.method == "qlora":
        check_block_size(args.block_size)
    refuse_out(Path(args.out))


def show_result(console: Console, result: dict[str, Any], planned: Plan, lines: list[str]) -> None:
    """What the run came to, and which files it wrote."""
    if result["before"] is not None:
        change = 100 * (result["after"] / result["before"] - 1)
        console.print(f"held-out loss {result['before']:.4f} -> {result['after']:.4f} ({change:+.1f} %)")
    console.print(
        f"learned {result['tokens']:,} tokens in {result['seconds']:.0f} s, "
        f"peak memory {megabytes(result['peak_memory'])} (planned {megabytes(planned.peak)})"
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def next_command(model: str, method: str, out: Path) -> str:
    """How to try what came out."""
    if method == "full":
        return f'try it: tinyllm generate --model {shlex.quote(str(out))} --prompt "..."'
    base = "" if model == EMBEDDED else f"--model {shlex.quote(model)} "
    return f'try it: tinyllm generate {base}--adapter {shlex.quote(str(out))} --prompt "..."'


def default_lr(model: str, method: str) -> float:
    """The learning rate of a run that names none."""
    embedded, fetched, other = LEARNING_RATES[method]
    if not is_built_in(model):
        return other
    return embedded if model == EMBEDDED else fetched


def storage_of(method: str, block_size: int) -> str:
    """How the model is read: four bits weight by weight where that can be, so that it never stands in float32."""
    return "nf4" if method == "qlora" and block_size == BLOCK_SIZE else "float32"


def plan_of(model: Path, shape: DecoderConfig, method: str, storage: str, adapter: dict[str, Any], **rows: Any) -> Plan:
    """What the run will hold, before anything of the model is read; `rows` says how many, how long, in which dtype."""
    storage, targets = storage_in(model, method, storage), None if method == "full" else adapter["target_modules"]
    also = {name: adapter[name] for name in ("rank", "dropout", "use_dora")}
    return plan(shape, method, storage=storage, target_modules=targets, **also, **rows)


def prepare(model: DecoderModel, method: str, adapter: dict[str, Any], block_size: int) -> None:
    """Make the model trainable by the method asked for; `adapter` has the fields of `LoRAConfig`."""
    if method == "lora":
        apply_lora(model, **adapter, verbose=False)
    elif method == "qlora":
        apply_qlora(model, **adapter, block_size=block_size, verbose=False)


def fingerprint(model: Path) -> str:
    """A hash of a model's configuration and weight files; of large files the size alone, which takes no time."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([model / "config.json", *model.glob("*.safetensors")]) if model.is_dir() else [model]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        if size <= READ_WHOLE:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def save(model: DecoderModel, tokenizer: Tokenizer, out: Path, method: str) -> list[str]:
    """Write the adapter, or the whole model, in the place of an earlier run's; returns a line that says so."""
    if method == "full":
        save_with_tokenizer(model, tokenizer, out)
        remove_other_results(out, (*MODEL, *BESIDE))
        return [f"model in {out}: config.json, model.safetensors, tokenizer.json"]
    save_adapter(model, out)
    remove_other_results(out, ADAPTER)
    size = (out / ADAPTER[1]).stat().st_size
    return [f"adapter in {out}: {', '.join(ADAPTER)} ({megabytes(size)})"]


def save_about(out: Path, options: dict[str, Any]) -> list[str]:
    """Draw the losses and write the settings down; returns a line that says so."""
    drawn = draw_losses(out / "log.jsonl", out / "loss.png")
    picture = "loss.png" if drawn else "no loss.png (pip install matplotlib draws it)"
    settings = {name: value for name, value in options.items() if name not in ("run", "verb", "given")}
    write_text(out / RUN, json.dumps(settings, default=str, indent=1))
    return [f"log.jsonl, {picture}, run.json (the settings), checkpoint.safetensors beside it"]
