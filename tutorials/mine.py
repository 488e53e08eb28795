"""What a reader of the lessons has built, in their order; a test holds that each function stands in its lesson so."""

import numpy as np

from tinyllm import functional as F
from tinyllm.autograd import Node
from tinyllm.backend.double_quant import dynamic_map
from tinyllm.backend.nf4 import NF4_LEVELS


def my_topological(root: Node) -> list[Node]:
    """Every node behind `root`, each after all that it was computed from."""
    order, seen = [], set()

    def visit(node):
        if node is not None and node not in seen:
            seen.add(node)
            for sources, _ in node.edges:
                for source in sources:
                    visit(source)
            order.append(node)

    visit(root)
    return order


def my_softmax_backward(xp, g, y):
    """The softmax's gradient from its result y, each (..., n)."""
    average = (g * y).sum(axis=-1, keepdims=True)
    return y * (g - average)


def my_unbroadcast(g, shape):
    """The gradient `g` of a broadcast array, summed to the `shape` that the array had."""
    while g.ndim > len(shape):
        g = g.sum(axis=0)
    for axis, n in enumerate(shape):
        if n == 1:
            g = g.sum(axis=axis, keepdims=True)
    return g


def my_adamw_step(xp, w, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """One AdamW update, in place in w, m and v; `step` counts from 1."""
    w *= 1 - lr * weight_decay
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mean = m / (1 - beta1**step)
    size = xp.sqrt(v / (1 - beta2**step))
    w -= lr * mean / (size + eps)


def my_clip_factor(norm, max_norm):
    """What brings gradients of this joint norm down to `max_norm`: 1 if they are not above it."""
    return min(1.0, max_norm / norm) if norm > 0 else 1.0


def my_rms_norm(xp, x, w, eps):
    """x (..., n) over its root mean square, times w (n,); and one over that root, (..., 1)."""
    inverse = 1 / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return (x * inverse * w).astype(x.dtype), inverse.astype(x.dtype)


def my_shares(xp, q, k, scale, starts=None):
    """What each query gives to each key: q (batch, heads, time, n), k (batch, fewer heads, keys, n)."""
    k = xp.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = q @ k.swapaxes(-1, -2) * scale  # (batch, heads, time, keys)
    time, keys = scores.shape[-2:]
    key, query = xp.arange(keys), xp.arange(keys - time, keys)[:, None]
    hidden = key > query  # (time, keys): what comes after
    if starts is not None:
        hidden = hidden | (key < starts[:, None, :, None])  # what belongs to another text
    scores = xp.where(hidden, -xp.inf, scores)
    e = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def my_attention(xp, q, k, v, scale, starts):
    """Causal attention; q (batch, heads, time, n), k and v (batch, fewer heads, keys, n), starts (batch, time)."""
    v = xp.repeat(v, q.shape[1] // v.shape[1], axis=1)
    return (my_shares(xp, q, k, scale, starts) @ v).astype(q.dtype)


def my_rope(xp, x, cos, sin):
    """Each pair (i, i + n/2) turned; x (batch, heads, time, n), cos and sin (batch or 1, 1, time, n/2)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return xp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def my_silu_mul(xp, gate, up):
    """silu(gate) * up, of equal shapes."""
    return (gate / (1 + xp.exp(-gate)) * up).astype(gate.dtype)


def my_next_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution that the next token is drawn from; logits (vocabulary,)."""
    x = np.asarray(logits, np.float64) / temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")[: top_k or len(p)]
    if top_p is not None:
        reached = np.cumsum(p[order]) / p[order].sum()
        order = order[: 1 + int((reached[:-1] < top_p).sum())]  # one stays if those before it have not reached top_p
    kept = np.zeros_like(p)
    kept[order] = p[order]
    return kept / kept.sum()


def my_to_bfloat16(w):
    """The upper half of each float32, rounded to nearest, ties to even: uint16."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + odd) >> 16).astype(np.uint16)


def my_from_bfloat16(bits):
    """The float32 that each pattern stands for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def my_lora_update(x, A, B, scale):
    """scale * B A x; x (..., in), A (r, in), B (out, r): (..., out)."""
    h = F.linear(x, A)  # (..., r): what A reads
    return F.linear(h * scale, B)


def my_lora_fold(w, A, B, scale):
    """W + scale * B A, of arrays; w (rows, in), A (r, in), B (rows, r)."""
    return w + scale * (B @ A)


def my_nf4_quantize(xp, flat, block_size):
    """Packed codes (uint8) and scales (float32) of a flat float32 array."""
    n, rest = flat.size, flat.size % block_size
    filled = xp.concatenate([flat, xp.zeros(-n % block_size, xp.float32)])  # zeros change no block's largest magnitude
    blocks = filled.reshape(-1, block_size)
    absmax = xp.abs(blocks).max(axis=1)
    divisor = xp.maximum(absmax, xp.float32(1e-38))
    scaled = blocks * (xp.float32(1) / divisor)[:, None]
    if rest:
        scaled[-1], absmax[-1] = blocks[-1] / divisor[-1], divisor[-1]
    levels = xp.asarray(NF4_LEVELS)
    codes = xp.searchsorted((levels[:-1] + levels[1:]) / 2, scaled.reshape(-1)).astype(xp.uint8)
    codes = codes[: n + n % 2]
    return codes[0::2] << 4 | codes[1::2], absmax


def my_nf4_dequantize(xp, packed, absmax, block_size, n, start=0, out=None, dtype=np.float32):
    """`n` weights from element `start` on; `absmax` begins with the scale of that element's block."""
    pairs = packed[start // 2 : (start + n + 1) // 2]
    codes = xp.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[:n]
    return (xp.asarray(NF4_LEVELS)[codes] * xp.repeat(absmax, block_size)[:n]).astype(dtype)


def my_quantize_absmax(absmax):
    """Scales in 8 bits: codes (uint8), a scale for each 256 of them (float32), and the mean (float32)."""
    offset = absmax.mean(dtype=np.float32)
    filled = np.zeros(-(-absmax.size // 256) * 256, np.float32)
    filled[: absmax.size] = absmax - offset
    blocks = filled.reshape(-1, 256)
    absmax2 = np.abs(blocks).max(axis=1)
    scaled = blocks / np.maximum(absmax2, np.float32(1e-38))[:, None]
    levels = dynamic_map()
    codes = np.searchsorted((levels[:-1] + levels[1:]) / 2, scaled.reshape(-1))
    return codes[: absmax.size].astype(np.uint8), absmax2, offset


def my_dequantize_absmax(codes, absmax2, offset):
    """The scales that the codes stand for, float32."""
    scale = np.repeat(absmax2, 256)[: codes.size]
    return dynamic_map()[codes] * scale + np.float32(offset)
