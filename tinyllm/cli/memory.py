"""How much memory training takes, before anything is loaded: full, LoRA and QLoRA side by side, or one run in detail.

Training steps are run on arrays without content, so the figures are those of the very code. MODEL is a folder, a GGUF
file, or one of the shapes llama-2-7b and llama-2-13b. GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyllm.cli.options import add_fields, add_rows, megabytes, model_folder, refuse_below, refuse_ignored, targets_of
from tinyllm.inspect.plan import STORAGE, Plan, plan
from tinyllm.lora.config import LoRAConfig
from tinyllm.models.build import STORAGES
from tinyllm.models.checkpoints.folder import load_config
from tinyllm.models.config import DecoderConfig, llama_shape

SHAPES = {
    "llama-2-7b": DecoderConfig(
        32000, 4096, 32, 32, **llama_shape(intermediate_size=11008, max_seq_len=4096, tie_embeddings=False)
    ),
    "llama-2-13b": DecoderConfig(
        32000, 5120, 40, 40, **llama_shape(intermediate_size=13824, max_seq_len=4096, tie_embeddings=False)
    ),
}
CARDS = (8, 16, 24)  # GB
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
# The guide's columns: what the base is kept as, the bytes a weight, the share that trains.
GUIDE = {"full": ("float32", 4.0, 100.0), "lora": ("float16", 2.0, 10.0), "qlora": ("nf4", 0.5, 5.0)}
EXPLAINED = {
    "base": "base weights", "adapters": "adapters", "gradients": "gradients", "optimizer": "optimiser (AdamW)",
    "activations": "activations", "head": "head and loss", "tiles": "unpacked tiles",
    "library": "the process itself",
}  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="llama-2-7b", metavar="MODEL",
        help="a folder, a GGUF file, the name of a model, llama-2-7b or llama-2-13b (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--method", choices=list(STORAGE), help="one method in detail (default: all three, compared)")
    parser.add_argument(
        "--storage", choices=STORAGES,
        help="what the base is kept as (default: lora float16, qlora nf4, full float32)",
    )  # fmt: skip
    add_fields(parser, LoRAConfig, "rank")
    parser.add_argument(
        "--target-modules", nargs="+", metavar="NAME", help="as for finetune (default: attention's layers)"
    )
    add_rows(parser, max_seq_len=512, batch_size=1)
    parser.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, default=True,
        help="recompute blocks instead of keeping their activations (default: yes)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="bytes by category, for programs")


def run(args: argparse.Namespace) -> None:
    refuse_below(args, 1, "rank", "batch_size", "max_seq_len")
    if args.method:
        refuse_ignored(args, args.method)
    config = SHAPES[args.model] if args.model in SHAPES else load_config(model_folder(args.model))
    options = {"rank": args.rank, "target_modules": targets_of(args.target_modules), "batch_size": args.batch_size}
    options |= {"checkpointing": args.checkpointing}
    methods = [args.method] if args.method else list(STORAGE)
    storages = {m: args.storage if args.storage and args.method else GUIDE[m][0] for m in methods}
    plans = {m: plan(config, m, storage=storages[m], seq_len=args.max_seq_len, **options) for m in methods}
    fits = {m: longest(config, m, storages[m], plans[m], options) for m in methods}
    if args.json:
        print(json.dumps(as_json(args, plans, storages, fits), indent=1))
        return
    show(Console(highlight=False), args, plans, storages, fits)


def longest(
    config: DecoderConfig, method: str, storage: str, first: Plan, options: dict[str, Any]
) -> dict[int, int | None]:
    """For each card the most tokens a row (64, 128, 256, ...) with which a step fits; None if none does.

    What the library takes is left out: it does not live on the card.
    """
    found: dict[int, int | None] = dict.fromkeys(CARDS)
    if first.base + first.optimizer > max(CARDS) * 10**9:
        return found
    length = 64
    while length <= config.max_seq_len:
        need = _beside_the_library(config, method, storage, {**options, "seq_len": length})
        for card in CARDS:
            if need <= card * 10**9:
                found[card] = length
        if found[max(CARDS)] != length:
            break
        length *= 2
    return found


def _beside_the_library(config: DecoderConfig, method: str, storage: str, options: dict[str, Any]) -> int:
    """The peak without the library. Of an adapted model each further layer adds the same: two are planned, not all."""

    def at(layers: int) -> int:
        there = plan(replace(config, num_layers=layers), method, storage=storage, **options)
        return there.peak - there.library

    if method == "full" or config.num_layers <= 4:
        return at(config.num_layers)
    three, four = at(3), at(4)
    return four + (config.num_layers - 4) * (four - three)


def as_json(
    args: argparse.Namespace, plans: dict[str, Plan], storages: dict[str, str], fits: dict[str, dict]
) -> dict[str, Any]:
    """Bytes by category for each method."""
    methods = {
        m: {
            "storage": storages[m], **asdict(p), "peak": p.peak,
            "rule_of_thumb": {"base": round(GUIDE[m][1] * p.parameters), "trainable_percent": GUIDE[m][2]},
            "longest_row_on_a_card_of_gb": {str(card): n for card, n in fits[m].items()},
        }
        for m, p in plans.items()
    }  # fmt: skip
    about = {"model": args.model, "batch_size": args.batch_size, "max_seq_len": args.max_seq_len}
    return {**about, "rank": args.rank, "checkpointing": args.checkpointing, "methods": methods}


def show(
    console: Console, args: argparse.Namespace, plans: dict[str, Plan], storages: dict[str, str],
    fits: dict[str, dict],
) -> None:  # fmt: skip
    """The table: the guide's rules of thumb, what they leave out, and what fits."""
    any_plan = next(iter(plans.values()))
    checkpointing = ", checkpointing" if args.checkpointing else ""
    table = Table(
        title=f"{escape(args.model)}: {any_plan.parameters:,} parameters; rank {args.rank}, "
        f"{args.batch_size} x {args.max_seq_len} tokens{checkpointing}",
        title_justify="left",
    )  # fmt: skip
    table.add_column("GB (10^9 bytes)")
    for method in plans:
        table.add_column(f"{method}\n{storages[method]}", justify="right")
    billions = round(any_plan.parameters / 1e9)
    if billions >= 1 and not args.storage:
        # The guide's own figures: 28, 14 and 4 for 7B, the last rounded up for what comes with four bits.
        rule = [f"{-(-GUIDE[m][1] * billions // 1):.0f}" for m in plans]
        table.add_row("the rule of thumb", *rule)
    table.add_row("base weights", *[f"{p.base / 1e9:.2f}" for p in plans.values()], end_section=True)
    for name in list(EXPLAINED)[1:]:
        values = [p.by_category()[name] for p in plans.values()]
        if any(values):
            table.add_row(EXPLAINED[name], *[f"{n / 1e9:.2f}" for n in values], end_section=name == "library")
    table.add_row("fullest moment", *[f"{p.peak / 1e9:.2f}" for p in plans.values()], end_section=True)
    if not args.storage:
        table.add_row("trains, rule of thumb", *[f"{GUIDE[m][2]:.0f} %" for m in plans])
    table.add_row("trains", *[f"{100 * p.share:.2f} %" for p in plans.values()], end_section=True)
    for card in CARDS:
        rows = [f"{fits[m][card]:,} tokens" if fits[m][card] else "no" for m in plans]
        table.add_row(f"rows that fit {card} GB", *rows)
    console.print(table)


def estimate(p: Plan) -> str:
    """The plan of a run in one line, for printing before it."""
    parts = [f"{EXPLAINED[name]} {megabytes(n)}" for name, n in p.by_category().items() if n]
    return f"memory: about {megabytes(p.peak)} at the fullest moment ({', '.join(parts)})"
