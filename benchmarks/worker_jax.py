"""JAX under jit, float32, on the CPU. The model is in `peers/jax_llama.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from protocol import serve


def load(spec: dict[str, Any]) -> dict[str, str]:
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):  # XLA counts the cores it may use, not OMP_NUM_THREADS
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])
    import jax
    import jaxlib

    return {"jax": jax.__version__, "jaxlib": jaxlib.__version__}


def make(spec: dict[str, Any]) -> Callable[[], dict]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from peers import jax_llama
    from shapes import LEARNING_RATE, Numbers, Shape

    shape, numbers = Shape(**spec["shape"]), Numbers(spec.get("seed", 0))
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv = hidden // shape.num_heads * shape.num_kv_heads
    sizes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    numbered = range(shape.num_layers)

    def stacked(part: str, size: tuple[int, ...]) -> Any:
        return jnp.asarray(np.stack([numbers.weight(f"layers.{i}.{part}.weight", size) for i in numbered]))

    base = {
        "layers": {part.rpartition(".")[2]: stacked(part, size) for part, size in sizes.items()},
        "embed_tokens": jnp.asarray(numbers.weight("embed_tokens.weight", (shape.vocab_size, hidden))),
        "norm": jnp.ones(hidden),
    }
    base["lm_head"] = base["embed_tokens"]
    if not shape.tie_embeddings:
        base["lm_head"] = jnp.asarray(numbers.weight("lm_head.weight", (shape.vocab_size, hidden)))
    adapters = {}
    for name in jax_llama.PROJECTIONS:
        n_out, n_in = sizes[f"self_attn.{name}"]
        a = [numbers.lora_a(f"layers.{i}.self_attn.{name}", (shape.rank, n_in)) for i in numbered]
        adapters[name] = (jnp.asarray(np.stack(a)), jnp.zeros((shape.num_layers, n_out, shape.rank)))
    zeros = lambda: jax.tree.map(jnp.zeros_like, adapters)
    state = [adapters, zeros(), zeros(), jnp.zeros(())]
    ids, targets = (jnp.asarray(array) for array in numbers.tokens(shape))

    def update(base: dict, adapters: dict, m: dict, v: dict, t: Any) -> tuple:
        loss, g = jax.value_and_grad(jax_llama.loss)(adapters, base, ids, targets, shape)
        t = t + 1
        new = jax.tree.map(lambda *four: jax_llama.adamw(*four, t, LEARNING_RATE), adapters, g, m, v)
        parts = [jax.tree.map(lambda three, i=i: three[i], new, is_leaf=is_update) for i in range(3)]
        return loss, *parts, t

    def is_update(x: Any) -> bool:
        return isinstance(x, tuple) and len(x) == 3

    compiled = jax.jit(update, donate_argnums=(1, 2, 3, 4))

    def step() -> dict[str, float]:
        began = time.perf_counter()
        loss, *state[:] = compiled(base, *state)
        jax.block_until_ready(state)
        return {"seconds": time.perf_counter() - began, "check": float(loss)}

    return step


if __name__ == "__main__":
    serve(load, make)
