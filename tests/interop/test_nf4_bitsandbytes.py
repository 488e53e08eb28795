"""NF4 against bitsandbytes itself: equal bytes on random shapes, dtypes and block sizes, and equal weights back."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")
pytest.importorskip("bitsandbytes", reason="not run: bitsandbytes is not installed")

import bitsandbytes.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tinyllm.backend.double_quant import dequantize_absmax, dynamic_map, quantize_absmax  # noqa: E402
from tinyllm.backend.nf4 import NF4_LEVELS, NF4_MIDPOINTS  # noqa: E402
from tinyllm.backend.torch_sum import torch_mean  # noqa: E402
from tinyllm.frozen.nf4 import BLOCK_SIZES, dequantize_nf4, quantize_nf4  # noqa: E402

shapes = st.lists(st.integers(1, 130), min_size=1, max_size=3).filter(lambda s: np.prod(s) <= 60_000)
dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, torch's mean of over 32,768 scales has another order of summation
    yield
    torch.set_num_threads(before)


def weight(shape, dtype, seed, size, ties):
    """A torch tensor, and what tinyllm reads of it (bfloat16 arrives as float32)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if ties:
        grid = np.concatenate([NF4_MIDPOINTS, np.nextafter(NF4_MIDPOINTS, np.float32(2)), NF4_LEVELS])
        x = np.where(rng.random(shape) < 0.8, rng.choice(grid, shape), x)
    with np.errstate(over="ignore"):
        w = torch.from_numpy((x * size).astype(np.float32)).to(dtypes[dtype])
    return w, (w.float() if dtype == "bfloat16" else w).numpy()


@settings(deadline=None)  # bitsandbytes' first call compiles for seconds
@given(
    shapes,
    st.sampled_from(sorted(dtypes)),
    st.sampled_from(BLOCK_SIZES),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 0.02, 1e-7, 1e4, 0.0]),
    st.booleans(),
)
def test_equal_bytes_and_equal_weights(shape, dtype, block_size, double, seed, size, ties):
    w, x = weight(shape, dtype, seed, size, ties)
    packed, state = F.quantize_4bit(w, blocksize=block_size, compress_statistics=double, quant_type="nf4")
    indices, scales = quantize_nf4(x, block_size)
    assert indices.tobytes() == packed.numpy().tobytes()
    if double:
        codes, absmax2, offset = quantize_absmax(scales)
        assert codes.tobytes() == state.absmax.numpy().tobytes()
        assert absmax2.tobytes() == state.state2.absmax.numpy().tobytes()
        assert float(offset) == state.offset.item()
        scales = dequantize_absmax(codes, absmax2, offset)
        nested = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
        assert scales.tobytes() == nested.numpy().tobytes()
    else:
        assert scales.tobytes() == state.absmax.numpy().tobytes()
    # Flat, as one row of whole blocks: for other shapes bitsandbytes' AVX-512 kernel takes wrong scales.
    n = x.size - x.size % block_size
    if n:
        part = F.QuantState(
            absmax=torch.from_numpy(scales[: n // block_size].copy()),
            shape=torch.Size([1, n]),
            code=state.code,
            blocksize=block_size,
            quant_type="nf4",
            dtype=dtypes[dtype],
        )
        theirs = F.dequantize_4bit(packed.reshape(-1)[: n // 2].reshape(-1, 1), part)
        ours = dequantize_nf4(indices[: n // 2], scales[: n // block_size], n, block_size)
        assert torch.equal(torch.from_numpy(ours).to(dtypes[dtype]), theirs.reshape(-1))


@pytest.mark.parametrize("size", [1e-30, 1e10, 1e-39, 3e-42])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_extreme_magnitudes(size, block_size):
    w, x = weight((3, 2100), "float32", 7, size, True)
    packed, state = F.quantize_4bit(w, blocksize=block_size, compress_statistics=False, quant_type="nf4")
    indices, scales = quantize_nf4(x, block_size)
    assert indices.tobytes() == packed.numpy().tobytes() and scales.tobytes() == state.absmax.numpy().tobytes()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [3e-44, 4e-41, 2e-39, 5e-39, 1e-30, 1e34])
def test_extreme_scales(size, seed):
    absmax = (np.random.default_rng(seed).random(600, dtype=np.float32) * np.float32(size)).astype(np.float32)
    mean = torch.from_numpy(absmax).mean()
    theirs, state = F.quantize_blockwise(torch.from_numpy(absmax) - mean, blocksize=256)
    codes, absmax2, offset = quantize_absmax(absmax)
    assert float(offset) == mean.item() and absmax2.tobytes() == state.absmax.numpy().tobytes()
    assert codes.tolist() == theirs.tolist()


def test_the_dynamic_map():
    assert np.array_equal(dynamic_map(), F.create_dynamic_map().numpy())


@pytest.mark.parametrize("n", [*range(1, 70), 1000, 8191, 8193, 32768])
def test_the_mean_is_torchs(n):
    x = np.random.default_rng(n).random(n, dtype=np.float32)
    assert float(torch_mean(np, x)) == torch.from_numpy(x).mean().item()


@pytest.mark.parametrize("shape", [(2048, 1024), (577, 1536)])
def test_a_whole_layer(shape):
    w, x = weight(shape, "float32", 3, 0.02, False)
    packed, state = F.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
    indices, scales = quantize_nf4(x)
    codes, absmax2, offset = quantize_absmax(scales)
    assert indices.tobytes() == packed.numpy().tobytes() and codes.tobytes() == state.absmax.numpy().tobytes()
    ours = dequantize_nf4(indices, dequantize_absmax(codes, absmax2, offset), shape)
    assert np.array_equal(ours, F.dequantize_4bit(packed, state).numpy())
