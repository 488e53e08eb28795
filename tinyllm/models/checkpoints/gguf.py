"""A model out of a GGUF file: llama.cpp's names, metadata and row order, and ours.

Only metadata that is understood, or says nothing about the arithmetic, passes; the rest is refused by name, since a
model read with one key misunderstood answers almost right.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.backend.names import few
from tinyllm.formats import gguf_file
from tinyllm.formats.fields import Fields
from tinyllm.formats.gguf_file import Entry, Header
from tinyllm.models.build import fill, skeleton
from tinyllm.models.checkpoints.origin import of_gguf
from tinyllm.models.config import DecoderConfig, RopeScaling
from tinyllm.models.families.family import FAMILIES
from tinyllm.models.positions import rope_frequencies

if TYPE_CHECKING:
    from tinyllm.models.decoder import DecoderModel

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")  # also the names of their families
# Our modules and llama.cpp's; within a block first.
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.qkv_proj": "attn_qkv", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd", "embed_positions": "position_embd", "norm": "output_norm", "lm_head": "output",
}  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"


def load_gguf(cls: type[DecoderModel], path: Any, storage: str | None = None, dtype: Any = np.float32) -> DecoderModel:
    """Read a model.

    Parameters
    ----------
    cls : type
        What to make: `DecoderModel`.
    path : str or Path
        A GGUF file, whole (not one of several pieces).
    storage : {"float32", "float16", "bfloat16", "nf4"}, optional
        What the weights are kept as, see `DecoderModel`. None: float32, whatever the file stores them as. NF4 is not
        what the file's own four bits are, so "nf4" rounds a second time.
    dtype : dtype
        What to compute in.

    Returns
    -------
    DecoderModel
        Its weights are read and converted one at a time.

    Raises
    ------
    FileNotFoundError, ImportError
        If there is no such file, or the `gguf` package is needed and missing.
    ValueError
        If the file is damaged, or the model is not understood.
    """
    header = gguf_file.read_header(path)
    config = read_config(path, header)
    model = skeleton(cls, config, storage or "float32", dtype)
    model.origin = of_gguf(path, config["model_type"], header.metadata)
    names = {name: gguf_name(name) for name, _ in model.named_weights()}
    _refuse_misfits(path, header, model, names)
    heads = {"q_proj": model.config.num_heads, "k_proj": model.config.num_kv_heads}

    def init(name: str, shape: tuple[int, ...]) -> np.ndarray:
        w = gguf_file.read_tensor(path, header.tensors[names[name]], names[name])
        module = name.split(".")[-2]
        return unpermute(w, heads[module]) if config["model_type"] == "llama" and module in heads else w

    fill(model, init, storage or "float32")
    model.eval()
    return model


def _refuse_misfits(path: Any, header: Header, model: DecoderModel, names: dict[str, str]) -> None:
    """Raise ValueError if tensors are missing, left over or of another shape; `names` are llama.cpp's, by ours."""
    left = sorted(header.tensors.keys() - names.values() - {ROPE_FACTORS})
    missing = [name for name in names.values() if name not in header.tensors]
    if left or missing:
        faults = [f"{what} {few(some)}" for what, some in (("lacks", missing), ("has besides", left)) if some]
        raise ValueError(
            f"{path} does not hold a {model.config.model_type} as it is understood here: it {'; '.join(faults)}"
        )
    for name, weight in model.named_weights():
        shape = header.tensors[names[name]].shape
        if shape != tuple(weight.shape):
            raise ValueError(f"{path} has {names[name]} of shape {shape}, but its metadata ask for {weight.shape}")


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a llama's q or k back in our order, (heads * n, in).

    RoPE turns pairs of channels: (i, i + n/2) here and in transformers, neighbours (2i, 2i + 1) in llama.cpp's llama,
    whose converter moves the rows of each head to fit. The other architectures keep our order.
    """
    n = w.shape[0] // heads
    return w.reshape(heads, n // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def gguf_name(name: str) -> str:
    """llama.cpp's name of our weight: ``layers.0.self_attn.q_proj.weight`` is ``blk.0.attn_q.weight``."""
    block, module, kind = re.fullmatch(r"(?:layers\.(\d+)\.)?(.*)\.(\w+)", name).groups()  # type: ignore[union-attr]
    return f"blk.{block}.{NAMES[module]}.{kind}" if block else f"{NAMES[module]}.{kind}"


def read_config(path: Any, header: Header) -> dict[str, Any]:
    """The keyword arguments of `DecoderModel`.

    Raises
    ------
    ValueError
        If the metadata lack something, or say something that would change the model and is not understood.
    """
    tensors, architecture = header.tensors, _architecture(path, header)
    fields = _fields(path, header.metadata, f"{architecture}.")
    heads = fields.whole("attention.head_count")
    config: dict[str, Any] = {
        **FAMILIES[architecture].shape,
        "model_type": architecture,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": fields.whole("embedding_length"),
        "num_layers": fields.whole("block_count"),
        "num_heads": heads,
        "intermediate_size": fields.whole("feed_forward_length"),
        "max_seq_len": fields.whole("context_length"),
        "tie_embeddings": "output.weight" not in tensors,
    }
    fields.expect("vocab_size", config["vocab_size"])
    fields.expect("attention.causal", True)
    if architecture == "gpt2":
        config["norm_eps"] = fields.number("attention.layer_norm_epsilon")
        fields.expect("attention.head_count_kv", heads)
    else:
        config["num_kv_heads"] = fields.whole("attention.head_count_kv", heads)
        config["norm_eps"] = fields.number("attention.layer_norm_rms_epsilon")
        config |= _positions(fields, config)
    off = [key for key, value in fields.rest.items() if isinstance(value, str) and value == "none"]
    fields.finish([*off, "tensor_data_layout"], "would change the model and is not understood")
    _refuse_sizes_beyond(path, config, tensors)
    return config if architecture == "gpt2" else {**config, "rope_scaling": _scaling(path, config, header)}


def _architecture(path: Any, header: Header) -> str:
    """The file's architecture; an error if it is none of ours, or the file holds something else than a whole model."""
    metadata = header.metadata
    kind, pieces = metadata.get("general.type", "model"), metadata.get("split.count", 1)
    architecture = metadata.get("general.architecture")
    if kind != "model":
        raise ValueError(f"{path} holds no model but general.type {kind!r}; give the model's file")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path} holds a model of architecture {architecture!r}; understood are {', '.join(ARCHITECTURES)}"
        )
    if pieces not in (0, 1):
        raise ValueError(f"{path} is one of {pieces} pieces; join them with llama-gguf-split --merge")
    if "token_embd.weight" not in header.tensors:
        raise ValueError(f"{path} lacks token_embd.weight: it holds no whole model")
    return architecture


def _fields(path: Any, metadata: dict[str, Any], prefix: str) -> Fields:
    """The architecture's fields; one number for each layer counts as one number if it is the same for all."""
    values = dict(metadata)
    for key, value in metadata.items():
        if key.startswith(prefix) and isinstance(value, np.ndarray):
            if not value.size or (value != value[0]).any():
                raise ValueError(f"{path} has another {key} for each layer, which is not understood")
            values[key] = value[0].item()
    return Fields(values, path, prefix, equals=" = ", lacking="; get the model again, or another conversion of it")


def _refuse_sizes_beyond(path: Any, config: dict[str, Any], tensors: dict[str, Entry]) -> None:
    """Raise ValueError for sizes that the file's tensors cannot have, before anything of that size is made."""
    if config["num_layers"] > len(tensors):
        raise ValueError(
            f"{path} says block_count {config['num_layers']}, but has {len(tensors)} tensors; get it again"
        )
    widest = max(side for entry in tensors.values() for side in entry.shape)
    width = config["num_heads"] * config.get("head_dim", 0)
    for size in (config["hidden_size"], config["intermediate_size"], width):
        if size > widest:
            raise ValueError(f"{path} has metadata that ask for a size of {size}, but none of its tensors has it")


def _positions(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """The size of a head and how RoPE turns it."""
    if "attention.key_length" not in fields.rest and config["hidden_size"] % config["num_heads"]:
        raise ValueError(f"{fields.where} lacks attention.key_length, and its heads do not divide embedding_length")
    n = fields.whole("attention.key_length", config["hidden_size"] // config["num_heads"])
    for key, only in (
        ("attention.value_length", n),
        ("rope.dimension_count", n),
        ("rope.scaling.type", "none"),
        ("rope.scale_linear", 1.0),
    ):
        fields.expect(key, only)
    return {"head_dim": n, "rope_theta": fields.number("rope.freq_base", 10000.0)}


def _scaling(path: Any, config: dict[str, Any], header: Header) -> RopeScaling | None:
    """What the wavelengths' factors mean, (n/2,) floats: a file has these instead of Llama 3's four numbers."""
    if ROPE_FACTORS not in header.tensors:
        return None
    factors = gguf_file.read_tensor(path, header.tensors[ROPE_FACTORS], ROPE_FACTORS)
    if (factors == 1).all():
        return None
    scaling = RopeScaling(float(factors.max()), 1.0, 4.0, 8192)  # as in all of Llama 3.1, 3.2 and 3.3
    plain = DecoderConfig(**{**config, "rope_scaling": None})
    stretched = DecoderConfig(**{**config, "rope_scaling": scaling})
    expected = rope_frequencies(plain) / rope_frequencies(stretched)
    if (
        config["model_type"] != "llama"
        or factors.shape != expected.shape
        or not np.allclose(factors, expected, 1e-5, 0)
    ):
        raise ValueError(f"{path} stretches rotary positions ({ROPE_FACTORS}) in a way that is not Llama 3's")
    return scaling
