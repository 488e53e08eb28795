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
