"""Products of matrices, and Einstein's sums over pairs of arrays."""

from __future__ import annotations

from typing import Any

from tinyllm.backend.table import of
from tinyllm.ops.arithmetic import pair
from tinyllm.ops.shapes import expand_dims, squeeze
from tinyllm.tensor import Tensor, op


def matmul(a: Any, b: Any) -> Tensor:
    """a @ b, broadcasting the leading axes; a vector is a row on the left and a column on the right.

    Raises
    ------
    ValueError
        If the inner sizes differ, or an operand is a single number.
    """
    a, b = pair(a, b)
    x, y = a.data, b.data
    if min(x.ndim, y.ndim) == 0:
        raise ValueError(f"matmul {x.shape} @ {y.shape}: a single number is multiplied by *")
    if x.shape[-1] != y.shape[max(y.ndim - 2, 0)]:
        raise ValueError(f"matmul {x.shape} @ {y.shape}: inner {x.shape[-1]} and {y.shape[max(y.ndim - 2, 0)]} differ")
    if x.ndim == 1 or y.ndim == 1:
        product = matmul(expand_dims(a, 0) if x.ndim == 1 else a, expand_dims(b, 1) if y.ndim == 1 else b)
        return squeeze(product, (-2,) * (x.ndim == 1) + (-1,) * (y.ndim == 1))
    if any(m != n and 1 not in (m, n) for m, n in zip(x.shape[-3::-1], y.shape[-3::-1], strict=False)):
        raise ValueError(f"matmul {x.shape} @ {y.shape}: the leading axes differ, and none of a pair is 1")
    be = of(x)
    return op(
        be.matmul(x, y),
        (a, lambda g: be.matmul(g, y.swapaxes(-1, -2))),
        (b, lambda g: be.matmul(x.swapaxes(-1, -2), g)),
    )


def einsum(subscripts: str, a: Any, b: Any) -> Tensor:
    """Einstein's sum of two operands, as in NumPy: ``einsum("bik,bjk->bij", a, b)``; ``...`` broadcasts.

    Raises
    ------
    ValueError
        If there are not two inputs in `subscripts`, or one has a letter twice (a diagonal).
    """
    if not isinstance(subscripts, str):
        raise TypeError("einsum takes its letters first, as in einsum('ij,jk->ik', a, b)")
    a, b = pair(a, b)
    inputs, arrow, out = subscripts.replace(" ", "").partition("->")
    if inputs.count(",") != 1:
        raise ValueError(f"einsum takes two operands, as in 'ij,jk->ik', not {subscripts!r}")
    left, right = inputs.split(",")
    letters = (left + right).replace(".", "")
    for one in (left, right):
        if any(one.count(letter) > 1 for letter in one.replace(".", "")):
            raise ValueError(f"einsum {subscripts!r}: a letter stands twice in {one!r}, and diagonals are not taken")
    if not arrow:  # NumPy's rule: what stands once, by the alphabet
        out = "..." * ("..." in inputs) + "".join(sorted(c for c in letters if letters.count(c) == 1))
    x, y, xp, a_shape, b_shape = a.data, b.data, of(a.data).xp, a.shape, b.shape

    def back(g: Any, other: Any, its: str, mine: str, shape: tuple[int, ...]) -> Any:
        """The sum the other way round; a letter that stands in `mine` alone was added up, so it is spread again."""
        lead = "..." * ("..." in out)
        own = mine.replace("...", "")
        shared = "".join(c for c in own if c in out + its)
        part = xp.einsum(f"{out},{its}->{lead}{shared}", g, other)
        front, sizes = part.ndim - len(shared), shape[len(shape) - len(own) :]
        for i, letter in enumerate(own):
            if letter not in shared:
                part = xp.expand_dims(part, front + i)
        return xp.broadcast_to(part, (*part.shape[:front], *sizes))

    return op(
        xp.einsum(f"{left},{right}->{out}", x, y),
        (a, lambda g: back(g, y, right, left, a_shape)),
        (b, lambda g: back(g, x, left, right, b_shape)),
    )
