"""The operations of a neural network, each with its rules; names follow ``torch.nn.functional``.

The arithmetic inside them is the backend's (`backend/primitives.py`), called through the table. What a rule names is
kept, and `kept` shows it under that name; so where a rule names an input's array, the array takes the tensor's name.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.names import is_array, is_share
from tinyllm.backend.table import of
from tinyllm.frozen import Weight, stored
from tinyllm.ops.arithmetic import floats
from tinyllm.ops.checks import check_dtypes, check_shape, of_tensor
from tinyllm.tensor import Tensor, op, require_tensors

IGNORE = -100  # the label of a position that shall not count, as in PyTorch


@of_tensor
def softmax(x: Tensor) -> Tensor:
    """e^x / sum e^x over the last axis; x (..., n)."""
    be = of(x.data)
    y = be.softmax(floats(x))
    return op(y, (x, lambda g: be.softmax_backward(g, y)))


@of_tensor
def log_softmax(x: Tensor) -> Tensor:
    """x - log(sum e^x) over the last axis; x (..., n)."""
    xp, a = of(x.data).xp, floats(x)
    y = a - a.max(axis=-1, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis=-1, keepdims=True))
    return op(y, (x, lambda g: g - xp.exp(y) * g.sum(axis=-1, keepdims=True)))


@of_tensor
def gelu(x: Tensor, approximate: bool = False) -> Tensor:
    """x * Phi(x), through erf or by GPT-2's tanh formula."""
    if not isinstance(approximate, bool):
        raise TypeError(f"gelu: approximate is True (tanh) or False (erf), not {approximate!r}")
    be, given, x = of(x.data), x, floats(x)
    return op(be.gelu(x, approximate), (given, lambda g: be.gelu_backward(g, x, approximate)))


@of_tensor
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    be, given, x = of(x.data), x, floats(x)

    def silu_rule(g: Any) -> Any:
        s = be.sigmoid(x)
        return g * (s * (1 + x * (1 - s)))

    return op(x * be.sigmoid(x), (given, silu_rule))


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the middle of SwiGLU; keeps its two inputs and nothing else. Equal shapes and dtypes."""
    require_tensors("silu_mul", gate, up)
    check_shape("silu_mul", "up", up, gate.shape)
    if gate.dtype != up.dtype:
        raise TypeError(f"silu_mul: the tensors are {gate.dtype} and {up.dtype}; convert one with .astype()")
    be, given, gate, up = of(gate.data), (gate, up), gate.data, up.data
    return op(be.silu_mul(gate, up), (given, lambda g, needs: be.silu_mul_backward(g, gate, up)))


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; x (..., n), weight (n,).

    The product that follows often keeps the output anyway, so the rules name the output and compute x from it. They
    name x where a gain is 0 and has lost it, on a GPU, where looking for such a gain would wait for the device, and
    beside a replacement, whose formula may be another.
    """
    check_dtypes("rms_norm", x, weight)
    check_shape("rms_norm", "weight", weight, x.shape[-1:])
    be, given, x, w = of(x.data), x, x.data, weight.data
    y, inverse = be.rms_norm(x, w, eps)
    if not (be.undoes("rms_norm") and w.all()):
        return op(y, (given, lambda g: be.rms_norm_backward(g, x, w, inverse)), (weight, lambda g: g * (x * inverse)))
    return op(
        y, (given, lambda g: be.rms_norm_backward(g, y / (w * inverse), w, inverse)), (weight, lambda g: g * (y / w))
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; x (..., n), weight and bias (n,)."""
    check_dtypes("layer_norm", x, weight, bias)
    check_shape("layer_norm", "weight", weight, x.shape[-1:])
    check_shape("layer_norm", "bias", bias, x.shape[-1:])
    be, given, x, w = of(x.data), x, x.data, weight.data
    y, mean, inverse = be.layer_norm(x, w, bias.data, eps)
    return op(
        y,
        (given, lambda g: be.layer_norm_backward(g, x, w, mean, inverse)),
        (weight, lambda g: g * ((x - mean) * inverse)),
        (bias, lambda g: g),
    )


@of_tensor
def rope(x: Tensor, cos: Any, sin: Any) -> Tensor:
    """Rotary positions; x (batch, heads, time, n), the arrays cos and sin (batch or 1, 1, time, n/2)."""
    for name, table in (("cos", cos), ("sin", sin)):
        batch = len(x.data) if len(table) > 1 else 1
        check_shape("rope", name, table, (batch, 1, x.shape[2], x.shape[3] // 2))
    if x.shape[3] % 2:
        raise ValueError(f"rope turns pairs of channels, and {x.shape[3]} is odd")
    be = of(x.data)
    cos, sin = be.xp.asarray(cos), be.xp.asarray(sin)
    return op(be.rope(x.data, cos, sin), (x, lambda g: be.rope(g, cos, -sin)))


def attention(q: Tensor, k: Tensor, v: Tensor, starts: Any = None, scale: float | None = None) -> Tensor:
    """Causal grouped-query attention; keeps q, k and v, and computes the probabilities again backward.

    Parameters
    ----------
    q : Tensor (batch, heads, time, n)
    k, v : Tensor (batch, kv_heads, keys, n)
        The queries are the last `time` of the `keys` positions.
    starts : int array (batch, time), optional
        The first key each query may see, 0 <= start <= the query's own position.
    scale : float
        1/sqrt(n) by default.

    Raises
    ------
    ValueError
        If heads is not a multiple of kv_heads, there are more queries than keys, or a start is not where it may be (on
        the host: a GPU is not asked).
    TypeError
        If the tensors have several dtypes.
    """
    require_tensors("attention", q, k, v)
    fits = q.ndim == k.ndim == 4 and q.shape[::3] == k.shape[::3] and k.shape == v.shape
    if not fits or q.shape[1] % k.shape[1] or q.shape[2] > k.shape[2]:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape}: heads must be a multiple of the key heads, k and v "
            "alike, and no more queries than keys"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"attention: q, k and v are {q.dtype}, {k.dtype}, {v.dtype}; convert with .astype()")
    if starts is not None:
        starts = _checked_starts(starts, q, k)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy float64 would widen q
    be, given, q, k, v = of(q.data), (q, k, v), q.data, k.data, v.data
    return op(
        be.attention(q, k, v, scale, starts),
        (given, lambda g, needs: be.attention_backward(g, q, k, v, scale, starts)),
    )


def _checked_starts(starts: Any, q: Tensor, k: Tensor) -> Any:
    starts = starts if hasattr(starts, "dtype") else np.asarray(starts)
    batch, time, past = len(q), q.shape[2], k.shape[2] - q.shape[2]
    check_shape("attention", "starts", starts, (batch, time))
    if starts.dtype.kind not in "iu":
        raise TypeError(f"attention: starts must be integers, not {starts.dtype}")
    if isinstance(starts, np.ndarray) and ((starts < 0) | (starts > np.arange(past, past + time))).any():
        raise ValueError("attention: a start is below 0 or behind its own query, which then would see no key at all")
    return of(q.data).xp.asarray(starts)


def _stored(operation: str, weight: Tensor | Weight) -> Weight:
    """A weight's face for products and rows; of a tensor or a stored weight, not of an array."""
    if not isinstance(weight, Weight):
        require_tensors(operation, weight)
    return stored(weight)


def embedding(weight: Tensor | Weight, ids: Any) -> Tensor:
    """Rows of `weight` (rows, n) by the integer array `ids` (...): (..., n)."""
    w = _stored("embedding", weight)
    be, rows = w.backend, w.shape[0]
    ids = be.xp.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"embedding: ids must be integers, not {ids.dtype}")
    if isinstance(ids, np.ndarray) and ids.size and not 0 <= ids.min() <= ids.max() < rows:  # a GPU is not asked
        raise ValueError(f"embedding: ids from {ids.min()} to {ids.max()}, and the table has rows 0..{rows - 1}")
    return op(w.take(ids), (weight, lambda g: be.embedding_grad(g, ids, rows)))


@of_tensor
def dropout(x: Tensor, p: float, training: bool = True, generator: random.Generator | None = None) -> Tensor:
    """Set elements to 0 with probability `p` and scale the others by 1/(1-p); nothing outside training.

    The mask is not kept: backward makes it again from the generator's position.

    Raises
    ------
    ValueError
        If `p` is not in [0, 1).
    """
    if not is_share(p):
        raise ValueError(f"the dropout probability must be in [0, 1), not {p!r}")
    if not training or p == 0:
        return x
    be, shape, dtype = of(x.data), x.shape, x.dtype
    state = (generator or random.default).take(-(-x.size // 4))
    return op(
        x.data * be.dropout_mask(state, shape, p, dtype),
        (x, lambda g: g * be.dropout_mask(state, shape, p, dtype)),
    )


def linear(x: Tensor, weight: Tensor | Weight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; x (..., in), weight (out, in), bias (out,): (..., out).

    However the weight is kept: the rule for x names a stored weight packed, and unpacks it again on the way back.

    Raises
    ------
    ValueError
        If the sizes do not fit.
    """
    check_dtypes("linear", x, weight, bias)
    w, shape = _stored("linear", weight), x.shape
    if len(w.shape) != 2 or not shape:
        raise ValueError(f"linear: the input must be (..., in) and the weight (out, in), not {shape} and {w.shape}")
    be, (n_out, n_in), kept_as = of(x.data), w.shape, w.dtype
    if shape[-1] != n_in:
        raise ValueError(f"linear: the input has {shape[-1]} features, the weight {w.shape} takes {n_in}")
    w = w.computing_in(x.dtype)
    given, x = x, x.data.reshape(-1, n_in)
    y = w.multiply(x).reshape(*shape[:-1], n_out)
    edges: list = [
        (given, lambda g: w.multiply_back(g.reshape(-1, n_out)).reshape(shape)),
        (weight, lambda g: be.matmul(g.reshape(-1, n_out).T, x).astype(kept_as, copy=False)),
    ]
    if bias is not None:
        check_shape("linear", "bias", bias, (n_out,))
        y += bias.data.astype(y.dtype, copy=False)  # a trained one is float32, also beside half precision
        edges.append((bias, lambda g: g))
    return op(y, *edges)


@of_tensor
def cross_entropy(logits: Tensor, targets: Any) -> Tensor:
    """The mean of -log softmax(logits)[target] over the positions whose target is not -100.

    Parameters
    ----------
    logits : Tensor (..., classes)
    targets : int array (...)

    Raises
    ------
    ValueError
        If the targets' shape is not the rows', every target is -100, or one is outside the classes.
    TypeError
        If the targets are no integers.
    """
    be, shape = of(logits.data), logits.shape
    given, logits = logits, logits.data.reshape(-1, shape[-1])
    labels, n = live_targets(be.xp, targets, shape)
    losses, lse = be.cross_entropy(logits, labels)

    def cross_entropy_rule(g: Any) -> Any:
        each = be.xp.broadcast_to(g / n, labels.shape)
        return be.cross_entropy_backward(each, logits, labels, lse).reshape(shape)

    return op(losses.sum() / n, (given, cross_entropy_rule))


def live_targets(xp: Any, targets: Any, shape: tuple[int, ...]) -> tuple[Any, int]:
    """The labels of logits of `shape`, flat, where `xp` computes, and how many count; looked at where they are."""
    targets = targets.data if isinstance(targets, Tensor) else targets
    labels = targets if is_array(targets) else np.asarray(targets)
    check_shape("cross_entropy", "targets", labels, tuple(shape[:-1]))
    labels = check_targets(labels.reshape(-1), shape[-1])
    return xp.asarray(labels), count_live(labels)


def count_live(labels: Any) -> int:
    """How many labels count."""
    n = int((labels != IGNORE).sum())
    if n == 0:
        raise ValueError("every target is -100 (ignored), so there is nothing to learn from; check the loss mask")
    return n


def check_targets(labels: Any, classes: int) -> Any:
    """The labels, if each is -100 or a class."""
    if labels.dtype.kind not in "iu":
        raise TypeError(f"targets must be integers (class numbers, or -100), not {labels.dtype}")
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise ValueError(
            f"target {int(labels[wrong][0])} is outside 0..{classes - 1} (and is not -100, which is ignored)"
        )
    return labels
