"""How adapters are made: one dataclass, whose fields do what those of PEFT's LoraConfig do."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from tinyllm.backend.names import in_our_words, is_real, is_share, is_whole

BIASES = ("none", "all", "lora_only")


@in_our_words()
@dataclass
class LoRAConfig:
    """Which layers get an adapter, and which one. The text beside a field's type is what the field is for."""

    rank: Annotated[int, "numbers a token is squeezed through; more rank, more to learn with"] = 8
    alpha: Annotated[float, "the update is scaled by alpha / rank, so rank can change without retuning lr"] = 16.0
    dropout: Annotated[float, "on the adapter's input only"] = 0.0
    target_modules: Any = None  # None: attention; list of names or suffixes; regular expression; "all-linear"
    use_rslora: Annotated[bool, "scale by alpha / sqrt(rank): high ranks keep learning (arXiv 2312.03732)"] = False
    rank_pattern: dict[str, int] = field(default_factory=dict)  # {regular expression of a module's name: rank}
    alpha_pattern: dict[str, float] = field(default_factory=dict)  # the same for alpha
    modules_to_save: tuple[str, ...] = ()  # modules that are trained whole and saved with the adapter
    use_dora: Annotated[bool, "train the lengths of the weights' rows, too: near full training at low ranks"] = False
    bias: Annotated[str, "which biases train: none, those of the adapted layers (lora_only), or all", BIASES] = "none"

    def __post_init__(self) -> None:
        if self.bias not in BIASES:
            raise ValueError(f"bias must be one of {', '.join(BIASES)}, not {self.bias!r}")
        if isinstance(self.modules_to_save, str):
            raise TypeError(f'modules_to_save is a list of names: modules_to_save=["{self.modules_to_save}"]')
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name) or {}, Mapping):
                raise TypeError(f"{name} is a dict of expressions and numbers, not {getattr(self, name)!r}")
        self.modules_to_save = tuple(self.modules_to_save or ())
        self.rank_pattern, self.alpha_pattern = dict(self.rank_pattern or {}), dict(self.alpha_pattern or {})
        if not is_whole(self.rank) or self.rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, not {self.rank!r}")
        if not is_share(self.dropout):
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout!r}")
        if not is_real(self.alpha) or not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be above 0 and finite, not {self.alpha!r}")
        for pattern, value in [*self.rank_pattern.items(), *self.alpha_pattern.items()]:
            if not is_real(value) or not 0 < value < math.inf:
                raise ValueError(f"the rank and alpha of a pattern must be above 0; {pattern!r} has {value}")

    def rank_of(self, path: str) -> int:
        return int(by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        rank = self.rank_of(path)
        return float(by_pattern(self.alpha_pattern, path, self.alpha)) / (math.sqrt(rank) if self.use_rslora else rank)


def matches(pattern: str, path: str, whole: bool = False) -> bool:
    """Whether a regular expression is for the module at `path`: PEFT's rules, the end of its name or all of it."""
    try:
        re.compile(pattern)  # alone, for ")(" is one only between our brackets
    except (re.error, TypeError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}; for plain names pass a list") from None
    return bool(re.fullmatch(pattern if whole else rf"(.*\.)?({pattern})", path))


def by_pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if matches(pattern, path):
            return value
    return default
