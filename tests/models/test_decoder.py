"""The decoder: every shape differentiates, looks only back, and agrees with its cache, packing and padding."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm import tensor
from tinyllm.backend.random import manual_seed
from tinyllm.data.batches import Batch, pack
from tinyllm.data.examples import Example
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.models import DecoderConfig, DecoderModel
from tinyllm.models.cache import KVCache
from tinyllm.tensor import no_grad

AXES = {
    "norm": ("layer_norm", "rms_norm"),
    "activation": ("gelu", "gelu_tanh", "swiglu"),
    "positions": ("learned", "rope"),
    "qkv": ("fused", "separate"),
    "num_kv_heads": (4, 2),
    "tie_embeddings": (True, False),
    "bias": (True, False),
}
EVERY = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
variants = st.fixed_dictionaries({axis: st.sampled_from(values) for axis, values in AXES.items()})
GUIDE, LLAMA = EVERY[0], dict(zip(AXES, ("rms_norm", "swiglu", "rope", "separate", 2, False, False), strict=True))
seeds = st.integers(0, 2**32 - 1)


def build(options, seed=0, dtype=np.float64, **more):
    """A small model whose every weight is away from its special starting value (zeros, ones)."""
    model = DecoderModel(
        11, 16, 2, 4, max_seq_len=32, intermediate_size=24, dtype=dtype, seed=seed, **{**options, **more}
    )
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = (p.data + 0.2 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def tokens(seed, batch=2, time=6):
    return np.random.default_rng(seed).integers(0, 11, (batch, time))


def gradients(model, *args, **kwargs):
    model.zero_grad()
    loss = model.loss(*args, **kwargs)
    loss.backward()
    return float(loss.data), {n: p.grad.copy() for n, p in model.named_parameters()}


@pytest.mark.parametrize("options", EVERY, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_the_gradient_of_every_variant_along_a_random_direction(options):
    model, ids, rng = build(options), tokens(1), np.random.default_rng(2)
    targets = tokens(3)
    targets[0, :2] = -100
    _, grads = gradients(model, ids, targets)
    direction = {n: rng.standard_normal(p.shape) for n, p in model.named_parameters()}
    slope = sum(float((grads[n] * d).sum()) for n, d in direction.items())
    start = {n: p.data for n, p in model.named_parameters()}

    def at(t):
        for n, p in model.named_parameters():
            p.data = start[n] + t * direction[n]
        with no_grad():
            return float(model.loss(ids, targets).data)

    h = 2e-3  # two Richardson steps leave O(h^6) and rounding of about eps / h
    d = [(at(h / 2**k) - at(-h / 2**k)) / (2 * h / 2**k) for k in range(3)]
    e = [(4 * d[1] - d[0]) / 3, (4 * d[2] - d[1]) / 3]
    numeric, truncation = (16 * e[1] - e[0]) / 15, abs(e[1] - e[0])
    rounding = 2e3 * np.finfo(float).eps * abs(at(0)) / h
    assert abs(numeric - slope) <= truncation + rounding
    assert truncation + rounding <= 1e-5 * sum(float(np.abs(grads[n] * d).sum()) for n, d in direction.items())


def linear(i, o, bias):
    return i * o + o * bias


@pytest.mark.parametrize("options", [GUIDE, LLAMA, *EVERY[5::17]])
def test_names_and_counts(options):
    model = build(options)
    names = [n for n, _ in model.named_parameters()]
    assert len(set(names)) == len(names)
    kv, bias = 4 * options["num_kv_heads"], options["bias"]
    norm = 32 if options["norm"] == "layer_norm" else 16
    attention = linear(16, 16 + 2 * kv, bias) + linear(16, 16, bias)
    mlp = linear(16, 24, bias) * (2 if options["activation"] == "swiglu" else 1) + linear(24, 16, bias)
    total = 11 * 16 * (1 if options["tie_embeddings"] else 2) + 32 * 16 * (options["positions"] == "learned")
    assert model.num_parameters() == total + 2 * (attention + mlp + 2 * norm) + norm
    assert ("lm_head.weight" in names) is not options["tie_embeddings"]
    projections = ["qkv_proj"] if options["qkv"] == "fused" else ["q_proj", "k_proj", "v_proj"]
    assert [n for n in names if n.startswith("layers.1.self_attn") and n.endswith("weight")] == [
        f"layers.1.self_attn.{p}.weight" for p in [*projections, "out_proj"]
    ]


def test_initialisation_is_gpt2s():
    manual_seed(0)
    model = DecoderModel(500, 128, 8)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.data.any()
        elif "norm" in name:
            assert (p.data == 1).all()
        else:
            std = 0.02 / 4 if name.endswith(("out_proj.weight", "down_proj.weight")) else 0.02
            assert abs(p.data.std() / std - 1) < 6 / np.sqrt(2 * p.size), name  # six sigma
    assert model.config.num_heads == 2


@given(variants, seeds, st.integers(0, 5))
def test_causality_to_the_bit(options, seed, at):
    model, ids = build(options), tokens(seed)
    changed = ids.copy()
    changed[:, at:] = tokens(seed + 1)[:, at:]
    assert np.array_equal(model(ids).data[:, :at], model(changed).data[:, :at])


def close(a, b, k=1e-12):
    return np.abs(a - b).max() <= k * max(1, np.abs(b).max())


@given(variants, seeds, st.lists(st.integers(1, 6), min_size=2, max_size=2), st.sampled_from(["left", "right"]))
def test_padding_equals_unpadded(options, seed, lengths, side):
    model, ids, time = build(options), tokens(seed), max(lengths)
    at = np.arange(time)
    n = np.array(lengths)[:, None]
    mask = (at >= time - n) if side == "left" else (at < n)
    ids, targets = ids[:, :time], tokens(seed + 1)[:, :time]
    logits = model(ids, attention_mask=mask.astype(int)).data
    for row in range(2):
        assert close(logits[row][mask[row]], model(ids[row : row + 1, mask[row]]).data[0])
    loss, grads = gradients(model, ids, np.where(mask, targets, -100), attention_mask=mask)
    total, summed = 0.0, dict.fromkeys(grads, 0)
    for row in range(2):
        one, g = gradients(model, ids[row : row + 1, mask[row]], targets[row : row + 1, mask[row]])
        total += one * lengths[row] / sum(lengths)
        summed = {name: summed[name] + g[name] * lengths[row] / sum(lengths) for name in g}
    assert close(np.array(loss), np.array(total)) and all(close(grads[name], summed[name]) for name in grads)


@given(variants, seeds, st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_packed_equals_separate(options, seed, lengths):
    model, total = build(options), sum(lengths)
    ids, targets = tokens(seed, 1, total), tokens(seed + 1, 1, total)
    segments = np.repeat(np.arange(len(lengths)) % 2, lengths)[None]  # ids may come again, as long as neighbours differ
    packed = model(ids, segment_ids=segments).data
    loss, grads = gradients(model, ids, targets, segment_ids=segments)
    summed, mean, at = dict.fromkeys(grads, 0), 0.0, 0
    for n in lengths:
        part = slice(at, at + n)
        assert close(packed[:, part], model(ids[:, part]).data)
        one, g = gradients(model, ids[:, part], targets[:, part])
        mean += one * n / total
        summed = {name: summed[name] + g[name] * n / total for name in g}
        at += n
    assert close(np.array(loss), np.array(mean)) and all(close(grads[name], summed[name]) for name in grads)


@given(variants, seeds, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3))
def test_the_cache_gives_the_recomputed_logits(options, seed, steps, pads):
    model, total = build(options), 4 + sum(steps)
    ids = tokens(seed, 2, total)
    mask = np.ones((2, total), int)
    mask[0, :pads] = 0
    whole = model(ids, attention_mask=mask).data
    cache, at, got = KVCache(), 4, []
    with no_grad():
        got.append(model(ids[:, :4], attention_mask=mask[:, :4], cache=cache).data)
        for n in steps:
            got.append(model(ids[:, at : at + n], cache=cache).data)
            at += n
    live = mask.astype(bool)
    assert cache.length == total and close(np.concatenate(got, axis=1)[live], whole[live])


def test_the_cache_grows_past_its_first_room():
    model = build(LLAMA)
    ids, cache = tokens(0, 1, 150), KVCache()
    with no_grad():
        got = np.concatenate([model(ids[:, i : i + 10], cache=cache).data for i in range(0, 150, 10)], axis=1)
        assert close(got, model(ids).data)


def test_padding_on_the_right_before_a_cache_is_refused():
    with pytest.raises(ValueError, match="padded on the left"):
        build(GUIDE)(tokens(0, 2, 3), attention_mask=[[1, 1, 1], [1, 1, 0]], cache=KVCache())


@pytest.mark.parametrize("options", [GUIDE, LLAMA])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_checkpointing_is_bit_for_bit(options, dropout, dtype):
    model, ids, targets = build(options, dtype=dtype, dropout=dropout), tokens(1), tokens(2)
    manual_seed(5)
    loss, plain = gradients(model, ids, targets)
    model.checkpointing = True
    manual_seed(5)
    again, recomputed = gradients(model, ids, targets)
    assert loss == again and all(np.array_equal(plain[n], recomputed[n]) for n in plain)


def test_dropout_is_felt_in_training_alone():
    model, ids = build(GUIDE, dropout=0.5), tokens(1)
    assert not np.array_equal(model(ids).data, model(ids).data)
    model.eval()
    assert np.array_equal(model(ids).data, model(ids).data)


@pytest.mark.parametrize("options", [GUIDE, LLAMA])
@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "nf4"])
def test_a_float32_model_never_turns_float64(options, storage, monkeypatch):
    model = build(options, dtype=np.float32, storage=storage, dropout=0.1)
    seen, make = set(), tensor.Tensor.__init__

    def watch(self, data, requires_grad=False):
        make(self, data, requires_grad)
        seen.add(self.data.dtype.name)

    monkeypatch.setattr(tensor.Tensor, "__init__", watch)
    mask = [[0, 1, 1, 1, 1, 1], [1] * 6]
    model.loss(tokens(1), tokens(2), attention_mask=mask).backward()
    model(tokens(1), attention_mask=mask, cache=KVCache())
    assert seen == {"float32"}
    assert {p.grad.dtype.name for p in model.parameters() if p.grad is not None} == {"float32"}


@pytest.mark.parametrize("options", [GUIDE, LLAMA])
@pytest.mark.parametrize("storage", ["float16", "bfloat16", "nf4"])
def test_a_stored_model_computes_what_its_dense_weights_would(options, storage):
    stored = build(options, storage=storage)
    dense = build(options)
    held = stored.state_dict()
    dense.load_state_dict({n: w.dense() if isinstance(w, FrozenWeight) else w for n, w in held.items()})
    assert stored.num_parameters() == dense.num_parameters()
    kinds = {n: w.storage for n, w in held.items() if isinstance(w, FrozenWeight)}
    matrices = {n for n, w in held.items() if len(w.shape) == 2 and n != "embed_positions.weight"}
    assert set(kinds) == matrices
    for name, kind in kinds.items():
        assert kind == ("float16" if storage == "nf4" and ("embed" in name or "head" in name) else storage)
    ids, targets = tokens(1), tokens(2)
    assert close(stored(ids).data, dense(ids).data)
    (a, ga), (b, gb) = gradients(stored, ids, targets), gradients(dense, ids, targets)
    assert close(np.array(a), np.array(b)) and all(close(ga[n], gb[n]) for n in ga)
    assert set(gb) - set(ga) == matrices


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "nf4"])
def test_building_a_stored_model_never_holds_it_in_floats(storage):
    make = lambda: DecoderModel(256, 256, 12, storage=storage, seed=0)
    make()  # imports and tables
    tracemalloc.start()
    model = make()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(w.nbytes if isinstance(w, FrozenWeight) else w.data.nbytes for w in model.state_dict().values())
    largest = 4 * max(w.size for w in model.state_dict().values())
    floats = 4 * model.num_parameters()
    assert kept < 0.55 * floats
    assert peak < kept + 4 * largest < floats


BAD_CONFIGS = [
    ({"num_heads": 3}, "multiple of num_heads"),
    ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
    ({"positions": "rope", "head_dim": 3}, "even"),
    ({"norm": "batch_norm"}, "norm must be one of"),
    ({"activation": "relu"}, "activation must be one of"),
    ({"max_seq_len": 0}, "max_seq_len must be at least 1"),
    ({"storage": "int8"}, "storage must be one of"),
]


@pytest.mark.parametrize("options, message", BAD_CONFIGS)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DecoderModel(10, 16, 1, **{"num_heads": 4, **options})


@pytest.mark.parametrize(
    "field", ["vocab_size", "hidden_size", "num_layers", "max_seq_len", "num_heads", "num_kv_heads"]
)
def test_sizes_below_one_are_refused_with_a_sentence(field):
    sizes = {"vocab_size": 8, "hidden_size": 16, "num_layers": 1, "num_heads": 4, field: -4}
    with pytest.raises(ValueError, match="at least 1"):
        DecoderConfig(**sizes)


@pytest.mark.parametrize(
    "ids, error, message",
    [
        ([[1, 11]], ValueError, r"token id 11 at \(0, 1\) is outside the vocabulary 0..10"),
        ([[-1]], ValueError, r"token id -1 at \(0, 0\)"),
        ([[1.0]], TypeError, "integers"),
        ([1, 2], ValueError, r"\(batch, time\)"),
        ([[]], (TypeError, ValueError), "token"),
        ([[0] * 33], ValueError, "33 tokens do not fit into the 32"),
    ],
)
def test_bad_ids_are_refused(ids, error, message):
    with pytest.raises(error, match=message):
        build(GUIDE)(ids)


def test_bad_targets_masks_and_segments_are_refused():
    model, ids = build(GUIDE), tokens(0, 1, 3)
    for targets, message in [([[1, 2]], "alike"), ([[1, 2, 11]], "target 11"), ([[-100] * 3], "nothing to learn")]:
        with pytest.raises(ValueError, match=message):
            model.loss(ids, targets)
    for options, message in [
        ({"attention_mask": [[1, 0, 1]]}, "holes"),
        ({"attention_mask": [[1, 1]]}, "shape"),
        ({"segment_ids": [[1, 1]]}, "shape"),
        ({"segment_ids": [[1, 1, 2]], "attention_mask": [[1, 1, 1]]}, "combined"),
        ({"segment_ids": [[1, 1, 2]], "cache": KVCache()}, "combined"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(ids, **options)


def test_an_initial_weight_of_another_shape_is_named():
    with pytest.raises(ValueError, match="embed_tokens.weight should have shape"):
        DecoderModel(10, 16, 1, init=lambda name, shape: np.zeros((1, 2)))


SIZES = {
    "vocab_size": 11, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8,
    "intermediate_size": 24, "max_seq_len": 8,
}  # fmt: skip


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", [True, False, 2.0, 2.5, "2", -1])
def test_sizes_are_whole_numbers(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least 1.* and a whole number"):
        DecoderModel(**{**SIZES, field: value})
    assert type(getattr(DecoderModel(**{**SIZES, field: np.int64(SIZES[field])}).config, field)) is int


def test_a_parameter_that_does_not_exist_and_a_dtype_that_cannot_train():
    with pytest.raises(TypeError, match="no parameter 'n_kv_heads'; did you mean num_kv_heads?"):
        DecoderModel(11, 16, 1, n_kv_heads=1)
    with pytest.raises(ValueError, match="dtype must be float32 or float64, not int32"):
        DecoderModel(11, 16, 1, dtype=np.int32)


def test_a_whole_batch_goes_into_the_loss():
    """Two examples in a row see nothing of each other: what the ids and labels alone do not say."""
    rng = np.random.default_rng(0)
    examples = [Example(ids, np.append(ids[1:], -100)) for ids in (rng.integers(0, 20, n) for n in (5, 7))]
    (row,) = pack(examples, 12)
    batch = Batch(row.ids[None], row.labels[None], row.segment_ids[None])
    model = DecoderModel(20, 32, 2, 2, seed=0)
    whole = model.loss(batch).data
    assert whole == model.loss(batch.ids, batch.labels, batch.segment_ids).data
    assert whole != model.loss(batch.ids, batch.labels).data


IDS = np.zeros((1, 3), int)


@pytest.mark.parametrize("wrong", [(IDS,), ((IDS, IDS),), (None,)])
def test_a_loss_without_targets_says_what_it_takes(wrong):
    with pytest.raises(TypeError, match=r"loss takes ids and targets, loss\(ids, targets\), or one batch"):
        DecoderModel(20, 32, 2, 2).loss(*wrong)
