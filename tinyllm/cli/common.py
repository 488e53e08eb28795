"""What several verbs share: finding the model, its tokenizer and the device."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyllm import assets
from tinyllm.backend.device import set_device
from tinyllm.models import DecoderModel
from tinyllm.tokenizer import Tokenizer

EMBEDDED = "base"  # the model that comes with the package


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--device``."""
    parser.add_argument(
        "--model",
        default=EMBEDDED,
        metavar="FOLDER",
        help="a Hugging Face folder (Llama family); default: the embedded base",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to compute (default: cpu)")


def model_folder(name: str) -> Path:
    """The folder that ``--model`` means."""
    return assets.path("base") if name == EMBEDDED else Path(name)


def load_model(args: argparse.Namespace, storage: str = "float32") -> tuple[DecoderModel, Tokenizer]:
    """The model and tokenizer of ``--model``."""
    set_device(args.device)
    folder = model_folder(args.model)
    model = DecoderModel.from_pretrained(folder, storage=storage)
    return model, Tokenizer.load(folder)


def megabytes(n: int | None) -> str:
    """Bytes as text; GB and MB are powers of ten."""
    if n is None:
        return "unknown on this system"
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB" if n >= 1e7 else f"{n / 1e6:.2f} MB"
