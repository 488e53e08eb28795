"""Show what an adapter holds: its configuration, and for each layer how large the update scale * B A has become.

A layer is dead when its update is zero: it was not trained, or never received a gradient. With DoRA the lengths of the
rows are trained as well; how long they are is shown, but how long they were only the base knows. No model is needed.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyllm.cli.options import megabytes
from tinyllm.formats import json_file
from tinyllm.formats.state import load, refuse_non_finite
from tinyllm.lora.config import LoRAConfig, by_pattern
from tinyllm.lora.peft.elsewhere import CONFIG, WEIGHTS, no_adapter
from tinyllm.lora.peft.keys import PREFIX

SHOWN = (
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "bias",
    "target_modules",
    "modules_to_save",
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder with adapter_config.json, as PEFT writes it")


def run(args: argparse.Namespace) -> None:
    folder = Path(args.adapter)
    config, arrays = read_adapter(folder)
    console = Console(highlight=False)
    show_config(console, config)
    updates = [Update(config, arrays, key) for key in arrays if "lora_A" in key]
    show_updates(console, updates)
    biases, whole = trained_beside(config, list(arrays))
    if biases:
        console.print(f"trained biases: {len(biases)}, {sum(arrays[key].size for key in biases):,} numbers")
    if whole:
        console.print(f"trained whole: {escape(', '.join(whole))}", soft_wrap=True)
    dead = sum(update.norm == 0 for update in updates)
    numbers = sum(array.size for array in arrays.values())
    total = math.hypot(*(update.norm for update in updates))
    console.print(
        f"{len(updates)} layers, {dead} of them dead; {numbers:,} parameters, norm of all updates {total:.4g}"
    )
    console.print(f"{WEIGHTS}: {megabytes((folder / WEIGHTS).stat().st_size)}")


class Update:
    """What an adapter adds to one layer: its path in the file, shapes, scale, the norm of scale * B A and DoRA's m."""

    def __init__(self, config: dict[str, Any], arrays: dict[str, np.ndarray], key: str):
        a, b = arrays[key], arrays[key.replace("lora_A", "lora_B")]
        self.path = re.sub(r"\.lora_A\..*$", "", key).removeprefix(PREFIX)
        self.sizes = f"{a.shape[1]}>{a.shape[0]}>{b.shape[0]}"
        self.scale = scale_of(config, self.path, a.shape[0])
        self.norm = abs(self.scale) * product_norm(a, b)
        self.length = length_of(arrays, self.path)


def show_config(console: Console, config: dict[str, Any]) -> None:
    """The fields that say something."""
    for key in SHOWN:
        value = config.get(key)
        if value not in (None, False, [], {}, "none"):
            text = ", ".join(value) if isinstance(value, list) else str(value)
            console.print(f"{key}: {escape(text)}", soft_wrap=True)


def show_updates(console: Console, updates: list[Update]) -> None:
    """One line a layer, below what all their names begin with."""
    before = shared([update.path for update in updates])
    if before:
        console.print(f"layers, all in {escape(before.rstrip('.'))}:", soft_wrap=True)
    dora = any(update.length for update in updates)
    rows = []
    for update in updates:
        row = [update.path.removeprefix(before), update.sizes, f"{update.scale:g}", f"{update.norm:.4g}"]
        rows.append([*row, *([update.length] if dora else []), "[red]dead[/red]" if update.norm == 0 else ""])
    console.print(table(rows, dora, dead=any(update.norm == 0 for update in updates)))


def trained_beside(config: dict[str, Any], keys: list[str]) -> tuple[list[str], list[str]]:
    """The keys of the biases that train, and of the modules trained whole."""
    every = config.get("bias") == "all"
    biases = [key for key in keys if key.endswith("base_layer.bias") or every and key.endswith(".bias")]
    return biases, [key for key in keys if "lora_" not in key and key not in biases]


def table(rows: list[list[str]], dora: bool, dead: bool) -> Table:
    """The columns that have something to say: 60 characters hold them; in fewer the name is folded."""
    columns = Table()
    columns.add_column("layer", overflow="fold", ratio=1)
    columns.add_column("in>r>out", justify="right", no_wrap=True)
    for column in ("scale", "|scale B A|", *(["m, mean"] if dora else [])):
        columns.add_column(column, justify="right", no_wrap=True)
    if dead:
        columns.add_column("", no_wrap=True)
    for name, *cells, mark in rows:
        columns.add_row(escape(name), *cells, *([mark] if dead else []))
    return columns


def shared(paths: list[str]) -> str:
    """What all names begin with, up to a dot: ``model.layers.``."""
    first, last = min(paths), max(paths)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind(".", 0, same) + 1]


def length_of(arrays: dict[str, np.ndarray], path: str) -> str:
    """The mean of DoRA's m of a layer, or nothing."""
    for end in ("", ".weight"):
        if (m := arrays.get(f"{PREFIX}{path}.lora_magnitude_vector{end}")) is not None:
            return f"{float(np.abs(m.astype(np.float64)).mean()):.4g}"
    return ""


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and arrays of an adapter folder.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or is not what its name says.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise no_adapter(folder, name)
    config = json_file.read(folder / CONFIG)
    if "r" not in config or "lora_alpha" not in config:
        raise ValueError(f"{folder / CONFIG} is not the configuration of a LoRA adapter: it lacks r or lora_alpha")
    arrays = load(folder / WEIGHTS)
    refuse_non_finite(arrays, "no figure of it would say anything")
    if not any("lora_A" in key for key in arrays):
        raise ValueError(f"{folder / WEIGHTS} holds no lora_A; give the folder of a LoRA adapter")
    for key in arrays:
        if "lora_A" in key and key.replace("lora_A", "lora_B") not in arrays:
            raise ValueError(f"{folder / WEIGHTS} holds {key} but not its lora_B; fetch or save the adapter again")
    return config, arrays


def scale_of(config: dict[str, Any], path: str, rank: int) -> float:
    """What B A is multiplied by, with PEFT's `alpha_pattern`; the rank is the file's."""
    alpha = by_pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
    return LoRAConfig(rank, float(alpha), use_rslora=bool(config.get("use_rslora"))).scale_of(path)


def product_norm(a: np.ndarray, b: np.ndarray) -> float:
    """The Frobenius norm of B A, a (r, in), b (out, r), by way of r x r matrices: |BA|^2 = tr(B'B A A')."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))
