"""Show what an adapter holds: its configuration, and for each layer how large the update scale * B A has become.

A layer is dead when its update is zero: it was not trained, or never received a gradient. No model is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyllm.cli.options import megabytes
from tinyllm.formats import safetensors_file
from tinyllm.frozen import FrozenWeight

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHOWN = (
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "target_modules",
    "modules_to_save",
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder with adapter_config.json, as PEFT writes it")


def run(args: argparse.Namespace) -> None:
    folder = Path(args.adapter)
    config, arrays = read(folder)
    console = Console(highlight=False)
    for key in SHOWN:
        if config.get(key) not in (None, [], {}):
            value = config[key]
            console.print(
                f"{key}: {escape(', '.join(value) if isinstance(value, list) else str(value))}", soft_wrap=True
            )
    table = Table()
    table.add_column("layer", overflow="fold")
    for column in ("rank", "scale", "A", "B", "|scale B A|"):
        table.add_column(column, justify="right")
    table.add_column("")
    pairs = {key: (a, arrays[key.replace("lora_A", "lora_B")]) for key, a in arrays.items() if "lora_A" in key}
    dead, total = 0, 0.0
    for key, (a, b) in pairs.items():
        path = re.sub(r"\.lora_A\..*$", "", key).removeprefix("base_model.model.")
        scale = scale_of(config, path, a.shape[0])
        norm = abs(scale) * product_norm(a, b)
        dead, total = dead + (norm == 0), math.hypot(total, norm)
        shapes = (" x ".join(map(str, array.shape)) for array in (a, b))
        told = "[red]dead[/red]" if norm == 0 else ""
        table.add_row(escape(path.removeprefix("model.")), str(a.shape[0]), f"{scale:g}", *shapes, f"{norm:.4g}", told)
    console.print(table)
    numbers = sum(array.size for array in arrays.values())
    whole = [key for key in arrays if "lora_" not in key]
    if whole:
        console.print(f"trained whole: {escape(', '.join(whole))}", soft_wrap=True)
    console.print(f"{len(pairs)} layers, {dead} of them dead; {numbers:,} parameters, norm of all updates {total:.4g}")
    console.print(f"{WEIGHTS}: {megabytes((folder / WEIGHTS).stat().st_size)}")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and arrays of an adapter folder.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or is not what its name says.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no {name} in {folder}; give the folder of an adapter in PEFT's format")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is not valid JSON ({error}); fetch or save the adapter again") from error
    if not isinstance(config, dict) or "r" not in config or "lora_alpha" not in config:
        raise ValueError(f"{folder / CONFIG} is not the configuration of a LoRA adapter: it lacks r or lora_alpha")
    stored, _ = safetensors_file.read(folder / WEIGHTS)
    arrays = {key: a.dense() if isinstance(a, FrozenWeight) else a for key, a in stored.items()}  # bfloat16 is stored
    if not any("lora_A" in key for key in arrays):
        raise ValueError(f"{folder / WEIGHTS} holds no lora_A; give the folder of a LoRA adapter")
    for key in arrays:
        if "lora_A" in key and key.replace("lora_A", "lora_B") not in arrays:
            raise ValueError(f"{folder / WEIGHTS} holds {key} but not its lora_B; fetch or save the adapter again")
    return config, arrays


def scale_of(config: dict[str, Any], path: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA, with PEFT's `alpha_pattern`."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"^(.*\.)?({pattern})$", path):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def product_norm(a: np.ndarray, b: np.ndarray) -> float:
    """The Frobenius norm of B A, a (r, in), b (out, r), by way of r x r matrices: |BA|^2 = tr(B'B A A')."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))
