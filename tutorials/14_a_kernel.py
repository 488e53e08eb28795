# %% [markdown]
# # Lesson 14: What is a kernel?
#
# A graphics card runs thousands of threads at once, and each executes the same short program, the **kernel**. It is
# written in CUDA C, which is C with a few words more. No card is needed to learn it: here the very text that a card
# would get is compiled by g++ and run thread by thread over NumPy arrays, and every byte that a thread touches is
# looked at. On a card the same lines run with `from cupy import RawKernel`.
#
# - **Needs**: lesson 10
# - **Minutes**: 70
# - **Afterwards you can**: read and write a simple kernel, say what a barrier is for, find a race, and judge a kernel
#   by the bytes it asks for

# %%
import numpy as np
from tinyllm.backend.nf4 import NF4_LEVELS, nf4_dequantize, nf4_quantize
from tinyllm.course import check, kit
from tinyllm.course.cuda_on_cpu import KernelError, RawKernel, compiler, settings
kit.begin(14, needs="0.2")

# %%
if compiler() is None:
    raise RuntimeError("this lesson compiles with g++, which is not installed: on Debian or Ubuntu, apt install g++")

# %% [markdown]
# ## 1. One thread, one number
#
# The simplest kernel does the same to every number: a **map**. The threads come in **blocks**; each thread knows its
# number in the block, `threadIdx.x`, and its block's, `blockIdx.x`. From these it computes which number is its own.
#
# `__global__` marks a kernel, `extern "C"` keeps its name as it is, and a pointer is an array without a length.

# %%
SCALE = """
extern "C" __global__ void scale(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i];
}
"""
n = 10
x, y = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
scale = RawKernel(SCALE, "scale")
scale((3,), (4,), (x, y, np.float32(2), np.int32(n)))  # three blocks of four threads
assert (y == 2 * x).all()
print(y)

# %% [markdown]
# Twelve threads were started for ten numbers, since blocks are whole. What do the last two do? `if (i < n)`: nothing.
#
# **Predict.** Leave that condition out. What happens here, and what would happen on a card?

# %% tags=["hide-output"]
careless = SCALE.replace("if (i < n) ", "")
try:
    RawKernel(careless, "scale")((3,), (4,), (x, y, np.float32(2), np.int32(n)))
    said = ""
except KernelError as error:
    said = str(error)
assert "thread 2" in said
kit.say(f"Here: *{said}*. On a card most likely nothing is said, and the memory behind the array is overwritten.")

# %% [markdown]
# **Why.** A card does not check where a thread writes. It is somebody else's array that is wrong afterwards, at some
# other place in the program. This one is the most frequent mistake of all, and `n` a multiple of the block's size hides
# it.
#
# With `trace` one can look over a thread's shoulder:

# %%
with settings(trace=(1, 2)):  # block 1, thread 2
    scale((3,), (4,), (x, y, np.float32(2), np.int32(n)))

# %% [markdown]
# ## Exercise 14-map: cut off at both ends
#
# *15 minutes, importance 5 of 5.*
#
# Write `clip_kernel()`, which returns the text of a kernel `clip(const float* x, float* y, float low, float high, int
# n)`: y[i] is x[i], but at least low and at most high. For every n, and any number of blocks that is enough.

# %%
def clip_kernel():
    raise NotImplementedError("your turn")


check("14-map", clip_kernel)

# %% [markdown]
# ## 2. What costs time
#
# A card can do some hundred arithmetic operations in the time in which one number comes from its memory. So for most of
# what a language model needs, time is *bytes*, and how they are asked for. Each load is an instruction, and one load
# can bring 4, 8 or 16 bytes. `counts` tells what the last launch did.

# %%
FOUR = """
extern "C" __global__ void scale4(const float4* x, float4* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float4 v = x[i];
        y[i] = make_float4(a * v.x, a * v.y, a * v.z, a * v.w);
    }
}
"""
x, y = np.arange(1024, dtype=np.float32), np.zeros(1024, np.float32)
counted = {}
for text, name, each in ((SCALE, "scale", 1), (FOUR, "scale4", 4)):
    kernel = RawKernel(text, name)
    kernel((1024 // each // 64,), (64,), (x, y, np.float32(2), np.int32(1024 // each)))
    counted[name] = kernel.counts
    assert (y == 2 * x).all()
    print(f"{name:7} {kernel.counts.read:,} bytes read in {kernel.counts.loads:,} loads")

# %% [markdown]
# ## 3. Threads that need each other
#
# To add up numbers, threads must exchange what they have. Those of one block share a small, fast memory, marked
# `__shared__`. And they do *not* run in step: to be sure that another thread has written what one is about to read,
# all wait for all, at a **barrier**, `__syncthreads()`.
#
# Eight threads add eight numbers in three rounds. In each, half of them add what the other half has:

# %%
SUM = """
extern "C" __global__ void sum(const float* x, float* y) {
    __shared__ float part[8];
    int t = threadIdx.x;
    part[t] = x[t];
    __syncthreads();
    for (int half = 4; half > 0; half /= 2) {
        if (t < half) {
            float other = part[t + half];
            part[t] = part[t] + other;
        }
        __syncthreads();
    }
    if (t == 0) y[0] = part[0];
}
"""
x, y = np.arange(8, dtype=np.float32), np.zeros(1, np.float32)
add = RawKernel(SUM, "sum")
add((1,), (8,), (x, y))
assert y[0] == 28
kit.say(f"The sum of 0 to 7 is {y[0]:.0f}, by {add.counts.barriers} barriers.")

# %% [markdown]
# **Predict.** Leave out the barrier in the loop. Is the sum wrong?

# %% tags=["hide-output"]
racing = SUM.replace("        __syncthreads();\n", "")
results = {}
for order in ("forward", "reverse"):
    y[0] = 0
    with settings(races=False, order=order):  # do not look for races; let the threads take their turns so
        RawKernel(racing, "sum")((1,), (8,), (x, y))
    results[order] = float(y[0])
assert results["forward"] != results["reverse"] and 28 in results.values()
kit.say(", ".join(f"threads in {order} order: {result:.0f}" for order, result in results.items())
        + ". It depends on who comes first.")  # fmt: skip

# %% [markdown]
# **Why.** That is a **race**: two threads touch one place, one of them writes, and nothing says who is first. On a card
# it may come out right a thousand times, and wrong when another program runs beside it. Testing the result finds it by
# luck. But the accesses can be looked at, and then it is found *whatever* the result:

# %%
try:
    RawKernel(racing, "sum")((1,), (8,), (x, y))
    race = ""
except KernelError as error:
    race = str(error)
assert "a race" in race
print(race)

# %% [markdown]
# Look at both, thread by thread. In which stretch do two threads meet at one place, and what parts them in the first
# kernel?

# %%
from tinyllm.course.figures import threads_between_barriers

threads_between_barriers({"with the barrier": SUM, "without": racing}, "sum", 8, (x, y)).show()

# %% [markdown]
# ## Exercise 14-race: find it
#
# *15 minutes, importance 4 of 5.*
#
# In the kernel below each thread replaces its number by the mean of it and its right neighbour's. Write `mended(text)`,
# which gets the text and returns it with as few `__syncthreads();` more as make it right for every order of the
# threads. (A barrier that only some threads reach is another mistake.)

# %%
SMOOTH = """
extern "C" __global__ void smooth(float* x, int n) {
    __shared__ float part[64];
    int t = threadIdx.x;
    if (t < n) part[t] = x[t];
    float right = t + 1 < n ? part[t + 1] : 0;
    if (t < n) part[t] = 0.5f * (part[t] + right);
    if (t < n) x[t] = part[t];
}
"""


def mended(text):
    raise NotImplementedError("your turn")


check("14-race", mended)

# %% [markdown]
# ## 4. Four bits
#
# Now the kernel that QLoRA needs: codes and scales in, floats out. In lesson 10's format two codes share a byte, the
# even weight's in the upper half, and each block of 64 weights has a scale. One thread a weight:

# %%
UNPACK = """
extern "C" __global__
void unpack(const unsigned char* packed, const float* absmax, const float* level, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        unsigned char pair = packed[i / 2];
        int code = i % 2 ? pair & 15 : pair >> 4;
        y[i] = level[code] * absmax[i / 64];
    }
}
"""


def unpacked(text, name, packed, absmax, n, each=1):
    """The floats that a kernel makes of the codes, `each` weights a thread; and what it did."""
    y = np.zeros(n, np.float32)
    kernel = RawKernel(text, name)
    threads = -(-n // each)
    kernel((-(-threads // 128),), (128,), (packed, absmax, np.asarray(NF4_LEVELS), y, np.int32(n)))
    return y, kernel.counts


weight = kit.base().get("layers.2.mlp.up_proj").weight.data.reshape(-1)[: 1 << 14]
packed, absmax = nf4_quantize(np, weight, 64)
wanted = nf4_dequantize(np, packed, absmax, 64, weight.size)
y, plain = unpacked(UNPACK, "unpack", packed, absmax, weight.size)
assert (y == wanted).all()
kit.say(f"{weight.size:,} weights, the engine's bits. It asks for {plain.read / weight.size:.2f} bytes a weight.")

# %% [markdown]
# **Predict.** What has to be read for a weight is half a byte of code and a 64th of a scale. Where do the others come
# from?

# %% tags=["hide-output"]
need = 0.5 + 4 / 64
assert plain.read / weight.size > 10 * need
kit.say(
    f"Needed are {need:.4f} bytes a weight; asked for are {plain.read / weight.size:.2f}: each byte of codes by two "
    "threads, each scale by 64, and a level by every weight. Most of it comes from caches, but each is an instruction."
)

# %% [markdown]
# A thread that makes *eight* weights loads their codes with one load of four bytes, and their scale once. The eight are
# neighbours, and a block of 64 is eight threads, so they have one scale. The numbers leave in two stores of 16 bytes.

# %%
EIGHT = """
extern "C" __global__ void unpack8(const unsigned* packed, const float* absmax, const float* level, float4* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;  // eight weights: 8 i to 8 i + 7
    if (8 * i < n) {
        unsigned codes = packed[i];  // four bytes, the first of them lowest
        float scale = absmax[i / 8], out[8];
        for (int k = 0; k < 4; k++) {
            unsigned pair = codes >> (8 * k) & 255;
            out[2 * k] = level[pair >> 4] * scale;
            out[2 * k + 1] = level[pair & 15] * scale;
        }
        y[2 * i] = make_float4(out[0], out[1], out[2], out[3]);
        y[2 * i + 1] = make_float4(out[4], out[5], out[6], out[7]);
    }
}
"""


def unpacked8(packed, absmax, n):
    """As above, for n a multiple of eight."""
    y = np.zeros((n // 4, 4), np.float32)
    kernel = RawKernel(EIGHT, "unpack8")
    kernel((-(-n // 8 // 128),), (128,), (packed.view(np.uint32), absmax, np.asarray(NF4_LEVELS), y, np.int32(n)))
    return y.reshape(-1), kernel.counts


y, eight = unpacked8(packed, absmax, weight.size)
assert (y == wanted).all()


def figure_counts(counts, n):
    """Loads, stores and bytes a weight, of each kernel."""
    figure, (left, right) = kit.plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    names = list(counts)
    loads, stores = ([getattr(c, what) / n for c in counts.values()] for what in ("loads", "stores"))
    left.bar(names, loads, color="#0072b2", label="loads")
    left.bar(names, stores, bottom=loads, color="#e69f00", label="stores")
    left.set(ylabel="instructions a weight")
    left.legend(frameon=False, fontsize=8)
    read = [c.read / n for c in counts.values()]
    bars = right.bar(names, read, color="#0072b2")
    right.bar_label(bars, fmt="%.2f", fontsize=8)
    right.axhline(0.5 + 4 / 64, color="#d55e00", linestyle="--", label="needed")
    right.set(ylabel="bytes asked for a weight")
    right.legend(frameon=False, fontsize=8)
    kit.show(
        figure,
        "Left, loads and stores a weight: "
        + ", ".join(f"{name} {a:.3f} and {b:.3f}" for name, a, b in zip(names, loads, stores, strict=True))
        + ". Right, bytes asked for: "
        + ", ".join(f"{name} {value:.2f}" for name, value in zip(names, read, strict=True))
        + "; 0.56 are needed.",
    )
    return {"loads": loads, "stores": stores, "read": read}


drawn = figure_counts({"one a thread": plain, "eight a thread": eight}, weight.size)
assert drawn["loads"][1] < drawn["loads"][0] / 2 and drawn["stores"][1] == drawn["stores"][0] / 4
kit.say(
    f"Loads fall from {drawn['loads'][0]:.2f} to {drawn['loads'][1]:.2f} a weight, stores from "
    f"{drawn['stores'][0]:.2f} to {drawn['stores'][1]:.2f}. Most of what is left are the levels."
)

# %% [markdown]
# On a card the engine's second rung of this ladder, which is much like this one, was four times as fast as the first. A
# third, with the levels in shared memory, asks for a fifth of the bytes, and was no faster. (The page on the kernels
# has the times.) So counting told the large step right and the last one wrong: what counts is measured.
#
# ## Exercise 14-pack: the other way
#
# *25 minutes, importance 3 of 5.*
#
# Write `pack_kernel()`, which returns the text of `pack(const float* scaled, const float* middle, unsigned char*
# packed, int n)`: `scaled` are n numbers between -1 and 1, n even; `middle` the fifteen midpoints between the levels,
# rising; one thread makes one *byte*. A number's code is how many midpoints lie below it.

# %%
def pack_kernel():
    raise NotImplementedError("your turn")


check("14-pack", pack_kernel)

# %% [markdown]
# ## Three questions
#
# **1.** "More threads are always faster." True?
#
# <details><summary>Answer</summary>
#
# No. Eight weights a thread means an eighth of the threads, and that was four times as fast. There must be enough
# threads to keep the memory busy; beyond that, what each asks for counts.
#
# </details>
#
# **2.** A kernel gives the right result in a hundred runs. Is it free of races?
#
# <details><summary>Answer</summary>
#
# Not for that reason. A race is a property of the accesses and the barriers, not of a result. It may show first when
# another card, or another load on it, changes who comes first.
#
# </details>
#
# **3.** Why may a barrier not stand inside `if (t < half)`?
#
# <details><summary>Answer</summary>
#
# Because all threads of the block must reach it. Those for which the condition is false never come, and the others wait
# for ever; or, on some cards, go on as if it were not there.
#
# </details>

# %% [markdown]
# ## What this does not show
#
# * Time. A processor that plays a card says what is asked for, not how long it takes.
# * Neighbourhood. 32 threads that read 32 numbers in a row are served at once, and 32 scattered ones are not; the
#   counts here do not tell them apart.
# * Products of matrices, which are most of a model's arithmetic: there libraries of the maker are hard to beat.

# %% [markdown]
# ## Now read
#
# - `tinyllm.backend.cuda.kernels`: how the engine's kernels are kept and built
# - `tinyllm.backend.cuda.nf4.nf4_dequantize`: who calls which of them
# - `tinyllm.course.cuda_on_cpu.raw.RawKernel`: how a processor plays a card
