"""DoRA: an update that learns how long a weight's rows are apart from where they point (arXiv 2402.09353).

A row of W is one output's weights. DoRA writes it as a length m times a direction, lets LoRA turn the direction, and
trains m beside it::

    V = W + scale * B A          (out, in), the direction, not normed
    y = m / |V| * V x + bias     |V| (out,): the norm of each row

At first B = 0 and m is W's norms, so that y is the base's to the last bit. V's norms n are computed anew in every
forward pass, but the gradient takes them as constants (section 4.3 of the paper), as PEFT does: with
G = dL/d(Vx m/n) summed over the tokens against x::

    dL/dB = scale * (m/n * G) A^T
    dL/dA = scale * B^T (m/n * G)
    dL/dm = sum(G * V/n) over rows

The paper's m stands for columns of its transposed W: the same numbers.
"""

from __future__ import annotations

from typing import Any

from tinyllm import functional as F
from tinyllm.backend.table import of
from tinyllm.frozen import Weight, stored
from tinyllm.lora.layer import Adapter, lora_fold, lora_update
from tinyllm.nn import Linear
from tinyllm.tensor import Parameter, Tensor


class DoRA(Adapter):
    """LoRA with a trained length for each row of W + scale * B A.

    Attributes
    ----------
    magnitude : Parameter (out,)
        m; at first the lengths of W's rows.
    """

    def __init__(self, layer: Linear, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(layer, rank, scale, dropout)
        self.magnitude = Parameter(row_norms(stored(layer.weight), self.lora_A.data, self.lora_B.data, scale))

    def forward(self, x: Tensor, y: Any = None, layer: Any = None) -> Tensor:
        """What is added to y = W x + bias: (m/n - 1) W x + m/n scale B A x, so that each adapter adds its own."""
        weight, bias = layer.base_layer.weight, layer.chosen_bias()
        norms = row_norms(stored(weight), self.lora_A.data, self.lora_B.data, self.scale)
        length = self.magnitude / Tensor(norms)  # m/|V| (out,)
        dropped = self.dropout(x)
        # PEFT's rule: with dropout the update replaces W of the dropped input, and W x itself stays whole.
        if dropped is not x:
            wx = F.linear(dropped, weight)
        else:
            wx = y if bias is None else y - bias.astype(y.dtype)
        longer = (length - 1).astype(wx.dtype)  # W x may be in half precision
        return wx * longer + lora_update(dropped, self.lora_A, self.lora_B * length.reshape(-1, 1), self.scale)

    def fold(self, folded: Any, w: Any, rows: slice) -> Any:
        v = lora_fold(w, self.lora_A.data, self.lora_B.data[rows], self.scale)
        return folded + (v * (self.magnitude.data[rows] / norms_of(v))[:, None] - w)


def norms_of(v: Any) -> Any:
    """The length of each row, (rows,); 1 for a row of zeros, whose direction no length can change."""
    xp = of(v).xp
    n = xp.sqrt((v * v).sum(axis=1))
    return xp.where(n == 0, n.dtype.type(1), n)


def row_norms(weight: Weight, a: Any, b: Any, scale: float) -> Any:
    """The row norms of W + scale * B A, tile by tile: no float copy of a stored weight outlives a tile.

    Parameters
    ----------
    weight : Weight (out, in)
    a, b : array (r, in), (out, r)
    scale : float

    Returns
    -------
    array (out,)
    """
    return of(a).xp.concatenate([norms_of(lora_fold(w, a, b[rows], scale)) for rows, w in weight.tiles()])
