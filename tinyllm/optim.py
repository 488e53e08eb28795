"""AdamW, gradient clipping and learning-rate schedules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tinyllm.backend.device import read
from tinyllm.backend.names import in_our_words, is_real, is_share, kind_of, nearest, refuse_unknown
from tinyllm.backend.table import of, replaceable
from tinyllm.lora.layer import Adapter, trained_dtype
from tinyllm.nn import Module
from tinyllm.tensor import Parameter, Tensor


@in_our_words()
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    Parameters
    ----------
    params : iterable of Parameter, or list of dict
        A dict is a group: ``{"params": [...], "lr": ..., "weight_decay": ...}``; what it leaves out it takes from the
        arguments. Those in half precision become float32: most updates would be lost in their rounding.
    lr, betas, eps, weight_decay
        As in PyTorch, with its defaults.

    Raises
    ------
    ValueError
        If there is nothing to train, a parameter appears twice, or a number is out of range.
    TypeError
        If `params` is one parameter alone, or holds something else than parameters or groups of them.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        if isinstance(params, Module) or isinstance(params, dict) and "params" not in params:
            raise TypeError(f"AdamW takes parameters, not a {type(params).__name__}: give it model.parameters()")
        if isinstance(params, Tensor | dict):
            raise TypeError(
                f"AdamW takes a list of parameters or groups, not one {type(params).__name__}: put it in []"
            )
        given = list(params)
        if not given:
            raise ValueError("there is nothing to train: the list of parameters is empty; was everything frozen?")
        groups = given if isinstance(given[0], dict) else [{"params": given}]
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        lists = [_parameters(group) for group in groups]
        self.groups: list[dict[str, Any]] = [
            {**defaults, **group, "params": params} for group, params in zip(groups, lists, strict=True)
        ]
        for group in self.groups:
            _check_numbers(_without_params(group))
            group["initial_lr"] = group["lr"]
        everything = [p for group in self.groups for p in group["params"]]
        if not everything:
            raise ValueError("there is nothing to train: every group of parameters is empty; was everything frozen?")
        if not any(p.requires_grad for p in everything):
            raise ValueError("there is nothing to train: none of these parameters has requires_grad; is all frozen?")
        if len({id(p) for p in everything}) != len(everything):
            raise ValueError("a parameter appears twice; each belongs to one group")
        for p in everything:
            p.data = p.data.astype(trained_dtype(p.dtype), copy=False)
        self.moments: dict[int, tuple[Any, Any]] = {}  # position -> (m, v)
        self.steps: dict[int, int] = {}

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for group in self.groups:
            for p in group["params"]:
                p.grad = None

    def set_lr_factor(self, factor: float) -> None:
        """Every group's learning rate as a multiple of the one it began with; what schedules set."""
        for group in self.groups:
            group["lr"] = group["initial_lr"] * factor

    def step(self) -> None:
        """One update of every parameter that has a gradient, in place."""
        position = -1
        for group in self.groups:
            for p in group["params"]:
                position += 1
                if p.grad is None:
                    continue
                be = of(p.data)
                if position not in self.moments:
                    self.moments[position] = (be.xp.zeros_like(p.data), be.xp.zeros_like(p.data))
                m, v = self.moments[position]
                step = self.steps[position] = self.steps.get(position, 0) + 1
                beta1, beta2 = group["betas"]
                be.adamw_step(
                    p.data, p.grad, m, v, step, group["lr"], beta1, beta2, group["eps"], group["weight_decay"]
                )

    def state_dict(self) -> dict[str, Any]:
        """``{"step": {position: n}, "m": {...}, "v": {...}, "groups": [...]}``; arrays are not copied."""
        return {
            "step": dict(self.steps),
            "m": {i: m for i, (m, _) in self.moments.items()},
            "v": {i: v for i, (_, v) in self.moments.items()},
            "groups": [_without_params(group) for group in self.groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` left off.

        Raises
        ------
        ValueError
            If the groups or shapes are not these; nothing is changed then.
        """
        everything = [p for group in self.groups for p in group["params"]]
        if len(state["groups"]) != len(self.groups):
            raise ValueError(
                f"the state has {len(state['groups'])} parameter groups, this optimiser {len(self.groups)}"
            )
        for i, m in state["m"].items():
            if i >= len(everything) or everything[i].shape != m.shape or state["v"][i].shape != m.shape:
                raise ValueError(
                    f"the optimiser state of parameter {i} has shape {m.shape}, which does not fit; "
                    "resume with the same settings"
                )
        self.steps = dict(state["step"])
        self.moments = {}
        for i, m in state["m"].items():
            xp = of(everything[i].data).xp
            self.moments[i] = (xp.array(m), xp.array(state["v"][i]))
        for group, saved in zip(self.groups, state["groups"], strict=True):
            group.update(saved)

    def __repr__(self) -> str:
        lines = []
        for i, group in enumerate(self.groups):
            shapes = Counter(f"{p.shape} {p.dtype.name}" for p in group["params"])
            numbers = ", ".join(f"{key}={value}" for key, value in _without_params(group).items())
            lines.append(f"  group {i}: {', '.join(f'{n} x {shape}' for shape, n in shapes.items())}; {numbers}")
        total = sum(p.size for group in self.groups for p in group["params"])
        nbytes = sum(m.nbytes + v.nbytes for m, v in self.moments.values())
        last = f"  {total:,} numbers train; {max(self.steps.values(), default=0)} steps, moments {nbytes:,} bytes"
        return "\n".join([f"{type(self).__name__}(", *lines, last, ")"])


def _parameters(group: Any) -> list[Parameter]:
    if not isinstance(group, dict) or "params" not in group:
        raise TypeError('a group is a dict with "params"; give AdamW groups alone or parameters alone')
    if isinstance(group["params"], Tensor):
        raise TypeError("the params of a group are a list of parameters, not one alone: put it in []")
    params = list(group["params"])
    for p in params:
        if not isinstance(p, Tensor):
            what = "a pair of name and parameter" if isinstance(p, tuple) else f"a {kind_of(p)}"
            raise TypeError(f"AdamW takes parameters, as model.parameters() gives them, not {what}")
    return params


def _check_numbers(group: dict[str, Any]) -> None:
    refuse_unknown("a group of AdamW", group, ("params", "lr", "betas", "eps", "weight_decay", "initial_lr"))
    numbers = all(is_real(group[name]) and 0 <= group[name] < math.inf for name in ("lr", "eps", "weight_decay"))
    betas = group["betas"]
    if not numbers or not isinstance(betas, tuple | list) or len(betas) != 2 or not all(map(is_share, betas)):
        raise ValueError(f"lr, eps and weight_decay must be finite and at least 0, and betas two in [0, 1): {group}")


def _without_params(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def clip_grad_norm(params: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients together so that their joint 2-norm is at most `max_norm` (Pascanu et al. 2013).

    Returns
    -------
    float
        The norm before.

    Raises
    ------
    ValueError
        Unless `max_norm` is above 0.
    """
    if not is_real(max_norm) or not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, not {max_norm}; inf clips nothing")
    params = params if isinstance(params, Tensor | Module) else list(params)
    if isinstance(params, Tensor | Module) or not all(isinstance(p, Tensor) for p in params):
        raise TypeError("clip_grad_norm takes parameters, as model.parameters() gives them")
    norm = math.sqrt(sum(read(squared_norms(params))))
    scale_grads(params, clip_factor(norm, max_norm))
    return norm


@replaceable
def clip_factor(norm: float, max_norm: float) -> float:
    """What brings gradients of this joint norm down to `max_norm`: 1 if they are not above it."""
    return max_norm / norm if norm > max_norm else 1.0


def squared_norms(params: Iterable[Parameter]) -> list[Any]:
    """The square of each gradient's 2-norm, still on the device."""
    return [p.grad.reshape(-1) @ p.grad.reshape(-1) for p in params if p.grad is not None]


def scale_grads(params: Iterable[Parameter], factor: float) -> None:
    """Multiply every gradient, in place."""
    for p in params:
        if p.grad is not None and factor != 1:
            p.grad *= factor


def constant(progress: float) -> float:
    return 1.0


def linear(progress: float) -> float:
    return 1 - progress


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "linear": linear, "cosine": cosine}


def lr_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """What the learning rate is multiplied by at `step` (from 0): a linear warm-up, then the schedule to the end.

    Raises
    ------
    ValueError
        If there is no such schedule.
    """
    if schedule not in SCHEDULES:
        hint = nearest(str(schedule), SCHEDULES)
        raise ValueError(f"there is no schedule {schedule!r}; there are: {', '.join(SCHEDULES)}{hint}")
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, steps - warmup)))


def parameter_groups(
    model: Module, lr: float, weight_decay: float, loraplus_ratio: float = 1.0
) -> list[dict[str, Any]]:
    """What trains, in groups: vectors (gains, biases) without weight decay, and LoRA's B with its own learning rate.

    LoRA+ (Hayou et al. 2024, arXiv 2402.12354) trains B `loraplus_ratio` times as fast as A.
    """
    faster = {id(module.lora_B) for _, module in model.named_modules() if isinstance(module, Adapter)}
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            rate = lr * loraplus_ratio if id(p) in faster else lr
            groups.setdefault((rate, weight_decay if p.ndim >= 2 else 0.0), []).append(p)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
