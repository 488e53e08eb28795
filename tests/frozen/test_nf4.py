"""NF4 against a plain loop, against bytes that bitsandbytes wrote, and against its own mathematics."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.backend import use
from tinyllm.backend.double_quant import dequantize_absmax, dynamic_map, quantize_absmax
from tinyllm.backend.nf4 import NF4_LEVELS, NF4_MIDPOINTS, nf4_dequantize, nf4_quantize
from tinyllm.backend.torch_sum import torch_mean
from tinyllm.frozen.nf4 import BLOCK_SIZES, bits_per_weight, dequantize_nf4, derive_nf4_levels, quantize_nf4

f32 = np.float32
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "nf4.json").read_text())


def reference(x, block_size):
    """The rule, one element at a time: (codes, scales), every operation in float32."""
    codes, scales = [], []
    for start in range(0, len(x), block_size):
        block = x[start : start + block_size]
        scale = f32(0)
        for v in block:
            scale = max(scale, abs(v))
        if len(block) < block_size:
            scale = max(scale, f32(1e-38))
        for v in block:
            s = v * (f32(1) / max(scale, f32(1e-38))) if len(block) == block_size else v / scale
            code = 0
            while code < 15 and s > NF4_MIDPOINTS[code]:
                code += 1
            codes.append(code)
        scales.append(scale)
    return codes, scales


def pack(codes):
    codes = [*codes, 7] if len(codes) % 2 else codes
    return bytes(high << 4 | low for high, low in zip(codes[::2], codes[1::2], strict=True))


def unpack(packed, n):
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]


@st.composite
def weights(draw, max_size=700):
    """Flat float32: normal, or drawn from values where the rule could go wrong, at every magnitude."""
    n = draw(st.integers(1, max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(n)
    if draw(st.booleans()):
        m = NF4_MIDPOINTS
        special = [m, np.nextafter(m, f32(2)), np.nextafter(m, f32(-2)), NF4_LEVELS, f32([0, -0.0, 1e-45, -1e-40, 1])]
        x = np.where(rng.random(n) < 0.7, rng.choice(np.concatenate(special), n), x)
    x = (x * draw(st.sampled_from([1, 1e-30, 1e10, 3e-39, 1e-44, 2.0**120, 0]))).astype(f32)
    if draw(st.booleans()):
        x[: n // 2] = 0
    return x


block_sizes = st.sampled_from(BLOCK_SIZES)


def test_the_table_is_the_published_one():
    assert hashlib.sha256(NF4_LEVELS.astype("<f4").tobytes()).hexdigest().startswith("8501941daa1b8a90ad1bbfeb632e5101")
    # CUDA's hard-coded thresholds
    assert NF4_MIDPOINTS[0] == f32(-0.8480963706970215) and NF4_MIDPOINTS[14] == f32(0.8614784479141235)
    assert np.abs(derive_nf4_levels() - NF4_LEVELS).max() < 1.2e-7


@given(weights(), block_sizes)
def test_codes_and_scales_are_those_of_the_plain_loop(x, block_size):
    codes, scales = reference(x, block_size)
    indices, got = quantize_nf4(x, block_size)
    assert indices.tobytes() == pack(codes)
    assert got.tobytes() == np.array(scales, f32).tobytes()
    expected = np.array([NF4_LEVELS[c] * scales[i // block_size] for i, c in enumerate(codes)], f32)
    assert dequantize_nf4(indices, got, x.size, block_size).tobytes() == expected.tobytes()


def near_ties(n, block_size):
    """Blocks of arbitrary scale whose elements lie within an ulp of a midpoint: there every rounding decides a code."""
    rng = np.random.default_rng(n + block_size)
    scales = np.repeat(rng.uniform(0.5, 4, -(-n // block_size)).astype(f32), block_size)[:n]
    x = rng.choice(NF4_MIDPOINTS, n) * scales
    x = np.where(rng.random(n) < 0.5, np.nextafter(x, rng.choice(f32([-9, 9]), n)), x)
    x[::block_size] = scales[::block_size]
    return x


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("n", [65536 * 2, 65536 + 4096 * 3 + 31, 65536 - 1])
def test_long_weights_of_near_ties(n, block_size):
    x = near_ties(n, block_size)
    indices, scales = quantize_nf4(x, block_size)
    whole = n - n % block_size
    by_block = np.repeat(scales, block_size)[:n]
    multiplied, divided = x * (f32(1) / by_block), x / by_block
    s = np.concatenate([multiplied[:whole], divided[whole:]])
    expected, wrong = (np.searchsorted(NF4_MIDPOINTS, v, side="left") for v in (s, divided))
    assert np.array_equal(unpack(indices, n), expected)
    assert not np.array_equal(wrong, expected)  # or the test could not tell the two rules apart
    levels = NF4_LEVELS[unpack(indices, n)]
    whole = dequantize_nf4(indices, scales, n, block_size)
    assert np.array_equal(whole, levels * np.repeat(scales, block_size)[:n])
    start = 7 * block_size  # a part, with its own scales, into a given buffer
    out = np.empty(n - start - 1, f32)
    assert nf4_dequantize(np, indices, scales[7:], block_size, out.size, start, out) is out
    assert np.array_equal(out, whole[start:-1])


def test_a_partial_block_is_divided():
    differing = 0
    for n in range(33, 64):
        x = near_ties(n, 64)
        codes, _ = reference(x, 64)
        assert unpack(quantize_nf4(x)[0], n).tolist() == codes
        differing += codes != np.searchsorted(NF4_MIDPOINTS, x * (f32(1) / x[0]), side="left").tolist()
    assert differing > 5


def test_ties_go_to_the_lower_level_and_their_neighbours_to_either_side():
    for value, expected in [
        (NF4_MIDPOINTS, range(15)),
        (np.nextafter(NF4_MIDPOINTS, f32(-2)), range(15)),
        (np.nextafter(NF4_MIDPOINTS, f32(2)), range(1, 16)),
    ]:
        full = np.concatenate([value, np.zeros(48, f32), [f32(1)]])  # absmax 1: scaling is exact
        for x in (full, full[14:], full[:15]):
            x = x if x.max() == 1 else np.append(x, f32(1))
            packed, _ = quantize_nf4(x)
            codes, _ = reference(x, 64)
            assert packed.tobytes() == pack(codes)
        assert unpack(quantize_nf4(full)[0], 15).tolist() == list(expected)


def test_the_documented_bytes():
    x = np.zeros(64, f32)
    x[:2] = 1, -1
    assert quantize_nf4(x)[0].tobytes() == bytes([0xF0] + [0x77] * 31)  # even element in the high nibble
    indices, scales = quantize_nf4(np.zeros(64, f32))
    assert indices.tobytes() == b"\x77" * 32 and scales.tolist() == [0.0]
    assert quantize_nf4(np.ones(1, f32))[0].tolist() == [0xF7]  # the pad nibble is the code of zero
    indices, scales = quantize_nf4(np.zeros((0, 3), f32))
    assert (indices.size, scales.size) == (0, 0) and dequantize_nf4(indices, scales, (0, 3)).shape == (0, 3)


@given(weights(), block_sizes)
def test_quantising_again_changes_no_code(x, block_size):
    indices, scales = quantize_nf4(x, block_size)
    again, scales2 = quantize_nf4(dequantize_nf4(indices, scales, x.size, block_size), block_size)
    # The largest magnitude is a level (1 or -1), so scales come back. Subnormal products round by up to half of their
    # own size, and may change code.
    ordinary = np.repeat((scales > 1e-30) | (scales == 0), block_size)[: x.size]
    assert np.array_equal(unpack(again, x.size)[ordinary], unpack(indices, x.size)[ordinary])
    assert scales2[scales > 1e-30].tobytes() == scales[scales > 1e-30].tobytes()


@given(weights(), block_sizes)
def test_the_error_is_at_most_half_the_widest_gap(x, block_size):
    indices, scales = quantize_nf4(x, block_size)
    scale = np.repeat(scales, block_size)[: x.size].astype(np.float64)
    error = np.abs(x.astype(np.float64) - dequantize_nf4(indices, scales, x.size, block_size))
    half_gap = np.diff(NF4_LEVELS.astype(np.float64)).max() / 2
    # reciprocal, product, midpoint and product: four roundings of values of at most `scale`; and the smallest subnormal
    budget = 4 * 2.0**-24 * scale + 2.0**-149
    subnormal = scale < 1e-37  # there the scale itself has few bits; below 1e-38 it is not even used
    assert np.all((error <= half_gap * scale + budget) | subnormal)


@given(weights(), block_sizes, st.integers(-20, 5))
def test_a_power_of_two_scales_the_scales_and_no_code(x, block_size, power):
    x = x / max(np.abs(x).max(), f32(1e-38))  # away from overflow and subnormal numbers
    x[np.abs(x) < 1e-20] = 0
    if not x.any():
        return
    indices, scales = quantize_nf4(x, block_size)
    scaled = quantize_nf4(x * f32(2.0**power), block_size)
    assert scaled[0].tobytes() == indices.tobytes()
    full = slice(None, x.size // block_size)  # an all-zero partial block has the scale 1e-38 whatever the input
    assert scaled[1][full].tobytes() == (scales * f32(2.0**power))[full].tobytes()


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(["float16", "float32", "float64"]), st.integers(0, 99))
def test_layout_does_not_matter(rows, columns, dtype, seed):
    x = np.random.default_rng(seed).standard_normal((rows, columns)).astype(dtype)
    wide = np.zeros((rows * 2, columns * 3), dtype)
    wide[::2, 1::3] = x
    expected = [part.tobytes() for part in quantize_nf4(x.astype(f32).ravel(), 32)]
    for other in (x, np.asfortranarray(x), wide[::2, 1::3], x[::-1].copy()[::-1]):
        before = other.copy()
        assert [part.tobytes() for part in quantize_nf4(other, 32)] == expected
        assert np.array_equal(other, before)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dequantise_rounds_once(dtype):
    x = np.random.default_rng(0).standard_normal((5, 77)).astype(f32)
    indices, scales = quantize_nf4(x)
    y = dequantize_nf4(indices[:, None], scales, x.shape, dtype=dtype)
    assert y.dtype == dtype and np.array_equal(y, dequantize_nf4(indices, scales, x.shape).astype(dtype))


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda c: f"{c['shape']}-{c['dtype']}-{c['block_size']}-{c['double']}"
)
def test_bytes_that_bitsandbytes_wrote(case):
    seed = case["seed"]
    w = (np.random.default_rng(seed).standard_normal(case["shape"]) * 2.0 ** (seed % 7 - 6)).astype(case["dtype"])
    if hashlib.sha256(w.tobytes()).hexdigest() != case["weight_sha256"]:
        pytest.skip("not run: this NumPy's normal generator makes other numbers than the recorded ones")
    indices, scales = quantize_nf4(w, case["block_size"])
    parts = {"packed": indices, "absmax": scales}
    if case["double"]:
        parts = {"packed": indices} | dict(zip(["absmax", "absmax2", "offset"], quantize_absmax(scales), strict=True))
    for name, part in parts.items():
        data = part.tobytes()
        assert case[name] in (data.hex(), "sha256:" + hashlib.sha256(data).hexdigest()), name


def test_the_dynamic_map_is_the_published_one():
    table = dynamic_map().astype("<f4")
    digest = "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
    assert hashlib.sha256(table.tobytes()).hexdigest() == digest
    assert table[127] == 0 and table[255] == 1 and np.all(np.diff(table) > 0)


@given(st.integers(1, 1500), st.integers(0, 999), st.sampled_from([1e-20, 0.02, 1.0, 1e8]))
def test_double_quantisation_error(n, seed, size):
    absmax = (np.abs(np.random.default_rng(seed).standard_normal(n)) * size).astype(f32)
    codes, absmax2, offset = quantize_absmax(absmax)
    assert codes.dtype == np.uint8 and absmax2.dtype == np.float32 and absmax2.size == -(-n // 256)
    error = np.abs(dequantize_absmax(codes, absmax2, offset).astype(np.float64) - absmax)
    scale = np.repeat(absmax2, 256)[:n].astype(np.float64)
    # half the widest gap of the map, half a bin of the look-up table, and roundings of numbers up to offset + scale
    half_gap = np.diff(dynamic_map().astype(np.float64)).max() / 2
    assert np.all(error <= (half_gap + 1 / 65535) * scale + 8 * 2.0**-24 * (scale + float(offset)))


def test_equal_scales_are_restored_exactly():
    # Nothing is left when the mean is taken away; the code is then the first, times zero.
    codes, absmax2, offset = quantize_absmax(np.full(512, 0.25, f32))
    assert not codes.any() and not absmax2.any()
    assert dequantize_absmax(codes, absmax2, offset).tolist() == [0.25] * 512


def test_scales_too_small_for_a_reciprocal():
    # As bitsandbytes has it, recorded: with the mean near zero, two scales of either sign around it.
    codes, absmax2, offset = quantize_absmax(f32([6e-41, 2e-41, 4e-41]))
    assert offset == f32(4e-41) and codes.tolist() == [255, 0, 0]
    codes, _, _ = quantize_absmax(np.append(np.zeros(256, f32), f32(1e-38)))  # a zero weight with a partial block
    assert codes.tolist() == [0] * 256 + [255]


@given(st.integers(1, 5000), st.integers(0, 99))
def test_the_mean_is_a_mean(n, seed):
    x = np.random.default_rng(seed).random(n, dtype=f32)
    assert abs(float(torch_mean(np, x)) - x.astype(np.float64).mean()) <= 64 * 2.0**-24


@pytest.mark.parametrize("n", GOLDEN["means"])
def test_the_mean_rounds_as_torchs(n):
    x = np.random.default_rng(int(n)).random(int(n), dtype=f32)
    assert float(torch_mean(np, x)) == GOLDEN["means"][n]


def test_bits_per_weight():
    assert bits_per_weight(2**24, 64, double_quant=False) == 4.5
    assert bits_per_weight(2**24, 64) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-5)
    assert f"{bits_per_weight(2**24):.3f}" == "4.127"
    indices, scales = quantize_nf4(np.ones(1001, f32), 32)
    assert bits_per_weight(1001, 32, double_quant=False) == 8 * (indices.nbytes + scales.nbytes) / 1001
    parts = [indices, *quantize_absmax(scales)]
    assert bits_per_weight(1001, 32) == 8 * sum(part.nbytes for part in parts) / 1001


def test_gaussian_weights_lose_nine_per_cent():
    x = np.random.default_rng(0).standard_normal((256, 1024)).astype(f32)
    indices, scales = quantize_nf4(x)
    for stored, expected in [(scales, 0.09194), (dequantize_absmax(*quantize_absmax(scales)), 0.09197)]:
        y = dequantize_nf4(indices, stored, x.shape)
        # 262,144 weights: the ratio of two sums of squares is known to about 1/sqrt(n) of itself
        assert np.linalg.norm(x - y) / np.linalg.norm(x) == pytest.approx(expected, rel=4 / np.sqrt(x.size))


def test_a_replacement_is_felt():
    calls = []

    def mine(xp, flat, block_size):
        calls.append(flat.size)
        return nf4_quantize(xp, flat, block_size)

    with use(nf4_quantize=mine):
        quantize_nf4(np.ones(10, f32))
    quantize_nf4(np.ones(10, f32))
    assert calls == [10]


def test_errors_name_the_remedy():
    x = np.ones((4, 32), f32)
    indices, scales = quantize_nf4(x)
    for block_size in (0, 16, 48, 8192, -64):
        with pytest.raises(ValueError, match="32, 64, 128"):
            quantize_nf4(x, block_size)
        with pytest.raises(ValueError, match="32, 64, 128"):
            dequantize_nf4(indices, scales, x.shape, block_size)
    with pytest.raises(TypeError, match="int64; NF4 quantises float16, float32, float64"):
        quantize_nf4(x.astype(np.int64))
    with pytest.raises(ValueError, match="needs 62 bytes of indices, but there are 64"):
        dequantize_nf4(indices, scales, (4, 31))
    with pytest.raises(ValueError, match="has 4 blocks of 32, but there are 2"):
        dequantize_nf4(indices, scales, x.shape, 32)
    with pytest.raises(TypeError, match="dequantize_absmax"):
        dequantize_nf4(indices, quantize_absmax(scales)[0], x.shape)
    with pytest.raises(TypeError, match="uint8"):
        dequantize_nf4(indices.astype(np.int32), scales, x.shape)
    with pytest.raises(TypeError, match="int32"):
        dequantize_nf4(indices, scales, x.shape, dtype="int32")
    with pytest.raises(ValueError, match="double_quant=False"):
        quantize_absmax(np.full(100, 1e38, f32))
    with pytest.raises(ValueError, match="empty"):
        quantize_absmax(np.zeros(0, f32))
    with pytest.raises(ValueError, match="1 blocks of 256, but there are 2"):
        dequantize_absmax(np.zeros(5, np.uint8), np.zeros(2, f32), 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 3), (2, 40)])  # in a full block, and in the partial last one
def test_non_finite_weights_are_refused_by_name(bad, at):
    x = np.ones((3, 50), f32)
    x[at] = bad
    message = rf"'layers.0.q_proj' has 1 non-finite value, the first at \[{at[0]}, {at[1]}\]"
    with pytest.raises(ValueError, match=message):
        quantize_nf4(x, name="layers.0.q_proj")
    with pytest.raises(ValueError, match="the array has 2 non-finite values"):
        quantize_nf4(np.array([1.0, 1e300, -1e300]))  # finite, but not in float32
