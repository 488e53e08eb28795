"""Exercises of lesson 14: a kernel that cuts off, a race to mend, and codes packed by a kernel.

An answer is a kernel's text. It is compiled and run in a process of its own, which plays the card and sees every load,
store and barrier.
"""

from __future__ import annotations

import atexit
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.cuda_on_cpu import compiler
from tinyllm.course.exercise import Chaff, Exercise, Property, Wrong, demand
from tinyllm.course.judge.rooms import Process

CARD = """
def launch(text, name, blocks, threads, arguments, order):
    from tinyllm.course.cuda_on_cpu import RawKernel, settings
    with settings(order=order):
        RawKernel(text, name)((blocks,), (threads,), tuple(arguments))
    return arguments
"""


@cache
def card() -> Process:
    process = Process(CARD, "card.py", seconds=30)
    atexit.register(process.close)
    return process


def lacking() -> str:
    return "" if compiler() else "g++ compiles the kernels, and is not installed: apt install g++, or Xcode's tools."


def launched(text: Any, name: str, blocks: int, threads: int, *arguments: Any, order: str = "forward") -> list[Any]:
    """The arguments after a launch; raises `Wrong` with the card's words."""
    demand(isinstance(text, str), f"it must return the kernel's text, not a {type(text).__name__}")
    answer = card().call("launch", (text, name, blocks, threads, list(arguments), order))
    if answer.raised:
        said = " ".join(answer.said.split())
        raise Wrong(f"{blocks} blocks of {threads} threads: {answer.raised}{': ' + said if said else ''}")
    return answer.value


# ------------------------------------------------------------------------------------------------ 14-map

HEAD = 'extern "C" __global__ void clip(const float* x, float* y, float low, float high, int n) {\n'


def clip_kernel() -> str:
    return (
        HEAD + "int i = blockIdx.x * blockDim.x + threadIdx.x;\nif (i < n) y[i] = fminf(fmaxf(x[i], low), high);\n}\n"
    )


def clip_kernel_strided() -> str:
    return HEAD + (
        "for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {\n"
        "float v = x[i];\nif (v < low) v = low;\nif (v > high) v = high;\ny[i] = v;\n}\n}\n"
    )


def clips(sizes: tuple[int, ...], spare: int) -> Any:
    def law(call: Any) -> None:
        text = call()
        for n in sizes:
            x = ((np.arange(n) * 7 % 23 - 11) / 4).astype(np.float32)
            blocks = -(-n // 8) + spare
            args = x, np.full(n, 99, np.float32), np.float32(-1.5), np.float32(2), np.int32(n)
            y = launched(text, "clip", blocks, 8, *args)[1]
            wrong = np.flatnonzero(y != np.clip(x, -1.5, 2))
            if len(wrong):
                i = int(wrong[0])
                raise Wrong(
                    f"n = {n}: x[{i}] is {x[i]}, low -1.5, high 2, and y[{i}] is {y[i]}", np.clip(x, -1.5, 2), y
                )

    return law


def _clip(index: str = "blockIdx.x * blockDim.x + threadIdx.x", guard: str = "i < n", value: str = "") -> Any:
    value = value or "fminf(fmaxf(x[i], low), high)"
    return lambda: HEAD + f"int i = {index};\nif ({guard}) y[i] = {value};\n}}\n"


FULL, ANY_N, SPARE = "blocks that are full", "any n", "more blocks than are needed"
MAP = Exercise(
    id="14-map",
    minutes=15,
    importance=5,
    reference=clip_kernel,
    wheats=(clip_kernel, clip_kernel_strided),
    properties=(
        Property(FULL, st.just(()), law=clips((8, 24), 0)),
        Property(ANY_N, st.just(()), law=clips((1, 7, 9, 31), 0), points=2),
        Property(SPARE, st.just(()), law=clips((8, 13), 2)),
    ),
    chaffs=(
        Chaff("no guard", _clip(guard="true"), ANY_N, "What does thread 7 of the last block do if n is 31?"),
        Chaff("the block forgotten", _clip(index="threadIdx.x"), FULL, "Every block has a thread 0."),
        Chaff("one past the end", _clip(guard="i <= n"), ANY_N, "Which is the last place of n?"),
        Chaff("low alone", _clip(value="fmaxf(x[i], low)"), FULL, "Cut off at both ends."),
        Chaff(
            "low and high swapped", _clip(value="fminf(fmaxf(x[i], high), low)"), FULL, "At least low, at most high."
        ),
    ),
    hints=("One thread for one number; a thread beyond n does nothing.",),
    read="tinyllm.course.cuda_on_cpu.RawKernel",
    lacking=lacking,
)

# ------------------------------------------------------------------------------------------------ 14-race

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
BARRIER = "__syncthreads();"
LOAD, RIGHT, MEAN = SMOOTH.splitlines()[4:7]


def mended(text: str) -> str:
    return text.replace(LOAD, f"{LOAD}\n    {BARRIER}").replace(RIGHT, f"{RIGHT}\n    {BARRIER}")


def mended_by_lines(text: str) -> str:
    lines = text.splitlines(keepends=True)
    for i in reversed(range(len(lines))):
        if "part[t] = x[t]" in lines[i] or "float right" in lines[i]:
            lines.insert(i + 1, f"    {BARRIER}\n")
    return "".join(lines)


def smooths(call: Any, text: str) -> None:
    found = call(text)
    demand(isinstance(found, str), f"it must return a text, not a {type(found).__name__}")
    demand("".join(found.replace(BARRIER, "").split()) == "".join(text.split()), "only barriers may be added")
    for n in (1, 2, 33, 64):
        x = np.arange(n, dtype=np.float32) ** 2
        wanted = (x + np.append(x[1:], np.float32(0))) / 2
        for order in ("forward", "reverse"):
            got = launched(found, "smooth", 1, 64, x, np.int32(n), order=order)[0]
            if (got != wanted).any():
                raise Wrong(f"n = {n}: the means are wrong when the threads run in {order} order", wanted, got)


def few(call: Any, text: str) -> None:
    found = call(text)
    demand(isinstance(found, str), f"it must return a text, not a {type(found).__name__}")
    many = found.count(BARRIER) - text.count(BARRIER)
    demand(many <= 2, f"you added {many} barriers, and fewer are enough")


def _barriers(*after: str, inside: bool = False) -> Any:
    def wrong(text: str) -> str:
        for line in after:
            new = f"{line}\n    {'if (t < n) ' if inside else ''}{BARRIER}"
            text = text.replace(line, new)
        return text

    return wrong


NO_RACE, FEW = "right for every order of the threads", "no barrier too many"
RACE = Exercise(
    id="14-race",
    minutes=15,
    importance=4,
    reference=mended,
    wheats=(mended, mended_by_lines),
    properties=(
        Property(NO_RACE, st.just((SMOOTH,)), law=smooths, points=3),
        Property(FEW, st.just((SMOOTH,)), law=few),
    ),
    chaffs=(
        Chaff("one barrier alone", _barriers(LOAD), NO_RACE, "Who may still be reading what you are about to write?"),
        Chaff("the second alone", _barriers(RIGHT), NO_RACE, "Has your neighbour loaded its number when you read it?"),
        Chaff("one after every line", _barriers(LOAD, RIGHT, MEAN), FEW, "Who reads part[t] in the last line?"),
        Chaff(
            "a barrier that some do not reach",
            _barriers(LOAD, RIGHT, inside=True),
            NO_RACE,
            "All threads must come to a barrier, or none.",
        ),
        Chaff("nothing done", lambda text: text, NO_RACE, "Which two lines must not overlap between two threads?"),
    ),
    hints=("A place that one thread writes and another reads needs a barrier between the two.",),
    read="tinyllm.course.cuda_on_cpu.RawKernel",
    lacking=lacking,
)

# ------------------------------------------------------------------------------------------------ 14-pack

PACK_HEAD = (
    'extern "C" __global__ void pack(const float* scaled, const float* middle, unsigned char* packed, int n) {\n'
    "int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
)


def pack_kernel() -> str:
    return PACK_HEAD + (
        "if (2 * i >= n) return;\nint first = 0, second = 0;\nfor (int k = 0; k < 15; k++) {\n"
        "first += middle[k] < scaled[2 * i];\nsecond += middle[k] < scaled[2 * i + 1];\n}\n"
        "packed[i] = first << 4 | second;\n}\n"
    )


def pack_kernel_loop() -> str:
    return PACK_HEAD + (
        "if (i < n / 2) {\nunsigned char byte = 0;\nfor (int j = 0; j < 2; j++) {\nfloat v = scaled[2 * i + j];\n"
        "int code = 0;\nwhile (code < 15 && middle[code] < v) code++;\nbyte = byte << 4 | code;\n}\n"
        "packed[i] = byte;\n}\n}\n"
    )


MIDDLE = ((np.arange(15) - 7) / 8).astype(np.float32)


SEEDED = np.random.default_rng(0).uniform(-1, 1, 64).astype(np.float32)


def packs(sizes: tuple[int, ...], ties: bool = False) -> Any:
    def law(call: Any) -> None:
        text = call()
        for n in sizes:
            scaled = np.resize(MIDDLE if ties else SEEDED, n)
            codes = (MIDDLE[None] < scaled[:, None]).sum(axis=1)
            wanted = (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)
            got = launched(
                text, "pack", -(-n // 16) + 1, 8, scaled, MIDDLE, np.full(n // 2, 255, np.uint8), np.int32(n)
            )[2]
            if (got != wanted).any():
                i = int(np.flatnonzero(got != wanted)[0])
                raise Wrong(
                    f"n = {n}: byte {i} must be {wanted[i]:#04x}, of the codes {codes[2 * i]} and {codes[2 * i + 1]}, "
                    f"and is {got[i]:#04x}", wanted, got,
                )  # fmt: skip

    return law


def _packed(byte: str = "first << 4 | second", less: str = "<", guard: str = "2 * i >= n", top: int = 15) -> Any:
    return lambda: (
        PACK_HEAD
        + (
            f"if ({guard}) return;\nint first = 0, second = 0;\nfor (int k = 0; k < {top}; k++) {{\n"
            f"first += middle[k] {less} scaled[2 * i];\nsecond += middle[k] {less} scaled[2 * i + 1];\n}}\n"
            f"packed[i] = {byte};\n}}\n"
        )
    )


BYTES, TIES, SPARE_THREADS = "codes and bytes", "numbers on a midpoint", "threads without a byte"
PACK = Exercise(
    id="14-pack",
    minutes=25,
    importance=3,
    reference=pack_kernel,
    wheats=(pack_kernel, pack_kernel_loop),
    properties=(
        Property(BYTES, st.just(()), law=packs((16, 48)), points=2),
        Property(TIES, st.just(()), law=packs((16,), ties=True)),
        Property(SPARE_THREADS, st.just(()), law=packs((2, 18, 30))),
    ),
    chaffs=(
        Chaff(
            "nibbles swapped",
            _packed("second << 4 | first"),
            BYTES,
            "The first number goes into the upper four bits.",
            "imp #567",
        ),
        Chaff("a midpoint counts", _packed(less="<="), TIES, "How many midpoints lie *below* it?"),
        Chaff(
            "a thread for each number",
            _packed(guard="i >= n"),
            SPARE_THREADS,
            "One thread makes one byte. How many are there?",
        ),
        Chaff("a midpoint too few", _packed(top=14), BYTES, "There are fifteen midpoints between sixteen levels."),
        Chaff("bits added, not placed", _packed("first + second"), BYTES, "How far must the first code move?"),
    ),
    hints=("Thread i reads scaled[2 i] and scaled[2 i + 1].",),
    read="tinyllm.course.cuda_on_cpu.RawKernel",
    lacking=lacking,
)

EXERCISES = (MAP, RACE, PACK)
