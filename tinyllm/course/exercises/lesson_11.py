"""Exercises of lesson 11: bits counted, scales of more than one group, and how many codes an update moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, Variant, demand
from tinyllm.course.judge.compare import compare

Array = np.ndarray

# ------------------------------------------------------------------------------------------------ 11-bits


def bits_of(n: int, block_size: int, double_quant: bool) -> float:
    codes = 8 * ((n + 1) // 2)
    blocks = (n + block_size - 1) // block_size
    if not double_quant:
        return (codes + 32 * blocks) / n
    groups = (blocks + 255) // 256
    return (codes + 8 * blocks + 32 * groups + 32) / n


def bits_of_bytes(n: int, block_size: int, double_quant: bool) -> float:
    blocks = -(-n // block_size)
    scales = blocks + 4 * -(-blocks // 256) + 4 if double_quant else 4 * blocks
    return 8 * (-(-n // 2) + scales) / n


def _bits(
    codes: Callable[[int], float] = lambda n: 8 * ((n + 1) // 2),
    cut: Callable[[int, int], float] = lambda n, size: -(-n // size),
    offset: int = 32,
    group: int = 256,
) -> Any:
    def wrong(n: int, block_size: int, double_quant: bool) -> float:
        blocks = cut(n, block_size)
        if not double_quant:
            return (codes(n) + 32 * blocks) / n
        return (codes(n) + 8 * blocks + 32 * cut(int(blocks), group) + offset) / n

    return wrong


def _shared(group: int, width: int) -> Any:
    """So many scales share a float of so many bits, and the offset is one more."""

    def right(n: int, block_size: int, double_quant: bool) -> float:
        blocks = -(-n // block_size)
        scales = 8 * blocks + width * (-(-blocks // group) + 1) if double_quant else 32 * blocks
        return (8 * -(-n // 2) + scales) / n

    return right


def _more_groups(blocks: int) -> int:
    return math.ceil(blocks / 64) - math.ceil(blocks / 256)


def _sizes(n: Any, double: bool) -> Any:
    return st.tuples(n, st.sampled_from([16, 32, 64, 128]), st.just(double))


PLAIN, DOUBLE, LARGE = "floats for scales", "double quantisation", "a large weight"
BITS = Exercise(
    id="11-bits",
    minutes=10,
    importance=4,
    reference=bits_of,
    wheats=(bits_of, bits_of_bytes),
    properties=(
        Property(PLAIN, _sizes(st.integers(1, 300), False)),
        Property(DOUBLE, _sizes(st.integers(1, 300), True)),
        Property(LARGE, _sizes(st.integers(4096, 2**20), True)),
    ),
    chaffs=(
        Chaff("half a byte", _bits(codes=lambda n: 4 * n), PLAIN, "With an odd n, how many bytes hold the codes?"),
        Chaff(
            "the last block forgotten",
            _bits(cut=lambda n, s: n // s),
            PLAIN,
            "A block that is not full has a scale, too.",
        ),
        Chaff("parts of a block", _bits(cut=lambda n, s: n / s), PLAIN, "There is no third of a scale."),
        Chaff("no offset", _bits(offset=0), DOUBLE, "The scales' mean was subtracted: it is kept as a float."),
        Chaff("groups of 64", _bits(group=64), LARGE, "How many scales share a float?"),
    ),
    variants=(
        Variant(
            "The float for each 256 scales has 16 bits, and so has the offset.",
            _shared(group=256, width=16),
            lambda n, block_size, double_quant: (
                bits_of_bytes(n, block_size, double_quant)
                - (16 * (math.ceil(math.ceil(n / block_size) / 256) + 1) / n if double_quant else 0)
            ),
        ),
        Variant(
            "Groups are of 64 scales, not of 256.",
            _shared(group=64, width=32),
            lambda n, block_size, double_quant: (
                bits_of_bytes(n, block_size, double_quant)
                + (32 * _more_groups(math.ceil(n / block_size)) / n if double_quant else 0)
            ),
        ),
    ),
    hints=("Count bytes first: codes, scales or their codes, a float for each 256, one offset.",),
    read="tinyllm.frozen.nf4.NF4Weight",
)

# ------------------------------------------------------------------------------------------------ 11-groups


def scales_back(codes: Array, absmax2: Array, offset: float, levels: Array) -> Array:
    found = np.zeros(len(codes))
    for i, code in enumerate(codes):
        found[i] = levels[code] * absmax2[i // 256] + offset
    return found


def scales_repeated(codes: Array, absmax2: Array, offset: float, levels: Array) -> Array:
    return levels[codes] * np.repeat(absmax2, 256)[: len(codes)] + offset


def as_floats(call: Any, codes: Array, absmax2: Array, offset: float, levels: Array) -> None:
    """The scales in any float's precision, and a list of them as well."""
    found = call(codes, absmax2, offset, levels)
    demand(isinstance(found, np.ndarray | list), "it must return an array")
    got = np.asarray(found)
    demand(got.dtype.kind == "f" or not got.size, f"the scales must be floats, not {got.dtype}")
    size = abs(levels).max() * abs(absmax2).max() + abs(offset) if len(codes) else 0.0
    wanted = scales_back(codes, absmax2, offset, levels).astype(np.float32)
    compare(wanted, got.astype(np.float32), size)


def _grouped(scale: Callable[[Array, int], Array], offset: bool = True) -> Any:
    def wrong(codes: Array, absmax2: Array, offset_: float, levels: Array) -> Array:
        return levels[codes] * scale(absmax2, len(codes)) + (offset_ if offset else 0)

    return wrong


def _even_parts(absmax2: Array, n: int) -> Array:
    each = -(-n // len(absmax2))
    return np.repeat(absmax2, each)[:n]


def scales_of(many: list[int]) -> Any:
    def drawn(n: int, seed: int) -> tuple:
        rng = np.random.default_rng(seed)
        levels = np.sort(rng.integers(-100, 101, 256)) / 100
        absmax2 = rng.integers(1, 9, -(-n // 256)) / 8
        return rng.integers(0, 256, n).astype(np.uint8), absmax2, float(rng.integers(0, 5)) / 4, levels

    return st.builds(drawn, st.sampled_from(many), st.integers(0, 9999))


ONE_GROUP, FULL_GROUPS, NOT_FULL = "one group", "groups that are full", "a last group that is not full"
GROUPS = Exercise(
    id="11-groups",
    minutes=15,
    importance=4,
    reference=scales_back,
    wheats=(scales_back, scales_repeated),
    properties=(
        Property(ONE_GROUP, scales_of([1, 3, 255, 256]), law=as_floats),
        Property(FULL_GROUPS, scales_of([512, 768]), law=as_floats),
        Property(NOT_FULL, scales_of([257, 300, 511, 513, 700]), law=as_floats, points=2),
    ),
    chaffs=(
        Chaff(
            "the first group's scale for all",
            _grouped(lambda absmax2, n: absmax2[0]),
            FULL_GROUPS,
            "Scale number 256 belongs to which group?",
        ),
        Chaff(
            "a scale of a group for each code",
            _grouped(lambda absmax2, n: absmax2),  # right for one group, and raises for more
            FULL_GROUPS,
            "There are more codes than groups: which scale meets which code?",
            "NVIDIA/Model-Optimizer #2421",
        ),
        Chaff(
            "the codes cut into full groups",
            lambda codes, absmax2, offset, levels: (
                (
                    levels[codes.reshape(-1, 256)] * absmax2[:, None] + offset  # raises if the last one is not full
                ).reshape(-1)
            ),
            NOT_FULL,
            "Does the number of codes divide by 256?",
            "NVIDIA/Model-Optimizer #183",
        ),
        Chaff(
            "groups of equal size",
            _grouped(_even_parts),
            NOT_FULL,
            "A group has 256 scales, and the last one what is left.",
        ),
        Chaff(
            "the offset forgotten",
            _grouped(lambda absmax2, n: np.repeat(absmax2, 256)[:n], offset=False),
            ONE_GROUP,
            "What was subtracted before the scales were rounded?",
        ),
        Chaff(
            "codes taken for numbers",
            lambda codes, absmax2, offset, levels: codes / 255 * np.repeat(absmax2, 256)[: len(codes)] + offset,
            ONE_GROUP,
            "A code is a place in the table of levels.",
        ),
    ),
    hints=("Element i belongs to group i // 256.",),
    read="tinyllm.backend.double_quant.dequantize_absmax",
    emptied=("tinyllm.backend.double_quant.dequantize_absmax",),
)

# ------------------------------------------------------------------------------------------------ 11-moved


def moved(codes: Array, scaled: Array, update: Array, levels: Array) -> float:
    many = 0
    for code, value, change in zip(codes, scaled, update, strict=True):
        away = [abs(value + change - level) for level in levels]
        many += away.index(min(away)) != code
    return many / len(codes)


def moved_at_once(codes: Array, scaled: Array, update: Array, levels: Array) -> float:
    return float((np.searchsorted((levels[:-1] + levels[1:]) / 2, scaled + update) != codes).mean())


def _moved(found: Callable[[Array, Array, Array], Array], share: bool = True) -> Any:
    def wrong(codes: Array, scaled: Array, update: Array, levels: Array) -> float:
        differs = found(scaled, update, levels) != codes
        return float(differs.mean()) if share else float(differs.sum())

    return wrong


def _nearest(values: Array, levels: Array) -> Array:
    return np.searchsorted((levels[:-1] + levels[1:]) / 2, values)


def _rescaled(scaled: Array, update: Array, levels: Array) -> Array:
    return _nearest((scaled + update) / (abs(scaled + update).max() or 1), levels)


def _far(codes: Array, scaled: Array, update: Array, levels: Array) -> float:
    return float((abs(update) > np.diff(levels).min() / 2).mean())


SIXTEEN = np.array([-32, -24, -20, -15, -11, -7, -3, 0, 2, 5, 8, 11, 15, 19, 25, 32]) / 32


def updates(size: float, most: int = 12) -> Any:
    """Levels of sixteen, and updates of a size that end in no tie."""

    def drawn(n: int, seed: int) -> tuple:
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 16, n)
        return codes.astype(np.uint8), SIXTEEN[codes], rng.normal(size=n) * size, SIXTEEN

    return st.builds(drawn, st.integers(1, most), st.integers(0, 9999))


ZERO, LIGHT, STRONG = "an update of zeros", "a light update", "a strong update"
MOVED = Exercise(
    id="11-moved",
    minutes=15,
    importance=5,
    reference=moved,
    wheats=(moved, moved_at_once),
    properties=(
        Property(ZERO, updates(0.0)),
        Property(LIGHT, updates(0.05), points=2),
        Property(STRONG, updates(0.5), points=2),
    ),
    chaffs=(
        Chaff(
            "the values, not the codes",
            lambda codes, scaled, update, levels: float((scaled + update != scaled).mean()),
            LIGHT,
            "A weight that moves a little may keep its code: what is it rounded to?",
            "mlx-tune #15 and transformers #31293, where a merged fine-tune was gone",
        ),
        Chaff(
            "the update alone is rounded",
            _moved(lambda s, u, v: _nearest(u, v)),
            ZERO,
            "What is rounded is the weight with the update in it.",
        ),
        Chaff(
            "a number, not a share", _moved(lambda s, u, v: _nearest(s + u, v), share=False), STRONG, "Out of how many?"
        ),
        Chaff(
            "the level below",
            _moved(lambda s, u, v: np.searchsorted(v, s + u, side="right") - 1),
            LIGHT,
            "The nearest level may be the one above.",
        ),
        Chaff("a new scale", _moved(_rescaled), STRONG, "The block's scale stays as it is, even beyond 1."),
        Chaff(
            "one width for all steps", _far, LIGHT, "The levels are not evenly spaced: how far is it to the next one?"
        ),
    ),
    hints=("The midpoints between the levels part what goes up from what goes down.",),
    read="tinyllm.lora.merge.merge_lora",
)

EXERCISES = (BITS, GROUPS, MOVED)
