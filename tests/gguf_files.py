"""GGUF files for tests, laid out by hand: a writer that is no relative of the reader; small models and vocabularies."""

from __future__ import annotations

import functools
import json
import struct

import numpy as np

from tinyllm import assets
from tinyllm.formats import gguf_file
from tinyllm.models import DecoderModel
from tinyllm.models.families.family import FAMILIES

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
KINDS |= {"BF16": 30, "Q2_K": 10, "IQ4_XS": 23}
ARRAYS = {"int32": 5, "float32": 6, "bool": 7}
SIZES = {"vocab_size": 40, "hidden_size": 72, "num_layers": 2, "intermediate_size": 64, "max_seq_len": 50}
HEADS = {"num_heads": 9, "num_kv_heads": 3, "head_dim": 8}


def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(v):
    """A type's number and the bytes."""
    if isinstance(v, bool):
        return struct.pack("<I?", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    if isinstance(v, list):
        return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(text, v))
    return struct.pack("<IIQ", 9, ARRAYS[v.dtype.name], v.size) + v.tobytes()


def encode(array, kind):
    """The bytes of an array under one of the three kinds that are not blocks."""
    if kind == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return (bits >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(array, {"F32": "<f4", "F16": "<f2"}[kind]).tobytes()


def layout(metadata, tensors, version=3, alignment=32):
    """The file as bytes; `tensors` maps a name to an array, or to (kind, shape, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(v) for key, v in metadata.items())
    data = b""
    for name, given in tensors.items():
        kind, shape, raw = given if isinstance(given, tuple) else ("F32", given.shape, encode(given, "F32"))
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", KINDS[kind], len(data))
        data += raw + b"\0" * (-len(raw) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def permute(w, heads):
    """What llama.cpp's converter does to q and k of a llama: row by row, as its RoPE pairs neighbours."""
    n = len(w) // heads
    rows = [head * n + pair + half * (n // 2) for head in range(heads) for pair in range(n // 2) for half in (0, 1)]
    return w[rows]


NAMES = {
    "input_layernorm": "attn_norm", "qkv_proj": "attn_qkv", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
    "out_proj": "attn_output", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    "embed_tokens": "token_embd", "embed_positions": "position_embd", "norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def tiny(architecture, seed=0, **changes):
    """A small random model; its vectors, too, are random, since ones and zeros hide swaps."""
    heads = {"num_heads": 6} if architecture == "gpt2" else HEADS
    config = {**SIZES, **heads, **FAMILIES[architecture].shape, "model_type": architecture, **changes}
    rng = np.random.default_rng(seed)
    return DecoderModel(**config, init=lambda name, shape: rng.normal(1 if "norm" in name else 0, 0.2, shape))


def described(model, architecture):
    """Metadata and tensors of a model as llama.cpp's converter would write them."""
    c = model.config
    metadata = {
        "general.architecture": architecture,
        "general.name": "tiny",
        f"{architecture}.block_count": c.num_layers,
        f"{architecture}.context_length": c.max_seq_len,
        f"{architecture}.embedding_length": c.hidden_size,
        f"{architecture}.feed_forward_length": c.intermediate_size,
        f"{architecture}.attention.head_count": c.num_heads,
    }
    if architecture == "gpt2":
        metadata["gpt2.attention.layer_norm_epsilon"] = c.norm_eps
    else:
        metadata |= {
            f"{architecture}.attention.head_count_kv": c.num_kv_heads,
            f"{architecture}.attention.key_length": c.head_dim,
            f"{architecture}.attention.value_length": c.head_dim,
            f"{architecture}.attention.layer_norm_rms_epsilon": c.norm_eps,
            f"{architecture}.rope.freq_base": c.rope_theta,
            f"{architecture}.rope.dimension_count": c.head_dim,
        }
    tensors = {}
    for name, weight in model.named_weights():
        *path, module, kind = name.split(".")
        array = np.asarray(weight.data)
        if architecture == "llama" and module in ("q_proj", "k_proj"):
            array = permute(array, c.num_heads if module == "q_proj" else c.num_kv_heads)
        block = f"blk.{path[1]}." if path else ""
        tensors[f"{block}{NAMES[module]}.{kind}"] = array
    return metadata, tensors


def write(path, model, architecture, vocabulary=None, **changes):
    """Write a model; `changes` of the metadata (dots as double underscores, None takes a key away)."""
    metadata, tensors = described(model, architecture)
    metadata |= vocabulary or {}
    metadata |= {key.replace("__", "."): v for key, v in changes.items()}
    metadata = {key: v for key, v in metadata.items() if v is not None}
    path.write_bytes(layout(metadata, tensors))
    return path


def random_blocks(kind, blocks, rng):
    """Random bytes are valid blocks, but for their float16 scales, which shall be finite."""
    weights, size = gguf_file.BLOCKS[kind]
    raw = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    scales = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}.get(kind, [0])
    for at in scales:
        raw[:, at : at + 2] = rng.normal(0, 0.1, (blocks, 1)).astype("<f2").view(np.uint8)
    return raw


# Vocabularies

TEXT = (
    assets.path("jargon.txt").read_text(encoding="utf-8")[:60_000]
    + "1999 in 3.14 or 2²; naïve élan 日本語 한국어 Ⅷ ١٢٣"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@functools.cache
def trained():
    """Tokens and merges of a byte-level tokenizer of 600 tokens, trained on a text; its cut is GPT-2's."""
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    inner.train_from_iterator([TEXT], trainer)
    ids = inner.get_vocab()
    return sorted(ids, key=ids.get), [" ".join(pair) for pair in json.loads(inner.to_str())["model"]["merges"]]


def byte_level(pre, **more):
    """The metadata of a byte-level vocabulary; None takes a key away."""
    tokens, merges = trained()
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3 if t in SPECIAL else 1 for t in tokens], np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        **more,
    }
    return {key: value for key, value in metadata.items() if value is not None}


def spm_metadata(pieces, **more):
    """The metadata of a SentencePiece vocabulary, the pieces best first; its tokens and their scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces))]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }
    return metadata, tokens, scores
