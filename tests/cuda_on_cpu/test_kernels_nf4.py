"""Every rung of the NF4 ladder gives the specification's bits: both ways, three dtypes, awkward sizes and values.

The promise holds for blocks that are zero or whose largest magnitude lies between 2^-100 and 2^126. What happens
outside is the device's flush of subnormals, and has tests of its own at the end.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from needs import needs_compiler

from tests.fake_cupy import cupy
from tinyllm.backend.cuda import nf4 as cuda
from tinyllm.backend.cuda.kernels import kernel
from tinyllm.backend.double_quant import dynamic_map
from tinyllm.backend.nf4 import NF4_LEVELS, NF4_MIDPOINTS, nf4_dequantize, nf4_quantize
from tinyllm.course.cuda_on_cpu import ORDERS, settings

pytestmark = needs_compiler
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SIZES = (1, 2, 7, 8, 9, 31, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 4096, 4097)
i32, i64 = np.int32, np.int64


def pack(rung, x, block, n=None):
    """Run one rung; x on the host, results on the host."""
    n = x.size if n is None else n
    packed, absmax = np.full((n + 1) // 2, 0xEE, np.uint8), np.full(-(-n // block), np.nan, np.float32)
    arguments = [
        cupy.asarray(x),
        cupy.asarray(NF4_MIDPOINTS),
        i32(block),
        i64(n),
        cupy.asarray(packed),
        cupy.asarray(absmax),
    ]
    size = {"v1": absmax.size, "v2": -(-n // 256) * 32}[rung]
    kernel(f"nf4_pack_{rung}").build(cupy, x.dtype.name)(*arguments, size=size)
    return arguments[-2].get(), arguments[-1].get()


def unpack(rung, packed, absmax, block, n, dtype):
    y = cupy.empty(n, dtype)
    shift = block.bit_length() - 1
    a, b, levels = cupy.asarray(packed), cupy.asarray(absmax), cupy.asarray(NF4_LEVELS)
    k = kernel(f"nf4_unpack_{rung}").build(cupy, np.dtype(dtype).name)
    if rung == "v1":
        k(a, b, levels, i32(block), y)
    elif rung == "v2":
        k(a, b, levels, i32(shift), i64(n), y, size=-(-n // 8))
    else:
        k((min(-(-n // 2048), 2),), (256,), (a, b, levels, i32(shift), i64(n), y))
    return y.get()


def values(kind, n, block, rng):
    """float32 weights, every block of them zero or with its largest magnitude between 2^-100 and 2^126."""
    x = rng.standard_normal(n).astype(np.float32)
    if kind == "zeros":
        return np.zeros(n, np.float32)
    if kind == "negative_zeros":
        return np.full(n, -0.0, np.float32)
    if kind == "some_blocks_zero":
        x[rng.random(n // block + 1).repeat(block)[:n] < 0.5] = 0
    if kind == "thresholds":  # with a largest of a power of two, the scaled values are these
        around = [
            NF4_MIDPOINTS,
            np.nextafter(NF4_MIDPOINTS, 2, dtype=np.float32),
            np.nextafter(NF4_MIDPOINTS, -2, dtype=np.float32),
        ]
        x = rng.choice(np.concatenate(around), n)
        x[::block] = rng.choice(np.float32([1, -1]), x[::block].size)
        x *= np.float32(2.0) ** rng.integers(-8, 12)
    if kind == "subnormals_beside":
        x[1::2] = rng.choice(np.float32([1e-39, -1e-40, 1e-45]), x[1::2].size)
    if kind in ("smallest", "largest"):
        at = {"smallest": 2.0**-100, "largest": 2.0**126}[kind]
        x = (np.clip(x / 4, -1, 1) * at).astype(np.float32)
        x[::block] = at
    if kind == "one_large":
        x[n // 2] = 1e6
    return x


KINDS = "normal zeros negative_zeros some_blocks_zero thresholds subnormals_beside smallest largest one_large".split()


def same_bits(got, wanted):
    np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), wanted.view(f"u{wanted.itemsize}"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rung", ["v1", "v2"])
def test_pack_is_the_specification_to_the_bit(rung, dtype):
    rng = np.random.default_rng(0)
    for n in SIZES:
        for kind in KINDS:
            if dtype == "float16" and kind in ("smallest", "largest", "subnormals_beside", "one_large"):
                continue  # float16 holds no such numbers
            block = int(rng.choice([32, 64, 128, 256]))
            x = values(kind, n, block, rng).astype(DTYPES[dtype])
            packed, absmax = pack(rung, x, block)
            wanted = nf4_quantize(np, x.astype(np.float32), block)
            np.testing.assert_array_equal(packed, wanted[0], err_msg=f"{kind}, {n} weights in blocks of {block}")
            same_bits(absmax, wanted[1])


@pytest.mark.parametrize("rung", ["v1", "v2"])
def test_whole_blocks_take_the_reciprocal_and_the_partial_one_divides(rung):
    """On weights for which the two rules give different codes, or they could be exchanged unnoticed."""
    rng = np.random.default_rng(7)
    scale = rng.uniform(1, 2, 200_000).astype(np.float32)
    middle = rng.choice(NF4_MIDPOINTS, scale.size)
    x = (middle * scale).astype(np.float32)
    differ = (x * (np.float32(1) / scale) > middle) != (x / scale > middle)
    scale, x = scale[differ][:40], x[differ][:40]
    assert len(x) == 40
    blocks = np.zeros((40, 32), np.float32)
    blocks[:, 0], blocks[:, 9] = scale, x
    for weights in (blocks.reshape(-1), *blocks[:, :31]):
        packed, absmax = pack(rung, weights, 32)
        wanted = nf4_quantize(np, weights, 32)
        np.testing.assert_array_equal(packed, wanted[0])
        same_bits(absmax, wanted[1])


@pytest.mark.parametrize("block", [512, 1024, 2048, 4096])
def test_pack_of_large_blocks(block):
    x = np.random.default_rng(block).standard_normal(2 * block + 77).astype(np.float32)
    packed, absmax = (a.get() for a in cuda.nf4_quantize(cupy, cupy.asarray(x), block))
    wanted = nf4_quantize(np, x, block)
    np.testing.assert_array_equal(packed, wanted[0])
    same_bits(absmax, wanted[1])


def test_pack_of_every_half():
    """All finite float16 numbers, each beside a largest of its own size."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
    x = np.concatenate([halves, -halves])
    for rung in ("v1", "v2"):
        packed, absmax = pack(rung, x, 32)
        wanted = nf4_quantize(np, x.astype(np.float32), 32)
        np.testing.assert_array_equal(packed, wanted[0])
        same_bits(absmax, wanted[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rung", ["v1", "v2", "v3"])
def test_unpack_is_the_specification_to_the_bit(rung, dtype):
    rng = np.random.default_rng(1)
    for n in SIZES:
        block = int(rng.choice([32, 64, 256, 4096]))
        packed = rng.integers(0, 256, (n + 1) // 2).astype(np.uint8)
        absmax = (rng.random(-(-n // block)) * 2.0 ** rng.integers(-12, 12)).astype(np.float32)
        absmax[rng.random(absmax.size) < 0.2] = 0
        got = unpack(rung, packed, absmax, block, n, DTYPES[dtype])
        with np.errstate(all="ignore"):
            wanted = nf4_dequantize(np, packed, absmax, block, n).astype(DTYPES[dtype])
        same_bits(got, wanted)


@pytest.mark.parametrize("order", ORDERS)
def test_no_rung_depends_on_the_order_of_threads(order):
    x = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    wanted = nf4_quantize(np, x, 64)
    with settings(order=order):
        for rung in ("v1", "v2"):
            packed, absmax = pack(rung, x, 64)
            np.testing.assert_array_equal(packed, wanted[0])
            same_bits(absmax, wanted[1])
        for rung in ("v1", "v2", "v3"):
            same_bits(
                unpack(rung, *wanted, 64, 1000, np.float16), nf4_dequantize(np, *wanted, 64, 1000).astype(np.float16)
            )


def test_scales_of_double_quantisation_to_the_bit():
    rng = np.random.default_rng(3)
    for n in (1, 255, 256, 257, 1000):
        codes, nested = rng.integers(0, 256, n).astype(np.uint8), rng.random(-(-n // 256)).astype(np.float32)
        arguments = codes, nested, np.float32(0.37), dynamic_map()
        got = cuda.nf4_scales(cupy, *(cupy.asarray(a) for a in arguments[:2]), *arguments[2:])
        same_bits(got.get(), cuda.SPECIFICATION["nf4_scales"](np, *arguments))


def test_the_override_starts_anywhere_and_takes_the_safe_rung_for_odd_addresses():
    rng = np.random.default_rng(4)
    packed, absmax = rng.integers(0, 256, 512).astype(np.uint8), rng.random(16).astype(np.float32)
    for start, n in ((0, 1024), (64, 100), (192, 1)):
        got = cuda.nf4_dequantize(cupy, cupy.asarray(packed), cupy.asarray(absmax[start // 64 :]), 64, n, start)
        same_bits(got.get(), nf4_dequantize(np, packed, absmax[start // 64 :], 64, n, start))
    room = cupy.empty(201, np.float32)
    got = cuda.nf4_dequantize(cupy, cupy.asarray(packed), cupy.asarray(absmax), 64, 200, 0, room[1:])
    same_bits(got.get(), nf4_dequantize(np, packed, absmax, 64, 200))
    x = rng.standard_normal(301).astype(np.float32)
    packed, absmax = cuda.nf4_quantize(cupy, cupy.asarray(x)[1:], 64)
    np.testing.assert_array_equal(packed.get(), nf4_quantize(np, x[1:], 64)[0])


# ---------------------------------------------------------------------------------- outside the promised magnitudes


@pytest.mark.parametrize("rung", ["v1", "v2"])
def test_above_two_to_the_126_the_quotient_is_taken_instead_of_a_flushed_reciprocal(rung):
    x = np.random.default_rng(5).uniform(-1, 1, 640).astype(np.float32) * np.float32(3e38)
    packed, absmax = pack(rung, x, 64)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    scaled = x.astype(np.float64) / np.abs(x.reshape(-1, 64)).max(axis=1).repeat(64)
    exact = (scaled[:, None] > NF4_MIDPOINTS).sum(axis=1)
    near = np.abs(scaled[:, None] - NF4_MIDPOINTS).min(axis=1) < 2.0**-23
    assert (codes == exact)[~near].all() and not near.all()
    same_bits(absmax, np.abs(x.reshape(-1, 64)).max(axis=1))


@pytest.mark.parametrize("rung", ["v1", "v2"])
def test_blocks_below_two_to_the_minus_126_count_as_zero(rung):
    packed, absmax = pack(rung, np.full(100, 1e-39, np.float32), 64)
    assert set(packed.tolist()) == {0x77}
    same_bits(absmax, np.array([0.0, 1e-38], np.float32))  # a partial block keeps bitsandbytes' 1e-38


@pytest.mark.parametrize("rung", ["v1", "v2"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_scale(rung, bad):
    x = np.ones(256, np.float32)
    x[100] = bad
    _, absmax = pack(rung, x, 64)
    assert np.isfinite(absmax).tolist() == [True, False, True, True]
