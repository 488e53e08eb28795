"""GGUF: files written by hand are read as what they are, and bad ones are refused in one sentence."""

from __future__ import annotations

import builtins
import struct
import tracemalloc

import numpy as np
import pytest
from gguf_files import KINDS, described, encode, layout, permute, random_blocks, text, tiny, write
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from tinyllm.backend.half import from_bfloat16
from tinyllm.cli import main
from tinyllm.formats import gguf_file
from tinyllm.frozen import store
from tinyllm.models import DecoderModel
from tinyllm.models.build import storages
from tinyllm.models.checkpoints.gguf import load_gguf, unpermute
from tinyllm.models.config import RopeScaling
from tinyllm.models.positions import rope_frequencies

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gpt2"]
IDS = np.random.default_rng(1).integers(0, 40, (2, 11))
BLOCKED = [kind for kind, (weights, _) in gguf_file.BLOCKS.items() if weights > 1]


def bits(model):
    return {name: np.asarray(w.data).view(np.uint32) for name, w in model.named_weights()}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_comes_back_bit_for_bit(tmp_path, architecture, tied):
    positions = {} if architecture == "gpt2" else {"rope_theta": 3e4}
    model = tiny(architecture, tie_embeddings=tied, norm_eps=2e-5, **positions)
    got = DecoderModel.from_pretrained(write(tmp_path / "m.gguf", model, architecture))
    assert got.config == model.config and got.config.model_type == architecture
    same(bits(got), bits(model))
    np.testing.assert_array_equal(got(IDS).data, model(IDS).data)


@given(seeds, st.sampled_from([(1, 2), (3, 4), (9, 8), (2, 64)]))
def test_undoing_the_row_order_undoes_it(seed, sizes):
    heads, n = sizes
    w = np.random.default_rng(seed).standard_normal((heads * n, 5))
    np.testing.assert_array_equal(unpermute(permute(w, heads), heads), w)


@given(seeds)
def test_turning_neighbours_is_turning_halves_of_unpermuted_rows(seed):
    """The definition of the row order: scores with llama.cpp's RoPE on its rows are scores with ours on ours."""
    rng = np.random.default_rng(seed)
    n, heads = 8, 3
    q, k, x = rng.standard_normal((n * heads, 6)), rng.standard_normal((n * heads, 6)), rng.standard_normal((2, 6))
    angle = rng.standard_normal(n // 2)

    def turned(y, neighbours, t):
        y = y.reshape(heads, n)
        first, second = (y[:, ::2], y[:, 1::2]) if neighbours else (y[:, : n // 2], y[:, n // 2 :])
        c, s = np.cos(t * angle), np.sin(t * angle)
        return np.stack([first * c - second * s, first * s + second * c])

    theirs = (turned(q @ x[0], True, 5) * turned(k @ x[1], True, 2)).sum((0, 2))
    ours = (turned(unpermute(q, heads) @ x[0], False, 5) * turned(unpermute(k, heads) @ x[1], False, 2)).sum((0, 2))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=64 * np.finfo(float).eps * np.abs(theirs).max() + 1e-13)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_are_read_exactly(tmp_path, kind):
    array = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32)
    array[0, :4] = [0.0, -0.0, 1e-7, 6e4]
    path = tmp_path / "m.gguf"
    path.write_bytes(layout({}, {"a": np.ones(3, np.float32), "w": (kind, array.shape, encode(array, kind))}))
    got = gguf_file.read_tensor(path, gguf_file.read_header(path).tensors["w"])
    expected = {
        "F32": array, "F16": array.astype(np.float16).astype(np.float32),
        "BF16": from_bfloat16((array.view(np.uint32) >> 16).astype(np.uint16)),
    }[kind]  # fmt: skip
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("piece", [1, 1000, 1 << 17])
@pytest.mark.parametrize("kind", BLOCKED)
def test_blocks_are_what_the_official_package_makes_of_them(tmp_path, monkeypatch, kind, piece):
    gguf = pytest.importorskip("gguf", reason="not run: gguf is not installed")
    monkeypatch.setattr(gguf_file, "PIECE", piece)
    raw = random_blocks(kind, 21, np.random.default_rng(0)).reshape(7, -1)
    shape = (7, 3 * gguf_file.BLOCKS[kind][0])
    path = tmp_path / "m.gguf"
    path.write_bytes(layout({}, {"w": (kind, shape, raw.tobytes())}))
    got = gguf_file.read_tensor(path, gguf_file.read_header(path).tensors["w"])
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_a_block_by_hand(tmp_path):
    """Q4_1: two float16, d and m, then 16 bytes; weight i is d * low nibble of byte i + m, 16 + i the high one."""
    pytest.importorskip("gguf", reason="not run: gguf is not installed")
    codes = np.random.default_rng(0).integers(0, 16, 32)
    raw = np.array([0.5, -3.0], "<f2").tobytes() + (codes[:16] | codes[16:] << 4).astype(np.uint8).tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(layout({}, {"w": ("Q4_1", (1, 32), raw)}))
    got = gguf_file.read_tensor(path, gguf_file.read_header(path).tensors["w"])
    np.testing.assert_array_equal(got[0], codes * 0.5 - 3)


def without_the_package(monkeypatch):
    found = builtins.__import__

    def missing(name, *rest):
        if name.startswith("gguf."):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)


def test_blocks_without_the_package_say_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(layout({}, {"w": ("Q8_0", (1, 32), bytes(34)), "f": np.ones((1, 2), np.float32)}))
    without_the_package(monkeypatch)
    tensors = gguf_file.read_header(path).tensors
    assert gguf_file.read_tensor(path, tensors["f"]).tolist() == [[1, 1]]
    with pytest.raises(ImportError, match=r"Q8_0 .*pip install 'tinyllm-engine\[gguf\]'"):
        gguf_file.read_tensor(path, tensors["w"])


def test_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    model = tiny("llama", hidden_size=32, num_heads=4, num_kv_heads=2)
    metadata, tensors = described(model, "llama")
    tensors["token_embd.weight"] = ("Q8_0", (40, 32), bytes(40 * 34))
    path = tmp_path / "m.gguf"
    path.write_bytes(layout(metadata, tensors))
    without_the_package(monkeypatch)
    assert main(["targets", str(path)]) == 1
    said = capsys.readouterr().err
    assert "tinyllm-engine[gguf]" in said and said.count("\n") == 1


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "nf4"])
def test_storage_converts_each_weight_as_ever(tmp_path, storage):
    model = tiny("llama")
    got = load_gguf(DecoderModel, write(tmp_path / "m.gguf", model, "llama"), storage)
    for name, w in model.named_weights():
        kept = storages(model, storage)[name]
        expected = np.asarray(w.data) if kept == "float32" else store(np.asarray(w.data), kept).dense()
        now = got.get(name) if kept == "float32" else None
        dense = np.asarray(now.data) if now is not None else dict(got.named_weights())[name].dense()
        np.testing.assert_array_equal(dense, expected, err_msg=name)


def test_no_more_than_one_weight_is_float_at_a_time(tmp_path):
    path = write(tmp_path / "m.gguf", tiny("llama", num_layers=12, hidden_size=144, intermediate_size=512), "llama")
    largest = 144 * 512 * 4
    load_gguf(DecoderModel, path, "nf4")  # what is imported and cached on the way
    tracemalloc.start()
    model = load_gguf(DecoderModel, path, "nf4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stored = sum(w.nbytes if hasattr(w, "nbytes") else w.data.nbytes for _, w in model.named_weights())
    assert peak < stored + 6 * largest < path.stat().st_size / 2  # the quantiser has temporaries of its own


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_factors_are_understood(tmp_path, factor):
    scaling = RopeScaling(factor, 1.0, 4.0, 8192)
    model = tiny("llama", rope_theta=5e5, rope_scaling=scaling, head_dim=16)
    plain = rope_frequencies(tiny("llama", rope_theta=5e5, head_dim=16).config)
    metadata, tensors = described(model, "llama")
    tensors["rope_freqs.weight"] = (plain / rope_frequencies(model.config)).astype(np.float32)
    assert len(set(tensors["rope_freqs.weight"].tolist())) > 2  # all three regions
    path = tmp_path / "m.gguf"
    path.write_bytes(layout(metadata, tensors))
    got = load_gguf(DecoderModel, path)
    assert got.config.rope_scaling == scaling
    np.testing.assert_array_equal(got(IDS).data, model(IDS).data)
    tensors["rope_freqs.weight"][-2] *= 1.01
    path.write_bytes(layout(metadata, tensors))
    with pytest.raises(ValueError, match="rope_freqs.weight.* not Llama 3's"):
        load_gguf(DecoderModel, path)


REFUSED = {
    "general__architecture=gemma3": "architecture 'gemma3'; understood are llama, qwen2, qwen3, gpt2",
    "general__architecture=None": "architecture None",
    "general__type=adapter": "general.type 'adapter'",
    "split__count=3": "one of 3 pieces; join them",
    "llama__rope__scaling__type=yarn": "llama.rope.scaling.type = 'yarn'",
    "llama__rope__scaling__type=linear": "llama.rope.scaling.type = 'linear'",
    "llama__rope__scale_linear=2.0": "llama.rope.scale_linear = 2.0",
    "llama__rope__dimension_count=4": "llama.rope.dimension_count = 4",
    "llama__attention__value_length=4": "llama.attention.value_length = 4",
    "llama__expert_count=8": "llama.expert_count = 8, which would change the model",
    "llama__attention__sliding_window=16": "llama.attention.sliding_window = 16",
    "llama__attention__scale=0.1": "llama.attention.scale = 0.1",
    "llama__logit_scale=0.1": "llama.logit_scale",
    "llama__attention__causal=False": "llama.attention.causal = False",
    "llama__vocab_size=41": "llama.vocab_size = 41",
    "llama__block_count=1": "has besides blk.1.attn_k.weight",
    "llama__block_count=3": "lacks blk.2.input|lacks blk.2.attn_norm.weight",
    "llama__block_count=4000000000": "llama.block_count = 4000000000",
    "llama__block_count=1000": "has 20 tensors",
    "llama__attention__head_count=None": "lacks llama.attention.head_count",
    "llama__attention__head_count=0": "llama.attention.head_count = 0",
    "llama__attention__head_count=8": "num_heads 8 must be a multiple|asks? for",
    "llama__embedding_length=64": "of shape .*metadata ask for",
    "llama__embedding_length=200000000": "ask for a size of 200000000, but none",
    "llama__attention__head_count=200000001": "ask for a size of 1600000008, but none",
    "llama__feed_forward_length=65": "of shape .*metadata ask for",
    "llama__attention__layer_norm_rms_epsilon=0.0": "epsilon = 0.0; it must be a number above 0",
    "llama__rope__freq_base=nan": "freq_base = nan",
    "llama__context_length=hello": "context_length = 'hello'",
    "general__alignment=24": "no power of two",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path, change):
    key, _, said = change.partition("=")
    given = {"None": None, "False": False, "nan": float("nan")}.get(said, said)
    if isinstance(given, str) and given.replace(".", "").isdigit():
        given = float(given) if "." in given else int(given)
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", **{key: given})
    with pytest.raises(ValueError, match=REFUSED[change]) as raised:
        load_gguf(DecoderModel, path)
    assert str(path) in str(raised.value) or "num_heads" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"llama__rope__scaling__type": "none"},
        {"llama__expert_count": 0},
        {"llama__attention__causal": True},
        {"llama__vocab_size": 40},
        {"llama__feed_forward_length": np.array([64, 64], np.int32)},
        {"general__quantization_version": 2, "general__file_type": 3, "quantize__imatrix__file": "x"},
        {"llama__attention__value_length": None, "llama__attention__key_length": None},
        {"general__alignment": 64},
    ],
)
def test_what_changes_nothing_passes(tmp_path, change):
    model = tiny("llama")
    metadata, tensors = described(model, "llama")
    metadata |= {key.replace("__", "."): value for key, value in change.items()}
    path = tmp_path / "m.gguf"
    kept = {key: value for key, value in metadata.items() if value is not None}
    path.write_bytes(layout(kept, tensors, alignment=kept.get("general.alignment", 32)))
    same(bits(load_gguf(DecoderModel, path)), bits(model))


def test_an_unknown_tensor_and_an_unknown_kind_are_named(tmp_path):
    metadata, tensors = described(tiny("llama"), "llama")
    path = tmp_path / "m.gguf"
    path.write_bytes(layout(metadata, {**tensors, "blk.0.attn_q.bias": np.ones(72, np.float32)}))
    with pytest.raises(ValueError, match="has besides blk.0.attn_q.bias"):
        load_gguf(DecoderModel, path)
    path.write_bytes(layout(metadata, {**tensors, "output.weight": ("IQ4_XS", (40, 256), bytes(40 * 136))}))
    with pytest.raises(ValueError, match="output.weight as IQ4_XS, which is not understood; get .* Q4_0"):
        load_gguf(DecoderModel, path)


# Hostile files. A header of a small model, and what can be done to it.

MODEL = tiny("llama", hidden_size=8, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=8, num_layers=1)
GOOD = layout({**described(MODEL, "llama")[0], "some.list": ["a", "bc"]}, described(MODEL, "llama")[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "m.gguf"


def attempt(path, raw):
    """Load; None or one sentence in a ValueError, and never more than a few megabytes."""
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        load_gguf(DecoderModel, path)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5_000_000
    return None


def test_the_good_file_is_good(place):
    assert attempt(place, GOOD) is None


def test_truncated_anywhere(place):
    end = len(GOOD.rstrip(b"\0"))
    for n in [*range(0, 1200), *range(1200, end, 37)]:
        assert attempt(place, GOOD[: min(n, end - 1)]) is not None, n


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(place, flips):
    raw = bytearray(GOOD)
    for at, byte in flips:
        raw[at] = byte
    attempt(place, bytes(raw))


@given(st.integers(0, 1400), st.sampled_from([2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]), st.sampled_from("IQ"))
def test_huge_numbers_anywhere(place, at, number, width):
    raw = bytearray(GOOD)
    raw[at : at + struct.calcsize(width)] = struct.pack(f"<{width}", number % 2 ** (8 * struct.calcsize(width)))
    attempt(place, bytes(raw))


@given(st.binary(max_size=300))
def test_noise_after_the_magic(place, noise):
    assert attempt(place, b"GGUF\3\0\0\0" + noise) is not None


def entry(name, offset, shape=(4,), kind=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def of_entries(*entries, data=64, metadata=b"", count=0):
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), count) + metadata + b"".join(entries)
    return head + b"\0" * (-len(head) % 32 + data)


CORPUS = {
    "is not a GGUF file": b"PK\3\4" + bytes(100),
    "version 1": b"GGUF" + struct.pack("<III", 1, 0, 0),
    "version 4": b"GGUF" + struct.pack("<IQQ", 4, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "announced": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    "ends within some.key": of_entries(metadata=text("some.key") + struct.pack("<IIQ", 9, 8, 2**60), count=1),
    "ends within other.key": of_entries(metadata=text("other.key") + struct.pack("<IIQ", 9, 4, 2**61), count=1),
    "ends within a string": of_entries(metadata=struct.pack("<Q", 2**62), count=1, data=99),
    "of type 77": of_entries(metadata=text("key") + struct.pack("<I", 77), count=1),
    "of type 9": of_entries(metadata=text("nested") + struct.pack("<IIQ", 9, 9, 1), count=1),
    "not UTF-8": of_entries(metadata=struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1), count=1),
    "has twice twice": of_entries(metadata=2 * (text("twice") + struct.pack("<II", 4, 1)), count=2),
    "has w twice": of_entries(entry("w", 0), entry("w", 32)),
    "w at a place inside v": of_entries(entry("v", 0, (12,)), entry("w", 32)),
    "w at a place .*multiple of 32": of_entries(entry("w", 8)),
    "ends within w": of_entries(entry("w", 64)),
    "ends within far": of_entries(entry("far", 2**63)),
    "ends within vast": of_entries(entry("vast", 0, (2**40, 2**40))),
    "with 5 dimensions": of_entries(entry("w", 0, (1, 1, 1, 1, 1))),
    "with 0 dimensions": of_entries(entry("w", 0, ())),
    "of shape \\(0,\\)": of_entries(entry("w", 0, (0,))),
    "Q4_K cannot hold": of_entries(entry("w", 0, (128,), KINDS["Q4_K"])),
    "as Q2_K": of_entries(entry("w", 0, (256,), KINDS["Q2_K"])),
    "as of number 4": of_entries(entry("w", 0, (32,), 4)),
    "architecture None": of_entries(),
}


@pytest.mark.parametrize("said", CORPUS)
def test_corpus(place, said):
    place.write_bytes(CORPUS[said])
    with pytest.raises(ValueError, match=said):
        load_gguf(DecoderModel, place)


def test_a_header_without_end_is_not_believed(place, monkeypatch):
    monkeypatch.setattr(gguf_file, "HEADER_LIMIT", 1000)
    place.write_bytes(of_entries(metadata=text("key") + struct.pack("<IIQ", 9, 4, 1000), count=1, data=9000))
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        load_gguf(DecoderModel, place)


def test_values_that_are_not_finite(tmp_path):
    metadata, tensors = described(tiny("llama"), "llama")
    tensors["blk.1.ffn_up.weight"][3, 3] = np.nan
    path = tmp_path / "m.gguf"
    path.write_bytes(layout(metadata, tensors))
    with pytest.raises(ValueError, match="blk.1.ffn_up.weight with values that are not finite"):
        load_gguf(DecoderModel, path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        DecoderModel.from_pretrained(tmp_path / "none.gguf")
