"""Half precision as bits: bfloat16 to and from float32, and a quick way to widen float16."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllm.backend.table import of, replaceable

# NumPy has no bfloat16. What a file holds of it are two bytes without a meaning to NumPy, which refuses to compute with
# them; as uint16 patterns they are ``array.view(np.uint16)``.
BFLOAT16 = np.dtype("V2")
SIGN_EXPONENT_MANTISSA = np.int32(~0x70001FFF)  # of a float16 that was shifted 13 places to the left


@replaceable
def to_bfloat16(w: Any) -> Any:
    """The upper 16 bits of each float32, rounded to nearest, ties to even; uint16 of the same shape. NaN stays NaN."""
    w = of(w).xp.ascontiguousarray(w, dtype=np.float32)
    bits, nan = w.view(np.uint32), w != w
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # A NaN's digits may all be in the lower half, or carry into its exponent and sign: it is cut, and marked as one.
    rounded[nan] = bits[nan] >> 16 | 0x40
    return rounded


@replaceable
def from_bfloat16(bits: Any) -> Any:
    """The float32 each bfloat16 pattern stands for: the same bits with 16 zeros below."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def widen_bfloat16(bits: Any, out: Any) -> None:
    """`from_bfloat16`, written into a float32 array."""
    word = out.view(np.uint32)
    word[...] = bits
    word <<= 16


def widen_float16(bits: Any, out: Any) -> None:
    """The float32 each finite float16 pattern stands for, written into a float32 array; seven times NumPy's cast.

    A float16 has 1 bit of sign, 5 of exponent and 10 of mantissa, a float32 1, 8 and 23. Read as a *signed* integer,
    the pattern spreads its sign upwards; 13 places to the left, sign, exponent and mantissa are where a float32 has
    them, and the copies of the sign between are cleared. Then only the bias differs, 15 from 127: a factor of 2**112.
    """
    word = out.view(np.int32)
    word[...] = bits.view(np.int16)
    word <<= 13
    word &= SIGN_EXPONENT_MANTISSA
    out *= np.float32(2.0**112)
