"""What several verbs share: options from a dataclass's fields; finding the model, its tokenizer and the device."""

from __future__ import annotations

import argparse
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tinyllm import assets
from tinyllm.backend.device import set_device
from tinyllm.backend.names import nearest
from tinyllm.data.special_tokens import default_template, read_config
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.formats import json_file
from tinyllm.lora.config import LoRAConfig
from tinyllm.lora.peft.adapter import trained_over
from tinyllm.lora.peft.elsewhere import CONFIG
from tinyllm.models import DecoderModel
from tinyllm.models.build import STORAGES
from tinyllm.models.checkpoints import hub
from tinyllm.models.checkpoints.named import EMBEDDED, MODELS, is_built_in, place
from tinyllm.qlora import quantize_base

EXPRESSION = frozenset("*+?[](){}|^$\\")  # a dot is none: it parts the names in a path
Options = Any  # a parser, or a group of its options


def add_fields(parser: Options, kind: type, *names: str, **changed: Any) -> None:
    """An option for each of these fields of a dataclass, whose type is ``Annotated[type, help]`` or has choices, too.

    ``use_dora`` is ``--dora``; what is True or False is a switch. `changed` gives another default for this verb, or
    another default and help.
    """
    hints = get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    for name in names:
        value_type, text, *choices = get_args(hints[name])
        default = changed.get(name, defaults[name])
        if isinstance(default, tuple):
            default, text = default
        option = "--" + option_of(name).replace("_", "-")
        if value_type is bool:
            parser.add_argument(option, action="store_true", help=text)
            continue
        shown = text if default is None else f"{text} (default: %(default)s)"
        only = list(choices[0]) if choices else None
        parser.add_argument(option, type=value_type, default=default, choices=only, help=shown)


def option_of(field: str) -> str:
    """What a field is called on the command line."""
    return field.removeprefix("use_")


def chosen(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a dataclass that have an option, as the command line gave them."""
    given = vars(args)
    return {field.name: given[option_of(field.name)] for field in fields(kind) if option_of(field.name) in given}


def add_template(parser: Options) -> None:
    """``--template``: whether the tokenizer's chat template is used."""
    parser.add_argument(
        "--template", default="own", choices=["own", "none"],
        help="own: conversations, and records' prompts and completions, are written in the model's chat template; "
        "none: as User: and Assistant:, and prompts and completions are joined as they are (default: %(default)s)",
    )  # fmt: skip


def refuse_ignored(args: argparse.Namespace, method: str) -> None:
    """Raise ValueError for an option that was given and that a training method has no use for."""
    adapters = {option_of(field.name) for field in fields(LoRAConfig)} | {"loraplus_ratio"}
    for name in sorted(args.given & (adapters | {"block_size"})):
        option = "--" + name.replace("_", "-")
        if name == "block_size" and method != "qlora":
            raise ValueError(f"{option} is for --method qlora, and this is {method}; leave out one of them")
        if name in adapters and method == "full":
            raise ValueError(
                f"{option} is for adapters, and --method full trains the whole model; leave out one of them"
            )


def refuse_below(args: argparse.Namespace, least: int, *names: str) -> None:
    """Raise ValueError unless these options are at least so much."""
    for name in names:
        value = getattr(args, name)
        if value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")


def refuse_beyond_context(max_seq_len: int, context: int) -> None:
    """Raise ValueError for rows that are longer than what the model was made for."""
    if max_seq_len > context:
        raise ValueError(
            f"--max-seq-len {max_seq_len} is beyond the model's context of {context} tokens; give that or less"
        )


def refuse_out(out: Path) -> None:
    """Raise OSError, before any work is done, if results cannot be put into this folder."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"the results cannot go to {out}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"the results cannot go to {out}: {there} may not be written to; name another folder")


def add_device(parser: Options) -> None:
    """``--device``."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to compute (default: cpu)")


def add_model(parser: Options, default: str | None = EMBEDDED) -> None:
    """``--model``, ``--device``, ``--dtype``."""
    parser.add_argument(
        "--model",
        default=default,
        metavar="FOLDER",
        help="a folder as Hugging Face has it, a name on its hub (owner/name), a GGUF file, or smollm2-135m once it is "
        "fetched; default: the embedded base, or what --adapter was trained over",
    )
    add_device(parser)
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=[storage for storage in STORAGES if storage != "nf4"],
        help="what to compute in; half precision needs --device cuda (default: float32)",
    )


def add_rows(parser: Options, max_seq_len: int, batch_size: int) -> None:
    """``--batch-size``, ``--max-seq-len``."""
    parser.add_argument("--batch-size", type=int, default=batch_size, help="rows a micro-batch (default: %(default)s)")
    add_row_length(parser, max_seq_len)


def add_row_length(parser: Options, max_seq_len: int) -> None:
    """``--max-seq-len``."""
    parser.add_argument("--max-seq-len", type=int, default=max_seq_len, help="tokens a row (default: %(default)s)")


def targets_of(names: list[str] | None) -> Any:
    """``--target-modules`` as `apply_lora` takes it: a list of names, or one expression."""
    if names and len(names) == 1 and (names[0] == "all-linear" or EXPRESSION & set(names[0])):
        return names[0]
    return names


def model_folder(name: str) -> Path:
    """The folder or file that ``--model`` means.

    Raises
    ------
    FileNotFoundError
        If it is a model to be fetched first, or the hub does not give it.
    ImportError
        If it is a name on the hub, and huggingface_hub is not installed.
    """
    found = hub.find(name)
    hint = nearest(name, [EMBEDDED, *MODELS]) if Path(name).name == name else ""  # a path means a folder
    if hint and not found.exists():
        raise FileNotFoundError(f"there is no model in {name}{hint}")
    return found


def _place(name: str) -> Path:
    if not is_built_in(name):
        return Path(name)
    return assets.path("base") if name == EMBEDDED else place(name)


def load_weights(name: str, device: str, dtype: str, storage: str = "float32") -> DecoderModel:
    """The model of ``--model``, without its tokenizer."""
    set_device(device)
    return DecoderModel.from_pretrained(model_folder(name), storage=storage, dtype=dtype)


def add_base_storage(parser: Options) -> None:
    """``--base-storage``, for `load_base`."""
    parser.add_argument(
        "--base-storage",
        choices=STORAGES,
        help="what to keep the base's weights as (default: as the adapter was trained over; float32 without one)",
    )


def choose_model(model: str | None, adapter: str | None) -> tuple[str, str]:
    """``--model``, or what ``--adapter`` was trained over if it is not given; and a warning if the two differ.

    Raises
    ------
    FileNotFoundError
        If the adapter's model is not here.
    """
    recorded = _adapter_fields(adapter).get("base_model_name_or_path")
    named = _called(str(recorded)) if recorded else None
    if model is None:
        model = named or EMBEDDED
        if not model_folder(model).exists():
            raise FileNotFoundError(
                f"the adapter was trained over {named}, which is not here; give its folder with --model"
            )
    elif named and named != model:
        folder = model_folder(model)
        if hub.local(_place(named)).resolve() != folder.resolve() and hub.name_of(folder) != recorded:
            return model, f" (WARNING: the adapter was trained over {named})"
    return model, ""


def _called(recorded: str) -> str:
    """What a person calls the model that an adapter records by its absolute path: `_place`'s name, a path from here."""
    path = Path(recorded)
    if path.is_absolute():
        if path.parts[-3:] == assets.path("base").parts[-3:]:
            own = assets.path("base")  # of this installation or another one; a folder named "base" would win over it
            return EMBEDDED if is_built_in(EMBEDDED) else str(own)
        for name in MODELS:
            if path in (place(name), place(name).parent):
                return name if is_built_in(name) else recorded
        if path.is_relative_to(Path.cwd()) and str(path.relative_to(Path.cwd())) not in (".", EMBEDDED, *MODELS):
            return str(path.relative_to(Path.cwd()))
    return recorded


def load_base(
    name: str, adapter: str | None, base_storage: str | None, device: str, dtype: str
) -> tuple[DecoderModel, Tokenizer, str]:
    """A model as the adapter was trained over it, its tokenizer, and a line that says so."""
    model, line = load_base_weights(name, adapter, base_storage, device, dtype)
    tokenizer = Tokenizer.load(model_folder(name))
    return model, tokenizer, line + take_template(tokenizer, adapter)


def take_template(tokenizer: Tokenizer, adapter: str | None) -> str:
    """Use the chat template beside an adapter, where trainers put the one they taught it in; and words that say so."""
    template = default_template(read_config(Path(adapter)).get("chat_template")) if adapter else None
    if template is None or template == tokenizer.chat_template:
        return ""
    tokenizer.chat_template = template
    return "; the chat template is the adapter's"


def load_base_weights(
    name: str, adapter: str | None, base_storage: str | None, device: str, dtype: str
) -> tuple[DecoderModel, str]:
    """`load_base` without the tokenizer."""
    base: dict[str, Any] = trained_over(adapter) if adapter else {}
    why = "as the adapter was trained over" if base else "the adapter does not say what it was trained over"
    if base_storage:
        base, why = {"storage": base_storage}, "as --base-storage says"
    storage = base.get("storage", "float32")
    if storage != "nf4":
        return load_weights(name, device, dtype, storage), f"the base is in {storage}, {why} (model {name})"
    block_size, double_quant = base.get("block_size", 64), base.get("double_quant", True)
    line = f"the base is in nf4 (block_size={block_size}, double_quant={double_quant}), {why} (model {name})"
    if (block_size, double_quant) == (64, True) and not _brings_embeddings(adapter):
        return load_weights(name, device, dtype, "nf4"), line
    model = load_weights(name, device, dtype)
    quantize_base(model, block_size, double_quant)
    return model, line


def _brings_embeddings(adapter: str | None) -> bool:
    """Whether the adapter has its own embedding or head: those can replace floats only, which storage="nf4" halves."""
    saved = _adapter_fields(adapter).get("modules_to_save") or []
    return any(str(name).endswith(("embed_tokens", "lm_head")) for name in saved)


def _adapter_fields(adapter: str | None) -> dict[str, Any]:
    """The adapter's configuration; empty without one."""
    path = Path(adapter or "") / CONFIG
    return json_file.read(path) if adapter and path.is_file() else {}


def megabytes(n: int | None) -> str:
    """Bytes as text; GB and MB are powers of ten."""
    if n is None:
        return "unknown on this system"
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB" if n >= 1e7 else f"{n / 1e6:.2f} MB"
