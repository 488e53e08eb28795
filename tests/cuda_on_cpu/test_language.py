"""The language a kernel sees: rounding, intrinsics, vectors, warps; each against its definition in NumPy or Python."""

from __future__ import annotations

import numpy as np
import pytest
from needs import needs_compiler

from tinyllm.course.cuda_on_cpu import ORDERS, ElementwiseKernel, RawKernel, RawModule, address, settings

pytestmark = needs_compiler


@pytest.fixture(params=["__half", "__nv_bfloat16"])
def sixteen(request):
    """A 16-bit type's name in CUDA, and its dtype."""
    if request.param == "__half":
        return request.param, np.float16
    reason = "not run: ml_dtypes is not installed"
    return request.param, pytest.importorskip("ml_dtypes", reason=reason).bfloat16


def run(source, *args, grid=(1,), block=(32,), shared_mem=0, includes=""):
    k = RawKernel(f'{includes}extern "C" __global__ void k{source}', "k")
    k(grid, block, args, shared_mem=shared_mem)
    return k.counts


HALVES = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"


def same(a, b):
    """Bit for bit, but any NaN is as good as another."""
    with np.errstate(invalid="ignore"):
        nan, other = np.isnan(a.astype(np.float64)), np.isnan(b.astype(np.float64))
    bits = f"u{a.dtype.itemsize}"
    assert (nan == other).all() and (a.view(bits)[~nan] == b.view(bits)[~nan]).all()


def test_all_sixteen_bit_values_widen_exactly_and_come_back(sixteen):
    word, dtype = sixteen
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    wide, back = np.empty(65536, np.float32), np.empty(65536, dtype)
    i = "const int i = blockIdx.x * blockDim.x + threadIdx.x;"
    run(f"(const {word}* x, float* y, {word}* z) {{ {i} y[i] = x[i]; z[i] = ({word})y[i]; }}", x, wide, back,
        grid=(256,), block=(256,), includes=HALVES)  # fmt: skip
    with np.errstate(invalid="ignore"):  # signalling NaNs
        same(wide, x.astype(np.float32))
    same(back, x)


def test_rounding_is_to_nearest_even(sixteen):
    """Every value of the type, the float half way to the next, and the floats beside that one."""
    word, dtype = sixteen
    value = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float32)
    value = np.sort(value[np.isfinite(value)])
    middle = ((value[1:].astype(np.float64) + value[:-1]) / 2).astype(np.float32)
    x = np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])
    x = np.concatenate([x, np.array([65519.9, 65520, 3.3e38, 3.4028235e38, np.inf, -np.inf, np.nan, 1e-8], np.float32)])
    x = x[(np.abs(x) >= 2.0**-126) | np.isnan(x)]  # smaller floats are flushed, as CuPy's -ftz=true does
    y = np.empty(x.size, dtype)
    run(f"(const float* x, {word}* y, int n) {{ for (int i = threadIdx.x; i < n; i += 32) y[i] = ({word})x[i]; }}",
        x, y, np.int32(x.size), includes=HALVES)  # fmt: skip
    with np.errstate(over="ignore"):
        same(y, x.astype(dtype))


def test_half_arithmetic_rounds_once():
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 65536, 20_000, dtype=np.uint16).view(np.float16) for _ in range(3))
    out = np.empty((3, a.size), np.float16)
    source = """(const __half* a, const __half* b, const __half* c, __half* y, int n) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            y[i] = __hadd(a[i], b[i]); y[n + i] = __hmul(a[i], b[i]); y[2 * n + i] = __hfma(a[i], b[i], c[i]);
        }
    }"""
    run(source, a, b, c, out, np.int32(a.size), includes=HALVES)
    with np.errstate(all="ignore"):
        same(out[0], a + b)
        same(out[1], a * b)
        exact = a.astype(np.longdouble) * b + c  # 64 digits: enough to see every tie
        fits = np.abs(exact.astype(np.float64)) == np.abs(exact)
        same(out[2][fits], exact[fits].astype(np.float64).astype(np.float16))
    assert fits.mean() > 0.5


def test_float_subnormals_are_flushed_and_half_ones_kept():
    x, y = np.array([1e-40, -1e-40, 2e-38, 1.0], np.float32), np.ones(9, np.float32)
    run("(const float* x, float* y) { y[0] = x[0] * x[3]; y[1] = x[1] + x[1]; y[2] = x[2] * 0.25f; y[3] = fabsf(x[1]);"
        " y[4] = fmaxf(x[0], x[1]); y[5] = x[3] / x[0]; y[6] = __frcp_rn(3e38f); y[7] = x[0]; y[8] = x[0] == 0; }",
        x, y, block=(1,))  # fmt: skip
    assert (y[[0, 1, 2, 3, 4, 6]] == 0).all() and np.isinf(y[5]) and y[8] == 1
    assert y[7] == x[0]  # a copy is no arithmetic
    half = np.array([1], np.uint16).view(np.float16)
    run("(__half* h) { *h = __hadd(*h, *h); }", half, block=(1,), includes=HALVES)
    assert half.view(np.uint16)[0] == 2


def test_maximum_and_minimum_drop_nan():
    y = np.ones(4, np.float32)
    run("(float* y, float nan) { y[0] = fmaxf(nan, 2.0f); y[1] = fminf(2.0f, nan);"
        " y[2] = max(nan, nan); y[3] = fmaxf(-0.0f, 0.0f); }",
        y, np.float32(np.nan), block=(1,))  # fmt: skip
    assert y[0] == 2 and y[1] == 2 and np.isnan(y[2]) and not np.signbit(y[3])


def test_integer_intrinsics():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2**64, 32, dtype=np.uint64), rng.integers(0, 2**64, 32, dtype=np.uint64)
    high, small = np.empty(32, np.uint64), np.empty((5, 32), np.uint32)
    run("""(const unsigned long long* a, const unsigned long long* b, unsigned long long* h, unsigned int* s) {
        const int t = threadIdx.x;
        h[t] = __umul64hi(a[t], b[t]);
        s[t] = __umulhi((unsigned)a[t], (unsigned)b[t]); s[32 + t] = __popcll(a[t]);
        s[64 + t] = __clz((int)(a[t] >> t >> 32));
        s[96 + t] = __brev((unsigned)a[t]); s[128 + t] = __byte_perm((unsigned)a[t], (unsigned)b[t], 0x7250);
    }""", a, b, high, small)  # fmt: skip
    for t in range(32):
        x, y = int(a[t]), int(b[t])
        low, other = x & 0xFFFFFFFF, y & 0xFFFFFFFF
        assert int(high[t]) == x * y >> 64 and int(small[0, t]) == low * other >> 32
        assert int(small[1, t]) == x.bit_count() and int(small[2, t]) == 32 - (x >> t >> 32).bit_length()
        assert int(small[3, t]) == int(f"{low:032b}"[::-1], 2)
        bytes8 = low.to_bytes(4, "little") + other.to_bytes(4, "little")
        assert int(small[4, t]).to_bytes(4, "little") == bytes(bytes8[k] for k in (0, 5, 2, 7))


@pytest.mark.parametrize("order", ORDERS)
def test_warps_and_votes(order):
    y = np.zeros((7, 64), np.int32)
    with settings(order=order, seed=3):
        counts = run("""(int* y) {
            const int t = threadIdx.x;
            int sum = t;
            for (int k = 16; k > 0; k /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, k);
            y[t] = sum;
            y[64 + t] = __shfl_up_sync(0xffffffffu, t, 1);
            y[128 + t] = __shfl_down_sync(0xffffffffu, t, 1, 8);
            y[192 + t] = __shfl_sync(0xffffffffu, t, 3, 16);
            y[256 + t] = __popc(__ballot_sync(0xffffffffu, t % 3 == 0));
            y[320 + t] = 2 * __any_sync(0xffffffffu, t == 40) + __all_sync(0xffffffffu, t < 32);
            y[384 + t] = __syncthreads_count(t % 2);
        }""", y, block=(64,))  # fmt: skip
    t = np.arange(64)
    assert (y[0] == np.where(t < 32, 496, 1520)).all() and (y[1] == np.where(t % 32, t - 1, t)).all()
    assert (y[2] == np.where(t % 8 == 7, t, t + 1)).all() and (y[3] == t // 16 * 16 + 3).all()
    assert (y[4] == np.where(t < 32, 11, 11)).all() and (y[5] == np.where(t < 32, 1, 2)).all() and (y[6] == 32).all()
    assert counts.warp_syncs == 2 * 11 and counts.barriers == 1


def test_threads_in_three_dimensions_and_two_kernels_in_a_module():
    code = """
    __constant__ float scale[2] = {1.0f, 10.0f};
    __device__ __forceinline__ int flat() {
        const int block = blockIdx.x + gridDim.x * blockIdx.y;
        return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * (threadIdx.z + blockDim.z * block));
    }
    extern "C" __global__ void __launch_bounds__(64) one(float* __restrict__ y) { y[flat()] = scale[1] * flat(); }
    extern "C" __global__ void two(float* y) { y[flat()] += scale[0]; }
    """
    module, y = RawModule(code=code), np.zeros(2 * 3 * 24, np.float32)
    module.get_function("one")((2, 3), (2, 3, 4), (y,))
    module.get_function("two")((2, 3), (2, 3, 4), (y,))
    assert (y == np.arange(144) * 10 + 1).all()


def test_counts_and_wide_accesses():
    x, y = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    narrow = run(
        "(const float* x, float* y) { for (int k = 0; k < 4; k++) y[4 * threadIdx.x + k] = x[4 * threadIdx.x + k]; }",
        x,
        y,
    )
    wide = run("(const float4* x, float4* y) { y[threadIdx.x] = __ldg(&x[threadIdx.x]); }", x, y)
    assert (narrow.read, narrow.written, narrow.loads, narrow.stores) == (512, 512, 128, 128)
    assert (wide.read, wide.written, wide.loads, wide.stores) == (512, 512, 32, 32)
    assert wide.by_argument == {"x": (512, 0), "y": (0, 512)}


def test_the_trace_of_one_thread(capsys):
    x, y = np.arange(4, dtype=np.float32), np.zeros(2, np.float32)
    with settings(trace=(0, 1)):
        run("(const float* x, float* y) {\n  float2 v = ((const float2*)x)[threadIdx.x];\n  __syncthreads();\n"
            "  y[threadIdx.x] = v.x + v.y;\n}",
            x, y, block=(2,))  # fmt: skip
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:4] == ["reads", "x[2:4]", "=", "2.0,"] and lines[1][:3] == ["__syncthreads()", "line", "3"]
    assert lines[2][:6] == ["writes", "y[1]", "=", "5.0", "line", "4"]


def test_broadcasting_and_allocation_in_an_elementwise_kernel():
    k = ElementwiseKernel("T x, T y, float32 s", "T z, bool b", "z = x * y + T(s); b = z > T(0)", "mix")
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, -1, 2], np.float32)
    z, b = k(x, y, 0.5)
    assert (z == x * y + np.float32(0.5)).all() and (b == (z > 0)).all() and z.shape == (2, 3)
    assert (k(x.T, x.T, 1)[0] == x.T * x.T + 1).all()
    assert k(x[:0], x[:0], 1)[0].shape == (0, 3)


def test_an_address_is_the_offset_in_the_allocation():
    x = np.zeros(16, np.float32)
    assert address(x) == 0 and address(x[3:]) == 12 and address(x[4:].reshape(3, 4)[1:]) == 32


def test_a_fused_multiply_add_rounds_once(sixteen):
    """A product half way between two values, and a term far below it that says which way to go."""
    word, dtype = sixteen
    product, even, odd = ((683, 3), 2048, 2050) if word == "__half" else ((37, 7), 260, 258)
    tiny = 2.0**-24 if word == "__half" else -(2.0**-100)
    x, y = np.array([*product, 0, tiny], dtype), np.empty(2, dtype)
    run(f"(const {word}* x, {word}* y) {{ y[threadIdx.x] = __hfma(x[0], x[1], x[2 + threadIdx.x]); }}",
        x, y, block=(2,), includes=HALVES)  # fmt: skip
    assert y.astype(float).tolist() == [even, odd]
