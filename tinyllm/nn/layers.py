"""The layers: y = x W^T + b, rows of a table, two norms, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm import functional as F
from tinyllm.backend import random
from tinyllm.backend.device import to_device
from tinyllm.backend.names import is_share, is_whole
from tinyllm.nn.module import Module, Weight, placeholder
from tinyllm.tensor import Parameter, Tensor


def check_sizes(layer: str, *sizes: Any) -> None:
    """ValueError unless these are sizes that a layer can have."""
    for size in sizes:
        if not is_whole(size) or size < 1:
            raise ValueError(f"the sizes of {layer} must be whole numbers of at least 1, not {size!r}")


class Linear(Module):
    """y = x W^T + b.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : dtype
    init : bool
        Draw W from U(-1/sqrt(in), 1/sqrt(in)) as PyTorch does; otherwise leave a placeholder to be filled.
    head : bool
        Whether it is the language-model head, whose weight is not rounded to four bits.
    residual : bool
        Whether what it gives is added to what came in, so that GPT-2's initialisation draws it smaller.

    Attributes
    ----------
    weight : Parameter or FrozenWeight (out_features, in_features)
    bias : Parameter (out_features,) or None
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: Any = np.float32,
        init: bool = True,
        *,
        head: bool = False,
        residual: bool = False,
    ):
        check_sizes("Linear", in_features, out_features)
        self.in_features, self.out_features = in_features, out_features
        self.fewest, self.is_head, self.residual = "float16" if head else "nf4", head, residual
        self.weight: Weight = placeholder((out_features, in_features), dtype)
        if init:
            bound = in_features**-0.5
            drawn = random.default.uniform((out_features, in_features), -bound, bound, dtype)
            self.weight = Parameter(to_device(drawn))
        self.bias = Parameter(to_device(np.zeros(out_features, dtype))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table by integer id; normal with standard deviation 0.02 unless `init` is off.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    dtype : dtype
    init : bool
    fewest : {"float16", "float32"}
        The storage of the fewest bits that the table bears.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: Any = np.float32,
        init: bool = True,
        fewest: str = "float16",
    ):
        check_sizes("Embedding", num_embeddings, embedding_dim)
        self.num_embeddings, self.embedding_dim, self.fewest = num_embeddings, embedding_dim, fewest
        self.dtype = np.dtype(dtype)
        self.weight: Weight = placeholder((num_embeddings, embedding_dim), dtype)
        if init:
            self.weight = Parameter(to_device(random.default.normal((num_embeddings, embedding_dim), 0.02, dtype)))

    def forward(self, ids: Any) -> Tensor:
        rows = F.embedding(self.weight, ids)
        return rows.astype(self.dtype) if self.dtype.itemsize == 2 else rows  # of a table that trains, float32


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    stays_float = True

    def __init__(self, size: int, eps: float = 1e-6, dtype: Any = np.float32):
        check_sizes("RMSNorm", size)
        self.weight, self.eps = Parameter(to_device(np.ones(size, dtype))), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)


class LayerNorm(Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias."""

    stays_float = True

    def __init__(self, size: int, eps: float = 1e-5, dtype: Any = np.float32):
        check_sizes("LayerNorm", size)
        self.weight, self.bias = Parameter(to_device(np.ones(size, dtype))), Parameter(to_device(np.zeros(size, dtype)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class Dropout(Module):
    """Zeroes elements with probability `p` in training mode."""

    def __init__(self, p: float):
        if not is_share(p):
            raise ValueError(f"the dropout probability must be in [0, 1), not {p!r}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"
