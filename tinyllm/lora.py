"""LoRA: y = W x + scale * B A x, with W frozen (Hu et al. 2021, arXiv 2106.09685, eq. 3).

           x (batch, time, in)
          /                  \\
     W (out, in)         A (r, in)      r numbers a token instead of in
     frozen              B (out, r)     B starts at zero: at first nothing changes
          \\                  /
       y = W x  +  alpha/r * B (A x)

An adapted layer has one explicit state: which adapters there are, which are active, enabled or not, merged or not.
Outputs follow `enabled` and `active` alone; merging only makes them cheaper. Read next: `qlora.py`, `adapters.py`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyllm import functional as F
from tinyllm.backend import random
from tinyllm.backend.table import of
from tinyllm.frozen import FrozenWeight
from tinyllm.nn import Dropout, Linear, Module
from tinyllm.tensor import Parameter, Tensor

# Other libraries' names for the same layers, so that a PEFT config can be used as it is.
ALIASES = {
    "o_proj": ("out_proj",),
    "c_attn": ("qkv_proj",),
    "c_proj": ("out_proj", "down_proj"),
    "c_fc": ("up_proj",),
}
ATTENTION = ("qkv_proj", "q_proj", "k_proj", "v_proj", "out_proj")


@dataclass
class LoRAConfig:
    """How adapters are made; the fields are those of PEFT's LoraConfig."""

    rank: int = 8  # numbers a token is squeezed through; more rank, more to learn with
    alpha: float = 16.0  # the update is scaled by alpha / rank, so rank can change without retuning lr
    dropout: float = 0.0  # on the adapter's input only
    target_modules: Any = None  # None: attention; list of names or suffixes; regular expression; "all-linear"
    use_rslora: bool = False  # scale by alpha / sqrt(rank): high ranks keep learning (arXiv 2312.03732)
    rank_pattern: dict[str, int] = field(default_factory=dict)  # {regular expression of a module's name: rank}
    alpha_pattern: dict[str, float] = field(default_factory=dict)  # the same for alpha
    modules_to_save: tuple[str, ...] = ()  # modules that are trained whole and saved with the adapter

    def __post_init__(self) -> None:
        self.modules_to_save = tuple(self.modules_to_save or ())
        if not isinstance(self.rank, int | np.integer) or self.rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, not {self.rank!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}")
        for pattern, value in [*self.rank_pattern.items(), *self.alpha_pattern.items()]:
            if not value > 0:
                raise ValueError(f"the rank and alpha of a pattern must be above 0; {pattern!r} has {value}")

    def rank_of(self, path: str) -> int:
        return int(_by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        rank = self.rank_of(path)
        return float(_by_pattern(self.alpha_pattern, path, self.alpha)) / (math.sqrt(rank) if self.use_rslora else rank)


def _by_pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"^(.*\.)?({pattern})$", path):
            return value
    return default


class LoRALinear(Module):
    """A frozen linear layer with adapters beside it.

    Attributes
    ----------
    base_layer : Linear
        Its weight is (out, in), a frozen Parameter or a FrozenWeight; never written to.
    lora_A, lora_B : dict of str to Parameter
        A (r, in) and B (out, r) by adapter name.
    scale : dict of str to float
    active : tuple of str
        The adapters whose updates are added.
    enabled : bool
    merged : bool
        Whether the active updates are folded into `merged_weight`, which then is used instead.
    """

    def __init__(self, base_layer: Linear):
        self.base_layer = base_layer
        self.lora_A: dict[str, Parameter] = {}
        self.lora_B: dict[str, Parameter] = {}
        self.scale: dict[str, float] = {}
        self.lora_dropout: dict[str, Dropout] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.merged = False
        self._folded: tuple[Any, list] | None = None  # the merged weight and the arrays it was made from

    def add_adapter(self, name: str, rank: int, scale: float, dropout: float) -> None:
        """Make A from U(-1/sqrt(in), 1/sqrt(in)) (PEFT's kaiming_uniform with a = sqrt(5)) and B = 0."""
        n_in, n_out, dtype = self.base_layer.in_features, self.base_layer.out_features, self.base_layer.weight.dtype
        bound = 1 / math.sqrt(n_in)
        xp = (
            of(self.base_layer.weight.data).xp
            if isinstance(self.base_layer.weight, Parameter)
            else self.base_layer.weight.xp
        )
        self.lora_A[name] = Parameter(xp.asarray(random.default.uniform((rank, n_in), -bound, bound, dtype)))
        self.lora_B[name] = Parameter(xp.zeros((n_out, rank), dtype))
        self.scale[name] = scale
        self.lora_dropout[name] = Dropout(dropout)

    def delta(self) -> Any:
        """The active update, sum of scale * B A, (out, in), in float32 or better."""
        return sum(self.scale[a] * (self.lora_B[a].data @ self.lora_A[a].data) for a in self.active)

    def merged_weight(self) -> Any:
        """W plus the active update; made once, and again when the base or an adapter's array was replaced."""
        w = self.base_layer.weight
        sources = [w if isinstance(w, FrozenWeight) else w.data]
        sources += [p[a].data for a in self.active for p in (self.lora_A, self.lora_B)] + [list(self.scale.items())]
        if self._folded is None or not _same(self._folded[1], sources):
            dense = w.dense() if isinstance(w, FrozenWeight) else w.data
            self._folded = (dense + self.delta() if self.active else dense, sources)
        return self._folded[0]

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled or not self.active:
            return self.base_layer(x)
        if self.merged:
            return F.linear(x, Tensor(self.merged_weight()), self.base_layer.bias)
        y = self.base_layer(x)
        for name in self.active:
            h = F.linear(self.lora_dropout[name](x), self.lora_A[name])  # (batch, time, r)
            y = y + F.linear(h * self.scale[name], self.lora_B[name])
        return y


def _same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a[:-1], b[:-1], strict=True)) and a[-1] == b[-1]


class SavedModule(Module):
    """A module of `modules_to_save`: the frozen original and one trained copy an adapter."""

    def __init__(self, original: Module):
        self.original = original
        self.copies: dict[str, Module] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True

    def chosen(self) -> Module:
        """The module whose weights count now."""
        return self.copies[self.active[-1]] if self.enabled and self.active else self.original

    @property
    def weight(self) -> Any:
        return self.chosen().weight  # type: ignore[attr-defined]

    def forward(self, *args: Any) -> Any:
        return self.chosen()(*args)


def linear_names(model: Module) -> list[str]:
    """The paths of every linear layer that can be adapted, adapted ones included; the head stands last."""
    found: list[str] = []
    saved: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if isinstance(module, SavedModule):
            saved += (f"{path}.",)
        elif isinstance(module, LoRALinear) or (isinstance(module, Linear) and not path.endswith("base_layer")):
            if not path.startswith(saved):
                found.append(path)
    return sorted(found, key=lambda path: path.endswith("lm_head"))


def resolve_targets(model: Module, target_modules: Any) -> list[str]:
    """The linear layers that `target_modules` means.

    Raises
    ------
    ValueError
        If it, or one name of several, matches nothing; the message lists the names there are.
    """
    names = linear_names(model)
    decoder = [name for name in names if not name.endswith("lm_head")]
    last = sorted({name.rpartition(".")[2] for name in names})
    if target_modules is None:
        target_modules = [name for name in decoder if name.rpartition(".")[2] in ATTENTION]
    if not len(target_modules):
        raise ValueError(f"there is no target module; name some of: {', '.join(last)}")
    if isinstance(target_modules, str):
        if target_modules == "all-linear":
            return decoder
        matched = [name for name in names if re.fullmatch(target_modules, name)]
        if not matched:
            raise ValueError(
                f"the expression {target_modules!r} matches no linear layer; names look like {decoder[0]}, ending "
                f"in {', '.join(last)} (an expression must match the whole name; for one name pass a list)"
            )
        return matched
    chosen: set[str] = set()
    for target in target_modules:
        head, _, tail = target.rpartition(".")
        ends = ALIASES.get(tail, ()) if not any(name == target or name.endswith("." + target) for name in names) else ()
        wanted = [f"{head}.{end}" if head else end for end in ends] or [target]
        hits = {name for name in names for w in wanted if name == w or name.endswith("." + w)}
        if not hits:
            close = difflib.get_close_matches(tail, last, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"target module {target!r} matches nothing; {hint}there are: {', '.join(last)}")
        chosen |= hits
    return [name for name in names if name in chosen]


def apply_lora(
    model: Module,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Any = None,
    *,
    adapter_name: str = "default",
    use_rslora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
    modules_to_save: Sequence[str] = (),
    verbose: bool = True,
) -> Module:
    """Freeze a model and put adapters beside some of its linear layers.

    Parameters
    ----------
    model : Module
        Changed in place.
    rank, alpha, dropout, use_rslora, rank_pattern, alpha_pattern
        See `LoRAConfig`.
    target_modules : None, list of str, or str
        None means attention; a list matches whole names or suffixes; a string is a regular expression for the whole
        name; "all-linear" is every linear layer of the decoder but not the head. PEFT's names are understood.
    adapter_name : str
        A second call with another name adds an adapter and makes it the active one.
    modules_to_save : list of str
        Modules to train whole, e.g. ``["norm"]``.
    verbose : bool
        Print what is trained.

    Returns
    -------
    Module
        The same model; exactly the new adapter and `modules_to_save` train.

    Raises
    ------
    ValueError
        If a target matches nothing, the adapter exists, or a target is a head tied to the embedding. Nothing is
        changed then.
    """
    config = LoRAConfig(
        rank,
        alpha,
        dropout,
        target_modules,
        use_rslora,
        dict(rank_pattern or {}),
        dict(alpha_pattern or {}),
        tuple(modules_to_save),
    )
    targets, saved = check_adapter(model, config, adapter_name)
    configs = adapter_configs(model)
    before = model.num_parameters()
    for path in targets:
        layer = model.get(path)
        if not isinstance(layer, LoRALinear):
            layer = LoRALinear(layer)
            model.replace(path, layer)
        layer.add_adapter(adapter_name, config.rank_of(path), config.scale_of(path), dropout)
    for path in saved:
        module = model.get(path)
        if not isinstance(module, SavedModule):
            module = SavedModule(module)
            model.replace(path, module)
        module.copies[adapter_name] = _copy(module.original)
    configs[adapter_name] = config
    model.merged_for_good = False  # type: ignore[attr-defined]
    model.train(model.training)
    set_adapter(model, adapter_name)
    if verbose:
        print(trainable_summary(model, before))
    return model


def check_adapter(model: Module, config: LoRAConfig, adapter_name: str) -> tuple[list[str], list[str]]:
    """The paths to adapt and the paths to train whole, or a ValueError; changes nothing."""
    targets = resolve_targets(model, config.target_modules)
    if adapter_name in adapter_configs(model):
        raise ValueError(f"there is an adapter {adapter_name!r} already; choose another adapter_name")
    if "." in adapter_name or not adapter_name:
        raise ValueError(f"an adapter's name must not be empty or contain a dot: {adapter_name!r}")
    _refuse_tied_head(model, targets)
    saved = [path for name in config.modules_to_save for path in _resolve_saved(model, name)]
    for path in saved:
        within = [target for target in targets if target == path or target.startswith(f"{path}.")]
        if within:
            raise ValueError(
                f"modules_to_save trains {path} whole, so {within[0]} cannot be a target too; leave out one of them"
            )
    for pattern in [*config.rank_pattern, *config.alpha_pattern]:
        if not any(re.match(rf"^(.*\.)?({pattern})$", path) for path in targets):
            ends = ", ".join(sorted({target.rpartition(".")[2] for target in targets}))
            raise ValueError(f"the pattern {pattern!r} matches none of the target modules; they end in {ends}")
    return targets, saved


def _refuse_tied_head(model: Module, targets: list[str]) -> None:
    for path in targets:
        weight = getattr(model.get(path), "weight", None)
        if weight is not None and sum(getattr(m, "weight", None) is weight for _, m in model.named_modules()) > 1:
            raise ValueError(
                f"{path} is tied to the embedding, so adapting it would change both; leave it out, or build the model "
                "with tie_embeddings=False"
            )


def _resolve_saved(model: Module, name: str) -> list[str]:
    paths = [path for path, module in model.named_modules() if path == name or path.endswith("." + name)]
    if not paths:
        there = sorted({path.rpartition(".")[2] for path, _ in model.named_modules() if path})
        raise ValueError(
            f"modules_to_save names {name!r}, which matches nothing; "
            f"there are: {', '.join(n for n in there if not n.isdigit())}"
        )
    if any(isinstance(w, FrozenWeight) for path in paths for _, w in model.get(path).named_weights()):
        raise ValueError(
            f"modules_to_save names {name!r}, which is stored frozen and cannot train; build the model without storage="
        )
    return paths


def _copy(module: Module) -> Module:
    import copy

    twin = copy.copy(module)
    for name, value in list(vars(twin).items()):
        if isinstance(value, Parameter):
            setattr(twin, name, Parameter(value.data.copy()))
        elif isinstance(value, Module):
            setattr(twin, name, _copy(value))
    return twin


def adapter_configs(model: Module) -> dict[str, LoRAConfig]:
    """The model's adapters by name; the dict itself, kept on the model."""
    if "adapters" not in vars(model):
        model.adapters = {}  # type: ignore[attr-defined]
    return model.adapters  # type: ignore[attr-defined]


def trainable_summary(model: Module, before: int | None = None) -> str:
    """One line: how many parameters train, out of how many."""
    trainable, total = model.num_parameters(trainable_only=True), model.num_parameters()
    share = 100 * trainable / total
    return f"trainable parameters: {trainable:,} of {total:,} ({share:.2f} %), a reduction of {100 - share:.2f} %"


def _layers(model: Module) -> list[LoRALinear | SavedModule]:
    """Every adapted layer. Raises if there is none, saying why where it is known."""
    found: list = [m for _, m in model.named_modules() if isinstance(m, LoRALinear | SavedModule)]
    if not found:
        if getattr(model, "merged_for_good", False):
            raise RuntimeError(
                "the adapters were merged with keep_base=False, so the original weights are gone; "
                "load the base model again"
            )
        raise RuntimeError("this model has no adapters; call apply_lora or apply_qlora first")
    return found


def set_adapter(model: Module, names: str | Sequence[str]) -> None:
    """Make these adapters the active ones, and the only ones that train.

    Raises
    ------
    ValueError
        If there is no adapter of that name.
    """
    chosen = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    known = adapter_configs(model)
    for name in chosen:
        if name not in known:
            raise ValueError(f"there is no adapter {name!r}; there are: {', '.join(known) or 'none'}")
    model.requires_grad_(False)
    for layer in _layers(model):
        held = layer.lora_A if isinstance(layer, LoRALinear) else layer.copies
        layer.active = tuple(name for name in chosen if name in held)
        for name in layer.active:
            if isinstance(layer, LoRALinear):
                layer.lora_A[name].requires_grad = layer.lora_B[name].requires_grad = True
            else:
                layer.copies[name].requires_grad_(True)
    enabled = [layer.enabled for layer in _layers(model)]
    for layer in _layers(model):  # a layer that came later joins the state of the others
        layer.enabled = all(enabled)
        if isinstance(layer, LoRALinear):
            layer.merged = any(other.merged for other in _layers(model) if isinstance(other, LoRALinear))


def enable_lora(model: Module) -> Module:
    """Let the active adapters count (again), merged or not."""
    for layer in _layers(model):
        layer.enabled = True
    return model


def disable_lora(model: Module) -> Module:
    """Answer as the base model does, bit for bit, merged or not."""
    for layer in _layers(model):
        layer.enabled = False
    return model


def merge_lora(model: Module, keep_base: bool = True) -> Module:
    """Fold the active adapters into the weights, so that they cost nothing to use.

    Parameters
    ----------
    model : Module
    keep_base : bool
        Keep the original weights, so that `unmerge_lora` and `disable_lora` put them back bit for bit. With False the
        adapted layers become plain linear layers again and the original weights are gone.

    Returns
    -------
    Module
        The same model. W + scale * B A is computed in float; an NF4 or half-precision base is dequantised first, which
        is the base the adapter was trained on.

    Raises
    ------
    RuntimeError
        If there are no adapters, or they are disabled while ``keep_base=False``.
    """
    if getattr(model, "merged_for_good", False):
        return model
    layers = _layers(model)
    if not keep_base:
        if not all(layer.enabled for layer in layers):
            raise RuntimeError("the adapters are disabled; call enable_lora before merging them for good")
        for path, module in list(model.named_modules()):
            if isinstance(module, LoRALinear):
                module.base_layer.weight = Parameter(module.merged_weight(), requires_grad=False)
                model.replace(path, module.base_layer)
            elif isinstance(module, SavedModule):
                model.replace(path, module.chosen())
        adapter_configs(model).clear()
        model.merged_for_good = True  # type: ignore[attr-defined]
        return model
    for layer in layers:
        if isinstance(layer, LoRALinear):
            layer.merged, layer._folded = True, None  # an optimiser may have changed the arrays in place
            layer.merged_weight()
    return model


def unmerge_lora(model: Module) -> Module:
    """Use the original weights and the adapters beside them again; the original bits, nothing is subtracted."""
    for layer in _layers(model):
        if isinstance(layer, LoRALinear):
            layer.merged, layer._folded = False, None
    return model


def get_lora_parameters(model: Module) -> list[Parameter]:
    """What trains: the active adapters' A and B, and what `modules_to_save` names.

    Raises
    ------
    RuntimeError
        If the model has no adapters.
    """
    _layers(model)
    return [p for p in model.parameters() if p.requires_grad]


def lora_layers(model: Module) -> Iterator[tuple[str, LoRALinear]]:
    """Pairs of path and adapted layer."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield path, module
