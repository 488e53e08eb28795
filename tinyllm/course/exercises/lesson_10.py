"""Exercises of lesson 10: an even quantiser, NF4's levels, codes of any width, and the largest kept apart."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, Variant, demand
from tinyllm.course.exercises.cases import SIDES, real, whole

Array = np.ndarray

# ------------------------------------------------------------------------------------------------ 10-absmax


def absmax_quantize(x: Array, bits: int) -> tuple[Array, np.float32]:
    top = 2 ** (bits - 1) - 1
    scale = np.float32(max(abs(v) for v in x) / np.float32(top))
    codes = [0 if scale == 0 else round(float(v) / float(scale)) for v in x]
    return np.array(codes, np.int8), scale


def absmax_at_once(x: Array, bits: int) -> tuple[Array, np.float32]:
    scale = np.float32(np.abs(x).max() / (2 ** (bits - 1) - 1))
    return np.rint(x / (scale or 1)).astype(np.int8), scale


def even(call: Any, x: Array, bits: int) -> None:
    """Codes and a scale as asked for; of a number in the middle between two codes either one."""
    found = call(x, bits)
    demand(isinstance(found, tuple | list) and len(found) == 2, "it must return the pair codes, scale")
    codes, scale = found
    demand(isinstance(codes, np.ndarray) and codes.shape == x.shape, f"codes must be an array of the shape {x.shape}")
    demand(codes.dtype == np.int8, f"codes must be int8, not {codes.dtype}")
    demand(np.asarray(scale).dtype == np.float32, f"the scale must be float32, not {np.asarray(scale).dtype}")
    wanted = float(abs(x).max()) / (2 ** (bits - 1) - 1)
    off = abs(float(scale) - wanted)
    demand(
        off <= 4 * np.finfo(np.float32).eps * wanted, f"the scale is {float(scale):.6g}, and it must be {wanted:.6g}"
    )
    exact = x.astype(np.float64) / (wanted or 1)
    worst = float(abs(codes - exact).max())
    demand(worst <= 0.5 + 1e-4, f"a code is {worst:.3g} away from x / scale, and the nearest is 0.5 away at most")


def _even(top: Callable[[int], int], size: Callable[[Array], Any], code: Callable[[Array], Array] = np.rint) -> Any:
    def wrong(x: Array, bits: int) -> tuple[Array, np.float32]:
        scale = np.float32(size(x) / top(bits))
        return code(x / (scale or 1)).astype(np.int8), scale

    return wrong


def _seven(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _no_zero(x: Array, bits: int) -> tuple[Array, np.float32]:
    scale = np.float32(np.abs(x).max() / _seven(bits))
    return np.rint(x / scale).astype(np.int8), scale


LINES = SIDES.flatmap(lambda n: st.tuples(whole((n,), np.float32, 9).filter(lambda x: x.any()), st.integers(2, 8)))
LONG = st.tuples(real((64,), np.float32, 0.02), st.sampled_from([3, 4, 8]))
SMALL, WEIGHTS, ZEROS = "small whole numbers", "a block of weights", "an array of zeros"
ABSMAX = Exercise(
    id="10-absmax",
    minutes=10,
    importance=3,
    reference=absmax_quantize,
    wheats=(absmax_quantize, absmax_at_once),
    properties=(
        Property(SMALL, LINES, law=even),
        Property(WEIGHTS, LONG, law=even),
        Property(ZEROS, st.tuples(SIDES.map(lambda n: np.zeros(n, np.float32)), st.integers(2, 8)), law=even),
    ),
    chaffs=(
        Chaff("divided by zero", _no_zero, ZEROS, "What is x / scale where the scale is 0?"),
        Chaff("cut off instead of rounded", _even(_seven, lambda x: abs(x).max(), np.trunc), SMALL, "astype cuts off."),
        Chaff(
            "the largest, not the largest magnitude",
            _even(_seven, lambda x: x.max()),
            SMALL,
            "What if all are negative?",
        ),
        Chaff("one code too many", _even(lambda b: 2 ** (b - 1), lambda x: abs(x).max()), SMALL, "Four bits: -7 to 7."),
        Chaff(
            "always down",
            _even(_seven, lambda x: abs(x).max(), np.floor),
            SMALL,
            "The nearest whole number is asked for.",
        ),
    ),
    hints=("Divide by 1 instead of the scale where the scale is 0.",),
    read="tinyllm.backend.double_quant.quantize_absmax",
)

# ------------------------------------------------------------------------------------------------ 10-levels


def normal_levels(bits: int) -> Array:
    k = 2**bits
    outermost = 1 - (1 / (2 * k) + 1 / (2 * k - 2)) / 2
    quantile = NormalDist().inv_cdf
    levels = [0.0]
    for many, sign in ((k // 2, 1), (k // 2 - 1, -1)):
        for i in range(1, many + 1):
            levels.append(sign * quantile(0.5 + i * (outermost - 0.5) / many))
    return np.array(sorted(levels)) / max(levels)


def normal_levels_spaced(bits: int) -> Array:
    k = 2**bits
    outermost = 1 - (1 / (2 * k) + 1 / (2 * k - 2)) / 2
    above, below = (
        np.vectorize(NormalDist().inv_cdf)(np.linspace(0.5, outermost, many + 1)[1:]) for many in (k // 2, k // 2 - 1)
    )
    levels = np.concatenate([-below[::-1], [0.0], above])
    return levels / levels.max()


def _levels(above: int = 0, below: int = -1, outermost: Any = None, divide: bool = True) -> Any:
    def wrong(bits: int) -> Array:
        k = 2**bits
        outer = outermost(k) if outermost else 1 - (1 / (2 * k) + 1 / (2 * k - 2)) / 2
        up, down = (np.linspace(0.5, outer, k // 2 + more + 1)[1:] for more in (above, below))
        q = NormalDist().inv_cdf
        found = np.array(sorted([*(q(p) for p in up), 0.0, *(-q(p) for p in down)]))
        return found / found.max() if divide else found

    return wrong


def _middles(bits: int) -> Array:
    k = 2**bits
    found = np.array([NormalDist().inv_cdf((i + 0.5) / k) for i in range(k)])
    return found / found.max()


FOUR, ANY_BITS = "four bits", "two to six bits"
LEVELS = Exercise(
    id="10-levels",
    minutes=20,
    importance=5,
    reference=normal_levels,
    wheats=(normal_levels, normal_levels_spaced),
    size=lambda bits: np.ones(2**bits),
    budget=64,
    properties=(
        Property(FOUR, st.just((4,)), points=2),
        Property(ANY_BITS, st.tuples(st.integers(2, 6)), points=2),
    ),
    chaffs=(
        Chaff(
            "quantiles in the middle of equal steps",
            _middles,
            FOUR,
            "Where is zero among your levels?",
            "published QLoRA notebooks",
        ),
        Chaff("as many below as above", _levels(below=0), FOUR, "How many levels do you have, with zero?"),
        Chaff("the longer side below zero", _levels(above=-1, below=0), FOUR, "Which side of zero has more levels?"),
        Chaff("not divided by the largest", _levels(divide=False), FOUR, "The largest level must be 1."),
        Chaff(
            "outermost is 1 - 1/2k",
            _levels(outermost=lambda k: 1 - 1 / (2 * k)),
            FOUR,
            "The mean of two shares is taken.",
        ),
        Chaff("a sixteenth everywhere", _levels(outermost=lambda k: 1 - (1 / 32 + 1 / 30) / 2), ANY_BITS, "What is k?"),
    ),
    hints=("`np.linspace(0.5, outermost, k // 2 + 1)[1:]` are the probabilities above zero.",),
    read="tinyllm.frozen.nf4.derive_nf4_levels",
    emptied=("tinyllm.frozen.nf4.derive_nf4_levels",),
)

# ------------------------------------------------------------------------------------------------ 10-pack


def pack_bits(codes: Array, bits: int) -> Array:
    text = "".join(format(int(code), f"0{bits}b") for code in codes)
    text += "0" * (-len(text) % 8)
    return np.array([int(text[i : i + 8], 2) for i in range(0, len(text), 8)], np.uint8)


def pack_bits_at_once(codes: Array, bits: int) -> Array:
    return np.packbits((codes[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8))


def _packed(order: str = "big", inside: int = -1, pad: bool = True) -> Any:
    def wrong(codes: Array, bits: int) -> Array:
        flat = (codes[:, None] >> np.arange(bits)[::inside] & 1).astype(np.uint8).reshape(-1)
        if not pad:
            flat = flat[: len(flat) // 8 * 8]
        return np.packbits(flat, bitorder=order)  # type: ignore[call-overload]

    return wrong


def _byte_each(codes: Array, bits: int) -> Array:
    return codes.astype(np.uint8)


def _halves(codes: Array, bits: int) -> Array:
    half = (len(codes) + 1) // 2
    second = np.concatenate([codes[half:], np.zeros(2 * half - len(codes), np.uint8)])
    return pack_bits(np.stack([codes[:half], second], axis=1).reshape(-1)[: len(codes) + len(codes) % 2], bits)


def _not_cleared(codes: Array, bits: int) -> Array:
    found, held, many = [], 0, 0
    for code in codes:
        held = held << bits | int(code)
        many += bits
        while many >= 8:
            many -= 8
            found.append(held >> many & 255)
            held |= 1 << many >> 1  # what was written stays in it
    if many:
        found.append(held << (8 - many) & 255)
    return np.array(found, np.uint8)


def codes_of(bits: Any, many: Any) -> Any:
    def drawn(b: int) -> Any:
        return many.flatmap(
            lambda n: st.lists(st.integers(0, 2**b - 1), min_size=n, max_size=n).map(
                lambda x: (np.array(x, np.uint8), b)
            )
        )

    return bits.flatmap(drawn)


NIBBLES, FULL, ODD = "pairs of nibbles", "codes that fill their bytes", "ends that fill no byte"
PACK = Exercise(
    id="10-pack",
    minutes=20,
    importance=4,
    reference=pack_bits,
    wheats=(pack_bits, pack_bits_at_once),
    properties=(
        Property(NIBBLES, codes_of(st.just(4), st.sampled_from([2, 4, 6]))),
        Property(FULL, codes_of(st.integers(1, 8), st.sampled_from([0, 8])), points=2),
        Property(ODD, codes_of(st.integers(1, 7), st.integers(1, 5))),
    ),
    chaffs=(
        Chaff("nibbles swapped", _packed("little", 1), NIBBLES, "The first code's bits come first.", "imp #567"),
        Chaff("the lowest bit first", _packed("big", 1), NIBBLES, "Each code's highest bit comes first."),
        Chaff("a byte for each code", _byte_each, NIBBLES, "How many codes of four bits does a byte hold?"),
        Chaff(
            "halves instead of neighbours",
            _halves,
            NIBBLES,
            "Neighbours share a byte: which codes are in your first one?",
            "1bit-MONSTER #572",
        ),
        Chaff("the last byte dropped", _packed(pad=False), ODD, "Where are the bits that filled no whole byte?"),
        Chaff(
            "the held bits not cleared",
            _not_cleared,
            FULL,
            "What is left of a byte once it is written?",
            "bitsandbytes #1721",
        ),
    ),
    variants=(
        Variant(
            "Each code's *lowest* bit comes first; the bytes are filled from the highest bit on, as before.",
            _packed("big", 1),
            lambda codes, bits: pack_bits_at_once(
                np.array([int(f"{c:0{bits}b}"[::-1], 2) for c in codes], np.uint8), bits
            ),
        ),
        Variant(
            "The last byte is filled up with *ones*.",
            lambda codes, bits: ~pack_bits(2**bits - 1 - codes, bits),
            lambda codes, bits: 255 - pack_bits_at_once(2**bits - 1 - codes, bits),
        ),
    ),
    hints=("`codes[:, None] >> np.arange(bits)[::-1] & 1` are the bits, a row for each code.",),
    read="tinyllm.backend.nf4.nf4_quantize",
    emptied=("tinyllm.backend.nf4.nf4_quantize",),
)

# ------------------------------------------------------------------------------------------------ 10-outlier


def rounded_apart(block: Array, levels: Array, keep: int) -> Array:
    order = sorted(range(len(block)), key=lambda i: (-abs(block[i]), i))
    kept, rest = order[:keep], order[keep:]
    scale = max(abs(block[i]) for i in rest)
    found = np.zeros(len(block))
    for i in kept:
        found[i] = block[i]
    for i in rest:
        if scale > 0:
            found[i] = min(levels, key=lambda level: (abs(block[i] / scale - level), level)) * scale
    return found


def rounded_apart_at_once(block: Array, levels: Array, keep: int) -> Array:
    rest = np.ones(len(block), bool)
    rest[np.argsort(-np.abs(block), kind="stable")[:keep]] = False
    scale = np.abs(block[rest]).max() or 1.0
    codes = np.searchsorted((levels[:-1] + levels[1:]) / 2, block / scale)
    return np.where(rest, levels[codes] * (scale if block[rest].any() else 0), block)


def _apart(order: Any = None, own: bool = True, side: str = "left", safe: bool = True) -> Any:
    def wrong(block: Array, levels: Array, keep: int) -> Array:
        rest = np.ones(len(block), bool)
        rest[np.argsort(order(block) if order else -np.abs(block), kind="stable")[:keep]] = False
        scale = np.abs(block[rest] if own else block).max()
        scale = scale or 1.0 if safe else scale
        codes = np.searchsorted((levels[:-1] + levels[1:]) / 2, block / scale, side=side)  # type: ignore[call-overload]
        found = levels[codes] * (scale if block[rest].any() or not safe else 0)
        return np.where(rest, found, block)

    return wrong


def _apart_from_the_end(block: Array, levels: Array, keep: int) -> Array:
    kept = np.argsort(np.abs(block), kind="stable")[-keep:]
    found = block.copy()
    rest = np.setdiff1d(np.arange(len(block)), kept)
    if block[rest].any():
        found[rest] = rounded_apart(block[rest], levels, 0)
    return found


def _some_level(block: Array, levels: Array, keep: int) -> Array:
    found = rounded_apart(block, levels, keep)
    rest = np.argsort(-np.abs(block), kind="stable")[keep:]
    return found if block[rest].any() else np.where(np.isin(np.arange(len(block)), rest), min(levels, key=abs), block)


EIGHTHS = np.array([-8, -6, -4, -1, 0, 1, 2, 3, 5, 8]) / 8
NO_ZERO = np.array([-8, -5, -2, 1, 4, 7]) / 8


@st.composite
def blocks(draw: Any, least: int = 0, zero: bool = False) -> tuple[Array, Array, int]:
    n = draw(st.integers(2, 6))
    keep = draw(st.integers(least, n - 1))
    block = draw(whole((n,), most=8))
    if zero:
        block = np.array([x if i < keep else 0.0 for i, x in enumerate(block)])
    return block, draw(st.sampled_from([EIGHTHS, NO_ZERO])), keep


NOTHING, SOME, LEFT = "nothing kept apart", "some kept apart", "nothing but zeros left"
OUTLIER = Exercise(
    id="10-outlier",
    minutes=15,
    importance=3,
    reference=rounded_apart,
    wheats=(rounded_apart, rounded_apart_at_once),
    properties=(
        Property(NOTHING, blocks().map(lambda case: (case[0], case[1], 0))),
        Property(SOME, blocks(1), points=2),
        Property(LEFT, blocks(zero=True)),
    ),
    chaffs=(
        Chaff("the largest, not the largest magnitude", _apart(order=np.negative), SOME, "-8 is large as well."),
        Chaff("the scale of all", _apart(own=False), SOME, "Whose largest magnitude are the others divided by?"),
        Chaff(
            "a tie goes up", _apart(side="right"), NOTHING, "In the middle between two levels the lower one is taken."
        ),
        Chaff("taken from the end", _apart_from_the_end, NOTHING, "What is `[-keep:]` when keep is 0?"),
        Chaff("divided by 1, and a level returned", _some_level, LEFT, "Is zero always among the levels?"),
        Chaff("divided by zero", _apart(safe=False), LEFT, "What if all of the others are zero?"),
    ),
    hints=('`np.argsort(-np.abs(block), kind="stable")[:keep]` are the places of the largest.',),
)

EXERCISES = (ABSMAX, LEVELS, PACK, OUTLIER)
