"""save + load = identity, bit for bit, for everything a model can hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.formats import safetensors_file
from tinyllm.formats.state import load, save
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.frozen.weight import FrozenWeight
from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel
from tinyllm.tensor import Parameter, Tensor


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small(**options):
    return DecoderModel(vocab_size=50, hidden_size=64, num_layers=2, num_heads=4, seed=1, **options)


def equal(a, b):
    if isinstance(a, FrozenWeight):
        parts = [vars(w) for w in (a, b)]
        flat = [[*(p.values())] for p in parts]
        flat = [[x for v in f for x in (v if isinstance(v, tuple) else (v,))] for f in flat]
        return (
            type(a) is type(b)
            and len(flat[0]) == len(flat[1])
            and all(np.array_equal(x, y) for x, y in zip(*flat, strict=True))
        )
    return a.dtype == b.dtype and np.array_equal(a, b)


@given(
    st.sampled_from([(1, 1), (3, 5), (7, 64), (16, 33), (64, 64), (130, 129)]),
    st.sampled_from([32, 64, 128]),
    st.booleans(),
)
def test_nf4_weights(tmp_path_factory, shape, block_size, double_quant):
    path = tmp_path_factory.mktemp("s") / "w.pt"
    w = NF4Weight.quantize(draw(shape), block_size, double_quant)
    save({"w": w}, path)
    back = load(path)
    assert list(back) == ["w"] and equal(w, back["w"]) and np.array_equal(w.dense(), back["w"].dense())


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_half_weights(tmp_path, storage, dtype):
    w = HalfWeight.quantize(draw((5, 7)).astype(dtype), storage)
    save({"w": w, "plain": w.bits.view(np.float16)}, tmp_path / "w")
    back = load(tmp_path / "w")
    assert equal(w, back["w"]) and back["w"].dtype == dtype
    assert equal(w.bits.view(np.float16), back["plain"])


def test_tensors_parameters_and_arrays(tmp_path):
    state = {"t": Tensor(draw((2, 3))), "p": Parameter(draw((3,))), "a": np.arange(4), "nan": np.array([np.nan, -0.0])}
    save(state, tmp_path / "x.bin", check_finite=False)
    back = load(tmp_path / "x.bin")
    assert set(back) == set(state)
    assert all(getattr(v, "data", v).tobytes() == back[k].tobytes() for k, v in state.items())


@pytest.mark.parametrize("double_quant", [False, True])
def test_the_names_are_those_of_bitsandbytes(tmp_path, double_quant):
    w = NF4Weight.quantize(draw((96, 64)), 64, double_quant)
    save({"X.weight": w}, tmp_path / "w")
    arrays, metadata = safetensors_file.read(tmp_path / "w")
    names = {"", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"}
    names |= {".nested_absmax", ".nested_quant_map"} if double_quant else set()
    assert set(arrays) == {"X.weight" + name for name in names} and metadata == {"format": "pt"}
    assert arrays["X.weight"].shape == (3072, 1) and arrays["X.weight"].dtype == np.uint8
    said = arrays["X.weight.quant_state.bitsandbytes__nf4"].tobytes().decode()
    start = '{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [96, 64]'
    assert said.startswith(
        start + (', "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": ' if double_quant else "}")
    )
    if double_quant:
        assert np.float32(json.loads(said)["nested_offset"]) == w.absmax[2]


@pytest.mark.parametrize("part", ["", ".absmax", ".quant_map", ".nested_absmax", ".quant_state.bitsandbytes__nf4"])
def test_a_damaged_nf4_weight_is_one_sentence(tmp_path, part):
    save({"w": NF4Weight.quantize(draw((96, 64)))}, tmp_path / "f")
    arrays, _ = safetensors_file.read(tmp_path / "f")
    for damaged in (
        {k: v for k, v in arrays.items() if k != "w" + part},
        {**arrays, "w" + part: arrays["w" + part][:-1]},
    ):
        safetensors_file.write(tmp_path / "f", damaged)
        if "w.quant_state.bitsandbytes__nf4" in damaged:
            with pytest.raises(ValueError, match="NF4 weight w in"):
                load(tmp_path / "f")


@pytest.mark.parametrize(
    "part, change",
    [
        ("about", {"quant_type": "fp4"}), ("about", {"blocksize": 128}), ("about", {"blocksize": 64.5}),
        ("about", {"blocksize": 0}), ("about", {"shape": [96, 65]}), ("about", {"shape": "ab"}), ("about", "[" * 99999),
        ("about", {"nested_blocksize": 128}), ("about", {"nested_offset": "x"}),
        (".quant_map", lambda a: a[::-1]), (".nested_quant_map", lambda a: a[::-1]),
        (".absmax", lambda a: a.astype(np.float32)), (".nested_absmax", lambda a: a.astype(np.float64)),
        (".nested_absmax", lambda a: np.tile(a, 2)),
    ],
)  # fmt: skip
def test_a_description_that_lies_is_one_sentence(tmp_path, part, change):
    save({"w": NF4Weight.quantize(draw((96, 64)))}, tmp_path / "f")
    arrays, _ = safetensors_file.read(tmp_path / "f")
    key = "w.quant_state.bitsandbytes__nf4" if part == "about" else "w" + part
    if part == "about":
        about = arrays[key].tobytes().decode()
        about = json.dumps(json.loads(about) | change) if isinstance(change, dict) else change
        arrays[key] = np.frombuffer(about.encode(), np.uint8)
    else:
        arrays[key] = change(arrays[key])
    safetensors_file.write(tmp_path / "f", arrays)
    with pytest.raises(ValueError, match="NF4 weight w in .* get or write it again"):
        load(tmp_path / "f")


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "nf4"])
def test_a_whole_model(tmp_path, storage):
    model, other = (
        small(storage=storage),
        DecoderModel(vocab_size=50, hidden_size=64, num_layers=2, num_heads=4, seed=2),
    )
    ids = np.arange(9)[None]
    save(model.state_dict(), tmp_path / "m.pt")
    assert other.load_state_dict(load(tmp_path / "m.pt")) == ([], [])
    assert np.array_equal(model(ids).data, other(ids).data)
    assert other.lm_head.weight is other.embed_tokens.weight


def test_the_flow_of_the_guide(tmp_path):
    model, other = small(), small()
    for m in (model, other):
        apply_lora(m, rank=4, alpha=8.0, target_modules=["qkv_proj", "out_proj"], verbose=False)
    for p in model.parameters():
        if p.requires_grad:
            p.data = draw(p.shape, seed=p.size)
    state = {name: p for name, p in model.named_parameters() if p.requires_grad}
    save(state, tmp_path / "lora_weights.pt")
    missing, unexpected = other.load_state_dict(load(tmp_path / "lora_weights.pt"), strict=False)
    ids = np.arange(9)[None]
    assert missing and not unexpected and len(state) == 8
    assert np.array_equal(model(ids).data, other(ids).data)
    assert not np.array_equal(model(ids).data, small()(ids).data)
    with pytest.raises(KeyError):
        small().load_state_dict(load(tmp_path / "lora_weights.pt"), strict=False)


def test_a_state_that_cannot_go_in_changes_nothing():
    model = small(storage="nf4")
    before = {k: v for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="stored as"):
        model.load_state_dict(small().state_dict())
    assert all(model.state_dict()[k] is v for k, v in before.items())


def test_what_is_no_state(tmp_path):
    with pytest.raises(TypeError, match="state_dict"):
        save(small(), tmp_path / "x")
    with pytest.raises(ValueError, match="empty"):
        save({}, tmp_path / "x")
    with pytest.raises(TypeError, match="w is list"):
        save({"w": [1.0]}, tmp_path / "x")
    with pytest.raises(ValueError, match="rename"):
        save({"w": NF4Weight.quantize(draw((2, 64))), "w.absmax": draw((2,))}, tmp_path / "x")
