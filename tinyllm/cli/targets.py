"""List the layers of a model that can be adapted, for --target-modules, and what an adapter on each would cost.

The columns on the right show what the usual choices cover: attention (no target_modules at all) and all-linear.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyllm.cli.options import EMBEDDED, add_fields, model_folder, refuse_below
from tinyllm.lora.config import LoRAConfig
from tinyllm.lora.heads import is_tied
from tinyllm.lora.targets import linear_names, resolve_targets
from tinyllm.models import DecoderModel


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default=EMBEDDED, metavar="MODEL", help="a folder (default: the embedded base)"
    )
    add_fields(parser, LoRAConfig, "rank")


def run(args: argparse.Namespace) -> None:
    refuse_below(args, 1, "rank")
    model = DecoderModel.from_pretrained(model_folder(args.model))
    covers = {"attention": set(resolve_targets(model, None)), "all-linear": set(resolve_targets(model, "all-linear"))}
    groups: dict[str, list[str]] = {}
    tied = is_tied(model, "lm_head")  # not to be had, so not to be offered
    for path in [name for name in linear_names(model) if name != "lm_head" or not tied]:
        groups.setdefault(path.rpartition(".")[2], []).append(path)
    cost = {path: args.rank * sum(model.get(path).weight.shape) for paths in groups.values() for path in paths}

    console = Console(highlight=False)
    table = Table(title=f"{args.model}, adapters of rank {args.rank}", title_justify="left")
    table.add_column("name")
    for column in ("layers", "shape (out, in)", "parameters"):
        table.add_column(column, justify="right")
    for column in covers:
        table.add_column(column, justify="center")
    for name, paths in groups.items():
        shapes = " ".join(dict.fromkeys("{} x {}".format(*model.get(path).weight.shape) for path in paths))
        marks = ["yes" if set(paths) <= covered else "" for covered in covers.values()]
        table.add_row(escape(name), str(len(paths)), shapes, f"{sum(cost[path] for path in paths):,}", *marks)
    console.print(table)
    whole = model.num_parameters()
    for choice, covered in covers.items():
        n = sum(cost[path] for path in covered)
        option = "--target-modules all-linear" if choice == "all-linear" else "target_modules=None"
        console.print(f"{choice} ({option}): {n:,} parameters train of {whole + n:,} ({100 * n / (whole + n):.2f} %)")
    if tied:
        console.print("lm_head shares its weight with the embedding, so it is no target in this model.")
