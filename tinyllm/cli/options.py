"""What several verbs share: finding the model, its tokenizer and the device."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tinyllm import assets
from tinyllm.backend.device import set_device
from tinyllm.cli import fetch
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats import json_file
from tinyllm.lora.peft.adapter import CONFIG, trained_over
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints import hub
from tinyllm.models.build import STORAGES
from tinyllm.qlora import quantize_base

EMBEDDED = "base"  # the model that comes with the package


def add_model(parser: argparse.ArgumentParser, default: str | None = EMBEDDED) -> None:
    """``--model``, ``--device``."""
    parser.add_argument(
        "--model",
        default=default,
        metavar="FOLDER",
        help="a folder as Hugging Face has it, a name on its hub (owner/name), a GGUF file, or smollm2-135m once it is "
        "fetched; default: the embedded base, or what --adapter was trained over",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to compute (default: cpu)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "float16", "bfloat16"],
        help="what to compute in; half precision needs --device cuda (default: float32)",
    )


def model_folder(name: str) -> Path:
    """The folder or file that ``--model`` means.

    Raises
    ------
    FileNotFoundError
        If it is a model to be fetched first, or the hub does not give it.
    ImportError
        If it is a name on the hub, and huggingface_hub is not installed.
    """
    path = _place(name)
    if name in fetch.MODELS and not path.is_file():
        raise FileNotFoundError(f"{name} is not on this machine yet: run `tinyllm fetch {name}` first")
    return hub.find(path)


def _place(name: str) -> Path:
    if name in fetch.MODELS:
        return fetch.place(name)
    return assets.path("base") if name == EMBEDDED else Path(name)


def load_model(args: argparse.Namespace, storage: str = "float32") -> tuple[DecoderModel, Tokenizer]:
    """The model and tokenizer of ``--model``."""
    set_device(args.device)
    folder = model_folder(args.model)
    model = DecoderModel.from_pretrained(folder, storage=storage, dtype=getattr(args, "dtype", "float32"))
    return model, Tokenizer.load(folder)


def add_base_storage(parser: argparse.ArgumentParser) -> None:
    """``--base-storage``, for `load_base`."""
    parser.add_argument(
        "--base-storage",
        choices=STORAGES,
        help="what to keep the base's weights as (default: as the adapter was trained over; float32 without one)",
    )


def choose_model(args: argparse.Namespace) -> str:
    """Set ``--model``, if it is not given, to what ``--adapter`` was trained over; returns a warning if they differ.

    Raises
    ------
    FileNotFoundError
        If the adapter's model is not here.
    """
    path = Path(args.adapter or "") / CONFIG
    named = json_file.read(path).get("base_model_name_or_path") if args.adapter and path.is_file() else None
    if args.model is None:
        args.model = str(named or EMBEDDED)
        if not model_folder(args.model).exists():
            raise FileNotFoundError(
                f"the adapter was trained over {named}, which is not here; give its folder with --model"
            )
    elif named and str(named) != args.model and _place(str(named)).resolve() != model_folder(args.model).resolve():
        return f" (WARNING: the adapter was trained over {named})"
    return ""


def load_base(args: argparse.Namespace) -> tuple[DecoderModel, Tokenizer, str]:
    """The model of ``--model`` as ``--adapter`` was trained over it, its tokenizer, and a line that says so."""
    warning = choose_model(args)
    said: dict[str, Any] = trained_over(args.adapter) if args.adapter else {}
    why = "as the adapter was trained over" if said else "the adapter does not say what it was trained over"
    if args.base_storage:
        said, why = {"storage": args.base_storage}, "as --base-storage says"
    storage = said.get("storage", "float32")
    if storage != "nf4":
        return *load_model(args, storage), f"the base is in {storage}, {why} (model {args.model}){warning}"
    block_size, double_quant = said.get("block_size", 64), said.get("double_quant", True)
    how = f"nf4 (block_size={block_size}, double_quant={double_quant})"
    if (block_size, double_quant) == (64, True) and not _brings_embeddings(args.adapter):
        model, tokenizer = load_model(args, "nf4")
    else:
        model, tokenizer = load_model(args)
        quantize_base(model, block_size, double_quant)
    return model, tokenizer, f"the base is in {how}, {why} (model {args.model}){warning}"


def _brings_embeddings(adapter: str | None) -> bool:
    """Whether the adapter has its own embedding or head: those can replace floats only, which storage="nf4" halves."""
    path = Path(adapter or "") / CONFIG
    saved = json_file.read(path).get("modules_to_save") if adapter and path.is_file() else None
    return any(str(name).endswith(("embed_tokens", "lm_head")) for name in saved or [])


def megabytes(n: int | None) -> str:
    """Bytes as text; GB and MB are powers of ten."""
    if n is None:
        return "unknown on this system"
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB" if n >= 1e7 else f"{n / 1e6:.2f} MB"
