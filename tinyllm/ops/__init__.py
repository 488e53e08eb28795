"""The operations: the value of each, and its gradient rules; and how Tensor comes by its operators.

Names and arguments are NumPy's, which PyTorch shares.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.backend.names import nearest
from tinyllm.ops import arithmetic, reductions, shapes
from tinyllm.ops.arithmetic import (
    abs,
    add,
    alike,
    astype,
    clip,
    compare,
    cos,
    div,
    exp,
    expm1,
    floats,
    is_number,
    log,
    log1p,
    maximum,
    minimum,
    mul,
    neg,
    pair,
    power,
    sigmoid,
    sin,
    sqrt,
    square,
    sub,
    tanh,
    where,
)  # fmt: skip
from tinyllm.ops.products import einsum, matmul
from tinyllm.ops.reductions import cumsum, max, mean, min, prod, std, sum, var
from tinyllm.ops.shapes import (
    concatenate,
    expand_dims,
    flip,
    getitem,
    reshape,
    split,
    squeeze,
    stack,
    swapaxes,
    transpose,
)  # fmt: skip
from tinyllm.tensor import Tensor

__all__ = [
    "abs", "add", "alike", "astype", "clip", "compare", "concatenate", "cos", "cumsum", "div", "einsum", "exp",
    "expand_dims", "expm1", "flip", "floats", "getitem", "is_number", "log", "log1p", "matmul", "max", "maximum",
    "mean", "min", "minimum", "mul", "neg", "pair", "power", "prod", "reshape", "sigmoid", "sin", "split", "sqrt",
    "square", "squeeze", "stack", "std", "sub", "sum", "swapaxes", "tanh", "transpose", "var", "where",
]  # fmt: skip


# What other libraries call methods of ours, and what is a function here.
THEIRS = {
    "view": "reshape", "permute": "transpose", "unsqueeze": "expand_dims", "clamp": "clip", "t": "T", "copy": "detach",
    "clone": "detach", "to": "astype (or tinyllm.set_device)", "cuda": "tinyllm.set_device('cuda')", "cpu": "numpy",
    "float": "astype('float32')", "double": "astype('float64')", "half": "astype('float16')",
    "tolist": "numpy().tolist",
    "requires_grad_": "requires_grad = True", "grad_fn": "tinyllm.kept(tensor)", "softmax": "functional.softmax",
    "log_softmax": "functional.log_softmax", "relu": "ops.maximum(tensor, 0)", "matmul": "tensor @ other",
    "mm": "tensor @ other", "pow": "tensor ** number", "chunk": "ops.split", "dim": "ndim", "numel": "size",
}  # fmt: skip


class Operators:
    """What a Tensor can be asked for: ``a + b``, ``a == b``, ``a.sum(axis=0)`` and so on, each a function of here."""

    __slots__ = ()

    __add__ = __radd__ = add
    __mul__ = __rmul__ = mul
    __sub__, __truediv__, __matmul__, __pow__ = sub, div, matmul, power
    __neg__, __abs__, __getitem__ = neg, abs, getitem

    def __rsub__(self, other: Any) -> Tensor:
        return sub(other, self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return div(other, self)

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(other, self)

    def __rpow__(self, other: Any) -> Tensor:
        return power(other, self)

    def __eq__(self: Any, other: Any) -> Any:
        return compare(self, other, operator.eq)

    def __ne__(self: Any, other: Any) -> Any:
        return compare(self, other, operator.ne)

    def __lt__(self: Any, other: Any) -> Any:
        return compare(self, other, operator.lt)

    def __le__(self: Any, other: Any) -> Any:
        return compare(self, other, operator.le)

    def __gt__(self: Any, other: Any) -> Any:
        return compare(self, other, operator.gt)

    def __ge__(self: Any, other: Any) -> Any:
        return compare(self, other, operator.ge)

    __hash__ = object.__hash__  # as a key, a tensor is itself, whatever its numbers

    def __len__(self: Any) -> int:
        if not self.ndim:
            raise TypeError("a tensor of one number has no length and no rows; .item() gives the number")
        return len(self.data)

    def __iter__(self: Any) -> Iterator[Tensor]:
        return map(self.__getitem__, range(len(self)))

    def __setitem__(self: Any, index: Any, value: Any) -> None:
        raise TypeError(
            "a tensor is not changed in place, since backward may need its numbers; make another one with ops.where or "
            "ops.concatenate, or set .data outside of the graph"
        )

    def item(self: Any) -> float:
        """The one number in this tensor, as a Python number."""
        if self.size != 1:
            raise ValueError(
                f"only a tensor of size 1 is one number, and this has shape {self.shape}; take .sum() first"
            )
        return self.data.item()

    def __float__(self: Any) -> float:
        return float(self.item())

    def __int__(self: Any) -> int:
        return int(self.item())

    def __bool__(self: Any) -> bool:
        if self.size != 1:
            raise ValueError(f"{self.size} numbers are neither true nor false; ask .numpy().all() or .numpy().any()")
        return bool(self.item())

    def __format__(self: Any, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __repr__(self: Any) -> str:
        body = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", threshold=20, precision=4)
        trains = ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({body}, shape={self.shape}, dtype={self.dtype.name}{trains})"

    def __array__(self: Any, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    @property
    def T(self: Any) -> Tensor:
        """The axes reversed."""
        return transpose(self)

    abs, square, sqrt, exp, expm1 = arithmetic.abs, arithmetic.square, arithmetic.sqrt, arithmetic.exp, arithmetic.expm1
    log, log1p, sin, cos, tanh = arithmetic.log, arithmetic.log1p, arithmetic.sin, arithmetic.cos, arithmetic.tanh
    sigmoid, clip, astype = arithmetic.sigmoid, arithmetic.clip, arithmetic.astype
    sum, mean, var, std = reductions.sum, reductions.mean, reductions.var, reductions.std
    prod, max, min, cumsum = reductions.prod, reductions.max, reductions.min, reductions.cumsum
    reshape, transpose, swapaxes, flip = shapes.reshape, shapes.transpose, shapes.swapaxes, shapes.flip
    squeeze, expand_dims = shapes.squeeze, shapes.expand_dims

    if not TYPE_CHECKING:  # or every name would pass for one

        def __getattr__(self, name: str) -> Any:
            hint = "" if name.startswith("_") else THEIRS.get(name) or nearest(name, dir(Tensor), "{}")
            raise AttributeError(f"Tensor has no attribute {name!r}" + (f"; did you mean {hint}?" if hint else ""))


for name, thing in vars(Operators).items():  # tensor.py comes first, so the operators are put into it here
    if callable(thing) or isinstance(thing, property):
        setattr(Tensor, name, thing)
del name, thing
