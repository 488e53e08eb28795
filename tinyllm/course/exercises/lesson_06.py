"""Exercises of lesson 6: a file's header, one number rounded by hand, and where a difference begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, demand
from tinyllm.course.exercises.cases import SIDES, whole

Array = np.ndarray
Found = dict[str, tuple[str, tuple[int, ...], int]]

# ------------------------------------------------------------------------------------------------ 06-header


def summary(data: bytes) -> Found:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError
    header = json.loads(data[8 : 8 + length])
    room = len(data) - 8 - length
    found: Found = {}
    taken: list[tuple[int, int]] = []
    for name, about in header.items():
        if name == "__metadata__":
            continue
        first, end = about["data_offsets"]
        if not 0 <= first <= end <= room:
            raise ValueError
        if any(first < other_end and other < end for other, other_end in taken):
            raise ValueError
        taken.append((first, end))
        found[name] = about["dtype"], tuple(about["shape"]), end - first
    return found


def summary_sorted(data: bytes) -> Found:
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise ValueError("the header is longer than the file")
    header = {k: v for k, v in json.loads(data[8:start].decode()).items() if k != "__metadata__"}
    spans = sorted(tuple(v["data_offsets"]) for v in header.values() if v["data_offsets"][0] != v["data_offsets"][1])
    for (_, end), (begin, _) in zip(spans, spans[1:], strict=False):
        if begin < end:
            raise ValueError("arrays overlap")
    for v in header.values():
        first, end = v["data_offsets"]
        if first < 0 or end < first or end > len(data) - start:
            raise ValueError("an array lies outside")
    return {k: (v["dtype"], tuple(v["shape"]), v["data_offsets"][1] - v["data_offsets"][0]) for k, v in header.items()}


def _summary(
    header: bool = True, outside: bool = True, overlap: bool = True, order: Any = "little", size: Any = None
) -> Any:
    def wrong(data: bytes) -> Found:
        length = int.from_bytes(data[:8], order)
        if header and length > len(data) - 8:
            raise ValueError
        about = {k: v for k, v in json.loads(data[8 : 8 + length]).items() if k != "__metadata__"}
        spans: list[tuple[int, int]] = []
        for v in about.values():
            first, end = v["data_offsets"]
            if outside and not 0 <= first <= end <= len(data) - 8 - length:
                raise ValueError
            if overlap and any(first < e and f < end for f, e in spans):
                raise ValueError
            spans.append((first, end))
        many = size or (lambda v: v["data_offsets"][1] - v["data_offsets"][0])
        return {k: (v["dtype"], tuple(v["shape"]), many(v)) for k, v in about.items()}

    return wrong


BYTES = {"F32": 4, "F16": 2, "I64": 8}


@st.composite
def files(draw: Any, fault: str = "") -> tuple[bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if draw(st.booleans()) else {}
    at = 0
    many = {"": (0, 3), "header": (0, 0)}.get(fault, (2, 3))  # json notices by itself where bytes follow
    for name in "abc"[: draw(st.integers(*many))]:
        dtype, shape = draw(st.sampled_from(sorted(BYTES))), draw(st.lists(SIDES, max_size=2))
        n = BYTES[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    if fault == "outside":
        span = header[name]["data_offsets"] if draw(st.booleans()) else header["a"]["data_offsets"]
        span[:] = [span[0], at + draw(st.integers(1, 9))] if span[0] else [-draw(st.integers(1, 9)), span[1]]
    if fault == "overlap":
        header[name]["data_offsets"][0] -= draw(st.integers(1, 2))
    header = {k: header[k] for k in draw(st.permutations(list(header)))}
    text = json.dumps(header).encode()
    length = len(text) + (draw(st.integers(1, 9)) if fault == "header" else 0)
    short = draw(st.sampled_from([0, 0, 1, 5, 7])) if fault == "header" else 0
    return (bytes(short) or length.to_bytes(8, "little") + text + bytes(at),)


WHOLE, LONG, OUTSIDE, OVERLAP = "a file that is whole", "a header too long", "bytes outside of the file", "bytes shared"
HEADER = Exercise(
    id="06-header",
    minutes=15,
    importance=4,
    reference=summary,
    wheats=(summary, summary_sorted),
    properties=(
        Property(WHOLE, files(), points=2),
        Property(LONG, files("header")),
        Property(OUTSIDE, files("outside")),
        Property(OVERLAP, files("overlap")),
    ),
    chaffs=(
        Chaff(
            "the header believed",
            _summary(header=False),
            LONG,
            "Python cuts a slice off at the end of the file, without a word.",
        ),
        Chaff("an array outside", _summary(outside=False), OUTSIDE, "How many bytes are there behind the header?"),
        Chaff("arrays that overlap", _summary(overlap=False), OVERLAP, "May two arrays share bytes?"),
        Chaff("the other byte order", _summary(order="big"), WHOLE, "The length is little-endian."),
        Chaff(
            "numbers, not bytes",
            _summary(size=lambda v: int(np.prod(v["shape"]))),
            WHOLE,
            "How many bytes does a number of this dtype have?",
        ),
        Chaff(
            "four bytes each",
            _summary(size=lambda v: 4 * int(np.prod(v["shape"]))),
            WHOLE,
            "Not every array is float32. The offsets know.",
        ),
    ),
    hints=("The offsets count from the end of the header on.",),
    read="tinyllm.formats.safetensors_file.read_header",
)

# ------------------------------------------------------------------------------------------------ 06-round

ONES = 0x7F800000


def rounded(bits: int) -> int:
    upper, lower = bits >> 16, bits & 0xFFFF
    if bits & ONES == ONES and bits & 0x7FFFFF:
        return upper | 0x40
    if lower > 0x8000 or (lower == 0x8000 and upper & 1):
        upper += 1
    return upper


def rounded_by_adding(bits: int) -> int:
    if bits & 0x7FFFFFFF > ONES:
        return bits >> 16 | 1
    return bits + 0x7FFF + (bits >> 16 & 1) >> 16


def nearest(call: Any, bits: int) -> None:
    """Any NaN of the same sign for a NaN; for everything else one answer."""
    found, wanted = call(bits), rounded(bits)
    demand(isinstance(found, int | np.integer) and not isinstance(found, bool), "it must be a whole number")
    if bits & ONES == ONES and bits & 0x7FFFFF:
        demand(found & 0x7F80 == 0x7F80 and found & 0x7F, f"{bits:#010x} is a NaN, and {int(found):#06x} is none")
        demand(found >> 15 == bits >> 31, "the sign of the NaN is lost")
    else:
        demand(found == wanted, f"{bits:#010x} rounds to {wanted:#06x}, not to {int(found):#06x}")


def _rounded(up: Callable[[int, int], bool], nan: bool = True) -> Any:
    def wrong(bits: int) -> int:
        upper, lower = bits >> 16, bits & 0xFFFF
        if nan and bits & ONES == ONES and bits & 0x7FFFFF:
            return upper | 0x40
        return upper + up(upper, lower)

    return wrong


def _even(upper: int, lower: int) -> bool:
    return lower > 0x8000 or lower == 0x8000 and bool(upper & 1)


FINITE = st.tuples(st.integers(0, 1), st.integers(0, 0x7F7F), st.integers(0, 0xFFFF))
ANY_BITS = FINITE.map(lambda x: x[0] << 31 | x[1] << 16 | x[2])
HALVES = FINITE.map(lambda x: x[0] << 31 | x[1] << 16 | 0x8000 + (0, 0, 1, -1)[x[2] % 4])
NANS = st.tuples(st.integers(0, 1), st.integers(1, 0x7FFFFF) | st.integers(1, 0xFFFF)).map(
    lambda x: x[0] << 31 | ONES | x[1]
)
ENDS = st.sampled_from([0, 1 << 31, ONES, 1 << 31 | ONES, 0x7F7FFFFF, 0x7F7F8000, 1, 0x8000, 0x18000])
BETWEEN, TIES, NAN, EDGES = "any finite number", "ties", "NaN", "zeros, infinities and the largest"
ROUND = Exercise(
    id="06-round",
    minutes=15,
    importance=4,
    reference=rounded,
    wheats=(rounded, rounded_by_adding),
    properties=(
        Property(BETWEEN, st.tuples(ANY_BITS), law=nearest),
        Property(TIES, st.tuples(HALVES), law=nearest),
        Property(NAN, st.tuples(NANS), law=nearest),
        Property(EDGES, st.tuples(ENDS), law=nearest),
    ),
    chaffs=(
        Chaff("cut off", _rounded(lambda u, x: False), BETWEEN, "What if the lower half is nearly all ones?"),
        Chaff("ties up", _rounded(lambda u, x: x >= 0x8000), TIES, "Of two that are equally near, the even one."),
        Chaff("ties down", _rounded(lambda u, x: x > 0x8000), TIES, "Of two that are equally near, the even one."),
        Chaff(
            "ties to odd",
            _rounded(lambda u, x: x > 0x8000 or x == 0x8000 and not u & 1),
            TIES,
            "Even: the last bit is 0.",
        ),
        Chaff(
            "NaN becomes infinite", _rounded(_even, nan=False), NAN, "Digits in the lower half alone: where do they go?"
        ),
    ),
    hints=("Look at the lower half: below 0x8000, above it, or equal?",),
    read="tinyllm.backend.half.to_bfloat16",
    emptied=("tinyllm.backend.half.to_bfloat16",),
)

# ------------------------------------------------------------------------------------------------ 06-first

Outputs = dict[str, Array]


def first_difference(right: Outputs, wrong: Outputs, budget: float) -> str | None:
    for path, a in right.items():
        b = wrong[path]
        if a.shape != b.shape:
            return path
        if (np.isnan(b) & ~np.isnan(a)).any():
            return path
        size, off = float(np.sqrt((a * a).sum())), float(np.sqrt(((a - b) ** 2).sum()))
        if off > budget * size:
            return path
    return None


def first_difference_by_norm(right: Outputs, wrong: Outputs, budget: float) -> str | None:
    def differs(a: Array, b: Array) -> bool:
        if np.shape(a) != np.shape(b) or np.isnan(b).any():
            return True
        gap = np.linalg.norm(a - b)
        return bool(gap > 0 and (not a.any() or gap / np.linalg.norm(a) > budget))

    return next((path for path in right if differs(right[path], wrong[path])), None)


def _first(shape: bool = True, nan: bool = True, relative: bool = True, last: bool = False, zero: bool = True) -> Any:
    def wrong_(right: Outputs, wrong: Outputs, budget: float) -> str | None:
        found = []
        for path, a in right.items():
            b = wrong[path]
            if a.shape != b.shape:
                if shape:
                    found.append(path)
                    continue
                b = np.resize(b, a.shape)
            gap = float(np.linalg.norm(a - b))
            size = float(np.linalg.norm(a)) if relative else 1.0
            over = gap > budget * size if zero else np.divide(gap, size) > budget
            if over or nan and np.isnan(gap):
                found.append(path)
        return found[-1 if last else 0] if found else None

    return wrong_


@st.composite
def runs(draw: Any, fault: str) -> tuple[Outputs, Outputs, float]:
    right: Outputs = {}
    for name in "abcd"[: draw(st.integers(2, 4))]:
        x = draw(whole((draw(SIDES), draw(SIDES)), most=8))
        x[0, 0] = draw(st.integers(1, 8))
        right[name] = x * 0 if fault == "zeros" and draw(st.booleans()) else x
    wrong = {name: x * (1 + draw(st.sampled_from([0.0, 2.0**-12]))) for name, x in right.items()}
    for name in draw(st.lists(st.sampled_from(sorted(right)), max_size=2, unique=True)):
        x = wrong[name].copy()
        if fault == "shape":
            x = np.append(x, x[:1], axis=0)
        else:
            x[0, 0] = np.nan if fault == "nan" else x[0, 0] * 1.5 + 8
        wrong[name] = x
    scale = draw(st.sampled_from([1.0, 2.0**-20, 2.0**10]))
    return {k: v * scale for k, v in right.items()}, {k: v * scale for k, v in wrong.items()}, 2.0**-8


NUMBERS, SHAPES, NAN_ALONE, ZERO = "numbers that differ", "another shape", "a NaN in one alone", "arrays of zeros"
FIRST = Exercise(
    id="06-first",
    minutes=10,
    importance=5,
    reference=first_difference,
    wheats=(first_difference, first_difference_by_norm),
    properties=(
        Property(NUMBERS, runs(""), points=2),
        Property(SHAPES, runs("shape")),
        Property(NAN_ALONE, runs("nan")),
        Property(ZERO, runs("zeros")),
    ),
    chaffs=(
        Chaff("absolute", _first(relative=False), NUMBERS, "A millionth is much where all is a millionth."),
        Chaff(
            "the last difference", _first(last=True), NUMBERS, "Everything behind the first one is wrong because of it."
        ),
        Chaff("NaN is never larger", _first(nan=False), NAN_ALONE, "Every comparison with NaN is false."),
        Chaff("divided by zero", _first(zero=False), ZERO, "What is the relative difference of two arrays of zeros?"),
        Chaff("the shape not looked at", _first(shape=False), SHAPES, "NumPy broadcasts, or repeats, without a word."),
    ),
    hints=("Compare the norm of the difference with budget times the norm of what is right.",),
)

EXERCISES = (HEADER, ROUND, FIRST)
