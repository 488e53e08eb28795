"""Wrong kernels, planted: each is refused or stopped, and the message says which thread did what, on which line."""

from __future__ import annotations

import numpy as np
import pytest
from needs import needs_compiler

from tinyllm.course.cuda_on_cpu import ORDERS, CompileError, ElementwiseKernel, KernelError, RawKernel, settings

pytestmark = needs_compiler

SUM = """
extern "C" __global__ void block_sum(const float* x, float* y, int n) {
    __shared__ float part[64];
    const int t = threadIdx.x;
    part[t] = t < n ? x[t] : 0.0f;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();
    }
    if (t == 0) *y = part[0];
}
"""


def block_sum(source, n=64, order="forward"):
    x, y = np.arange(n, dtype=np.float32), np.zeros(1, np.float32)
    with settings(order=order):
        RawKernel(source, "block_sum")((1,), (64,), (x, y, np.int32(n)))
    return float(y[0])


@pytest.mark.parametrize("order", ORDERS)
def test_the_right_one_passes(order):
    assert block_sum(SUM, order=order) == 2016.0


def planted(before, after):
    assert before in SUM
    return SUM.replace(before, after, 1)


# What is changed in the sum, and what the message must say.
FAULTS = {
    "missing barrier, in the loop": (
        "        __syncthreads();\n",
        "",
        "thread .* a race on byte .* with no barrier between",
    ),
    "missing barrier, before the loop": (
        "    __syncthreads();\n    for",
        "    for",
        "line 7 .*(a race on byte|no thread of the block has written yet)",
    ),
    "barrier in a divergent branch": (
        "        __syncthreads();\n    }",
        "        if (t < half) __syncthreads();\n    }",
        "a divergent barrier",
    ),
    "two barriers that meet": (
        "    __syncthreads();\n    for",
        "    if (t < 32) __syncthreads();\n    else __syncthreads();\n    for",
        "line 7 .*a divergent barrier: waits at this .* while thread 0 waits at the one on line 6",
    ),
    "a thread that leaves early": (
        "    part[t] =",
        "    if (t >= 60) return;\n    part[t] =",
        "thread 60 has ended without reaching it",
    ),
    "out of bounds read": (
        "x[t]",
        "x[t + 1]",
        r"thread 63, line 5 .*reads 4 bytes at element 64 of argument 'x' .*64 elements",
    ),
    "out of bounds read, before": (
        "x[t]",
        "x[t - 1]",
        "thread 0, line 5 .*element -1 of argument 'x'.* before it begins",
    ),
    "out of bounds write": ("*y = part[0]", "y[1] = part[0]", "writes 4 bytes at element 1 of argument 'y'"),
    "out of bounds, shared": (
        "part[t] = t",
        "part[t + 1] = t",
        "thread 63, line 5 .*index 64 of an array of fixed size",
    ),
    "shared memory that nobody wrote": ("part[t] = t < n ? x[t] : 0.0f;", "if (t != 7) part[t] = x[t];", "written yet"),
    "a const input written": (
        "*y = part[0]",
        "*(float*)x = part[0]",
        "writes to element 0 of argument 'x'.*declares const",
    ),
    "a misaligned 16-byte load": (
        "x[t] : 0.0f",
        "((const float4*)(x + 1))->x : 0.0f",
        "misaligned: .*float4.* 4 bytes past a multiple of 16",
    ),
    "a null pointer": ("x[t] : 0.0f", "*(const float*)0 : 0.0f", "a null pointer"),
    "a pointer from nowhere": ("x[t] : 0.0f", "*(const float*)4096 : 0.0f", "belongs to no argument"),
    "a lane outside of the warp": ("x[t] : 0.0f", "__shfl_sync(0xffffffffu, x[t], 32) : 0.0f", "reads lane 32 of 32"),
    "a lane outside of the mask": (
        "x[t] : 0.0f",
        "(t % 32 < 4 ? __shfl_sync(0xfu, x[t], 4) : 0.0f) : 0.0f",
        "lane 4, which is not in the mask",
    ),
    "a mask without the caller": (
        "x[t] : 0.0f",
        "__shfl_sync(0xfu, x[t], 0) : 0.0f",
        "thread 4, line 5 .*leaves out the calling lane 4",
    ),
    "a lane that has ended": (
        "    part[t] =",
        "    if (t % 32 == 5) return;\n    float v = __shfl_down_sync(~0u, x[t], 1);\n    part[t] = v +",
        "thread 4, line 6 .*reads lane 5, which has ended",
    ),
    "a shuffle that some lanes skip": (
        "    part[t] =",
        "    float v = 0;\n    if (t % 32 != 9) v = __shfl_down_sync(~0u, x[t], 1);\n    part[t] = v +",
        "waits at __shfl_down_sync.* but lane 9 waits at __syncthreads",
    ),
    "a race on global memory": (
        "*y = part[0];",
        "*y = 1; else if (t == 40) *y = 2;",
        "thread 40.* a race on element 0 of argument 'y'.*thread 0 wrote",
    ),
    "integer overflow": ("x[t] : 0.0f", "x[(t + n + 2147483600) % n] : 0.0f", "signed integers overflows"),
    "division by zero": ("x[t] : 0.0f", "x[t % (n - 64)] : 0.0f", "divided by zero"),
    "a shift by the width": ("x[t] : 0.0f", "x[1 << (n / 2)] : 0.0f", "shifted by its width"),
    "a float that no int holds": ("x[t] : 0.0f", "x[(int)(x[t] * 1e30f) % n] : 0.0f", "does not fit the integer"),
    "an overrun of a local array": (
        "x[t] : 0.0f",
        "x[t] : 0.0f; float r[4]; for (int k = 0; k <= n / 16; k++) r[k] = 0",
        "index 4 of an array",
    ),
    "a loop without an end": (
        "    if (t == 0) *y",
        "    while (t == 0) atomicAdd(y, 0.0f);\n    if (t == 0) *y",
        "no end in sight",
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault, order):
    before, after, message = FAULTS[fault]
    if order != "forward":  # who meets the fault first depends on the order; that it is met does not
        message = "block_sum: block 0, thread"
    with pytest.raises(KernelError, match=f"(?s){message}") as caught, settings(step_limit=10_000):
        block_sum(planted(before, after), order=order)
    assert str(caught.value).startswith("block_sum: block 0, thread") and "line" in str(caught.value)


def run(source, *args, grid=(1,), block=(32,), shared_mem=0):
    RawKernel(f'extern "C" __global__ void k{source}', "k")(grid, block, args, shared_mem=shared_mem)


def test_two_blocks_race():
    with pytest.raises(KernelError, match="block 1, thread 0, .*of block 0 wrote .*nothing orders two blocks"):
        run("(float* y) { if (threadIdx.x == 0) y[0] = blockIdx.x; }", np.zeros(1, np.float32), grid=(2,))


def test_atomics_do_not_race_but_a_plain_read_beside_them_does():
    y = np.zeros(1, np.int32)
    run("(int* y) { atomicAdd(y, 1); }", y, grid=(3,))
    assert y[0] == 96
    with pytest.raises(KernelError, match="a race on element 0 of argument 'y'"):
        run("(int* y) { atomicAdd(y, 1); if (y[0] < 0) y[0] = 0; }", y)


def test_a_warp_needs_its_barrier_too():
    body = "(float* y) {{ __shared__ float s[32]; int t = threadIdx.x; s[t] = t; {}; y[t] = s[t ^ 1]; }}"
    y = np.zeros(32, np.float32)
    run(body.format("__syncwarp()"), y)
    assert (y == np.arange(32) ^ 1).all()
    with pytest.raises(KernelError, match="race|written yet"), settings(order="reverse"):
        run(body.format(""), y)
    with pytest.raises(KernelError, match="race"):  # a shuffle makes lanes meet, but orders no memory
        run(body.format("__shfl_sync(~0u, 1, 0)"), y)


def test_dynamic_shared_memory_too_small():
    body = "(float* y) { extern __shared__ float s[]; s[threadIdx.x] = 1; y[threadIdx.x] = s[threadIdx.x]; }"
    y = np.zeros(32, np.float32)
    run(body, y, shared_mem=128)
    with pytest.raises(
        KernelError, match="thread 31, line 1 .*out of bounds: writes 4 bytes at byte 124 of the dynamic shared"
    ):
        run(body, y, shared_mem=124)
    with pytest.raises(ValueError, match="max_dynamic_shared_size_bytes must be set"):
        run(body, y, shared_mem=50_000)


def test_a_view_keeps_its_alignment():
    body = "(const float* x, float* y) { *(float4*)y = *(const float4*)x; }"
    x, y = np.arange(12, dtype=np.float32), np.zeros(4, np.float32)
    run(body, x[4:8], y, block=(1,))
    assert (y == [4, 5, 6, 7]).all()
    with pytest.raises(KernelError, match="misaligned: .*4 bytes past a multiple of 16"):
        run(body, x[1:5], y, block=(1,))


def test_overlapping_views_are_one_memory():
    x = np.arange(8, dtype=np.float32)
    run("(const float* x, float* y) { *y = *x; }", x[:6], x[2:], block=(1,))
    assert x[2] == 0
    with pytest.raises(KernelError, match="a race"):
        run("(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }", x[:6], x[2:], block=(6,))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (3, "argument 'n' is a Python int, which CuPy passes as 8 bytes; the kernel reads int32: pass np.int32"),
        (3.0, "argument 'n' is a Python float.* int32"),
        (np.int64(3), "argument 'n' is of type int32, but int64 is given"),
        (np.float32(3), "argument 'n' is of type int32, but float32 is given"),
        (np.zeros(1, np.int32), "argument 'n' is of type int32, but an array is given"),
    ],
)
def test_a_wrong_scalar(argument, message):
    with pytest.raises(TypeError, match=message):
        run("(float* y, int n) { y[0] = n; }", np.zeros(1, np.float32), argument)


def test_wrong_arrays():
    body = "(const float* x, float* y) { y[0] = x[0]; }"
    x, y = np.zeros(4, np.float32), np.zeros(1, np.float32)
    with pytest.raises(TypeError, match="k: argument 'x' points to float32, but the array's dtype is float64"):
        run(body, np.zeros(4), y)
    with pytest.raises(ValueError, match="argument 'x' is not C-contiguous"):
        run(body, x[::2], y)
    with pytest.raises(TypeError, match="argument 'x' is of type const float32.*, but a float32 is given"):
        run(body, np.float32(1), y)
    with pytest.raises(TypeError, match=r"k takes 2 arguments \(x, y\), but 1 are given"):
        run(body, x)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="argument 'y' may be written, but the array is read-only"):
        run(body, x, y)


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [((1,), (1025,), "at most"), ((1,), (64, 32), "has 2048 threads; 1024 is the most"), ((0,), (32,), "at least 1")],
)
def test_a_wrong_shape(grid, block, message):
    with pytest.raises(ValueError, match=message):
        run("(float* y) { }", np.zeros(1, np.float32), grid=grid, block=block)


def test_half_a_warp_has_half_the_lanes():
    with pytest.raises(KernelError, match="names lane 16, but this warp has only 16 threads"):
        run("(float* y) { y[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0); }", np.zeros(16, np.float32), block=(16,))


def test_what_does_not_compile_says_why():
    with pytest.raises(CompileError, match="kernel.cu:1.*'?nothing"):
        run("(float* y) { y[0] = nothing; }", np.zeros(1, np.float32))
    with pytest.raises(CompileError, match="read-only location"):
        run("(const float* x) { x[0] = 1; }", np.zeros(1, np.float32))
    with pytest.raises(CompileError, match='no `extern "C" __global__ void other'):
        RawKernel('extern "C" __global__ void k(float* y) { }', "other")((1,), (1,), (np.zeros(1, np.float32),))


def test_elementwise_kernels_are_watched_too():
    k = ElementwiseKernel("raw T x, int32 n", "T y", "y = x[i + n]", "shifted")
    x, y = np.arange(10, dtype=np.float16), np.zeros(6, np.float16)
    assert (k(x, 4, y) == x[4:]).all()
    with pytest.raises(KernelError, match="shifted: block 0, thread 5, line .*y = x.i . n.*element 10 of argument 'x'"):
        k(x, 5, y)
    with pytest.raises(TypeError, match="argument 'y' is of float16, but the array's dtype is float32"):
        k(x, 4, y.astype(np.float32))
    with pytest.raises(ValueError, match="give size="):
        ElementwiseKernel("raw T x", "raw T y", "y[i] = x[i]", "copy")(x, x.copy())
    with pytest.raises(CompileError, match="const float16"):
        ElementwiseKernel("raw T x", "T y", "x[i] = y", "wrong")(x, y)


def test_a_launch_that_failed_leaves_the_arrays_alone():
    y = np.zeros(4, np.float32)
    with pytest.raises(KernelError):
        run("(float* y) { y[threadIdx.x] = 1; }", y, block=(5,))
    assert not y.any()
    run("(float* y) { y[threadIdx.x] = 1; }", y, block=(4,))
    assert y.all()
