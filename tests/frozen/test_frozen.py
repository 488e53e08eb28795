"""Stored weights: exact against their dense form, tile by tile, at odd shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyllm.backend.double_quant import dequantize_absmax
from tinyllm.backend.half import from_bfloat16, to_bfloat16
from tinyllm.backend.random import manual_seed
from tinyllm.frozen import store
from tinyllm.frozen import weight as frozen
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import BLOCK_SIZES, NF4Weight, bits_per_weight, dequantize_nf4, quantize_nf4
from tinyllm.functional import embedding, linear
from tinyllm.models import DecoderModel
from tinyllm.tensor import Parameter, Tensor

seeds = st.integers(0, 2**32 - 1)
columns = st.sampled_from([1, 2, 32, 33, 64, 80, 96, 100, 129])
storages = st.sampled_from(["float16", "bfloat16", "nf4"])
dtypes = st.sampled_from([np.float32, np.float64])


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@st.composite
def nf4_weights(draw):
    w = normal(draw(seeds), draw(st.integers(1, 200)), draw(columns), dtype=draw(dtypes))
    return w, draw(st.sampled_from(BLOCK_SIZES)), draw(st.booleans())


@given(nf4_weights())
def test_nf4_dense_is_the_public_dequantisation(case):
    w, block_size, double = case
    stored = NF4Weight.quantize(w, block_size, double)
    indices, scales = quantize_nf4(w, block_size)
    if double:
        scales = dequantize_absmax(*stored.absmax)
    expected = dequantize_nf4(indices, scales, w.shape, block_size, dtype=w.dtype)
    assert stored.dense().dtype == w.dtype and np.array_equal(stored.dense(), expected)
    assert stored.nbytes * 8 == round(bits_per_weight(w.size, block_size, double) * w.size)


@given(nf4_weights(), st.data())
def test_nf4_scales_and_rows_are_slices(case, data):
    w, block_size, double = case
    stored = NF4Weight.quantize(w, block_size, double)
    whole = dequantize_absmax(*stored.absmax) if double else stored.absmax
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    assert np.array_equal(stored.scales(start, stop), whole[start:stop])
    step = stored.step()
    a = data.draw(st.integers(0, (len(w) - 1) // step)) * step
    b = data.draw(st.integers(a + 1, len(w)))
    assert np.array_equal(stored.rows(a, b, np.empty((b - a, w.shape[1]), w.dtype)), stored.dense()[a:b])


@pytest.mark.parametrize("start, stop", [(0, 1), (255, 256), (255, 257), (256, 512), (257, 600), (511, 513), (0, 700)])
def test_scales_across_second_level_blocks(start, stop):
    stored = NF4Weight.quantize(normal(3, 700, 64), 64)
    assert np.array_equal(stored.scales(start, stop), dequantize_absmax(*stored.absmax)[start:stop])


def test_rows_from_inside_a_block_are_refused_rather_than_wrong():
    stored = NF4Weight.quantize(normal(3, 10, 33), 64)
    with pytest.raises(ValueError, match="row 1 begins inside a block of 64"):
        stored.rows(1, 2, np.empty((1, 33), np.float32))


@given(seeds, st.integers(1, 300), columns, storages, st.sampled_from(BLOCK_SIZES), st.sampled_from([1, 4096, 1 << 20]))
@example(0, 17, 100, "nf4", 32, 4096)  # rounding up to whole blocks had made a tile of 16 rows where 10 fit
def test_tiles_cover_the_weight_once(seed, rows, n, storage, block_size, tile_bytes):
    stored = store(normal(seed, rows, n), storage, block_size=block_size)
    whole, at = stored.dense(), 0
    before, frozen.TILE_BYTES = frozen.TILE_BYTES, tile_bytes
    try:
        for part, w in stored.tiles():
            assert part.start == at and np.array_equal(w, whole[part])
            assert w.nbytes <= max(tile_bytes, stored.step() * n * 4)
            at = part.stop
    finally:
        frozen.TILE_BYTES = before
    assert at == rows


@given(seeds, st.integers(1, 200), columns, storages, st.sampled_from(BLOCK_SIZES), dtypes, st.booleans())
def test_linear_and_its_gradient_are_those_of_the_dense_weight(seed, n_out, n_in, storage, block_size, dtype, biased):
    stored = store(normal(seed, n_out, n_in, dtype=dtype), storage, block_size=block_size)
    w = stored.dense().astype(np.float64)
    x, g = normal(seed + 1, 2, 3, n_in, dtype=dtype), normal(seed + 2, 2, 3, n_out, dtype=dtype)
    bias = Parameter(normal(seed + 3, n_out, dtype=dtype)) if biased else None
    leaf = Tensor(x, requires_grad=True)
    before, frozen.TILE_BYTES = frozen.TILE_BYTES, 4096
    try:
        y = linear(leaf, stored, bias)
        y.backward(g)
    finally:
        frozen.TILE_BYTES = before
    assert y.dtype == dtype and leaf.grad.dtype == dtype
    eps, b = np.finfo(dtype).eps, bias.data if biased else np.zeros(n_out)
    budget = (n_in + 2) * eps * (np.abs(x) @ np.abs(w).T + np.abs(b))
    assert (np.abs(y.data - (x.astype(np.float64) @ w.T + b)) <= budget).all()
    budget = (n_out + 2) * eps * (np.abs(g) @ np.abs(w))
    assert (np.abs(leaf.grad - g.astype(np.float64) @ w) <= budget).all()
    if biased:
        assert (np.abs(bias.grad - g.reshape(-1, n_out).sum(0)) <= 8 * eps * np.abs(g).reshape(-1, n_out).sum(0)).all()


@given(seeds, st.integers(1, 200), columns, storages, st.sampled_from(BLOCK_SIZES))
def test_take_is_indexing(seed, rows, n, storage, block_size):
    stored = store(normal(seed, rows, n), storage, block_size=block_size)
    ids = np.random.default_rng(seed).integers(0, rows, (2, 3))
    assert np.array_equal(stored.take(ids), stored.dense()[ids])
    assert np.array_equal(embedding(stored, ids).data, stored.dense()[ids])


@given(
    st.lists(st.floats(width=32, allow_nan=False, max_value=2.0**127, min_value=-(2.0**127)), min_size=1, max_size=50)
)
def test_bfloat16_is_the_nearest_with_ties_to_even(values):
    w = np.array(values, np.float32)
    bits = to_bfloat16(w)
    back = from_bfloat16(bits).astype(np.float64)
    for direction in (-1, 1):  # neighbours by bit pattern
        other = from_bfloat16((bits.astype(np.int64) + direction).clip(0, 65535).astype(np.uint16)).astype(np.float64)
        sane = np.isfinite(other) & (np.sign(other) * np.sign(back) >= 0)
        near, far = np.abs(back - w)[sane], np.abs(other - w)[sane]
        assert (near <= far).all()
        assert (bits[sane][near == far] % 2 == 0).all()


@pytest.mark.parametrize("upper", [0x3F80, 0x3F81, 0xC000, 0xC001, 0x0000, 0x0001])
def test_bfloat16_ties_go_to_the_even_neighbour(upper):
    half_way = np.array([upper << 16 | 0x8000], np.uint32).view(np.float32)
    assert to_bfloat16(half_way)[0] == upper + upper % 2


@given(st.integers(0, 1), st.integers(1, 0xFFFF) | st.integers(1, 0x7FFFFF))
def test_bfloat16_of_a_nan_is_one_of_the_same_sign(sign, digits):
    nan = np.array([sign << 31 | 0x7F800000 | digits], np.uint32).view(np.float32)
    bits = int(to_bfloat16(nan)[0])
    assert np.isnan(from_bfloat16(np.array([bits], np.uint16))[0]) and bits >> 15 == sign


@given(st.integers(0, 65535))
def test_every_half_precision_value_survives(bits):
    for storage, dtype in (("float16", np.float64), ("bfloat16", np.float32)):
        array = np.array([bits], np.uint16)
        value = (array.view(np.float16) if storage == "float16" else from_bfloat16(array)).astype(dtype)
        if np.isfinite(value).all():
            assert HalfWeight.quantize(value, storage).bits[0] == bits


def test_all_65536_patterns_widen_to_the_float32_they_stand_for():
    bits = np.arange(65536, dtype=np.uint16)
    half = bits.view(np.float16)
    bits, wanted = bits[np.isfinite(half)], half[np.isfinite(half)].astype(np.float32)
    y = HalfWeight(bits[:, None], "float16").dense()[:, 0]
    assert np.array_equal(y.view(np.uint32), wanted.view(np.uint32))  # -0.0 and subnormals, too
    bits = np.arange(65536, dtype=np.uint16)
    y = HalfWeight(bits[:, None], "bfloat16").dense()[:, 0]
    assert np.array_equal(y.view(np.uint32), from_bfloat16(bits).view(np.uint32))


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "nf4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_refused_by_name(storage, bad):
    w = normal(0, 4, 32)
    w[2, 5] = bad
    with pytest.raises(ValueError, match=r"'layers.3.w' has 1 non-finite value, the first at \[2, 5\]"):
        store(w, storage, "layers.3.w")


def test_overflow_is_refused_by_name():
    with pytest.raises(ValueError, match="'w' .*overflows float16.*bfloat16"):
        store(np.full((1, 2), 7e4, np.float32), "float16", "w")
    with pytest.raises(ValueError, match="'w' .*overflows bfloat16"):
        store(np.full((1, 2), np.finfo(np.float32).max), "bfloat16", "w")
    for storage in ("bfloat16", "nf4"):
        with pytest.raises(ValueError, match="'w'"):
            store(np.full((1, 32), 1e300), storage, "w")


def test_a_wrong_input_is_refused():
    with pytest.raises(ValueError, match="5 features.*takes 32"):
        linear(Tensor(np.ones((1, 5), np.float32)), store(normal(0, 4, 32), "nf4"))


def test_the_rule_keeps_the_stored_weight_and_no_float_copy():
    stored = store(normal(0, 64, 64), "nf4")
    y = linear(Tensor(normal(1, 3, 64), requires_grad=True), stored)
    ((_, rule),) = y.node.edges
    held = [cell.cell_contents for cell in rule.__closure__]
    assert stored in held and not any(isinstance(v, np.ndarray) for v in held)


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "nf4"])
def test_freezing_changes_no_bit_of_outputs(storage):
    ids = np.arange(12).reshape(2, 6)
    model = DecoderModel(20, 64, 2, storage=storage, seed=1)
    free, x = model(ids).data, model.hidden(ids).data
    model.requires_grad_(False)
    assert np.array_equal(model(ids).data, free) and np.array_equal(model.hidden(ids).data, x)


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "nf4"])
def test_state_round_trip_of_a_stored_model(storage):
    make = lambda seed: DecoderModel(20, 32, 2, storage=storage, seed=seed)
    a, b, ids = make(1), make(2), np.arange(12).reshape(2, 6)
    assert not np.array_equal(a(ids).data, b(ids).data)
    assert b.load_state_dict(a.state_dict()) == ([], [])
    assert np.array_equal(a(ids).data, b(ids).data)
    assert b.lm_head.weight is b.embed_tokens.weight
    manual_seed(0)
    assert a.num_parameters() == DecoderModel(20, 32, 2).num_parameters()
