"""The families of checkpoints: names and fields both ways, what is refused, and what each brings along."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm import functional as F
from tinyllm.inspect.gradcheck import gradcheck
from tinyllm.models import DecoderConfig, DecoderModel
from tinyllm.models.cache import KVCache
from tinyllm.models.config import RopeScaling, llama_shape
from tinyllm.models.families.family import FAMILIES, family_of
from tinyllm.models.positions import positions_and_starts, rope_frequencies
from tinyllm.tensor import Tensor, no_grad

SCALING = RopeScaling(8.0, 1.0, 4.0, 16)
# What makes a small DecoderModel one of a family.
SHAPES = {
    "gpt2": {"intermediate_size": 24},
    "llama": llama_shape(num_kv_heads=1, rope_scaling=SCALING),
    "mistral": llama_shape(num_kv_heads=1, sliding_window=3),
    "qwen2": llama_shape(num_kv_heads=1, qkv_bias=True),
    "qwen3": llama_shape(num_kv_heads=1, qk_norm=True, head_dim=6),
}


def small(kind, **changes):
    shape = {"intermediate_size": 20, "max_seq_len": 32, "tie_embeddings": False, "seed": 1, **SHAPES[kind], **changes}
    return DecoderModel(13, 12, 2, 2, **shape)


# Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_name_has_one_of_its_own(kind):
    model, family = small(kind), FAMILIES[kind]
    assert family_of(model.config) is family
    names = [*model.state_dict(), *(path for path, _ in model.named_modules() if path)]
    theirs = [family.hf_name(name) for name in names if name != "layers.0.mlp" or kind != "gpt2"]
    assert len(set(theirs)) == len(theirs)
    assert not any("*" in name for name in theirs)


def test_some_names_as_they_are_published():
    llama, gpt2 = FAMILIES["llama"], FAMILIES["gpt2"]
    assert llama.hf_name("layers.10.self_attn.out_proj.weight") == "model.layers.10.self_attn.o_proj.weight"
    assert llama.hf_name("norm.weight") == "model.norm.weight" and llama.hf_name("lm_head") == "lm_head"
    assert gpt2.hf_name("layers.11.self_attn.qkv_proj.bias") == "transformer.h.11.attn.c_attn.bias"
    assert gpt2.hf_name("layers.0.post_attention_layernorm.weight") == "transformer.h.0.ln_2.weight"
    assert gpt2.hf_name("embed_positions.weight") == "transformer.wpe.weight"
    assert gpt2.transposed("layers.0.mlp.down_proj.weight") and not gpt2.transposed("layers.0.mlp.down_proj.bias")
    assert not gpt2.transposed("embed_tokens.weight") and not llama.transposed("layers.0.mlp.down_proj.weight")


# Fields ------------------------------------------------------------------------------------------------------------


@st.composite
def configurations(draw):
    """Any configuration that some family has."""
    kind = draw(st.sampled_from(list(FAMILIES)))
    heads, n = draw(st.integers(1, 4)), 2 * draw(st.integers(1, 5))
    config = {
        **FAMILIES[kind].shape,
        "model_type": kind,
        "vocab_size": draw(st.integers(1, 99)),
        "num_layers": draw(st.integers(1, 5)),
        "num_heads": heads,
        "intermediate_size": draw(st.integers(1, 99)),
        "max_seq_len": draw(st.integers(1, 5000)),
        "norm_eps": draw(st.floats(1e-9, 1e-2)),
        "tie_embeddings": draw(st.booleans()),
    }
    if kind == "gpt2":
        activation = draw(st.sampled_from(["gelu", "gelu_tanh"]))
        return DecoderConfig(**config, hidden_size=heads * n, activation=activation)
    if kind != "llama":
        config["sliding_window"] = draw(st.integers(0, 50))
    stretch = st.builds(RopeScaling, st.floats(1, 64), st.floats(0.1, 1), st.floats(2, 8), st.integers(1, 9999))
    return DecoderConfig(
        **config,
        hidden_size=draw(st.integers(1, 40)),
        head_dim=n,
        num_kv_heads=draw(st.sampled_from([k for k in range(1, heads + 1) if heads % k == 0])),
        rope_theta=draw(st.floats(10, 1e7)),
        rope_scaling=draw(st.none() | stretch),
    )


@given(configurations())
def test_a_configuration_survives_its_file(config):
    family = family_of(config)
    assert family.model_type == config.model_type
    read = DecoderConfig(**family.read(json.loads(json.dumps(family.write(config)))))
    assert read == config and read.model_type == config.model_type


@given(configurations())
def test_transformers_5_s_spelling_reads_alike(config):
    """``rope_parameters`` holds base and scaling; what is at its default may be missing or null."""
    family = family_of(config)
    fields = family.write(config)
    if config.positions == "rope":
        theta, scaling = fields.pop("rope_theta"), fields.pop("rope_scaling", None) or {"rope_type": "default"}
        fields["rope_parameters"] = {**scaling, "rope_theta": theta}
    fields |= {"bos_token_id": 1, "use_cache": True, "pruned_heads": {}, "attn_implementation": None, "pad": False}
    assert DecoderConfig(**family.read(fields)) == config


def test_a_configuration_made_here_has_a_family_too():
    assert family_of(DecoderModel(50, 64, 1).config).model_type == "gpt2"  # the guide's default
    assert family_of(DecoderConfig(50, 64, 1, **llama_shape())).model_type == "llama"
    assert family_of(DecoderConfig(50, 64, 1, **llama_shape(sliding_window=4))).model_type == "mistral"
    assert family_of(DecoderConfig(50, 64, 1, 2, num_kv_heads=1)) is None
    # A name that the shape denies does not count.
    assert family_of(DecoderConfig(50, 64, 1, **llama_shape(qk_norm=True, model_type="llama"))).model_type == "qwen3"
    # Mistral without a window computes like a Llama, and stays a Mistral.
    assert family_of(DecoderConfig(50, 64, 1, **llama_shape(model_type="mistral"))).model_type == "mistral"


def fields_of(kind):
    return FAMILIES[kind].write(small(kind).config)


REFUSED = [
    ("llama", {"attention_bias": True}, "attention_bias"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"sliding_window": 4096}, "sliding_window"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp"),
    ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters"),
    ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
    ("llama", {"rms_norm_eps": None}, "rms_norm_eps"),
    ("mistral", {"sliding_window": "wide"}, "sliding_window"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "max_window_layers"),
    ("qwen2", {"use_sliding_window": 1}, "use_sliding_window"),
    ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"activation_function": "relu"}, "activation_function"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"n_embd": None}, "n_embd"),
]


@pytest.mark.parametrize("kind, change, name", REFUSED)
def test_what_would_change_the_model_is_refused_by_name(kind, change, name):
    with pytest.raises(ValueError, match=f"config.json.*{name}"):
        FAMILIES[kind].read({**fields_of(kind), **change})


INERT = [
    ("llama", {"attention_dropout": 0.1, "pretraining_tp": 1, "rope_interleaved": False, "rope_parameters": None}),
    ("llama", {"layer_types": ["full_attention"] * 2, "partial_rotary_factor": None, "torch_dtype": "bfloat16"}),
    ("mistral", {"layer_types": ["sliding_attention"] * 2}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0}),
    ("qwen3", {"layer_types": ["full_attention"] * 2, "sliding_window": None, "max_window_layers": 28}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": True, "resid_pdrop": 0.1}),
    ("gpt2", {"n_ctx": 32, "summary_type": "cls_index", "task_specific_params": {"text-generation": {}}}),
]


@pytest.mark.parametrize("kind, change", INERT)
def test_what_changes_nothing_is_let_pass(kind, change):
    assert DecoderConfig(**FAMILIES[kind].read({**fields_of(kind), **change})) == small(kind).config


def test_defaults_that_a_file_leaves_to_transformers():
    fields = fields_of("mistral")
    del fields["sliding_window"], fields["rope_theta"], fields["head_dim"], fields["num_key_value_heads"]
    config = DecoderConfig(**FAMILIES["mistral"].read(fields))
    assert (config.sliding_window, config.rope_theta, config.head_dim, config.num_kv_heads) == (4096, 1e4, 6, 2)
    assert FAMILIES["mistral"].read({**fields, "sliding_window": None})["sliding_window"] == 0
    fields = fields_of("qwen2")
    sliding = {**fields, "use_sliding_window": True, "sliding_window": 4}
    assert FAMILIES["qwen2"].read({**sliding, "max_window_layers": 0})["sliding_window"] == 4
    assert FAMILIES["qwen2"].read({**sliding, "max_window_layers": 2})["sliding_window"] == 0


def test_lacking_fields_are_named():
    for kind, name in (("llama", "hidden_size"), ("gpt2", "n_layer")):
        fields = fields_of(kind)
        del fields[name]
        with pytest.raises(ValueError, match=f"lacks {name}"):
            FAMILIES[kind].read(fields)


# The sliding window ---------------------------------------------------------------------------------------------------


def masked_attention(q, k, v, seen):
    """Softmax over an explicit mask, (batch, heads, time, keys), in float64."""
    s = np.where(seen, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 12), st.data())
def test_a_window_is_a_mask(time, past, window, data):
    pads = np.array([0, data.draw(st.integers(0, time - 1))]) if not past else np.zeros(2, int)
    mask = (np.arange(time) >= pads[:, None]).astype(int) if pads.any() else None
    positions, starts = positions_and_starts((2, time), past, None, mask, None, window)
    g = np.random.default_rng(0)
    q, k, v = (g.standard_normal((2, 1, n, 4)) for n in (time, past + time, past + time))
    i, j = past + np.arange(time)[:, None], np.arange(past + time)
    seen = (j <= i) & (j > i - window) & (j >= np.minimum(pads[:, None, None, None], i))
    y = F.attention(Tensor(q), Tensor(k), Tensor(v), starts).data
    assert np.abs(y - masked_attention(q, k, v, seen)).max() <= 20 * np.finfo(float).eps * np.abs(v).max()


def test_no_window_and_a_wide_one_hide_nothing():
    assert positions_and_starts((1, 5), 3, None, None, None, 0)[1] is None
    assert positions_and_starts((1, 5), 3, None, None, None, 8)[1] is None
    assert positions_and_starts((1, 5), 3, None, None, None, 7)[1].tolist() == [[0, 0, 0, 0, 1]]


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 5], [2, 1, 6]])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_cache_changes_nothing(kind, pieces):
    model = small(kind, dtype=np.float64)
    ids = np.random.default_rng(0).integers(0, 13, (2, 9))
    cache, parts, at = KVCache(), [], 0
    with no_grad():
        whole = model(ids).data
        for n in pieces:
            parts.append(model(ids[:, at : at + n], cache=cache).data)
            at += n
    assert np.abs(np.concatenate(parts, 1) - whole).max() <= 1e-13 * np.abs(whole).max()


def test_a_window_is_felt_and_packing_keeps_it():
    """Through L layers a token reaches (window - 1) * L positions, and a segment packed behind another is itself."""
    model = small("mistral", dtype=np.float64)  # a window of 3, two layers
    ids = np.arange(10)[None] % 13
    changed = ids.copy()
    changed[0, 0] = 7
    differs = np.abs(model(ids).data - model(changed).data).max(-1)[0] > 0
    assert differs[:5].all() and not differs[5:].any()
    packed = model(np.concatenate([ids, changed], 1), segment_ids=np.repeat([[0, 1]], 10, 1)).data
    alone = np.concatenate([model(ids).data, model(changed).data], 1)
    assert np.abs(packed - alone).max() <= 1e-13 * np.abs(alone).max()


# Llama 3's wavelengths --------------------------------------------------------------------------------------------


@given(st.floats(1, 64), st.floats(0.5, 1.5), st.floats(2, 8), st.integers(8, 10_000), st.floats(100, 1e6))
def test_stretched_wavelengths(factor, low, high, original, theta):
    """Meta's rule, one wavelength at a time: short ones stay, long ones are stretched, those between are blended."""
    config = DecoderConfig(9, 64, 1, 1, **llama_shape(rope_theta=theta))
    plain = rope_frequencies(config)
    config.rope_scaling = RopeScaling(factor, low, high, original)
    stretched = rope_frequencies(config)
    for before, after in zip(plain, stretched, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < original / high:
            wanted = before
        elif wavelength > original / low:
            wanted = before / factor
        else:
            smooth = (original / wavelength - low) / (high - low)
            wanted = (1 - smooth) * before / factor + smooth * before
        assert math.isclose(after, wanted, rel_tol=1e-12)
    assert (np.diff(stretched) < 0).all()


def test_a_scaling_that_is_none():
    for bad in ((0.5, 1, 4, 16), (8, 4, 1, 16), (8, 0, 4, 16), (8, 1, 4, 0)):
        with pytest.raises(ValueError, match="no stretching"):
            RopeScaling(*bad)
    assert DecoderConfig(9, 64, 1, rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                 "original_max_seq_len": 16}).rope_scaling == SCALING  # fmt: skip


# Norms of queries and keys, and biases of three projections --------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_weight_has_its_gradient(kind, monkeypatch):
    monkeypatch.setattr("tinyllm.inspect.gradcheck.STEP", 1e-4)  # two blocks of random weights bend a lot
    model = small(kind, dtype=np.float64)
    g = np.random.default_rng(0)
    for _, p in model.named_parameters():
        p.data = p.data + g.standard_normal(p.shape)
    ids = g.integers(0, 13, (2, 7))
    gradcheck(lambda *_: model.loss(ids[:, :-1], ids[:, 1:]), *model.parameters(), directions=1, tolerance=1e-7)


def test_normed_heads_do_not_feel_their_length():
    """An RMS norm forgets the scale of a head's query: q_proj times 3 gives the same logits."""
    model = small("qwen3", dtype=np.float64, norm_eps=1e-30)
    ids = np.arange(6)[None]
    before = model(ids).data
    q = model.layers[0].self_attn.q_proj.weight
    q.data = q.data * 3
    assert np.abs(model(ids).data - before).max() <= 1e-12 * np.abs(before).max()
    assert model.layers[0].self_attn.q_norm.weight.shape == (6,)
    for norm in ("q_norm", "k_norm"):  # each has its own gain
        said = model(ids).data
        gain = model.layers[0].self_attn.get(norm).weight
        gain.data = gain.data * np.linspace(1, 2, 6)
        assert not np.array_equal(model(ids).data, said)
    with_biases = {n for n in small("qwen2").state_dict() if n.endswith("bias")}
    assert with_biases == {f"layers.{i}.self_attn.{p}_proj.bias" for i in range(2) for p in "qkv"}
