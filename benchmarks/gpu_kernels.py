"""Kernel speed on a card: bytes moved a second beside a plain copy of as many bytes. Called by `gpu.py`.

A call of a few microseconds cannot be timed alone, so events stand around batches of calls, and the median of the
batches counts. The buffers rotate, so that no call finds its data in the second-level cache; the data is random, not
zeros.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyllm.backend import BACKENDS
from tinyllm.backend.cuda.kernels import kernel
from tinyllm.backend.nf4 import NF4_LEVELS, NF4_MIDPOINTS

CACHE = 120 << 20  # more than the second-level cache of any card today (H100: 50 MB, B200: 126)
i32, i64 = np.int32, np.int64


def seconds_a_call(xp: Any, calls: list[Callable[[], Any]], dry: bool, batches: int = 15, batch: int = 20) -> float:
    """The median over `batches` of the mean time of a call; the calls are taken in turn."""
    calls[0]()
    if dry:
        began = time.perf_counter()
        calls[0]()
        return time.perf_counter() - began
    for call in calls:
        call()
    taken = []
    for _ in range(batches):
        start, end = xp.cuda.Event(), xp.cuda.Event()
        start.record()
        for i in range(batch):
            calls[i % len(calls)]()
        end.record()
        end.synchronize()
        taken.append(xp.cuda.get_elapsed_time(start, end) / 1e3 / batch)
    return statistics.median(taken)


def copy_speed(xp: Any, size: int, dry: bool) -> float:
    """Bytes a second of a device-to-device copy that reads and writes `size` bytes altogether."""
    half = max(size // 2, 16)
    sources = [
        xp.asarray(np.random.default_rng(0).integers(0, 255, half, np.uint8)) for _ in range(rotations(size, dry))
    ]
    target = xp.empty(half, np.uint8)

    def copy(source: Any) -> Callable[[], Any]:
        return lambda: target.__setitem__(slice(None), source)

    return 2 * half / seconds_a_call(xp, [copy(source) for source in sources], dry)


def rotations(size: int, dry: bool) -> int:
    return 1 if dry else max(2, -(-2 * CACHE // size))


def cases(
    xp: Any, rows: int, columns: int, vocabulary: int, dtype: Any
) -> Iterator[tuple[str, int, Callable[[], Callable]]]:
    """(name, bytes moved, maker of one call with buffers of its own) for every kernel, at one size and dtype."""
    be, n = BACKENDS["cuda"], rows * columns
    rng, e, name = np.random.default_rng(0), np.dtype(dtype).itemsize, np.dtype(dtype).name
    drawn = rng.standard_normal(1 << 20, np.float32)  # drawing as many numbers as are moved would take minutes

    def draw(*shape: int, dtype: Any = dtype) -> Any:
        return xp.asarray(np.resize(drawn, shape)).astype(dtype)

    def codes(count: int) -> tuple[Any, Any]:
        packed = xp.asarray(rng.integers(0, 256, count // 2).astype(np.uint8))
        return packed, xp.asarray(rng.random(count // 64).astype(np.float32))

    def pack(rung: str) -> Callable[[], Callable]:
        size = {"v1": n // 64, "v2": -(-n // 256) * 32}[rung]

        def make() -> Callable:
            arrays = (
                draw(n),
                xp.asarray(NF4_MIDPOINTS),
                i32(64),
                i64(n),
                xp.empty(n // 2, np.uint8),
                xp.empty(n // 64, np.float32),
            )
            return lambda: kernel(f"nf4_pack_{rung}").build(xp, name)(*arrays, size=size)

        return make

    def unpack(rung: str) -> Callable[[], Callable]:
        def make() -> Callable:
            packed, absmax = codes(n)
            levels, y = xp.asarray(NF4_LEVELS), xp.empty(n, dtype)
            k = kernel(f"nf4_unpack_{rung}").build(xp, name)
            if rung == "v1":
                return lambda: k(packed, absmax, levels, i32(64), y)
            if rung == "v2":
                return lambda: k(packed, absmax, levels, i32(6), i64(n), y, size=n // 8)
            grid = min(-(-n // 2048), 1024)
            return lambda: k((grid,), (256,), (packed, absmax, levels, i32(6), i64(n), y))

        return make

    four_bit = n // 2 + n // 64 * 4
    for rung in ("v1", "v2"):
        yield f"nf4_pack_{rung}", n * e + four_bit, pack(rung)
    for rung in ("v1", "v2", "v3"):
        yield f"nf4_unpack_{rung}", n * e + four_bit, unpack(rung)

    def call(primitive: str, *arguments: Any) -> Callable:
        return lambda: getattr(be, primitive)(*arguments)

    yield "nf4_matvec", four_bit, lambda: call("nf4_matvec", draw(1, columns), *codes(n), 64, rows)
    gain = draw(columns, dtype=np.float32)
    yield "rms_norm", 2 * n * e, lambda: call("rms_norm", draw(rows, columns), gain, 1e-5)
    inverse = draw(rows, 1, dtype=np.float32)
    yield (
        "rms_norm_backward",
        3 * n * e,
        lambda: call("rms_norm_backward", draw(rows, columns), draw(rows, columns), gain, inverse),
    )
    yield "layer_norm", 2 * n * e, lambda: call("layer_norm", draw(rows, columns), gain, gain, 1e-5)
    yield (
        "layer_norm_backward",
        3 * n * e,
        lambda: call("layer_norm_backward", draw(rows, columns), draw(rows, columns), gain, inverse, inverse),
    )
    yield "softmax", 2 * n * e, lambda: call("softmax", draw(rows, columns))
    yield "softmax_backward", 3 * n * e, lambda: call("softmax_backward", draw(rows, columns), draw(rows, columns))
    few = max(1, n // vocabulary)
    labels, each, lse = (
        xp.asarray(rng.integers(0, vocabulary, few)),
        draw(few, dtype=np.float32),
        draw(few, dtype=np.float32),
    )
    yield "cross_entropy", few * vocabulary * e, lambda: call("cross_entropy", draw(few, vocabulary), labels)

    def backward_in_place() -> Callable:
        logits = draw(few, vocabulary)
        return call("cross_entropy_backward", each, logits, labels, lse, logits)

    yield "cross_entropy_backward", 2 * few * vocabulary * e, backward_in_place
    yield "silu_mul", 3 * n * e, lambda: call("silu_mul", draw(n), draw(n))
    yield "silu_mul_backward", 5 * n * e, lambda: call("silu_mul_backward", draw(n), draw(n), draw(n))
    yield "gelu", 2 * n * e, lambda: call("gelu", draw(n), True)
    yield "gelu_backward", 3 * n * e, lambda: call("gelu_backward", draw(n), draw(n), True)
    width = min(128, columns)
    angles = draw(1, 1, rows, width // 2, dtype=np.float32)
    yield "rope", 2 * n * e, lambda: call("rope", draw(1, columns // width, rows, width), angles, angles)
    yield "dropout_mask", n * e, lambda: call("dropout_mask", (1, 2), (n,), 0.1, dtype)
    moments = [draw(n, dtype=np.float32) for _ in range(4)]
    moments[3] *= moments[3]
    yield "adamw_step", 28 * n, lambda: call("adamw_step", *moments, 2, 1e-3, 0.9, 0.99, 1e-8, 0.1)
    ids = xp.asarray(rng.integers(0, vocabulary, rows))
    yield (
        "embedding_grad",
        n * e + vocabulary * columns * e,
        lambda: call("embedding_grad", draw(rows, columns), ids, vocabulary),
    )


def bandwidths(xp: Any, dry: bool) -> list[dict[str, Any]]:
    """One record a kernel: bytes, microseconds, GB/s, and the share of a copy's speed."""
    rows, columns, vocabulary = (8, 64, 96) if dry else (4096, 4096, 32000)
    copies: dict[int, float] = {}
    records = []
    for dtype in map(np.dtype, ("bfloat16", "float32")):
        for name, size, make in cases(xp, rows, columns, vocabulary, dtype):
            calls = [make() for _ in range(rotations(size, dry))]
            taken = seconds_a_call(xp, calls, dry)
            key = 1 << (size.bit_length() - 1)  # a copy of about that size
            copies.setdefault(key, copy_speed(xp, key, dry))
            record = {"kernel": name, "dtype": np.dtype(dtype).name, "bytes": size, "microseconds": taken * 1e6}
            records.append(record | {"GB/s": size / taken / 1e9, "of_copy": size / taken / copies[key]})
            del calls
    return records
