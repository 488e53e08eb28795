"""The decoder in torch's own functions, and the shapes compared; for `test_torch_model.py`, `make_model_golden.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as T

from tinyllm.models.config import llama_shape

SHAPES = {
    "gpt2": {"num_heads": 3},
    "gpt2-exact": {"num_heads": 2, "activation": "gelu", "tie_embeddings": False},
    "llama": llama_shape(num_heads=6, num_kv_heads=2, tie_embeddings=False),
    "llama-tied-one-kv": llama_shape(num_heads=3, num_kv_heads=1, head_dim=8),
    "rms-gelu-rope-fused": {"num_heads": 2, "norm": "rms_norm", "positions": "rope", "activation": "gelu"},
}


def torch_decoder(model, weights, ids):
    """The same model written with torch's own functions, straight from the definition."""
    c, w = model.config, weights

    def linear(x, name):
        return T.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        if c.norm == "rms_norm":
            return T.rms_norm(x, (c.hidden_size,), w[f"{name}.weight"], c.norm_eps)
        return T.layer_norm(x, (c.hidden_size,), w[f"{name}.weight"], w[f"{name}.bias"], c.norm_eps)

    def rotate(x):
        half = c.head_dim // 2
        angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * c.rope_theta ** (
            -torch.arange(half, dtype=torch.float64) / half
        )
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    batch, time = ids.shape
    x = w["embed_tokens.weight"][ids]
    if c.positions == "learned":
        x = x + w["embed_positions.weight"][:time]
    for i in range(c.num_layers):
        p = f"layers.{i}"
        h = norm(x, f"{p}.input_layernorm")
        sizes = [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
        if c.qkv == "fused":
            q, k, v = linear(h, f"{p}.self_attn.qkv_proj").split(sizes, -1)
        else:
            q, k, v = (linear(h, f"{p}.self_attn.{n}_proj") for n in "qkv")
        q, k, v = (y.reshape(batch, time, -1, c.head_dim).transpose(1, 2) for y in (q, k, v))
        if c.positions == "rope":
            q, k = rotate(q), rotate(k)
        y = T.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + linear(y.transpose(1, 2).reshape(batch, time, -1), f"{p}.self_attn.out_proj")
        h = norm(x, f"{p}.post_attention_layernorm")
        up = linear(h, f"{p}.mlp.up_proj")
        if c.activation == "swiglu":
            h = T.silu(linear(h, f"{p}.mlp.gate_proj")) * up
        else:
            h = T.gelu(up, approximate="tanh" if c.activation == "gelu_tanh" else "none")
        x = x + linear(h, f"{p}.mlp.down_proj")
    head = w["embed_tokens.weight"] if c.tie_embeddings else w["lm_head.weight"]
    return T.linear(norm(x, "norm"), head)
