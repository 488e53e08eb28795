"""How much memory training takes, before anything is loaded: full, LoRA and QLoRA side by side, or one run in detail.

What is planned is what `tinyllm finetune` would run with the same options, whose defaults are the same. Training steps
are run on arrays without content, so the figures are those of the very code. MODEL is as for finetune, or one of the
shapes llama-2-7b and llama-2-13b. MB and GB are powers of ten.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from bisect import bisect_right
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyllm.cli.options import (
    EMBEDDED,
    add_fields,
    add_rows,
    megabytes,
    model_folder,
    refuse_below,
    refuse_beyond_context,
    refuse_ignored,
    targets_of,
)
from tinyllm.formats import json_file
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
SHORTEST = 64  # tokens of a row: of it, and of its doubles, the longest that fits a card is looked for
# The guide's rules of thumb: bytes a weight of what the base is kept as, and the share that trains.
BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "nf4": 0.5}
TRAINS = {"full": 100, "lora": 10, "qlora": 5}
EXPLAINED = {
    "base": "base weights", "adapters": "adapters", "gradients": "gradients", "optimizer": "optimiser (AdamW)",
    "activations": "activations", "head": "head and loss", "tiles": "unpacked tiles",
    "library": "the process itself",
}  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=EMBEDDED, metavar="MODEL",
        help="a folder, a GGUF file, the name of a model, llama-2-7b or llama-2-13b (default: the embedded base)",
    )  # fmt: skip
    parser.add_argument("--method", choices=list(STORAGE), help="one method in detail (default: all three, compared)")
    parser.add_argument(
        "--storage", choices=STORAGES,
        help="what the base of --method is kept as, and of lora without --method (default: as finetune keeps it, "
        "qlora in nf4 and the others in float32)",
    )  # fmt: skip
    add_fields(parser, LoRAConfig, "rank", "dropout", "use_dora")
    parser.add_argument(
        "--target-modules", nargs="+", default=["all-linear"], metavar="NAME",
        help="as for finetune (default: all-linear)",
    )  # fmt: skip
    add_rows(parser, max_seq_len=128, batch_size=8)
    parser.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, default=False,
        help="recompute blocks instead of keeping their activations (default: no)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="bytes by category, for programs")


def run(args: argparse.Namespace) -> None:
    refuse_below(args, 1, "rank", "batch_size", "max_seq_len")
    if args.method:
        refuse_ignored(args, args.method)
    folder = None if args.model in SHAPES else model_folder(args.model)
    config = SHAPES[args.model] if folder is None else load_config(folder)
    refuse_beyond_context(args.max_seq_len, config.max_seq_len)
    options: dict[str, Any] = {name: getattr(args, name) for name in ("rank", "dropout", "batch_size", "checkpointing")}
    options |= {"use_dora": args.dora, "target_modules": targets_of(args.target_modules)}
    methods = [args.method] if args.method else list(STORAGE)
    storages = {m: args.storage if args.storage and m in (args.method, "lora") else STORAGE[m] for m in methods}
    if folder is not None:
        storages = {m: storage_in(folder, m, storage) for m, storage in storages.items()}
    plans, fits = {}, {}
    for m in methods:
        plans[m] = plan(config, m, storage=storages[m], seq_len=args.max_seq_len, **of_method(m, options))
        fits[m] = longest(config, m, storages[m], plans[m], of_method(m, options))
    if args.json:
        print(json.dumps(as_json(args, plans, storages, fits), indent=1))
        return
    show(Console(highlight=False), args, config, plans, storages, fits)


def of_method(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options without those of adapters, where there are none."""
    rows = ("batch_size", "checkpointing")
    return {name: value for name, value in options.items() if method != "full" or name in rows}


def storage_in(folder: Path, method: str, storage: str) -> str:
    """What a model is kept as that would be kept so: what is stored in four bits stays in them if it does not train."""
    config = folder / "config.json"
    packed = method != "full" and config.is_file() and json_file.read(config).get("quantization_config")
    return "nf4" if packed else storage


def lengths(config: DecoderConfig) -> list[int]:
    """64, 128, 256 ... tokens, up to the model's context."""
    return [SHORTEST << i for i in range((config.max_seq_len // SHORTEST).bit_length())]


def longest(
    config: DecoderConfig, method: str, storage: str, first: Plan, options: dict[str, Any]
) -> dict[int, int | None]:
    """For each card the most tokens a row, of `lengths`, with which a step fits; None if none does.

    What the library takes is left out: it does not live on the card. Longer rows take more, so the place is bisected.
    """
    if first.base + first.optimizer > max(CARDS) * 10**9:
        return dict.fromkeys(CARDS)
    every = lengths(config)
    need = cache(lambda n: _beside_the_library(config, method, storage, {**options, "seq_len": n}))
    counts = {card: bisect_right(every, card * 10**9, key=need) for card in CARDS}
    return {card: every[n - 1] if n else None for card, n in counts.items()}


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
            "rule_of_thumb": {"base": round(BYTES[storages[m]] * p.parameters), "trainable_percent": TRAINS[m]},
            "longest_row_on_a_card_of_gb": {str(card): n for card, n in fits[m].items()},
        }
        for m, p in plans.items()
    }  # fmt: skip
    about = {"model": args.model, "batch_size": args.batch_size, "max_seq_len": args.max_seq_len}
    return {**about, "rank": args.rank, "checkpointing": args.checkpointing, "methods": methods}


def show(
    console: Console, args: argparse.Namespace, config: DecoderConfig, plans: dict[str, Plan],
    storages: dict[str, str], fits: dict[str, dict],
) -> None:  # fmt: skip
    """The table: the guide's rules of thumb, what they leave out, and what fits."""
    parameters = next(iter(plans.values())).parameters
    large = max(p.peak for p in plans.values()) >= 1e10
    unit, digits = (1e9, 2) if large else (1e6, 1)
    table = Table()
    table.add_column("GB (10^9 bytes)" if large else "MB (10^6 bytes)")
    for method in plans:
        table.add_column(f"{method}\n{storages[method]}", justify="right")
    billions = round(parameters / 1e9)
    if billions >= 1:
        # The guide's own figures: 28, 14 and 4 for 7B, the last rounded up for what comes with four bits.
        table.add_row("the rule of thumb", *[f"{-(-BYTES[storages[m]] * billions // 1):.0f}" for m in plans])
    for name, text in EXPLAINED.items():
        values = [p.by_category()[name] for p in plans.values()]
        if any(values):
            last = name in ("base", "library")
            table.add_row(text, *[f"{n / unit:,.{digits}f}" for n in values], end_section=last)
    table.add_row("fullest moment", *[f"{p.peak / unit:,.{digits}f}" for p in plans.values()], end_section=True)
    table.add_row("trains, rule of thumb", *[f"{TRAINS[m]} %" for m in plans])
    table.add_row("trains", *[f"{100 * p.share:.2f} %" for p in plans.values()], end_section=True)
    for card in CARDS:
        rows = [f"{fits[m][card]:,} tokens" if fits[m][card] else "no" for m in plans]
        table.add_row(f"rows that fit {card} GB", *rows)
    adapters = "" if args.method == "full" else f"rank {args.rank} on {', '.join(args.target_modules)}, "
    checkpointing = ", checkpointing" if args.checkpointing else ""
    console.print(f"{escape(args.model)}: {parameters:,} parameters")
    console.print(escape(f"{adapters}{args.batch_size} x {args.max_seq_len} tokens{checkpointing}"))
    console.print(table)
    console.print(
        f"rows that fit: the most tokens a row, of 64, 128, 256 ... up to the model's context of "
        f"{config.max_seq_len:,}, at {args.batch_size} rows a step; the process itself is not on the card"
    )


def estimate(p: Plan) -> str:
    """The plan of a run, for printing before it, in lines of at most 80 characters."""
    parts = [f"{EXPLAINED[name]} {megabytes(n)}" for name, n in p.by_category().items() if n]
    whole = [part.replace(" ", "\0") for part in parts]  # an amount stays with its name
    where = "memory: about" if p.library else "memory of the GPU: about"
    text = f"{where} {megabytes(p.peak)} at the fullest moment: {', '.join(whole)}"
    return textwrap.fill(text, 80, subsequent_indent="  ").replace("\0", " ")
