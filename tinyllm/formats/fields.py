"""``config.json`` as fields that are taken one by one: what is left over at the end must change nothing.

A model read with one field misunderstood answers almost right, which is worse than an error. So a family takes the
fields it understands, checks those that must have one value, and refuses the rest by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# These change nothing about what any model computes, whatever they say.
INERT = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "initializer_range",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "transformers.js_config", "id2label", "label2id",
    "return_dict", "chunk_size_feed_forward", "problem_type", "quantization_config", "unsloth_version",
    "unsloth_fixed", "_attn_implementation_autoset", "attention_dropout", "task_specific_params", "output_past",
}  # fmt: skip
REQUIRED = object()


class Fields:
    """The fields of one ``config.json``; each may be taken once."""

    def __init__(self, fields: Mapping[str, Any]):
        self.rest = dict(fields)

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The field's value; `default` if it is missing or null.

        Raises
        ------
        ValueError
            If it is missing and has no default.
        """
        value = self.rest.pop(name, None)
        if value is None and default is REQUIRED:
            raise ValueError(f"config.json lacks {name}")
        return default if value is None else value

    def expect(self, name: str, *allowed: Any) -> Any:
        """Take a field that must have one of these values, if it is there at all; the first stands for a missing one.

        Raises
        ------
        ValueError
            If it says something else.
        """
        value = self.take(name, allowed[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            raise ValueError(
                f"config.json has {name}={value!r}, which is not understood here (only {', '.join(map(repr, allowed))})"
            )
        return value

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """Take a field that must be a finite number above 0; null is none."""
        value = self.rest.pop(name) if name in self.rest else self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"config.json has {name}={value!r}; it must be a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Take a field that must be true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"config.json has {name}={value!r}; it must be true or false")
        return value

    def finish(self, inert: Iterable[str] = ()) -> None:
        """Raise ValueError for fields that nobody took, unless they are inert, or null, false or empty."""
        known = INERT | set(inert)
        strange = [n for n, value in self.rest.items() if n not in known and value not in (None, False, "", {}, [])]
        if strange:
            raise ValueError(
                f"config.json has {', '.join(f'{n}={self.rest[n]!r}' for n in strange)}, which is not understood"
            )
