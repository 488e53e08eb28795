"""Words for messages (the first of many names, the nearest to a wrong one, ours for another library's), and what kind
a value is: an array, a number, a share. The book and its wings use them alike.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable)

# What NumPy, torch, transformers and PEFT call our parameters, and too many letters away to be found as alike.
THEIRS = {
    "r": "rank", "lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "targets": "target_modules",
    "learning_rate": "lr", "max_lr": "lr", "lr_scheduler_type": "schedule", "warmup_steps": "warmup",
    "warmup_ratio": "warmup", "max_steps": "steps", "num_steps": "steps", "num_train_epochs": "steps",
    "gradient_accumulation_steps": "grad_accum", "eval_steps": "eval_every", "save_steps": "save_every",
    "clip": "max_grad_norm", "wd": "weight_decay", "dim": "axis", "dims": "axis", "keepdim": "keepdims",
    "unbiased": "correction", "ddof": "correction", "d_model": "hidden_size", "n_embd": "hidden_size",
    "embed_dim": "hidden_size", "n_layer": "num_layers", "n_layers": "num_layers", "num_hidden_layers": "num_layers",
    "n_head": "num_heads", "n_heads": "num_heads", "num_attention_heads": "num_heads", "n_kv_heads": "num_kv_heads",
    "num_key_value_heads": "num_kv_heads", "d_ff": "intermediate_size", "n_inner": "intermediate_size",
    "n_positions": "max_seq_len", "max_position_embeddings": "max_seq_len", "context_length": "max_seq_len",
    "block_len": "max_seq_len", "n_vocab": "vocab_size", "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens", "do_sample": "temperature", "temp": "temperature", "eos_token_id": "stop",
    "input_ids": "prompt", "torch_dtype": "dtype", "load_in_4bit": "storage='nf4'", "load_in_8bit": "storage",
    "quantization_config": "storage='nf4'", "device_map": "tinyllm.set_device", "path": "name",
}  # fmt: skip


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are: ``"a, b, c and 4 more"``."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def nearest(name: str, known: Iterable[str], hint: str = " (did you mean {}?)", cutoff: float = 0.6) -> str:
    """A hint at the known name that is most like a wrong one; empty if none is like it.

    Parameters
    ----------
    name : str
    known : iterable of str
    hint : str
        ``{}`` stands for the known name.
    cutoff : float
        How alike they must be: difflib's ratio, from 0 (any name) to 1 (the same).
    """
    return "".join(map(hint.format, difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)))


def refuse_unknown(who: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError for the first keyword that `who` does not know, naming ours if it is another library's."""
    for name in given:
        if name not in known:
            ours = THEIRS.get(name, "")
            meant = ours if ours.partition("=")[0] in known or "." in ours else ""
            hint = f"did you mean {meant}?" if meant else nearest(name, known, "did you mean {}?")
            raise TypeError(f"{who} has no parameter {name!r}; {hint or 'there are: ' + ', '.join(known)}")


def in_our_words(*also: Callable) -> Callable[[F], F]:
    """For a function or class whose parameters other libraries call otherwise: the error names the one that is meant.

    It knows the parameters of `also`, too: the functions to which it hands its other keywords on.
    """

    def decorate(function: F) -> F:
        inside = cast(Any, function).__init__ if isinstance(function, type) else function
        named = [p for each in (inside, *also) for p in inspect.signature(each).parameters.values()]
        known = list(dict.fromkeys(p.name for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)))
        known = [name for name in known if name not in ("self", "cls")]

        @wraps(inside)
        def called(*args: Any, **given: Any) -> Any:
            refuse_unknown(function.__name__, given, known)
            return inside(*args, **given)

        if isinstance(function, type):
            function.__init__ = called  # type: ignore[misc]
            return function
        return cast(F, called)

    return decorate


def kind_of(value: Any) -> str:
    """What a value is, for a message: ``list``, ``torch.Tensor``, ``the class DecoderModel``."""
    kind = value if isinstance(value, type) else type(value)
    library = (kind.__module__ or "").partition(".")[0]
    name = kind.__name__ if library in ("builtins", "tinyllm", "__main__", "") else f"{library}.{kind.__name__}"
    return f"the class {name}" if kind is value else name


def is_array(value: Any) -> bool:
    """Whether this is an array, or has one: its dtype is NumPy's, as CuPy's are, and not torch's own."""
    return isinstance(getattr(value, "dtype", None), np.dtype)


def is_real(value: Any) -> bool:
    """Whether this is a number, Python's or NumPy's; True and False are none, nor is what is not a number."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) and value == value


def is_whole(value: Any) -> bool:
    """Whether this is a whole number."""
    return is_real(value) and isinstance(value, int | np.integer)


def is_share(value: Any) -> bool:
    """Whether this is a number in [0, 1)."""
    return is_real(value) and 0 <= value < 1
