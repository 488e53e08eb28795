"""A plain Llama with LoRA in JAX: scan over the layers, all logits, cross-entropy, AdamW; nothing but `jax.numpy`.

Weights are stacked, one array a kind with the layer in front. Only the adapters are differentiated.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def rms_norm(x: Any, w: Any, eps: float) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * w


def rope(x: Any, cos: Any, sin: Any) -> Any:
    """Turn the pairs (i, i + n/2) of the channels of a head; x (batch, heads, time, n)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rope_tables(time: int, n: int, theta: float) -> tuple[Any, Any]:
    angle = jnp.arange(time)[:, None] * theta ** (-jnp.arange(0, n, 2) / n)  # (time, n/2)
    return jnp.cos(angle), jnp.sin(angle)


def linear(x: Any, layer: dict, adapters: dict, name: str, scale: float) -> Any:
    y = x @ layer[name].T
    if name not in adapters:
        return y
    a, b = adapters[name]
    return y + (x @ a.T) * scale @ b.T


def attention(x: Any, layer: dict, adapters: dict, tables: tuple, shape: Any) -> Any:
    batch, time, _ = x.shape
    n, scale = shape.hidden_size // shape.num_heads, shape.alpha / shape.rank
    groups = shape.num_heads // shape.num_kv_heads

    def heads(name: str) -> Any:
        return linear(x, layer, adapters, name, scale).reshape(batch, time, -1, n).swapaxes(1, 2)

    q, k, v = rope(heads("q_proj"), *tables), rope(heads("k_proj"), *tables), heads("v_proj")
    q = q.reshape(batch, shape.num_kv_heads, groups, time, n)
    scores = jnp.einsum("bkgtn,bksn->bkgts", q, k) * n**-0.5
    scores = jnp.where(jnp.tril(jnp.ones((time, time), bool)), scores, -jnp.inf)
    y = jnp.einsum("bkgts,bksn->bkgtn", jax.nn.softmax(scores, axis=-1), v)
    y = y.reshape(batch, shape.num_heads, time, n).swapaxes(1, 2).reshape(batch, time, -1)
    return linear(y, layer, adapters, "o_proj", scale)


def loss(adapters: dict, base: dict, ids: Any, targets: Any, shape: Any) -> Any:
    """The mean token loss; `adapters` and `base["layers"]` are stacked over the layers."""
    tables = rope_tables(ids.shape[1], shape.hidden_size // shape.num_heads, shape.rope_theta)

    def block(x: Any, weights: tuple) -> tuple:
        layer, lora = weights
        x = x + attention(rms_norm(x, layer["input_layernorm"], shape.norm_eps), layer, lora, tables, shape)
        h = rms_norm(x, layer["post_attention_layernorm"], shape.norm_eps)
        inner = jax.nn.silu(h @ layer["gate_proj"].T) * (h @ layer["up_proj"].T)
        return x + inner @ layer["down_proj"].T, None

    x, _ = jax.lax.scan(block, base["embed_tokens"][ids], (base["layers"], adapters))
    logits = rms_norm(x, base["norm"], shape.norm_eps) @ base["lm_head"].T
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - right)


def adamw(p: Any, g: Any, m: Any, v: Any, t: Any, lr: float) -> tuple:
    """PyTorch's AdamW with its defaults: betas 0.9 and 0.999, eps 1e-8, weight decay 0.01."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    update = m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p * (1 - lr * 0.01) - lr * update, m, v
