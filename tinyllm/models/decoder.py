"""The decoder transformer: attention, MLP, block, model; read from top to bottom.

Shapes: batch, time, channel (the hidden size), heads, n (channels of a head).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm import functional as F
from tinyllm.backend import random
from tinyllm.backend.device import as_dtype, to_host
from tinyllm.backend.names import in_our_words
from tinyllm.backend.table import of
from tinyllm.models.build import check_storage, fill, gpt2_init
from tinyllm.models.cache import KVCache
from tinyllm.models.config import DecoderConfig
from tinyllm.models.head import chunked_cross_entropy, linear_cross_entropy
from tinyllm.models.positions import check_ids, positions_and_starts, rope_frequencies, rope_tables
from tinyllm.nn import Dropout, Embedding, LayerNorm, Linear, Module, RMSNorm
from tinyllm.ops import split
from tinyllm.tensor import Tensor, checkpoint


def make_norm(config: DecoderConfig, dtype: Any) -> Module:
    kind = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}[config.norm]
    return kind(config.hidden_size, config.norm_eps, dtype)


class Attention(Module):
    """Causal self-attention with grouped-query heads."""

    def __init__(self, config: DecoderConfig, dtype: Any):
        self.heads, self.kv_heads, self.n = config.num_heads, config.num_kv_heads, config.head_dim
        q_size, kv_size = self.heads * self.n, self.kv_heads * self.n
        self.sizes = (q_size, kv_size, kv_size)
        self.fused, self.normed = config.qkv == "fused", config.qk_norm
        hidden, bias = config.hidden_size, config.bias or config.qkv_bias
        if self.fused:
            self.qkv_proj = Linear(hidden, sum(self.sizes), bias, dtype, init=False)
        else:
            self.q_proj = Linear(hidden, q_size, bias, dtype, init=False)
            self.k_proj = Linear(hidden, kv_size, bias, dtype, init=False)
            self.v_proj = Linear(hidden, kv_size, bias, dtype, init=False)
        self.out_proj = Linear(q_size, hidden, config.bias, dtype, init=False, residual=True)
        if self.normed:
            self.q_norm = RMSNorm(self.n, config.norm_eps, dtype)
            self.k_norm = RMSNorm(self.n, config.norm_eps, dtype)

    def forward(self, x: Tensor, rope: tuple | None, starts: Any, cache: KVCache | None, layer: int) -> Tensor:
        q, k, v = self.project(x)
        if rope is not None:
            q, k = F.rope(q, *rope), F.rope(k, *rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (batch, kv_heads, past + time, n)
        y = F.attention(q, k, v, starts)  # (batch, heads, time, n)
        batch, time = x.shape[:2]
        return self.out_proj(y.swapaxes(1, 2).reshape(batch, time, self.heads * self.n))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, heads, time, n); keys and values (batch, kv_heads, time, n)."""
        if self.fused:
            q, k, v = split(self.qkv_proj(x), self.sizes)  # (batch, time, heads * n)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        batch, time = x.shape[:2]
        q = q.reshape(batch, time, self.heads, self.n)
        k = k.reshape(batch, time, self.kv_heads, self.n)
        v = v.reshape(batch, time, self.kv_heads, self.n)
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)  # over the n channels of each head
        return q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)


class MLP(Module):
    """Two layers with GELU, or three with SwiGLU."""

    def __init__(self, config: DecoderConfig, dtype: Any):
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.bias
        self.activation = config.activation
        if self.activation == "swiglu":
            self.gate_proj = Linear(hidden, inner, bias, dtype, init=False)
        self.up_proj = Linear(hidden, inner, bias, dtype, init=False)
        self.down_proj = Linear(inner, hidden, bias, dtype, init=False, residual=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return self.down_proj(F.silu_mul(self.gate_proj(x), self.up_proj(x)))
        return self.down_proj(F.gelu(self.up_proj(x), approximate=self.activation == "gelu_tanh"))


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig, dtype: Any):
        self.input_layernorm = make_norm(config, dtype)
        self.self_attn = Attention(config, dtype)
        self.post_attention_layernorm = make_norm(config, dtype)
        self.mlp = MLP(config, dtype)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rope: tuple | None, starts: Any, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rope, starts, cache, layer))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


# What torch's and transformers' models are asked, and what does it here.
DEVICE = "tinyllm.set_device, before the model is made"
THEIRS = {"to": DEVICE, "cuda": DEVICE, "generate": "tinyllm.generate.generate(model, ids)"}


@in_our_words(DecoderConfig)
class DecoderModel(Module):
    """A decoder-only transformer.

    Parameters
    ----------
    vocab_size, hidden_size, num_layers : int
    num_heads : int, optional
        ``max(1, hidden_size // 64)`` by default.
    storage : {"float32", "float16", "bfloat16", "nf4"}
        What the weights of the decoder's linear layers are kept as. With "float16" and "bfloat16" embedding and head
        too; with "nf4" they are kept as float16. Anything but "float32" is frozen for good. Converted weight by weight,
        so that no float copy of the model ever exists.
    dtype : dtype
        float32, or float64 for exact gradients. On a GPU also float16 and bfloat16, to compute in them:
        gains, what trains, sums and the loss are float32 then.
    seed : int, optional
        Initialise from this seed rather than from the default generator.
    init : callable or None
        ``init(name, shape) -> array`` gives each weight instead of the normal initialisation (used by
        ``from_pretrained``).
    **config
        The other fields of `DecoderConfig`.

    Raises
    ------
    TypeError
        If there is no such field.
    ValueError
        If a size, a name or a dtype is not allowed, or sizes do not fit together.

    Examples
    --------
    >>> model = DecoderModel(vocab_size=100, hidden_size=64, num_layers=2)
    >>> model(np.array([[1, 2, 3]])).shape
    (1, 3, 100)
    """

    origin: Any = None  # what came with it in files beside the weights, see `models/checkpoints/origin.py`

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int | None = None,
        *,
        storage: str = "float32",
        dtype: Any = np.float32,
        seed: int | None = None,
        init: Callable[[str, tuple[int, ...]], Any] | None = None,
        **config: Any,
    ):
        self.dtype = dtype = as_dtype(dtype)
        check_storage(storage, dtype)
        heads = 0 if num_heads is None else num_heads
        self.config = c = DecoderConfig(vocab_size, hidden_size, num_layers, heads, **config)
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size, dtype, init=False)
        if c.positions == "learned":
            self.embed_positions = Embedding(c.max_seq_len, c.hidden_size, dtype, init=False, fewest="float32")
        self.dropout = Dropout(c.dropout)
        self.layers = [Block(c, dtype) for _ in range(c.num_layers)]
        self.norm = make_norm(c, dtype)
        self.lm_head = Linear(c.hidden_size, c.vocab_size, False, dtype, init=False, head=True)
        if c.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.checkpointing = False  # recompute each block in backward instead of keeping its activations
        generator = random.default if seed is None else random.Generator(seed)
        fill(self, init or gpt2_init(self, generator), storage)

    if not TYPE_CHECKING:  # or every name would pass for one

        def __getattr__(self, name: str) -> Any:
            hint = f"; did you mean {THEIRS[name]}?" if name in THEIRS else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    @property
    def half(self) -> bool:
        """Whether it computes in half precision: activations and products; sums, adapters and the loss in float32."""
        return self.dtype.itemsize == 2

    def hidden(
        self, ids: Any, segment_ids: Any = None, attention_mask: Any = None, cache: KVCache | None = None
    ) -> Tensor:
        """The normed output of the last block, (batch, time, channel); parameters as in `forward`."""
        c = self.config
        ids = check_ids(ids, c.vocab_size)
        past = cache.length if cache is not None else 0
        if c.positions == "learned" and past + ids.shape[1] > c.max_seq_len:
            raise ValueError(
                f"{past + ids.shape[1]} tokens do not fit into the {c.max_seq_len} learned positions; shorten the input"
            )
        packed, mask = to_host(segment_ids), to_host(attention_mask)
        positions, starts = positions_and_starts(ids.shape, past, packed, mask, cache, c.sliding_window)
        x = self.embed_tokens(ids)  # (batch, time, channel)
        be = of(x.data)
        starts = None if starts is None else be.xp.asarray(starts)  # once, for every layer
        rope = None
        if c.positions == "learned":
            x = x + self.embed_positions(positions)
        else:
            rope = rope_tables(positions, rope_frequencies(c), np.float32 if self.half else self.dtype, be.xp)
        x = self.dropout(x)
        with be.hold():
            for i, layer in enumerate(self.layers):
                if self.checkpointing and cache is None:
                    x = checkpoint(lambda x, layer=layer, i=i: layer(x, rope, starts, None, i), x)
                else:
                    x = layer(x, rope, starts, cache, i)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)

    def forward(
        self, ids: Any, segment_ids: Any = None, attention_mask: Any = None, cache: KVCache | None = None
    ) -> Tensor:
        """Logits.

        Parameters
        ----------
        ids : int array (batch, time)
        segment_ids : int array (batch, time), optional
            Packing: positions see only their own segment, and positions count from its start.
        attention_mask : array (batch, time) of 0 and 1, optional
            Padding on the left or on the right, as in transformers.
        cache : KVCache, optional
            Keys and values of earlier positions; appended to.

        Returns
        -------
        Tensor (batch, time, vocabulary)
        """
        return self.lm_head(self.hidden(ids, segment_ids, attention_mask, cache))

    def loss(self, ids: Any, targets: Any = None, segment_ids: Any = None, attention_mask: Any = None) -> Tensor:
        """The mean token loss through the fused head; ``targets[b, t]`` labels position t, -100 is ignored.

        ``loss(batch)`` takes a whole `Batch`: its ids, its labels, and which example each position belongs to.

        Raises
        ------
        ValueError
            If shapes differ, a target is outside the vocabulary, or every target is ignored.
        """
        if targets is None:
            if not hasattr(ids, "labels") or segment_ids is not None:
                raise TypeError("loss takes ids and targets, loss(ids, targets), or one batch of a Loader, loss(batch)")
            ids, targets, segment_ids = ids.ids, ids.labels, ids.segment_ids
        ids = check_ids(ids, self.config.vocab_size)
        targets = np.asarray(to_host(targets))
        if targets.shape != ids.shape:
            raise ValueError(f"ids have shape {ids.shape} and targets {targets.shape}; they must be alike")
        x = self.hidden(ids, segment_ids, attention_mask)
        head = self.lm_head.chosen()
        if isinstance(head, Linear) and head.bias is None:
            return linear_cross_entropy(x, head.weight, targets)
        return chunked_cross_entropy(x, head, targets, self.config.vocab_size)  # an adapted head

    @classmethod
    @in_our_words()
    def from_pretrained(cls, name: Any, storage: str | None = None, dtype: Any = np.float32) -> DecoderModel:
        """Read a model: a folder, a GGUF file or a name on the hub; see `models/checkpoints/folder.py`."""
        from tinyllm.models.checkpoints.folder import load_pretrained  # only now: the book imports no files

        return load_pretrained(cls, name, storage, dtype)

    def save_pretrained(self, folder: Any, max_shard_size: float = 5e9) -> None:
        """Write ``config.json`` and ``model.safetensors``; see `models/checkpoints/export.py`."""
        from tinyllm.models.checkpoints.export import save_pretrained

        save_pretrained(self, folder, max_shard_size)

    def describe(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return asdict(self.config)
