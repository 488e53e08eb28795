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
from tinyllm.backend import random
from tinyllm.backend.device import set_device
from tinyllm.cli import fetch
from tinyllm.cli.generate import asked
from tinyllm.cli.memory import estimate
from tinyllm.cli.options import (
    EMBEDDED,
    add_fields,
    add_model,
    add_template,
    chosen,
    megabytes,
    model_folder,
    targets_of,
)
from tinyllm.cli.progress import draw_losses
from tinyllm.cli.results import (
    ADAPTER,
    BESIDE,
    MODEL,
    RUN,
    alone,
    refuse_what_no_run_wrote,
    remove_other_results,
)
from tinyllm.cli.shortage import telling_the_plan
from tinyllm.cli.training import add_run, loaders, results_follow, show_data, train_with_bar
from tinyllm.data.text import refuse_ids_beyond, untemplated
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats import json_file
from tinyllm.formats.atomic import write_text
from tinyllm.generate import generate
from tinyllm.inspect.plan import Plan, plan
from tinyllm.lora.config import LoRAConfig
from tinyllm.lora.peft.adapter import save_adapter
from tinyllm.lora.verbs import apply_lora, trainable_summary
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints.folder import load_config
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
    if args.sample_tokens < 0:
        raise ValueError(f"--sample-tokens must be at least 0, not {args.sample_tokens}")
    set_device(args.device)
    folder, out = model_folder(args.model), Path(args.out)
    with alone(out):
        finetune(args, folder, out, Console(highlight=False))


def finetune(args: argparse.Namespace, folder: Path, out: Path, console: Console) -> None:
    """The verb, with the folder to itself. Nothing in it is touched before everything that can be refused was seen."""
    refuse_own_folder(out, folder)
    refuse_what_no_run_wrote(out)
    shape = load_config(folder)
    if args.max_seq_len > shape.max_seq_len:
        raise ValueError(
            f"--max-seq-len {args.max_seq_len} is beyond the model's context of {shape.max_seq_len} tokens; give that "
            "or less"
        )
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
    )  # fmt: skip
    console.print(estimate(planned), soft_wrap=True)
    with telling_the_plan(planned):
        model = DecoderModel.from_pretrained(folder, storage=storage, dtype=args.dtype)
        prepare(model, args.method, adapter, args.block_size)
        model.checkpointing = args.checkpointing
        show_what(console, args, out, model, data)
        before = sample(model, talker, prompt, chat, args.sample_tokens, args.seed)
        settings = {name: getattr(args, name) for name in FIXED} | {"model_fingerprint": fingerprint(folder)}
        with alone(out, make=not args.resume):
            result = train_with_bar(model, data, config, out, args.resume, settings, console)
            with results_follow():  # before anything else can fail
                lines = save(model, tokenizer, out, args.model, args.method)
                lines += save_about(out, {**vars(args), "lr": lr})
        after = sample(model, talker, prompt, chat, args.sample_tokens, args.seed)
    show_samples(console, prompt if not chat else f"{prompt}\n", before, after)
    show_result(console, result, planned, lines)


def show_what(console: Console, args: argparse.Namespace, out: Path, model: DecoderModel, data: Any) -> None:
    """What will be trained on what, and what becomes of an earlier run."""
    if not args.resume and (out / RUN).is_file():
        line = f"replacing the earlier run in {escape(str(out))} once this one's results are there"
        console.print(line, soft_wrap=True)
    console.print(
        f"model {escape(args.model)}, data {escape(args.data or 'the embedded jargon file')}, method {args.method}"
    )
    show_data(console, data)
    console.print(trainable_summary(model))


def show_samples(console: Console, prompt: str | None, before: str | None, after: str | None) -> None:
    """The two continuations, one below the other; nothing where there is none."""
    if prompt is None or before is None or after is None:
        return
    for title, continuation in (("before", before), ("after", after)):
        console.rule(f"sample {title}", align="left")
        console.print(escape(prompt + continuation))
    console.rule()


def show_result(console: Console, result: dict[str, Any], planned: Plan, lines: list[str]) -> None:
    """What the run came to, and which files it wrote."""
    if result["before"] is not None:
        change = 100 * (result["after"] / result["before"] - 1)
        console.print(f"held-out loss {result['before']:.4f} -> {result['after']:.4f} ({change:+.1f} %)")
    console.print(
        f"{result['tokens']:,} tokens in {result['seconds']:.0f} s, peak memory {megabytes(result['peak_memory'])} "
        f"(planned {megabytes(planned.peak)})"
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def default_lr(model: str, method: str) -> float:
    """The learning rate of a run that names none."""
    embedded, fetched, other = LEARNING_RATES[method]
    return embedded if model == EMBEDDED else fetched if model in fetch.MODELS else other


def prompt_of(prompt: str | None, data: str | None) -> str | None:
    """What the samples continue: ``--prompt``, or what suits the embedded data, or nothing."""
    if prompt is None:
        return ":hacker:\n" if data is None else None
    if not prompt:
        raise ValueError("--prompt is empty; give it a text to continue, or leave it out")
    return prompt.replace("\\n", "\n")


def refuse_own_folder(out: Path, model: Path) -> None:
    """Raise a ValueError if the folder is the model's own."""
    if out.resolve() == model.resolve():
        raise ValueError(
            f"--out is the model's own folder {out}, which the results would overwrite; name another folder"
        )


def storage_of(method: str, block_size: int) -> str:
    """How the model is read: four bits weight by weight where that can be, so that it never stands in float32."""
    return "nf4" if method == "qlora" and block_size == BLOCK_SIZE else "float32"


def plan_of(model: Path, shape: DecoderConfig, method: str, storage: str, adapter: dict[str, Any], **rows: Any) -> Plan:
    """What the run will hold, before anything of the model is read; `rows` says how many and how long they are."""
    stored, full = model / "config.json", method == "full"
    if not full and stored.is_file() and json_file.read(stored).get("quantization_config"):
        storage = "nf4"  # what is stored so stays so
    targets = None if full else adapter["target_modules"]
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


def sample(
    model: DecoderModel, tokenizer: Tokenizer, prompt: str | None, chat: bool, tokens: int, seed: int
) -> str | None:
    """What the model makes of the prompt: how the text goes on, or in a chat what it answers."""
    if prompt is None or tokens < 1:
        return None
    prompt_ids, stop = asked(tokenizer, prompt, prompt if chat else None)
    ids = generate(model, prompt_ids, tokens, temperature=0.5, top_p=0.9, stop=stop, seed=seed)
    return tokenizer.decode(ids) if chat else tokenizer.decode_after(prompt_ids, ids)


def save(model: DecoderModel, tokenizer: Tokenizer, out: Path, base: str, method: str) -> list[str]:
    """Write the adapter, or the whole model, in the place of an earlier run's; returns a line that says so."""
    if method == "full":
        model.save_pretrained(out)
        tokenizer.save(out)
        remove_other_results(out, (*MODEL, *BESIDE))
        return [f"model in {out}: config.json, model.safetensors, tokenizer.json"]
    save_adapter(model, out, base_model_name_or_path=base)
    remove_other_results(out, ADAPTER)
    size = (out / "adapter_model.safetensors").stat().st_size
    return [f"adapter in {out}: adapter_config.json, adapter_model.safetensors ({megabytes(size)})"]


def save_about(out: Path, options: dict[str, Any]) -> list[str]:
    """Draw the losses and write the settings down; returns a line that says so."""
    drawn = draw_losses(out / "log.jsonl", out / "loss.png")
    picture = "loss.png" if drawn else "no loss.png (pip install matplotlib draws it)"
    settings = {name: value for name, value in options.items() if name not in ("run", "verb")}
    write_text(out / RUN, json.dumps(settings, default=str, indent=1))
    return [f"log.jsonl, {picture}, run.json (the settings), checkpoint.safetensors beside it"]
